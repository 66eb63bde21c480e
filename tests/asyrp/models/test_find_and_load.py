"""Finding, identifying and loading models."""

import json
import re
import shutil
import subprocess
import sys

import fsspec
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from werkzeug import Response

from asyrp.diffusion.process import predict
from asyrp.errors import UserError
from asyrp.files import made_once
from asyrp.models.find import find_model
from asyrp.models.folder import BUNDLED, PICKLED_WEIGHTS, WEIGHTS
from asyrp.models.load import load_model
from pipeline.stages.models import fetch, fetch_model
from tests.support.nets import small_unet
from tests.support.reference_nets import HoNet, randomised


def test_a_local_folder_is_a_model_with_or_without_a_unet_folder(tmp_path):
    unet = small_unet()
    unet.save_pretrained(tmp_path / "bare")
    unet.save_pretrained(tmp_path / "pipeline" / "unet")
    x = torch.randn(1, 3, 16, 16)
    for name in ("bare", "pipeline"):
        folder = find_model(str(tmp_path / name))
        assert folder.image_size == 16
        torch.testing.assert_close(predict(load_model(folder).unet, x, 7), unet(x, 7).sample)


def test_the_digest_is_that_of_the_tensors_whatever_the_file(tmp_path):
    small_unet().save_pretrained(tmp_path / "a")
    small_unet().save_pretrained(tmp_path / "pickled", safe_serialization=False)
    other = small_unet()
    with torch.no_grad():
        other.conv_in.bias += 1
    other.save_pretrained(tmp_path / "other")
    a, pickled, different = (find_model(str(tmp_path / name)) for name in ("a", "pickled", "other"))
    assert a.digest == pickled.digest != different.digest
    x = torch.randn(1, 3, 16, 16)
    torch.testing.assert_close(predict(load_model(a).unet, x, 7), predict(load_model(pickled).unet, x, 7))


def test_a_pickle_of_more_than_tensors_is_never_opened(tmp_path):
    small_unet().save_pretrained(tmp_path / "m", safe_serialization=False)
    torch.save({"x": pytest.raises}, tmp_path / "m" / PICKLED_WEIGHTS)
    with pytest.raises(UserError, match="more than tensors"):
        _ = find_model(str(tmp_path / "m")).digest


def test_a_folder_that_is_no_model_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"no config\.json"):
        find_model(str(tmp_path))


@pytest.mark.parametrize(
    "name", ["avatar", "a/..", "../b", "x" * 5000, "a\0b", "", ".", "a/b c", "~/x", "a//b", "[x]", "-"]
)
def test_a_name_that_no_model_has_is_one_sentence(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=r"there is no|is not in the local cache") as error:
        find_model(name)
    assert "\n" not in str(error.value)


def test_a_hub_that_cannot_be_reached_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match="is not in the local cache and the hub cannot be reached"):
        find_model("nobody/nothing-of-this-name")


CONDITIONAL = {
    "class": ({"num_class_embeds": 10}, "class-conditional; supported are unconditional"),
    "text": ({"_class_name": "UNet2DConditionModel"}, r"a UNet2DConditionModel \(text-conditional\); supported"),
    "grey": ({"in_channels": 1}, "takes 1 channels; supported are RGB"),
}


