"""Checks an artefact where only torch, numpy and pyarrow exist; imports nothing of recdistill.

Run as a script of its own:

    python bare.py ARTEFACT        prints one JSON object: {"ok": ..., "checks": {name: {"ok": ..., "detail": ...}}}

The functions that turn raw columns into the artefact's inputs live here too, so that whoever serves the student can
copy this one file.
"""

import hashlib
import importlib.abc
import json
import pickletools
import re
import sys
import zipfile
from pathlib import Path
from typing import Any

FORBIDDEN = ("torchrec", "fbgemm_gpu", "recdistill")
MISSING_INTEGER = -(2**63)
CHUNK = 8192  # items at a time
WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")
KINDS = {"text": "texts", "float": "floats", "integer": "integers"}
UNITS = ("day", "s", "ms", "us", "ns")
TEXT = re.compile(rb'"(?:[^"\\]|\\.)*"')


class _Forbid(importlib.abc.MetaPathFinder):
    """Makes the forbidden packages impossible to import."""

    def find_spec(self, name: str, *_: Any) -> None:
        """Refuse a forbidden package.

        Raises:
            ImportError: the package is forbidden.
        """
        if name.split(".")[0] in FORBIDDEN:
            raise ImportError(f"{name} cannot be imported here")


def tensors(columns: Any, inputs: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, list[str]], dict[str, Any]]:
    """The artefact's three inputs from an Arrow table of raw columns; columns that the table lacks are left out."""
    import numpy as np
    import pyarrow as pa
    import torch

    numbers: dict[str, Any] = {}
    texts: dict[str, list[str]] = {}
    lengths: dict[str, Any] = {}
    for entry in inputs:
        name = entry["name"]
        if name not in columns.column_names:
            continue
        column = columns[name].combine_chunks()
        if entry["list"]:
            lengths[name] = torch.from_numpy(np.array(column.value_lengths().cast(pa.int64()).fill_null(0)))
            column = column.flatten()
        if entry["kind"] == "text":
            texts[name] = ["" if value is None else str(value) for value in column.to_pylist()]
        elif entry["kind"] == "float":
            numbers[name] = torch.from_numpy(
                np.array(column.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
            )
        else:
            whole = _integers(column, entry).cast(pa.int64(), safe=False).fill_null(MISSING_INTEGER)
            numbers[name] = torch.from_numpy(np.array(whole))
    return numbers, texts, lengths


def _integers(column: Any, entry: dict[str, Any]) -> Any:
    """Integers as they are; dates and times as the number of their units since 1970, in UTC.

    Raises:
        ValueError: the student takes integers here, so that the unit of times is not known.
    """
    import pyarrow as pa

    if not (pa.types.is_date(column.type) or pa.types.is_timestamp(column.type)):
        return column
    if "unit" not in entry:
        raise ValueError(f"{entry['name']}: the student takes integers, found {column.type}; cast the column")
    if entry["unit"] == "day":
        return column.cast(pa.date32()).cast(pa.int32())
    return column.cast(pa.timestamp(entry["unit"]))


def misfits(schema: Any, inputs: list[dict[str, Any]]) -> list[str]:
    """What is wrong with the types of raw columns, an Arrow schema; columns that it lacks are missing values.

    Numbers may be wider or narrower, times of a coarser unit, integers may stand for floats, and nulls for anything.
    """
    found = []
    for entry in inputs:
        place = schema.get_field_index(entry["name"])
        if place >= 0 and not _suits(schema.field(place).type, entry):
            kind = f"times in units of {entry['unit']!r}" if "unit" in entry else KINDS[entry["kind"]]
            expected = f"lists of {kind}" if entry["list"] else kind
            found.append(f"{entry['name']!r}: the student takes {expected}, found {schema.field(place).type}")
    return found


def _suits(kind: Any, entry: dict[str, Any]) -> bool:
    """Whether values of an Arrow type are read as those that the student has learned from."""
    import pyarrow as pa

    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind):
        return bool(entry["list"]) and _suits(kind.value_type, {**entry, "list": False})
    if entry["list"]:
        return False
    if types.is_dictionary(kind):
        kind = kind.value_type
    if types.is_null(kind):
        return True
    if entry["kind"] == "text":
        return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))
    if "unit" in entry:
        unit = "day" if types.is_date(kind) else kind.unit if types.is_timestamp(kind) else "none"
        return unit in UNITS[: UNITS.index(entry["unit"]) + 1]
    whole = types.is_integer(kind) or types.is_boolean(kind)
    return bool(whole or (entry["kind"] == "float" and types.is_floating(kind)))


def words(archive: Path) -> tuple[set[bytes], set[bytes]]:
    """The words that are data in a TorchScript archive (its tensors aside), and the identifiers of its code.

    A column's name would be data: a text in the code or in the pickled attributes. An attribute or variable that
    happens to be called like a column tells nothing.
    """
    data: set[bytes] = set()
    code: set[bytes] = set()
    with zipfile.ZipFile(archive) as content:
        for entry in content.namelist():
            if re.search(r"/(data|constants)/\d+$", entry):
                continue
            text = content.read(entry)
            if "/code/" in entry:
                for quoted in TEXT.findall(text):
                    data.update(WORD.findall(quoted))
                code.update(WORD.findall(TEXT.sub(b" ", text)))
            elif entry.endswith(".pkl"):  # read as a list of operations; nothing is executed
                for _, argument, _ in pickletools.genops(text):
                    if isinstance(argument, str):
                        data.update(WORD.findall(argument.encode()))
            else:
                data.update(WORD.findall(text))
    return data - code, code


