"""Labels that nobody wrote down: CLIP and classifiers score images, samples are drawn where there are none."""

import pickle
import zipfile
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

from asyrp.directions.forms import load_direction
from asyrp.errors import UserError
from asyrp.measures.scorers import ScorerSource, load_scorer
from jobs.learn.draw_images import sample
from jobs.learn.labels import LabelQuestion, learn_labels
from jobs.learn.request import LearnRequest
from jobs.learn.score import score
from jobs.spec.run import EngineSpec
from pipeline.sources.labels import read_labels, write_labels
from tests.support.runs import SAMPLES, asyrp

LABELS = read_labels(str(SAMPLES.parent / "labels.csv"))
ENGINE = EngineSpec.model_validate({"check": False})
GLASSES = ScorerSource(("glasses",), texts=("person", "person with glasses"), clip="avatars")


class Darkness(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -x.mean((1, 2, 3))


def darkness(x):
    return -x.mean((1, 2, 3))


def two_scores(x):
    return np.stack([x.mean((1, 2, 3)).numpy(), x.std((1, 2, 3)).numpy()], axis=1)


def onnx_darkness(path):
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Neg", ["m"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, "h", "w"])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n"])
    graph = helper.make_graph(nodes, "darkness", [x], [y])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
@pytest.mark.parametrize("kind", ["torchscript", "onnx", "module", "file"])
def test_every_kind_of_classifier_gives_its_own_scores(tmp_path, kind):
    x = torch.rand(4, 3, 32, 32) * 2 - 1
    if kind == "torchscript":
        torch.jit.trace(Darkness(), x).save(tmp_path / "c.pt")
        name = str(tmp_path / "c.pt")
    elif kind == "onnx":
        onnx_darkness(tmp_path / "c.onnx")
        name = str(tmp_path / "c.onnx")
    elif kind == "module":
        name = f"{__name__}:darkness"
    else:
        (tmp_path / "c.py").write_text("def darkness(x):\n    return -x.mean((1, 2, 3))\n")
        name = f"{tmp_path}/c.py:darkness"
    scores = load_scorer(ScorerSource(("dark",), classifier=name), "cpu")(x)
    torch.testing.assert_close(scores, darkness(x)[:, None])


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("nothing.pt", r"there is no classifier nothing.pt: give a TorchScript file"),
        ("no_module_of_ours:f", r"the classifier no_module_of_ours:f cannot be loaded: No module named"),
        (f"{__name__}:nobody", rf"the classifier {__name__}:nobody cannot be loaded"),
        (f"{__name__}:two_scores", r"gives \[2, 2\] for 2 images: 1 scores each are expected \(dark\)"),
    ],
)
def test_a_classifier_that_does_not_work_is_one_sentence(name, sentence):
    with pytest.raises(UserError, match=sentence):
        load_scorer(ScorerSource(("dark",), classifier=name), "cpu")(torch.zeros(2, 3, 8, 8))


def test_no_pickle_of_a_pt2_file_runs(tmp_path):
    """A .pt2 file is a zip with pickles in it, which torch loads before it looks at the net."""

    class Evil:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    torch.export.save(torch.export.export(Darkness(), (torch.zeros(1, 3, 8, 8),)), tmp_path / "sound.pt2")
    with zipfile.ZipFile(tmp_path / "sound.pt2") as sound, zipfile.ZipFile(tmp_path / "c.pt2", "w") as evil:
        for name in sound.namelist():
            is_pickle = "sample_inputs" in name
            evil.writestr(name, pickle.dumps(Evil()) if is_pickle else sound.read(name))
    with pytest.raises(UserError, match=r"a \.pt2 file can run code when it is read; export it as ONNX or TorchScript"):
        load_scorer(ScorerSource(("dark",), classifier=str(tmp_path / "c.pt2")), "cpu")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("ending", [".pt", ".onnx"])
def test_a_classifier_file_that_is_none_is_one_sentence(tmp_path, ending):
    (tmp_path / f"c{ending}").write_text("no classifier")
    with pytest.raises(UserError, match="cannot be loaded: ") as error:
        load_scorer(ScorerSource(("dark",), classifier=str(tmp_path / f"c{ending}")), "cpu")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.usefixtures("without_ray")
def test_scores_of_texts_tell_who_wears_glasses_and_make_a_direction(tmp_path):
    (tmp_path / "mine.py").write_text(
        "import torch\ndef f(x):\n    return torch.stack([x.mean((1, 2, 3)), x.std((1, 2, 3))], 1)\n"
    )
    scorers = (GLASSES, ScorerSource(("light", "contrast"), classifier=f"{tmp_path}/mine.py:f"))
    found = score(str(SAMPLES), "avatars", scorers, None, ENGINE, shard_size=20)
    assert found.columns == ("glasses", "light", "contrast")
    truth = dict(zip(LABELS.keys, LABELS.column("glasses"), strict=True))
    has = np.array([truth[key] == 1 for key in found.keys])
    assert found.column("glasses")[has].min() > found.column("glasses")[~has].max()
    first = torch.from_numpy(np.asarray(Image.open(SAMPLES / found.keys[0])) / 127.5 - 1).float()
    np.testing.assert_allclose(found.column("light")[0], first.mean(), atol=1e-5)
    write_labels(found, str(tmp_path / "scores.parquet"))
    request = LearnRequest(str(SAMPLES), "avatars", tmp_path / "d.safetensors", n_steps=4, t_edit=600, engine=ENGINE)
    [path] = learn_labels(
        request, LabelQuestion(str(tmp_path / "scores.parquet"), ("glasses",), (), extremes=0.25, force=True)
    )
    direction = load_direction(path)
    assert direction.info.found_on == "32 images"
    assert direction.info.unit == "the change of h from without to with 'glasses'"


def test_two_scores_of_one_name_are_refused():
    with pytest.raises(UserError, match="two scores have one name: glasses, glasses"):
        score(str(SAMPLES), "avatars", (GLASSES, GLASSES), None, ENGINE)


def test_samples_depend_on_their_number_alone_and_are_drawn_once(tmp_path):
    def draw(folder, count, first, batch_size):
        return sample("avatars", str(tmp_path / folder), count, first, 3, 4, "cpu", batch_size, check=False)

    assert draw("all", 5, 0, 4) == 5
    assert draw("some", 2, 2, 4) == 2
    assert sorted(path.name for path in (tmp_path / "some").iterdir()) == ["000002.png", "000003.png"]
    for path in (tmp_path / "some").iterdir():
        assert path.read_bytes() == (tmp_path / "all" / path.name).read_bytes()
    assert len({path.read_bytes() for path in (tmp_path / "all").iterdir()}) == 5
    (tmp_path / "all" / "000001.png").unlink()
    assert draw("all", 5, 0, 4) == 1


def test_the_commands_say_how_they_are_written(tmp_path):
    for arguments, sentence in {
        ("--text", "glasses=person"): "write it as NAME=SOURCE|TARGET",
        ("--classifier", "smile.pt"): "write it as NAME=...",
        (): "nothing to score by: give --text or --classifier",
    }.items():
        found = asyrp("directions", "score", "-s", SAMPLES, "-o", tmp_path / "t.csv", *arguments)
        assert found.returncode == 2 and sentence in found.stderr and "Traceback" not in found.stderr
