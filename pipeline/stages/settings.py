"""The settings of a run, which are data, and the stages that it declares with them. No torch here.

fused     boost(images)                     invert, edit and boost in one pass; latents stay on the device
augment   boost(images)                     the same, with the edits that each image has drawn
staged    invert -> edit -> boost           each with its own manifest and latents
sample    reconstruct                       the first images without an edit, to see what inversion loses
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from asyrp.diffusion.moves import SolverName
from asyrp.directions.edits import Edit, reconstruction
from asyrp.directions.search import Search
from asyrp.measures.names import METRICS, Judges
from asyrp.models.precision import Precision
from pipeline.images.selection import Condition
from pipeline.images.source import Draw
from pipeline.run.stage import FINAL, INVERT, SAMPLE_STAGE, Stage, Variant

Execution = Literal["auto", "eager", "compiled"]
"""Whether the net is compiled. auto: on a GPU, if torch can compile there."""


@dataclass(frozen=True)
class BoundEdit:
    """An edit with its interval in this run: a t_start from the file of each direction (None: T), and its t_edit."""

    edit: Edit
    t_starts: tuple[int | None, ...]
    t_edits: tuple[int, ...]
    t_boost: int


@dataclass(frozen=True)
class DirectionSource:
    """The URL of a direction's file (None: it comes with the model) and the digest that the file must have."""

    url: str | None
    digest: str


def edit_columns(bound: BoundEdit, directions: Mapping[str, DirectionSource]) -> dict[str, object]:
    """The manifest columns of an edit."""
    return {
        "direction_digest": ",".join(directions[name].digest for name, _ in bound.edit.weights) or None,
        "t_edit": min(bound.t_edits, default=None),
        "t_boost": bound.t_boost,
        "eta": 1.0 if bound.t_boost else 0.0,
    }


def unit_edit(edit: Edit) -> Edit:
    """The edit at strength 1 or -1. Drawn strengths are multiples of it."""
    return replace(edit, strength=1.0 if edit.strength > 0 else -1.0)


def drawn_edit(draw: Draw, edits: Iterable[BoundEdit]) -> BoundEdit:
    """The unit edit of a draw among those of a run."""
    return next(
        bound for bound in edits if bound.edit.name == draw.edit and (bound.edit.strength > 0) == (draw.strength > 0)
    )


@dataclass(frozen=True)
class SecondInversion:
    """The settings of the second inversion, for images whose reconstruction a gate refuses."""

    n_inv: int
    refine: int


@dataclass(frozen=True)
class Inspection:
    """The metrics of every image, or of a `share` of the images chosen by key, and the gates on them.

    `texts` and `changed` are by edit: source and target text, and the classifier's labels that it is meant to change.
    `search` finds a strength for each image, as a multiple of the edit's own.
    """

    metrics: tuple[str, ...]
    judges: Judges
    texts: Mapping[str, tuple[str, str]]
    changed: Mapping[str, frozenset[str]]
    gates: tuple[Condition, ...] = ()
    search: Search | None = None
    retry: SecondInversion | None = None
    share: float = 1.0

    @property
    def measures_reconstruction(self) -> bool:
        return any(METRICS[name].of == "reconstruction" for name in self.metrics)


@dataclass(frozen=True)
class ImageDistances:
    """The distance from P_t to the image at which each direction ends, by a measure of `asyrp.measures.perceptual`."""

    measure: str
    distances: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class MethodSettings:
    """All that the pixels depend on, except what images draw (each up to `most_draws` of the edits).

    Picklable: it travels to the actors, which load the rest.
    """

    model: str
    model_digest: str
    directions: Mapping[str, DirectionSource]
    edits: tuple[BoundEdit, ...]
    solver: SolverName
    n_inv: int
    refine: int
    n_gen: int
    t_top: int | None  # inversions go no higher than needed for what begins here, an edit or its noise; None: to T
    seed: int
    dtype: Precision
    image_size: int
    device: str
    check: bool  # the net's self-check, before the first image
    execution: Execution = "auto"
    inspection: Inspection | None = None
    per_image: ImageDistances | None = None
    most_draws: int = 0

    def columns(self) -> dict[str, object]:
        """The manifest columns that are the same for all edits."""
        return {
            "model_digest": self.model_digest,
            "seed": self.seed,
            "solver": self.solver,
            "n_inv": self.n_inv,
            "refine": self.refine,
            "n_gen": self.n_gen,
            "image_size": self.image_size,
            "dtype": self.dtype,
        }


def edit_variant(edit: Edit, searched: bool, columns: Mapping[str, object]) -> Variant:
    """The variant of an edit, at its own strength or at one that is searched for, image by image."""
    return Variant(edit.name, None if searched else edit.strength, columns)


def declare_stages(
    edits: tuple[Variant, ...],
    columns: Mapping[str, object],
    *,
    staged: bool,
    inversions: str | None,
    first_images: int,
    measured: bool = False,
    solver: SolverName = "ddim",
) -> list[Stage]:
    """The stages of a run in the order of their dependence.

    Args:
        edits: the variants of the edited images.
        columns: the manifest columns that are the same for all edits.
        staged: whether every stage keeps its latents.
        inversions: the root of a staged run whose x_T are used.
        first_images: so many images are also reconstructed without an edit.
        measured: whether edited images are held against their source.
        solver: an inversion of dpmpp_2m holds its source, and is in half precision.
    """
    stages = _staged(edits, columns, inversions, measured, solver) if staged else [_fused(edits, columns)]
    if not first_images:
        return stages
    preview = Stage(
        name=SAMPLE_STAGE,
        function="reconstruct_latents" if staged else "reconstruct",
        reads=INVERT if staged else None,
        writes="images",
        variants=(Variant(reconstruction().name, reconstruction().strength, {"t_boost": 0, "eta": 0.0}),),
        columns=columns,
        input_root=inversions,
        first_images=first_images,
        with_source=staged and solver == "ddim",
    )
    return [*stages, preview]


def _fused(edits: tuple[Variant, ...], columns: Mapping[str, object]) -> Stage:
    function = "augment" if any(variant.draw for variant in edits) else "fused"
    return Stage(name=FINAL, function=function, writes="images", variants=edits, columns=columns)


def _staged(
    edits: tuple[Variant, ...],
    columns: Mapping[str, object],
    inversions: str | None,
    measured: bool,
    solver: SolverName,
) -> list[Stage]:
    invert = Stage(
        name=INVERT,
        function="invert",
        writes="latents",
        variants=(Variant(),),
        columns={name: value for name, value in columns.items() if name != "n_gen"},
        half=solver != "ddim",
    )
    edit = Stage(
        name="edit",
        function="edit",
        reads=INVERT,
        writes="latents",
        variants=edits,
        columns=columns,
        input_root=inversions,
    )
    boost = Stage(
        name=FINAL,
        function="boost",
        reads="edit",
        writes="images",
        variants=edits,
        columns=columns,
        with_source=measured,
    )
    return [edit, boost] if inversions else [invert, edit, boost]