def withheld_hash(name: str) -> str:
    """The hash by which a manifest lists a name that must not appear, without naming it."""
    return hashlib.sha256(b"withheld:" + name.encode()).hexdigest()


def check(folder: Path) -> dict[str, Any]:
    """All checks of an artefact folder."""
    import pyarrow.parquet as pq
    import torch

    checks: dict[str, dict[str, Any]] = {}

    def note(name: str, ok: bool, detail: str) -> None:
        checks[name] = {"ok": bool(ok), "detail": detail}

    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    files = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in manifest["files"]}
    wrong = sorted(name for name, digest in files.items() if digest != manifest["files"][name])
    note("files", not wrong, f"changed since export: {wrong}" if wrong else f"{len(files)} files as exported")
    names = {withheld_hash(word.decode()) for word in words(folder / "student.pt")[0]}
    leaked = len(names & set(manifest["withheld"]))
    note("no_privilege", not leaked, f"{leaked} of {len(manifest['withheld'])} withheld names appear in student.pt")
    student = torch.jit.load(str(folder / "student.pt"))
    count = sum(t.numel() for t in [*student.parameters(), *student.buffers()] if t.is_floating_point())
    expected = manifest["parameters"]
    note("parameters", count == expected, f"{count} numbers in student.pt, {expected} belong to the student")
    golden = pq.read_table(folder / "golden.parquet")
    scores = (
        torch.tensor(golden["score"].to_numpy())
        if len(manifest["outputs"]) == 1
        else torch.stack([torch.tensor(golden[f"score.{name}"].to_numpy()) for name in manifest["outputs"]], 1)
    )
    inputs = manifest["inputs"]
    with torch.no_grad():
        again = student(*tensors(golden, inputs))
        note(
            "golden",
            torch.equal(again, scores),
            f"largest difference {float((again - scores).abs().max()):.3g} on {len(scores)} rows",
        )
        one = torch.cat([student(*tensors(golden.slice(i, 1), inputs)) for i in range(min(8, len(golden)))])
        gap = float((one - scores[:8]).abs().max())
        note("one_by_one", gap <= 1e-5, f"largest difference {gap:.3g} between one row and a batch")
        empty = student(*tensors(golden.slice(0, 0), inputs))
        note("empty", empty.shape[0] == 0, f"shape {tuple(empty.shape)} for no rows")
        first = inputs[0]["name"]
        sparse = student(*tensors(golden.select([first]), inputs))
        note("missing", bool(torch.isfinite(sparse).all()), f"finite scores from {first!r} alone")
        if manifest.get("lists"):
            for name, (ok, detail) in check_lists(folder, manifest, student, golden.slice(0, 8)).items():
                note(name, ok, detail)
    loaded = sorted(name for name in FORBIDDEN if name in sys.modules)
    note("bare", not loaded, f"loaded: {loaded}" if loaded else f"without {', '.join(FORBIDDEN)}")
    return {"ok": all(entry["ok"] for entry in checks.values()), "checks": checks}


def check_lists(folder: Path, manifest: dict[str, Any], student: Any, rows: Any) -> dict[str, tuple[bool, str]]:
    """Checks of what lists are made of: the items, and their codes against the student's own, for some raw rows."""
    import pyarrow.parquet as pq
    import torch

    items, inputs = pq.read_table(folder / "items.parquet"), manifest["inputs"]
    user_BD = student.vectors(*tensors(rows, inputs))[0]
    parts = [student.vectors(*tensors(items.slice(k, CHUNK), inputs))[1] for k in range(0, len(items), CHUNK)]
    item_ND = torch.cat(parts)
    scores = user_BD @ item_ND.t()
    found = {"items": (bool(torch.isfinite(scores).all()), f"finite scores of {len(items)} items")}
    if manifest["lists"]["codes"]:
        about = json.loads((folder / "codes" / "codes.json").read_text(encoding="utf-8"))
        digests = {n: hashlib.sha256((folder / "codes" / n).read_bytes()).hexdigest() for n in about["files"]}
        wrong = sorted(name for name, digest in digests.items() if digest != about["files"][name])
        index = torch.jit.load(str(folder / "codes" / "codes.pt"))
        counted = index.scores(index.pack(user_BD)).float()
        same = torch.equal(counted, torch.sign(user_BD) @ torch.sign(item_ND).t())
        detail = f"changed since export: {wrong}" if wrong else f"scores of {about['items']} codes are the student's"
        found["codes"] = (not wrong and same, detail if same else "scores differ from the student's")
    return found


if __name__ == "__main__":
    sys.meta_path.insert(0, _Forbid())
    result = check(Path(sys.argv[1]))
    print(json.dumps(result))
    sys.exit(0 if result["ok"] else 1)
