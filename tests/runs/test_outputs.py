"""What a run says and writes besides its trainings: the artefact, the plan, references."""

import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recdistill.distill.layout import lay_out
from recdistill.errors import ExportError, LogError
from recdistill.runs import execute as execute_module
from recdistill.runs import export as export_module
from recdistill.runs.export import export_again
from recdistill.runs.plan import tables_of
from recdistill.runs.references import references
from tests.conftest import Small
from tests.runs.conftest import Command


@pytest.mark.parametrize("alarm", ["parity", "verify"])
def test_an_export_that_fails_leaves_the_artefact_that_was_there(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, alarm: str
) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    before = {path.name: path.read_bytes() for path in (again / "student").iterdir()}
    if alarm == "parity":
        monkeypatch.setattr(export_module, "_parity", lambda *_: 1.0)
    else:
        failed = {"ok": False, "checks": {"golden": {"ok": False, "detail": "differs"}}}
        monkeypatch.setattr(export_module.artefact, "verify", lambda _: failed)
    for out in (None, tmp_path / "new"):
        with pytest.raises(ExportError, match="logits differ from training" if alarm == "parity" else "verification"):
            export_again(again, out, None, 0)
    assert {path.name: path.read_bytes() for path in (again / "student").iterdir()} == before
    assert not (tmp_path / "new").exists() and [*tmp_path.glob(".*"), *again.glob(".student*")] == []


def test_plan_counts_the_optimizer_that_moves_a_table(small: Small) -> None:
    """A float32 row has as much again of state under adagrad, one number under rowwise adagrad, none under sgd."""
    own = {"members.teacher.share": {}, "members.teacher.tables": {"adagrad": {"lr": 0.1}}}
    plan, job, _ = small.plan({**own, "train.tables": {"sgd": {"lr": 0.1}}})
    layout = lay_out(plan.members, small.encoded.spec, small.encoded.fitted.tables)
    table = tables_of(plan, layout, job.train.tables)
    owner, _, rows, dim, mib = ([*column.cells] for column in table.columns)
    sizes = [int(r.replace(",", "")) * int(d) * 4 / 2**20 for r, d in zip(rows[:-1], dim[:-1], strict=True)]
    expected = [size * (2 if "teacher" in who else 1) for who, size in zip(owner[:-1], sizes, strict=True)]
    assert {who.partition("/")[0] for who in owner[:-1]} == {"student", "teacher"}
    assert mib == [f"{size:,.2f}" for size in [*expected, sum(expected)]]


def unscored(small: Small, path: Path, column: str, rows: pl.Expr) -> str:
    """The log, some rows of which have no score in a column."""
    hidden = pl.when(rows).then(None).otherwise(pl.col(column)).alias(column)
    pl.read_parquet(small.log).with_columns(hidden).write_parquet(path)
    return str(path)


TEST_ROWS = pl.col("day") == 9


def test_a_reference_that_lacks_scores_is_refused_before_anything_is_trained(
    job: Path, small: Small, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Any] = []
    monkeypatch.setattr(execute_module, "fit", lambda *given: trained.append(given))
    log = unscored(small, tmp_path / "log.parquet", "best_full", TEST_ROWS & (pl.col("impression_id") % 3 == 0))
    for words in (("run", job, "--log", log, "--out", tmp_path / "a"), ("plan", job, "--log", log)):
        status, _, err = command(*words)
        assert status == 2 and trained == []
        said = " ".join(err.split())
        assert "reference 'best_full':" in said and "labelled test rows have no finite score" in said


def test_rows_that_are_not_compared_need_no_reference(small: Small, tmp_path: Path) -> None:
    from recdistill.data.encode import encode

    idle = pl.col("purchase").is_null() | (pl.col("day") < 8)
    log = unscored(small, tmp_path / "log.parquet", "best_full", idle)
    found = references(encode(small.encoded.spec, log, tmp_path / "encoded"), "purchase")
    assert {*found} == {"best_serving", "best_full"} and all(len(by["test"].label_N) for by in found.values())
    with pytest.raises(LogError, match="reference 'best_full': 1 of"):
        last = pl.col("impression_id") == pl.col("impression_id").filter(TEST_ROWS & ~idle).last()
        log = unscored(small, tmp_path / "log.parquet", "best_full", last)
        references(encode(small.encoded.spec, log, tmp_path / "encoded"), "purchase")
