"""CLIP through open_clip. It maps images and texts to unit vectors, and gives the directions between texts."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from asyrp.errors import UserError
from asyrp.models.folder import BUNDLED

DEFAULT = "ViT-B-16/openai"
"""The CLIP of the papers."""

OWN = {"avatars": "avatars"}
"""The CLIP that belongs to a model."""


def default_clip(model: str) -> str:
    """Returns the CLIP for a model if the user names none: the model's own, or that of the papers."""
    return OWN.get(model, DEFAULT)


def imagenet_templates() -> Sequence[Callable[[str], str]]:
    """Returns the prompts around a text that CLIP's authors used for ImageNet and the papers use for directions."""
    from open_clip import OPENAI_IMAGENET_TEMPLATES

    return OPENAI_IMAGENET_TEMPLATES


class Clip:
    """A frozen CLIP on a device.

    `name` is `avatars` (bundled, for the bundled model), MODEL/PRETRAINED of open_clip such as ViT-B-16/openai, or a
    folder with an open_clip_config.json.

    Raises:
        UserError: if there is no such model, or its weights cannot be fetched.
    """

    def __init__(self, name: str = DEFAULT, device: str = "cpu") -> None:
        import open_clip  # this import takes a second, and most actors use no CLIP

        model_name, pretrained = _open_clip_name(name)
        try:
            self.model: Any = open_clip.create_model(model_name, pretrained, device=device, require_pretrained=True)
            self.tokenizer: Any = open_clip.get_tokenizer(model_name)
        except (RuntimeError, OSError, ValueError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"the CLIP model '{name}' cannot be loaded: {reason}; give avatars, MODEL/PRETRAINED of open_clip (its "
                "weights are fetched from the hub once) or a folder"
            ) from error
        self.model.eval().requires_grad_(False)
        self.device = torch.device(device)
        size = self.model.visual.image_size
        self.size: int = size[0] if isinstance(size, tuple | list) else size
        self.mean = torch.tensor(self.model.visual.image_mean, device=device)[:, None, None]
        self.std = torch.tensor(self.model.visual.image_std, device=device)[:, None, None]

    def images(self, x: Tensor) -> Tensor:
        """Returns unit vectors [B, D] of square images [B, 3, H, W] in [-1, 1]. Gradients flow back to the images."""
        return self.model.encode_image(self._prepared(x), normalize=True)

    def embeddings(self, x: Tensor) -> Tensor:
        """Returns vectors [B, D] of square images [B, 3, H, W] in [-1, 1], of the length the image tower gives."""
        return self.model.encode_image(self._prepared(x))

    def features(self, x: Tensor) -> list[Tensor]:
        """Returns the outputs [B, C, h, w] of the image tower's blocks for square images [B, 3, H, W] in [-1, 1]."""
        return self.model.visual.forward_intermediates(self._prepared(x), intermediates_only=True)[
            "image_intermediates"
        ]

    def _prepared(self, x: Tensor) -> Tensor:
        scaled = (x.to(self.device).float() + 1) / 2
        if scaled.shape[-1] != self.size:
            scaled = torch.nn.functional.interpolate(
                scaled, (self.size, self.size), mode="bicubic", align_corners=False, antialias=True
            )
        return (scaled - self.mean) / self.std

    @torch.no_grad()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Returns unit vectors [N, D] of texts."""
        return self.model.encode_text(self.tokenizer(list(texts)).to(self.device), normalize=True)

    def cosine(self, source: str, target: str) -> float:
        """Returns the cosine of two texts without prompts around them. t_edit and the L1 term depend on it."""
        first, second = self.texts([source, target])
        return float(first @ second)

    @torch.no_grad()
    def lack(self, x: Tensor, source: str, target: str) -> Tensor:
        """Returns whether each image [B, 3, H, W] is nearer to the source text than to the target text, bool [B]."""
        near, far = (self.images(x) @ self.texts([source, target]).T).unbind(1)
        return near > far

    def direction(self, source: str, target: str, templates: Sequence[str] = ()) -> Tensor:
        """Returns the unit vector [D] from the source to the target text, the mean over all prompts around them.

        A template is a prompt with one {} where the text goes. If none are given, `imagenet_templates` are used.

        Raises:
            UserError: if the two texts are the same to CLIP, or a template does not have exactly one {}.
        """
        for template in templates:
            if template.count("{}") != 1:
                raise UserError(f"the template '{template}' needs one {{}} where the text goes: 'a photo of a {{}}.'")
        prompts = [template.format for template in templates] or imagenet_templates()
        ends = [self.texts([prompt(text) for prompt in prompts]) for text in (target, source)]
        difference = (ends[0] - ends[1]).mean(0)
        if difference.norm() < 1e-4:
            raise UserError(
                f"to CLIP the texts '{source}' and '{target}' are the same: there is no direction between them"
            )
        return torch.nn.functional.normalize(difference, dim=0)


def _open_clip_name(name: str) -> tuple[str, str | None]:
    if (BUNDLED / f"clip-{name}").is_dir():
        return f"local-dir:{BUNDLED / f'clip-{name}'}", None
    if Path(name).is_dir():
        return f"local-dir:{name}", None
    model, _, pretrained = name.partition("/")
    return model, pretrained or "openai"
