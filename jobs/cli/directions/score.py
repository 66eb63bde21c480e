"""`asyrp directions score` and `asyrp sample`: make labels, and draw images."""

from typing import Annotated

import typer

from asyrp.errors import UserError
from jobs.cli.options import AsJson, ClipOption, Collecting, Device, ModelOption, NoCheck, collecting_from_flags, takes
from jobs.display import out, report
from jobs.spec.paths import absolute_model, absolute_net, absolute_url


@takes(collecting_from_flags)
def score(
    common: Collecting,
    output: Annotated[str, typer.Option("--output", "-o", help="The table: .parquet, else CSV. Any fsspec URL.")],
    text: Annotated[
        list[str] | None,
        typer.Option(help="NAME=SOURCE|TARGET: how much nearer CLIP puts an image to the target text. Repeat."),
    ] = None,
    classifier: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME[,NAME...]=FILE: TorchScript or ONNX, or a callable MODULE:NAME or FILE.py:NAME. Repeat."
        ),
    ] = None,
    clip: ClipOption = None,
    as_json: AsJson = False,
) -> None:
    """Label images by texts or classifiers. `learn labels` and `learn classifier` read the table.

    **Example:** asyrp directions score -s faces/ --text "glasses=person|person with glasses" -o scores.parquet
    """
    from asyrp.measures.clip import default_clip
    from asyrp.measures.scorers import ScorerSource
    from jobs.learn.score import score
    from pipeline.sources.labels import write_labels

    scorers = []
    for argument in text or []:
        name, value = _pair("text", argument)
        source, bar, target = value.partition("|")
        if not bar:
            raise UserError(f"--text {argument}: write it as NAME=SOURCE|TARGET, two texts")
        scorers.append(
            ScorerSource((name,), texts=(source.strip(), target.strip()), clip=clip or default_clip(common.model))
        )
    for argument in classifier or []:
        names, file = _pair("classifier", argument)
        scorers.append(ScorerSource(tuple(names.split(",")), classifier=absolute_net(file)))
    if not scorers:
        raise UserError("nothing to score by: give --text or --classifier")
    table = score(common.source, common.model, tuple(scorers), common.work, common.engine)
    write_labels(table, absolute_url(output))
    facts = {"images": len(table.keys), "columns": list(table.columns), "output": output}
    line = f"{len(table.keys)} images: {output}"
    report(facts, as_json, lambda: out.print(line, soft_wrap=True, highlight=False))


def _pair(option: str, argument: str) -> tuple[str, str]:
    name, equals, value = argument.partition("=")
    if not equals or not name or not value:
        raise UserError(f"--{option} {argument}: write it as NAME=..., a column's name first")
    return name, value


def sample(
    output: Annotated[str, typer.Option("--output", "-o", help="Folder for the images, on any fsspec URL.")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, help="Number of images.")] = 64,
    first: Annotated[int, typer.Option(min=0, help="Number of the first one.")] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws other images.")] = 0,
    model: ModelOption = "avatars",
    n_gen: Annotated[int, typer.Option(min=2, max=1000, help="Generation steps.")] = 40,
    batch_size: Annotated[int, typer.Option(min=1, help="Images per network call.")] = 8,
    device: Device = "auto",
    no_check: NoCheck = False,
    as_json: AsJson = False,
) -> None:
    """Draw images from a model. Those that are there already are not drawn again.

    An image depends only on the seed and its number, so several machines can draw ranges of one set.

    **Example:** asyrp sample -n 1000 -o samples/ && asyrp directions score -s samples/ ...
    """
    from jobs.learn.draw_images import sample

    drawn = sample(
        absolute_model(model),
        absolute_url(output),
        count=count,
        first=first,
        seed=seed,
        n_gen=n_gen,
        device=device,
        batch_size=batch_size,
        check=not no_check,
    )
    facts = {"drawn": drawn, "images": count, "output": output}
    line = f"{drawn} of {count} images drawn: {output}"
    report(facts, as_json, lambda: out.print(line, soft_wrap=True, highlight=False))
