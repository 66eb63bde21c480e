"""Damaged tables, tars, specs and records of runs, given to the commands that read them: see `benchmarks.fuzz`.

Each must end in rows or in one sentence. A traceback, or an error that is no sentence, is what the fuzzer looks for.
"""

import copy
import io
import json
import random
import resource
import shutil
import tarfile
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from asyrp.errors import UserError
from benchmarks.damage import Damage, blow_up, cut, damaged, double, flip_bytes, flip_header, sound_images, swap
from pipeline.images.source import FORMATS
from pipeline.run.additions import CurrentRows
from pipeline.run.stage import FINAL
from pipeline.storage.failures import machine_failure
from tests.support.runs import EXAMPLES, asyrp, make_faces, stand_in_run

BYTES: tuple[Damage, ...] = (flip_bytes, flip_header, cut, double, swap, blow_up)
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**30, 0.5, -0.0, 1e308, float("nan"), float("inf"), "", "0",
    "x" * 5000, "../../victim", "/etc/passwd", "a\0b", "\ud800", "[/nope]", "{key.__class__}", "::", "s3://", "*", [],
    {}, [[]], [None], {"": ""}, {"a": {"b": []}}, [1, "a", None], "2026-11-27", "\x1b[31m", "é", "auto", "per-image",
)  # fmt: skip
ARROW_TYPES = (
    pa.int8(), pa.uint64(), pa.float16(), pa.bool_(), pa.string(), pa.large_string(), pa.string_view(), pa.binary(),
    pa.large_binary(), pa.binary(4), pa.binary_view(), pa.date32(), pa.timestamp("ns"), pa.decimal128(20, 3), pa.null(),
    pa.list_(pa.binary()), pa.struct({"bytes": pa.binary(), "path": pa.string()}), pa.struct({"bytes": pa.string()}),
    pa.dictionary(pa.int8(), pa.string()), pa.map_(pa.string(), pa.binary()), pa.struct({"bytes": pa.int64()}),
)  # fmt: skip
COLUMNS = ("key", "url", "image", "image.bytes", "bytes", "path", "jpg", "label", "")


def with_an_odd_value(value: Any, rng: random.Random) -> Any:
    """A copy of a JSON document in which one value is odd, is missing or has another name."""
    places = list(_places(value, ()))
    if not places:
        return rng.choice(ODD_VALUES)
    *above, last = rng.choice(places)
    document = copy.deepcopy(value)
    holder = document
    for step in above:
        holder = holder[step]
    match rng.randrange(6):
        case 0:
            del holder[last]
        case 1 if isinstance(holder, dict):
            holder[str(rng.choice(ODD_VALUES))] = holder.pop(last)
        case _:
            holder[last] = rng.choice(ODD_VALUES)
    return document


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, item in items:
        yield (*path, name)
        yield from _places(item, (*path, name))


def image_bytes() -> bytes:
    """A small image."""
    stream = io.BytesIO()
    Image.fromarray(np.arange(16 * 16 * 3, dtype=np.uint8).reshape(16, 16, 3)).save(stream, "PNG")
    return stream.getvalue()


def a_table(folder: Path, rng: random.Random) -> Path:
    """A table of images or URLs of any types, or the bytes of one with damage."""
    kind = rng.choice(("types", "types", "parquet", "csv", "txt", "labels"))
    rows = [{"key": f"{n:03d}", "url": f"file:///{n}.png", "image": image_bytes()} for n in range(3)]
    if kind in ("csv", "txt"):
        lines = ["key,url", *(f"{row['key']},{row['url']}" for row in rows)] if kind == "csv" else ["", "# x"]
        path = folder / f"table.{kind}"
        path.write_bytes(
            damaged("\n".join(lines).encode(rng.choice(("utf-8", "utf-8-sig", "utf-16", "latin-1"))), rng, BYTES)
        )
        return path
    path = folder / "table.parquet"
    if kind == "types":
        pq.write_table(_table_of_any_types(rng), path, row_group_size=rng.choice((1, 2, 100)))
        return path
    pq.write_table(pa.Table.from_pylist(rows), path)
    path.write_bytes(damaged(path.read_bytes(), rng, BYTES))
    return path


def _table_of_any_types(rng: random.Random) -> pa.Table:
    count = rng.randrange(4)
    names = rng.choices(COLUMNS, k=rng.randrange(1, 5))
    columns = [pa.nulls(count, kind) for kind in rng.choices(ARROW_TYPES, k=len(names))]
    for index, column in enumerate(columns):
        values = [
            rng.choice((image_bytes(), b"", "x", "../x", 7, None, {"bytes": b"x", "path": "a"})) for _ in range(count)
        ]
        try:
            columns[index] = pa.array(values, column.type, from_pandas=True)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            continue  # nulls, then
    return pa.Table.from_arrays(columns, names=names)


def a_tar(folder: Path, rng: random.Random) -> Path:
    """A WebDataset tar with damage."""
    stream = io.BytesIO()
    odd = rng.choice(("0001", "../../x", "/etc/x", "a\0b", "é" * 130, "._0001", "__MACOSX/0001", "a//b", "x" * 300, ""))
    with tarfile.open(fileobj=stream, mode="w", format=rng.choice((tarfile.PAX_FORMAT, tarfile.GNU_FORMAT))) as tar:
        for name, data in ((f"{odd}.png", image_bytes()), (f"{odd}.json", b'{"a": 1}'), ("2.png", image_bytes())):
            member = tarfile.TarInfo(name)
            member.size, member.type = (
                len(data),
                rng.choice((tarfile.REGTYPE,) * 5 + (tarfile.SYMTYPE, tarfile.GNUTYPE_SPARSE)),
            )
            tar.addfile(member, io.BytesIO(data))
    data = stream.getvalue()
    path = folder / "faces.tar"
    path.write_bytes(damaged(data, rng, BYTES) if rng.random() < 0.8 else data)
    return path


