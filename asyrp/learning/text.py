"""Training of the implicit direction f_t from a pair of texts (Asyrp, sections 3.3 and 5; appendix for the losses).

Every edited timestep of a trajectory is trained on its own. The predicted image of the edited branch must differ from
the predicted image of the source branch as the target text differs from the source text. It must stay the same
otherwise. No gradient runs from one timestep to the next.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from asyrp.diffusion.process import asyrp_step, ddim_step, edit, predict, predicted_x0
from asyrp.diffusion.schedule import generation_pairs
from asyrp.directions.forms import DELTA_BLOCKS, DeltaBlock
from asyrp.errors import UserError
from asyrp.measures.clip import Clip
from asyrp.models.load import Model

SourceTerm = Literal["paper", "released"]
Optimizer = Literal["sgd", "adam"]


@dataclass(frozen=True)
class TextRecipe:
    """The settings of a training. The default weights and rates are those of the paper's experiments.

    Timesteps from `t_start` (None: T) down to `t_edit` are edited. `source_term` names the image that the edited image
    is compared with: `paper` is P_t of the source branch, as in the paper, and `released` is x_0, as in the released
    code.
    """

    source_text: str
    target_text: str
    t_edit: int
    n_steps: int = 40
    clip_weight: float = 1.0
    l1_weight: float = 3.0
    l1_by_cosine: bool = True  # the L1 term is multiplied by the cosine of the texts
    learning_rate: float = 0.5
    optimizer: Optimizer = "sgd"
    source_term: SourceTerm = "paper"
    initial_scale: float = 1.0  # of the block's last layer; below 1, training begins near no edit at all
    cosine_decay: bool = False  # the rate falls to 0 over the whole training
    decay_epochs: int | None = None  # the rate falls to a tenth after each such number of epochs
    templates: tuple[str, ...] = ()  # prompts around the texts; if empty, those of the papers
    seed: int = 0
    t_start: int | None = None


@dataclass(frozen=True)
class Losses:
    """The two terms of the loss at one timestep, without their weights."""

    t: int
    clip: float
    l1: float


class TextTraining:
    """The state of a training, which is the block and its optimiser. It trains on one batch at a time.

    Raises:
        UserError: if the texts are the same to CLIP; if their cosine is negative and multiplies the L1 term; if no step
            is edited.
    """

    def __init__(self, recipe: TextRecipe, model: Model, clip: Clip, family: str, h_channels: int, emb: int) -> None:
        self.recipe, self.model, self.clip = recipe, model, clip
        self.text_direction = clip.direction(recipe.source_text, recipe.target_text, recipe.templates)
        self.text_cosine = clip.cosine(recipe.source_text, recipe.target_text)
        self.l1_weight = recipe.l1_weight * (self.text_cosine if recipe.l1_by_cosine else 1)
        if self.l1_weight < 0:
            raise UserError(
                f"to CLIP the texts '{recipe.source_text}' and '{recipe.target_text}' are opposites (cosine "
                f"{self.text_cosine:.2f}), and the L1 term, which the paper multiplies by that, would push the images "
                "apart: give --no-l1-by-cosine"
            )
        with torch.random.fork_rng():
            torch.manual_seed(recipe.seed)
            self.block: DeltaBlock = DELTA_BLOCKS[family](h_channels, emb)
        self.scale(recipe.initial_scale)
        self.block.to(model.unet.device)
        rate = recipe.learning_rate
        parameters = self.block.parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.SGD(parameters, rate) if recipe.optimizer == "sgd" else torch.optim.Adam(parameters, rate)
        )
        pairs = generation_pairs(recipe.n_steps, len(model.schedule) - 1)
        t_start = recipe.t_start if recipe.t_start is not None else len(model.schedule) - 1
        self.plain = [(t, t_next) for t, t_next in pairs if t > t_start]
        self.pairs = [(t, t_next) for t, t_next in pairs if recipe.t_edit <= t <= t_start]
        if not self.pairs:
            raise UserError(f"none of {recipe.n_steps} steps lies between t_edit {recipe.t_edit} and t_start {t_start}")

    @torch.no_grad()
    def scale(self, factor: float) -> None:
        """Multiply delta_h, which is linear in the block's last layer."""
        for parameter in self.block.last_layer.parameters():
            parameter.mul_(factor)

    def set_rate(self, epoch: int, progress: float) -> None:
        """Set the learning rate of a batch by its epoch and by `progress`, the share of all batches that are done."""
        recipe = self.recipe
        decays = epoch // recipe.decay_epochs if recipe.decay_epochs else 0
        rate = recipe.learning_rate * 0.1**decays
        if recipe.cosine_decay:
            rate *= (1 + math.cos(math.pi * progress)) / 2
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def batch(self, x_0: Tensor, x_T: Tensor) -> Iterator[Losses]:
        """Train on the trajectories of images [B, 3, H, W] from their latents, with one update per edited timestep."""
        with torch.no_grad():
            edited = source = edit(self.model.unet, self.model.schedule, x_T, self.plain, lambda *_: None)
        for t, t_next in self.pairs:
            a, a_next = self.model.schedule.level(t), self.model.schedule.level(t_next)
            with torch.no_grad():
                eps_source = predict(self.model.unet, source, t)
                source_image = predicted_x0(source, eps_source, a)
                source = ddim_step(source, eps_source, a, a_next)
                encoded = self.model.unet.encode(edited, t)
                eps = self.model.unet.decode(encoded, encoded.h)
            delta_h = self.block(encoded, t).to(encoded.h.dtype)
            eps_edit = self.model.unet.decode(encoded, encoded.h + delta_h)
            edited_image = predicted_x0(edited, eps_edit, a)
            compared = source_image if self.recipe.source_term == "paper" else x_0
            clip_loss, l1_loss = self.losses(edited_image, source_image, compared)
            self.optimizer.zero_grad()
            (self.recipe.clip_weight * clip_loss + self.l1_weight * l1_loss).backward()
            self.optimizer.step()
            edited = asyrp_step(edited, eps, eps_edit.detach(), a, a_next)
            yield Losses(t, clip_loss.item(), l1_loss.item())

    def losses(self, edited: Tensor, source: Tensor, compared: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the directional CLIP term and the L1 term.

        The CLIP term is the mean over images of -log((1 + cos) / 2), for the change from `compared` to `edited`. The L1
        term is the mean absolute difference of `edited` and `source`.
        """
        with torch.no_grad():
            before = self.clip.images(compared)
        change = self.clip.images(edited) - before
        cosine = torch.nn.functional.cosine_similarity(change, self.text_direction[None], dim=1)
        return -torch.log(((1 + cosine) / 2).clamp(min=1e-6)).mean(), (edited - source).abs().mean()

    def state_dict(self) -> dict[str, Any]:
        """Returns all that a training needs to continue."""
        return {"block": self.block.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.block.load_state_dict(state["block"])
        self.optimizer.load_state_dict(state["optimizer"])
