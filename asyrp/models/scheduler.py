"""Reads scheduler_config.json: the noise levels that a net was trained on, and what it predicts.

A field is honoured, or it only says how a sampler steps between levels (`STEPPING`), or the config is refused.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from asyrp.diffusion.prediction import Prediction
from asyrp.errors import UserError
from asyrp.models.config import read_config

if TYPE_CHECKING:  # a driver reads the config without torch
    from asyrp.diffusion.schedule import NoiseSchedule

FILE = "scheduler_config.json"

CLASSES = frozenset(
    f"{name}Scheduler"
    for name in (
        "DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "LMSDiscrete", "EulerDiscrete",
        "EulerAncestralDiscrete", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep",
        "DEISMultistep", "SASolver", "UniPCMultistep", "RePaint",
    )
)  # fmt: skip
"""The schedulers of diffusers that have DDPM's levels and its defaults."""

STEPPING = frozenset((
    "algorithm_type", "clip_sample", "clip_sample_range", "corrector_order", "disable_corrector",
    "dynamic_thresholding_ratio", "eta", "euler_at_final", "final_sigmas_type", "flow_shift", "interpolation_type",
    "lambda_min_clipped", "lower_order_final", "predict_x0", "predictor_order", "sample_max_value", "set_alpha_to_one",
    "sigma_max", "sigma_min", "skip_prk_steps", "solver_order", "solver_p", "solver_type", "steps_offset", "tau_func",
    "time_shift_type", "timestep_spacing", "use_beta_sigmas", "use_exponential_sigmas", "use_karras_sigmas",
    "use_lu_lambdas", "variance_type",
))  # fmt: skip
"""Fields that say how a sampler steps. They change no level, and the process of the papers has steps of its own."""


Beta = Annotated[float, Field(gt=0, lt=1)]


class SchedulerConfig(BaseModel):
    """The fields that change what a level means, with the defaults of diffusers.

    A field of one value would change the process, and only that value can be honoured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    num_train_timesteps: int = Field(1000, ge=2, le=100_000)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"] = "linear"
    beta_start: Beta = 1e-4
    beta_end: Beta = 0.02
    trained_betas: list[Beta] | None = None
    rescale_betas_zero_snr: bool = False
    prediction_type: Prediction = "epsilon"
    thresholding: Literal[False] = False
    use_flow_sigmas: Literal[False] = False
    use_dynamic_shifting: Literal[False] = False
    shift_terminal: None = None
    timestep_type: Literal["discrete"] = "discrete"

    @property
    def t_0(self) -> int:
        """The last timestep."""
        return self.num_train_timesteps - 1

    @property
    def title(self) -> str:
        """The schedule in words."""
        kind = self.beta_schedule if self.trained_betas is None else "trained betas"
        end = ", zero terminal SNR" if self.rescale_betas_zero_snr else ""
        return f"{kind}, {self.num_train_timesteps} steps{end}"

    @model_validator(mode="after")
    def _fields_fit(self) -> "SchedulerConfig":
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(f"trained_betas are {len(self.trained_betas)}, num_train_timesteps is another number")
        if self.rescale_betas_zero_snr and self.prediction_type == "epsilon":
            raise ValueError(
                "rescale_betas_zero_snr needs a net that predicts v or x_0: at its last level the noise says nothing "
                "of the image"
            )
        return self

    def schedule(self) -> "NoiseSchedule":
        """The levels."""
        schedule = self._plain_schedule()
        return schedule.with_zero_terminal_snr() if self.rescale_betas_zero_snr else schedule

    def _plain_schedule(self) -> "NoiseSchedule":
        import torch

        from asyrp.diffusion.schedule import NoiseSchedule

        steps, ends = self.num_train_timesteps, (self.beta_start, self.beta_end)
        if self.trained_betas is not None:
            return NoiseSchedule.from_betas(torch.tensor(self.trained_betas, dtype=torch.float64))
        if self.beta_schedule == "linear":
            return NoiseSchedule.linear(*ends, steps)
        if self.beta_schedule == "scaled_linear":
            return NoiseSchedule.scaled_linear(*ends, steps)
        if self.beta_schedule == "sigmoid":
            return NoiseSchedule.sigmoid(*ends, steps)
        return NoiseSchedule.cosine(steps)


def read_scheduler(folder: Path | None) -> SchedulerConfig:
    """The scheduler config in a folder. Without a folder it is that of DDPM.

    Raises:
        UserError: with the name of the field, if asyrp does not know it or cannot honour its value.
    """
    if folder is None:
        return SchedulerConfig.model_validate({})
    path = folder / FILE
    fields = read_config(path)
    kind = fields.get("_class_name", "DDPMScheduler")
    if not isinstance(kind, str) or kind not in CLASSES:
        raise UserError(
            f"{path} is of a {str(kind)[:80]}: asyrp knows the schedulers with DDPM's levels, such as DDPMScheduler"
        )
    ours = {name: value for name, value in fields.items() if not name.startswith("_") and name not in STEPPING}
    try:
        return SchedulerConfig.model_validate(ours)
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error.errors()[0])}") from None


def _sentence(error: ErrorDetails) -> str:
    if not error["loc"]:  # of fields that do not go together
        return error["msg"].removeprefix("Value error, ")
    name = ".".join(map(str, error["loc"]))
    if error["type"] == "extra_forbidden":
        return f"asyrp does not know the field {name}, and it may change the levels"
    return f"{name} is {str(error['input'])[:80]}, which asyrp cannot honour: {error['msg']}"
