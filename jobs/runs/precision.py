"""Chooses the precision of a new run, where its spec leaves that open."""

import logging
from typing import Any, Literal, get_args

from asyrp.models.precision import Precision, best_precision
from jobs.spec.run import EngineSpec, RunSpec

log = logging.getLogger(__name__)


def choose_precision(spec: RunSpec, recorded: dict[str, Any]) -> Precision:
    """The precision that a spec asks for; else that of a `recorded` spec; else the one that suits the device."""
    if spec.dtype != "auto":
        return spec.dtype
    for precision in get_args(Precision):
        if recorded.get("dtype") == precision:
            return precision
    choice = best_precision(device_of(spec.engine))
    log.info("dtype is %s: %s", *choice)
    return choice.precision


def device_of(knobs: EngineSpec) -> Literal["cpu", "cuda"]:
    """Where the net of a run will be. Joins the cluster, if there is one, to see whether it has a GPU."""
    if knobs.device != "auto":
        return knobs.device
    if knobs.address is not None:
        from pipeline.engine.cluster import has_gpu, ray_session

        with ray_session(knobs.address):
            return "cuda" if has_gpu() else "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
