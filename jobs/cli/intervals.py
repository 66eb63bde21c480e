"""`asyrp intervals`: learn t_edit and t_boost from images, and show them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from asyrp.errors import UserError
from asyrp.measures.intervals import SHOWN_COSINES, Intervals, learned_path, load, load_for, save
from jobs.cli.options import (
    AsJson,
    ClipOption,
    Collecting,
    ModelOption,
    collecting_from_flags,
    print_paths,
    takes,
)
from jobs.display import out, print_facts, report
from pipeline.stages.models import fetch_model

if TYPE_CHECKING:  # matplotlib loads only when a chart is drawn
    from matplotlib.figure import Figure

LAST_T = 1000

intervals_app = typer.Typer(
    help="The intervals of your images: where an edit ends and fresh noise begins.", no_args_is_help=True
)


@intervals_app.command("learn")
@takes(collecting_from_flags)
def intervals_learn(
    common: Collecting,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="The file to write. [default: kept for this model, where runs find it]"),
    ] = None,
    images: Annotated[int, typer.Option(min=1, help="Number of images, chosen by key.")] = 100,
    n_inv: Annotated[int, typer.Option(min=2, max=1000, help="Inversion steps, at which distances are known.")] = 40,
    measure: Annotated[
        str,
        typer.Option(help="lpips (as in the papers), clip (the model's own), clip:NAME, or auto: the first available."),
    ] = "auto",
) -> None:
    """Measure how far images are from P_t and x_t while they are inverted (Asyrp, section 3.4).

    Without --output, 'asyrp run --t-edit auto --t-boost auto' uses the result for the same model.

    **Example:** asyrp intervals learn -s photos/ --model google/ddpm-ema-celebahq-256
    """
    from jobs.learn.intervals import IntervalsRequest, learn_intervals

    learned = learn_intervals(IntervalsRequest(**vars(common), images=images, n_inv=n_inv, measure=measure))
    path = output or learned_path(learned.model_digest)
    save(learned, path)
    print_paths([path])


@intervals_app.command("show")
def intervals_show(
    file: Annotated[
        Path | None, typer.Argument(help="What 'intervals learn' wrote. [default: what it learned for the model here]")
    ] = None,
    model: ModelOption = "avatars",
    text_cosine: Annotated[
        float | None, typer.Option(help="Cosine of source and target text in CLIP. [default: 1]")
    ] = None,
    source_text: Annotated[
        str | None, typer.Option(help="Source text, such as 'person', to compute that cosine.")
    ] = None,
    target_text: Annotated[str | None, typer.Option(help="Target text, such as 'person with glasses'.")] = None,
    clip: ClipOption = None,
    plot: Annotated[Path | None, typer.Option("--output", "-o", help="Draw the curves to this PNG.")] = None,
    as_json: AsJson = False,
) -> None:
    """Show t_edit and t_boost by the rules of the paper, and the curves that they are read from.

    **Example:** asyrp intervals show --model celebahq-ddpm --text-cosine 0.9 -o curves.png
    """
    intervals = load(file) if file else load_for(None, fetch_model(model).digest, model)
    if source_text or target_text:
        text_cosine = _computed_cosine(intervals, source_text, target_text, clip)
    cosine = 1.0 if text_cosine is None else text_cosine
    facts: dict[str, Any] = {
        "file": str(file or learned_path(intervals.model_digest)),
        "model": intervals.model,
        "model_digest": intervals.model_digest,
        "measure": intervals.measure,
        "images": intervals.images,
        "text_cosine": cosine,
        "t_edit": intervals.t_edit(cosine),
        "t_edit_threshold": intervals.thresholds.t_edit * cosine,
        "t_boost": intervals.t_boost(),
        "t_boost_threshold": intervals.thresholds.t_boost,
        "t_edit_by_text_cosine": {f"{each:.2f}": intervals.t_edit(each) for each in SHOWN_COSINES},
    }
    if plot:
        plot.parent.mkdir(parents=True, exist_ok=True)
        chart(intervals, cosine).savefig(plot, format="png")

    def show() -> None:
        print_facts(facts)
        out.print(_curves(intervals))

    report({**facts, **_columns(intervals)}, as_json, show)


def _computed_cosine(intervals: Intervals, source: str | None, target: str | None, clip: str | None) -> float:
    from asyrp.measures.clip import Clip, default_clip

    if source is None or target is None:
        raise UserError("a text has no cosine alone: give both --source-text and --target-text")
    return Clip(clip or default_clip(intervals.model)).cosine(source, target)


def _columns(intervals: Intervals) -> dict[str, tuple[float, ...]]:
    return {
        "t": intervals.timesteps,
        "p_t": intervals.p_t.mean,
        "p_t_std": intervals.p_t.std,
        "x_t": intervals.x_t.mean,
        "x_t_std": intervals.x_t.std,
    }


def _curves(intervals: Intervals) -> Table:
    """The distances at each timestep, from noise to image."""
    columns = _columns(intervals)
    table = Table("t", "to P_t", "std", "to x_t", "std", title=f"distance of {intervals.images} images to")
    for t, *values in reversed(list(zip(*columns.values(), strict=True))):
        table.add_row(str(t), *(f"{value:.3f}" for value in values))
    return table


def chart(intervals: Intervals, text_cosine: float) -> "Figure":
    """Both curves with their spread, and where they reach their thresholds."""
    import numpy as np
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.2, 4), layout="constrained")
    axes = figure.subplots()
    marks = (
        ("t_edit", intervals.t_edit(text_cosine), intervals.thresholds.t_edit * text_cosine),
        ("t_boost", intervals.t_boost(), intervals.thresholds.t_boost),
    )
    curves = (("to P_t", intervals.p_t), ("to x_t", intervals.x_t))
    for (name, curve), (end, t, threshold) in zip(curves, marks, strict=True):
        [line] = axes.plot(intervals.timesteps, curve.mean, label=f"{intervals.measure} {name}")
        mean, std = np.array(curve.mean), np.array(curve.std)
        axes.fill_between(intervals.timesteps, mean - std, mean + std, color=line.get_color(), alpha=0.2)
        if t is not None:
            axes.axvline(t, color=line.get_color(), linestyle="--", label=f"{end} {t}")
            axes.axhline(threshold, color=line.get_color(), linestyle="--")
    axes.set(xlabel="t", xlim=(0, LAST_T), ylim=(0, None))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=4, frameon=False)
    return figure
