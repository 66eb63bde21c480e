"""`asyrp directions learn text`: trains an implicit direction from a pair of texts, on images of a source."""

import io
import itertools
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import Progress
from torch import Tensor
from torchvision.utils import make_grid

from asyrp.diffusion.process import edit, invert
from asyrp.diffusion.schedule import generation_pairs, inversion_pairs
from asyrp.digests import json_digest
from asyrp.directions.forms import Direction, save_direction
from asyrp.directions.info import DirectionInfo
from asyrp.directions.shift import EditShift
from asyrp.errors import UserError
from asyrp.learning.calibration import ENOUGH, STRENGTHS, unit_strength
from asyrp.learning.text import Losses, TextRecipe, TextTraining
from asyrp.measures.clip import Clip, default_clip
from asyrp.models.folder import ModelFolder
from asyrp.models.load import Model, load_model
from jobs.display import console
from pipeline.images.codec import ImageRefused, encode, to_uint8
from pipeline.images.read import read_image
from pipeline.sources.listing import list_images
from pipeline.stages.editor import self_check
from pipeline.stages.models import fetch_model
from pipeline.storage.store import Store

CALIBRATION_IMAGES = 16


@dataclass(frozen=True)
class Preset:
    """The images and epochs of a training, and the fields of its `TextRecipe` that differ from the defaults."""

    images: int
    epochs: int
    recipe: dict[str, Any]
    lacking: bool = False


PRESETS = {
    "paper": Preset(1000, 1, {"t_edit": 500}),
    "released": Preset(100, 5, {"t_edit": 500, "n_steps": 50, "source_term": "released", "decay_epochs": 3}),
    # The bundled CLIP can tell little of a face above t = 450. The texts of a pair are opposites to it, so their cosine
    # cannot weight the L1 term.
    "avatars": Preset(
        96,
        5,
        {
            "t_start": 410,
            "t_edit": 128,
            "learning_rate": 2e-3,
            "optimizer": "adam",
            "cosine_decay": True,
            "initial_scale": 0.1,
            "l1_weight": 1.0,
            "l1_by_cosine": False,
        },
        lacking=True,
    ),
}
"""The values of section 5 of the paper, of its training script, and the best for the bundled model and CLIP."""


OWN_PRESET = {"avatars": "avatars"}
"""The preset that was made for a model."""


def default_preset(model: str) -> str:
    """Returns the preset for a model if the user names none: the model's own, or the paper's."""
    return OWN_PRESET.get(model, "paper")


@dataclass(frozen=True)
class TextRequest:
    """The recipe to train, and the images to train on.

    The state is kept beside `output` after every batch, so that a training can continue after a stop. `lacking` leaves
    out the images that CLIP puts nearer to the target text than to the source text. They have the target already, and
    the loss would change something else. `calibrate` sets strength 1 to the strength that puts the target on most
    images, to CLIP. Without it, strength 1 is the trained direction.
    """

    source: str
    model: str
    clip: str | None
    output: Path
    recipe: TextRecipe
    images: int
    epochs: int
    batch_size: int = 4
    lacking: bool = False
    calibrate: bool = True
    n_inv: int = 40
    t_boost: int | None = None
    device: str = "cpu"
    dtype: str = "float32"
    preview_every: int = 0
    check: bool = True

    @property
    def clip_name(self) -> str:
        return self.clip or default_clip(self.model)


def learn_text(request: TextRequest) -> Path:
    """Train and save the direction. Returns its path.

    The same command after a kill gives the same direction (on a CPU, to the bit).

    Raises:
        UserError: if a model or image does not exist, the texts are the same to CLIP, or another training was begun at
            `output`.
    """
    folder = fetch_model(request.model)
    model = load_model(folder, request.device, getattr(torch, request.dtype))
    if request.check:
        self_check(model, folder).refuse_a_failure(request.model)
    clip = Clip(request.clip_name, request.device)
    training = TextTraining(
        recipe=request.recipe,
        model=model,
        clip=clip,
        family=folder.family,
        h_channels=folder.h_shape[0],
        emb=folder.emb_channels,
    )
    data = TrainingImages(request, folder, model, clip)
    state = TrainingState(request, folder, data.keys)
    done = state.restore(training)
    preview = TrainingPreview(request, model, data.pixels)
    steps = list(itertools.product(range(request.epochs), range(len(data))))
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("training", total=len(steps), completed=done)
        for number, (epoch, index) in enumerate(steps):
            if number < done:
                continue
            training.set_rate(epoch, number / len(steps))
            losses = list(training.batch(*data.batch(epoch, index)))
            state.keep(training, number + 1)
            if request.preview_every and (number + 1) % request.preview_every == 0:
                preview.draw(_direction(request, folder, len(data.keys), training))
            progress.update(task, advance=1, description=_text(losses))
            if not console.is_terminal:
                console.print(f"batch {number + 1} of {len(steps)}: {_text(losses)}", highlight=False)
    unit = _calibrate(request, folder, training, data) if request.calibrate else None
    save_direction(_direction(request, folder, len(data.keys), training, unit), request.output)
    state.forget()
    return request.output


