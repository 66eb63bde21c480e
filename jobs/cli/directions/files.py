"""`asyrp directions`: list, show, learn and import."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.bar import Bar
from rich.table import Table

from asyrp.directions.info import read_info
from asyrp.errors import UserError
from jobs.cli.directions.algebra import average, begin, combine, compare, preview, project, scale
from jobs.cli.directions.learn import learn_app
from jobs.cli.directions.score import score
from jobs.cli.options import (
    CLIP_HELP,
    AsJson,
    DirectionArgument,
    ModelArgument,
    complete_data_set,
    complete_model,
    direction_file,
    takes,
)
from jobs.display import console, out, print_facts, report
from jobs.spec.run import MODEL_HELP
from pipeline.stages.models import fetch, fetch_model

if TYPE_CHECKING:  # torch loads only when a command needs it
    from torch import Tensor

    from asyrp.directions.released import ReleaseDetails

SWEEP_ROWS = 4

directions_app = typer.Typer(help="Directions in h-space: list, show, learn and import them.", no_args_is_help=True)
directions_app.add_typer(learn_app, name="learn")

for command in (score, project, combine, scale, begin, average, compare, preview):
    directions_app.command()(command)


@directions_app.command("list")
def directions_list(model: ModelArgument = "avatars", as_json: AsJson = False) -> None:
    """List the directions that come with a model."""
    infos = [read_info(path) for path in fetch_model(model).direction_files().values()]
    table = Table("name", "form", "t_edit", "t_boost", "strength 1 is")
    for info in infos:
        table.add_row(info.name, info.form, str(info.t_edit), str(info.t_boost), info.unit)
    report([asdict(info) for info in infos], as_json, lambda: out.print(table))


@directions_app.command("show")
def directions_show(
    direction: DirectionArgument,
    model: Annotated[
        str, typer.Option(help="The model whose directions are meant.", autocompletion=complete_model)
    ] = "avatars",
    sweep: Annotated[
        Path | None, typer.Option(help="Draw what it does at strengths from -2 to 2, to this PNG.")
    ] = None,
    source: Annotated[
        str | None, typer.Option("--source", "-s", help="Images for the sweep. [default: the model's samples]")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a direction file says, how long delta_h is at each timestep and, with --sweep, what the direction does.

    **Example:** asyrp directions show smile --sweep smile.png
    """
    from asyrp.directions.algebra import norms
    from asyrp.directions.forms import load_direction

    path = direction_file(direction, model)
    info = read_info(path)
    lengths = norms(load_direction(path)) if info.form == "timestep" else None
    if sweep:
        _draw_sweep(path, info.name, model, source, sweep)
    facts = {"file": str(path), **asdict(info)}
    by_timestep = lengths and dict(zip(lengths[0], lengths[1].tolist(), strict=True))

    def show() -> None:
        print_facts(facts)
        if lengths:
            out.print(_length_plot(*lengths))

    report({**facts, "length_of_delta_h": by_timestep}, as_json, show)


def _draw_sweep(path: Path, name: str, model: str, source: str | None, output: Path) -> None:
    from jobs.learn.preview import preview

    samples = fetch_model(model).samples
    if source is None and samples is None:
        raise UserError(f"the model {model} comes without samples: give images for the sweep with --source")
    preview(path, name=name, source=source or str(samples), output=output, rows=SWEEP_ROWS, flags={"model": model})


def _length_plot(timesteps: list[int], lengths: "Tensor") -> Table:
    """A bar for the length of delta_h at each timestep, from noise to image."""
    table = Table("t", "length of delta_h", "", title="strength 1, at each generation step")
    longest = lengths.max().item()
    for t, length in sorted(zip(timesteps, lengths.tolist(), strict=True), reverse=True):
        table.add_row(str(t), f"{length:.3g}", Bar(longest, 0, length, width=40))
    return table


@dataclass(frozen=True)
class StatedDetails:
    """What the user states about a released file. It counts instead of what the name of the file says."""

    n_steps: Annotated[
        int | None,
        typer.Option(min=2, max=1000, help="Generation steps it was trained at. [default: ngen in the file's name]"),
    ] = None
    data_set: Annotated[
        str | None,
        typer.Option(
            help="Whose intervals hold: celeba, church, bedroom, afhq or metface. [default: by the file's name]",
            autocompletion=complete_data_set,
        ),
    ] = None
    text_cosine: Annotated[
        float | None, typer.Option(help="Cosine of its two texts in CLIP, for t_edit. [default: not used]")
    ] = None
    clip: Annotated[
        str | None, typer.Option(help=f"Compute that cosine with this CLIP; the papers': ViT-B-16/openai. {CLIP_HELP}")
    ] = None
    texts: Annotated[tuple[str, str] | None, typer.Option(help="Source and target text. [default: the release's]")] = (
        None
    )
    t_edit: Annotated[
        int | None, typer.Option(min=0, max=999, help="Last edited timestep. [default: the data set's]")
    ] = None
    t_boost: Annotated[
        int | None, typer.Option(min=0, max=999, help="Start of fresh noise. [default: the data set's]")
    ] = None

    def details(self, released: str) -> "ReleaseDetails":
        """The details, with the cosine of the texts computed if a CLIP is given; `released` is the name of the file."""
        from asyrp.directions.released import ReleaseDetails, details_from_name

        text_cosine = self.text_cosine
        if self.clip and text_cosine is None:
            text_cosine = _cosine_by_clip(self.clip, self.texts or details_from_name(released).texts)
        return ReleaseDetails(
            n_steps=self.n_steps,
            data_set=self.data_set,
            texts=self.texts,
            text_cosine=text_cosine,
            t_edit=self.t_edit,
            t_boost=self.t_boost,
        )


@directions_app.command("import")
@takes(StatedDetails)
def directions_import(
    stated: StatedDetails,
    file: Annotated[str, typer.Argument(help="A .pth of the official code; any fsspec URL.")],
    model: Annotated[
        str, typer.Option(help=f"The model that it was trained on. {MODEL_HELP}", autocompletion=complete_model)
    ],
    name: Annotated[str, typer.Option(help="The direction's name, as edits will use it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The direction file. [default: NAME.safetensors]")
    ] = None,
    block: Annotated[str | None, typer.Option(help="The block to take from a file with several.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a direction file from a file of the official code: a delta block, or tensors per timestep.

    Such files lack texts and intervals. These come from the release's file names, dictionary and LPIPS curves.

    **Example:** asyrp directions import man_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth --model celebahq-ddpm --name man
    """
    from asyrp.directions.edits import parse_edit
    from asyrp.directions.forms import save_direction
    from asyrp.directions.released import import_direction

    if parse_edit(name).name != name:
        raise UserError(
            f"--name {name}: a direction's name has letters, digits, '_', '-' and '.', and begins with a letter"
        )
    released = fetch(file)
    direction = import_direction(released, fetch_model(model), name, stated.details(released.name), block)
    path = output or Path(f"{name}.safetensors")
    save_direction(direction, path)
    facts = {"file": str(path), **asdict(direction.info)}
    report(facts, as_json, lambda: print_facts(facts))
    if direction.info.t_edit is None:
        console.print("its data set is not known, so it suggests no interval: edit with --t-edit (400 to 700 is usual)")


def _cosine_by_clip(clip: str, texts: tuple[str, str] | None) -> float:
    from asyrp.measures.clip import Clip

    if texts is None:
        raise UserError("--clip: the name of the file does not say its texts, give them with --texts SOURCE TARGET")
    return Clip(clip).cosine(*texts)