@pytest.mark.parametrize("kind", CONDITIONAL)
def test_a_conditional_net_is_refused_before_its_weights_are_read(kind, tmp_path):
    change, message = CONDITIONAL[kind]
    (tmp_path / WEIGHTS).write_bytes(b"")
    config = {"_class_name": "UNet2DModel", "sample_size": 16, "block_out_channels": [32, 64], **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        find_model(str(tmp_path))


@pytest.mark.parametrize("size", [32, [32, 32]])
def test_the_image_size_is_the_side_of_the_sample_size(tmp_path, size):
    small_unet().save_pretrained(tmp_path)
    change_config(tmp_path, sample_size=size)
    folder = find_model(str(tmp_path))
    assert (folder.image_size, folder.h_shape) == (32, (32, 16, 16))
    load_model(folder)


@pytest.mark.parametrize("size", [None, 0, -1, True, "32", [32, 64], [32], [], [32, 32, 3], 1.5, {"a": 1}])
def test_a_sample_size_that_is_no_square_is_one_sentence(tmp_path, size):
    small_unet().save_pretrained(tmp_path)
    change_config(tmp_path, sample_size=size)
    with pytest.raises(UserError, match="sample_size in its config"):
        _ = find_model(str(tmp_path)).image_size


@pytest.mark.parametrize("text", ["[1]", "{", "1", "null", "[" * 100_000, '{"a": ' * 100_000, "\xff", '"\\ud800"'])
@pytest.mark.parametrize("file", ["config.json", "scheduler_config.json"])
def test_a_config_that_is_no_json_object_is_one_sentence(tmp_path, file, text):
    small_unet().save_pretrained(tmp_path)
    (tmp_path / file).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=file):
        load_model(find_model(str(tmp_path)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(sorted(small_unet().config.keys() - {"_use_default_values"})), value=json_values)
def test_a_field_of_any_value_loads_or_is_one_sentence(tmp_path, field, value):
    small_unet().save_pretrained(tmp_path)
    change_config(tmp_path, **{field: value})
    try:
        folder = find_model(str(tmp_path))
        load_model(folder)
        _ = folder.image_size, folder.h_shape, folder.digest, folder.family
    except UserError as error:
        assert "\n" not in str(error)


def test_a_field_that_diffusers_does_not_know_is_refused_not_ignored(tmp_path):
    small_unet().save_pretrained(tmp_path)
    change_config(tmp_path, attention_variant="flash")
    with pytest.raises(UserError, match=r"config\.json has the field attention_variant"):
        load_model(find_model(str(tmp_path)))


@pytest.mark.parametrize("header", [b"", b"\xff" * 8, b"\x02" + bytes(7) + b"[]", b"\x08" + bytes(7) + b'{"a":{}}'])
def test_weights_with_a_damaged_header_are_one_sentence(tmp_path, header):
    small_unet().save_pretrained(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(header)
    with pytest.raises(UserError, match="no safetensors file, or cut short"):
        _ = find_model(str(tmp_path)).digest


ABSURD = {"layers_per_block": 1_000_000, "block_out_channels": [32] * 1000, "sample_size": 10**9, "freq_shift": "a"}


@pytest.mark.parametrize("field", ABSURD)
def test_a_config_that_describes_no_net_that_works_is_one_sentence(tmp_path, field):
    small_unet().save_pretrained(tmp_path)
    change_config(tmp_path, **{field: ABSURD[field]})
    with pytest.raises(UserError, match=r"config\.json") as error:
        load_model(find_model(str(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_no_numbers_to_compute_with_are_refused(tmp_path, dtype):
    small_unet().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    save_file(tensors | {"conv_out.bias": tensors["conv_out.bias"].to(dtype)}, tmp_path / WEIGHTS)
    with pytest.raises(UserError):
        load_model(find_model(str(tmp_path)))


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_weights_that_do_not_fit_the_config_are_refused_not_filled_up(tmp_path):
    small_unet().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / WEIGHTS)
    del tensors["conv_out.bias"]
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(UserError, match=r"1 missing keys such as conv_out\.bias"):
        load_model(find_model(str(tmp_path)))


def test_weights_that_are_cut_short_are_one_sentence(tmp_path):
    small_unet().save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    folder = find_model(str(tmp_path))
    with pytest.raises(UserError, match="cut short"):
        _ = folder.digest
    with pytest.raises(UserError, match="cannot be loaded"):
        load_model(folder)


def test_weights_other_than_the_recorded_ones_are_refused(tmp_path):
    shutil.copytree(BUNDLED / "avatars", tmp_path / "m")
    assert find_model(str(tmp_path / "m")).digest == find_model("avatars").digest
    tensors = load_file(tmp_path / "m" / "unet" / WEIGHTS)
    tensors["mid_block.attentions.0.to_q.weight"] = tensors["mid_block.attentions.0.to_q.weight"].flip(0).contiguous()
    save_file(tensors, tmp_path / "m" / "unet" / WEIGHTS)
    with pytest.raises(UserError, match="changed or damaged since they were written"):
        _ = find_model(str(tmp_path / "m")).digest


def test_a_short_name_that_is_nearly_right_is_guessed():
    with pytest.raises(UserError, match="did you mean 'celebahq-ddpm'"):
        find_model("celebahq_ddpm")


def test_a_fetch_happens_once_for_many_processes(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYRP_CACHE", str(tmp_path))
    script = (
        "import sys, time; from pathlib import Path; from asyrp.files import made_once\n"
        "def make(path):\n"
        "    time.sleep(0.3); path.write_text('made'); (Path(sys.argv[1]) / f'{time.time_ns()}.call').touch()\n"
        "assert made_once('a/thing', make).read_text() == 'made'"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    for process in [subprocess.Popen(command) for _ in range(4)]:
        assert process.wait(60) == 0
    assert len(list(tmp_path.glob("*.call"))) == 1


def test_what_fails_half_way_leaves_nothing_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ASYRP_CACHE", str(tmp_path))

    def fail(path):
        path.mkdir()
        (path / "half").write_text("half")
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        made_once("a/thing", fail)
    assert [path.name for path in (tmp_path / "a").iterdir() if path.suffix != ".lock"] == []


@pytest.fixture
def remote(own_cache):  # noqa: ARG001
    """A folder of models on a filesystem that is not this machine's, and an empty cache."""
    fs = fsspec.filesystem("memory")
    fs.put(str(BUNDLED / "avatars"), "/models/avatars", recursive=True)
    yield fs
    fs.rm("/models", recursive=True)


@pytest.mark.usefixtures("remote")
def test_a_model_on_any_store_is_the_same_model():
    folder = fetch_model("memory://models/avatars")
    assert folder.digest == find_model("avatars").digest
    assert list(folder.direction_files()) == list(find_model("avatars").direction_files())
    assert folder.samples is not None


def test_what_was_fetched_is_not_fetched_again_until_it_changes(remote, monkeypatch):
    fetched = []
    get_file = type(remote).get_file
    monkeypatch.setattr(type(remote), "get_file", lambda fs, *args: [fetched.append(args), get_file(fs, *args)])
    first = fetch("memory://models/avatars/unet/config.json")
    assert fetch("memory://models/avatars/unet/config.json") == first
    assert len(fetched) == 1
    remote.pipe_file("/models/avatars/unet/config.json", b"{}")
    assert fetch("memory://models/avatars/unet/config.json").read_bytes() == b"{}"


@pytest.mark.usefixtures("remote")
def test_nothing_at_a_url_is_one_sentence():
    for url in ("memory://models/none", "memory://models/none.ckpt"):
        with pytest.raises(UserError, match="there is nothing at memory"):
            fetch_model(url)


@pytest.mark.usefixtures("no_waiting", "own_cache")
def test_a_server_that_is_busy_for_a_moment_still_gives_its_model(httpserver):
    answers = [Response("busy", 503)] * 4  # two to the first look at it
    httpserver.expect_request("/net.ckpt").respond_with_handler(
        lambda _: answers.pop() if answers else Response(b"a net")
    )
    assert fetch(httpserver.url_for("/net.ckpt")).read_bytes() == b"a net"


@pytest.mark.usefixtures("no_waiting", "own_cache")
@pytest.mark.parametrize(
    ("status", "sentence"),
    [(503, "cannot fetch .*net.ckpt: .*503"), (403, "cannot fetch .*net.ckpt: .*403"), (404, "there is nothing at")],
)
@pytest.mark.parametrize("option", ["model", "direction"])
def test_a_server_that_will_not_give_a_model_or_direction_is_one_sentence(cli, httpserver, status, sentence, option):
    httpserver.expect_request("/net.ckpt").respond_with_data("no", status)
    url = httpserver.url_for("/net.ckpt")
    named = {"model": ["--model", url, "-e", "glasses=1"], "direction": ["--direction", f"x={url}", "-e", "x=1"]}
    code, out, err = cli("run", "-s", "faces", "-o", "out", *named[option])
    assert code == 2 and re.search(sentence, err.replace("\n", " ")) and "Traceback" not in out + err


@pytest.mark.usefixtures("no_waiting", "own_cache")
def test_a_server_that_cannot_be_reached_is_one_sentence():
    with pytest.raises(UserError, match=r"cannot fetch http://127.0.0.1:9/net.ckpt: Cannot connect to host"):
        fetch_model("http://127.0.0.1:9/net.ckpt")


def test_a_raw_checkpoint_on_a_store_is_a_model(remote, tmp_path):
    net = randomised(HoNet(128, (1, 2, 2, 2), 2, (1,)), 0)
    torch.save(net.state_dict(), tmp_path / "net.ckpt")
    remote.put(str(tmp_path / "net.ckpt"), "/models/net.ckpt")
    folder = fetch_model("memory://models/net.ckpt")
    assert folder.name == "memory://models/net.ckpt"
    x = torch.randn(1, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(predict(load_model(folder).unet, x, 7), net(x, 7)[0], rtol=1e-3, atol=1e-4)
