"""`asyrp directions learn`: the ways to find a direction."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from asyrp.errors import UserError
from jobs.cli_options import CLIP_HELP, Device, ModelOption, NoCheck, Source, takes
from jobs.display import out
from jobs.spec import EngineSpec, absolute_model, absolute_url, load_engine

if TYPE_CHECKING:  # torch loads only when a command needs it
    from asyrp.text_training import TextRecipe

learn_app = typer.Typer(help="Ways to find a direction.", no_args_is_help=True)

TBoost = Annotated[int | None, typer.Option("--t-boost", min=0, max=999, help="Suggested start of fresh noise.")]


@dataclass(frozen=True)
class Statistics:
    """The options of the ways that read h of many images, as `jobs.learn.LearnRequest` takes them."""

    source: str
    model: str
    n_steps: int
    t_edit: int
    t_boost: int | None
    work: str | None
    engine: EngineSpec


def statistics_from_flags(
    source: Source,
    model: ModelOption = "avatars",
    n_steps: Annotated[int, typer.Option("--n-steps", min=2, max=1000, help="Generation steps of strength 1.")] = 40,
    t_edit: Annotated[int, typer.Option("--t-edit", min=0, max=999, help="Suggested last edited timestep.")] = 400,
    t_boost: TBoost = None,
    work: Annotated[
        str | None, typer.Option("--work", help="Root to keep the sums at, to go on after a stop. Any URL.")
    ] = None,
    actors: Annotated[int | None, typer.Option("--actors", help="Ray actors. [default: one a GPU, else one]")] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", help="Images per network call. [default: 16 on GPU, 8]")
    ] = None,
    device: Device = "auto",
    address: Annotated[
        str | None, typer.Option("--address", help="A Ray cluster to join. [default: start one here]")
    ] = None,
    no_check: NoCheck = False,
) -> Statistics:
    """What the ways that read h of many images have in common; its parameters are those commands' options."""
    knobs = {"actors": actors, "batch_size": batch_size, "device": device, "address": address, "check": not no_check}
    return Statistics(
        source=absolute_url(source),
        model=absolute_model(model),
        n_steps=n_steps,
        t_edit=t_edit,
        t_boost=t_boost,
        work=absolute_url(work) if work else None,
        engine=load_engine(knobs),
    )


@learn_app.command("labels")
@takes(statistics_from_flags)
def learn_labels(
    common: Statistics,
    labels: Annotated[
        str, typer.Option(help="CSV or Parquet: 'key' (path below the source) and label columns; or 'folders'.")
    ],
    name: Annotated[
        list[str], typer.Option("--name", help="The label (or folder) to learn. Repeat for more than one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file; a folder for several names.")],
    scale: Annotated[float, typer.Option("--scale", help="Strength 1, in changes of h per unit of the label.")] = 1.0,
) -> None:
    """Directions from labels: h regressed on all label columns at once, per timestep.

    Every numeric column takes part, so that a direction holds the other labels fixed; with a single column it is
    the difference of the class means. With --labels folders an image's labels are the folders it is in.

    **Example:** asyrp directions learn labels -s faces/ --labels faces.csv --name smile -o smile.safetensors
    """
    from jobs.learn import LearnRequest, learn_labels

    _print_paths(learn_labels(LearnRequest(output=output, scale=scale, **vars(common)), labels, tuple(name)))


@learn_app.command("pca")
@takes(statistics_from_flags)
def learn_pca(
    common: Statistics,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pc01.safetensors, pc02.safetensors, ...")],
    components: Annotated[int, typer.Option("--components", "-k", min=1, max=99, help="How many to keep.")] = 10,
    joint: Annotated[bool, typer.Option("--joint", help="One analysis over all timesteps, not one for each.")] = False,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rows of the sketch: more is more exact.")] = 64,
    timesteps: Annotated[
        int, typer.Option("--timesteps", min=1, help="How many of the edited timesteps are read.")
    ] = 10,
    scale: Annotated[float, typer.Option("--scale", help="Strength 1, in standard deviations.")] = 1.0,
) -> None:
    """Directions without labels: the principal components of h over many images.

    Images are streamed: memory depends on --rank and --timesteps, not on their number.

    **Example:** asyrp directions learn pca -s faces/ -k 10 -o components/
    """
    from jobs.learn import LearnRequest, learn_pca

    request = LearnRequest(output=output, scale=scale, **vars(common))
    _print_paths(learn_pca(request, components, joint, max(rank, components), timesteps))


