"""Declares stages to the engine: a name, what the stage reads and writes, and its variants."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from pipeline.images.codec import Codec, Fit
from pipeline.images.source import MAX_IMAGE_BYTES, Draw
from pipeline.run.names import output_name
from pipeline.storage.records import Count, Ordinal, StageName

if TYPE_CHECKING:  # a driver that has nothing to compute does without torch
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SinkName = Literal["files", "webdataset", "parquet"]

INVERT = "invert"
"""The stage of a staged run that keeps x_T."""

FINAL = "boost"
"""The stage whose images are a run's result, fused or staged."""

SAMPLE_STAGE = "reconstruct"
"""The stage that shows what a run does without an edit, on a few images of the plan."""

ORIGINAL = "original"
"""The name of the edit of an image that an augmented data set holds unedited."""


class Measured(NamedTuple):
    """The outputs [B, V_out, C, H, W] of a batch, and manifest columns [B][V_out] that were found on the way.

    If the columns of an output give a `status` other than ok, with `error_type` and `error`, the output is not written.
    """

    outputs: "Tensor"
    columns: Sequence[Sequence[Mapping[str, Any]]]


BatchFunction = Callable[..., "Tensor | Measured"]
"""Takes a batch [B, V_in, C, H, W], the keys [B] of its items and, if edits are drawn, the draws [B] of each item.
Gives [B, V_out, C, H, W]. It is pure, and computes each item independently of the others."""

PREPARE = "prepare"
"""The name of a function among those of the stages that gets the device ready for batches. It takes the number of
images that is asked for, None for as many as suit the device, and the share of the device that it may use. It gives the
number of images."""

USUAL_BATCH = {"cpu": 8, "cuda": 16}
"""By device: the size of batches where nothing says more."""

MakeFunctions = Callable[[], Mapping[str, Callable[..., Any]]]
"""Loads the functions of the stages, once per actor: by name the BatchFunction of each stage and, for a stage that
writes statistics, the function that makes its Reducer. There may be a PREPARE."""


class Reducer(Protocol):
    """Adds up the outputs of one shard of a statistics stage, in the order of the plan."""

    def add(self, key: str, output: "NDArray[np.float32]") -> None:
        """Add the output [V, C, H, W] of one image."""

    def arrays(self) -> "Mapping[str, NDArray[Any]]":
        """The sums as the shard stores them."""


@dataclass(frozen=True)
class Variant:
    """One output of a stage for each image.

    Attributes:
        edit: the name of the edit. None for an output that is no edit.
        strength: None if every image has a strength of its own, which its row says.
        columns: the manifest columns that are the same for all images.
        draw: n for the n-th draw of an image. Only images with so many draws have it, and their rows name the edit.
    """

    edit: str | None = None
    strength: float | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)
    draw: Ordinal | None = None


def drawn_variants(draws: int) -> tuple[Variant, ...]:
    """The variants of an augmentation with up to `draws` edits per image: the unedited image, then each draw."""
    return (Variant(ORIGINAL, 0.0), *(Variant(_draw_name(number), None, draw=number) for number in range(1, draws + 1)))


def variant_name(row: Mapping[str, Any]) -> tuple[str | None, float | None]:
    """The edit and strength that stand in the name of a manifest row's output."""
    return (_draw_name(row["draw"]), None) if row["draw"] else (row["edit"], row["strength"])


def _draw_name(number: int) -> str:
    return f"draw{number}"


class Planned(NamedTuple):
    """A manifest row that an image will have: its variant (an index), edit, strength and draw."""

    variant: int
    edit: str | None
    strength: float | None
    draw: Draw | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The declaration of a stage.

    Attributes:
        function: the name of the batch function that computes the stage.
        reads: the name of the stage whose outputs are the input. None: the source images.
        writes: the kind of the outputs. Metrics are manifest columns and have no output files.
        variants: the outputs of one image.
        columns: the manifest columns that are the same for all rows.
        input_root: the root of the run that holds the input, if it is not this run.
        first_images: the stage takes that many images of shard 0 and no more.
        with_source: the source image follows the input, as the last of V_in.
        half: latents are stored in half precision, in which they were made, whatever the format says.
        new_reducer: the name of the function that makes a shard's Reducer, for a stage that writes statistics.
    """

    name: StageName
    function: str
    reads: StageName | None = None
    writes: Literal["images", "latents", "statistics", "metrics"]
    variants: tuple[Variant, ...]
    columns: Mapping[str, Any] = field(default_factory=dict)
    input_root: str | None = None
    first_images: Count | None = None
    with_source: bool = False
    half: bool = False
    new_reducer: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The declaration as run.json records it."""
        return asdict(self)

    def shards(self, planned: Sequence[int]) -> Sequence[int]:
        """The shards that the stage covers, of those in the plan and its additions."""
        return planned if self.first_images is None else planned[:1]

    @property
    def has_draws(self) -> bool:
        """Whether images have edits of their own."""
        return any(variant.draw for variant in self.variants)

    def planned(self, draws: Sequence[Draw]) -> list[Planned]:
        """The rows of an image with these draws, in the order of the variants."""
        rows = []
        for index, variant in enumerate(self.variants):
            if variant.draw is None:
                rows.append(Planned(index, variant.edit, variant.strength))
            elif variant.draw <= len(draws):
                draw = draws[variant.draw - 1]
                rows.append(Planned(index, draw.edit, draw.strength, draw))
        return rows

    def planned_strength(self, edit: str | None, strength: float | None) -> float | None:
        """The strength of a row's variant: none where every image has its own."""
        searched = any(variant.edit == edit and variant.strength is None for variant in self.variants)
        return None if searched else strength

    def is_of_each(self, edit: str | None) -> bool:
        """Whether the strength of an edit is another for each image: searched for, or drawn."""
        named = [variant for variant in self.variants if variant.edit == edit]
        return any(variant.strength is None for variant in named) if named else self.has_draws


@dataclass(frozen=True)
class ImageFormat:
    """How images are read to squares of `size` pixels, and written. `max_image_bytes` is the most that one may have."""

    size: int
    fit: Fit = "crop"
    codec: Codec = "png"
    quality: int = 95
    name: str = "{stem}_{edit}_{strength}"
    latent_dtype: Literal["float32", "float16"] = "float32"
    sink: SinkName = "files"
    max_image_bytes: int = MAX_IMAGE_BYTES

    def output_name(self, key: str, variant: Variant) -> str:
        """The name of the output of one variant."""
        return output_name(self.name, self.codec, key, variant.edit, variant.strength)
