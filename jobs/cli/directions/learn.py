"""`asyrp directions learn`: the ways to find a direction."""

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.cli.directions.learn_text import learn_text
from jobs.cli.options import Collecting, TBoost, collecting_from_flags, one_of, print_paths, takes

learn_app = typer.Typer(help="Ways to find a direction.", no_args_is_help=True)
learn_app.command("text")(learn_text)

Labels = Annotated[
    str, typer.Option(help="CSV or Parquet: 'key' (path below the source) and label columns; or 'folders'.")
]
Extremes = Annotated[
    float | None,
    typer.Option("--extremes", min=0.001, max=0.5, help="Only this share of the images with the most and the least."),
]
Scale = Annotated[float, typer.Option("--scale", help="What strength 1 is, in steps.")]


Components = Annotated[int, typer.Option("--components", "-k", min=1, max=99, help="How many to keep.")]
OutputFolder = Annotated[Path, typer.Option("--output", "-o", help="The folder for the direction files.")]


@takes(collecting_from_flags)
def statistics_from_flags(
    common: Collecting,
    n_steps: Annotated[int, typer.Option("--n-steps", min=2, max=1000, help="Generation steps of strength 1.")] = 40,
    t_edit: Annotated[int, typer.Option("--t-edit", min=0, max=999, help="Suggested last edited timestep.")] = 400,
    t_boost: TBoost = None,
    scale: Scale = 1.0,
) -> dict[str, Any]:
    """The options of the ways that read h of many images, as `jobs.learn.labels.LearnRequest` takes them."""
    return {**vars(common), "n_steps": n_steps, "t_edit": t_edit, "t_boost": t_boost, "scale": scale}


@learn_app.command("labels")
@takes(statistics_from_flags)
def learn_labels(
    common: dict[str, Any],
    labels: Labels,
    name: Annotated[
        list[str], typer.Option("--name", help="The label (or folder) to learn. Repeat for more than one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file; a folder for several names.")],
    hold: Annotated[
        list[str] | None,
        typer.Option("--hold", help="A label to hold fixed; 'none': the raw difference. [default: all columns]"),
    ] = None,
    extremes: Extremes = None,
) -> None:
    """Directions from labels: h regressed on all label columns at once, per timestep.

    Every numeric column takes part, so that a direction holds the other labels fixed; with --hold none it is the
    difference of the class means. With --labels folders an image's labels are the folders it is in.

    **Example:** asyrp directions learn labels -s faces/ --labels faces.csv --name smile -o smile.safetensors
    """
    from jobs.learn.labels import LabelQuestion, LearnRequest, learn_labels

    held = None if not hold else () if hold == ["none"] else tuple(hold)
    asked = LabelQuestion(labels, tuple(name), held, extremes)
    print_paths(learn_labels(LearnRequest(output=output, **common), asked))


@learn_app.command("classifier")
@takes(statistics_from_flags)
def learn_classifier(
    common: dict[str, Any],
    labels: Labels,
    name: Annotated[str, typer.Option("--name", help="The label (or folder) to learn.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file.")],
    kind: Annotated[str, typer.Option("--kind", help="logistic or svm.")] = "logistic",
    balance: Annotated[
        list[str] | None, typer.Option("--balance", help="A label that both classes are to have alike. Repeat.")
    ] = None,
    extremes: Extremes = None,
    timesteps: Annotated[int, typer.Option("--timesteps", min=1, help="How many of the edited ones are read.")] = 10,
) -> None:
    """A direction from a linear classifier of h per timestep: the normal of its boundary.

    h of every image is kept on storage in half precision while it learns (131 kB per image and timestep for the papers'
    nets).

    **Example:** asyrp directions learn classifier -s faces/ --labels faces.csv --name beard -o beard.safetensors
    """
    from asyrp.learning.classifier import LOSSES
    from jobs.learn.classifier import ClassifierQuestion, learn_classifier
    from jobs.learn.labels import LearnRequest

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
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rows of the sketch: more is more exact.")] = 64,
    timesteps: Annotated[int, typer.Option("--timesteps", min=1, help="How many of the edited ones are read.")] = 10,
) -> None:
    """Directions without labels: the principal components of h over many images, as pc01.safetensors and so on.

    Images are streamed: memory depends on --rank and --timesteps, not on their number.

    **Example:** asyrp directions learn pca -s faces/ -k 10 -o components/
    """
    from jobs.learn.labels import LearnRequest
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
        typer.Option("--image", help="Key of an image whose Jacobian is taken. Repeat. [default: all of the source]"),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option("--mask", help="An image, white where the edit is to act, black elsewhere.")
    ] = None,
    timesteps: Annotated[int, typer.Option("--timesteps", min=1, help="How many of the edited ones are read.")] = 1,
) -> None:
    """Directions without labels: what of h the predicted noise answers to most, as jv01.safetensors and so on.

    The right singular vectors of the decoder's Jacobian at one image (--image), or what those of all images have in
    common. All images of the source say how far h varies, which sets strength 1.

    **Example:** asyrp directions learn jacobian -s faces/ --image face_01.png --mask mouth.png -o mouth/
    """
    from jobs.learn.labels import LearnRequest
    from jobs.learn.unsupervised import JacobianQuestion, learn_jacobian

    asked = JacobianQuestion(components, timesteps, frozenset(image) if image else None, mask)
    print_paths(learn_jacobian(LearnRequest(output=output, **common), asked))
