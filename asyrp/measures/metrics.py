"""Metrics of edited images, a batch at a time on the device. `asyrp.measures.names` says what each metric means."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from asyrp.measures.clip import Clip, imagenet_templates
from asyrp.measures.names import METRICS, OF_CLIP, OF_TEXTS, Judges
from asyrp.measures.perceptual import Measure, clip_measure, load_measure
from asyrp.measures.scorers import Scorer, ScorerSource, load_net, load_scorer

IDENTICAL_DB = 100.0
"""The PSNR of two identical images, in place of infinity."""

Values = dict[str, Any]
"""The metrics of one image: floats by name, and the mappings `scores` and `source_scores`."""


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Returns the peak signal to noise ratio [B], dB, of images [B, C, H, W] in [-1, 1].

    torchmetrics rounds the last digit in another way, and manifests hold that digit. It also adds seconds to the start
    of every actor.
    """
    mean_square = ((x - y) / 2).square().mean((1, 2, 3))
    return -10 * mean_square.clamp_min(10 ** (-IDENTICAL_DB / 10)).log10()


def directional_similarity(before: Tensor, after: Tensor, direction: Tensor) -> Tensor:
    """Returns S_dir [B], the cosine between the change of image vectors [B, D] and text directions [B, D].

    It is 0 where nothing changed (Asyrp, section 4.1).
    """
    return cosine_similarity(after - before, direction)


def agreement(before: Tensor, after: Tensor, counted: Tensor | None = None) -> Tensor:
    """Returns the share [B] of places with the same class in two class maps [B, ...].

    If `counted` [B, ...] is given, only the places where it is true count.
    """
    same = (before == after).flatten(1).float()
    return same.mean(1) if counted is None else (same * counted).sum(1) / counted.sum(1)


def classes(seen: Tensor) -> Tensor:
    """Returns class maps [B, H, W] from the output of a segmenter: class maps, or scores [B, K, H, W]."""
    return seen.argmax(1) if seen.ndim == 4 else seen


@dataclass(frozen=True)
class Observations:
    """Images [B, 3, H, W] and the outputs of the nets for them. A net that is not used has None."""

    images: Tensor
    clip: Tensor | None
    face: Tensor | None
    classes: Tensor | None
    scores: Tensor | None

    def items(self, index: Tensor) -> "Observations":
        """Returns the observations of the images at `index`."""
        return replace(self, **{name: part[index] for name, part in vars(self).items() if part is not None})


