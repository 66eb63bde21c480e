"""What a run measures of its images, and what it does about those that are not good enough.

x_0 -> x_T -> again without an edit: reconstruction metrics -> their gates: invert the failing ones once more
 |      \\-> edited, at the edit's strength or at the smallest that passes: edit metrics -> their gates
 \\-> measured against
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from asyrp.measures.interval_curves import ImageEnds
from asyrp.measures.metrics import Metrics, Seen, Values
from asyrp.measures.names import METRICS, RECONSTRUCTION_PSNR, SCORE, SOURCE_SCORE
from asyrp.measures.perceptual import load_measure
from pipeline.images.selection import Condition, is_sampled
from pipeline.images.source import Draw
from pipeline.run.manifest import REJECTED_QUALITY
from pipeline.run.stage import Measured
from pipeline.stages.models import fetched_judges
from pipeline.stages.settings import BoundEdit, Inspection, MethodSettings, drawn_edit, edit_columns

if TYPE_CHECKING:
    from pipeline.stages.functions import Method

Row = dict[str, Any]
T = TypeVar("T")


def refusal(gates: Sequence[Condition], columns: Mapping[str, Any]) -> str | None:
    """The first gate that the metrics of an image do not pass, in words; None if they pass all."""
    numbers = named_numbers(columns)
    for gate in gates:
        if not gate.holds(numbers):
            found = numbers[gate.column]
            shown = "could not be measured" if found is None else f"is {found:.4g}"
            return f"{gate.column} {shown}, and the gate is {gate}"
    return None


def named_numbers(columns: Mapping[str, Any]) -> dict[str, float | None]:
    """The metrics of a row as conditions name them: those not measured are None."""
    numbers = {name: columns.get(name) for name in METRICS}
    for prefix, scores in ((SCORE, columns.get("scores")), (SOURCE_SCORE, columns.get("source_scores"))):
        numbers |= {f"{prefix}{name}": value for name, value in (scores or {}).items()}
    return numbers


@dataclass(frozen=True)
class Result:
    """What came of one image at one strength."""

    image: Tensor
    columns: Row

    @property
    def passes(self) -> bool:
        return "status" not in self.columns


class Drawn(NamedTuple):
    """A draw of an image of a batch (an index), its place among the outputs of the image, and the unit edit meant."""

    image: int
    place: int
    draw: Draw
    bound: BoundEdit


@dataclass(frozen=True)
class Batch:
    """Inverted images: keys [B] and x_T [B, C, H, W], the columns that inversion gives their rows (with a status where
    a gate refuses one), those in the sample (indices) and what the nets make of them, what says where edits end."""

    keys: Sequence[str]
    x_T: Tensor
    rows: list[Row]
    sample: list[int]
    seen: Seen | None
    ends: ImageEnds | None

    def looked_at(self, index: Sequence[int]) -> Seen | None:
        """What the nets make of those of some images that are in the sample."""
        places = {image: place for place, image in enumerate(self.sample)}
        wanted = [places[image] for image in index if image in places]
        if self.seen is None or not wanted:
            return None
        return self.seen if wanted == list(places.values()) else self.seen.items(torch.tensor(wanted))

    def t_edits(self, edits: Iterable[BoundEdit], index: Sequence[int]) -> dict[BoundEdit, tuple[Tensor, ...]] | None:
        """The t_edit of each direction of each edit on some images; None where it is the same for all."""
        if self.ends is None:
            return None
        found = {}
        for bound in edits:
            terms = zip(bound.edit.weights, bound.t_edits, strict=True)
            found[bound] = tuple(self.ends.t_edits(name, t_edit)[list(index)] for (name, _), t_edit in terms)
        return found


class Inspector:
    """Measures batches, and finds for each image of one an edit that passes the gates."""

    def __init__(self, inspection: Inspection, settings: MethodSettings) -> None:
        self.inspection, self.edits, self.per_image = inspection, settings.edits, settings.per_image
        self.most_draws = settings.most_draws
        self.columns = {bound: edit_columns(bound, settings.directions) for bound in settings.edits}
        self.device = torch.device(settings.device)
        self.measure = load_measure(self.per_image.measure, settings.device) if self.per_image else None
        names = {*inspection.metrics, RECONSTRUCTION_PSNR}  # it costs nothing where there is a reconstruction
        self.metrics = Metrics(
            names, fetched_judges(inspection.judges), settings.device, inspection.texts, inspection.changed
        )
        by_reconstruction = [_of_reconstruction(gate) for gate in inspection.gates]
        pairs = list(zip(inspection.gates, by_reconstruction, strict=True))
        self.reconstruction_gates = [gate for gate, reconstruction in pairs if reconstruction]
        self.edit_gates = [gate for gate, reconstruction in pairs if not reconstruction]

    def measured(self, x_0: Tensor, edited: Tensor, keys: Sequence[str]) -> Measured:
        """Images [B, C, H, W] and their edits [B, V, C, H, W], measured and gated."""
        before = self._look(x_0.to(self.device), keys)
        by_edit = [
            [self._gated({}, values) for values in self._values(before, edited[:, v], keys, [bound] * len(keys))]
            for v, bound in enumerate(self.edits)
        ]
        return Measured(edited, list(zip(*by_edit, strict=True)))

    def edited(self, method: "Method", x_0: Tensor, keys: Sequence[str]) -> Measured:
        """Images [B, C, H, W] inverted, edited, measured and gated; with a search, each at a strength of its own."""
        batch = self._inverted(method, x_0, keys)
        everyone = range(len(keys))
        by_edit = [
            self._searched(method, batch, bound)
            if self.inspection.search
            else self._attempt(method, batch, [bound] * len(keys), everyone)
            for bound in self.edits
        ]
        outputs = torch.stack([torch.stack([result.image for result in results]) for results in by_edit], dim=1)
        columns = [[result.columns for result in results] for results in zip(*by_edit, strict=True)]
        return Measured(outputs, columns)

    def augmented(
        self, method: "Method", x_0: Tensor, keys: Sequence[str], draws: Sequence[Sequence[Draw]]
    ) -> Measured:
        """Images [B, C, H, W] as they are, and after each of their draws: [B, 1 + draws, C, H, W], zero where there are
        fewer. Draws of all images share full batches. The labels that an edit sets must be seen by the classifier."""
        batch = self._inverted(method, x_0, keys)
        outputs = torch.zeros(len(keys), 1 + self.most_draws, *x_0.shape[1:], device=x_0.device)
        outputs[:, 0] = x_0
        columns: list[list[Row]] = [[{} for _ in range(1 + self.most_draws)] for _ in keys]
        wanted: list[Drawn] = []
        for image, row in enumerate(batch.rows):
            for place, draw in enumerate(draws[image], start=1):
                drawn = Drawn(image, place, draw, drawn_edit(draw, self.edits))
                columns[image][place] = {**self.columns[drawn.bound], **row}
                wanted += [drawn] if "status" not in row else []
        for start in range(0, len(wanted), len(keys)):
            some = wanted[start : start + len(keys)]
            for drawn, result in zip(some, self._attempt_drawn(method, batch, some), strict=True):
                outputs[drawn.image, drawn.place] = result.image
                columns[drawn.image][drawn.place] |= result.columns
        return Measured(outputs, columns)

    def _attempt_drawn(self, method: "Method", batch: Batch, drawn: Sequence[Drawn]) -> list[Result]:
        """What came of up to a batch of draws, the labels that they set confirmed."""
        strengths = [abs(each.draw.strength) for each in drawn]
        edits, images = [each.bound for each in drawn], [each.image for each in drawn]
        results = self._attempt(method, batch, edits, images, strengths)
        return [
            Result(result.image, _refused(result.columns, self._confirming(each.draw))) if result.passes else result
            for each, result in zip(drawn, results, strict=True)
        ]

    def _confirming(self, draw: Draw) -> list[Condition]:
        """Whether the classifier, where there is one, sees what a draw sets."""
        judges = self.inspection.judges
        return [
            Condition(f"{SCORE}{label}", ">=" if value > 0 else "<", str(judges.threshold))
            for label, value in draw.sets.items()
            if label in judges.labels
        ]

    # Inversion

    def _inverted(self, method: "Method", x_0: Tensor, keys: Sequence[str]) -> Batch:
        """Invert, measure what that loses, and invert those again that a gate refuses."""
        ends = ImageEnds(self.measure, x_0, self.per_image.distances) if self.measure and self.per_image else None
        x_T = method.inverted(x_0, watch=ends)
        rows = self._reconstruction(method, x_0, x_T, keys)
        failing = [index for index, row in enumerate(rows) if "status" in row]
        if failing and (retry := self.inspection.retry):
            index = _padded(failing, len(keys))
            again = method.inverted(x_0[index], retry.n_inv, retry.refine)
            second = self._reconstruction(method, x_0[index], again, [keys[i] for i in index])
            for place, image in enumerate(failing):
                x_T[image] = again[place]
                rows[image] = second[place] | {"n_inv": retry.n_inv, "refine": retry.refine}
        return Batch(keys, x_T, rows, self._chosen(keys), self._look(x_0, keys), ends)

    def _reconstruction(self, method: "Method", x_0: Tensor, x_T: Tensor, keys: Sequence[str]) -> list[Row]:
        rows: list[Row] = [{} for _ in keys]
        chosen = self._chosen(keys)
        if self.inspection.measures_reconstruction and chosen:
            values = self.metrics.reconstruction(x_0[chosen], method.reconstructed(x_T[chosen]))
            for index, value in zip(chosen, values, strict=True):
                rows[index] = _refused(value, self.reconstruction_gates)
        return rows

    # Edits

    def _searched(self, method: "Method", batch: Batch, bound: BoundEdit) -> list[Result]:
        """For each image what came of the smallest strength that passes. Images whose inversion was refused are not
        edited."""
        assert self.inspection.search is not None
        wanted = [index for index, row in enumerate(batch.rows) if "status" not in row]
        found = self.inspection.search.find(
            wanted,
            len(batch.keys),
            lambda images, strengths: self._attempt(method, batch, [bound] * len(images), images, strengths),
            lambda result: result.passes,
        )
        lost = [Result(torch.zeros_like(x), row) for x, row in zip(batch.x_T, batch.rows, strict=True)]
        return [found[index][1] if index in found else lost[index] for index in range(len(lost))]

    def _attempt(
        self,
        method: "Method",
        batch: Batch,
        edits: Sequence[BoundEdit],
        images: Sequence[int],
        strengths: Sequence[float] | None = None,
    ) -> list[Result]:
        """Some images of a batch (indices) after an edit of each, at its own strength or at multiples of it.

        Short batches are filled up, as anywhere, so that an image does not depend on how many were tried with it.
        """
        index = _padded(images, len(batch.keys))
        scale = None if strengths is None else torch.tensor(_padded(strengths, len(index)), dtype=torch.float32)
        ends = batch.t_edits(edits, index)
        keys, edits = [batch.keys[i] for i in index], _padded(edits, len(index))
        edited = method.edited(batch.x_T[index], edits, keys, scale, ends)
        values = self._values(batch.looked_at(index), edited, keys, edits)
        own: list[Row] = [{} for _ in images]
        for place, row in enumerate(own):
            if strengths is not None:
                row["strength"] = edits[place].edit.strength * strengths[place]
            if ends:
                row["t_edit"] = min(int(end[place]) for end in ends[edits[place]])
        tried = zip(images, own, values[: len(images)], strict=True)
        rows = [self._gated(batch.rows[image] | found, value) for image, found, value in tried]
        return [Result(*pair) for pair in zip(edited[: len(images)], rows, strict=True)]

    # Measuring

    def _look(self, x_0: Tensor, keys: Sequence[str]) -> Seen | None:
        """What the nets make of the images of the sample; None where there is none."""
        chosen = self._chosen(keys)
        return self.metrics.look(x_0[chosen]) if chosen else None

    def _values(
        self, before: Seen | None, images: Tensor, keys: Sequence[str], edits: Sequence[BoundEdit]
    ) -> list[Values]:
        """The metrics of images edited by one edit each; {} for those that are not in the sample."""
        chosen = self._chosen(keys)
        values: list[Values] = [{} for _ in images]
        if before is not None:
            names = [edits[index].edit.id for index in chosen]
            found = self.metrics.edit(before, self.metrics.look(images[chosen]), names)
            for index, value in zip(chosen, found, strict=True):
                values[index] = value
        return values

    def _chosen(self, keys: Sequence[str]) -> list[int]:
        return [index for index, key in enumerate(keys) if is_sampled(key, self.inspection.share, "inspection")]

    def _gated(self, inversion: Row, values: Values) -> Row:
        """The columns of an edited image; what inversion was refused for counts first."""
        return {**values, **inversion} if "status" in inversion else {**inversion, **_refused(values, self.edit_gates)}


def _refused(columns: Row, gates: Sequence[Condition]) -> Row:
    """The columns, with the status of a row that a gate refuses if one does."""
    reason = refusal(gates, columns)
    if reason is None:
        return columns
    return columns | {"status": REJECTED_QUALITY, "error_type": "Gate", "error": reason}


def _of_reconstruction(gate: Condition) -> bool:
    return gate.column in METRICS and METRICS[gate.column].of == "reconstruction"


def _padded(items: Sequence[T], length: int) -> list[T]:
    return [*items, *[items[-1]] * (length - len(items))]
