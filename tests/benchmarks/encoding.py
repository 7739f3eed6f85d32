"""`python -m tests.benchmarks.encoding`: what each type of column costs to encode, in rows per second and as a ratio.

One log of ids, and the same log with one further column of every type (lists of 2.5 values on average, texts of 4
words). The ratio of the two is the figure to watch; the single types are timed alone beside a single id.
"""

import argparse
import resource
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from recdistill.data.encode import encode
from recdistill.spec.features import FeatureSpec

IDS = 26
SPLIT = {"column": "part", "train": [0, 0], "valid": [1, 1], "test": [2, 2]}
TYPES: dict[str, dict[str, Any]] = {
    "categorical": {"type": "categorical", "column": "city"},
    "hashed": {"type": "categorical", "column": "c1", "hash": 100_000},
    "list": {"type": "list", "column": "tags"},
    "weighted list": {"type": "list", "column": "tags", "weights": "strengths"},
    "sequence": {"type": "sequence", "column": "clicks", "times": "then"},
    "sequence from the log": {
        "type": "sequence", "column": "c2", "hash": 100_000, "max_length": 10, "past": {"keys": "user", "gaps": True},
    },
    "numeric": {"type": "numeric", "column": "price", "log": True},
    "buckets": {"type": "numeric", "column": "price", "buckets": 20},
    "edges": {"type": "numeric", "column": "price", "edges": [-1, 0, 1]},
    "missing": {"type": "missing", "column": "price"},
    "cross": {"type": "cross", "of": ["city", "c1"], "hash": 100_000},
    "date part": {"type": "date_part", "column": "now", "part": "hour", "zone": "Europe/Berlin"},
    "text": {"type": "text", "column": "title", "hash": 65_536},
    "history": {"type": "history", "keys": "user", "of": "y"},
}  # fmt: skip


def log(path: Path, rows: int) -> None:
    rng = np.random.default_rng(0)
    words = np.array(["red", "blue", "shoe", "phone", "case", "big", "new", "old", "toy", "car"])
    lengths = rng.integers(0, 6, rows)
    ends = np.concatenate([[0], np.cumsum(lengths)])

    def lists(values: np.ndarray) -> pl.Series:
        frame = pl.DataFrame({"row": np.repeat(np.arange(rows), lengths), "value": values[: ends[-1]]})
        return pl.DataFrame({"row": np.arange(rows)}).join(
            frame.group_by("row", maintain_order=True).agg("value"), on="row", how="left", maintain_order="left"
        )["value"].fill_null(pl.lit([], dtype=pl.List(frame["value"].dtype)))  # fmt: skip

    total = int(ends[-1])
    columns: dict[str, Any] = {f"c{i}": rng.zipf(1.3, rows).clip(max=10**6).astype(np.int64) for i in range(IDS)}
    columns |= {
        "city": rng.integers(0, 200, rows), "price": rng.normal(size=rows), "user": rng.integers(0, rows // 6, rows),
        "now": 1_650_000_000_000 + np.arange(rows) * 1000, "y": rng.integers(0, 2, rows).astype(np.int8),
        "tags": lists(rng.integers(0, 500, total)), "strengths": lists(rng.random(total)),
        "clicks": lists(rng.integers(0, 5000, total)), "then": lists(1_650_000_000_000 - rng.integers(0, 10**9, total)),
        "title": [" ".join(row) for row in words[rng.integers(0, 10, (rows, 4))]],
        "part": np.searchsorted([rows * 8 // 10, rows * 9 // 10], np.arange(rows), side="right"),
    }  # fmt: skip
    pl.DataFrame(columns).write_parquet(path)


def seconds(path: Path, folder: Path, serving: dict[str, Any]) -> float:
    spec = {"time": "now", "split": SPLIT, "serving": serving, "post_event": {"y": "binary"}}
    shutil.rmtree(folder, ignore_errors=True)
    start = time.perf_counter()
    encode(FeatureSpec.model_validate(spec), str(path), folder)
    return time.perf_counter() - start


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--folder", type=Path, default=Path(".recdistill/bench"))
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    path = given.folder / f"types-{given.rows}.parquet"
    if not path.exists():
        log(path, given.rows)
    ids = {f"c{i}": {"type": "id"} for i in range(IDS)}
    seconds(path, given.folder / "types", ids)
    plain, everything = (seconds(path, given.folder / "types", s) for s in (ids, {**ids, **TYPES}))
    print(f"| {IDS} ids | {given.rows / plain:,.0f} rows/s | |")
    further = f"{IDS} ids and {len(TYPES)} other columns"
    print(f"| {further} | {given.rows / everything:,.0f} rows/s | {plain / everything:.2f} |")
    one = seconds(path, given.folder / "types", {"c0": {"type": "id"}})
    for name, column in TYPES.items():
        alone = seconds(path, given.folder / "types", {"x": column})
        print(f"| {name} | {given.rows / alone:,.0f} rows/s | {one / alone:.2f} of one id |")
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB")


if __name__ == "__main__":
    main()