def _calibrate(request: TextRequest, folder: ModelFolder, training: TextTraining, data: "TrainingImages") -> str | None:
    """Scale f_t so that strength 1 puts the target on most images that lack it. Returns the unit in words, or None."""
    recipe, clip = request.recipe, training.clip

    def lack(x: Tensor) -> Tensor:
        return clip.lack(x, recipe.source_text, recipe.target_text)

    # Images are taken a batch at a time, because the device's memory may not hold all of them.
    lacking = (x for batch in data.pixels.split(request.batch_size) for x in batch[lack(batch).cpu()])
    chosen = list(itertools.islice(lacking, CALIBRATION_IMAGES))
    if not chosen:
        console.print("strength 1 stays what was trained: to CLIP every image has the target already", highlight=False)
        return None
    x_T = data.inverted(torch.stack(chosen).to(request.device))
    trained = _direction(request, folder, len(data.keys), training)
    strength = unit_strength(training.model, trained, x_T, recipe.t_edit, lambda x: ~lack(x))
    if strength is None:
        console.print(
            f"strength 1 stays what was trained: to CLIP not even {STRENGTHS[-1]:g} times that puts the target on "
            f"{100 * ENOUGH:.0f} % of the images",
            highlight=False,
        )
        return None
    training.scale(strength)
    share = f"{100 * ENOUGH:.0f} % of the images that lack it"
    return f"what puts the target on {share} (to CLIP), at {recipe.n_steps} generation steps; trained x {strength:g}"


def _text(losses: list[Losses]) -> str:
    clip, l1 = (sum(values) / len(losses) for values in zip(*((loss.clip, loss.l1) for loss in losses), strict=True))
    return f"clip {clip:.3f}, l1 {l1:.3f}"


def _direction(
    request: TextRequest, folder: ModelFolder, images: int, training: TextTraining, unit: str | None = None
) -> Direction:
    """Returns the direction as trained so far. `unit` describes strength 1, if it is not the trained direction."""
    recipe = request.recipe
    info = DirectionInfo(
        name=request.output.stem,
        form="implicit",
        model_digest=folder.digest,
        n_steps=recipe.n_steps,
        t_edit=recipe.t_edit,
        t_boost=request.t_boost,
        t_start=recipe.t_start,
        unit=unit or f"what was trained, at {recipe.n_steps} generation steps",
        found_by=f"training with CLIP {request.clip_name} (Kwon et al. 2023)",
        found_on=f"{images} images{' without it' if request.lacking else ''}, {request.epochs} times",
        notes={
            "source_text": recipe.source_text,
            "target_text": recipe.target_text,
            "text_cosine": f"{training.text_cosine:.4f}",
            "losses": f"clip {recipe.clip_weight:g}, l1 {recipe.l1_weight:g}, against {recipe.source_term}",
            "optimizer": f"{recipe.optimizer} {recipe.learning_rate:g}",
        },
    )
    return Direction(info, training.block)


