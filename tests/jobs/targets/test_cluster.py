"""Cluster files as `ray up` takes them, and runs as jobs of Kubernetes and Slurm."""

import copy
import json
import os
import shlex
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from jobs.spec.run import load_spec
from tests.support.runs import DATA, ROOT

AWS, LOCAL = ROOT / "ray_cluster.yaml", ROOT / "jobs" / "targets" / "clusters" / "local.yaml"


# Cluster files


@pytest.fixture
def check(cli, tmp_path):
    """Check the AWS file after a change to it; exit code, stdout and stderr on one line."""

    def call(change=None, file=AWS, *flags):
        config = yaml.safe_load(file.read_text())
        if change:
            change(config)
        (tmp_path / "cluster.yaml").write_text(yaml.safe_dump(config))
        code, out, err = cli("cluster", "check", tmp_path / "cluster.yaml", *flags)
        return code, out, " ".join(err.split())

    return call


@pytest.mark.parametrize("file", [AWS, LOCAL], ids=["aws", "local"])
def test_the_shipped_cluster_files_are_what_ray_up_accepts(cli, file):
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(yaml.safe_load(file.read_text())))
    code, out, err = cli("cluster", "check", file)
    assert code == 0 and "head" in out, err


def test_the_aws_cluster_costs_no_gpu_until_a_run_asks_for_one(check):
    code, out, _ = check(None, AWS, "--json")
    types = {node_type["name"]: node_type for node_type in json.loads(out)["node_types"]}
    assert code == 0 and types["head"]["head"] and types["head"]["resources"] == {"CPU": 0}
    gpu = types["gpu"]
    assert gpu["spot"] and (gpu["min_workers"], gpu["resources"]["GPU"]) == (0, 1) and gpu["max_workers"] > 0


def test_what_is_left_to_edit_is_said(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, _, err = cli("cluster", "check", AWS)
    assert "ImageId is a placeholder" in err and "there is no 'dist' here yet" in err
    (tmp_path / "dist").mkdir()
    assert "dist" not in cli("cluster", "check", AWS)[2]


def gpu(config):
    return config["available_node_types"]["gpu"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(min_workers=1), "'min_workers' is of a node type: move it below"),
        (lambda c: c.update(zzz=1), "unknown key 'zzz': known are auth, available_node_types"),
        (lambda c: c.pop("cluster_name"), "'cluster_name' is missing: add 'cluster_name:' at the top"),
        (lambda c: c.pop("provider"), "'provider' is missing"),
        (lambda c: c["provider"].update(type="awss"), "provider.type: Unsupported node provider: awss"),
        (lambda c: c["provider"].pop("region"), "provider: 'region' is missing"),
        (lambda c: gpu(c).pop("resources"), "available_node_types.gpu: 'resources' is missing: add 'resources:' below"),
        (lambda c: gpu(c).update(max_worker=3), "available_node_types.gpu: unknown key 'max_worker': did you mean"),
        (lambda c: gpu(c)["resources"].update(GPU="one"), "available_node_types.gpu.resources.GPU: 'one' is not of"),
        (lambda c: gpu(c).update(min_workers=9, max_workers=9), "smaller than the sum of `min_workers`"),
        (lambda c: gpu(c).update(min_workers=3, max_workers=2), "gpu: min_workers is 3 and max_workers 2: make it"),
        (lambda c: gpu(c).update(min_workers=-1), "gpu: min_workers is -1"),
        (lambda c: c.update(head_node_type="hed"), "`head_node_type` must be one of `available_node_types`"),
        (lambda c: c.pop("head_node_type"), "head_node_type"),
        (lambda c: c["docker"].pop("container_name"), "docker: Must provide a container & image name: add"),
        (lambda c: c["available_node_types"].update({1: gpu(c)}), "a key is not text: put it in quotes"),
        (lambda c: c.update({1: 2}), "unknown key '1'"),
        (lambda c: c.update(setup_commands=None), "setup_commands: None is not of type 'array'"),
    ],
)  # fmt: skip
def test_a_mistake_in_a_cluster_file_is_one_sentence_and_exit_code_2(check, change, message):
    code, out, err = check(change)
    print("MSG", err)
    assert code == 2 and message in err and "Traceback" not in out + err
    assert err.startswith("error: ") and "cluster.yaml: " in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: gpu(c)["node_config"].pop("InstanceType"), "gpu.node_config: 'InstanceType' is missing"),
        (lambda c: gpu(c)["node_config"].update(ImageID="x"), "unknown key 'ImageID': did you mean 'ImageId'?"),
        (
            lambda c: gpu(c)["node_config"]["InstanceMarketOptions"].update(Type="spot"),
            "gpu.node_config.InstanceMarketOptions: unknown key 'Type'",
        ),
        (lambda c: gpu(c)["node_config"]["BlockDeviceMappings"][0].update(Eb={}), "Mappings.0: unknown key 'Eb': did"),
    ],
)  # fmt: skip
def test_a_worker_that_ec2_would_never_launch_is_refused(check, change, message):
    pytest.importorskip("botocore")
    code, _, err = check(change)
    print("MSG", err)
    assert code == 2 and message in err


