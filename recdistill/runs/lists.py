"""Lists of items from an artefact that ranks: its items, their codes, and the best of them for each user."""

# Shapes: U users, N items, K places, D width of a vector.

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from recdistill.data.log import raw_batches
from recdistill.data.rosters import Pairs, known_pairs, last_of_log, last_rows
from recdistill.distill.member import Member
from recdistill.errors import LogError, RunError
from recdistill.export import artefact
from recdistill.export.codes import CodeIndex, load_index, pack, write_index
from recdistill.publish import published
from recdistill.runs.targets import check_file
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job

CHUNK = 8192  # raw rows at a time
SCORES = 2**24  # scores of a block at a time


def described(job: Job, spec: FeatureSpec, student: Member, inputs: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What an artefact's manifest says of users and items; None if the student has no such vectors.

    ``user`` and ``item`` hold the raw columns of each side, that of its ids first; ``codes`` is whether vectors are
    codes, so that their signs are what counts.
    """
    if job.graph is None or not student.net.ranks:
        return None
    sides = {}
    for side, columns in job.graph.sides.items():
        mine = [entry["name"] for entry in inputs if {feed["column"] for feed in entry["feeds"]} <= {*columns}]
        key = spec.source(columns[0])
        sides[side] = [key, *(name for name in mine if name != key)]
    return {**sides, "codes": student.net.codes}


def items_of(job: Job, spec: FeatureSpec, log: str, columns: list[str]) -> pa.Table:
    """The raw columns of every item of the training rows, as they were last, in the order of the ids.

    Raises:
        LogError: the log lacks a column.
    """
    splits = [raw_batches(spec, log, job.where, split, columns, CHUNK) for split in job.train.fitted_on]
    parts = [part for split in splits for part in split]
    return last_rows(pa.concat_tables(parts), columns[0])


def write_codes(folder: Path) -> dict[str, Any] | None:
    """Write the codes of an artefact's items beside it, if it makes codes; returns what the report says of them."""
    student, manifest = artefact.load(folder)
    lists = manifest.get("lists")
    if lists is None or not lists["codes"]:
        return None
    items = pq.read_table(folder / "items.parquet")
    code_NR = torch.sign(artefact.vectors(student, manifest, items, CHUNK)[1])
    write_index(folder / "codes", pack(code_NR), torch.arange(len(items)), code_NR.shape[1])
    size = sum(file.stat().st_size for file in (folder / "codes").iterdir() if file.name == "codes.pt")
    return {"items": len(items), "bits": code_NR.shape[1], "bytes": size}


def write_top(
    folder: Path, log: str, out: Path, count: int, *, known: str | None = None, items: str | None = None
) -> int:
    """Write the best items of every user of a log; returns the number of users.

    Args:
        folder: the artefact.
        log: a parquet log with the raw columns of users; of each user the last row counts.
        out: the parquet file to write, with the user, the place (from 1), the item and the score; it appears only when
            it is complete.
        count: K.
        known: a parquet log of pairs of users and items that are left out.
        items: a parquet file with the raw columns of other items than those of training, new ones for example.

    Raises:
        RunError: the artefact has no vectors of users and items, or the file to write belongs to a log.
        LogError: a log lacks a column, holds it in another type than the student was trained on, or names nobody.
    """
    check_file(out, [path for path in (log, known, items) if path is not None])
    student, manifest = artefact.load(folder)
    lists = manifest.get("lists")
    if lists is None:
        raise RunError(f"{folder}: its student has one score a row; lists need one that ranks, such as two_tower")
    users = _roster(log, lists["user"], manifest)
    shown = pq.read_table(folder / "items.parquet") if items is None else _roster(items, lists["item"], manifest)
    left_out = _known(known, lists, users, shown)
    query_UD, _ = artefact.vectors(student, manifest, users, CHUNK)
    if items is None and lists["codes"]:
        score_UK, place_UK = _by_codes(load_index(folder / "codes")[0], query_UD, count, left_out)
    else:
        item_ND = artefact.vectors(student, manifest, shown, CHUNK)[1]
        if lists["codes"]:
            index = CodeIndex(pack(torch.sign(item_ND)), torch.arange(len(shown)), item_ND.shape[1])
            score_UK, place_UK = _by_codes(index, query_UD, count, left_out)
        else:
            score_UK, place_UK = _by_products(query_UD, item_ND, count, left_out)
    _write(out, lists, users, shown, (score_UK, place_UK))
    return len(users)


def _roster(log: str, columns: list[str], manifest: Mapping[str, Any]) -> pa.Table:
    """The users or the items of a log, as the student can read them."""
    found = last_of_log(log, columns)
    artefact.check_types(manifest, found, log)
    if len(found) == 0:
        raise LogError(f"{log}: no row has a value in {columns[0]!r}, so that there is nothing to make lists of")
    return found


def _by_codes(index: Any, query_UD: Tensor, count: int, left_out: Pairs) -> tuple[Tensor, Tensor]:
    """Scores and places of the best items by their codes; -1 behind the last."""
    with torch.no_grad():
        score_UK, place_UK = index(index.pack(query_UD), count, *left_out)
    return score_UK, place_UK


def _by_products(query_UD: Tensor, item_ND: Tensor, count: int, left_out: Pairs) -> tuple[Tensor, Tensor]:
    """Scores and places of the best items by inner products; -1 behind the last."""
    offsets, place_E = left_out
    block, found = max(1, SCORES // max(len(item_ND), 1)), []
    for first in range(0, len(query_UD), block):
        score_BN = query_UD[first : first + block] @ item_ND.t()
        lengths = offsets[first : first + len(score_BN) + 1].diff()
        row_E = torch.repeat_interleave(torch.arange(len(score_BN)), lengths)
        score_BN[row_E, place_E[int(offsets[first]) : int(offsets[first + len(score_BN)])]] = -torch.inf
        score_BK, place_BK = score_BN.topk(min(count, len(item_ND)), dim=1)
        found.append((score_BK, place_BK.masked_fill(score_BK == -torch.inf, -1)))
    return torch.cat([score for score, _ in found]), torch.cat([place for _, place in found])


def _known(log: str | None, lists: Mapping[str, Any], users: pa.Table, items: pa.Table) -> Pairs:
    """The places of the items that each user is known to have taken."""
    if log is None:
        return torch.zeros(len(users) + 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    user, item = lists["user"][0], lists["item"][0]
    return known_pairs(log, users[user], items[item], user, item)


def _write(out: Path, lists: Mapping[str, Any], users: pa.Table, items: pa.Table, found: tuple[Tensor, Tensor]) -> None:
    score_UK, place_UK = found
    row_E, column_E = torch.nonzero(place_UK >= 0, as_tuple=True)
    user, item = lists["user"][0], lists["item"][0]
    table = pa.table(
        {
            user: users[user].take(pa.array(row_E.numpy())),
            "place": pa.array((column_E + 1).numpy()),
            item: items[item].take(pa.array(place_UK[row_E, column_E].numpy())),
            "score": pa.array(score_UK[row_E, column_E].float().numpy()),
        }
    )
    with published(out) as work:
        pq.write_table(table, work)
