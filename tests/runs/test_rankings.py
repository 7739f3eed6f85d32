"""Runs whose result is a metric of lists: what they keep, how they are evaluated and compared, who reads them later."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from recdistill.data.graph import Graph
from recdistill.runs.execute import Request, execute
from recdistill.runs.rescore import Finished, score_run
from recdistill.spec.load import assign
from recdistill.training.rankings import vectors_of
from tests.conftest import Small
from tests.runs.test_runs import command

__all__ = ["command"]

Command = Callable[..., tuple[int, str, str]]


def trained(tastes: Small, folder: Path, changes: dict[str, Any] | None = None) -> Path:
    """A run of the small job."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(assign(tastes.job, changes or {}, "test")))
    before = os.environ.get("RECDISTILL_CACHE")
    os.environ["RECDISTILL_CACHE"] = str(folder / "cache")
    try:
        return execute(Request(folder / "job.yaml", folder / "run")).root
    finally:
        os.environ.pop("RECDISTILL_CACHE") if before is None else os.environ.update(RECDISTILL_CACHE=before)


@pytest.fixture(scope="module")
def run(tastes: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tastes, tmp_path_factory.mktemp("lists"))


@pytest.fixture(scope="module")
def splits(tastes: Small, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The raw rows of training, validation and test."""
    folder, rows = tmp_path_factory.mktemp("splits"), pl.read_parquet(tastes.log)
    paths = [folder / f"{part}.parquet" for part in range(3)]
    for part, path in enumerate(paths):
        rows.filter(pl.col("part") == part).write_parquet(path)
    return paths


def test_evaluate_judges_lists_and_finds_what_the_report_says(
    run: Path, splits: list[Path], command: Command, tmp_path: Path
) -> None:
    status, out, err = command("evaluate", run, "--log", splits[2], "--json", tmp_path / "found.json")
    assert status == 0, err
    assert "Recall@5" in out
    found, report = json.loads((tmp_path / "found.json").read_text()), json.loads((run / "report.json").read_text())
    assert found["metric"] == report["metric"] == "recall@5" and found["rows"] == 240
    for member in ("student", "gcn"):
        test = report["members"][member]["test"]
        assert found["members"][member]["test"] == test and 0 < test["recall@5"]["mean"] < 1


def test_a_graph_member_scores_another_log_as_its_run_did(run: Path, splits: list[Path], tmp_path: Path) -> None:
    assert score_run(run, str(splits[2]), tmp_path / "scores.parquet", "gcn") == 240
    again = pl.read_parquet(tmp_path / "scores.parquet")
    before = pl.read_parquet(run / "seed_0" / "scores" / "gcn.test.parquet")
    both = before.join(again, on="row_id", suffix="_again")
    assert len(both) == 240 and float((both["logit"] - both["logit_again"]).abs().max()) < 1e-6
    assert float(both["logit"].std()) > 1e-3


def test_a_run_keeps_the_graph_that_was_trained_on(run: Path, tastes: Small) -> None:
    graph, rows = Graph.load(run / "nodes" / "graph.safetensors"), pl.read_parquet(tastes.log)
    assert len(graph.user_E) == rows.filter(pl.col("part") == 0).select("user_id", "item_id").n_unique()
    known = Graph.load(run / "nodes" / "known.safetensors")
    assert len(known.user_E) <= rows.filter(pl.col("part") < 2).height and len(known.user_E) > len(graph.user_E)


def test_a_frozen_graph_member_answers_as_in_its_own_run(
    run: Path, tastes: Small, splits: list[Path], tmp_path: Path
) -> None:
    """Its graph is not that of the job that it teaches in, whose users and items it has known only in part."""
    teacher = {"frozen": {"run": str(run), "member": "gcn"}}
    second = {
        "members.gcn": teacher, "phases": [tastes.job["phases"][1]], "train.refit": True, "graph.min_degree": [1, 4],
        "controls": {"none": "nothing to compare with"},
    }  # fmt: skip
    later = trained(tastes, tmp_path / "later", second)
    third = trained(tastes, tmp_path / "third", {**second, "members.gcn.frozen.run": str(later)})
    answers = {}
    for name in (run, later, third):
        score_run(name, str(splits[2]), tmp_path / "scores.parquet", "gcn")
        answers[name] = pl.read_parquet(tmp_path / "scores.parquet")["logit"].to_numpy()
    assert np.abs(answers[later] - answers[run]).max() < 1e-6
    assert np.abs(answers[third] - answers[run]).max() < 1e-6
    first, other = (len(Graph.load(name / "nodes" / "graph.safetensors").user_E) for name in (run, later))
    assert first != other  # so that its own graph matters


def test_what_a_run_has_not_kept_is_said(run: Path, splits: list[Path], command: Command, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "nodes")
    status, _, err = command("evaluate", tmp_path / "run", "--log", splits[2])
    assert status == 2 and "holds no readable graph" in err


def test_the_vectors_of_an_opened_run_are_those_of_training(run: Path, tastes: Small, group: None) -> None:
    finished = Finished.open(run)
    with finished.encoded(str(tastes.log), finished.spec.model_copy(update={"split": None}), {}) as log:
        cast = finished.engine(finished.plan, log, 0).cast
        codes = vectors_of(cast, "student", seed=0).item_ID
    assert bool((codes.abs() == 1).all()) and len(torch.unique(codes, dim=0)) > 1


def test_compare_puts_metrics_of_lists_side_by_side(run: Path, tastes: Small, command: Command, tmp_path: Path) -> None:
    other = trained(tastes, tmp_path / "other", {"phases.1.steps": 3, "controls": {"none": "nothing to compare with"}})
    status, out, err = command("compare", run, other)
    assert status == 0, err
    assert "Recall@5 [95 % interval]" in out and "log loss" not in out and "(Holm)" in out and "phases.1.steps" in out
    report = json.loads((other / "report.json").read_text())
    (other / "report.json").write_text(json.dumps({**report, "metric": "auc"}))
    status, _, err = command("compare", run, other)
    assert status == 2 and "different metrics" in err