def test_a_local_cluster_needs_its_addresses_and_may_begin_with_fewer_workers(check):
    code, _, err = check(lambda config: config["provider"].pop("head_ip"), LOCAL)
    assert code == 2 and "Please supply a `head_ip`" in err
    code, out, _ = check(lambda config: config.update(min_workers=1), LOCAL, "--json")
    assert code == 0 and json.loads(out)["node_types"][0]["min_workers"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read the cluster file"),
        (b"a: [1\nb: 2", "cluster.yaml:2: this is not YAML"),
        (b"a: \x00", "is not YAML"),
        (b"\xff\xfe\x00", "is not"),
        (b"- a\n- b", "must be a mapping"),
        (b"", "must be a mapping"),
    ],
)
def test_a_file_that_is_no_cluster_file_is_one_sentence(cli, tmp_path, text, message):
    if text is not None:
        (tmp_path / "cluster.yaml").write_bytes(text)
    code, out, err = cli("cluster", "check", tmp_path / "cluster.yaml")
    assert code == 2 and message in " ".join(err.split()) and "Traceback" not in out + err


def test_a_ray_without_its_private_checks_is_one_sentence(check, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.autoscaler._private.util", None)
    code, _, err = check()
    assert code == 2 and "keeps its checks of cluster files elsewhere" in err and "install the Ray" in err


# Jobs

SPEC = {"source": "s3://faces/in", "output": "s3://faces/out", "edits": ["smile=1"], "engine": {"batch_size": 8}}
HOSTILE = "s3://faces/it's $(touch hacked) `touch hacked` \"$HOME\" \\ ; touch hacked\n'EOF'\nend &"


@pytest.fixture
def submit(cli, tmp_path):
    """Write a job for a spec; exit code, stdout, and stderr on one line."""

    def call(target, *flags, **spec):
        (tmp_path / "job.yaml").write_text(yaml.safe_dump({**SPEC, **spec}))
        flags = ("--image", "registry/asyrp:1", *flags) if target == "kubernetes" else flags
        code, out, err = cli("submit", "--target", target, "-c", tmp_path / "job.yaml", *flags)
        return code, out, " ".join(err.split())

    return call


def same_spec(text, tmp_path, **spec):
    (tmp_path / "carried.yaml").write_text(text)
    (tmp_path / "given.yaml").write_text(yaml.safe_dump({**SPEC, **spec}))
    return load_spec(tmp_path / "carried.yaml", {}, []) == load_spec(tmp_path / "given.yaml", {}, [])


@pytest.mark.parametrize("gpus", [0, 2])
def test_a_rayjob_has_the_fields_of_its_schema_and_no_others(submit, gpus):
    code, out, err = submit("kubernetes", "--workers", 3, "--gpus-per-worker", gpus, "--service-account", "reader")
    assert code == 0, err
    config_map, job = yaml.safe_load_all(out)
    jsonschema.validate(job, json.loads((DATA / "rayjob.schema.json").read_text()))
    assert (config_map["kind"], config_map["metadata"]["name"]) == ("ConfigMap", job["metadata"]["name"])
    cluster = job["spec"]["rayClusterSpec"]
    head, worker = cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert head["volumes"][0]["configMap"]["name"] == config_map["metadata"]["name"]
    assert "nvidia.com/gpu" not in head["containers"][0]["resources"]["limits"]
    assert worker["containers"][0]["resources"]["limits"].get("nvidia.com/gpu", 0) == gpus
    assert cluster["workerGroupSpecs"][0]["replicas"] == 3
    assert worker["serviceAccountName"] == head["serviceAccountName"] == "reader"


@pytest.mark.parametrize(("flags", "device"), [(("--gpus-per-worker", 2), "cuda"), (("--gpus-per-worker", 0), "cpu")])
def test_a_job_runs_asyrp_on_its_own_cluster_with_every_worker(submit, flags, device):
    _, out, _ = submit("kubernetes", "--workers", 3, *flags)
    command = shlex.split(list(yaml.safe_load_all(out))[1]["spec"]["entrypoint"])
    assert command[:6] == ["asyrp", "run", "--address", "auto", "--device", device]
    assert command[6:] == ["--actors", "6" if device == "cuda" else "3", "--config", "/etc/asyrp/spec.yaml"]


def test_a_rayjob_carries_the_spec_whatever_is_in_it(submit, tmp_path):
    code, out, err = submit("kubernetes", source=HOSTILE)
    assert code == 0, err
    assert same_spec(next(yaml.safe_load_all(out))["data"]["spec.yaml"], tmp_path, source=HOSTILE)


def test_settings_override_the_spec_that_a_job_carries(submit):
    _, out, _ = submit("kubernetes", "--set", "seed=7", "--set", "engine.actors=2")
    config_map, job = yaml.safe_load_all(out)
    assert yaml.safe_load(config_map["data"]["spec.yaml"])["seed"] == 7
    assert "--actors 2" in job["spec"]["entrypoint"]


@pytest.fixture
def sbatch(submit, tmp_path):
    """Start the script of a Slurm job with stand-ins for the commands that it calls."""
    commands = tmp_path / "bin"
    commands.mkdir()

    def call(stand_ins, **spec):
        code, script, err = submit("slurm", "--workers", 2, "--partition", "gpu", **spec)
        assert code == 0, err
        for name, body in {"hostname": "echo 10.0.0.1 fe80::1", **stand_ins}.items():
            (commands / name).write_text(f"#!/bin/bash\n{body}\n")
            (commands / name).chmod(stat.S_IRWXU)
        environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "SLURM_JOB_ID": "42"}
        (tmp_path / "job.sh").write_text(script)
        command = ["bash", str(tmp_path / "job.sh")]
        return subprocess.Popen(command, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE)

    return call


