"""The metrics of an edit by name: what each number means, and which way is better. The module does not import torch."""

from dataclasses import dataclass
from typing import Literal

NET_GRAMMAR = "a TorchScript file (.pt), an ONNX file (.onnx), or MODULE:NAME"
"""How a user names a net. `asyrp.measures.scorers` loads it."""


@dataclass(frozen=True)
class Metric:
    """A column of the manifest. `of` says whether it judges the inversion alone or the edited image."""

    says: str
    better: Literal["high", "low"]
    of: Literal["reconstruction", "edit"] = "edit"


METRICS = {
    "recon_psnr": Metric("PSNR of the image denoised without an edit against the image, dB", "high", "reconstruction"),
    "recon_lpips": Metric("LPIPS between the same two", "low", "reconstruction"),
    "recon_clip": Metric("distance between CLIP's features of the same two", "low", "reconstruction"),
    "edit_lpips": Metric("LPIPS between the edited image and the image", "low"),
    "edit_clip": Metric("distance between CLIP's features of the same two", "low"),
    "s_dir": Metric("cosine between how the image and how the text changed, to CLIP (S_dir of the paper)", "high"),
    "clip_score": Metric("cosine between the edited image and the target text, to CLIP", "high"),
    "clip_margin": Metric("how much nearer the edited image is to the target than to the source text", "high"),
    "identity": Metric("cosine between the embeddings of both images by a face model", "high"),
    "segmentation": Metric("share of the pixels that a segmenter sees as it did before", "high"),
    "kept": Metric("share of the other labels that a classifier sees as it did before", "high"),
}
"""Each metric is a nullable column of the manifest. The scores of a classifier are in `scores` and `source_scores`."""

SCORE, SOURCE_SCORE = "score.", "source_score."
"""Prefixes by which conditions name a classifier's score of the edited image, and of the image before the edit."""

RECONSTRUCTION_PSNR = "recon_psnr"
"""The metric that is measured on the sample of every run. It needs no net."""

OF_CLIP = frozenset(("recon_clip", "edit_clip", "s_dir", "clip_score", "clip_margin"))
OF_TEXTS = frozenset(("s_dir", "clip_score", "clip_margin"))


@dataclass(frozen=True)
class Judges:
    """The nets that metrics use, as `asyrp.measures.clip.Clip` and `asyrp.measures.scorers.load_net` name them.

    All take images [B, 3, H, W] in [-1, 1]. `identity` gives embeddings [B, D]. `segmenter` gives classes [B, H, W] or
    scores [B, K, H, W]. `classifier` gives scores [B, K], one for each of `labels`. An image has a label if the score
    is at least `threshold`.
    """

    clip: str | None = None
    identity: str | None = None
    segmenter: str | None = None
    classifier: str | None = None
    labels: tuple[str, ...] = ()
    threshold: float = 0.5
