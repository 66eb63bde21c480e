"""Scorers of images that have no labels: two texts through CLIP, or a classifier of the user."""

import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import torch
from torch import Tensor

from asyrp.errors import UserError
from asyrp.measures.clip import Clip
from asyrp.measures.names import NET_GRAMMAR

Scorer = Callable[[Tensor], Tensor]
"""Maps images [B, 3, H, W] in [-1, 1] to scores [B, K], float32."""


@dataclass(frozen=True)
class ScorerSource:
    """The origin of a scorer, and the names of its scores.

    Either `texts` or `classifier` is given. `texts` are a source and a target, and `clip` names the CLIP that reads
    them. `classifier` is a TorchScript file (.pt, .pth), an ONNX file (.onnx), or a
    callable MODULE:NAME or FILE.py:NAME. It takes images [B, 3, H, W] in [-1, 1] at the model's size and gives [B] or
    [B, K].
    """

    names: tuple[str, ...]
    texts: tuple[str, str] | None = None
    clip: str | None = None
    classifier: str | None = None


def load_scorer(source: ScorerSource, device: str) -> Scorer:
    """Load a scorer.

    The scorer itself raises UserError if a classifier gives another number of scores than it has names.

    Raises:
        UserError: if it cannot be loaded.
    """
    if source.texts is not None:
        assert source.clip is not None
        return _clip_scorer(Clip(source.clip, device), source.texts)
    assert source.classifier is not None
    return _checked(load_net(source.classifier, device), source)


def _clip_scorer(clip: Clip, texts: tuple[str, str]) -> Scorer:
    """Returns a scorer: the component of an image's CLIP vector along the direction from source to target text."""
    direction = clip.direction(*texts)
    return lambda x: (clip.images(x) @ direction)[:, None].float()


def _checked(classify: Callable[[Tensor], Any], source: ScorerSource) -> Scorer:
    def score(x: Tensor) -> Tensor:
        scores = torch.as_tensor(classify(x)).float()
        scores = scores[:, None] if scores.ndim == 1 else scores
        if scores.shape != (len(x), len(source.names)):
            raise UserError(
                f"the classifier {source.classifier} gives {list(scores.shape)} for {len(x)} images: "
                f"{len(source.names)} scores each are expected ({', '.join(source.names)})"
            )
        return scores

    return score


def load_net(name: str, device: str, what: str = "classifier") -> Callable[[Tensor], Any]:
    """Load a net of the user, named as in `ScorerSource.classifier`.

    The net takes images [B, 3, H, W] in [-1, 1]. Messages call it `what`.

    Raises:
        UserError: if it cannot be loaded.
    """
    file, _, function = name.rpartition(":")
    if file and function.isidentifier():
        return _callable(file, function, what)
    if not Path(name).is_file():
        raise UserError(f"there is no {what} {name}: give {NET_GRAMMAR}")
    if name.endswith(".pt2"):
        # It holds pickles and expressions that are evaluated: torch cannot read it without running what is in them.
        raise UserError(
            f"the {what} {name} is not opened: a .pt2 file can run code when it is read; export it as ONNX or "
            "TorchScript, or load it in a callable of your own, FILE.py:NAME"
        )
    try:
        if name.endswith(".onnx"):
            return _onnx(name, what)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # every version of torch reads TorchScript
            return torch.jit.load(name, map_location=device).eval()
    except (RuntimeError, ValueError, OSError, BadZipFile) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"the {what} {name} cannot be loaded: {reason}") from error


def _callable(file: str, function: str, what: str) -> Callable[[Tensor], Any]:
    try:
        if file.endswith(".py"):
            spec = importlib.util.spec_from_file_location(Path(file).stem, file)
            assert spec is not None and spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
        else:
            module = importlib.import_module(file)
        return getattr(module, function)
    except (ImportError, FileNotFoundError, AttributeError) as error:
        raise UserError(f"the {what} {file}:{function} cannot be loaded: {error}") from error


def _onnx(path: str, what: str) -> Callable[[Tensor], Any]:
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(f"the {what} {path} needs onnxruntime: pip install onnxruntime") from error
    try:
        session = onnxruntime.InferenceSession(path, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise UserError(f"the {what} {path} cannot be loaded: {str(error).splitlines()[0]}") from error
    [first, *_] = session.get_inputs()
    return lambda x: session.run(None, {first.name: x.float().cpu().numpy()})[0]
