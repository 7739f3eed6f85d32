"""A training on a GPU equals that on the CPU, but for the order of sums. Skipped where there is no GPU."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from recdistill.distill.schedule import Now
from recdistill.training.sharding import process_group
from tests.conftest import Small
from tests.training.bench import LAST, Bench
from tests.training.rich import POOL, rich_log

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def scores(folder: Path, member: str) -> list[float]:
    return pl.read_parquet(folder / "scores" / f"{member}.test.parquet").sort("row_id")["logit"].to_list()


@pytest.mark.parametrize(("fixture", "changes"), [("small", {"members.student.dropout": 0}), ("tastes", {})])
def test_a_training_is_the_same_as_on_the_cpu(
    fixture: str, changes: dict[str, Any], request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: Any
) -> None:
    """Teacher and student on tables that they share; a graph that teaches codes."""
    log: Small = request.getfixturevalue(fixture)
    log.fit(tmp_path / "gpu", changes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    log.fit(tmp_path / "cpu", changes)
    for path in sorted((tmp_path / "cpu" / "scores").glob("*.test.parquet")):
        member = path.name.partition(".")[0]
        on_gpu, on_cpu = (scores(tmp_path / kind, member) for kind in ("gpu", "cpu"))
        assert on_gpu == pytest.approx(on_cpu, abs=1e-3), member


def test_steps_on_sequences_and_lists_are_the_same_as_on_the_cpu(tmp_path: Path, monkeypatch: Any) -> None:
    rich = rich_log(tmp_path)
    student = {"net": {"mlp": [8]}, "dim": 4, "pool": POOL, "serve": True}
    terms = ["bce(student.logit, label)", "soft(student.logit, memory(student.logit))"]
    states = []
    for gpu in (True, False):
        if not gpu:
            monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with process_group():
            b = Bench.of(rich, {"student": student}, [{"steps": 4, "terms": terms, **LAST}], **rich.job)
            for step in range(4):
                b.step(at=Now(step, 4))
            states.append({name: value.cpu() for name, value in b.state("student").items()})
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-3, atol=1e-4)
