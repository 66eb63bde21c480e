"""Checks offline, with Ray's own validation, whether `ray up` accepts a cluster file."""

import difflib
import json
import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from asyrp.errors import UserError
from jobs.spec.yaml_lines import read_mapping

RAY_ONLY = {"SubnetIds"}  # keys of a node_config that only Ray reads: it passes one of the ids on as SubnetId
PLACEHOLDER = "ami-00000000000000000"

Config = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class NodeType:
    """A node type of a cluster file: one kind of machine."""

    name: str
    head: bool
    instance: str | None
    resources: dict[str, int]
    min_workers: int
    max_workers: int
    spot: bool


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The content of a valid cluster file; `notes` say what is left to do before `ray up`."""

    name: str
    provider: str
    max_workers: int | None
    node_types: list[NodeType]
    notes: list[str]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def check_cluster(path: Path) -> Cluster:
    """Validates a cluster file as `ray up` does, and finds mistakes that `ray up` shows only when machines are running.

    Raises:
        UserError: for the first mistake; the sentence says what is wrong, where in the file, and what to do.
    """
    raw: Config = read_mapping(path, "the cluster file", "cluster_name: asyrp")
    try:
        _check_schema(raw)
        config = _prepare(raw)
        _check_counts(config)
        notes = [*_check_aws(config), *_left_to_do(config)]
    except UserError as mistake:
        raise UserError(f"{path}: {mistake}") from None
    types = [_node_type(config, name) for name in config.get("available_node_types", {})]
    return Cluster(
        name=config["cluster_name"],
        provider=config["provider"]["type"],
        max_workers=config.get("max_workers"),
        node_types=types,
        notes=notes,
    )


# Mistakes that Ray finds


def _ray() -> tuple[Config, Callable[[Config], Config], Callable[[Config], None]]:
    """Ray's schema of a cluster file, the function that fills in defaults, and the one that validates the result."""
    import ray

    try:
        import ray.autoscaler
        from ray.autoscaler._private.util import prepare_config, validate_config

        schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    except (ImportError, OSError, ValueError) as error:
        raise UserError(
            f"Ray {ray.__version__} keeps its checks of cluster files elsewhere ({error}): install the Ray that asyrp "
            "was tested with, 2.60"
        ) from error
    return schema, prepare_config, validate_config


def _check_schema(raw: Config) -> None:
    """Checks the file as it is written. Once defaults are filled in, Ray drops some mistakes in silence."""
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    schema, _, _ = _ray()
    provider = raw.get("provider")
    if isinstance(provider, dict) and provider.get("type") == "local":
        raw = {
            key: value for key, value in raw.items() if key != "min_workers"
        }  # Ray takes it there, but its schema lacks it
    try:
        error = best_match(validator_for(schema)(schema).iter_errors(raw))
    except TypeError:  # keys of a schema are text, but YAML also takes 1, null and yes for keys
        raise UserError("a key is not text: put it in quotes") from None
    if error is not None:
        raise UserError(_schema_sentence(error))


def _schema_sentence(error: Any) -> str:
    where = ".".join(map(str, error.absolute_path))
    prefix = f"{where}: " if where else ""
    if error.validator == "required":
        missing = next(name for name in error.validator_value if name not in error.instance)
        return f"{prefix}'{missing}' is missing: add '{missing}:'{f' below {where}' if where else ' at the top'}"
    if error.validator == "additionalProperties":
        known = error.schema.get("properties", {})
        unknown = next(str(name) for name in error.instance if name not in known)
        if not where and unknown in known["available_node_types"]["patternProperties"][".*"]["properties"]:
            return f"'{unknown}' is of a node type: move it below available_node_types.NAME"
        return prefix + _unknown_sentence(unknown, known)
    return f"{prefix}{error.message}"


def _unknown_sentence(name: str, known: Iterable[str]) -> str:
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=1)
    return f"unknown key '{name}': " + (f"did you mean '{near[0]}'?" if near else f"known are {', '.join(known)}")


