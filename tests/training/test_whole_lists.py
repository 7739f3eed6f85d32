"""Training on whole lists, from the job to the steps."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from recdistill.data.batch import Batch
from recdistill.data.encoded import EncodedLog
from recdistill.data.lists import in_lists, list_of
from recdistill.losses.listwise import soft_list
from recdistill.runs.console import Reporter
from recdistill.runs.logs import encoded
from recdistill.spec.load import parse_job
from recdistill.training.engine import Engine
from recdistill.training.play import play
from tests.conftest import Small
from tests.training.bench import BCE, LAST, OTHER, STUDENT, Bench, described

MEMBERS = {"student": STUDENT, "teacher": OTHER}
TERMS = [BCE, "bce(teacher.logit, label)", "soft_list(student.logit, teacher.logit)"]


@pytest.fixture(scope="module")
def listed(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small marketplace, the lists of its users lying together."""
    return Small(small.log, in_lists(small.encoded, ("train",), tmp_path_factory.mktemp("lists") / "log"), small.job)


def bench(listed: Small, terms: list[str], **train: Any) -> Bench:
    phases = [{"epochs": 2, "terms": terms, **LAST}]
    return Bench.of(listed, MEMBERS, phases, train={"whole_lists": True, "batch": 512, **train})


def seen(b: Bench, monkeypatch: pytest.MonkeyPatch) -> list[Batch]:
    """The batches of all steps of a phase."""
    found: list[Batch] = []
    original = Engine.update
    monkeypatch.setattr(Engine, "update", lambda s, u, batch, *a: (found.append(batch), original(s, u, batch, *a))[1])
    b.engine.run(0, b.plan.phases[0])
    return found


def counts(log: EncodedLog) -> Counter[int]:
    return Counter(list_of(log.labels("train").select("row_id", "group").collect()).tolist())


@pytest.mark.parametrize("terms", [TERMS, TERMS[:2]], ids=["lists", "rows"])
def test_every_step_sees_whole_lists_and_every_epoch_all_rows_once(
    listed: Small, group: None, monkeypatch: pytest.MonkeyPatch, terms: list[str]
) -> None:
    b = bench(listed, terms)
    found = seen(b, monkeypatch)
    sizes = counts(listed.encoded)
    assert max(sizes.values()) > 64 and len(found) == b.engine.planned_steps(b.plan.phases[0])
    for batch in found:
        assert all(sizes[group] == count for group, count in Counter(batch.groups().tolist()).items())
    half = len(found) // 2
    for epoch in (found[:half], found[half:]):
        rows = [row for batch in epoch for row in batch.row_id_B.tolist()]
        assert len(rows) == len({*rows}) == listed.encoded.rows["train"]
    first, second = ([batch.row_id_B.tolist() for batch in epoch] for epoch in (found[:half], found[half:]))
    assert first != second


def test_without_it_lists_are_what_a_batch_happens_to_hold(
    listed: Small, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = counts(listed.encoded)
    found = seen(bench(listed, TERMS, whole_lists=False), monkeypatch)
    assert any(sizes[group] != n for batch in found for group, n in Counter(batch.groups().tolist()).items())


def test_a_loss_over_lists_is_the_mean_over_whole_lists(listed: Small, group: None) -> None:
    b = bench(listed, TERMS)
    batch = next(iter(b.engine.train.shuffled(512, seed=0, epoch=0)))
    with torch.no_grad():
        played = play(b.cast, ["student", "teacher"], batch, frozenset({"student", "teacher"}))
        student, teacher = (played[name].logits_BK[:, 0] for name in ("student", "teacher"))
        expected = []
        for group_of in batch.groups().unique():
            rows = batch.groups() == group_of
            log_share = torch.log_softmax(student[rows], 0)
            expected.append(-(torch.softmax(teacher[rows], 0) * log_share).sum())
        numbers = torch.unique(batch.groups(), return_inverse=True)[1]
        assert torch.allclose(soft_list(student, teacher, list_B=numbers), torch.stack(expected), atol=1e-5)
    value = b.step(batch=batch)[TERMS[2]].detach()
    assert float(value) == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
    assert len(expected) > 2


def test_a_job_orders_its_log_once_and_keeps_it_in_the_cache(small: Small, tmp_path: Path) -> None:
    reporter, found = Reporter(_quiet()), []
    for whole in (False, True, True):
        described_job = described(small, MEMBERS, [{"steps": 1, "terms": TERMS}], train={"whole_lists": whole})
        job, spec = parse_job(described_job, "job")
        with reporter.progress:
            found.append(encoded(spec, str(small.log), job, ("train",), reporter).log)
    assert found[0].fingerprint != found[1].fingerprint == found[2].fingerprint
    assert found[1].folder == found[2].folder != found[0].folder
    assert found[1].fingerprint.startswith(found[0].fingerprint)


def _quiet() -> Any:
    from rich.console import Console

    return Console(quiet=True)
