"""`asyrp cluster` and `asyrp submit`: runs on more than one machine."""

from importlib import resources
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from jobs.cli.options import AsJson, Settings, one_of, placement_from_flags, print_paths, takes, write_text
from jobs.display import console, out, report
from jobs.spec.run import load_spec
from jobs.targets.cluster_file import Cluster, NodeType, check_cluster
from jobs.targets.kubernetes import ray_job
from jobs.targets.placement import POD_OPTIONS, RESOURCE_OPTIONS, Placement
from jobs.targets.slurm import batch_script

cluster_app = typer.Typer(help="Cluster files for `ray up`.", no_args_is_help=True)


@cluster_app.command("check")
def cluster_check(
    file: Annotated[Path, typer.Argument(help="A cluster file, such as ray_cluster.yaml.")],
    as_json: AsJson = False,
) -> None:
    """Check that `ray up` accepts a cluster file. Works offline: it needs no cloud account and no credentials.

    **Example:** asyrp cluster check ray_cluster.yaml
    """
    cluster = check_cluster(file)
    report(cluster.as_json(), as_json, lambda: _print_cluster(cluster))


@cluster_app.command("grafana")
def cluster_grafana(
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("asyrp-grafana.json"),
) -> None:
    """Write a dashboard of runs for Grafana. Its data source is the Prometheus that scrapes the Ray nodes.

    **Example:** asyrp cluster grafana -o asyrp-grafana.json
    """
    write_text(output, resources.files("jobs.targets").joinpath("templates/grafana.json").read_text())
    print_paths([output])


def _print_cluster(cluster: Cluster) -> None:
    out.print(_table(cluster))
    for note in cluster.notes:
        console.print(f"note: {note}", soft_wrap=True, highlight=False)


def _table(cluster: Cluster) -> Table:
    title = f"{cluster.name} on {cluster.provider}, at most {cluster.max_workers} workers"
    table = Table("node type", "instance", "resources", "workers", "spot", title=title)
    for node_type in cluster.node_types:
        resources = ", ".join(f"{count} {name}" for name, count in node_type.resources.items())
        spot = "yes" if node_type.spot else "no"
        name, instance = node_type.name, node_type.instance or "-"
        table.add_row(name, instance, resources or "counted by Ray", _workers(node_type), spot)
    return table


def _workers(node_type: NodeType) -> str:
    low, high = node_type.min_workers, node_type.max_workers
    workers = f"{low} to {high}" if low < high else str(high)
    if not node_type.head:
        return workers
    return f"head and {workers}" if high else "head"


@takes(placement_from_flags)
def submit(
    placement: Placement,
    target: Annotated[str, typer.Option(help="kubernetes (KubeRay) or slurm.")],
    config: Annotated[Path, typer.Option("--config", "-c", help="The YAML spec of the run; the job carries it along.")],
    set_: Settings = None,
    name: Annotated[str, typer.Option(help="Name of the job.")] = "asyrp",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="A file to write. [default: stdout]")] = None,
) -> None:
    """Write a run as a job: a RayJob for `kubectl apply -f`, or a script for `sbatch`. Submits nothing.

    **Example:** asyrp submit --target slurm -c job.yaml --workers 4 --partition gpu | sbatch
    """
    one_of("target", target, ("kubernetes", "slurm"))
    spec = load_spec(config, {}, set_ or [])
    resources = placement.resources(name)
    if target == "kubernetes":
        placement.only(target, (*RESOURCE_OPTIONS, *POD_OPTIONS))
        text = ray_job(spec, resources, placement.container_image(), placement.service_account)
    else:
        placement.only(target, (*RESOURCE_OPTIONS, "partition"))
        text = batch_script(spec, resources, placement.partition)
    if output is None:
        typer.echo(text, nl=False)
        return
    write_text(output, text)
    print_paths([output])
