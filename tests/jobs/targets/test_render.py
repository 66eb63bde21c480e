"""The schedule of a data job in the words of other schedulers, read by their own tools or schemas."""

import json
import os
import re
import runpy
import shlex
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import jsonschema
import kubernetes_validate
import pytest
import yaml
from crontab import CronTab
from jinja2 import Environment
from referencing import Registry, Resource

from jobs.spec.job import Job, load_job
from jobs.targets.render import TARGETS
from tests.support.runs import DATA

KUBERNETES = "1.37"
HOSTILE = "s3://faces/it's $(touch hacked) `touch hacked` \"$HOME\" {{ ds }} {% raw %} 100% \\ 'EOF'"
JOB: dict[str, Any] = {
    "name": "nightly",
    "root": "s3://bucket/nightly",
    "run": {"source": "s3://bucket/faces", "edits": ["glasses=1"], "engine": {"batch_size": 8}},
    "schedule": {"cron": "30 2 * * SUN", "timezone": "Europe/Berlin"},
}
IMAGE = ("--image", "registry/asyrp:1")
NEEDED = {"k8s-cronjob": IMAGE, "raycronjob": IMAGE}
NIGHT = datetime(2026, 7, 13, 0, 30, tzinfo=UTC)
SHOW = """printf '%s\\0' "$@" > argv; cat "$3" > carried.yaml"""


@pytest.fixture
def render(cli, tmp_path, monkeypatch):
    """Render a job, with changes to it, in a folder with a difficult name; the texts by file name. The job is then in
    `job.yaml`."""
    folder = tmp_path / "it's 100% $HOME"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def call(target, *flags, schedule=None, source=JOB["run"]["source"], **changes):
        job = {**JOB, **changes, "run": {**JOB["run"], "source": source}}
        job["schedule"] = {**JOB["schedule"], **(schedule or {})}
        Path("job.yaml").write_text(yaml.safe_dump(job))
        Path("out").mkdir(exist_ok=True)
        output = Path("out") if target in ("systemd", "slurm") else Path("out", target)
        flags = (*NEEDED.get(target, ()), *flags)
        code, out, err = cli("jobs", "schedule", "render", "job.yaml", "--target", target, "-o", output, *flags)
        assert code == 0, err
        return {Path(line).name: Path(line).read_text() for line in out.splitlines()}

    return call


def is_carried(text: str, **engine: Any) -> bool:
    """Whether a text is the job in `job.yaml`, but for its speed knobs."""
    Path("carried.yaml").write_text(text)
    carried, given = load_job(Path("carried.yaml")), load_job(Path("job.yaml"))
    knobs = given.run.engine.model_copy(update=engine)
    return carried == given.model_copy(update={"run": given.run.model_copy(update={"engine": knobs})})


def stand_in(name: str, body: str) -> dict[str, str]:
    """An environment in which a command is a stand-in."""
    folder = Path("bin").absolute()
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/bash\n{body}\n")
    (folder / name).chmod(stat.S_IRWXU)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}


# Kubernetes


