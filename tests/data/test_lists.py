"""Whole lists: all rows of a group in one batch, every row once in an epoch, and nothing told by the order."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from recdistill.data import encode as encode_module
from recdistill.data import lists as lists_module
from recdistill.data.batch import Batch
from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.data.lists import in_lists, list_of, row_groups
from recdistill.data.permute import permute_privileged
from recdistill.data.reader import Reader, Selection
from recdistill.data.thinning import Thinning
from recdistill.errors import LogError
from tests.data.logs import raw, spec, write

ROWS = 1000
SELECTION = Selection(("user", "city", "tags", "price"), ("dwell_ms", "seen"), ("buy",), groups=True)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    """800 training rows of 60 users, some of whom have hardly a row, one has 150, and 40 rows have none."""
    folder, rng = tmp_path_factory.mktemp("lists"), np.random.default_rng(5)
    users = np.minimum(rng.geometric(0.05, ROWS), 60)
    users[rng.choice(ROWS, 180, replace=False)] = 99
    frame = raw(ROWS).with_columns(user=pl.Series(users).set(pl.Series(rng.random(ROWS) < 0.04), None))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encode_module, "GROUP_ROWS", 64)
        patch.setattr(encode_module, "SHARD_ROWS", 256)
        return encode(spec(), write(frame, folder / "log.parquet"), folder / "encoded")


@pytest.fixture(scope="module")
def log(plain: EncodedLog, tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lists_module, "GROUP_ROWS", 64)
        return in_lists(plain, ("train",), tmp_path_factory.mktemp("ordered") / "log")


def lists_by_row(log: EncodedLog) -> dict[int, int]:
    frame = log.labels("train").select("row_id", "group").collect()
    return dict(zip(frame["row_id"].to_list(), list_of(frame).tolist(), strict=True))


def batches(log: EncodedLog, size: int, *, seed: int = 0, epoch: int = 0, whole: bool = True) -> list[Batch]:
    return list(Reader(log, ("train",), SELECTION, whole_lists=whole).shuffled(size, seed=seed, epoch=epoch))


def cut_lists(log: EncodedLog, found: list[Batch]) -> int:
    """How many lists stand in more than one batch."""
    of_row = lists_by_row(log)
    seen = Counter(group for batch in found for group in {of_row[row] for row in batch.row_id_B.tolist()})
    return sum(count > 1 for count in seen.values())


@pytest.mark.parametrize("size", [1, 16, 50, 128, 149, 400, 5000])
def test_no_list_is_cut_and_every_row_comes_once(log: EncodedLog, size: int) -> None:
    for epoch in range(3):
        found = batches(log, size, epoch=epoch)
        assert cut_lists(log, found) == 0
        assert sorted(row for b in found for row in b.row_id_B.tolist()) == sorted(lists_by_row(log))
    assert cut_lists(log, batches(log, 128, whole=False)) > 20  # the wrong twin: rows shuffled one by one


@pytest.mark.parametrize("size", [1, 16, 50, 128, 149, 400, 5000])
def test_all_epochs_have_as_many_batches_as_are_planned(log: EncodedLog, size: int) -> None:
    planned = Reader(log, ("train",), SELECTION, whole_lists=True).steps(size)
    assert [len(batches(log, size, seed=s, epoch=e)) for s in range(3) for e in range(4)] == [planned] * 12
    largest = max(Counter(lists_by_row(log).values()).values())
    assert largest > 128
    sizes = [len(b) for b in batches(log, size)]
    assert max(sizes) < max(2 * size, largest + 1)
    assert not any(len(b) == 0 for b in batches(log, size))


def test_a_list_larger_than_a_batch_is_a_batch_of_its_own(log: EncodedLog) -> None:
    of_row = lists_by_row(log)
    for batch in batches(log, 100):
        groups = Counter(of_row[row] for row in batch.row_id_B.tolist())
        assert len(groups) == 1 or max(groups.values()) <= 100


def test_epochs_and_seeds_differ_and_the_same_seed_gives_the_same_batches(log: EncodedLog) -> None:
    orders = {
        (seed, epoch): [b.row_id_B.tolist() for b in batches(log, 128, seed=seed, epoch=epoch)]
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len({str(order) for order in orders.values()}) == 4
    assert [b.row_id_B.tolist() for b in batches(log, 128, seed=1, epoch=1)] == orders[1, 1]
    of_row = lists_by_row(log)
    together = [{tuple(sorted({of_row[r] for r in rows})) for rows in orders[0, e]} for e in (0, 1)]
    assert together[0] != together[1]  # other lists meet


def test_a_row_without_a_group_is_alone(log: EncodedLog) -> None:
    frame = log.labels("train").select("row_id", "group").collect()
    alone = frame.filter(pl.col("group").is_null())["row_id"].to_list()
    of_row = lists_by_row(log)
    counts = Counter(of_row.values())
    assert len(alone) > 20 and all(counts[of_row[row]] == 1 for row in alone)
    found = batches(log, 128)
    read = [pair for b in found for pair in zip(b.row_id_B.tolist(), b.groups().tolist(), strict=True)]
    assert dict(read) == of_row


def test_rows_keep_all_their_values(log: EncodedLog, plain: EncodedLog) -> None:
    for view in plain.views:
        before, after = (each.view("train", view).sort("row_id").collect() for each in (plain, log))
        assert before.equals(after)
        assert not plain.view("train", view).collect().equals(log.view("train", view).collect())
        for split in ("valid", "test"):
            assert plain.view(split, view).collect().equals(log.view(split, view).collect())
    ids = [log.view("train", view).select("row_id").collect()["row_id"].to_list() for view in log.views]
    assert ids[0] == ids[1] == ids[2]


def test_rows_of_one_list_follow_each_other_in_the_order_of_the_log(log: EncodedLog, plain: EncodedLog) -> None:
    place = {row: i for i, row in enumerate(plain.labels("train").collect()["row_id"].to_list())}
    of_row, last = lists_by_row(log), dict[int, int]()
    seen: list[int] = []
    for row in log.labels("train").collect()["row_id"].to_list():
        if not seen or seen[-1] != of_row[row]:
            seen.append(of_row[row])
        assert place[row] > last.get(of_row[row], -1)
        last[of_row[row]] = place[row]
    assert len(seen) == len({*seen})  # each list in one piece
    users = [user for user in log.labels("train").collect()["group"].to_list() if user is not None]
    assert users != sorted(users)  # the order of the lists tells nothing


def test_no_row_group_cuts_a_list(log: EncodedLog) -> None:
    (file,) = log.files("train", "labels")
    of_row, seen = lists_by_row(log), set[int]()
    groups = pq.ParquetFile(file)
    assert groups.metadata.num_row_groups > 5
    for k in range(groups.metadata.num_row_groups):
        here = {of_row[row] for row in groups.read_row_group(k)["row_id"].to_pylist()}
        assert not here & seen
        seen |= here


def test_row_groups_end_with_a_list_and_hold_enough_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lists_module, "GROUP_ROWS", 3)
    assert row_groups(np.array([7, 7, 7, 7, 5, 6, 6, 6, 8])) == [0, 4, 8, 9]
    assert row_groups(np.array([7, 7])) == [0, 2]
    assert row_groups(np.zeros(0, np.int64)) == [0, 0]


def test_thinned_lists_are_whole_among_the_rows_that_are_left(log: EncodedLog) -> None:
    reader = Reader(log, ("train",), SELECTION, Thinning(0, negative_keep_rate=0.3), whole_lists=True)
    for epoch in range(3):
        found = list(reader.shuffled(50, seed=0, epoch=epoch))
        assert cut_lists(log, found) == 0 and len(found) == reader.steps(50)
        assert sum(map(len, found)) == reader.rows() < 800
    whole, thinned = (Reader(log, ("train",), SELECTION, t, whole_lists=True) for t in (Thinning(), reader.thinning))
    assert thinned.steps(50) < whole.steps(50)


def test_permuted_columns_have_the_row_groups_of_the_lists(log: EncodedLog, plain: EncodedLog, tmp_path: Path) -> None:
    dwell = []
    for each in (plain, log):
        out = tmp_path / each.fingerprint
        permute_privileged(each, "train", ("dwell_ms", "seen"), seed=0, out=out)
        reader = Reader(each, ("train",), SELECTION, post_event=out, whole_lists=each is log)
        found = list(reader.shuffled(128, seed=0, epoch=0))
        values = [b.privileged.floats(("dwell_ms",))[:, 0].tolist() for b in found if b.privileged is not None]
        rows = [row for b in found for row in b.row_id_B.tolist()]
        dwell.append(dict(zip(rows, [v for batch in values for v in batch], strict=True)))
    assert len(dwell[0]) == 800 and dwell[0] == dwell[1]  # the permutation does not depend on the order of the log


def test_lists_need_no_second_names_for_files(
    log: EncodedLog, plain: EncodedLog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError("hard links are not supported here")

    monkeypatch.setattr("os.link", refuse)
    monkeypatch.setattr(lists_module, "GROUP_ROWS", 64)
    copied = in_lists(plain, ("train",), tmp_path / "lists")

    def files(folder: Path) -> dict[str, bytes]:
        return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    assert files(copied.folder) == files(log.folder)


def test_another_order_is_another_log(log: EncodedLog, plain: EncodedLog, tmp_path: Path) -> None:
    both = in_lists(plain, ("train", "valid"), tmp_path / "both")
    assert len({plain.fingerprint, log.fingerprint, both.fingerprint}) == 3
    assert EncodedLog.open(plain.folder).fingerprint == plain.fingerprint  # its files are linked, not written to
    assert EncodedLog.open(log.folder).fingerprint == log.fingerprint
    again = in_lists(plain, ("train", "valid"), tmp_path / "both")  # used as it is
    assert again.fingerprint == both.fingerprint
    assert [p.name for p in tmp_path.iterdir()] == ["both"]


def test_a_log_without_groups_has_no_lists(tmp_path: Path) -> None:
    alone = encode(spec(group=None), write(raw(50), tmp_path / "log.parquet"), tmp_path / "encoded")
    with pytest.raises(LogError, match="has no groups, so there are no lists; name the spec's `group`"):
        in_lists(alone, ("train",), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def by_position(frame: pl.DataFrame) -> Any:
    """A wrong twin: every run of rows with one group is a list."""
    groups = frame["group"].fill_null(-1).to_numpy()
    return np.cumsum(np.r_[0, groups[1:] != groups[:-1]])


@pytest.mark.parametrize(("of", "cut"), [(list_of, False), (by_position, True)])
def test_lists_are_found_wherever_their_rows_lie(
    plain: EncodedLog,
    log: EncodedLog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    of: Callable[..., Any],
    cut: bool,
) -> None:
    monkeypatch.setattr(lists_module, "list_of", of)
    monkeypatch.setattr(lists_module, "GROUP_ROWS", 64)
    made = in_lists(plain, ("train",), tmp_path / "made")
    assert (cut_lists(log, batches(made, 128)) > 0) == cut