def test_a_slurm_job_carries_the_spec_whatever_is_in_it(sbatch, tmp_path):
    show = r"""printf '%s\0' "$@" > argv; cp "${@: -1}" spec.yaml; env > environment"""
    job = sbatch({"srun": show}, source=HOSTILE)
    assert job.wait(30) == 0
    arguments = (tmp_path / "argv").read_text().split("\0")[:-1]
    options, entrypoint = arguments[: arguments.index("--")], arguments[arguments.index("--") + 1 :]
    assert options[:4] == ["--cpu-bind=none", "ray", "symmetric-run", "--address"]
    assert options[4:] == ["10.0.0.1:6379", "--min-nodes", "2", "--num-cpus", "8", "--num-gpus", "1"]
    assert entrypoint[:2] == ["bash", "-c"]
    assert entrypoint[4:12] == ["asyrp", "run", "--address", "auto", "--device", "cuda", "--actors", "2"]
    assert same_spec((tmp_path / "spec.yaml").read_text(), tmp_path, source=HOSTILE)
    assert not (tmp_path / "hacked").exists() and not Path(entrypoint[3]).parent.exists()
    environment = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines())
    assert environment["RAY_AUTH_MODE"] == "token" and len(environment["RAY_AUTH_TOKEN"]) == 64


# The stand-in for srun runs the entrypoint; that for asyrp ends as a run does that was told to stop.
RUN_ENTRYPOINT = 'while [ "$1" != -- ]; do shift; done; shift; "$@"'
DRAINED = "trap 'echo drained; exit 130' TERM; touch running; while :; do sleep 0.1; done"


