"""Statistics of a data set: the stage that collects them, and what its shards committed."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safetensors.torch import load
from torch import Tensor

from asyrp.errors import UserError
from asyrp.models.load import load_model
from pipeline.run.arrays import STATISTICS
from pipeline.run.commit import committed, read_commit
from pipeline.run.stage import Reducer, Stage, Variant
from pipeline.stages.functions import self_check
from pipeline.stages.models import fetch_model
from pipeline.stages.readings import Loaded, Reading
from pipeline.storage.store import Store

STAGE, READ, NEW_REDUCER = "statistics", "read", "new_reducer"


@dataclass(frozen=True)
class CollectSettings:
    """What the sums depend on. Picklable: it travels to the actors, which load the rest."""

    model: str
    model_digest: str
    reading: Reading
    make_reducer: Callable[[], Reducer]
    check: bool
    device: str = "cpu"

    def __call__(self) -> Mapping[str, Callable[..., Any]]:
        """Load what the reading needs; the functions of the stage."""
        return {READ: self.reading.function(self._load, self.device), NEW_REDUCER: self.make_reducer}

    def _load(self) -> Loaded:
        folder = fetch_model(self.model)
        if folder.digest != self.model_digest:
            raise UserError(f"model {self.model} has other weights here ({folder.unet}) than where the run began")
        model = load_model(folder, self.device)
        if self.check:
            self_check(model, folder).refuse_a_failure(self.model)
        return Loaded(folder, model)


def statistics_stage(settings: CollectSettings) -> Stage:
    """The stage whose shards hold what the reducer makes of what is read of their images."""
    columns = {"model_digest": settings.model_digest}
    return Stage(STAGE, READ, None, "statistics", (Variant(),), columns, new_reducer=NEW_REDUCER)


class Statistics:
    """What each committed shard added up to, read one at a time, in the order of the shards: the same from however many
    actors."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for shard in sorted(committed(self.store, STAGE)):
            commit = read_commit(self.store, STAGE, shard)
            [file] = [entry.path for entry in commit.files if entry.path.endswith(STATISTICS)]
            yield load(self.store.read(file))
