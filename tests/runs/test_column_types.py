"""A whole run on a spec with every column type: encoded, trained, exported, verified, and scored again."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from recdistill.data.simulate_spec import simulate_spec
from recdistill.runs.execute import Request, execute
from recdistill.runs.rescore import score_run
from recdistill.spec.features import FeatureSpec

SPEC = {
    "time": "at",
    "row_id": ["at"],
    "serving": {
        "user": {"type": "id", "min_count": 1},
        "city": {"type": "categorical"},
        "user_city": {"type": "cross", "of": ["user", "city", "title"], "hash": 300},
        "hour": {"type": "date_part", "part": "hour", "column": "at", "zone": "Asia/Shanghai"},
        "weekday": {"type": "date_part", "part": "hour_of_week", "column": "clock", "zone": "America/New_York"},
        "born": {"type": "date_part", "part": "month", "column": "birthday"},
        "price": {"type": "numeric", "log": True},
        "price_band": {"type": "numeric", "column": "price", "edges": [10, 20, 40]},
        "free": {"type": "missing", "column": "price"},
        "untagged": {"type": "missing", "column": "tags"},
        "never": {"type": "missing", "column": "clock"},
        "tags": {"type": "list", "weights": "how_much", "pool": "sum"},
        "labels": {"type": "list", "column": "tags", "weights": "how_much", "max_length": 2},
        "title": {"type": "text", "hash": 300, "ngrams": 2, "idf": True, "max_length": 5},
        "words": {"type": "text", "column": "title", "hash": 300, "lower": False, "pool": "sum"},
    },
    "post_event": {
        "buy": "binary",
        "review": {"type": "text", "hash": 50, "idf": True},
        "returned": {"type": "date_part", "part": "weekday"},
        "reply": {"type": "missing", "column": "reply_ms"},
        "mood_band": {"type": "cross", "of": ["mood", "reply_ms"], "hash": 50},
        "basket": {"type": "list", "weights": "amounts"},
    },
}
PRIVILEGED = [name for name in SPEC["post_event"] if name != "buy"]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated log, with columns of times and dates beside integers."""
    folder = tmp_path_factory.mktemp("types")
    plain = {**SPEC, "serving": {**SPEC["serving"]}}
    plain["serving"]["born"] = {**plain["serving"]["born"], "unit": "ms"}
    simulate_spec(FeatureSpec.model_validate(plain), folder / "log.parquet", rows=1500)
    frame = pl.read_parquet(folder / "log.parquet").with_columns(
        pl.from_epoch("clock", "ms").cast(pl.Datetime("ms")).dt.replace_time_zone("UTC"),
        pl.from_epoch("birthday", "ms").dt.date(),
    )
    frame.write_parquet(folder / "log.parquet")
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    return folder


@pytest.fixture(scope="module")
def run(log: Path) -> Path:
    job = {
        "spec": str(log / "spec.yaml"),
        "log": str(log / "log.parquet"),
        "label": "buy",
        "privileged": PRIVILEGED,
        "members": {
            "student": {"net": {"mlp": [8]}, "dim": 4, "serve": True},
            "teacher": {
                "net": {"mlp": [8]},
                "dim": 4,
                "view": ["serving", "privileged"],
                "share": {"tables": "student"},
            },
        },
        "phases": [
            {
                "steps": 6,
                "terms": [
                    "bce(student.logit, label)",
                    "bce(teacher.logit, label)",
                    "soft(student.logit, teacher.logit)",
                ],
            }
        ],
        "train": {"batch": 256, "table_std": 0.3},
        "controls": ["shuffled"],
        "seeds": 1,
    }
    (log / "job.yaml").write_text(yaml.safe_dump(job))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECDISTILL_CACHE", str(log / "cache"))
        execute(Request(log / "job.yaml", log / "run"))
    return log / "run"


def test_the_artefact_scores_every_column_type_as_training_did(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert report["artefact"]["parity_max_abs"] == 0
    assert set(report["artefact"]["verified"]) >= {"golden", "one_by_one", "empty", "missing", "bare", "no_privilege"}
    manifest = json.loads((run / "student" / "manifest.json").read_text())
    inputs = {entry["name"]: entry for entry in manifest["inputs"]}
    assert {name: entry["unit"] for name, entry in inputs.items() if "unit" in entry} == {
        "clock": "ms", "birthday": "day",
    }  # fmt: skip
    assert [name for name, entry in inputs.items() if entry["list"]] == ["tags", "how_much"]
    assert {feed["column"] for feed in inputs["title"]["feeds"]} == {"user_city", "title", "words"}


def test_the_test_split_scored_again_has_the_scores_of_the_run(run: Path, log: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(log / "log.parquet")
    later = frame.sort("at").tail(150)
    later.drop("buy", "review", "basket").write_parquet(tmp_path / "later.parquet")
    assert score_run(run, str(tmp_path / "later.parquet"), tmp_path / "scores.parquet") == 150
    known = pl.read_parquet(run / "seed_0" / "scores" / "student.test.parquet")
    both = pl.read_parquet(tmp_path / "scores.parquet").join(known, on="row_id")
    assert len(both) == 150 and np.abs(both["logit"] - both["logit_right"]).max() <= 1e-5


def test_a_member_that_reads_every_type_scores_another_log_too(run: Path, log: Path, tmp_path: Path) -> None:
    assert score_run(run, str(log / "log.parquet"), tmp_path / "scores.parquet", "teacher") == 1500
    known = pl.read_parquet(run / "seed_0" / "scores" / "teacher.test.parquet")
    both = pl.read_parquet(tmp_path / "scores.parquet").join(known, on="row_id")
    assert len(both) == 150 and np.abs(both["logit"] - both["logit_right"]).max() <= 1e-5


def test_a_run_can_begin_with_the_tables_of_another(run: Path, log: Path, tmp_path: Path) -> None:
    job = yaml.safe_load((log / "job.yaml").read_text())
    job["members"] = {"student": {**job["members"]["student"], "warm_start": {"run": str(run), "member": "student"}}}
    job |= {"phases": [{"steps": 1, "terms": ["bce(student.logit, label)"]}], "privileged": []}
    job |= {"controls": {"none": "a continued run has nothing to be compared with"}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    execute(Request(tmp_path / "job.yaml", tmp_path / "run"))
    assert json.loads((tmp_path / "run" / "report.json").read_text())["artefact"]["parity_max_abs"] == 0
