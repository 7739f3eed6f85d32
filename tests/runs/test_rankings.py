"""Runs whose result is a metric of lists: what they keep, how they are evaluated and compared, who reads them later."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import torch

from recdistill.data.graph import Graph
from recdistill.runs.rescore import Finished, score_run
from recdistill.training.rankings import vectors_of
from tests.conftest import Small
from tests.runs.conftest import Command, trained


def test_evaluate_judges_lists_and_finds_what_the_report_says(
    ranked: Path, splits: list[Path], command: Command, tmp_path: Path
) -> None:
    status, out, err = command("evaluate", ranked, "--log", splits[2], "--json", tmp_path / "found.json")
    assert status == 0, err
    assert "Recall@5" in out
    found, report = json.loads((tmp_path / "found.json").read_text()), json.loads((ranked / "report.json").read_text())
    assert found["metric"] == report["metric"] == "recall@5" and found["rows"] == 240
    for member in ("student", "gcn"):
        test = report["members"][member]["test"]
        assert found["members"][member]["test"] == test and 0 < test["recall@5"]["mean"] < 1


def test_a_graph_member_scores_another_log_as_its_run_did(ranked: Path, splits: list[Path], tmp_path: Path) -> None:
    assert score_run(ranked, str(splits[2]), tmp_path / "scores.parquet", "gcn") == 240
    again = pl.read_parquet(tmp_path / "scores.parquet")
    before = pl.read_parquet(ranked / "seed_0" / "scores" / "gcn.test.parquet")
    both = before.join(again, on="row_id", suffix="_again")
    assert len(both) == 240 and float((both["logit"] - both["logit_again"]).abs().max()) < 1e-6
    assert float(both["logit"].std()) > 1e-3


def test_a_run_keeps_the_graph_that_was_trained_on(ranked: Path, tastes: Small) -> None:
    graph, rows = Graph.load(ranked / "nodes" / "graph.safetensors"), pl.read_parquet(tastes.log)
    assert len(graph.user_E) == rows.filter(pl.col("part") == 0).select("user_id", "item_id").n_unique()
    known = Graph.load(ranked / "nodes" / "known.safetensors")
    assert len(known.user_E) <= rows.filter(pl.col("part") < 2).height and len(known.user_E) > len(graph.user_E)


def test_a_frozen_graph_member_answers_as_in_its_own_run(
    ranked: Path, tastes: Small, splits: list[Path], tmp_path: Path
) -> None:
    """Its graph is not that of the job that it teaches in, whose users and items it has known only in part."""
    teacher = {"frozen": {"run": str(ranked), "member": "gcn"}}
    second = {
        "members.gcn": teacher, "phases": [tastes.job["phases"][1]], "train.refit": True, "graph.min_degree": [1, 4],
        "controls": {"none": "nothing to compare with"},
    }  # fmt: skip
    later = trained(tastes, tmp_path / "later", second)
    third = trained(tastes, tmp_path / "third", {**second, "members.gcn.frozen.run": str(later)})
    answers = {}
    for name in (ranked, later, third):
        score_run(name, str(splits[2]), tmp_path / "scores.parquet", "gcn")
        answers[name] = pl.read_parquet(tmp_path / "scores.parquet")["logit"].to_numpy()
    assert np.abs(answers[later] - answers[ranked]).max() < 1e-6
    assert np.abs(answers[third] - answers[ranked]).max() < 1e-6
    first, other = (len(Graph.load(name / "nodes" / "graph.safetensors").user_E) for name in (ranked, later))
    assert first != other  # so that its own graph matters


def test_what_a_run_has_not_kept_is_said(ranked: Path, splits: list[Path], command: Command, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(ranked, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "nodes")
    status, _, err = command("evaluate", tmp_path / "run", "--log", splits[2])
    assert status == 2 and "holds no readable graph" in err


def test_the_vectors_of_an_opened_run_are_those_of_training(ranked: Path, tastes: Small, group: None) -> None:
    finished = Finished.open(ranked)
    with finished.encoded(str(tastes.log), finished.spec.model_copy(update={"split": None}), {}) as log:
        cast = finished.engine(log, 0).cast
        codes = vectors_of(cast, "student", seed=0).item_ID
    assert bool((codes.abs() == 1).all()) and len(torch.unique(codes, dim=0)) > 1


def test_compare_puts_metrics_of_lists_side_by_side(
    ranked: Path, tastes: Small, command: Command, tmp_path: Path
) -> None:
    other = trained(tastes, tmp_path / "other", {"phases.1.steps": 3, "controls": {"none": "nothing to compare with"}})
    status, out, err = command("compare", ranked, other)
    assert status == 0, err
    assert "Recall@5 [95 % interval]" in out and "log loss" not in out and "(Holm)" in out and "phases.1.steps" in out
    report = json.loads((other / "report.json").read_text())
    (other / "report.json").write_text(json.dumps({**report, "metric": "auc"}))
    status, _, err = command("compare", ranked, other)
    assert status == 2 and "different metrics" in err


def test_what_a_job_about_lists_says_is_shown(ranked: Path, command: Command, tmp_path: Path) -> None:
    status, out, err = command("report", ranked)
    assert status == 0 and "Recall@5" in out and "verdict" in out, err
    assert command("plan", ranked / "job.yaml")[0] == 0
    status, _, err = command("export", ranked, "--member", "gcn", "--out", tmp_path / "gcn")
    assert status == 2 and "so that it makes no artefact" in err and not (tmp_path / "gcn").exists()
    assert (ranked / "report.html").read_text().count("Recall@5") > 1