def signalled(job, number, running):
    deadline = time.monotonic() + 20
    while not running.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    job.send_signal(number)
    out, _ = job.communicate(timeout=20)
    return out


def test_before_its_time_is_up_a_slurm_job_drains_and_goes_back_into_the_queue(sbatch, tmp_path):
    job = sbatch({"srun": RUN_ENTRYPOINT, "asyrp": DRAINED, "scontrol": 'echo "$@"'})
    assert signalled(job, signal.SIGUSR1, tmp_path / "running").split() == ["drained", "requeue", "42"]
    assert job.returncode == 130


@pytest.mark.parametrize("code", [0, 2, 3, 4, 130])
def test_a_slurm_job_that_ends_by_itself_gives_the_exit_code_of_the_run(sbatch, code):
    job = sbatch({"srun": RUN_ENTRYPOINT, "asyrp": f"exit {code}", "scontrol": 'echo "$@"'})
    assert (job.communicate(timeout=20)[0], job.returncode) == ("", code)


def test_a_slurm_job_says_to_slurm_what_it_needs(submit, tmp_path):
    flags = ("--name", "faces-1", "--workers", 4, "--gpus-per-worker", 2, "--time", "1-02:30:00", "--partition", "a100")
    code, _, err = submit("slurm", *flags, "--output", tmp_path / "job.sh")
    assert code == 0, err
    script = (tmp_path / "job.sh").read_text()
    directives = {line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")}
    assert directives >= {
        "job-name=faces-1", "nodes=4", "ntasks-per-node=1", "gpus-per-node=2", "time=1-02:30:00", "partition=a100",
        "signal=B:USR1@300", "requeue",
    }  # fmt: skip
    assert script.count("\nsrun ") == 1
    assert subprocess.run(["bash", "-n", tmp_path / "job.sh"], check=False).returncode == 0


@pytest.mark.parametrize(
    ("target", "flags", "message"),
    [
        ("kubernetes", ("--name", "Faces_1"), "--name 'Faces_1' is no job name: begin with a letter"),
        ("kubernetes", ("--name", "a" * 48), "at most 47"),
        ("kubernetes", ("--name", "1st"), "begin with a letter"),
        ("kubernetes", ("--name", "x\n"), "is no job name"),
        ("kubernetes", ("--image", "a b"), "--image 'a b' is no container image"),
        ("kubernetes", ("--service-account", "A"), "no name of a service account"),
        ("kubernetes", ("--partition", "gpu"), "--partition is not for --target kubernetes"),
        ("slurm", ("--image", "x"), "--image is not for --target slurm"),
        ("slurm", ("--name", "x\n#SBATCH --uid=0"), "is no job name"),
        ("slurm", ("--partition", "gpu\n#SBATCH -x"), "is no name of a partition"),
        ("slurm", ("--time", "tomorrow"), "write it as HH:MM:SS or D-HH:MM:SS"),
        ("slurm", ("--time", "0:05:00"), "--time must be more than the 300 s"),
        ("slurm", ("--set", "sed=1"), "did you mean 'seed'?"),
        ("slurm", ("--output", "/nowhere/job.sh"), "cannot write /nowhere/job.sh: No such file or directory"),
        ("moon", (), "--target moon: give kubernetes or slurm"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_be_is_one_sentence_and_exit_code_2(submit, target, flags, message):
    code, out, err = submit(target, *flags)
    assert code == 2 and message in err and "Traceback" not in out + err


def test_a_rayjob_needs_an_image(cli, tmp_path):
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(SPEC))
    code, _, err = cli("submit", "--target", "kubernetes", "-c", tmp_path / "job.yaml")
    assert code == 2 and "--image is missing" in err


@pytest.mark.parametrize("field", ["source", "output", "inversions", "directions"])
def test_a_file_of_this_machine_is_refused_for_pods_and_taken_for_slurm(submit, field):
    spec = copy.deepcopy(SPEC) | {field: {"smile": "mine.safetensors"} if field == "directions" else "here/faces"}
    code, _, err = submit("kubernetes", **spec)
    assert code == 2 and f"{field}" in err and "pods are others" in err and "file:///" in err
    assert submit("slurm", **spec)[0] == 0
