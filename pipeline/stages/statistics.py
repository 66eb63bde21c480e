"""Statistics of a data set: the stage that collects them, and what its shards committed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load as tensors_of
from torch import Tensor

from pipeline.run.arrays import STATISTICS
from pipeline.run.commit import committed, read_commit, read_committed
from pipeline.run.stage import Reducer, Stage, Variant
from pipeline.stages.editor import load_recorded_model
from pipeline.stages.readings import Loaded, Reading
from pipeline.storage.store import Store

STAGE, READ, NEW_REDUCER = "statistics", "read", "new_reducer"


@dataclass(frozen=True, kw_only=True)
class CollectSettings:
    """What collected statistics depend on. Picklable: it travels to the actors, which load the rest."""

    model: str
    model_digest: str
    reading: Reading
    make_reducer: Callable[[], Reducer]
    check: bool
    device: str = "cpu"


def statistics_functions(settings: CollectSettings) -> Mapping[str, Callable[..., Any]]:
    """The functions of the stage: what reads a batch, and what makes a shard's reducer."""

    def load() -> Loaded:
        return Loaded(
            *load_recorded_model(settings.model, settings.model_digest, device=settings.device, check=settings.check)
        )

    return {READ: settings.reading.function(load, settings.device), NEW_REDUCER: settings.make_reducer}


def statistics_stage(settings: CollectSettings) -> Stage:
    """The stage whose shards hold what the reducer makes of what is read of their images."""
    return Stage(
        name=STAGE,
        function=READ,
        writes="statistics",
        variants=(Variant(),),
        columns={"model_digest": settings.model_digest},
        new_reducer=NEW_REDUCER,
    )


class Statistics:
    """What each committed shard added up to, read one at a time, in the order of the shards: the same from however many
    actors."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for shard in sorted(committed(self.store, STAGE)):
            commit = read_commit(self.store, STAGE, shard)
            [file] = [entry.path for entry in commit.files if entry.path.endswith(STATISTICS)]
            yield tensors_of(read_committed(self.store, commit, file))
