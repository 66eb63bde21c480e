"""Measures images, holds them against gates, and does something about those that fail.

x_0 -> inversion -> again without an edit: reconstruction metrics -> their gates: invert the failing ones once more
 |      \\-> edited, at the edit's strength or at the smallest that passes: edit metrics -> their gates
 \\-> measured against
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from asyrp.measures.interval_curves import ImageEnds
from asyrp.measures.metrics import Metrics, Observations, Values
from asyrp.measures.names import METRICS, RECONSTRUCTION_PSNR, SCORE, SOURCE_SCORE
from asyrp.measures.perceptual import load_measure
from pipeline.images.selection import Condition, is_sampled
from pipeline.images.source import Draw
from pipeline.images.statuses import REJECTED_QUALITY
from pipeline.run.stage import Measured
from pipeline.stages.editor import Editor
from pipeline.stages.models import fetched_judges
from pipeline.stages.settings import BoundEdit, Inspection, MethodSettings, drawn_edit, edit_columns

Columns = Mapping[str, Any]
T = TypeVar("T")


def refusal(gates: Sequence[Condition], columns: Columns) -> str | None:
    """The first gate that the metrics of an image do not pass, in words; None if they pass all."""
    numbers = named_numbers(columns)
    for gate in gates:
        if not gate.holds(numbers):
            found = numbers[gate.column]
            shown = "could not be measured" if found is None else f"is {found:.4g}"
            return f"{gate.column} {shown}, and the gate is {gate}"
    return None


def named_numbers(columns: Columns) -> dict[str, float | None]:
    """The metrics of a row by the names that conditions use; None for those that were not measured."""
    numbers = {name: columns.get(name) for name in METRICS}
    for prefix, scores in ((SCORE, columns.get("scores")), (SOURCE_SCORE, columns.get("source_scores"))):
        numbers |= {f"{prefix}{name}": value for name, value in (scores or {}).items()}
    return numbers


@dataclass(frozen=True)
class Verdict:
    """The manifest columns that were found for an image, and why a gate refuses it (None: it passes)."""

    columns: Columns
    refused: str | None = None

    @property
    def passes(self) -> bool:
        return self.refused is None

    def gated(self, gates: Sequence[Condition]) -> "Verdict":
        """The same held against more gates; the first refusal stands."""
        return self if self.refused else Verdict(self.columns, refusal(gates, self.columns))

    def with_columns(self, columns: Columns) -> "Verdict":
        """The same with more columns, which count where both have one."""
        return replace(self, columns={**self.columns, **columns})

    def row(self) -> dict[str, Any]:
        """All of it as manifest columns."""
        if self.refused is None:
            return dict(self.columns)
        return {**self.columns, "status": REJECTED_QUALITY, "error_type": "Gate", "error": self.refused}


@dataclass(frozen=True)
class Result:
    """One edited image [C, H, W] and its verdict."""

    image: Tensor
    verdict: Verdict


class Trial(NamedTuple):
    """An image of a batch (an index), an edit to try on it, and what multiplies the edit's strength (None: nothing)."""

    image: int
    bound: BoundEdit
    factor: float | None = None


class Drawn(NamedTuple):
    """A draw of an image of a batch (an index), its place among the outputs of the image, and its unit edit."""

    image: int
    place: int
    draw: Draw
    bound: BoundEdit

    @property
    def trial(self) -> Trial:
        return Trial(self.image, self.bound, abs(self.draw.strength))


class Measurer:
    """The metrics and gates of a run. It measures the share of images that the inspection asks for."""

    def __init__(self, inspection: Inspection, edits: Sequence[BoundEdit], device: str) -> None:
        self.edits, self.share, self.device = edits, inspection.share, torch.device(device)
        self.measures_reconstruction = inspection.measures_reconstruction
        names = {*inspection.metrics, RECONSTRUCTION_PSNR}  # it costs nothing where there is a reconstruction
        self.metrics = Metrics(names, fetched_judges(inspection.judges), device, inspection.texts, inspection.changed)
        self.reconstruction_gates = [gate for gate in inspection.gates if _of_reconstruction(gate)]
        self.edit_gates = [gate for gate in inspection.gates if not _of_reconstruction(gate)]

    def chosen(self, keys: Sequence[str]) -> list[int]:
        """The images (indices) that are measured."""
        return [index for index, key in enumerate(keys) if is_sampled(key, self.share, "inspection")]

    def look(self, x_0: Tensor, keys: Sequence[str]) -> Observations | None:
        """What the nets make of the chosen images; None if none is chosen."""
        chosen = self.chosen(keys)
        return self.metrics.look(x_0[chosen]) if chosen else None

    def edit_values(
        self, before: Observations | None, images: Tensor, keys: Sequence[str], edits: Sequence[BoundEdit]
    ) -> list[Values]:
        """The metrics of images after one edit of each; {} for those that are not chosen."""
        values: list[Values] = [{} for _ in images]
        if before is not None:
            chosen = self.chosen(keys)
            names = [edits[index].edit.id for index in chosen]
            found = self.metrics.edit(before, self.metrics.look(images[chosen]), names)
            for index, value in zip(chosen, found, strict=True):
                values[index] = value
        return values

    def measured(self, x_0: Tensor, edited: Tensor, keys: Sequence[str]) -> Measured:
        """Finished edits [B, V, C, H, W] of images [B, C, H, W], measured and gated."""
        before = self.look(x_0.to(self.device), keys)
        by_edit = [
            [
                Verdict(values).gated(self.edit_gates).row()
                for values in self.edit_values(before, edited[:, v], keys, [bound] * len(keys))
            ]
            for v, bound in enumerate(self.edits)
        ]
        return Measured(edited, list(zip(*by_edit, strict=True)))