class Metrics:
    """Computes the metrics `names` with the nets that they need.

    `texts` holds source and target text of each edit. `changed` holds the labels that each edit is meant to change.

    Raises:
        UserError: if a net cannot be loaded, or the texts of an edit are the same to CLIP.
    """

    def __init__(
        self,
        names: Collection[str],
        judges: Judges,
        device: str,
        texts: Mapping[str, tuple[str, str]],
        changed: Mapping[str, Collection[str]],
    ) -> None:
        self.names, self.judges, self.device = names, judges, device
        self.clip = Clip(judges.clip, device) if judges.clip and OF_CLIP & set(names) else None
        self.measures = self._measures()
        self.face = self._net("identity", judges.identity, "face model")
        self.segmenter = self._net("segmentation", judges.segmenter, "segmenter")
        self.scorer = self._scorer()
        self.texts = {edit: self._text_vectors(*pair) for edit, pair in texts.items()} if OF_TEXTS & set(names) else {}
        self.others = {
            edit: torch.tensor([label not in labels for label in judges.labels]) for edit, labels in changed.items()
        }

    def reconstruction(self, images: Tensor, again: Tensor) -> list[Values]:
        """Returns the metrics of the reconstructions `again` of images [B, 3, H, W] after inversion and generation."""
        values = {"recon_psnr": psnr(images, again.clamp(-1, 1))} if "recon_psnr" in self.names else {}
        for name, measure in self.measures.items():
            if METRICS[name].of == "reconstruction":
                values[name] = measure(images, again.clamp(-1, 1))
        return _by_image(values, len(images))

    def look(self, images: Tensor) -> Observations:
        """Returns the outputs of the nets for images [B, 3, H, W], cut off at [-1, 1] as when images are written."""
        images = images.clamp(-1, 1)
        return Observations(
            images,
            self.clip.images(images).float() if self.clip else None,
            torch.as_tensor(self.face(images)).float() if self.face else None,
            classes(torch.as_tensor(self.segmenter(images))) if self.segmenter else None,
            self.scorer(images) if self.scorer else None,
        )

    def edit(self, before: Observations, after: Observations, edits: Sequence[str]) -> list[Values]:
        """Returns the metrics of images before and after an edit. `edits` names the edit of each image."""
        values = {
            name: measure(before.images, after.images)
            for name, measure in self.measures.items()
            if METRICS[name].of == "edit"
        }
        if before.clip is not None and after.clip is not None and self.texts:
            source, target, direction = map(torch.stack, zip(*(self.texts[edit] for edit in edits), strict=True))
            values |= {
                "s_dir": directional_similarity(before.clip, after.clip, direction),
                "clip_score": (after.clip * target).sum(1),
                "clip_margin": (after.clip * (target - source)).sum(1),
            }
        if before.face is not None and after.face is not None:
            values["identity"] = cosine_similarity(before.face, after.face)
        if before.classes is not None and after.classes is not None:
            values["segmentation"] = agreement(before.classes, after.classes)
        rows: list[Values] = [{}] * len(after.images)
        if before.scores is not None and after.scores is not None:
            threshold = self.judges.threshold
            others = torch.stack([self.others[edit] for edit in edits]).to(after.scores.device)
            values["kept"] = agreement(before.scores >= threshold, after.scores >= threshold, others)
            rows = [
                {"scores": self._named(now), "source_scores": self._named(then)}
                for now, then in zip(after.scores, before.scores, strict=True)
            ]
        asked = {name: value for name, value in values.items() if name in self.names}
        return [row | more for row, more in zip(_by_image(asked, len(rows)), rows, strict=True)]

    def _measures(self) -> dict[str, Measure]:
        measures: dict[str, Measure] = {}
        lpips = [name for name in ("recon_lpips", "edit_lpips") if name in self.names]
        measures |= dict.fromkeys(lpips, load_measure("lpips", self.device)) if lpips else {}
        if self.clip:
            of_clip = [name for name in ("recon_clip", "edit_clip") if name in self.names]
            measures |= dict.fromkeys(of_clip, clip_measure(self.clip))
        return measures

    def _net(self, metric: str, name: str | None, what: str) -> Callable[[Tensor], Any] | None:
        return load_net(name, self.device, what) if name and metric in self.names else None

    def _scorer(self) -> Scorer | None:
        if not self.judges.classifier:
            return None
        return load_scorer(ScorerSource(self.judges.labels, classifier=self.judges.classifier), self.device)

    def _text_vectors(self, source: str, target: str) -> tuple[Tensor, Tensor, Tensor]:
        """Returns unit vectors of a source text, a target text and their direction, each over CLIP's prompts."""
        assert self.clip is not None
        ends = [self.clip.texts([prompt(text) for prompt in imagenet_templates()]).mean(0) for text in (source, target)]
        return normalize(ends[0], dim=0), normalize(ends[1], dim=0), self.clip.direction(source, target)

    def _named(self, scores: Tensor) -> dict[str, float]:
        return dict(zip(self.judges.labels, scores.tolist(), strict=True))


def _by_image(values: Mapping[str, Tensor], count: int) -> list[Values]:
    """Turns numbers by name and image into numbers by image and name. A number that is not finite becomes None."""
    columns: dict[str, Sequence[float]] = {name: value.tolist() for name, value in values.items()}
    return [
        {name: value[index] if math.isfinite(value[index]) else None for name, value in columns.items()}
        for index in range(count)
    ]
