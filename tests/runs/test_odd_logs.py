"""Logs as other tools write them, from the files to an artefact that scores them again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from recdistill.runs.execute import Request, execute
from recdistill.runs.rescore import evaluate_run, score_run

SPEC: dict[str, Any] = {
    "row_id": "row",
    "split": {"hash": {"valid": 0.2, "test": 0.2}},
    "serving": {
        "item.sku": {"type": "id", "min_count": 1},
        "keys": {"type": "list"},
        "type": "categorical",
        "geo.clicks": {"type": "sequence", "vocabulary": "item.sku"},
        "price": "numeric",
    },
    "post_event": {"buy": "binary"},
}
DATE = {"type": "date_part", "column": "day", "part": "weekday"}
ROWS = 400


def frame() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    return pl.DataFrame(
        {
            "row": np.arange(ROWS),
            "item.sku": rng.integers(0, 9, ROWS),
            "keys": rng.integers(0, 5, (ROWS, 2)).tolist(),
            "type": rng.choice(["a", "b"], ROWS),
            "geo.clicks": rng.integers(0, 9, (ROWS, 3)).tolist(),
            "price": rng.integers(0, 1000, ROWS) / 100,
            "buy": rng.integers(0, 2, ROWS),
        }
    )


def trained(log: Path, folder: Path, spec: dict[str, Any]) -> Path:
    """A complete run on a log, its artefact verified."""
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    job = {
        "spec": str(folder / "spec.yaml"),
        "log": str(log),
        "label": "buy",
        "members": {"student": {"net": {"mlp": [4]}, "dim": 4, "serve": True}},
        "phases": [{"steps": 4, "terms": ["bce(student.logit, label)"]}],
        "train": {"batch": 64, "table_std": 0.3},
        "controls": {"none": "nothing is claimed here"},
        "seeds": 1,
    }
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    execute(Request(folder / "job.yaml", folder / "run"))
    return folder / "run"


def scored_again(run: Path, log: Path, folder: Path) -> int:
    """How many rows of the test split the artefact, given the raw log, has scored as the training did."""
    score_run(run, str(log), folder / "scores.parquet")
    known = pl.read_parquet(run / "seed_0" / "scores" / "student.test.parquet")
    both = pl.read_parquet(folder / "scores.parquet").join(known, on="row_id")
    assert np.abs(both["logit"] - both["logit_right"]).max() <= 1e-5
    return len(both)


def test_columns_may_have_names_that_modules_cannot_have(tmp_path: Path) -> None:
    """Dots, and names that containers of modules keep for themselves."""
    log = tmp_path / "log.parquet"
    frame().write_parquet(log)
    run = trained(log, tmp_path, SPEC)
    assert scored_again(run, log, tmp_path) > 40
    folder = run / "seed_0" / "checkpoints" / "final"
    tables = json.loads((folder / "layout.json").read_text())["members"]["student"]
    assert tables["item.sku"] == "tables.student-tokens.item.sku" and tables["keys"] == "tables.student.keys"


def test_partitions_decimals_arrays_and_mixed_widths_are_read_alike_everywhere(tmp_path: Path) -> None:
    log = tmp_path / "log"
    odd = frame().with_columns(
        pl.col("price").cast(pl.Decimal(9, 2)), pl.col("keys").cast(pl.Array(pl.Int64, 2)), hour=pl.col("row") % 3
    )
    for i, (part, width) in enumerate(zip(odd.iter_slices(200), (pl.Int32, pl.Int64), strict=True)):
        for (day,), rows in part.with_columns(pl.col("item.sku").cast(width)).group_by("hour"):
            (log / f"day=2024-01-0{i + 1}" / f"hour={day}").mkdir(parents=True)
            rows.drop("hour").write_parquet(log / f"day=2024-01-0{i + 1}" / f"hour={day}" / "part.parquet")
    spec = SPEC | {"serving": {**SPEC["serving"], "hour": "categorical", "weekday": DATE}, "group": "day"}
    run = trained(log, tmp_path, spec)
    assert scored_again(run, log, tmp_path) > 40
    inputs = {entry["name"]: entry for entry in json.loads((run / "student" / "manifest.json").read_text())["inputs"]}
    assert inputs["keys"]["list"] and inputs["day"]["unit"] == "day"
    assert evaluate_run(run, str(log))["rows"] == ROWS
