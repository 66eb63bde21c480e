"""Estimates what a run would cost, before it writes anything (`asyrp plan`)."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from asyrp.diffusion.moves import SolverName
from asyrp.diffusion.solvers import Evaluations, Solver
from asyrp.models.load import load_model
from asyrp.models.precision import Precision, set_up
from jobs.runs.record import refuse_unopenable
from jobs.runs.resolve import ResolvedRun
from jobs.runs.run import Cost
from pipeline.images.codec import ImageRefused, encode, to_uint8
from pipeline.images.read import read_image
from pipeline.images.skipped import Skipped
from pipeline.run.plan import no_images
from pipeline.run.stage import INVERT
from pipeline.sources.listing import list_images
from pipeline.stages.editor import load_shifts, make_solver
from pipeline.stages.models import fetch_model
from pipeline.stages.preparation import prepare, time_halves
from pipeline.storage.store import Store

MEGABYTE = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """The size and cost of a run. Encoder and decoder passes per image are counted, seconds are measured on `device`.
    If strengths are searched for or edits are drawn, passes and seconds are the most that an image can take. `skipped`
    counts the files that would not be read, by ending. `verdicts` say how far directions can be trusted."""

    images: int
    skipped: dict[str, int]
    shards: int
    outputs: int
    solver: SolverName
    n_inv: int
    n_gen: int
    encodes_per_image: int
    decodes_per_image: int
    unet_calls_per_image: float
    output_megabytes: float
    latent_megabytes: float
    device: str
    dtype: Precision
    seconds_per_image: float
    price_per_hour: float | None
    verdicts: Mapping[str, str]

    @property
    def cost(self) -> Cost:
        """The cost if every device is as fast as the one here."""
        return Cost(self.images * self.seconds_per_image / 3600, self.price_per_hour)

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | self.cost.as_json()


def estimate(resolved: ResolvedRun) -> Estimate:
    """Counts the images and passes, and times the net on this machine. Writes nothing.

    Raises:
        UserError: if there are no images, or the run would be refused for what is at its output or inversions.
    """
    spec, skipped = resolved.spec, Skipped()
    refuse_unopenable(Store(spec.output), resolved)
    selection = spec.selection()
    images = sum(1 for _ in list_images(spec.source, selection, skipped))
    if not images:
        raise no_images(skipped, selection)
    folder = fetch_model(spec.model)
    device = "cuda" if torch.cuda.is_available() and spec.engine.device != "cpu" else "cpu"
    settings = replace(resolved.settings, device=device)
    model = load_model(folder, device, set_up(settings.dtype, device))
    solver = make_solver(resolved.settings, model)
    evaluations = [
        solver.edit_evaluations(shift.acts, bound.t_boost)
        for bound, shift in load_shifts(resolved.settings, folder, solver).items()
    ]
    encodes, decodes = _passes(resolved, solver, evaluations)
    batch = prepare(model.unet, settings, spec.engine.batch_size, share=1)
    encode_s, decode_s = time_halves(model.unet, settings.image_size, batch)
    return Estimate(
        images=images,
        skipped=dict(skipped.counts),
        shards=-(-images // spec.shard_size),
        outputs=images * len(resolved.final.variants),
        solver=resolved.settings.solver,
        n_inv=resolved.settings.n_inv,
        n_gen=resolved.settings.n_gen,
        encodes_per_image=encodes,
        decodes_per_image=decodes,
        unet_calls_per_image=(encodes * encode_s + decodes * decode_s) / (encode_s + decode_s),
        output_megabytes=images * len(resolved.final.variants) * _bytes_per_output(resolved) / MEGABYTE,
        latent_megabytes=images * _latent_bytes(resolved, solver) / MEGABYTE,
        device=device,
        dtype=settings.dtype,
        seconds_per_image=encodes * encode_s + decodes * decode_s,
        price_per_hour=spec.engine.price_per_hour,
        verdicts=resolved.verdicts,
    )


def _passes(resolved: ResolvedRun, solver: Solver, of_edits: Sequence[Evaluations]) -> tuple[int, int]:
    """The encoder and decoder passes of an image, with the evaluations that each edit takes."""
    settings = resolved.settings
    attempts, reconstructions = _inspected(resolved)
    if settings.most_draws:
        encodes, second_decodes = (settings.most_draws * max(each) for each in zip(*of_edits, strict=True))
    else:
        encodes, second_decodes = (sum(each) for each in zip(*of_edits, strict=True))
    inversion = 0 if resolved.spec.inversions else solver.inversion_calls
    encodes = inversion + encodes * attempts + solver.reconstruction_calls * reconstructions
    return encodes, encodes + second_decodes * attempts


def _latent_bytes(resolved: ResolvedRun, solver: Solver) -> int:
    """The bytes of latents that are kept of an image."""
    values, usual = 3 * resolved.settings.image_size**2, 4 if resolved.spec.latent_dtype == "float32" else 2
    stages = [stage for stage in resolved.stages if stage.writes == "latents"]
    tensors = {stage.name: solver.kept if stage.name == INVERT else len(stage.variants) for stage in stages}
    return sum(values * tensors[stage.name] * (2 if stage.half else usual) for stage in stages)


def _inspected(resolved: ResolvedRun) -> tuple[int, int]:
    """How often an image is edited at most (more than once if a strength is searched for), and how often it is denoised
    without an edit. How many images are inverted a second time cannot be known, so those passes are left out."""
    inspection = resolved.settings.inspection
    if inspection is None:
        return 1, 0
    measured = inspection.measures_reconstruction and inspection.share == 1
    return (inspection.search.most_attempts if inspection.search else 1), int(measured)


def _bytes_per_output(resolved: ResolvedRun) -> float:
    """The size of one edited image, in bytes: the mean over a few source images encoded with the same codec."""
    image_format, sizes = resolved.image_format, []
    for image in itertools.islice(list_images(resolved.spec.source, resolved.spec.selection()), 8):
        try:
            decoded = read_image(image, image_format.size, image_format.fit, image_format.max_image_bytes)
        except ImageRefused:
            continue  # the run will record it in the image's row
        sizes.append(len(encode(to_uint8(decoded.pixels), image_format.codec, image_format.quality)))
    return sum(sizes) / len(sizes) if sizes else 0.0
