"""`asyrp cluster`: cluster files."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from jobs.cli_options import AsJson
from jobs.cluster import Cluster, NodeType, check_cluster
from jobs.display import console, out

cluster_app = typer.Typer(help="Cluster files for `ray up`.", no_args_is_help=True)


@cluster_app.command("check")
def cluster_check(
    file: Annotated[Path, typer.Argument(help="A cluster file, such as ray_cluster.yaml.")],
    as_json: AsJson = False,
) -> None:
    """Is a cluster file one that `ray up` accepts? Offline: no cloud account and no credentials are needed.

    **Example:** asyrp cluster check ray_cluster.yaml
    """
    cluster = check_cluster(file)
    if as_json:
        typer.echo(json.dumps(cluster.as_json()))
        return
    out.print(_table(cluster))
    for note in cluster.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False, markup=False)


def _table(cluster: Cluster) -> Table:
    title = f"{cluster.name} on {cluster.provider}, at most {cluster.max_workers} workers"
    table = Table("node type", "instance", "resources", "workers", "spot", title=escape(title))
    for node_type in cluster.node_types:
        resources = ", ".join(f"{count} {name}" for name, count in node_type.resources.items())
        spot = "yes" if node_type.spot else "no"
        name, instance = escape(node_type.name), escape(node_type.instance or "-")
        table.add_row(name, instance, resources or "counted by Ray", _workers(node_type), spot)
    return table


def _workers(node_type: NodeType) -> str:
    low, high = node_type.min_workers, node_type.max_workers
    workers = f"{low} to {high}" if low < high else str(high)
    if not node_type.head:
        return workers
    return f"head and {workers}" if high else "head"
