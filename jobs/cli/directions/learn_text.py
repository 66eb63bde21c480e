"""`asyrp directions learn text`: the options of a training, as `jobs.learn.text` takes them."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.cli.options import ClipOption, ModelOption, NoCheck, Source, TBoost, one_of, print_paths, takes

if TYPE_CHECKING:  # torch loads only when a command needs it
    from asyrp.learning.text import TextRecipe
    from jobs.learn.text import Preset


@dataclass(frozen=True)
class RecipeOptions:
    """The pair of texts, and how a direction is trained on it. The preset says what options do not."""

    source_text: Annotated[str, typer.Option(help="What the images show: 'person without glasses'.")]
    target_text: Annotated[str, typer.Option(help="What they are to show: 'person with glasses'.")]
    model: ModelOption = "avatars"
    preset: Annotated[
        str | None,
        typer.Option(
            help="The values of options that are not given. paper: section 5. released: the script of its code. "
            "avatars: the best ones for the bundled model. [default: paper; avatars for the bundled model]",
        ),
    ] = None
    t_edit: Annotated[int | None, typer.Option(min=0, max=999, help="Last edited timestep.")] = None
    t_start: Annotated[int | None, typer.Option(min=0, max=999, help="First edited timestep.")] = None
    source_term: Annotated[
        str | None, typer.Option(help="Compare with P_t of the source branch (paper) or x_0 (released).")
    ] = None
    n_steps: Annotated[int | None, typer.Option(min=2, max=1000, help="Generation steps.")] = None
    learning_rate: Annotated[float | None, typer.Option("--lr", help="Learning rate.")] = None
    optimizer: Annotated[str | None, typer.Option(help="sgd (the papers) or adam.")] = None
    clip_weight: Annotated[float | None, typer.Option(help="Weight of the directional CLIP loss.")] = None
    l1_weight: Annotated[float | None, typer.Option(help="Weight of the L1 loss.")] = None
    l1_by_cosine: Annotated[
        bool | None, typer.Option("--l1-by-cosine/--no-l1-by-cosine", help="Multiply the L1 loss by the texts' cosine.")
    ] = None
    initial_scale: Annotated[
        float | None, typer.Option(min=0.001, max=1, help="Initial scale of f_t's last layer: 0.1 begins near no edit.")
    ] = None
    cosine_decay: Annotated[
        bool | None,
        typer.Option("--cosine-decay/--no-cosine-decay", help="Let the learning rate fall to 0 over the training."),
    ] = None
    template: Annotated[
        list[str] | None,
        typer.Option(help="A prompt with {} for the text. Repeat. [default: the 80 of CLIP's authors]"),
    ] = None
    seed: Annotated[int, typer.Option(help="Seed of the first weights and of the order of images.")] = 0

    def settled(self) -> "tuple[TextRecipe, Preset]":
        """The recipe, and the preset that it is based on. Raises UserError for a word that is not known."""
        from asyrp.learning.text import TextRecipe
        from jobs.learn.text import PRESETS, default_preset

        name = self.preset or default_preset(self.model)
        one_of("preset", name, tuple(PRESETS))
        one_of("optimizer", self.optimizer or "sgd", ("sgd", "adam"))
        one_of("source-term", self.source_term or "paper", ("paper", "released"))
        known = {field.name for field in fields(TextRecipe)}
        given = {name: value for name, value in vars(self).items() if name in known and value is not None}
        return TextRecipe(**PRESETS[name].recipe | given | {"templates": tuple(self.template or ())}), PRESETS[name]


@dataclass(frozen=True)
class TrainingOptions:
    """What a training reads, how fast it goes and what it shows. They do not belong to the recipe."""

    clip: ClipOption = None
    images: Annotated[int | None, typer.Option(min=1, help="Number of images.")] = None
    epochs: Annotated[int | None, typer.Option(min=1, help="Passes over the images.")] = None
    batch_size: Annotated[int, typer.Option(min=1, help="Images per update.")] = 4
    lacking: Annotated[
        bool | None,
        typer.Option(
            "--lacking/--no-lacking",
            help="Only images that CLIP puts nearer to the source text than to the target text.",
        ),
    ] = None
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Set strength 1 to what puts the target on most images, not to what was trained.",
        ),
    ] = True
    n_inv: Annotated[int, typer.Option(min=2, max=1000, help="Inversion steps.")] = 40
    t_boost: TBoost = None
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu"
    dtype: Annotated[str, typer.Option(help="Precision of the U-Net: float32, bfloat16 or float16.")] = "float32"
    preview_every: Annotated[int, typer.Option(min=0, help="Draw a preview every so many batches; 0: never.")] = 25


@takes(RecipeOptions, TrainingOptions)
def learn_text(
    asked: RecipeOptions,
    training: TrainingOptions,
    source: Source,
    output: Annotated[Path, typer.Option("--output", "-o", help="The direction file; its stem is the name.")],
    no_check: NoCheck = False,
) -> None:
    """Learn a direction from a pair of texts: the implicit function f_t of the paper, trained with CLIP.

    The state is kept beside the output after every batch. After a stop the same command goes on, to the same result.

    **Example:** asyrp directions learn text -s faces/ --source-text face --target-text "smiling face" -o s.safetensors
    """
    from jobs.learn import text

    one_of("dtype", training.dtype, ("float32", "bfloat16", "float16"))
    recipe, preset = asked.settled()
    settled = {
        "images": training.images or preset.images,
        "epochs": training.epochs or preset.epochs,
        "lacking": preset.lacking if training.lacking is None else training.lacking,
    }
    options = {**vars(training), **settled, "source": source, "output": output, "check": not no_check}
    print_paths([text.learn_text(text.TextRequest(model=asked.model, recipe=recipe, **options))])
