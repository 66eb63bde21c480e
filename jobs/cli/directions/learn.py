"""`asyrp directions learn`: the ways to find a direction."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.directions.learn_text import learn_text
from jobs.cli.options import Collecting, TBoost, collecting_from_flags, one_of, print_paths, takes
from jobs.spec.paths import absolute_url

learn_app = typer.Typer(help="Ways to find a direction.", no_args_is_help=True)
learn_app.command("text")(learn_text)

Labels = Annotated[
    str, typer.Option(help="CSV or Parquet: 'key' (path below the source) and label columns; or 'folders'.")
]
Extremes = Annotated[
    float | None,
    typer.Option(
        min=0.001, max=0.5, help="Only this share of the images with the most of the label, and with the least."
    ),
]
Scale = Annotated[float, typer.Option(help="Steps that strength 1 takes.")]


Components = Annotated[int, typer.Option("--components", "-k", min=1, max=99, help="Number of directions to keep.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="The folder for the direction files.")]


@takes(collecting_from_flags)
def statistics_from_flags(
    common: Collecting,
    n_steps: Annotated[int, typer.Option(min=2, max=1000, help="Generation steps of strength 1.")] = 40,
    t_start: Annotated[
        int | None, typer.Option(min=0, max=999, help="Suggested first edited timestep. [default: T; labels find it]")
    ] = None,
    t_edit: Annotated[
        int | None, typer.Option(min=0, max=999, help="Suggested last edited timestep. [default: 400; labels find it]")
    ] = None,
    t_boost: TBoost = None,
    scale: Scale = 1.0,
) -> dict[str, Any]:
    """The fields of `jobs.learn.request.LearnRequest` that the ways to learn from h of many images share."""
    interval = {"t_start": t_start, "t_edit": t_edit, "t_boost": t_boost}
    return {**vars(common), **interval, "n_steps": n_steps, "scale": scale}


@learn_app.command("labels")
@takes(statistics_from_flags)
def learn_labels(
    common: dict[str, Any],
    labels: Labels,
    name: Annotated[list[str], typer.Option(help="The label (or folder) to learn. Repeat for more than one.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file; a folder for several names.")],
    hold: Annotated[
        list[str] | None, typer.Option(help="A label to hold fixed; 'none': the raw difference. [default: all columns]")
    ] = None,
    extremes: Extremes = None,
    estimator: Annotated[
        str, typer.Option(help="auto, difference (labelled images alone) or propagated (others too).")
    ] = "auto",
    unlabelled: Annotated[
        str | None, typer.Option(help="More images without labels: a folder or glob, such as what `sample` drew.")
    ] = None,
    most_unlabelled: Annotated[int, typer.Option(min=0, help="The most images without labels that are read.")] = 4096,
    force: Annotated[bool, typer.Option("--force", help="Write a direction whose label cannot be told.")] = False,
) -> None:
    """Learn directions from labels: regress h on all label columns at once, per timestep.

    A hundred labelled images are enough where some thousand others are at hand, in the source or with --unlabelled: a
    probe of h gives labels to these. The interval is found, and the log says how far the direction can be trusted.

    Every numeric column takes part, so a direction holds the other labels fixed. With --hold none the direction is the
    difference of the class means. With --labels folders the labels of an image are the folders that it is in.

    **Example:** asyrp directions learn labels -s faces/ --labels faces.csv --name smile -o smile.safetensors
    """
    from jobs.learn.labels import ESTIMATORS, LabelQuestion, learn_labels
    from jobs.learn.request import LearnRequest

    one_of("estimator", estimator, ESTIMATORS)
    asked = LabelQuestion(
        labels,
        tuple(name),
        hold=None if not hold else () if hold == ["none"] else tuple(hold),
        extremes=extremes,
        estimator=estimator,  # type: ignore[arg-type]
        unlabelled=absolute_url(unlabelled) if unlabelled else None,
        most_unlabelled=most_unlabelled,
        force=force,
    )
    print_paths(learn_labels(LearnRequest(output=output, **common), asked))


@learn_app.command("classifier")
@takes(statistics_from_flags)
def learn_classifier(
    common: dict[str, Any],
    labels: Labels,
    name: Annotated[str, typer.Option(help="The label (or folder) to learn.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file.")],
    kind: Annotated[str, typer.Option(help="logistic or svm.")] = "logistic",
    balance: Annotated[
        list[str] | None, typer.Option(help="A label to make equally frequent in both classes. Repeat.")
    ] = None,
    extremes: Extremes = None,
    timesteps: Annotated[int, typer.Option(min=1, help="Edited timesteps at which h is read.")] = 10,
) -> None:
    """Learn a direction from a linear classifier of h per timestep: the normal of its boundary.

    During learning, h of every image is kept on storage in half precision: 131 kB per image and timestep for the nets
    of the papers.

    **Example:** asyrp directions learn classifier -s faces/ --labels faces.csv --name beard -o beard.safetensors
    """
    from asyrp.learning.classifier import LOSSES
    from jobs.learn.classifier import ClassifierQuestion, learn_classifier
    from jobs.learn.request import LearnRequest

    one_of("kind", kind, tuple(LOSSES))
    asked = ClassifierQuestion(labels, name, kind, tuple(balance or ()), extremes, timesteps)  # type: ignore[arg-type]
    print_paths([learn_classifier(LearnRequest(output=output, **common), asked)])


@learn_app.command("pca")
@takes(statistics_from_flags)
def learn_pca(
    common: dict[str, Any],
    output: OutputFolder,
    components: Components = 10,
    joint: Annotated[bool, typer.Option("--joint", help="One analysis over all timesteps, not one for each.")] = False,
    rank: Annotated[int, typer.Option(min=1, help="Rows of the sketch: more is more exact.")] = 64,
    timesteps: Annotated[int, typer.Option(min=1, help="Edited timesteps at which h is read.")] = 10,
) -> None:
    """Learn directions without labels: the principal components of h over many images.

    Writes pc01.safetensors and so on. Images are streamed: memory depends on --rank and --timesteps, not on the number
    of images.

    **Example:** asyrp directions learn pca -s faces/ -k 10 -o components/
    """
    from jobs.learn.request import LearnRequest
    from jobs.learn.unsupervised import learn_pca

    request = LearnRequest(output=output, **common)
    print_paths(learn_pca(request, components, joint, max(rank, components), timesteps))


@learn_app.command("jacobian")
@takes(statistics_from_flags)
def learn_jacobian(
    common: dict[str, Any],
    output: OutputFolder,
    components: Components = 5,
    image: Annotated[
        list[str] | None,
        typer.Option(help="Key of an image whose Jacobian is taken. Repeat. [default: all of the source]"),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="An image, white where the edit is to act, black elsewhere.")
    ] = None,
    timesteps: Annotated[int, typer.Option(min=1, help="Edited timesteps at which h is read.")] = 1,
) -> None:
    """Learn directions without labels: the changes of h that change the predicted noise most.

    Writes jv01.safetensors and so on: the right singular vectors of the decoder's Jacobian at one image (--image), or
    what those of all images have in common. Strength 1 is set by how far h varies over all images of the source.

    **Example:** asyrp directions learn jacobian -s faces/ --image face_01.png --mask mouth.png -o mouth/
    """
    from jobs.learn.request import LearnRequest
    from jobs.learn.unsupervised import JacobianQuestion, learn_jacobian

    asked = JacobianQuestion(components, timesteps, frozenset(image) if image else None, mask)
    print_paths(learn_jacobian(LearnRequest(output=output, **common), asked))
