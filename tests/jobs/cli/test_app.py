"""The command line, in this process except where a run is started."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
import typer
import yaml

from asyrp.diffusion.schedule import timesteps
from asyrp.directions.info import read_info
from asyrp.models.find import find_model
from jobs.cli.app import app
from jobs.runs.resolve import resolve
from tests.support.runs import SAMPLES, digests, make_faces, rows, run_here, spec, stand_in_run

FAST = ("--n-inv", "4", "--n-gen", "4", "--preview", "2")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-e", "glasses=1"), "source is missing: give --source"),
        (("-s", "{faces}"), "edits is missing"),
        (("-s", "{faces}", "-e", "glases=1"), "there is no direction 'glases' for the model avatars"),
        (("-s", "{faces}", "-e", "glasses=big"), "'glasses=big' is not of the form direction=weight"),
        (("-s", "{faces}", "-e", "glasses=1_0"), "'glasses=1_0' is not of the form direction=weight"),
        (("-s", "{faces}", "-e", "glasses=1", "--model", ""), "a model is missing: its name is empty"),
        (("-s", "{faces}", "-e", "glasses=1", "--direction", "=x"), "--direction =x: give NAME=FILE"),
        (("-s", "{faces}", "-e", "glasses=1", "--gate", "recon_psnr > nan"), "compares with no number"),
        (("-s", "{faces}", "-e", "glasses=1", "--set", "engine.price_per_hour=.inf"), "should be a finite number"),
        (
            ("-s", "{faces}", "-e", "glasses=1", "--set", "inspection.search={low: 2, high: 1}"),
            "high must be more than",
        ),
        (("-s", "{faces}", "-e", "glasses=1", "-o", "s3:/bucket/out"), "a URL begins with s3://"),
        (("-s", "{faces}", "-e", "glasses=1", "-e", "glasses=1.0"), "the same edit is given twice"),
        (("-s", "nowhere", "-e", "glasses=1"), "nowhere is no folder"),
        (("-s", "{faces}", "-e", "glasses=1", "--model", "missing"), "there is no model 'missing'"),
        (("-s", "{faces}", "-e", "glasses=1", "--n-gen", "1"), "n_gen: Input should be greater than or equal to 2"),
        (("-s", "{faces}", "-e", "glasses=1", "--t-edit", "1000"), "t_edit: Input should be less than or equal to 999"),
        (("-s", "{faces}", "-e", "glasses=1", "--image-size", "33"), "sizes that are multiples of 4"),
        (("-s", "{faces}", "-e", "glasses=1", "--image-size", "64"), "shifts of h at the model's own size, 32"),
        (("-s", "{faces}", "-e", "glasses=1", "--name", "{stem}"), None),
        (("-s", "{faces}", "-e", "glasses=1", "--name", "{steam}"), "'steam' is not among {key}"),
        (("-s", "{faces}", "-e", "glasses=1", "--set", "engine.batchsize=4"), "did you mean 'batch_size'?"),
        (("-s", "{faces}", "-e", "glasses=1", "--set", "sed=4"), "did you mean 'seed'?"),
        (("-s", "{faces}", "-e", "glasses=1", "--set", "seed"), "write it as name=value"),
        (("-s", "{faces}", "-e", "glasses=1", "--direction", "nofile.safetensors"), "there is no direction file"),
        (("-s", "{faces}", "-e", "glasses=1", "--config", "nofile.yaml"), "cannot read the config nofile.yaml"),
        (("-s", "{faces}", "-e", "glasses=1", "--inversions", "nowhere"), "there is no run at"),
        (("-s", "{faces}", "-o", "{faces}/out", "-e", "glasses=1"), "lies inside the source"),
        (("-s", "{faces}", "-o", "memory://x", "-e", "glasses=1"), "memory:// lives in one process"),
        (("-s", "nope://x", "-e", "glasses=1"), "cannot open nope://x"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(cli, faces, tmp_path, arguments, message):
    folder = faces(2)
    arguments = [argument.replace("{faces}", str(folder)) for argument in arguments]
    if "-o" not in arguments:
        arguments += ["-o", str(tmp_path / "out")]
    if message is None:  # one edit of two images: this name does tell them apart
        arguments += ["--edit", "smile=1"]
        message = "would both be written as"
    code, out, err = cli("run", *arguments)
    assert code == 2 and message in err.replace("\n", "") and "Traceback" not in out + err
    assert not (tmp_path / "out" / "run.json").exists()


@pytest.mark.usefixtures("without_ray")
def test_the_spec_of_a_run_comes_from_yaml_and_flags_override_it(cli, faces, tmp_path):
    config = {"source": str(faces(3)), "output": str(tmp_path / "out"), "edits": ["smile=1"], "n_inv": 3, "n_gen": 9}
    (tmp_path / "job.yaml").write_text(
        yaml.safe_dump({**config, "engine": {"batch_size": 2, "check": False}, "preview": 1})
    )
    code, out, err = cli("run", "-c", tmp_path / "job.yaml", "--n-gen", "4", "--set", "seed=7")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert (record["spec"]["n_gen"], record["spec"]["seed"], record["spec"]["n_inv"]) == (4, 7, 3)
    assert record["identity"]["model_digest"] and "engine" not in record["identity"]
    assert {row["seed"] for row in rows(tmp_path / "out").values()} == {7}
    session = json.loads((tmp_path / "out" / "report" / "summary.json").read_text())["session"]
    assert session["finished"] and session["images"] == 4 and sum(session["device_time"].values()) == pytest.approx(1)
    assert "contact sheet:" in out and (tmp_path / "out" / "report" / "contact_sheet.png").is_file()
    code, out, _ = cli("status", tmp_path / "out", "--json")
    state = json.loads(out)
    assert code == 0 and state["complete"] and state["stages"]["boost"]["rows"] == {"ok": 3}
    code, _, err = cli("run", "-c", tmp_path / "job.yaml", "--n-gen", "4", "--set", "seed=7")
    assert code == 0 and "nothing to do" in err


def test_an_unknown_field_of_the_config_is_named_with_the_nearest_one(cli, tmp_path):
    (tmp_path / "job.yaml").write_text("source: a\noutput: b\nedits: [smile]\nbatch_sise: 3\n")
    code, _, err = cli("run", "-c", tmp_path / "job.yaml")
    assert code == 2 and "unknown field 'batch_sise'" in err


def test_plan_says_what_a_run_costs_and_touches_nothing(cli, faces, tmp_path):
    code, out, _ = cli("plan", "-s", faces(5), "-o", tmp_path / "out", "-e", "glasses=1", "--shard-size", "2", "--json")
    cost = json.loads(out)
    assert code == 0 and (cost["images"], cost["shards"], cost["outputs"]) == (5, 3, 5)
    assert (cost["solver"], cost["n_inv"], cost["n_gen"]) == ("dpmpp_2m", 20, 20)
    assert cost["encodes_per_image"] == 10 + 11 < cost["decodes_per_image"]  # up to 466 and down again
    assert cost["seconds_per_image"] > 0 and cost["output_megabytes"] > 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("change", [("--seed", "1"), ("--inversions", "{out}")])
def test_plan_refuses_what_run_refuses(cli, faces, tmp_path, change):
    out = str(tmp_path / "out")
    run_here(resolve(spec(faces(2), out, model="avatars")), shards=[])
    other = out if change[0] == "--seed" else str(tmp_path / "other")
    arguments = ("-s", faces(2), "-o", other, "-e", "smile=1", *(text.format(out=out) for text in change))
    for command in ("plan", "run"):
        code, _, err = cli(command, *arguments)
        wanted = "is another one" if change[0] == "--seed" else "kept no inversions"
        assert code == 2 and wanted in err.replace("\n", "")


def test_a_plan_counts_the_second_decode_only_where_a_direction_acts(cli, faces, tmp_path):
    info = read_info(find_model("avatars").direction_files()["smile"])
    papers = ("-s", faces(1), "-o", tmp_path / "out", "-e", "smile=1", "--preset", "paper")
    cost = json.loads(cli("plan", *papers, "--json")[1])
    acts = sum(info.t_edit <= t <= info.t_start for t in timesteps(40))
    assert 0 < acts < 40 and cost["decodes_per_image"] == 39 + 40 + acts


def test_status_of_no_run_is_one_sentence(cli, tmp_path):
    code, _, err = cli("status", tmp_path)
    assert code == 2 and "there is no run at" in err


def test_models_and_directions_are_listed_and_shown(cli):
    assert "avatars" in json.loads(cli("models", "list", "--json")[1])
    shown = json.loads(cli("models", "show", "avatars", "--json")[1])
    assert shown["h"] == [160, 8, 8] and shown["image_size"] == 32
    assert shown["directions"] == ["beard", "glasses", "long_hair", "smile"]
    infos = json.loads(cli("directions", "list", "--json")[1])
    assert all(info["model_digest"] == shown["digest"] and info["unit"] for info in infos)
    assert json.loads(cli("directions", "show", "smile", "--json")[1])["name"] == "smile"


MAKERS = {
    "submit", "cluster grafana", "jobs schedule render", "models convert", "intervals learn",
    *(f"directions {name}" for name in (
        "project", "combine", "scale", "begin", "average", "preview", "learn text", "learn labels", "learn classifier",
        "learn pca", "learn jacobian",
    )),
}  # fmt: skip
"""Commands that make a file and print where it is."""

SILENT = {"jobs schema", "jobs schedule serve"}
"""What prints nothing but JSON, and what works until it is stopped."""


def commands(group: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{path}{name} ")
        else:
            yield f"{path}{name}", command


def test_every_command_that_reports_can_do_so_in_json():
    lacking = {
        name
        for name, command in commands(typer.main.get_command(app))
        if not any("--json" in parameter.opts for parameter in command.params)
    }
    assert lacking == MAKERS | SILENT


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cli")
    stand_in_run(make_faces(folder / "faces", 2), folder / "run")
    return folder


@pytest.mark.parametrize(
    "command",
    [
        "status {run}",
        "verify {run}",
        "gc {run} --dry-run",
        "report {run}",
        "export {run} --to parquet -o {run}-set",
        "models list",
        "models show",
        "directions list",
        "directions show smile",
        "directions compare smile beard",
        "cluster check ray_cluster.yaml",
    ],
)
def test_with_json_one_document_and_nothing_else_is_on_stdout(cli, made, command):
    code, out, _ = cli(*command.replace("{run}", str(made / "run")).split(), "--json")
    assert code == 0 and json.loads(out) and out.count("\n") == 1


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("asyrp mod", ["models"]),
        ("asyrp models show ch", ["church-ddpm"]),
        ("asyrp run --model av", ["avatars"]),
        ("asyrp run -e s", ["smile"]),
        ("asyrp directions compare gl", ["glasses"]),
        ("asyrp directions import x.pth --data-set be", ["bedroom"]),
    ],
)
def test_the_shell_completes_commands_and_the_names_that_come_with_the_package(cli, monkeypatch, typed, completed):
    monkeypatch.setenv("_ASYRP_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    assert cli()[1].split() == completed


def test_completion_is_installed_by_an_option(cli):
    assert "--install-completion" in cli("--help")[1]


@pytest.mark.usefixtures("without_ray")
def test_a_direction_learned_from_labels_can_be_used_at_once(cli, tmp_path):
    labels = SAMPLES.parent / "labels.csv"
    code, _, err = cli("directions", "learn", "labels", "-s", SAMPLES, "--labels", labels, "--name", "glasses",
                       "-o", tmp_path / "mine.safetensors", "--t-start", "500", "--t-edit", "300", "--n-steps", "10",
                       "--force")  # fmt: skip
    assert code == 0, err
    info = read_info(tmp_path / "mine.safetensors")
    assert (info.name, info.t_start, info.t_edit, info.n_steps) == ("glasses", 500, 300, 10)
    assert info.found_on == "64 images" and "64 labelled images, expected cosine" in info.notes["verdict"]
    asked = ("-s", SAMPLES / "face_0[0-3].png", "-o", tmp_path / "out", "-e", "mine=1",
             "--direction", f"mine={tmp_path / 'mine.safetensors'}", *FAST)  # fmt: skip
    assert json.loads(cli("plan", *asked, "--json")[1])["verdicts"] == {"mine": info.verdict}
    code, _, err = cli("run", *asked)
    assert code == 0, err
    assert len(digests(tmp_path / "out")) == 4


@pytest.mark.usefixtures("without_ray")
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("name,smile\na.png,1\n", "no column 'key'"),
        ("key,smile\nface_00.png,\nface_01.png,1\n", "is empty or not finite"),
        ("key,smile\nface_00.png,yes\n", "no numeric column:"),
        ("key,frown\nface_00.png,1\n", "no numeric column 'smile'"),
        ("key,smile\nother.png,1\n", "none of the images"),
        ("key,smile\nface_00.png,1\nface_01.png,1\n", "0 images with 'smile' and 2 without: 10 of each"),
    ],
)
def test_a_table_of_labels_that_does_not_fit_is_one_sentence(cli, tmp_path, table, message):
    (tmp_path / "labels.csv").write_text(table)
    code, _, err = cli("directions", "learn", "labels", "-s", SAMPLES, "--labels", tmp_path / "labels.csv",
                       "--name", "smile", "-o", tmp_path / "x.safetensors", "--t-edit", "900")  # fmt: skip
    assert code == 2 and message in err.replace("\n", " ")


def test_the_help_of_run_names_every_option_and_shows_an_example(cli):
    code, out, _ = cli("run", "--help")
    assert code == 0
    for word in (
        "--source",
        "--edit",
        "--t-boost",
        "--stages",
        "--actors",
        "--config",
        "--set",
        "Example",
        "Exit codes",
    ):
        assert word in out


def test_the_bundled_samples_have_their_labels():
    table = (SAMPLES.parent / "labels.csv").read_text().splitlines()
    assert len(table) == 65 and len(list(SAMPLES.glob("*.png"))) == 64
    assert {line.split(",")[0] for line in table[1:]} == {path.name for path in SAMPLES.glob("*.png")}


def test_the_package_ships_less_than_25_mb():
    shipped = sum(path.stat().st_size for path in SAMPLES.parent.rglob("*") if path.is_file())
    assert shipped < 25e6


def test_a_machine_on_which_ray_does_not_start_says_so(cli, faces, tmp_path, monkeypatch):
    def timed_out(**_):
        raise Exception("The current node timed out during startup.")  # as Ray's own: it has no type for it

    monkeypatch.setattr("ray.is_initialized", lambda: False)
    monkeypatch.setattr("ray.init", timed_out)
    code, _, err = cli("run", "-s", faces(2), "-o", tmp_path / "out", "-e", "glasses=1", *FAST)
    assert code == 5 and err.startswith("error: Ray did not start on this machine") and "Traceback" not in err