class TrainingImages:
    """The first readable images of a source in batches, with their latents. Each epoch has its own order.

    Latents are computed when they are first needed. They are kept if there is more than one epoch.
    """

    def __init__(self, request: TextRequest, folder: ModelFolder, model: Model, clip: Clip) -> None:
        self.request, self.model = request, model
        self.keys, self.pixels = _training_images(request, folder.image_size, clip)
        self.pairs = inversion_pairs(request.n_inv, len(model.schedule) - 1)
        self._latents: dict[int, Tensor] = {}

    def __len__(self) -> int:
        """Returns the number of batches of an epoch."""
        return -(-len(self.keys) // self.request.batch_size)

    def batch(self, epoch: int, index: int) -> tuple[Tensor, Tensor]:
        """Returns x_0 and x_T [B, 3, H, W] of one batch of an epoch."""
        size = self.request.batch_size
        order = np.random.default_rng((self.request.recipe.seed, epoch)).permutation(len(self.keys))
        chosen = order[index * size : (index + 1) * size]
        x_0 = self.pixels[chosen].to(self.request.device)
        if self.request.epochs == 1:
            return x_0, self.inverted(x_0)
        # Images are inverted in the order of the source, so that no latent depends on the epoch that needs it first.
        blocks = [self._block(int(image) // size)[int(image) % size] for image in chosen]
        return x_0, torch.stack(blocks).to(x_0.device)

    def _block(self, block: int) -> Tensor:
        """Returns the latents of `batch_size` consecutive images of the source, on the CPU."""
        if block not in self._latents:
            size = self.request.batch_size
            pixels = self.pixels[block * size : (block + 1) * size]
            self._latents[block] = self.inverted(pixels.to(self.request.device)).cpu()
        return self._latents[block]

    @torch.no_grad()
    def inverted(self, x_0: Tensor) -> Tensor:
        """Returns the latents x_T of images [B, 3, H, W]."""
        return invert(self.model.unet, self.model.schedule, x_0, self.pairs)


class TrainingPreview:
    """A sheet beside the output with the first images of a training, before and after the edit as trained so far."""

    ROWS = 4

    def __init__(self, request: TextRequest, model: Model, pixels: Tensor) -> None:
        self.request, self.model, self.path = request, model, request.output.with_suffix(".preview.png")
        self.x_0 = pixels[: self.ROWS].to(request.device)
        self._x_T: Tensor | None = None

    @torch.no_grad()
    def draw(self, direction: Direction) -> None:
        """Edit the images at strength 1 and replace the sheet."""
        unet, schedule, recipe = self.model.unet, self.model.schedule, self.request.recipe
        if self._x_T is None:
            self._x_T = invert(unet, schedule, self.x_0, inversion_pairs(self.request.n_inv, len(schedule) - 1))
        shift = EditShift(((direction, 1.0, recipe.t_edit),), recipe.n_steps)
        edited = edit(unet, schedule, self._x_T, generation_pairs(recipe.n_steps, len(schedule) - 1), shift)
        sheet = make_grid(torch.cat([self.x_0, edited]), nrow=len(edited), padding=0)
        Store(str(self.path.absolute().parent)).write(self.path.name, encode(to_uint8(sheet.cpu().numpy()), "png", 100))


def _training_images(request: TextRequest, size: int, clip: Clip) -> tuple[list[str], Tensor]:
    """Returns keys and pixels [N, 3, H, W] of the first images that the request selects."""
    found = dict(itertools.islice(_selected(request, size, clip), request.images))
    if not found:
        which = f" that lacks '{request.recipe.target_text}'" if request.lacking else ""
        raise UserError(f"there is no readable image{which} below {request.source} to train on")
    return list(found), torch.from_numpy(np.stack(list(found.values())))


def _selected(request: TextRequest, size: int, clip: Clip) -> Iterator[tuple[str, NDArray[np.float32]]]:
    texts = request.recipe.source_text, request.recipe.target_text
    for key, pixels in _readable(request.source, size):
        if not request.lacking or clip.lack(torch.from_numpy(pixels)[None], *texts):
            yield key, pixels


def _readable(source: str, size: int) -> Iterator[tuple[str, NDArray[np.float32]]]:
    for image in list_images(source):
        try:
            yield image.key, read_image(image, size, "crop").pixels
        except ImageRefused as error:
            console.print(f"left out {image.key}: {error}", highlight=False)


class TrainingState:
    """The state of a training on disk, beside its output. Every batch writes it whole, and the next call reads it."""

    def __init__(self, request: TextRequest, folder: ModelFolder, keys: list[str]) -> None:
        self.store, self.name = Store(str(request.output.absolute().parent)), f"{request.output.name}.training"
        what = {
            "recipe": asdict(request.recipe),
            "model": folder.digest,
            "clip": request.clip_name,
            "keys": keys,
            "epochs": request.epochs,
            "batch_size": request.batch_size,
            "n_inv": request.n_inv,
            "dtype": request.dtype,
        }
        self.identity = json_digest(what)

    def restore(self, training: TextTraining) -> int:
        """Load the stored state, if there is one. Returns the number of batches that are done."""
        if not self.store.exists(self.name):
            return 0
        saved = torch.load(io.BytesIO(self.store.read(self.name)), weights_only=True)
        if saved["identity"] != self.identity:
            raise UserError(
                f"{self.store.path(self.name)} is the state of another training: give the values it was begun with, "
                "another --output, or delete it"
            )
        training.load_state_dict(saved["training"])
        return saved["done"]

    def keep(self, training: TextTraining, done: int) -> None:
        buffer = io.BytesIO()
        torch.save({"identity": self.identity, "done": done, "training": training.state_dict()}, buffer)
        self.store.write(self.name, buffer.getvalue())

    def forget(self) -> None:
        self.store.delete(self.name)