@pytest.mark.parametrize("gpus", [0, 2])
@pytest.mark.parametrize(("catch_up", "overlap"), [("none", "refuse"), ("last", "queue"), ("all", "refuse")])
def test_a_cronjob_is_what_kubernetes_takes(render, gpus, catch_up, overlap):
    flags = ("--gpus-per-worker", gpus, "--service-account", "reader", "--time", "2:00:00")
    text = render("k8s-cronjob", *flags, schedule={"catch_up": catch_up}, overlap=overlap)["k8s-cronjob"]
    config_map, cron_job = yaml.safe_load_all(text)
    for document in (config_map, cron_job):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)
    spec = cron_job["spec"]
    assert (spec["schedule"], spec["timeZone"]) == ("30 2 * * 0", "Europe/Berlin")
    assert spec["concurrencyPolicy"] == {"refuse": "Forbid", "queue": "Allow"}[overlap]
    assert ("startingDeadlineSeconds" in spec) == (catch_up == "none")
    pod = spec["jobTemplate"]["spec"]["template"]["spec"]
    assert spec["jobTemplate"]["spec"]["activeDeadlineSeconds"] == 7200
    assert pod["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
    assert pod["serviceAccountName"] == "reader"
    assert pod["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
    assert is_carried(config_map["data"]["spec.yaml"])


@pytest.mark.parametrize(
    ("job_name", "tick"),
    [
        (f"nightly-{NIGHT.timestamp() / 60:.0f}", NIGHT),
        ("nightly-by-hand", None),
        ("nightly-", None),
    ],
)
def test_a_pod_takes_its_tick_from_the_name_of_its_job(render, job_name, tick):
    _, cron_job = yaml.safe_load_all(render("k8s-cronjob")["k8s-cronjob"])
    container = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]
    environment = stand_in("asyrp", """printf '%s\\0' "$@" """) | {"JOB_NAME": job_name}
    told = subprocess.run(container["command"], env=environment, capture_output=True, text=True, check=True).stdout
    command, arguments = told.split("\0")[:3], told.split("\0")[3:-1]
    assert command == ["jobs", "run", "/etc/asyrp/spec.yaml"]
    assert arguments == ([] if tick is None else ["--tick", arguments[1]])
    assert tick is None or datetime.fromisoformat(arguments[1]) == tick


def test_a_raycronjob_has_the_fields_of_its_schema_and_runs_the_job_on_its_own_cluster(render):
    text = render("raycronjob", "--workers", 3, "--gpus-per-worker", 2)["raycronjob"]
    config_map, ray_cron_job = yaml.safe_load_all(text)
    schemas = {name: json.loads((DATA / name).read_text()) for name in ("rayjob.schema.json", "raycronjob.schema.json")}
    registry = Registry().with_resources((name, Resource.from_contents(schema)) for name, schema in schemas.items())
    jsonschema.Draft7Validator(schemas["raycronjob.schema.json"], registry=registry).validate(ray_cron_job)
    assert ray_cron_job["spec"]["timeZone"] == "Europe/Berlin"
    entrypoint = shlex.split(ray_cron_job["spec"]["jobTemplate"]["entrypoint"])
    assert entrypoint == ["asyrp", "jobs", "run", "/etc/asyrp/spec.yaml"]
    assert is_carried(config_map["data"]["spec.yaml"], address="auto", device="cuda", actors=6)


# Hosts


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze here")
@pytest.mark.parametrize("catch_up", ["none", "last", "all"])
def test_the_units_are_what_systemd_takes_whatever_the_folder_is_called(render, tmp_path, catch_up):
    files = render("systemd", schedule={"catch_up": catch_up})
    units = [str(tmp_path / name) for name in files]
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    verified = subprocess.run(["systemd-analyze", "verify", *units], capture_output=True, text=True, check=False)
    assert (verified.returncode, verified.stderr) == (0, "")
    assert ("Persistent=true" in files["nightly.timer"]) == (catch_up != "none")
    assert "OnCalendar=Sun *-*-* 2:30:0 Europe/Berlin" in files["nightly.timer"]


def test_a_crontab_is_what_a_parser_of_crontabs_takes_whatever_the_folder_is_called(render):
    text = render("crontab")["crontab"]
    (entry,) = CronTab(tab=text)
    assert entry.is_valid() and str(entry.slices) == "30 2 * * 0" and entry.env["CRON_TZ"] == "Europe/Berlin"
    command = [sys.executable, "-P", "-m", "jobs", "jobs", "run", str(Path("job.yaml").absolute())]
    assert cron_words(text) == ["cd", str(Path.cwd()), "&&", *command]


def cron_words(table: str) -> list[str]:
    """The words of the command in the last line of a crontab, which cron reads up to a bare '%'."""
    command = table.splitlines()[-1].split(maxsplit=5)[5]
    read = re.match(r"([^%\\]|\\.)*", command)
    assert read is not None
    return shlex.split(read.group().replace(r"\%", "%"))


@pytest.mark.parametrize("overlap", ["refuse", "queue"])
def test_a_slurm_script_carries_the_job_whatever_is_in_it_and_the_scrontab_submits_it(render, overlap):
    flags = ("--workers", 2, "--partition", "gpu", "--time", "1:00:00")
    files = render("slurm", *flags, source=HOSTILE, overlap=overlap)
    script, table = Path("out/nightly.sh").absolute(), files["nightly.scrontab"]
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    directives = {line.removeprefix("#SBATCH --") for line in files["nightly.sh"].splitlines() if "#SBATCH" in line}
    assert directives >= {"job-name=nightly", "nodes=2", "time=0-01:00:00", "partition=gpu", "requeue"}
    assert ("dependency=singleton" in directives) == (overlap == "queue")
    environment = stand_in("asyrp", SHOW) | stand_in("srun", 'while [ "$1" != -- ]; do shift; done; shift; "$@"')
    stand_in("hostname", "echo 10.0.0.1")
    subprocess.run(["bash", script], env=environment, check=True)
    assert Path("argv").read_text().split("\0")[:2] == ["jobs", "run"]
    assert is_carried(Path("carried.yaml").read_text(), address="auto", device="cuda", actors=2)
    assert not Path("hacked").exists()
    option, entry = table.splitlines()[-2:]
    assert option.startswith("#SCRON --") and entry.startswith("30 2 * * 0 ")
    assert cron_words(table) == ["sbatch", str(script)]


# Airflow


class Recorded(SimpleNamespace):
    """Stands in for a class of Airflow, which is too heavy to be here: keeps what it is given."""

    made: ClassVar[list["Recorded"]] = []

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(args=args, **options)
        Recorded.made.append(self)

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def run_dag(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Recorded]:
    """What a DAG file makes, by class."""
    places = {
        "airflow": ["DAG"],
        "airflow.timetables.trigger": ["CronTriggerTimetable"],
        "airflow.providers.standard.operators.bash": ["BashOperator"],
        "airflow.providers.cncf.kubernetes.operators.pod": ["KubernetesPodOperator"],
        "kubernetes.client": [],
    }
    for place, names in places.items():
        module = ModuleType(place)
        vars(module).update({name: type(name, (Recorded,), {}) for name in names})
        monkeypatch.setitem(sys.modules, place, module)
    models = SimpleNamespace(V1ResourceRequirements=dict, V1Toleration=dict)
    monkeypatch.setattr(sys.modules["kubernetes.client"], "models", models, raising=False)
    Recorded.made.clear()
    runpy.run_path(str(path))
    return {type(made).__name__: made for made in Recorded.made}


# As apache-airflow-providers-standard 1.x and -cncf-kubernetes 10.x document them.
BASH_OPERATOR = {"task_id", "bash_command", "env", "append_env", "retries"}
POD_OPERATOR = {
    "task_id", "name", "image", "cmds", "arguments", "env_vars", "service_account_name", "container_resources",
    "tolerations", "startup_timeout_seconds", "termination_grace_period", "execution_timeout", "retries",
}  # fmt: skip
DAG = {"dag_id", "schedule", "start_date", "catchup", "max_active_runs", "user_defined_macros", "tags"}


@pytest.mark.parametrize(("image", "known"), [((), BASH_OPERATOR), (IMAGE, POD_OPERATOR)])
@pytest.mark.parametrize(("catch_up", "overlap"), [("last", "queue"), ("all", "refuse")])
def test_a_dag_does_the_tick_of_its_run_with_the_job_whatever_is_in_it(
    render, monkeypatch, image, known, catch_up, overlap
):
    render("airflow", *image, source=HOSTILE, schedule={"catch_up": catch_up}, overlap=overlap)
    made = run_dag(Path("out/airflow"), monkeypatch)
    dag, timetable = made["DAG"], made["CronTriggerTimetable"]
    assert timetable.args == ("30 2 * * 0",) and timetable.timezone == "Europe/Berlin"
    assert (dag.catchup, dag.max_active_runs) == (catch_up == "all", 1 if overlap == "queue" else 2)
    operator = made["KubernetesPodOperator" if image else "BashOperator"]
    assert vars(operator).keys() - {"args"} <= known and vars(dag).keys() - {"args"} <= DAG
    macros = {**dag.user_defined_macros, "data_interval_end": NIGHT}
    variables = operator.env_vars if image else operator.env
    rendered = {name: Environment().from_string(text).render(macros) for name, text in variables.items()}
    command = operator.arguments[0] if image else operator.bash_command
    environment = stand_in("asyrp", SHOW) | rendered
    subprocess.run([*(operator.cmds if image else ["bash", "-c"]), command], env=environment, check=True)
    arguments = Path("argv").read_text().split("\0")[:-1]
    assert arguments[:4] == ["jobs", "run", "/dev/stdin", "--tick"] and datetime.fromisoformat(arguments[4]) == NIGHT
    assert is_carried(Path("carried.yaml").read_text()) and not Path("hacked").exists()


# What cannot be said


@pytest.mark.parametrize(
    ("target", "changes", "comment"),
    [
        ("k8s-cronjob", {"schedule": {"catch_up": "all"}}, "'catch_up: all' cannot be said here: of the ticks"),
        ("k8s-cronjob", {}, "A time that the clock skips in spring does not come."),
        ("k8s-cronjob", {}, "does not stand in the job's history; the last such tick is started"),
        ("raycronjob", {"schedule": {"catch_up": "none"}}, "'catch_up: none' cannot be said here"),
        ("raycronjob", {"overlap": "queue"}, "gets a cluster all the same, and it waits there"),
        ("systemd", {"schedule": {"catch_up": "all"}}, "'catch_up: all' cannot be said here"),
        ("systemd", {"overlap": "queue"}, "'overlap: queue' cannot be said here"),
        ("crontab", {}, "'catch_up: last' cannot be said here"),
        ("crontab", {}, "Debian's among them, go by the machine's clock: have that in Europe/Berlin"),
        ("slurm", {}, "scrontab has no time zones"),
        ("slurm", {"schedule": {"catch_up": "none"}}, "'catch_up: none' cannot be said here"),
        ("airflow", {"schedule": {"catch_up": "none"}}, "'catch_up: none' cannot be said here"),
    ],
)
def test_what_a_scheduler_cannot_say_stands_in_a_comment(render, target, changes, comment):
    texts = render(target, **changes).values()
    comments = " ".join(
        line.removeprefix("# ") for text in texts for line in text.splitlines() if line.startswith("# ")
    )
    assert comment in comments


@pytest.mark.parametrize(
    ("target", "flags", "changes", "message"),
    [
        ("k8s-cronjob", (), {}, "--image is missing"),
        ("k8s-cronjob", (*IMAGE, "--workers", 2), {}, "use --target raycronjob"),
        ("k8s-cronjob", IMAGE, {"root": "here/nightly"}, "pods are others"),
        ("raycronjob", ("--image", "a b"), {}, "is no container image"),
        ("airflow", (*IMAGE, "--service-account", "A"), {}, "no name of a service account"),
        ("airflow", ("--gpus-per-worker", 2), {}, "--gpus-per-worker is not for --target airflow without --image"),
        ("systemd", ("--workers", 2), {}, "--workers is not for --target systemd: leave it out"),
        ("crontab", IMAGE, {}, "--image is not for --target crontab"),
        ("crontab", (), {"schedule": None}, "has no schedule to render: add 'schedule:' with a 'cron:'"),
        ("crontab", (), {"schedule": {"cron": "0 0 L * *"}}, "has a day with L or #, which cron does not know"),
        ("slurm", (), {}, "--output is missing: give the folder for the script"),
        ("moon", (), {}, "--target moon: give k8s-cronjob or raycronjob or"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_rendered_is_one_sentence_and_exit_code_2(
    cli, tmp_path, target, flags, changes, message
):
    path = tmp_path / "job.yaml"
    path.write_text(yaml.safe_dump({name: value for name, value in {**JOB, **changes}.items() if value is not None}))
    code, out, err = cli("jobs", "schedule", "render", path, "--target", target, *flags)
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in out + err


def test_what_goes_to_stdout_is_what_goes_to_a_file(render, cli):
    for target in TARGETS:
        if target != "slurm":
            files = render(target)
            _, out, _ = cli("jobs", "schedule", "render", "job.yaml", "--target", target, *NEEDED.get(target, ()))
            assert all(text in out for text in files.values())


def test_a_job_that_is_carried_has_what_the_user_set_and_no_more():
    from jobs.targets.job_file import job_spec_yaml

    job = Job.model_validate(JOB)
    assert yaml.safe_load(job_spec_yaml(job)) == JOB
