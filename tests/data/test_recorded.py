"""Recorded scores: found by row id wherever they lie, and refused when they are not what is expected."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from recdistill.data.recorded import Provenance, RecordedScores, refuse_stale
from recdistill.errors import LogError

ROWS = 200
MADE_BY = Provenance("runs/monday", "teacher", 3, "abc", ["key"], ["buy", "click"])
IDS = torch.from_numpy(np.random.default_rng(0).permutation(10 * ROWS)[:ROWS] - 77)


def frame(order: list[int] | None = None) -> pl.DataFrame:
    made = pl.DataFrame(
        {
            "row_id": IDS.numpy(), "key": IDS.numpy() * 2, "logit": np.linspace(-3, 3, ROWS, dtype=np.float32),
            "score": np.full(ROWS, 0.5, np.float32), "logit.click": np.linspace(5, 6, ROWS, dtype=np.float32),
        }
    )  # fmt: skip
    return made if order is None else made[order]


def write(path: Path, rows: pl.DataFrame, made_by: Provenance | None = MADE_BY) -> Path:
    table = rows.to_arrow()
    pq.write_table(table if made_by is None else made_by.attach(table), path)
    return path


def logits(rows: pl.DataFrame, label: str = "logit") -> dict[int, float]:
    return dict(zip(rows["row_id"].to_list(), rows[label].to_list(), strict=True))


def reads_each_row_its_own(open_file: Callable[[Path, list[str]], Any], folder: Path) -> bool:
    """Whether every row gets its own logit, in any order of the file and of the rows that are asked for."""
    expected = logits(frame())
    backwards, shuffled = [*range(ROWS - 1, -1, -1)], np.random.default_rng(1).permutation(ROWS).tolist()
    for k, order in enumerate((None, backwards, shuffled)):
        scores = open_file(write(folder / f"{k}.parquet", frame(order)), ["buy"])
        for asked in (IDS, IDS[torch.tensor(shuffled)], IDS[5:9], IDS[:1]):
            if scores.read(asked)[:, 0].tolist() != [expected[row] for row in asked.tolist()]:
                return False
    return True


class ByPosition(RecordedScores):
    """The wrong twin: a cache that trusts the order of the log."""

    def __init__(self, file: Path, row_id_N: Any, logits_NK: Any) -> None:
        super().__init__(file, row_id_N, logits_NK)
        self.logits_NK = torch.from_numpy(logits_NK.copy())

    def read(self, row_id_B: Tensor) -> Tensor:
        return self.logits_NK[: len(row_id_B)]


def test_scores_are_found_by_row_id_and_not_by_position(tmp_path: Path) -> None:
    assert reads_each_row_its_own(RecordedScores.open, tmp_path)
    assert not reads_each_row_its_own(ByPosition.open, tmp_path)


def test_several_labels_are_read_in_the_order_that_is_asked_for(tmp_path: Path) -> None:
    file = write(tmp_path / "s.parquet", frame())
    both, turned = RecordedScores.open(file, ["buy", "click"]).read(IDS), RecordedScores.open(file, ["click", "buy"])
    assert both.shape == (ROWS, 2) and both.dtype == torch.float32
    assert both[:, 1].tolist() == frame()["logit.click"].to_list()
    assert torch.equal(turned.read(IDS), both.flip(1))


def test_logits_are_shifted_to_a_log_without_some_negatives(tmp_path: Path) -> None:
    file = write(tmp_path / "s.parquet", frame())
    plain, shifted = (RecordedScores.open(file, ["buy"], s).read(IDS) for s in (0.0, 1.5))
    assert torch.allclose(shifted, plain + 1.5)


@pytest.mark.parametrize("asked", [[0], [0, 1], [2**62], [-(2**63)], [2**63 - 1]])
def test_a_row_that_was_not_scored_is_refused(tmp_path: Path, asked: list[int]) -> None:
    scores = RecordedScores.open(write(tmp_path / "s.parquet", frame()), ["buy"])
    unknown = torch.tensor([row + 10**7 if abs(row) < 10 else row for row in asked])
    rows = torch.cat([IDS[:3], unknown])
    message = f"s.parquet: holds no scores of {len(asked)} of {len(rows)} rows that are asked for; score the whole log"
    with pytest.raises(LogError, match=message):
        scores.read(rows)
    empty = RecordedScores.open(write(tmp_path / "none.parquet", frame()[:0]), ["buy"])
    with pytest.raises(LogError, match="holds no scores of 4 of 4 rows"):
        empty.read(IDS[:4])
    assert scores.read(IDS[:0]).shape == (0, 1)


def test_a_row_that_is_scored_twice_is_refused(tmp_path: Path) -> None:
    twice = pl.concat([frame(), frame()[17:18]])
    with pytest.raises(LogError, match="scores a row twice; score a log whose rows are identified"):
        RecordedScores.open(write(tmp_path / "s.parquet", twice), ["buy"])


def test_a_file_says_whose_scores_it_holds(tmp_path: Path) -> None:
    file = write(tmp_path / "s.parquet", frame())
    assert Provenance.of(file) == MADE_BY
    kept = pq.read_table(file)
    assert kept.column_names == frame().columns
    other = MADE_BY.attach(pa.table({"a": [1]}).replace_schema_metadata({b"theirs": b"kept"}))
    assert other.schema.metadata[b"theirs"] == b"kept"


@pytest.mark.parametrize("content", [None, b"nothing", b'{"run": "x"}', b"[]"])
def test_a_file_that_says_nothing_is_refused(tmp_path: Path, content: bytes | None) -> None:
    table = frame().to_arrow()
    if content is not None:
        table = table.replace_schema_metadata({b"recdistill": content})
    pq.write_table(table, tmp_path / "s.parquet")
    for ask in (Provenance.of, lambda file: RecordedScores.open(file, ["buy"])):
        with pytest.raises(LogError, match=r"whose scores it holds .* write it with `recdistill score RUN"):
            ask(tmp_path / "s.parquet")
    with pytest.raises(LogError, match="does not say whose scores it holds"):
        Provenance.of(tmp_path / "absent.parquet")
    (tmp_path / "s.parquet").write_bytes(b"nothing")
    with pytest.raises(LogError, match="does not say whose scores it holds"):
        Provenance.of(tmp_path / "s.parquet")


def test_a_label_without_scores_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "s.parquet", frame())
    with pytest.raises(LogError, match=r"holds no scores of \['dwell'\], only of \['buy', 'click'\]"):
        RecordedScores.open(file, ["buy", "dwell"])
    lacking = write(tmp_path / "l.parquet", frame().drop("logit.click"))
    with pytest.raises(LogError, match=r"l.parquet: cannot be read .* write it again"):
        RecordedScores.open(lacking, ["click"])


@pytest.mark.parametrize(
    ("field", "value"),
    [("fingerprint", "abd"), ("row_id", ["key", "day"]), ("row_id", []), ("labels", ["buy"]), ("seed", 4),
     ("out_of_fold", True), ("member", "student")],
)  # fmt: skip
def test_scores_of_something_else_are_refused_and_the_difference_is_named(
    tmp_path: Path, field: str, value: Any
) -> None:
    file = write(tmp_path / "s.parquet", frame())
    refuse_stale(file, asdict(MADE_BY))  # which they are
    refuse_stale(file, {})
    with pytest.raises(LogError, match=f"its scores are of another {field}: expected .*score the log again"):
        refuse_stale(file, asdict(replace(MADE_BY, **{field: value})))