@dataclass(frozen=True)
class Batch:
    """Inverted images.

    Attributes:
        keys: of the images [B].
        inversion: [B, K, C, H, W].
        verdicts: for each image what its inversion is worth.
        chosen: the images (indices) that are measured.
        seen: what the nets make of the chosen images before an edit.
        ends: what tells where edits end, if that is decided image by image.
    """

    keys: Sequence[str]
    inversion: Tensor
    verdicts: Sequence[Verdict]
    chosen: Sequence[int]
    seen: Observations | None
    ends: ImageEnds | None

    @property
    def inverted(self) -> list[int]:
        """The images (indices) whose inversion is good enough to edit."""
        return [index for index, verdict in enumerate(self.verdicts) if verdict.passes]

    def seen_of(self, images: Sequence[int]) -> Observations | None:
        """What the nets make of those among some images that are measured."""
        places = {image: place for place, image in enumerate(self.chosen)}
        wanted = [places[image] for image in images if image in places]
        if self.seen is None or not wanted:
            return None
        return self.seen if wanted == list(places.values()) else self.seen.items(torch.tensor(wanted))

    def t_edits(self, edits: Iterable[BoundEdit], images: Sequence[int]) -> dict[BoundEdit, tuple[Tensor, ...]] | None:
        """For each edit the t_edit of each of its directions on some images; None where it is the same for all."""
        if self.ends is None:
            return None
        found = {}
        for bound in edits:
            terms = zip(bound.edit.weights, bound.t_edits, strict=True)
            found[bound] = tuple(self.ends.t_edits(name, t_edit)[list(images)] for (name, _), t_edit in terms)
        return found


