"""`asyrp sample`: draws images from a model by seed, for users without images to learn from or to edit."""

import torch
from rich.progress import Progress

from asyrp.diffusion.noise import boosting_noise, noise_key
from asyrp.diffusion.process import edit
from asyrp.diffusion.schedule import generation_pairs
from asyrp.directions.shift import EditShift
from asyrp.models.load import load_model
from jobs.display import console
from pipeline.images.codec import encode, to_uint8
from pipeline.stages.editor import self_check
from pipeline.stages.models import fetch_model
from pipeline.storage.store import Store


def sample(
    model_name: str,
    output: str,
    count: int,
    first: int,
    seed: int,
    n_gen: int,
    device: str,
    batch_size: int,
    check: bool,
) -> int:
    """Draw the images `first` to `first + count - 1` to a folder on any URL. Returns how many were not there yet.

    x_T of an image depends on the seed and its number alone. Ranges can therefore be drawn separately, and the same
    call continues after a stop. The DDIM steps are deterministic.

    Raises:
        UserError: if there is no such model, or it fails its self-check.
    """
    store = Store(output)
    there = set(store.names(""))
    missing = [number for number in range(first, first + count) if _name(number) not in there]
    if not missing:
        return 0
    folder = fetch_model(model_name)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    model = load_model(folder, device)
    if check:
        self_check(model, folder).refuse_a_failure(model_name)
    t_0 = len(model.schedule) - 1
    pairs, shape = generation_pairs(n_gen, t_0), (3, folder.image_size, folder.image_size)
    with Progress(console=console, disable=not console.is_terminal) as progress, torch.inference_mode():
        task = progress.add_task("sampling", total=len(missing))
        for start in range(0, len(missing), batch_size):
            numbers = missing[start : start + batch_size]
            # A short batch is filled up, because kernels are chosen by shape and differ in how they round.
            filled = numbers + [numbers[-1]] * (batch_size - len(numbers))
            keys = [noise_key(seed, _name(number), "sample") for number in filled]
            x_T = boosting_noise(keys, t_0, shape, torch.device(device))
            images = edit(model.unet, model.schedule, x_T, pairs, EditShift((), n_gen)).cpu().numpy()
            for number, image in zip(numbers, images[: len(numbers)], strict=True):
                store.write(_name(number), encode(to_uint8(image), "png", 100))
            progress.update(task, advance=len(numbers))
    return len(missing)


def _name(number: int) -> str:
    return f"{number:06d}.png"
