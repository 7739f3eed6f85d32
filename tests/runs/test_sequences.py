"""A whole run on sequences, from list columns and from the log itself: scored again, evaluated, and gone on from."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from recdistill.errors import LogError
from recdistill.runs.execute import Request, execute
from recdistill.runs.rescore import evaluate_run, score_run

SPEC: dict[str, Any] = {
    "time": "now",
    "row_id": ["key"],
    "serving": {
        "item": {"type": "id", "min_count": 1},
        "price": {"type": "numeric"},
        "liked": {"type": "sequence", "vocabulary": "item", "times": "liked_at", "max_length": 4},
        "seen": {
            "type": "sequence", "column": "item", "vocabulary": "item", "max_length": 5,
            "past": {"keys": "user", "where": {"buy": 1}, "gaps": True},
        },
    },
    "post_event": {"buy": "binary"},
}  # fmt: skip
ROWS = 900


def job(folder: Path, **changes: Any) -> dict[str, Any]:
    pool = {"seen": {"target_attention": {"target": "item"}}}
    return {
        "spec": str(folder / "spec.yaml"), "log": str(folder / "log.parquet"), "label": "buy",
        "members": {"student": {"net": {"deepfm": {"mlp": [8]}}, "dim": 4, "pool": pool, "serve": True, **changes}},
        "phases": [{"steps": 8, "terms": ["bce(student.logit, label)"], "stop": {"keep": "last"}}],
        "train": {"batch": 128, "table_std": 0.5}, "controls": {"none": "a test of columns alone"}, "seeds": 1,
    }  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, rng = tmp_path_factory.mktemp("sequences"), np.random.default_rng(0)
    liked = [rng.integers(0, 40, n).tolist() for n in rng.integers(0, 6, ROWS)]
    frame = pl.DataFrame(
        {
            "key": np.arange(ROWS), "now": np.arange(ROWS) * 60, "user": rng.integers(0, 60, ROWS),
            "item": rng.integers(0, 40, ROWS), "price": rng.normal(size=ROWS), "liked": liked,
            "liked_at": [sorted(rng.integers(-10_000, 0, len(row)).tolist()) for row in liked],
            "buy": rng.integers(0, 2, ROWS),
        }
    )  # fmt: skip
    frame.write_parquet(folder / "log.parquet")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    (folder / "job.yaml").write_text(yaml.safe_dump(job(folder)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECDISTILL_CACHE", str(folder / "cache"))
        execute(Request(folder / "job.yaml", folder / "run"))
    return folder


def scores(path: Path) -> pl.DataFrame:
    return pl.read_parquet(path).select("row_id", "logit")


def test_another_log_is_scored_and_evaluated_as_training_did(folder: Path, tmp_path: Path) -> None:
    run = folder / "run"
    assert score_run(run, str(folder / "log.parquet"), tmp_path / "scores.parquet") == ROWS
    known = scores(run / "seed_0" / "scores" / "student.test.parquet")
    both = scores(tmp_path / "scores.parquet").join(known, on="row_id")
    assert len(both) == len(known) > 50
    assert np.abs(both["logit"] - both["logit_right"]).max() <= 1e-5
    report = evaluate_run(run, str(folder / "log.parquet"))
    assert report["artefact"]["test"]["auc"]["mean"] == pytest.approx(
        report["members"]["student"]["test"]["auc"]["mean"], abs=1e-6
    )


def test_a_later_log_is_alone_and_must_hold_what_its_pasts_are_made_of(folder: Path, tmp_path: Path) -> None:
    frame, run = pl.read_parquet(folder / "log.parquet"), folder / "run"
    later = frame.tail(100)
    lists = {"seen": pl.Series([[]] * 100, dtype=pl.List(pl.Int64)), "seen/times": pl.lit(None, pl.List(pl.Int64))}
    alone = later.filter(pl.col("user").is_unique())  # in this log nobody has a past
    empty = later.with_columns(**lists).filter(pl.col("user").is_unique())
    found = []
    for name, log in {"alone": alone, "empty": empty.drop("buy"), "all": frame}.items():
        log.write_parquet(tmp_path / f"{name}.parquet")
        score_run(run, str(tmp_path / f"{name}.parquet"), tmp_path / f"{name}_scores.parquet")
        found.append(scores(tmp_path / f"{name}_scores.parquet"))
    assert found[0].equals(found[1]) and len(found[0]) > 5
    together = found[0].join(found[2], on="row_id")
    assert np.abs(together["logit"] - together["logit_right"]).max() > 1e-4
    later.drop("buy").write_parquet(tmp_path / "unknown.parquet")
    with pytest.raises(LogError, match="needs columns that neither the log nor a joined table has: 'buy'"):
        score_run(run, str(tmp_path / "unknown.parquet"), tmp_path / "none.parquet")


def test_training_goes_on_from_every_table_of_another_run(folder: Path, tmp_path: Path) -> None:
    """At a vanishing learning rate the warm student is the one that it began from."""
    still = job(folder, warm_start={"run": str(folder / "run"), "member": "student"})
    still["phases"][0]["steps"] = 1
    still["train"] |= {"tables": {"sgd": {"lr": 1e-12}}, "dense": {"sgd": {"lr": 1e-12}}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(still))
    execute(Request(tmp_path / "job.yaml", tmp_path / "run"))
    found, known = (
        scores(run / "seed_0" / "scores" / "student.test.parquet") for run in (tmp_path / "run", folder / "run")
    )
    assert np.abs(found["logit"] - known["logit"]).max() <= 1e-5


def test_times_that_are_more_or_fewer_than_the_values_are_refused(folder: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(folder / "log.parquet")
    swapped = frame.with_columns(
        pl.when(pl.col("key") == 3).then(pl.lit([1, 2])).otherwise("liked_at").alias("liked_at"),
        pl.when(pl.col("key").is_in([3, 4])).then(pl.lit([7])).otherwise("liked").alias("liked"),
    ).with_columns(
        pl.when(pl.col("key") == 4).then(pl.lit([], pl.List(pl.Int64))).otherwise("liked_at").alias("liked_at")
    )
    swapped.write_parquet(tmp_path / "log.parquet")
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job(folder) | {"log": str(tmp_path / "log.parquet")}))
    with pytest.raises(LogError, match="liked: 2 rows hold something else than one time in 'liked_at' for each value"):
        execute(Request(tmp_path / "job.yaml", tmp_path / "run"))
