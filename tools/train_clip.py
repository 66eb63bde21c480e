"""Trains the small CLIP that the package ships, on rendered faces and captions made from their labels.

    python -m tools.train_clip --steps 2500         # half an hour on one core; writes asyrp/bundled/clip-avatars

It is an `open_clip` model with its own config. A caption states some of a face's labels, so it is true of many faces
of a batch. Every pair of image and caption is therefore a yes or a no, as in SigLIP (Zhai et al. 2023). Half of the
images are seen as the bundled diffusion model predicts them from a noised face, because directions are trained on such
predictions.
"""

import argparse
import json
import time

import numpy as np
import open_clip
import torch
from safetensors.torch import save_file
from torch import Tensor

from asyrp.diffusion.process import predict, predicted_x0
from asyrp.models.find import find_model
from asyrp.models.folder import BUNDLED
from asyrp.models.load import load_model
from tools.judge import CACHE, HELD_OUT_COUNT, HELD_OUT_SEED, to_batch
from tools.render_avatars import HAIR_COLORS, LABELS, load_or_render

OUTPUT = BUNDLED / "clip-avatars"
CONFIG = {
    "model_cfg": {
        "embed_dim": 64,
        "init_logit_bias": -5.0,
        "vision_cfg": {"image_size": 32, "layers": 4, "width": 64, "head_width": 16, "patch_size": 4},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 3},
    },
    "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
}  # fmt: skip

NOUNS = ("person", "face", "cartoon face", "avatar")
PRESENT = {
    "smile": ("smiling", "with a smile", "happy"),
    "glasses": ("with glasses", "with sunglasses", "wearing glasses", "wearing sunglasses"),
    "beard": ("with a beard", "bearded", "with beards"),
    "long_hair": ("with long hair",),
}
ABSENT = {
    "smile": ("not smiling", "with a serious face", "without a smile"),
    "glasses": ("without glasses",),
    "beard": ("without a beard", "shaved"),
    "long_hair": ("with short hair",),
}
COLORS = {"BLACK": "black", "BLONDE": "blond", "BLONDE_GOLDEN": "blond", "RED": "red", "BROWN": "brown",
          "BROWN_DARK": "brown", "PLATINUM": "grey", "AUBURN": "auburn"}  # fmt: skip
ADJECTIVES = ("smiling", "happy", "bearded", "shaved")


def columns(faces: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The facts that captions state: the four labels, and the colour of the hair as a word."""
    colors = np.array([COLORS[HAIR_COLORS[i]] for i in faces["hair_color"]])
    return {**{name: faces[name].astype(bool) for name in LABELS}, "color": colors}


def caption(face: dict[str, object], rng: np.random.Generator) -> tuple[str, dict[str, object]]:
    """A caption that is true of a face, and the conditions under which it is true of another face."""
    names = [name for name in (*LABELS, "color") if rng.random() < 0.35]
    rng.shuffle(names)
    before, after = [], []
    for name in names:
        words = f"with {face[name]} hair" if name == "color" else rng.choice((PRESENT if face[name] else ABSENT)[name])
        (before if words in ADJECTIVES else after).append(str(words))
    text = " ".join([*before, str(rng.choice(NOUNS)), " and ".join(after)]).strip()
    if rng.random() < 0.5:
        text = str(open_clip.OPENAI_IMAGENET_TEMPLATES[rng.integers(80)](text))
    return text, {name: face[name] for name in names}


def truths(conditions: list[dict[str, object]], faces: dict[str, np.ndarray], chosen: np.ndarray) -> Tensor:
    """Whether a caption (column) is true of an image (row): bool [images, captions]."""
    true = np.ones((len(chosen), len(conditions)), bool)
    for j, condition in enumerate(conditions):
        for name, value in condition.items():
            true[:, j] &= faces[name][chosen] == value
    return torch.from_numpy(true)


@torch.inference_mode()
def as_predicted(x: Tensor, seed: int) -> Tensor:
    """The images as the diffusion model predicts them from x_t, with one random t < 800 for each batch of 64."""
    model = load_model(find_model("avatars"))
    generator, out = torch.Generator().manual_seed(seed), []
    for part in x.split(64):
        t = int(torch.randint(0, 800, (), generator=generator))
        a = model.schedule.level(t)
        x_t = a**0.5 * part + (1 - a) ** 0.5 * torch.randn(part.shape, generator=generator)
        out.append(predicted_x0(x_t, predict(model.unet, x_t, t), a).clamp(-1, 1))
    return torch.cat(out)


def train(model: torch.nn.Module, tokenizer: object, steps: int, batch: int) -> None:
    faces = load_or_render(CACHE / "train.npz", 24_000, 0)
    clean, words = to_batch(faces["images"]), columns(faces)
    predicted = as_predicted(clean, seed=0)
    rng = np.random.default_rng(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps, pct_start=0.1)
    start = time.perf_counter()
    for step in range(steps):
        chosen = rng.integers(len(clean), size=batch)
        made = [caption({name: values[i] for name, values in words.items()}, rng) for i in chosen]
        use_predicted = torch.from_numpy(rng.random(batch) < 0.5)[:, None, None, None]
        x = torch.where(use_predicted, predicted[chosen], clean[chosen])
        x = x + 0.03 * torch.randn_like(x)
        image, text, scale, bias = model(x, tokenizer([text for text, _ in made]))
        true = truths([condition for _, condition in made], words, chosen)
        logits = scale * image @ text.T + bias
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, true.float())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}, {time.perf_counter() - start:.0f} s", flush=True)


@torch.inference_mode()
def accuracy(model: torch.nn.Module, tokenizer: object) -> dict[str, tuple[float, float]]:
    """Zero-shot accuracy by label: on held-out renders, and on the diffusion model's predictions of them."""
    faces = load_or_render(CACHE / "judge_test.npz", HELD_OUT_COUNT, HELD_OUT_SEED)
    clean = to_batch(faces["images"])
    found: dict[str, list[float]] = {name: [] for name in LABELS}
    for x in (clean, as_predicted(clean, seed=1)):
        image = model.encode_image(x, normalize=True)
        for name in LABELS:
            texts = [f"a person {rule[name][0]}" if rule[name][0] not in ADJECTIVES else f"a {rule[name][0]} person"
                     for rule in (ABSENT, PRESENT)]  # fmt: skip
            scores = image @ model.encode_text(tokenizer(texts), normalize=True).T
            found[name].append((scores.argmax(1).numpy() == faces[name]).mean())
    return {name: (values[0], values[1]) for name, values in found.items()}


def save(model: torch.nn.Module) -> None:
    """Write the weights in half precision, and the config beside them."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, OUTPUT / "open_clip_model.safetensors")
    (OUTPUT / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--batch", type=int, default=192)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / "open_clip_config.json").write_text(json.dumps(CONFIG, indent=1) + "\n")
    model = open_clip.create_model(f"local-dir:{OUTPUT}", load_weights=False)
    tokenizer = open_clip.get_tokenizer(f"local-dir:{OUTPUT}")
    train(model, tokenizer, arguments.steps, arguments.batch)
    save(model.eval())
    for name, (clean, predicted) in accuracy(model, tokenizer).items():
        print(f"{name:10s} {100 * clean:.1f} % of renders, {100 * predicted:.1f} % of predictions")


if __name__ == "__main__":
    main()