def _prepare(raw: Config) -> Config:
    """The config with Ray's defaults, after Ray's own validation."""
    import jsonschema
    from click import ClickException

    _, prepare_config, validate_config = _ray()
    logging.getLogger("ray.autoscaler").setLevel(logging.ERROR)
    try:
        with redirect_stderr(StringIO()):  # Ray prints what it also raises
            config = prepare_config(raw)
            validate_config(config)
    except ClickException as error:
        raise UserError(error.message) from None
    except jsonschema.ValidationError as error:
        raise UserError(_schema_sentence(error)) from None
    except NotImplementedError as error:
        raise UserError(f"provider.type: {error}: give aws, azure, gcp or local") from None
    except AssertionError as error:
        raise UserError(f"docker: {error}: add 'container_name:' and 'image:'") from None
    except (ValueError, RuntimeError) as error:
        raise UserError(" ".join(str(error).split())) from None
    except ImportError as error:
        raise UserError(f"provider.type: {error}: install what Ray needs for this provider") from None
    return config


# Mistakes that Ray shows only when machines are running


def _check_counts(config: Config) -> None:
    for name, node_type in config.get("available_node_types", {}).items():
        low, high = node_type.get("min_workers", 0), node_type.get("max_workers", 0)
        if not 0 <= low <= high:
            raise UserError(
                f"available_node_types.{name}: min_workers is {low} and max_workers {high}: "
                "make it 0 <= min_workers <= max_workers"
            )


def _check_aws(config: Config) -> Iterator[str]:
    """Checks every node_config against EC2's RunInstances. Ray shows a worker's mistakes only in the head's log."""
    if config["provider"]["type"] != "aws":
        return
    try:
        from botocore.session import get_session
    except ImportError:
        yield "node_config was not checked: that, and `ray up` on AWS, needs boto3: pip install boto3"
        return
    if "region" not in config["provider"]:
        raise UserError("provider: 'region' is missing: add one, such as 'region: us-west-2'")
    shape = get_session().get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node_type in config["available_node_types"].items():
        where, node_config = f"available_node_types.{name}.node_config", node_type["node_config"]
        if "InstanceType" not in node_config and "LaunchTemplate" not in node_config:
            raise UserError(f"{where}: 'InstanceType' is missing: add one, such as 'InstanceType: g6.xlarge'")
        _check_shape({key: node_config[key] for key in node_config if key not in RAY_ONLY}, shape, where)
        if node_config.get("ImageId") == PLACEHOLDER:
            yield f"{where}.ImageId is a placeholder: put in the image of your region"


def _check_shape(value: Any, shape: Any, where: str) -> None:
    """Raises UserError for a key, at any depth, that the structure of the AWS API does not have."""
    if shape.type_name == "structure" and isinstance(value, dict):
        for key, inner in value.items():
            if key not in shape.members:
                raise UserError(f"{where}: {_unknown_sentence(str(key), shape.members)}")
            _check_shape(inner, shape.members[key], f"{where}.{key}")
    elif shape.type_name == "list" and isinstance(value, list):
        for index, inner in enumerate(value):
            _check_shape(inner, shape.member, f"{where}.{index}")


def _left_to_do(config: Config) -> Iterator[str]:
    for remote, local in config.get("file_mounts", {}).items():
        if not Path(local).expanduser().exists():
            yield f"file_mounts.{remote}: there is no '{local}' here yet, and `ray up` copies it"


def _node_type(config: Config, name: str) -> NodeType:
    node_type = config["available_node_types"][name]
    node_config = node_type["node_config"]
    return NodeType(
        name=name,
        head=name == config["head_node_type"],
        instance=node_config.get("InstanceType") or node_config.get("machineType"),
        resources=node_type["resources"],
        min_workers=node_type.get("min_workers", 0),
        max_workers=node_type.get("max_workers", 0),
        spot=node_config.get("InstanceMarketOptions", {}).get("MarketType") == "spot",
    )
