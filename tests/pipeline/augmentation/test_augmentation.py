"""Augmentations: what images draw, the images that come of it, and the data sets that are made of them."""

import itertools
import json
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch.utils.data import DataLoader

from asyrp.directions.edits import parse_edit
from asyrp.errors import UserError
from jobs.runs.draws import Augmenter
from jobs.runs.growth import extend, retry
from jobs.runs.record import open_run
from jobs.runs.resolve import resolve
from jobs.spec.run import RunSpec
from pipeline.augmentation.balance import balanced, group_sizes
from pipeline.augmentation.draws import (
    Augmentation,
    Census,
    Drawing,
    OneOf,
    Option,
    Uniform,
    share_out,
    systematic_sample,
)
from pipeline.images.selection import Condition
from pipeline.run.additions import read_everything
from pipeline.run.commit import committed, committed_rows
from pipeline.run.plan import read_plan
from pipeline.storage.store import Store
from tests.support.runs import ROOT, SAMPLES, asyrp, digests, make_faces, pixels, run_here, spec

LABELS = ("glasses", "beard")
GROUPS = [dict(zip(LABELS, values, strict=True)) for values in itertools.product((0.0, 1.0), repeat=2)]
EXAMPLE = ROOT / "jobs" / "examples" / "runs" / "augment.yaml"


def option(text, strengths=OneOf((1.0,)), weight=1.0, where=()):  # noqa: B008
    edit = parse_edit(text)
    sets = {name: float(edit.strength * each > 0) for name, each in edit.weights}
    return Option(edit, strengths, weight, tuple(map(Condition.parse, where)), sets)


FLIPS = (
    option("glasses=1", where=["glasses=0"]),
    option("glasses=-1", where=["glasses=1"]),
    option("beard=1", where=["beard=0"]),
    option("beard=-1", where=["beard=1"]),
)


# What an image draws


@given(st.lists(st.floats(0, 3), max_size=6), st.floats(0, 1, exclude_max=True))
def test_every_place_is_drawn_as_often_as_expected_rounded_up_or_down(expected, chance):
    drawn = Counter(systematic_sample(expected, chance))
    for place, times in enumerate(expected):
        assert np.floor(times - 1e-9) <= drawn[place] <= np.ceil(times + 1e-9)


def test_over_all_chances_every_place_is_drawn_as_often_as_expected():
    expected = [0.3, 1.25, 0.0, 0.7]
    drawn = Counter(place for i in range(4000) for place in systematic_sample(expected, (i + 0.5) / 4000))
    assert [drawn[place] / 4000 for place in range(4)] == pytest.approx(expected, abs=1e-3)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 4)), min_size=1, max_size=6), st.floats(0, 12))
def test_shares_are_by_weight_as_far_as_there_is_room(pairs, total):
    weights, most = zip(*pairs, strict=True)
    shares = share_out(weights, most, total)
    assert sum(shares) == pytest.approx(min(total, sum(most)))
    assert all(share <= room + 1e-9 for share, room in zip(shares, most, strict=True))
    units = [share / weight for share, weight, room in zip(shares, weights, most, strict=True) if share < room - 1e-9]
    assert units == pytest.approx(units[:1] * len(units))


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=8), st.sampled_from(GROUPS), st.integers(1, 5), st.integers(0, 9))
def test_an_image_draws_only_what_is_open_to_it_and_nothing_twice(key, labels, draws, seed):
    options = (*FLIPS, option("smile=1", Uniform(0.5, 1.5)), option("smile=-2", OneOf((0.25, 0.5))))
    augmentation = Augmentation(options, draws, (), seed)
    found = Drawing(augmentation, Census(LABELS, ())).draws_of(key, labels)
    assert len(found) == draws  # there is always that much to draw
    assert len({(draw.edit, draw.strength) for draw in found}) == draws
    for draw in found:
        if draw.edit in labels:
            assert draw.strength == (1 if labels[draw.edit] == 0 else -1)
            assert draw.sets == {draw.edit: 1 - labels[draw.edit]}
        else:
            assert 0.5 <= draw.strength <= 1.5 or draw.strength in (-0.5, -1)


