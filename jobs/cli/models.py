"""`asyrp models`: list, show, check and convert."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from asyrp.directions import presets
from asyrp.errors import UserError
from asyrp.measures.intervals import SHOWN_COSINES
from asyrp.models.find import HUB_MODELS
from asyrp.models.folder import FAMILY_NAMES, bundled_names
from jobs.cli.options import AsJson, ModelArgument
from jobs.display import console, out, print_facts, report
from pipeline.stages.models import fetch, fetch_model

if TYPE_CHECKING:  # torch loads only when a command needs it
    from asyrp.models.selfcheck import SelfCheckReport

models_app = typer.Typer(help="The diffusion models that can be used.", no_args_is_help=True)


@models_app.command("list")
def models_list(as_json: AsJson = False) -> None:
    """List the models that have a short name."""
    models = dict.fromkeys(bundled_names(), "comes with the package")
    models |= {name: model.repo for name, model in HUB_MODELS.items()}
    table = Table("name", "where")
    for name, where in models.items():
        table.add_row(name, where)
    report(list(models), as_json, lambda: out.print(table))


@models_app.command("show")
def models_show(name: ModelArgument = "avatars", as_json: AsJson = False) -> None:
    """Show a model: family, size, the shape of its h, schedule, digest, known intervals and directions."""
    from asyrp.models.load import load_model
    from asyrp.models.scheduler import read_scheduler

    folder = fetch_model(name)
    model, scheduler = load_model(folder), read_scheduler(folder.scheduler)
    hub = HUB_MODELS.get(name)
    facts = {
        "name": name,
        "family": FAMILY_NAMES[folder.family],
        "image_size": folder.image_size,
        "parameters": sum(p.numel() for p in model.unet.unet.parameters()),
        "h": list(folder.h_shape),
        "schedule": scheduler.title,
        "predicts": scheduler.prediction_type,
        "digest": folder.digest,
        "intervals": intervals(hub.data_set) if hub and hub.data_set else None,
        "directions": list(folder.direction_files()),
        "notes": [folder.record.source, *folder.record.notes] if folder.record else [],
    }
    report(facts, as_json, lambda: print_facts(facts))


def intervals(data_set: str) -> dict[str, object]:
    """The released intervals of a data set: t_edit by the cosine of the texts, and t_boost."""
    t_edit = {f"{cosine:.2f}": presets.t_edit(data_set, cosine) for cosine in SHOWN_COSINES}
    return {"t_edit": presets.t_edit(data_set), "t_edit_by_text_cosine": t_edit, "t_boost": presets.t_boost(data_set)}


@models_app.command("check")
def models_check(
    name: ModelArgument = "avatars",
    images: Annotated[
        str | None, typer.Option(help="Images of the model's own domain. [default: its samples, or stand-ins]")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    as_json: AsJson = False,
) -> None:
    """Check that a model predicts the noise of its schedule. If not, name what is wrong; the exit code is then 2.

    `asyrp run` makes the same check before the first image. Stand-in images only show gross mistakes.

    **Example:** asyrp models check celeba_hq.ckpt --images faces/
    """
    from asyrp.models.load import load_model
    from pipeline.stages.editor import self_check

    folder = fetch_model(name)
    digest = folder.digest
    check = self_check(load_model(folder, device), folder, images)
    facts = {"name": name, "digest": digest, "passes": check.passes, "mistake": check.mistake}
    facts["levels"] = [asdict(level) for level in check.levels]
    report(facts, as_json, lambda: _print_check(name, check))
    if check.mistake:
        raise UserError(f"model {name} fails its self-check: {check.mistake}")


def _print_check(name: str, check: "SelfCheckReport") -> None:
    table = Table("t", "error of eps", "of a linear filter", "passes up to")
    for level in check.levels:
        error = f"{level.error:.4f}" if level.passes else Text(f"{level.error:.4f}", "red")
        table.add_row(str(level.t), error, f"{level.linear_filter:.4f}", f"{level.allowed:.4f}")
    out.print(table)
    if not check.mistake:
        out.print(f"{name} works")


@models_app.command("convert")
def models_convert(
    checkpoint: Annotated[str, typer.Argument(help="A checkpoint of a Ho (DDPM++), iDDPM or ADM net; any fsspec URL.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The diffusers folder to write.")],
    image_size: Annotated[int | None, typer.Option(help="Pixels a side, for nets not of the papers.")] = None,
    num_head_channels: Annotated[int | None, typer.Option(help="Width of an attention head (iDDPM, ADM).")] = None,
    num_heads: Annotated[int | None, typer.Option(help="Number of attention heads instead.")] = None,
    new_attention_order: Annotated[
        bool, typer.Option("--new-attention-order", help="The net was trained with use_new_attention_order.")
    ] = False,
) -> None:
    """Convert a raw checkpoint to a folder that `diffusers.UNet2DModel.from_pretrained` opens, strictly.

    **Example:** asyrp models convert celeba_hq.ckpt -o celeba_hq/
    """
    from asyrp.models.checkpoint import read_checkpoint
    from asyrp.models.convert import convert, write_folder

    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"{output} is there already and not an empty folder: give another --output")
    path = fetch(checkpoint)
    converted = convert(read_checkpoint(path), image_size, num_head_channels, num_heads, new_attention_order)
    write_folder(converted, output, path.name)
    for note in converted.notes:
        console.print(f"note: {note}", highlight=False)
    out.print(f"{output}: see 'asyrp models check {output} --images FOLDER'", soft_wrap=True, highlight=False)
