"""An encoded log whose lists lie together: all rows of one group side by side, and never apart in two row groups.

Training that compares the rows of a list then meets whole lists (`Reader.whole_lists`). Lists follow each other by the
hash of their group, so their order tells nothing.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from recdistill.data.encoded import GROUP_ROWS, EncodedLog
from recdistill.data.transforms.hashing import key_hash, splitmix64
from recdistill.errors import LogError
from recdistill.publish import link_or_copy, published


def in_lists(log: EncodedLog, splits: Sequence[str], out: Path) -> EncodedLog:
    """The log with the rows of some splits ordered by their group; the others stay as they are.

    The columns of one view of a split are held in memory.

    Args:
        log: the encoded log.
        splits: the splits that are trained on.
        out: the folder to write; if it is there already, it is used.

    Raises:
        LogError: the log has no groups.
    """
    if log.spec.group is None:
        raise LogError(f"{log.folder}: has no groups, so there are no lists; name the spec's `group`")
    if not out.exists():
        with published(out, replace=False) as work:
            shutil.copytree(log.folder, work, copy_function=link_or_copy, ignore=_left_out(log.folder, splits))
            for split in splits:
                _write(log, split, work)
            _rename(work, log.fingerprint, splits)
    return EncodedLog.open(out)


def _left_out(log: Path, splits: Sequence[str]) -> Callable[[str, list[str]], list[str]]:
    """The files of some splits, whose folders stay."""

    def chosen(folder: str, names: list[str]) -> list[str]:
        return names if Path(folder) in [log / split for split in splits] else []

    return chosen


def _rename(work: Path, fingerprint: str, splits: Sequence[str]) -> None:
    """Give the new log a fingerprint of its own."""
    manifest = json.loads((work / "manifest.json").read_text(encoding="utf-8"))
    manifest["fingerprint"] = f"{fingerprint}-lists-{'-'.join(splits)}"
    (work / "manifest.json").unlink()  # a link to the file of the other log, which must not change
    (work / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")


def _write(log: EncodedLog, split: str, work: Path) -> None:
    group_N = list_of(log.labels(split).select("row_id", "group").collect())
    order = np.argsort(splitmix64(group_N), kind="stable")
    cuts = row_groups(group_N[order])
    for view in log.views:
        table = pa.concat_tables([pq.read_table(file) for file in log.files(split, view)]).take(pa.array(order))
        with pq.ParquetWriter(work / split / f"{view}-00000.parquet", table.schema, compression="lz4") as writer:
            for first, end in pairwise(cuts):
                writer.write_table(table.slice(first, end - first), row_group_size=max(end - first, 1))


def list_of(frame: pl.DataFrame) -> NDArray[np.int64]:
    """The list of each row: the hash of its group; a row without one is alone in its list."""
    hashed_N = key_hash(frame["group"])
    alone_N = splitmix64(frame["row_id"].to_numpy() ^ np.int64(0x5F5F))
    return np.where(frame["group"].is_null().to_numpy(), alone_N, hashed_N)


def row_groups(group_N: NDArray[np.int64]) -> list[int]:
    """Where row groups begin, and where the last one ends, so that no list is cut."""
    starts = np.flatnonzero(np.r_[True, group_N[1:] != group_N[:-1]]) if len(group_N) else np.zeros(0, np.int64)
    cuts = [0]
    for start in starts[1:]:
        if start - cuts[-1] >= GROUP_ROWS:
            cuts.append(int(start))
    return [*cuts, len(group_N)]