def test_edits_are_drawn_by_weight_and_strengths_evenly():
    options = (option("smile=1", Uniform(0.5, 1.5)), option("glasses=1", OneOf((0.5, 1.0)), weight=3))
    drawing = Drawing(Augmentation(options, 1, (), 0), Census((), ()))
    found = [draw for i in range(4000) for draw in drawing.draws_of(f"{i}.png", {})]
    smiles = [draw.strength for draw in found if draw.edit == "smile"]
    assert len(found) == 4000 and len(smiles) == pytest.approx(1000, abs=100)
    assert np.quantile(smiles, [0, 0.25, 0.5, 0.75, 1]) == pytest.approx([0.5, 0.75, 1, 1.25, 1.5], abs=0.06)
    weak = sum(draw.strength == 0.5 for draw in found if draw.edit == "glasses")
    assert weak == pytest.approx(1500, abs=120)


# Balance


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=4, max_size=4).filter(any), st.integers(1, 4))
def test_no_group_grows_beyond_the_largest_and_no_image_draws_more_than_it_may(sizes, draws):
    augmentation = Augmentation(FLIPS, draws, LABELS, 0)
    images = [labels for labels, size in zip(GROUPS, sizes, strict=True) for _ in range(size)]
    cells = balanced(augmentation, augmentation.cells(images))
    after = group_sizes(augmentation, cells)
    assert all(size <= now <= max(sizes) + 1e-6 for size, now in after.values())
    for cell in cells:
        assert sum(cell.draws) <= draws + 1e-6 and all(0 <= times <= 1 + 1e-6 for times in cell.draws)


@pytest.mark.parametrize("draws", [1, 2])
def test_a_biased_source_becomes_as_equal_as_can_be(draws):
    augmentation = Augmentation(FLIPS, draws, LABELS, 0)
    images = [labels for labels, size in zip(GROUPS, (95, 5, 5, 95), strict=True) for _ in range(size)]
    cells = balanced(augmentation, augmentation.cells(images))
    assert [now for _, now in group_sizes(augmentation, cells).values()] == pytest.approx([95] * 4)
    drawing = Drawing(augmentation, Census(LABELS, (), tuple(cells)))
    counts = Counter(tuple(labels.values()) for labels in images)
    for index, labels in enumerate(images):
        counts.update(tuple({**labels, **draw.sets}.values()) for draw in drawing.draws_of(f"{index}.png", labels))
    assert len(counts) == 4 and all(count == pytest.approx(95, abs=12) for count in counts.values())


def test_where_images_are_too_few_the_smallest_groups_share_what_there_is():
    augmentation = Augmentation(FLIPS, 1, LABELS, 0)
    images = [labels for labels, size in zip(GROUPS, (100, 0, 0, 0), strict=True) for _ in range(size)]
    sizes = group_sizes(augmentation, balanced(augmentation, augmentation.cells(images)))
    assert {name: now for name, (_, now) in sizes.items()} == pytest.approx(
        {"glasses=0, beard=0": 100, "glasses=0, beard=1": 50, "glasses=1, beard=0": 50}
    )


# Runs


