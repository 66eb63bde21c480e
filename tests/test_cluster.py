"""Cluster files as `ray up` takes them."""

import json
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
AWS, LOCAL = ROOT / "ray_cluster.yaml", ROOT / "jobs" / "clusters" / "local.yaml"


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
        (b"a: [1\nb: 2", "is not YAML: line 2"),
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
