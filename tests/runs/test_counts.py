"""Labels are counted before anything is trained: too few of them are refused, the others are told."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from recdistill.data.counts import Count
from recdistill.errors import LogError
from recdistill.evaluation.report.wording import rows_of
from recdistill.runs import execute as execute_module
from recdistill.runs.console import conclusions, result_table
from recdistill.runs.counts import check_labels, labels_of
from recdistill.spec.graph import RankingSpec
from tests.conftest import Small
from tests.runs.conftest import Command

PARTS = {"train": pl.col("day") < 8, "valid": pl.col("day") == 8, "test": pl.col("day") == 9}
NULL, ZERO = pl.lit(None), pl.lit(0)


def log_with(small: Small, path: Path, rows: pl.Expr, value: pl.Expr) -> str:
    """The log, whose label has another value in some rows."""
    frame = pl.read_parquet(small.log)
    label = pl.when(rows).then(value).otherwise(pl.col("purchase")).cast(frame.schema["purchase"])
    frame.with_columns(label.alias("purchase")).write_parquet(path)
    return str(path)


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What has been trained, which should be nothing."""
    found: list[Any] = []
    monkeypatch.setattr(execute_module, "fit", lambda *given: found.append(given))
    return found


@pytest.mark.parametrize("split", PARTS)
@pytest.mark.parametrize(("value", "found"), [(NULL, "found 0 of"), (ZERO, "0.00% of them 1")])
def test_a_split_without_labels_or_with_one_class_is_refused_before_anything_is_trained(
    split: str,
    value: pl.Expr,
    found: str,
    job: Path,
    small: Small,
    command: Command,
    tmp_path: Path,
    trained: list[Any],
) -> None:
    log = log_with(small, tmp_path / "log.parquet", PARTS[split], value)
    for words in (("run", job, "--log", log, "--out", tmp_path / "a"), ("plan", job, "--log", log)):
        status, _, err = command(*words)
        said = " ".join(err.split())
        assert status == 2 and trained == []
        assert f"label 'purchase': the {split} split needs some rows with the label 0 and some with 1" in said
        assert found in said and "too young to have labels" in said


def test_run_and_plan_say_how_many_rows_are_labelled(
    job: Path, small: Small, command: Command, trained: list[Any]
) -> None:
    frame = pl.read_parquet(small.log)
    said = " ".join(command("plan", job)[1].split())
    assert rows_of(small.encoded.rows) in said and "mlp layers=16·8" in said and "{" not in said
    for rows in PARTS.values():
        label = frame.filter(rows)["purchase"]
        expected = Count(len(label), label.count(), int(label.sum() or 0))
        assert str(expected) in said
    assert str(Count(1200, 300, 75)) == "300 of 1,200 labelled, 25.00% of them 1"
    assert str(Count(5, 0, 0)) == "0 of 5 labelled" and trained == []


def counted(small: Small, **changes: Count) -> Callable[..., None]:
    """The check of the small job, with other counts of some splits."""
    plan, *_ = small.plan()
    found = {**labels_of(small.encoded, plan), **{split: {"purchase": count} for split, count in changes.items()}}
    return lambda **other: check_labels(found, replace(plan, **other))


def test_lists_are_learned_from_positive_rows_and_judged_without_labels(small: Small) -> None:
    positive, unknown = Count(9, 9, 9), Count(9, 0, 0)
    for check in (counted(small, train=positive), counted(small, valid=unknown), counted(small, test=positive)):
        with pytest.raises(LogError, match="label 'purchase'"):
            check()
        check(ranking=RankingSpec())
    with pytest.raises(LogError, match="the train split needs some rows whose label is known to learn from"):
        counted(small, train=unknown)(ranking=RankingSpec())
    counted(small, train=unknown)(phases=(), ranking=RankingSpec())


def test_evaluate_refuses_a_log_without_labels(run: Path, small: Small, command: Command, tmp_path: Path) -> None:
    log = log_with(small, tmp_path / "log.parquet", pl.lit(True), NULL)
    status, _, err = command("evaluate", run, "--log", log)
    assert status == 2 and "label 'purchase' is known in no row" in " ".join(err.split())


def test_a_report_without_numbers_is_shown_as_such() -> None:
    nothing = {"mean": None, "std": None, "per_seed": [None]}
    of_student = {"test": {"auc": nothing, "auc_ci": [None, None]}}
    compared = {"a": "student", "b": "plain", "delta": None, "ci": [None, None], "p_adjusted": None}
    report: dict[str, Any] = {
        "student": "student", "metric": "auc", "seeds": [0], "members": {"student": of_student}, "controls": {},
        "references": {"old": {"test": {"auc": None}}}, "verdict": "no evidence", "warnings": [], "recovered_gap": None,
        "comparisons": [{**compared, "minimum_detectable_effect": None}],
    }  # fmt: skip
    assert result_table(report).title == "test split, mean over 1 seed"
    found = conclusions(report)
    assert found[0].startswith("student - plain: n/a [n/a, n/a], p = n/a")
    assert found[1] == "distance to old: n/a AUC"


def test_a_recovered_gap_is_told_only_of_a_lead_that_is_one() -> None:
    entry = {"test": {"auc": {"mean": 0.7}}}
    report: dict[str, Any] = {
        "student": "student", "metric": "auc", "members": {"student": entry}, "references": {}, "warnings": [],
        "comparisons": [], "verdict": "no evidence",
    }  # fmt: skip
    gap = {"value": 0.6, "ci": [None, None]}
    uncertain = conclusions({**report, "recovered_gap": gap})[0]
    assert uncertain == "recovered gap: n/a, the teacher's lead over the plain student is itself uncertain"
    found = conclusions({**report, "recovered_gap": {"value": -0.001, "ci": [-0.004, 0.126]}})[0]
    assert found == "recovered gap: 0% [0%, 13%] of the teacher's lead over the plain student"
