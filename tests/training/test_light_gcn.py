"""LightGCN in the engine against LightGCN on its own: a step on a small log, and a whole training on MovieLens-1M."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from recdistill.data.batch import Batch
from recdistill.data.encode import encode
from recdistill.distill.compile import compile_job, problems_of
from recdistill.distill.schedule import Now
from recdistill.spec.load import parse_job, read_yaml
from recdistill.training.fit import fit
from recdistill.training.rankings import vectors_of
from recdistill.training.reading import Data, Training
from recdistill.training.sharding import process_group
from tests.conftest import ROOT, SHARED
from tests.contract.jobs import SMOOTH, Contract
from tests.oracles import light_gcn as oracle

JOB = ROOT / "jobs" / "ml1m" / "light_gcn.yaml"
LAYERS = 3


def scores_of(batch: Batch, vector_ND: torch.Tensor, users: int) -> torch.Tensor:
    """The scores of the candidates of a batch, (A, M), one candidate at a time."""
    user_B, item_B = batch.serving.ids(("user_id", "item_id"))
    candidates = batch.candidates
    assert candidates is not None and candidates.anchor == "user"
    anchors = candidates.anchors
    place_AM = torch.cat([part.expand(anchors, part.shape[-1]) for part in candidates.parts], 1)
    return (vector_ND[user_B[:anchors]].unsqueeze(1) * vector_ND[users + item_B[place_AM]]).sum(2)


def test_vectors_scores_and_a_step_are_those_of_the_equations(tmp_path: Path) -> None:
    contract = Contract.of(JOB, tmp_path)
    phase = contract.plan()[0].phases[0]
    with process_group():
        engine = contract.engine()
        cast = engine.cast
        assert cast.nodes is not None
        graph, tables = cast.nodes.graph, cast.state(["gcn"])
        rows = [tables[f"tables.gcn.{name}"] for name in ("user_id", "item_id")]
        for shard in rows:
            shard.mul_(10)  # scores of some size, so that gradients have one
        first_ND = torch.cat(rows).clone()
        matrix = oracle.adjacency(graph.user_E.numpy(), graph.item_E.numpy(), graph.users, graph.items)
        vectors = vectors_of(cast, "gcn", seed=0)
        expected_ND = oracle.convolved(matrix, first_ND, LAYERS)
        assert torch.allclose(torch.cat([vectors.user_UD, vectors.item_ID]), expected_ND, atol=1e-5)
        batch = next(engine.cursors["users"])
        assert batch.candidates is not None
        is_taken_AM = batch.candidates.marks["taken"] > 0
        assert 0 < is_taken_AM.float().mean() < 1

        def value_of(vector_ND: torch.Tensor) -> torch.Tensor:
            return oracle.softmax_loss(scores_of(batch, vector_ND, graph.users), is_taken_AM)

        value, gradient_ND = oracle.gradient(matrix, first_ND, LAYERS, value_of)
        found = engine.step(phase, {"users": batch}, Now(0, 1), [[]])
        assert [float(loss.detach()) for loss in found.values()] == [pytest.approx(value, abs=1e-5)]
        moved_ND = torch.cat(rows) - first_ND
        assert moved_ND.abs().max() > 5e-4
        assert torch.allclose(moved_ND, -SMOOTH["tables"]["sgd"]["lr"] * gradient_ND, atol=1e-6)


@pytest.mark.real
@pytest.mark.signature
def test_a_training_on_movielens_is_as_good_as_that_of_the_equations(tmp_path: Path) -> None:
    raw = {**read_yaml(JOB), "log": str(SHARED / "ml1m_ultragcn.parquet")}
    job, spec = parse_job(raw, str(JOB), check=problems_of)
    assert job.train.tables.rowwise_adagrad is not None and job.feeds["users"].candidates is not None
    asked = job.feeds["users"].candidates
    log = encode(spec, str(job.log), tmp_path / "encoded")
    fit(Training(compile_job(job, spec), job.train, Data.of(log), 0), tmp_path / "fit")
    found = {
        name: pl.read_parquet(tmp_path / "fit" / "rankings" / f"{name}.test.parquet")["recall@20"].mean()
        for name in ("gcn", "factors")
    }
    users, items = (log.fitted.tables[name] - 2 for name in ("user_id", "item_id"))  # without missing and unknown
    pairs = {}
    for split in ("train", "valid", "test"):
        rows = log.view(split, "serving").select("user_id", "item_id").collect().to_numpy().astype("int64") - 2
        pairs[split] = rows[(rows >= 0).all(1)]
    steps = json.loads((tmp_path / "fit" / "fit.json").read_text())["kept"][0]
    vector_ND = oracle.train(
        *pairs["train"].T, users, items, layers=LAYERS, width=64, std=job.train.table_std,
        lr=job.train.tables.rowwise_adagrad.lr, steps=steps, batch=asked.batch, positives=1 + asked.positives,
        negatives=asked.negatives, seed=0,
    )  # fmt: skip
    known, relevant = ([set() for _ in range(users)] for _ in range(2))
    for split, lists in (("train", known), ("valid", known), ("test", relevant)):
        for user, item in pairs[split].tolist():
            lists[user].add(item)
    expected = oracle.recall(vector_ND, users, known, relevant, 20)
    assert found["gcn"] == pytest.approx(expected, rel=0.03)
    assert found["gcn"] > found["factors"] + 0.01