def table(folder, labels):
    """A table of labels, by number of the image."""
    lines = [",".join(("key", *labels[0]))]
    lines += [",".join((f"{i:04d}.png", *(f"{value:g}" for value in each.values()))) for i, each in enumerate(labels)]
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return str(folder / "labels.csv")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Eight faces, two of each group of labels."""
    folder = tmp_path_factory.mktemp("augmentation")
    make_faces(folder / "faces", 8)
    table(folder, [GROUPS[i % 4] for i in range(8)])
    return folder


EDITS = [
    {"edit": "glasses=1", "where": ["glasses=0"], "strength": [0.5, 1.0]},
    {"edit": "glasses=-1", "where": ["glasses=1 and beard=1"]},
    {"edit": "smile=1,beard=-0.5", "where": ["glasses=0"], "sets": {"beard": 0}},
]


def augmenting(folder, output, augmentation=None, **changes) -> RunSpec:
    asked = {"labels": str(folder / "labels.csv"), "edits": EDITS, "draws": 2, **(augmentation or {})}
    return spec(folder / "faces", output, **{"edits": [], "augmentation": asked, "shard_size": 3, **changes})


def all_rows(output):
    store = Store(str(output))
    return list(committed_rows(store, "boost", sorted(committed(store, "boost"))))


def draws_of(output):
    return {row.key: row.draws for row in read_everything(Store(str(output)))}


@pytest.fixture(scope="module")
def made(source, tmp_path_factory):
    output = tmp_path_factory.mktemp("made")
    run_here(resolve(augmenting(source, output, t_boost=300, preview=2)))
    return output


def test_the_image_of_a_draw_is_that_of_a_plain_run_to_the_byte(source, made, tmp_path):
    edits = ["glasses=0.5", "glasses=1", "glasses=-1", "smile=1,beard=-0.5"]
    run_here(resolve(spec(source / "faces", tmp_path, edits=edits, t_boost=300, shard_size=3)))
    plain, drawn = digests(tmp_path), [row for row in all_rows(made) if row["draw"]]
    assert {(row["edit"], row["strength"]) for row in drawn} == {(edit, strength) for _, edit, strength in plain}
    for row in drawn:
        assert row["output_sha256"] == plain[row["key"], row["edit"], row["strength"]]


def test_every_image_is_there_as_it_was_read_beside_its_edits_with_the_labels_of_each(source, made):
    labels = {f"{i:04d}.png": GROUPS[i % 4] for i in range(8)}
    found = all_rows(made)
    originals = {row["key"]: row for row in found if row["draw"] is None}
    assert originals.keys() == labels.keys()
    for key, row in originals.items():
        assert (row["edit"], row["strength"], row["labels"]) == ("original", 0, labels[key])
        assert (pixels(made, row) == np.asarray(Image.open(source / "faces" / key))).all()
    drawn = Counter(row["key"] for row in found if row["draw"])
    for row in found:
        if row["draw"]:
            changed = {"glasses": float(row["strength"] > 0)} if row["edit"] == "glasses" else {"beard": 0.0}
            assert row["labels"] == labels[row["key"]] | changed
            assert row["t_edit"] and row["direction_digest"] and row["t_boost"] == 300
    expected = {(0, 0): 2, (0, 1): 2, (1, 0): 0, (1, 1): 1}
    assert {key: drawn[key] for key in labels} == {key: expected[tuple(of.values())] for key, of in labels.items()}
    assert asyrp("verify", made, "--deep").returncode == 0


@pytest.mark.parametrize("sink", ["webdataset", "parquet"])
def test_other_sinks_hold_the_same_images(source, made, tmp_path, sink):
    run_here(resolve(augmenting(source, tmp_path, t_boost=300, sink=sink)), batch_size=4)
    names = [(row["key"], row["draw"], row["output_sha256"]) for row in all_rows(made)]
    assert [(row["key"], row["draw"], row["output_sha256"]) for row in all_rows(tmp_path)] == names
    assert asyrp("verify", tmp_path, "--deep").returncode == 0


def test_an_image_that_draws_nothing_is_not_computed(source, tmp_path):
    computed = []

    def make():
        def augment(batch, keys, draws):
            computed.extend(keys)
            assert all(draws)
            return batch.repeat(1, 3, 1, 1, 1)

        return {"augment": augment}

    run_here(resolve(augmenting(source, tmp_path)), make=make)
    draws = draws_of(tmp_path)
    assert set(computed) == {key for key, drawn in draws.items() if drawn} != draws.keys()
    assert len(all_rows(tmp_path)) == sum(1 + len(drawn) for drawn in draws.values())


def test_an_image_that_is_tried_again_draws_the_same(tmp_path):
    make_faces(tmp_path / "faces", 4)
    (tmp_path / "faces" / "0000.png").write_bytes(b"broken")
    table(tmp_path, GROUPS)

    def make():
        return {"augment": lambda batch, *_: batch.repeat(1, 3, 1, 1, 1)}

    resolved = resolve(augmenting(tmp_path, tmp_path / "run"))
    run_here(resolved, make=make)
    before = draws_of(tmp_path / "run")
    failed = [row for row in all_rows(tmp_path / "run") if row["key"] == "0000.png"]
    assert {row["status"] for row in failed} == {"decode_error"} and len(failed) == 1 + len(before["0000.png"])
    make_faces(tmp_path / "faces", 1)
    addition = retry(str(tmp_path / "run"), frozenset(["decode_error"]))
    run_here(resolved, make=make, shards=[*addition.shard_ids])
    again = [row for row in all_rows(tmp_path / "run") if row["key"] == "0000.png" and row["status"] == "ok"]
    assert [(row["edit"], row["strength"]) for row in again if row["draw"]] == [
        (draw.edit, draw.strength) for draw in before["0000.png"]
    ]


def glasses_everywhere(x):
    """Stands for a classifier of glasses that sees them on every face."""
    return torch.ones(len(x), 1)


def test_an_edit_whose_label_the_classifier_does_not_see_is_dropped(source, tmp_path):
    classifier = {"file": f"{__file__}:glasses_everywhere", "labels": ["glasses"]}
    run_here(resolve(augmenting(source, tmp_path, inspection={"classifier": classifier, "metrics": ["kept"]})))
    statuses = {(row["edit"], row["strength"] > 0): row["status"] for row in all_rows(tmp_path) if row["draw"]}
    assert statuses.pop(("glasses", False)) == "rejected_quality"
    assert len(statuses) == 2 and set(statuses.values()) == {"ok"}
    refused = next(row for row in all_rows(tmp_path) if row["status"] != "ok")
    assert refused["error"] == "score.glasses is 1, and the gate is score.glasses < 0.5"
    assert asyrp("verify", tmp_path, "--deep").returncode == 0


def test_new_images_draw_by_the_counts_that_the_run_was_planned_with(tmp_path):
    make_faces(tmp_path / "faces", 6)
    balance = {"balance": ["glasses"], "edits": EDITS[:2], "draws": 1}
    table(tmp_path, [GROUPS[i % 2] for i in range(6)])  # nobody has glasses
    resolved = resolve(augmenting(tmp_path, tmp_path / "run", balance))
    open_run(Store(resolved.spec.output), resolved)
    before = draws_of(tmp_path / "run")
    assert all(len(draws) == 1 for draws in before.values())
    make_faces(tmp_path / "faces", 12)
    table(tmp_path, [GROUPS[i % 2] if i < 9 else GROUPS[2] for i in range(12)])
    assert extend(str(tmp_path / "run"), resolved).addition.images == 6
    after = draws_of(tmp_path / "run")
    assert {key: after[key] for key in before} == before
    assert [len(after[f"{i:04d}.png"]) for i in range(6, 12)] == [1, 1, 1, 0, 0, 0]  # the last are of no known group


def test_columns_of_the_source_can_be_the_labels(tmp_path):
    names = sorted(SAMPLES.glob("*.png"))[:4]
    columns = {"image": [path.read_bytes() for path in names], "key": [path.name for path in names]}
    pq.write_table(pa.table(columns | {"glasses": [True, False, True, False]}), tmp_path / "faces.parquet")
    asked = {"labels": ["glasses"], "edits": [{"edit": "glasses=1", "where": ["glasses=0"]}]}
    resolved = resolve(spec(tmp_path / "faces.parquet", tmp_path / "run", edits=[], augmentation=asked))
    open_run(Store(resolved.spec.output), resolved)
    found = [(row.labels, len(row.draws)) for row in read_plan(Store(resolved.spec.output))]
    assert found == [({"glasses": 1}, 0), ({"glasses": 0}, 1)] * 2


# Data sets


def test_the_data_set_opens_with_datasets_and_trains_with_a_plain_loader(made, tmp_path):
    for kind in ("parquet", "imagefolder"):
        done = asyrp("export", made, "--to", kind, "-o", tmp_path / kind, "--split", "train=0.6,test=0.4")
        assert done.returncode == 0, done.stderr
    run = json.loads((made / "run.json").read_text())["identity_hash"][:12]
    expected = {(row["key"], row["draw"]): row for row in all_rows(made)}
    for kind in ("parquet", "imagefolder"):
        loaded = load_dataset(str(tmp_path / kind), cache_dir=str(tmp_path / "cache"))
        found = [row for split in loaded.values() for row in split]
        assert {(row["key"], row["draw"]) for row in found} == expected.keys() and len(found) == len(expected)
        assert not set(loaded["train"]["key"]) & set(loaded["test"]["key"])
        for row in found:
            origin = expected[row["key"], row["draw"]]
            assert row["labels"] == origin["labels"] and row["is_augmented"] == (origin["draw"] is not None)
            assert (row["edit"], row["strength"], row["run"]) == (origin["edit"], origin["strength"], run)
            assert (np.asarray(row["image"]) == pixels(made, origin)).all()
    train = load_dataset(str(tmp_path / "parquet"), split="train", cache_dir=str(tmp_path / "cache"))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 32 * 32, 1))
    optimizer, losses = torch.optim.SGD(net.parameters(), lr=1e-3), []
    wanted = train.with_format("torch").select_columns(["image", "labels"])
    for _ in range(5):
        for batch in DataLoader(wanted, batch_size=len(wanted)):
            scores = net(batch["image"].float() / 255)[:, 0]
            loss = torch.nn.functional.binary_cross_entropy_with_logits(scores, batch["labels"]["glasses"].float())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_the_card_says_what_was_drawn_and_what_it_did_to_the_balance(made, tmp_path):
    done = asyrp("export", made, "--to", "webdataset", "-o", tmp_path / "set", "--license", "cc-by-4.0")
    assert done.returncode == 0, done.stderr
    card = (tmp_path / "set" / "README.md").read_text()
    assert "license: cc-by-4.0" in card
    assert "| glasses=1 | 0.5, 1 | 1 | glasses=0 | glasses=1 |" in card
    assert "| smile=1,beard=-0.5 | 1 | 1 | glasses=0 | beard=0 |" in card
    after = Counter(tuple(row["labels"].values()) for row in all_rows(made))
    for values, count in after.items():
        assert f"| glasses={values[0]:g}, beard={values[1]:g} | 2 | {count} |" in card
    assert "labels.csv" not in card


# Mistakes


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ({"edits": []}, "at least 1 item"),
        ({"edits": [{"edit": "glasses=0"}]}, "does nothing"),
        ({"edits": [{"edit": "glasses=one"}]}, "not of the form direction=weight"),
        ({"edits": [{"edit": "glasses=1", "where": ["glasses"]}]}, "is no condition"),
        ({"edits": [{"edit": "glasses=1", "strength": {"uniform": [1, 1]}}]}, "the smaller strength first"),
        ({"edits": [{"edit": "glasses=1", "strength": -1}]}, "greater than 0"),
        ({"edits": [{"edit": "glasses=1"}], "balance": ["glasses"]}, "'glasses' is to be a label"),
    ],
)
def test_an_augmentation_that_makes_no_sense_is_one_sentence(asked, sentence):
    with pytest.raises(ValidationError) as refused:
        spec("faces", "out", edits=[], augmentation=asked)
    [error] = refused.value.errors()
    assert sentence in error["msg"]


def test_edits_for_all_images_and_edits_that_are_drawn_exclude_each_other():
    with pytest.raises(ValidationError, match="leave these out"):
        spec("faces", "out", edits=["smile=1"], augmentation={"edits": [{"edit": "glasses=1"}]})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"augmentation": {"balance": ["hat"]}}, "has no label 'hat': it has glasses, beard"),
        ({"stages": "staged"}, "take --stages fused"),
        ({"inspection": {"gates": ["edit_clip > 0"], "search": [1.0]}}, "leave out inspection.search"),
    ],
)
def test_what_cannot_be_drawn_is_said_before_any_image(source, tmp_path, changes, sentence):
    with pytest.raises(UserError, match=sentence):
        resolved = resolve(augmenting(source, tmp_path, **changes))
        open_run(Store(resolved.spec.output), resolved)


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [([GROUPS[0]], "has no row for '0001.png'"), ([{"glasses": -1, "beard": 1}] * 8, "is -1, neither 0 nor 1")],
)
def test_labels_that_are_missing_or_mean_something_else_are_said(source, tmp_path, labels, sentence):
    resolved = resolve(augmenting(source, tmp_path / "run", {"labels": table(tmp_path, labels)}))
    with pytest.raises(UserError, match=sentence):
        open_run(Store(resolved.spec.output), resolved)


def test_a_run_does_not_go_on_with_another_seed_of_draws(source, made):
    with pytest.raises(UserError, match=r"augmentation\.seed: 0 there, 1 here"):
        open_run(Store(str(made)), resolve(augmenting(source, made, {"seed": 1}, t_boost=300, preview=2)))


def test_draws_do_not_depend_on_which_other_images_there_are(source, tmp_path):
    asked = augmenting(source, tmp_path).augmentation
    few = augmenting(source, tmp_path / "few", limit=3, shard_size=1)
    augmenter = Augmenter(few, asked)
    drawing = augmenter.new_drawing()
    open_run(Store(few.output), resolve(few))
    everyone = {f"{i:04d}.png": drawing.draws_of(f"{i:04d}.png", GROUPS[i % 4]) for i in reversed(range(8))}
    assert draws_of(few.output) == {key: everyone[key] for key in ("0000.png", "0001.png", "0002.png")}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_example_runs_as_it_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(EXAMPLE.parents[3])
    fast = ["--n-inv", "3", "--n-gen", "3", "--refine", "0", "--limit", "12", "--no-check", "--preview", "0"]
    fast += ["--set", "inspection.gates=[recon_psnr > 0]"]
    done = asyrp("run", "-c", EXAMPLE, "-o", tmp_path / "run", *fast)
    assert done.returncode == 0, done.stderr
    found = all_rows(tmp_path / "run")
    assert {row["edit"] for row in found} >= {"original", "glasses"} and len(found) > 12
    assert all(row["edit_clip"] is not None for row in found if row["draw"])
