"""`asyrp directions`: list, show, learn and import."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from asyrp.direction_info import read_info
from asyrp.errors import UserError
from jobs.cli_math import average, combine, compare, preview, project, scale
from jobs.cli_options import (
    Actors,
    Address,
    AsJson,
    BatchSize,
    Device,
    ModelArgument,
    ModelOption,
    NoCheck,
    NSteps,
    Source,
    TBoost,
    TEdit,
    Work,
    direction_file,
    engine_of,
)
from jobs.display import MODEL_HELP, out, print_facts
from pipeline.model_source import fetch, find_model

CLIP_HELP = "avatars (bundled), MODEL/PRETRAINED of open_clip, or a folder."

directions_app = typer.Typer(help="Directions in h-space: list, show, learn and import them.", no_args_is_help=True)
learn_app = typer.Typer(help="Ways to find a direction.", no_args_is_help=True)
directions_app.add_typer(learn_app, name="learn")

for command in (project, combine, scale, average, compare, preview):
    directions_app.command()(command)


@directions_app.command("list")
def directions_list(model: ModelArgument = "avatars", as_json: AsJson = False) -> None:
    """The directions that come with a model."""
    infos = [read_info(path) for path in find_model(model).direction_files().values()]
    if as_json:
        typer.echo(json.dumps([asdict(info) for info in infos]))
        return
    table = Table("name", "form", "t_edit", "t_boost", "strength 1 is")
    for info in infos:
        table.add_row(info.name, info.form, str(info.t_edit), str(info.t_boost), info.unit)
    out.print(table)


@directions_app.command("show")
def directions_show(
    direction: Annotated[str, typer.Argument(help="A direction file, or the name of one that comes with the model.")],
    model: Annotated[str, typer.Option("--model", help="The model whose directions are meant.")] = "avatars",
    as_json: AsJson = False,
) -> None:
    """What a direction file says of its direction."""
    path = direction_file(direction, model)
    print_facts({"file": str(path), **asdict(read_info(path))}, as_json)


@directions_app.command("import")
def directions_import(
    file: Annotated[str, typer.Argument(help="A .pth of the official code; any fsspec URL.")],
    model: Annotated[str, typer.Option("--model", help=f"The model that it was trained on. {MODEL_HELP}")],
    name: Annotated[str, typer.Option("--name", help="The direction's name, as edits will use it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The direction file. [default: NAME.safetensors]")
    ] = None,
    n_steps: Annotated[
        int | None,
        typer.Option(
            "--n-steps", min=2, max=1000, help="Generation steps it was trained at. [default: ngen of its name]"
        ),
    ] = None,
    data_set: Annotated[
        str | None,
        typer.Option(
            "--data-set", help="Whose intervals: celeba, church, bedroom, afhq or metface. [default: of its name]"
        ),
    ] = None,
    text_cosine: Annotated[
        float | None,
        typer.Option("--text-cosine", help="Cosine of its two texts in CLIP, for t_edit. [default: not used]"),
    ] = None,
    clip: Annotated[
        str | None,
        typer.Option("--clip", help=f"Compute that cosine with this CLIP; the papers': ViT-B-16/openai. {CLIP_HELP}"),
    ] = None,
    texts: Annotated[
        tuple[str, str] | None, typer.Option("--texts", help="Source and target text. [default: the release's]")
    ] = None,
    t_edit: Annotated[int | None, typer.Option("--t-edit", min=0, max=999, help="[default: of the data set]")] = None,
    t_boost: Annotated[int | None, typer.Option("--t-boost", min=0, max=999, help="[default: of the data set]")] = None,
    block: Annotated[str | None, typer.Option("--block", help="Which block, of a file with several.")] = None,
) -> None:
    """Make a direction file of a delta block, or of tensors per timestep, of the official code.

    The texts and intervals that such files lack come from the release's file names, dictionary and LPIPS curves.

    **Example:** asyrp directions import man_LC_CelebA_HQ_t999_ninv40_ngen40_0.pth --model celebahq-ddpm --name man
    """
    from asyrp.directions import save
    from asyrp.edits import parse_edit
    from asyrp.released import Facts, facts_of_name, import_direction

    if parse_edit(name).name != name:
        raise UserError(
            f"--name {name}: a direction's name has letters, digits, '_', '-' and '.', and begins with a letter"
        )
    released = fetch(file)
    if clip and text_cosine is None:
        text_cosine = _text_cosine(clip, texts or facts_of_name(released.name).texts)
    stated = Facts(n_steps, data_set, texts, text_cosine, t_edit, t_boost)
    direction = import_direction(released, find_model(model), name, stated, block)
    path = output or Path(f"{name}.safetensors")
    save(direction, path)
    print_facts({"file": str(path), **asdict(direction.info)}, as_json=False)
    if direction.info.t_edit is None:
        out.print("its data set is not known, so it suggests no interval: edit with --t-edit (400 to 700 is usual)")


def _text_cosine(clip: str, texts: tuple[str, str] | None) -> float:
    from asyrp.clip import Clip

    if texts is None:
        raise UserError("--clip: the name of the file does not say its texts, give them with --texts SOURCE TARGET")
    return Clip(clip).cosine(*texts)


@learn_app.command("labels")
def learn_labels(
    source: Source,
    labels: Annotated[
        str, typer.Option(help="CSV or Parquet: 'key' (path below the source) and label columns; or 'folders'.")
    ],
    name: Annotated[
        list[str], typer.Option("--name", help="The label (or folder) to learn. Repeat for more than one.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file; a folder for several names.")],
    model: ModelOption = "avatars",
    n_steps: NSteps = 40,
    t_edit: TEdit = 400,
    t_boost: TBoost = None,
    scale: Annotated[float, typer.Option("--scale", help="Strength 1, in changes of h per unit of the label.")] = 1.0,
    work: Work = None,
    actors: Actors = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    address: Address = None,
    no_check: NoCheck = False,
) -> None:
    """Directions from labels: h regressed on all label columns at once, per timestep.

    Every numeric column takes part, so that a direction holds the other labels fixed; with a single column it is
    the difference of the class means. With --labels folders an image's labels are the folders it is in.

    **Example:** asyrp directions learn labels -s faces/ --labels faces.csv --name smile -o smile.safetensors
    """
    from jobs.learn import LearnRequest, learn_labels

    engine = engine_of(actors, batch_size, device, address, no_check)
    request = LearnRequest(source, model, output, n_steps, t_edit, t_boost, scale, work=work, engine=engine)
    _print_paths(learn_labels(request, labels, tuple(name)))


@learn_app.command("pca")
def learn_pca(
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for pc01.safetensors, pc02.safetensors, ...")],
    components: Annotated[int, typer.Option("--components", "-k", min=1, max=99, help="How many to keep.")] = 10,
    joint: Annotated[bool, typer.Option("--joint", help="One analysis over all timesteps, not one for each.")] = False,
    rank: Annotated[int, typer.Option("--rank", min=1, help="Rows of the sketch: more is more exact.")] = 64,
    timesteps: Annotated[
        int, typer.Option("--timesteps", min=1, help="How many of the edited timesteps are read.")
    ] = 10,
    model: ModelOption = "avatars",
    n_steps: NSteps = 40,
    t_edit: TEdit = 400,
    t_boost: TBoost = None,
    scale: Annotated[float, typer.Option("--scale", help="Strength 1, in standard deviations.")] = 1.0,
    work: Work = None,
    actors: Actors = None,
    batch_size: BatchSize = None,
    device: Device = "auto",
    address: Address = None,
    no_check: NoCheck = False,
) -> None:
    """Directions without labels: the principal components of h over many images.

    Images are streamed: memory depends on --rank and --timesteps, not on their number.

    **Example:** asyrp directions learn pca -s faces/ -k 10 -o components/
    """
    from jobs.learn import LearnRequest, learn_pca

    engine = engine_of(actors, batch_size, device, address, no_check)
    request = LearnRequest(source, model, output, n_steps, t_edit, t_boost, scale, work=work, engine=engine)
    _print_paths(learn_pca(request, components, joint, max(rank, components), timesteps))


@learn_app.command("text")
def learn_text(
    source: Source,
    source_text: Annotated[str, typer.Option("--source-text", help="What the images show: 'person'.")],
    target_text: Annotated[str, typer.Option("--target-text", help="What they are to show: 'person with glasses'.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file.")],
    model: ModelOption = "avatars",
    clip: Annotated[
        str | None,
        typer.Option("--clip", help=f"{CLIP_HELP} [default: ViT-B-16/openai; avatars for the bundled model]"),
    ] = None,
    preset: Annotated[
        str, typer.Option("--preset", help="paper: section 5. released: the script of its code.")
    ] = "paper",
    t_edit: Annotated[int, typer.Option("--t-edit", min=0, max=999, help="Last edited timestep.")] = 500,
    t_boost: TBoost = None,
    images: Annotated[int | None, typer.Option("--images", min=1, help="How many. [default: the preset's]")] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over them. [default: the preset's]")
    ] = None,
    n_steps: Annotated[
        int | None, typer.Option("--n-steps", min=2, max=1000, help="Generation steps. [default: the preset's]")
    ] = None,
    n_inv: Annotated[int, typer.Option("--n-inv", min=2, max=1000, help="Inversion steps.")] = 40,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per update.")] = 4,
    learning_rate: Annotated[float, typer.Option("--lr", help="Learning rate.")] = 0.5,
    optimizer: Annotated[str, typer.Option("--optimizer", help="sgd (the papers) or adam.")] = "sgd",
    clip_weight: Annotated[float, typer.Option("--clip-weight", help="Of the directional CLIP loss.")] = 1.0,
    l1_weight: Annotated[float, typer.Option("--l1-weight", help="Of the L1 loss, times the texts' cosine.")] = 3.0,
    seed: Annotated[int, typer.Option("--seed", help="Of the block's first weights and the order of images.")] = 0,
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    dtype: Annotated[str, typer.Option("--dtype", help="Of the U-Net: float32, bfloat16 or float16.")] = "float32",
    no_check: NoCheck = False,
) -> None:
    """A direction from a pair of texts: the implicit function f_t of the paper, trained with CLIP.

    The state is kept beside the output after every batch: the same command goes on after a stop, to the same result.

    **Example:** asyrp directions learn text -s faces/ --source-text face --target-text "smiling face" -o s.safetensors
    """
    from asyrp.text_training import TextRecipe
    from jobs import learn_text as training

    for name, value, known in (
        ("preset", preset, tuple(training.PRESETS)),
        ("optimizer", optimizer, ("sgd", "adam")),
        ("dtype", dtype, ("float32", "bfloat16", "float16")),
    ):
        if value not in known:
            raise UserError(f"--{name} {value}: give {' or '.join(known)}")
    chosen = training.PRESETS[preset]
    recipe = TextRecipe(
        source_text=source_text,
        target_text=target_text,
        t_edit=t_edit,
        n_steps=n_steps or chosen["n_steps"],
        clip_weight=clip_weight,
        l1_weight=l1_weight,
        learning_rate=learning_rate,
        optimizer=optimizer,  # type: ignore[arg-type]
        source_term=chosen["source_term"],
        decay_epochs=chosen["decay_epochs"],
        seed=seed,
    )
    request = training.TextRequest(
        source=source,
        model=model,
        clip=clip or ("avatars" if model == "avatars" else "ViT-B-16/openai"),
        name=output.stem,
        output=output,
        recipe=recipe,
        images=images or chosen["images"],
        epochs=epochs or chosen["epochs"],
        batch_size=batch_size,
        n_inv=n_inv,
        t_boost=t_boost,
        device=device,
        dtype=dtype,
        check=not no_check,
    )
    _print_paths([training.learn_text(request)])


def _print_paths(paths: list[Path]) -> None:
    for path in paths:
        out.print(str(path), soft_wrap=True, highlight=False)
