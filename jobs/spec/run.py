"""The spec of a run: one YAML file (or the flags that override it), checked, and what of it is identity."""

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from asyrp.directions.edits import Edit, parse_edit
from asyrp.errors import UserError
from jobs.spec.augmentation import AugmentationSpec
from jobs.spec.ends import Ends, OneEnd
from jobs.spec.inspection import InspectionSpec
from jobs.spec.mistakes import validated
from jobs.spec.paths import Url, absolute_model, without_credentials
from pipeline.images.codec import Codec, Fit
from pipeline.images.selection import Condition, Selection
from pipeline.run.stage import SinkName

LOGGERS = ("wandb", "mlflow")
NAME_FIELDS = ("key", "stem", "name", "parent", "edit", "strength")


class EngineSpec(BaseModel):
    """Speed knobs and budgets: free to change from one call to the next, none of them changes a pixel."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    actors: int | None = Field(None, ge=1, description="Ray actors; default: one per GPU, else one on the CPUs")
    batch_size: int | None = Field(None, ge=1, description="images per network call; default: 16 on GPU, 8 on CPU")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    address: str | None = Field(None, description="an existing Ray cluster ('auto' or HOST:PORT)")
    readers: int = Field(4, ge=1)
    writers: int = Field(4, ge=1)
    check: bool = Field(True, description="check on load that the model predicts the noise")
    max_failed: float = Field(0.3, ge=0, le=1, description="stop when more than this share of images fails")
    shard_deadline: float = Field(
        600, gt=0, description="seconds after which a shard counts as hung; 20 times the usual, if that is more"
    )
    price_per_hour: float | None = Field(None, ge=0, description="what an hour of one device costs, in any currency")

    log: str | None = Field(None, description="an experiment logger: wandb:PROJECT or mlflow:URI")

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
    """A whole run. All but `output` and `engine` is identity (of the model its weights, of `intervals` the numbers)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Url
    output: Url
    limit: int | None = Field(None, ge=1, description="the first so many images of the source")
    sample: float | None = Field(None, gt=0, le=1, description="a share of the images, chosen by key")
    where: list[str] = Field(default_factory=list, description="conditions on the source's columns, all to be met")
    columns: list[str] = Field(default_factory=list, description="columns of the source that the manifest carries")
    image_column: str | None = Field(None, description="of a table: where its images or URLs are")
    model: Annotated[str, AfterValidator(absolute_model)] = "avatars"
    directions: dict[str, Url] = Field(default_factory=dict, description="direction files by the name edits use")
    augmentation: AugmentationSpec | None = Field(None, description="in place of edits: those that each image draws")
    edits: list[str] = Field(default_factory=list, validate_default=True)
    combine: Literal["sum", "official"] = Field(
        "sum", description="several directions in an edit: their plain sum, or as the official code does it"
    )
    n_inv: int = Field(40, ge=2, le=1000)
    refine: int = Field(0, ge=0, le=10, description="fixed-point iterations per inversion step; 0 as in the papers")
    n_gen: int = Field(40, ge=2, le=1000)
    t_edit: Ends = Field(
        Ends(None),
        description="where edits end; 'auto' or 'per-image': as learned intervals say; a mapping: of each direction",
    )
    t_boost: OneEnd | None = None
    intervals: Url | None = Field(None, description="for 'auto': their file; default: those learned for the model here")
    seed: int = Field(0, ge=0, lt=2**63)
    stages: Literal["fused", "staged"] = "fused"
    inversions: Url | None = None
    image_size: int | None = Field(None, ge=8, le=4096)
    fit: Fit = "crop"
    codec: Codec = "png"
    quality: int = Field(95, ge=1, le=100)
    sink: SinkName = Field("files", description="edited images as files, or as one tar or Parquet file a shard")
    name: str = "{stem}_{edit}_{strength}"
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    latent_dtype: Literal["float32", "float16"] = "float32"
    shard_size: int = Field(64, ge=1, le=100_000)
    preview: int = Field(8, ge=0, description="images of the first shard to reconstruct without an edit")
    inspection: InspectionSpec | None = Field(
        None, description="what is measured of the edits, and what must hold of it"
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
            template.format(**dict.fromkeys(NAME_FIELDS, ""))
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            known = ", ".join(f"{{{field}}}" for field in NAME_FIELDS)
            raise ValueError(f"'{template}' is no output name: {error} is not among {known}") from error
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

    def selection(self) -> Selection:
        """Which images of the source are meant."""
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
        """What the outputs depend on, as far as the spec says it."""
        absent = {name for name in ("inspection", "augmentation") if getattr(self, name) is None}
        return self.model_dump(mode="json", exclude={"output", "engine", "model", "intervals"} | absent)


def load_spec(config: Path | None, flags: dict[str, Any], settings: list[str]) -> RunSpec:
    """The spec from a YAML file, then flags, then `a.b=c` settings; the later wins.

    Raises:
        UserError: naming the field, what is wrong with it, and the nearest name for an unknown one.
    """
    return validated(RunSpec, _gathered(config, flags, settings), config)


def load_inspection(config: Path | None, flags: dict[str, Any], settings: list[str]) -> InspectionSpec:
    """What is to be measured, as `load_spec`; the fields are those of a spec's `inspection`. Raises as it does."""
    return validated(InspectionSpec, _gathered(config, flags, settings), config)


def _gathered(config: Path | None, flags: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    data = _read_yaml(config) if config else {}
    for name, value in flags.items():
        if value is not None:
            _put(data, name, value)
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UserError(f"--set {setting}: write it as name=value, as in --set engine.batch_size=16")
        _put(data, name.strip(), yaml.safe_load(value))
    return data


def load_engine(knobs: dict[str, Any]) -> EngineSpec:
    """The speed knobs of a command that has no spec. Raises UserError as `load_spec` does."""
    return validated(EngineSpec, knobs)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise UserError(f"the config {path} is not YAML: {error}") from error
    if not isinstance(data, dict):
        raise UserError(f"the config {path} must be a mapping of names to values, such as 'source: photos/'")
    return data


def _put(data: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    for parent in parents:
        data = data.setdefault(parent, {})
        if not isinstance(data, dict):
            raise UserError(f"--set {dotted}: '{parent}' has no fields of its own")
    data[leaf] = value