def a_spec(folder: Path, rng: random.Random) -> Path:
    """A spec of a job with damage."""
    text = rng.choice(EXAMPLES).read_text()
    path = folder / "job.yaml"
    if rng.random() < 0.4:
        path.write_bytes(damaged(text.encode(), rng, BYTES))
    else:
        document = with_an_odd_value(yaml.safe_load(text), rng)
        path.write_text(yaml.safe_dump(document, allow_unicode=True), errors="surrogatepass")
    return path


def damage_a_record(root: Path, rng: random.Random) -> None:
    """Damage one file of a finished run: its JSON, its Parquet or its images."""
    path = rng.choice(sorted(path for path in root.rglob("*") if path.is_file()))
    data = path.read_bytes()
    match rng.randrange(5):
        case 0:
            path.unlink()
        case 1 | 2 if path.suffix == ".json" and data.startswith(b"{"):
            path.write_text(json.dumps(with_an_odd_value(json.loads(data), rng)))
        case 3:
            path.with_name(rng.choice((f"{path.name} (1)", ".DS_Store", f"copy of {path.name}", "x.json"))).write_bytes(
                data
            )
        case _:
            path.write_bytes(damaged(data, rng, BYTES))


def fuzz_run(count: int, seed: int) -> Counter[str]:
    """One run over so many damaged images, with a stand-in for the net. Each must have its row."""
    sound = list(sound_images().items())
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        (folder / "faces").mkdir()
        for index in range(count):
            name, data = sound[index % len(sound)]
            ending = FORMATS.get(name.split()[0], FORMATS["PNG"])[0]  # what a file holds decides, not its name
            path = folder / "faces" / f"{index:06d}{ending}"
            path.write_bytes(damaged(data, random.Random(f"{seed} {index}")))
        store = stand_in_run(folder / "faces", folder / "out", edits=["smile=1"], shard_size=500)
        found = Counter(row["status"] for row in CurrentRows(store).of_stage(FINAL))
    found["escaped: images without a row"] = count - found.total()
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000} MB in the worker at most", flush=True)
    return +found


def fuzz_sources(make: Callable[[Path, random.Random], Path], count: int, seed: int) -> Counter[str]:
    """Run damaged tables or tars as sources, with a stand-in for the net."""

    def run(folder: Path, rng: random.Random) -> str:
        try:
            stand_in_run(make(folder, rng), folder / "out")
        except UserError as error:
            return _sentence(str(error))
        except Exception as error:
            return "a sentence" if machine_failure(error) else f"escaped: {type(error).__name__}: {str(error)[:200]}"
        return "rows"

    return _repeat(run, count, seed)


def fuzz_specs(count: int, seed: int) -> Counter[str]:
    """Validate damaged specs."""
    return _repeat(lambda folder, rng: _said(asyrp("jobs", "validate", a_spec(folder, rng))), count, seed)


COMMANDS = (
    ("status",), ("verify",), ("verify", "--deep"), ("gc",), ("gc", "--older-than", "0"), ("report",),
    ("export", "--to", "webdataset", "-o", "{folder}/set", "--with-source", "--partial"), ("gc", "--dry-run"),
    ("export", "--to", "parquet", "-o", "{folder}/set", "--partial"),
)  # fmt: skip


def fuzz_records(count: int, seed: int) -> Counter[str]:
    """Give finished runs with a damaged file to the commands that read them. None may change a file elsewhere."""
    with tempfile.TemporaryDirectory() as made:
        template = Path(made)
        stand_in_run(make_faces(template / "faces", 6), template / "out")

        def command(folder: Path, rng: random.Random) -> str:
            shutil.copytree(template / "out", folder / "out")
            victim = folder / "victim"
            victim.mkdir()
            (victim / "kept").write_text("kept")
            for _ in range(rng.choice((1, 1, 2))):
                damage_a_record(folder / "out", rng)
            name, *options = rng.choice(COMMANDS)
            said = _said(asyrp(name, folder / "out", *(option.format(folder=folder) for option in options)))
            return said if (victim / "kept").exists() else "escaped: the victim is gone"

        return _repeat(command, count, seed)


def _repeat(attempt: Callable[[Path, random.Random], str], count: int, seed: int) -> Counter[str]:
    found = Counter[str]()
    for index in range(count):
        with tempfile.TemporaryDirectory() as folder:
            outcome = attempt(Path(folder), random.Random(f"{seed} {index}"))
        found[outcome] += 1
        if outcome.startswith("escaped"):
            print(f"seed {seed}, number {index}: {outcome}", flush=True)
    return found


def _said(done: Any) -> str:
    if "Traceback" in done.stderr:
        lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("error: ")]
        return f"escaped: {done.args[0]}: {' | '.join(lines[-3:])[:400]}"
    return f"exit code {done.returncode}"


def _sentence(text: str) -> str:
    return f"escaped: a sentence of several lines: {text[:200]}" if "\n" in text else "a sentence"
