"""What `import asyrp` gives to a notebook."""

import ast
import re
import subprocess
import sys

import pytest
import torch

import asyrp
from asyrp.diffusion import process
from asyrp.diffusion.schedule import NoiseSchedule, generation_pairs, inversion_pairs
from asyrp.diffusion.unet import HSpaceUNet
from asyrp.directions.forms import Direction, GlobalDirection
from asyrp.directions.info import DirectionInfo
from asyrp.directions.shift import make_shift
from asyrp.models.load import Model
from tests.support.nets import small_unet
from tests.support.runs import ROOT

NAMES = [
    "UserError",
    "edit",
    "find_model",
    "invert",
    "load_direction",
    "load_model",
    "parse_edit",
]


@pytest.fixture(scope="module")
def model() -> Model:
    return Model(HSpaceUNet(small_unet()), NoiseSchedule.linear(steps=500))


EDIT = asyrp.parse_edit("random=1")


@pytest.fixture(scope="module")
def directions() -> dict[str, Direction]:
    torch.manual_seed(1)
    info = DirectionInfo("random", "global", "", n_steps=6, t_edit=200)
    return {"random": Direction(info, GlobalDirection(torch.randn(32, 8, 8)))}


@pytest.fixture
def x() -> torch.Tensor:
    torch.manual_seed(2)
    return torch.randn(2, 3, 16, 16)


def test_the_face_has_these_names_and_each_of_them_resolves():
    assert sorted(asyrp.__all__) == NAMES
    assert set(NAMES) <= set(dir(asyrp))
    assert all(callable(getattr(asyrp, name)) for name in NAMES)
    with pytest.raises(AttributeError, match="module 'asyrp' has no attribute 'inverted'"):
        _ = asyrp.inverted


def test_type_checkers_see_each_name_where_it_is_loaded_from():
    tree = ast.parse((ROOT / "asyrp" / "__init__.py").read_text())
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert seen == {name: getattr(asyrp, name).__module__ for name in NAMES}


def test_import_asyrp_alone_loads_no_torch():
    code = "import sys, asyrp; asyrp.parse_edit('smile=1'); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_example_of_the_readme_edits_an_image_as_it_is_written():
    section = (ROOT / "README.md").read_text().split("## In a notebook\n")[1].split("\n## ")[0]
    [example] = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    names: dict[str, torch.Tensor] = {}
    exec(example, names)
    assert re.findall(r"^(?:import|from) .*", example, re.MULTILINE) == ["import asyrp", "import torch"]
    assert names["edited"].shape == (1, 3, 32, 32) and names["edited"].isfinite().all()


def test_ddim_is_the_papers_process_over_all_timesteps_of_the_schedule(model, directions, x):
    inversion = asyrp.invert(model, x, 6, "ddim", refine=1)
    x_T = process.invert(model.unet, model.schedule, x, inversion_pairs(6, 499), 1)
    assert torch.equal(inversion.kept[:, 0], x_T)
    shift = make_shift(EDIT, directions, 6)
    edited = process.edit(model.unet, model.schedule, x_T, generation_pairs(6, 499), shift)
    assert torch.equal(asyrp.edit(inversion, EDIT, directions), edited)


def test_a_usual_inversion_gives_the_image_back_and_edits_change_it(model, directions, x):
    inversion = asyrp.invert(model, x, 5)
    assert inversion.reconstructed().shape == x.shape
    assert (asyrp.edit(inversion, asyrp.parse_edit("reconstruction"), {}) - x).abs().max() < 2e-3
    assert (asyrp.edit(inversion, EDIT, directions) - x).abs().mean() > 0.01


@pytest.mark.parametrize("solver", ["ddim", "dpmpp_2m"])
def test_noise_below_t_boost_is_decided_by_the_seed_and_the_index(model, directions, x, solver):
    inversion = asyrp.invert(model, x, 6, solver)
    first, again, other = (asyrp.edit(inversion, EDIT, directions, t_boost=300, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(first, asyrp.edit(inversion, EDIT, directions))
    twice = asyrp.invert(model, x[:1].repeat(2, 1, 1, 1), 6, solver)
    same = asyrp.edit(twice, EDIT, directions, t_boost=300)
    assert not torch.equal(same[0], same[1])


def test_refinement_of_the_usual_solver_is_refused(model, x):
    with pytest.raises(ValueError, match="refine is for the solver ddim"):
        asyrp.invert(model, x, refine=1)


def test_the_calls_of_the_face_keep_no_gradients(model, directions, x):
    x.requires_grad_(True)
    inversion = asyrp.invert(model, x, 3)
    results = [inversion.kept, inversion.reconstructed(), asyrp.edit(inversion, EDIT, directions, t_boost=300)]
    assert not any(result.requires_grad for result in results)


@pytest.mark.parametrize("package", ["asyrp", "pipeline", "jobs"])
def test_the_package_is_typed_for_those_who_import_it(package):
    assert (ROOT / package / "py.typed").is_file()
