"""History columns from a log to an artefact and to logs of later days."""

import dataclasses
import json
import os
from pathlib import Path

import polars as pl
import pytest
import yaml

from recdistill.data.encoded import load_fitted
from recdistill.runs.execute import Request, execute
from recdistill.runs.rescore import evaluate_run, plain_spec, score_artefact, score_run
from tests.conftest import ROOT, Small

SERVED = {
    "user_rate": {"type": "history", "keys": "user_id", "of": "purchase", "session": "day"},
    "seen": {"type": "history", "keys": ["user_id", "category"], "half_life": 86_400_000},
}
DEAR = {"user_item_clicks": {"type": "history", "keys": ["user_id", "item_id"], "of": "click", "value": "count"}}


@pytest.fixture(scope="module")
def run(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run with histories on both sides, trained once more on train and valid in the end."""
    folder = tmp_path_factory.mktemp("histories")
    spec = yaml.safe_load((ROOT / "feature_specs" / "marketplace.yaml").read_text())
    spec["serving"] |= SERVED
    spec["post_event"] |= DEAR
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    job = {**small.job, "spec": str(folder / "spec.yaml"), "seeds": 1, "privileged": ["dwell_ms", "user_item_clicks"]}
    job["train"] = {**job["train"], "refit": True}
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    before = os.environ.get("RECDISTILL_CACHE")
    os.environ["RECDISTILL_CACHE"] = str(folder / "cache")
    try:
        execute(Request(folder / "job.yaml", folder / "run"))
    finally:
        if before is not None:
            os.environ["RECDISTILL_CACHE"] = before
    return folder / "run"


@pytest.fixture(scope="module")
def later(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The test days as a log of their own, without outcomes."""
    path = tmp_path_factory.mktemp("later") / "log.parquet"
    pl.read_parquet(small.log).filter(pl.col("day") == 9).drop("purchase", "click", "day", "time_ms").write_parquet(
        path
    )
    return path


def test_the_artefact_answers_what_training_has_evaluated(run: Path, small: Small) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["artefact"]["parity_max_abs"] <= 1e-6
    assert "no_privilege" in report["artefact"]["verified"]
    found = evaluate_run(run, str(small.log))
    assert found["rows"] == pl.read_parquet(small.log).height


def test_a_later_log_needs_the_keys_alone(run: Path, later: Path, tmp_path: Path) -> None:
    rows = score_run(run, str(later), tmp_path / "scores.parquet")
    scores = pl.read_parquet(tmp_path / "scores.parquet")["logit"]
    known = pl.read_parquet(run / "seed_0" / "scores" / "student.test.parquet")["logit"]
    assert rows == len(known)
    assert (scores - known).abs().max() <= 1e-5  # type: ignore[operator]


def test_a_member_may_be_asked_about_a_later_log(run: Path, later: Path, tmp_path: Path) -> None:
    rows = pl.read_parquet(later).height
    assert score_run(run, str(later), tmp_path / "teacher.parquet", "teacher") == rows


def test_a_later_log_may_bring_fresher_values(run: Path, later: Path, tmp_path: Path) -> None:
    fresh = pl.read_parquet(later).with_columns(user_rate=pl.when(pl.int_range(pl.len()) == 0).then(0.9))
    fresh.write_parquet(tmp_path / "fresh.parquet")
    spec = plain_spec(run / "student", str(later))
    assert "user_rate" not in spec.serving
    logits = {}
    for name, log in (("known", later), ("fresh", tmp_path / "fresh.parquet")):
        score_artefact(run / "student", str(log), tmp_path / "out.parquet", spec)
        logits[name] = pl.read_parquet(tmp_path / "out.parquet")["logit"]
    assert logits["known"][0] != logits["fresh"][0]
    assert logits["known"][1:].equals(logits["fresh"][1:])


def test_a_frozen_member_reads_histories_of_the_job_that_it_teaches_in(
    run: Path, small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known of the keys is data, which may differ; only numbers that are scaled otherwise are refused."""
    monkeypatch.setenv("RECDISTILL_CACHE", str(run.parent / "cache"))
    first, second = tmp_path / "first", tmp_path / "second"
    job = yaml.safe_load((run.parent / "job.yaml").read_text())
    job |= {"train": {**job["train"], "refit": False}, "controls": {"none": "nothing is claimed here"}}
    teacher = {key: value for key, value in job["members"]["teacher"].items() if key != "share"}
    frozen = {**teacher, "frozen": {"run": str(first), "member": "teacher"}}
    terms = ["bce(student.logit, label)", "soft(student.logit, teacher.logit)"]
    for folder, member, taught in ((first, teacher, ["bce(teacher.logit, label)"]), (second, frozen, [])):
        job["members"]["teacher"] = member
        job["phases"] = [{"steps": 4, "terms": [*terms, *taught]}]
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        execute(Request(tmp_path / "job.yaml", folder))
    scores = [pl.read_parquet(r / "seed_0/scores/teacher.test.parquet")["logit"] for r in (first, second)]
    assert (scores[0] - scores[1]).abs().max() <= 1e-5  # type: ignore[operator]
    theirs = load_fitted(first / "fitted").columns["user_rate"]
    known = dataclasses.replace(theirs, snapshot=theirs.snapshot.head(1))  # type: ignore[type-var, attr-defined]
    assert known.scaling == theirs.scaling != dataclasses.replace(known, scale=2.0).scaling  # type: ignore[call-arg]