class Inspector:
    """Edits batches with an editor, and finds for each image an edit that passes the gates of a measurer."""

    def __init__(self, editor: Editor, measurer: Measurer, settings: MethodSettings) -> None:
        assert settings.inspection is not None
        self.editor, self.measurer = editor, measurer
        self.inspection, self.edits, self.most_draws = settings.inspection, settings.edits, settings.most_draws
        self.per_image = settings.per_image
        self.measure = load_measure(self.per_image.measure, settings.device) if self.per_image else None
        self.columns = {bound: edit_columns(bound, settings.directions) for bound in settings.edits}

    def edited(self, x_0: Tensor, keys: Sequence[str]) -> Measured:
        """Images [B, C, H, W] inverted, edited, measured and gated; with a search, each at a strength of its own."""
        batch = self._inverted(x_0, keys)
        by_edit = [
            self._searched(batch, bound)
            if self.inspection.search
            else self._tried(batch, [Trial(image, bound) for image in range(len(keys))])
            for bound in self.edits
        ]
        outputs = torch.stack([torch.stack([result.image for result in results]) for results in by_edit], dim=1)
        columns = [[result.verdict.row() for result in results] for results in zip(*by_edit, strict=True)]
        return Measured(outputs, columns)

    def augmented(self, x_0: Tensor, keys: Sequence[str], draws: Sequence[Sequence[Draw]]) -> Measured:
        """Images [B, C, H, W] as they are, and after each of their draws: [B, 1 + draws, C, H, W].

        Outputs are zero where an image has fewer draws. The draws of all images fill batches together. The classifier,
        where there is one, must see the labels that a draw sets.
        """
        batch = self._inverted(x_0, keys)
        outputs = torch.zeros(len(keys), 1 + self.most_draws, *x_0.shape[1:], device=x_0.device)
        outputs[:, 0] = x_0
        columns: list[list[dict[str, Any]]] = [[{} for _ in range(1 + self.most_draws)] for _ in keys]
        wanted: list[Drawn] = []
        for image, verdict in enumerate(batch.verdicts):
            for place, draw in enumerate(draws[image], start=1):
                drawn = Drawn(image, place, draw, drawn_edit(draw, self.edits))
                columns[image][place] = {**self.columns[drawn.bound], **verdict.row()}
                wanted += [drawn] if verdict.passes else []
        for start in range(0, len(wanted), len(keys)):
            some = wanted[start : start + len(keys)]
            for drawn, result in zip(some, self._tried(batch, [each.trial for each in some]), strict=True):
                outputs[drawn.image, drawn.place] = result.image
                columns[drawn.image][drawn.place] |= result.verdict.gated(self._confirming(drawn.draw)).row()
        return Measured(outputs, columns)

    def _confirming(self, draw: Draw) -> list[Condition]:
        """The gates that let the classifier, where there is one, confirm what a draw sets."""
        judges = self.inspection.judges
        return [
            Condition(f"{SCORE}{label}", ">=" if value > 0 else "<", str(judges.threshold))
            for label, value in draw.sets.items()
            if label in judges.labels
        ]

    # Inversion

    def _inverted(self, x_0: Tensor, keys: Sequence[str]) -> Batch:
        """Invert, measure what that loses, and invert once more those that a gate refuses."""
        ends = ImageEnds(self.measure, x_0, self.per_image.distances) if self.measure and self.per_image else None
        inversion = self.editor.inverted(x_0, watch=ends)
        verdicts = self._reconstructions(x_0, inversion, keys)
        failing = [index for index, verdict in enumerate(verdicts) if not verdict.passes]
        if failing and (retry := self.inspection.retry):
            index = _padded(failing, len(keys))
            again = self.editor.inverted_again(x_0[index], retry)
            second = self._reconstructions(x_0[index], again, [keys[i] for i in index])
            for place, image in enumerate(failing):
                inversion[image] = again[place]
                verdicts[image] = second[place].with_columns({"n_inv": retry.n_inv, "refine": retry.refine})
        return Batch(
            keys=keys,
            inversion=inversion,
            verdicts=verdicts,
            chosen=self.measurer.chosen(keys),
            seen=self.measurer.look(x_0, keys),
            ends=ends,
        )

    def _reconstructions(self, x_0: Tensor, inversion: Tensor, keys: Sequence[str]) -> list[Verdict]:
        """What the inversion of each image is worth: the metrics of its reconstruction, gated."""
        verdicts = [Verdict({}) for _ in keys]
        chosen = self.measurer.chosen(keys)
        if self.measurer.measures_reconstruction and chosen:
            again = self.editor.reconstructed(inversion[chosen])
            for index, values in zip(chosen, self.measurer.metrics.reconstruction(x_0[chosen], again), strict=True):
                verdicts[index] = Verdict(values).gated(self.measurer.reconstruction_gates)
        return verdicts

    # Edits

    def _searched(self, batch: Batch, bound: BoundEdit) -> list[Result]:
        """For each image what came of the smallest strength that passes. An image whose inversion was refused is not
        edited."""
        assert self.inspection.search is not None
        found = self.inspection.search.find(
            batch.inverted,
            len(batch.keys),
            lambda images, factors: self._tried(
                batch, [Trial(image, bound, factor) for image, factor in zip(images, factors, strict=True)]
            ),
            lambda result: result.verdict.passes,
        )
        nothing = torch.zeros(batch.inversion.shape[2:], device=batch.inversion.device)
        return [
            found[image][1] if image in found else Result(nothing, verdict)
            for image, verdict in enumerate(batch.verdicts)
        ]

    def _tried(self, batch: Batch, trials: Sequence[Trial]) -> list[Result]:
        """What came of up to a batch of trials: all with a factor, or none.

        A short batch is filled up, so that an image does not depend on how many were tried with it.
        """
        padded = _padded(trials, len(batch.keys))
        images, edits = [trial.image for trial in padded], [trial.bound for trial in padded]
        factors = [trial.factor for trial in padded if trial.factor is not None]
        keys, ends = [batch.keys[image] for image in images], batch.t_edits(edits, images)
        scale = torch.tensor(factors, dtype=torch.float32) if factors else None
        edited = self.editor.edited(batch.inversion[images], edits, keys, scale, ends)
        values = self.measurer.edit_values(batch.seen_of(images), edited, keys, edits)
        results = []
        for place, trial in enumerate(trials):
            verdict = self._edit_verdict(batch.verdicts[trial.image], values[place])
            results.append(Result(edited[place], verdict.with_columns(_own_columns(trial, place, ends))))
        return results

    def _edit_verdict(self, inversion: Verdict, values: Values) -> Verdict:
        """The verdict on an edited image; a refusal of its inversion comes first."""
        refused = inversion.refused or refusal(self.measurer.edit_gates, values)
        return Verdict({**values, **inversion.columns}, refused)


def _own_columns(trial: Trial, place: int, ends: Mapping[BoundEdit, tuple[Tensor, ...]] | None) -> dict[str, Any]:
    """The manifest columns of this image alone: its strength if one is tried, its t_edit if it has its own."""
    columns: dict[str, Any] = {}
    if trial.factor is not None:
        columns["strength"] = trial.bound.edit.strength * trial.factor
    if ends:
        columns["t_edit"] = min(int(end[place]) for end in ends[trial.bound])
    return columns


def _of_reconstruction(gate: Condition) -> bool:
    return gate.column in METRICS and METRICS[gate.column].of == "reconstruction"


def _padded(items: Sequence[T], length: int) -> list[T]:
    return [*items, *[items[-1]] * (length - len(items))]
