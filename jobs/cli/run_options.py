"""The options that `asyrp run` and `asyrp plan` share, and the spec that they make."""

from pathlib import Path
from typing import Annotated, Any

import typer

from asyrp.directions.info import read_info
from asyrp.errors import UserError
from jobs.cli.fields import Flag, from_fields
from jobs.cli.options import ENGINE, Settings, complete_direction, complete_model, takes
from jobs.spec.run import RunSpec, load_spec


def _named_files(pairs: list[str]) -> dict[str, str]:
    files = {}
    for pair in pairs:
        name, equals, path = pair.partition("=")
        if not equals:
            name, path = read_info(Path(pair)).name, pair
        if not name or not path:
            raise UserError(f"--direction {pair}: give NAME=FILE, or a FILE that says its own name")
        files[name] = path
    return files


FLAGS = (
    Flag("source", short="-s"),
    Flag("output", short="-o"),
    *map(Flag, ("limit", "sample", "where", "image_column")),
    Flag("columns", "column"),
    Flag("model", complete=complete_model),
    Flag("edits", "edit", "-e", complete=complete_direction),
    Flag("directions", "direction", metavar="NAME=FILE", read=_named_files),
    *map(Flag, ("combine", "preset", "solver", "n_inv", "refine", "n_gen", "t_edit", "t_boost", "intervals", "seed")),
    *map(Flag, ("stages", "inversions", "image_size", "fit", "codec", "sink", "name", "shard_size", "preview")),
    Flag("inspection.metrics", "metric"),
    Flag("inspection.gates", "gate"),
    Flag("inspection.search", metavar="0.5,0.75,1", read=lambda text: text.split(",")),
    *map(Flag, ("dtype", "engine.execution")),
    *(Flag(f"engine.{field}") for field in (*ENGINE, "price_per_hour", "log")),
)
"""The options of a run, in the order of its help. A field that is a plain option is one more name in a list."""


@takes(from_fields(RunSpec, *FLAGS))
def spec_from_flags(
    flags: dict[str, Any],
    config: Annotated[Path | None, typer.Option("--config", "-c", help="A YAML spec; flags override it.")] = None,
    set_: Settings = None,
) -> RunSpec:
    """The spec that the options describe."""
    return load_spec(config, flags, set_ or [])
