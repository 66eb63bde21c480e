"""The spec of a run: read from a YAML file and flags, checked, and reduced to its identity."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from asyrp.diffusion.moves import SolverName
from asyrp.directions.edits import Edit, parse_edit
from asyrp.errors import UserError
from asyrp.models.precision import Precision
from jobs.spec.augmentation import AugmentationSpec
from jobs.spec.ends import Ends, OneEnd
from jobs.spec.inspection import InspectionSpec
from jobs.spec.mistakes import CHECKED, validated
from jobs.spec.paths import Url, absolute_model, without_credentials
from jobs.spec.process import PRESETS, USUAL, PresetName, Process
from jobs.spec.yaml_lines import read_mapping, read_value
from pipeline.images.codec import Codec, Fit
from pipeline.images.selection import Condition, Selection
from pipeline.images.source import MAX_IMAGE_BYTES
from pipeline.run.names import NAME_FIELDS, check_template
from pipeline.run.stage import SinkName
from pipeline.stages.settings import Execution

LOGGERS = ("wandb", "mlflow")
SHOWN_CHARACTERS = 60
MODEL_HELP = "A short name, hub id, diffusers folder or checkpoint file; folders and files on any fsspec URL."


class EngineSpec(BaseModel):
    """Speed knobs and budgets. They may change from one call to the next: none of them changes a pixel."""

    model_config = CHECKED

    actors: int | None = Field(None, ge=1, description="Ray actors. [default: as many as the GPUs hold, else one]")
    batch_size: int | None = Field(
        None, ge=1, description="Images per network call. [default: as many as suit the GPU; 8 on a CPU]"
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the network runs.")
    gpu_share: float = Field(1, gt=0, le=1, description="The share of a GPU that an actor gets: 0.5 for two on each.")
    execution: Execution = Field("auto", description="Whether the network is compiled. auto: on a GPU.")
    address: str | None = Field(
        None, description="A Ray cluster to join: 'auto' or HOST:PORT. [default: start one here]"
    )
    readers: int = Field(4, ge=1, description="Threads of an actor that read images.")
    writers: int = Field(4, ge=1, description="Threads of an actor that write images.")
    check: bool = Field(True, description="Check on load that the model works: that it predicts the noise.")
    max_failed: float = Field(0.3, ge=0, le=1, description="The run stops when more than this share of images fails.")
    shard_deadline: float = Field(
        600, gt=0, description="Seconds after which a shard counts as hung; 20 times the usual time, if that is more."
    )
    price_per_hour: float | None = Field(None, ge=0, description="What an hour of one device costs, in any currency.")
    log: str | None = Field(None, description="An experiment logger: wandb:PROJECT or mlflow:URI.")

    @field_validator("log")
    @classmethod
    def _log_is_known(cls, name: str | None) -> str | None:
        if name is None:
            return None
        kind, _, argument = name.partition(":")
        if kind not in LOGGERS or not argument:
            raise ValueError("give wandb:PROJECT or mlflow:URI")
        without_credentials(argument)
        return name


class RunSpec(BaseModel):
    """A whole run. All but `output` and `engine` is its identity: the model by its weights, `intervals` by numbers."""

    model_config = CHECKED

    source: Url = Field(
        description="Images: a folder or glob, tars, Parquet, a list of URLs, or the root of a run; on any fsspec URL."
    )
    output: Url = Field(description="Root of the run, on any fsspec URL.")
    limit: int | None = Field(None, ge=1, description="Only the first so many images of the source.")
    sample: float | None = Field(None, gt=0, le=1, description="Only this share of the images, chosen by key.")
    where: list[str] = Field(
        default_factory=list,
        description="Conditions on the source's columns: column=value, or with !=, <, <=, >, >=. All must hold.",
    )
    columns: list[str] = Field(default_factory=list, description="Columns of the source that the manifest carries.")
    image_column: str | None = Field(
        None,
        description="Of a table: the column with its images or their URLs. Of a tar: the ending of its images, such as "
        "jpg or seg.png.",
    )
    max_image_bytes: int = Field(
        MAX_IMAGE_BYTES, ge=1, description="An image file of more bytes is not read: its status is rejected_size."
    )
    model: Annotated[str, AfterValidator(absolute_model)] = Field("avatars", description=MODEL_HELP)
    directions: dict[str, Url] = Field(
        default_factory=dict, description="Direction files, by the names that edits use for them."
    )
    augmentation: AugmentationSpec | None = Field(None, description="In place of edits: the edits that images draw.")
    edits: list[str] = Field(
        default_factory=list,
        validate_default=True,
        description="Edits of every image: direction=strength, or a sum such as 'smile=1,beard=-0.5'.",
    )
    combine: Literal["sum", "official"] = Field(
        "sum",
        description="Edits with several directions. sum: their plain sum. official: as the official code adds them, "
        "over sqrt(k) and with one interval.",
    )
    preset: PresetName | None = Field(
        None,
        description="Solver and steps together. default: dpmpp_2m, 20 + 20. fast: dpmpp_2m, 14 + 14. paper: ddim, "
        "40 + 40, as in the papers.",
    )
    solver: SolverName | None = Field(
        None,
        description="dpmpp_2m: second order, edits anchored to the inversion. ddim: the papers' process. [default: "
        "dpmpp_2m; ddim with refine, with n_inv other than n_gen, or with a retry]",
    )
    n_inv: int | None = Field(
        None, ge=2, le=1000, description="Inversion steps. [default: 20 with dpmpp_2m, 40 with ddim]"
    )
    refine: int = Field(
        0,
        ge=0,
        le=10,
        description="Fixed-point iterations per inversion step of ddim. 2 reconstructs better, 0 is as in the papers.",
    )
    n_gen: int | None = Field(None, ge=2, le=1000, description="Generation steps. [default: as n_inv]")
    t_edit: Ends = Field(
        Ends(None),
        description="Last timestep that is edited; 'auto' or 'per-image': as learned intervals say; in YAML also a "
        "mapping of directions to timesteps. [default: the direction's]",
    )
    t_boost: OneEnd | None = Field(
        None,
        description="Timestep below which fresh noise is added; 'auto': as learned intervals say. "
        "[default: the direction's]",
    )
    intervals: Url | None = Field(
        None,
        description="The file that 'intervals learn' wrote, for 'auto' and 'per-image'. "
        "[default: what it learned for this model here]",
    )
    seed: int = Field(0, ge=0, lt=2**63, description="Seed of the boosting noise.")
    stages: Literal["fused", "staged"] = Field("fused", description="fused: one pass. staged: keep the inversions.")
    inversions: Url | None = Field(None, description="Root of a staged run whose inversions are used again.")
    image_size: int | None = Field(None, ge=8, le=4096, description="Pixels a side. [default: the model's]")
    fit: Fit = Field("crop", description="crop: centre-crop and resize. exact: refuse other sizes.")
    codec: Codec = Field("png", description="Format of the edited images.")
    quality: int = Field(95, ge=1, le=100, description="Quality of edited images that are jpeg or webp.")
    sink: SinkName = Field(
        "files", description="Where edited images go: to a file each, or to one tar or Parquet table a shard."
    )
    name: str = Field(
        "{stem}_{edit}_{strength}",
        description=f"Output names, made of {' '.join(f'{{{field}}}' for field in NAME_FIELDS)}.",
    )
    dtype: Literal["auto", Precision] = Field(
        "auto",
        description="Precision of the network. auto: bfloat16 on a GPU, and on processors that are faster in it. tf32: "
        "float32 with the faster products of a GPU.",
    )
    latent_dtype: Literal["float32", "float16"] = Field("float32", description="Precision of latents that are kept.")
    shard_size: int = Field(64, ge=1, le=100_000, description="Images per shard.")
    preview: int = Field(
        8, ge=0, description="Images of the first shard on the contact sheet, which are also reconstructed unedited."
    )
    inspection: InspectionSpec | None = Field(
        None, description="What is measured of the edits, and what must hold of it."
    )
    engine: EngineSpec = EngineSpec()  # type: ignore[call-arg]

    @field_validator("edits")
    @classmethod
    def _edits_parse(cls, texts: list[str], info: ValidationInfo) -> list[str]:
        if texts and info.data.get("augmentation"):
            raise ValueError("an augmentation says which edits are drawn: leave these out")
        if not texts and not info.data.get("augmentation", "refused already"):
            raise PydanticCustomError("missing", "Field required")
        try:
            ids = [parse_edit(text).id for text in texts]
        except UserError as error:
            raise ValueError(str(error)) from error
        if len(set(ids)) < len(ids):
            raise ValueError("the same edit is given twice")
        return texts

    @field_validator("name")
    @classmethod
    def _name_formats(cls, template: str) -> str:
        try:
            check_template(template)
        except UserError as error:
            raise ValueError(str(error)) from error
        return template

    @field_validator("where")
    @classmethod
    def _conditions_parse(cls, texts: list[str]) -> list[str]:
        try:
            for text in texts:
                Condition.parse(text)
        except UserError as error:
            raise ValueError(str(error)) from error
        return texts

    @model_validator(mode="after")
    def _process_belongs_together(self) -> "RunSpec":
        if self.solver == "dpmpp_2m" and self.wants_ddim:
            raise ValueError(f"{self.wants_ddim}: leave it out, or take solver: ddim")
        if self.preset and self.solver and self.solver != PRESETS[self.preset].solver:
            raise ValueError(f"preset {self.preset} is of {PRESETS[self.preset].solver}: give one of the two")
        if self.preset in ("default", "fast") and self.wants_ddim:
            raise ValueError(f"{self.wants_ddim}: leave it out, or leave out preset: {self.preset}")
        return self

    def process(self, recorded: Process | None) -> Process:
        """The process that the spec asks for. What it leaves out is that of a `recorded` run, else the usual one.

        A spec that asks for what only DDIM has, asks for DDIM.
        """
        base = PRESETS[self.preset] if self.preset else recorded or PRESETS["default"]
        solver = self.solver or ("ddim" if self.wants_ddim else base.solver)
        usual = base if base.solver == solver else USUAL[solver]
        if solver == "ddim":
            refine = self.refine if "refine" in self.model_fields_set else usual.refine
            return Process(solver, self.n_inv or usual.n_inv, self.n_gen or usual.n_gen, refine)
        n = self.n_inv or self.n_gen or usual.n_gen
        return Process(solver, n, n)

    @property
    def wants_ddim(self) -> str | None:
        """What in the spec only the solver ddim does, in words; None if there is nothing."""
        if self.refine:
            return "refine is for ddim, whose inversion loses images; an anchored edit loses nothing"
        if self.n_inv and self.n_gen and self.n_inv != self.n_gen:
            return "an anchored edit goes down the steps of its inversion, so n_inv and n_gen must be the same"
        if self.inspection and self.inspection.retry:
            return "inspection.retry is for ddim, whose inversion loses images; an anchored edit loses nothing"
        return None

    def selection(self) -> Selection:
        """The images of the source that the run takes."""
        where = tuple(Condition.parse(text) for text in self.where)
        labels = self.augmentation.label_columns() if self.augmentation else []
        columns = tuple(dict.fromkeys([*self.columns, *labels]))
        return Selection(self.limit, self.sample, where, columns, self.image_column)

    def parsed_edits(self) -> list[Edit]:
        """The edits of every image, or those that images can draw, at strength 1 or -1."""
        return self.augmentation.unit_edits() if self.augmentation else [parse_edit(text) for text in self.edits]

    @property
    def searches(self) -> bool:
        """Whether every image has strengths of its own."""
        return self.inspection is not None and self.inspection.search is not None

    def identity(self) -> dict[str, Any]:
        """The part of the spec that the outputs depend on, as JSON."""
        absent = {name for name in ("inspection", "augmentation") if getattr(self, name) is None}
        if self.max_image_bytes == MAX_IMAGE_BYTES:
            absent.add("max_image_bytes")
        if self.solver == "ddim":  # as before there was a choice
            absent.add("solver")
        return self.model_dump(mode="json", exclude={"output", "engine", "model", "intervals", "preset"} | absent)


def load_spec(config: Path | None, flags: dict[str, Any], settings: list[str]) -> RunSpec:
    """The spec from a YAML file, then flags, then `a.b=c` settings. Later ones override earlier ones.

    Raises:
        UserError: naming the field, what is wrong with it, and the nearest name for an unknown one.
    """
    return validated(RunSpec, _gathered(config, flags, settings), config)


def load_inspection(config: Path | None, flags: dict[str, Any], settings: list[str]) -> InspectionSpec:
    """The `inspection` of a spec alone, loaded as `load_spec` loads a whole spec. Raises UserError as it does."""
    return validated(InspectionSpec, _gathered(config, flags, settings), config)


def _gathered(config: Path | None, flags: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    data = read_mapping(config, "the config", "source: photos/") if config else {}
    for name, value in flags.items():
        if value is not None:
            _put(data, name, value)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write it as name=value, as in --set engine.batch_size=16")
        _put(data, name.strip(), _value(setting, value))
    return data


def load_engine(knobs: dict[str, Any]) -> EngineSpec:
    """The speed knobs of a command that has no spec. Raises UserError as `load_spec` does."""
    return validated(EngineSpec, knobs)


def _value(setting: str, value: str) -> Any:
    """The value of a `--set`."""
    try:
        return read_value(value)
    except UserError as error:
        raise UserError(f"--set {setting[:SHOWN_CHARACTERS]}: {error}") from None


def _put(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {dotted}: '{parent}' has no fields of its own")
    data[leaf] = value