def recipe_from_flags(
    source_text: Annotated[str, typer.Option("--source-text", help="What the images show: 'person'.")],
    target_text: Annotated[str, typer.Option("--target-text", help="What they are to show: 'person with glasses'.")],
    preset: Annotated[
        str, typer.Option("--preset", help="paper: section 5. released: the script of its code.")
    ] = "paper",
    t_edit: Annotated[int, typer.Option("--t-edit", min=0, max=999, help="Last edited timestep.")] = 500,
    n_steps: Annotated[
        int | None, typer.Option("--n-steps", min=2, max=1000, help="Generation steps. [default: the preset's]")
    ] = None,
    learning_rate: Annotated[float, typer.Option("--lr", help="Learning rate.")] = 0.5,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd (the papers) or adam.")] = "sgd",
    clip_weight: Annotated[float, typer.Option("--clip-weight", help="Of the directional CLIP loss.")] = 1.0,
    l1_weight: Annotated[float, typer.Option("--l1-weight", help="Of the L1 loss, times the texts' cosine.")] = 3.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the block's first weights and the order of images.")] = 0,
) -> "tuple[TextRecipe, dict[str, Any]]":
    """The recipe of a training by text, and the preset that it is based on."""
    from asyrp.text_training import TextRecipe
    from jobs.learn_text import PRESETS

    _one_of("preset", preset, tuple(PRESETS))
    _one_of("optimizer", optimizer, ("sgd", "adam"))
    recipe = TextRecipe(
        source_text=source_text,
        target_text=target_text,
        t_edit=t_edit,
        n_steps=n_steps or PRESETS[preset]["n_steps"],
        clip_weight=clip_weight,
        l1_weight=l1_weight,
        learning_rate=learning_rate,
        optimizer=optimizer,  # type: ignore[arg-type]
        source_term=PRESETS[preset]["source_term"],
        decay_epochs=PRESETS[preset]["decay_epochs"],
        seed=seed,
    )
    return recipe, PRESETS[preset]


@learn_app.command("text")
@takes(recipe_from_flags)
def learn_text(
    chosen: "tuple[TextRecipe, dict[str, Any]]",
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file; its stem is the name.")],
    model: ModelOption = "avatars",
    clip: Annotated[
        str | None,
        typer.Option("--clip", help=f"{CLIP_HELP} [default: ViT-B-16/openai; avatars for the bundled model]"),
    ] = None,
    images: Annotated[int | None, typer.Option("--images", min=1, help="How many. [default: the preset's]")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over them. [default: the preset's]")
    ] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per update.")] = 4,
    n_inv: Annotated[int, typer.Option("--n-inv", min=2, max=1000, help="Inversion steps.")] = 40,
    t_boost: TBoost = None,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the U-Net: float32, bfloat16 or float16.")] = "float32",
    no_check: NoCheck = False,
) -> None:
    """A direction from a pair of texts: the implicit function f_t of the paper, trained with CLIP.

    The state is kept beside the output after every batch: the same command goes on after a stop, to the same result.

    **Example:** asyrp directions learn text -s faces/ --source-text face --target-text "smiling face" -o s.safetensors
    """
    from jobs import learn_text as training

    _one_of("dtype", dtype, ("float32", "bfloat16", "float16"))
    recipe, preset = chosen
    request = training.TextRequest(
        source=source,
        model=model,
        clip=clip,
        output=output,
        recipe=recipe,
        images=images or preset["images"],
        epochs=epochs or preset["epochs"],
        batch_size=batch_size,
        n_inv=n_inv,
        t_boost=t_boost,
        device=device,
        dtype=dtype,
        check=not no_check,
    )
    _print_paths([training.learn_text(request)])


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"--{name} {value}: give {' or '.join(known)}")


def _print_paths(paths: list[Path]) -> None:
    for path in paths:
        out.print(str(path), soft_wrap=True, highlight=False)
