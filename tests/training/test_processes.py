"""Two processes over gloo train as one does: the same gradients, whatever the layout of tables over processes."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from recdistill.distill.compile import compile_job
from recdistill.distill.layout import lay_out
from recdistill.evaluation.lists import read_lists
from recdistill.spec.load import assign, parse_job
from recdistill.training import checkpoint
from recdistill.training.fit import fit
from recdistill.training.reading import Data, Training
from recdistill.training.sharding import owners, placements
from tests.conftest import Small
from tests.training.bench import BCE, LAST, OTHER, STUDENT, Bench, described
from tests.training.everything import Everything, everything_of
from tests.training.pair import Pair, furthest, held, together, two_processes
from tests.training.rich import POOL

SMOOTH: dict[str, Any] = {
    "members.student.dropout": 0.0,
    "train.tables": {"sgd": {"lr": 2.0}},  # row-wise Adagrad would hide a wrong scale
    "train.dense": {"sgd": {"lr": 0.1}},
    "train.checkpoint_every": 5,
}


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    with two_processes() as running:
        yield running


def of_small(pair: Pair, small: Small, folder: Path, overrides: dict[str, Any]) -> dict[str, Tensor]:
    return together(pair, folder, assign(small.job, overrides, "test"), small.encoded.folder)


def alone(small: Small, folder: Path, overrides: dict[str, Any]) -> dict[str, Tensor]:
    small.fit(folder, overrides)
    return checkpoint.read(folder / "checkpoints" / "final")


def test_two_processes_train_as_one_does(pair: Pair, small: Small, tmp_path: Path) -> None:
    one, two = alone(small, tmp_path / "one", SMOOTH), of_small(pair, small, tmp_path / "two", SMOOTH)
    start = alone(small, tmp_path / "start", {**SMOOTH, "train.tables": {"sgd": {"lr": 1e-9}}})
    assert furthest(one, two)[0] < 2e-5
    moved = [key for key in one if key.startswith("tables.") and float((one[key] - start[key]).abs().max()) > 1e-3]
    assert moved  # so that the tolerance means something
    for name in ("student.test", "teacher.valid"):
        first, second = ((tmp_path / run / "scores" / f"{name}.parquet").stat().st_size for run in ("one", "two"))
        assert abs(first - second) < 2000
    summaries = [json.loads((tmp_path / run / "fit.json").read_text())["kept"] for run in ("one", "two")]
    assert summaries[0] == summaries[1]
    assert not (tmp_path / "two" / "checkpoints" / "latest").exists()


def test_gradients_divided_by_the_number_of_processes_are_found(pair: Pair, small: Small, tmp_path: Path) -> None:
    """The wrong twin of what the test above compares."""
    one = alone(small, tmp_path / "one", SMOOTH)
    job = assign(small.job, SMOOTH, "test")
    two = together(pair, tmp_path / "two", job, small.encoded.folder, dividing=True)
    distance, place = furthest(one, two)
    assert distance > 1e-3 and not place.startswith("tables.")


def test_terms_over_lists_and_row_wise_adagrad_as_well(pair: Pair, small: Small, tmp_path: Path) -> None:
    overrides = {
        **SMOOTH,
        "phases.0.terms.2": "soft_list(student.logit, teacher.logit) * step(0, 0.5, at=4)",
        "train.tables": {"rowwise_adagrad": {"lr": 0.05, "eps": 1e-3}},
    }
    one, two = alone(small, tmp_path / "one", overrides), of_small(pair, small, tmp_path / "two", overrides)
    assert furthest(one, two)[0] < 1e-4


# Everything at once


@pytest.fixture(scope="module")
def all_of_it(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Everything:
    return everything_of(small, tmp_path_factory.mktemp("everything"))


PLAIN = {"train.tables": {"sgd": {"lr": 1.0}}, "train.dense": {"sgd": {"lr": 0.1}}, "train.checkpoint_every": 5}


def both(pair: Pair, job: Everything, folder: Path, changes: dict[str, Any]) -> list[dict[str, Tensor]]:
    """The parameters after training alone and in two processes."""
    job.fit(folder / "one", changes)
    given = assign(job.job, changes, "test")
    two = together(pair, folder / "two", given, job.log.folder, {"pool": job.pool.folder})
    return [checkpoint.read(folder / "one" / "checkpoints" / "final"), two]


def test_everything_at_once_trains_as_in_one_process(pair: Pair, all_of_it: Everything, tmp_path: Path) -> None:
    """Memory, averages, best and previous copies, gates, a pool, generations; each to 2e-5 after 22 steps."""
    one, two = both(pair, all_of_it, tmp_path, PLAIN)
    assert furthest(one, two)[0] < 2e-5
    followers = ("average", "best", "snap", "before")
    tables = {name: one[f"tables.{name}.user_id"] for name in ("student", *followers)}
    for name in ("average", "best", "before"):
        assert float((tables[name] - tables["student"]).abs().max()) > 1e-3, name
    logs = [(tmp_path / run / "metrics.jsonl").read_text().splitlines() for run in ("one", "two")]
    for first, second in zip(*logs, strict=True):
        a, b = json.loads(first), json.loads(second)
        assert a["values"].keys() == b["values"].keys()
        assert [*a["values"].values()] == pytest.approx([*b["values"].values()], abs=1e-4)
    first, second = held(tmp_path / "two")
    for bank in first:  # its tables really lie on both
        assert first[bank] and second[bank] and not {*first[bank]} & {*second[bank]}
    assert all(mine[name] == mine["student"] for mine in (first, second) for name in followers)


def test_processes_with_other_numbers_of_parts_do_not_wait_for_each_other(
    pair: Pair, all_of_it: Everything, tmp_path: Path
) -> None:
    """Of 257 rows one has 129, in three parts, and the other 128, in two; what is remembered is exchanged once."""
    changes = {**PLAIN, "train.batch": 257, "train.micro_batch": 64, "phases.1.steps": 3}
    one, two = both(pair, all_of_it, tmp_path, changes)
    assert furthest(one, two)[0] < 2e-5


def test_what_has_no_gradient_is_not_moved_by_its_momentum(pair: Pair, small: Small, tmp_path: Path) -> None:
    """Adam would go on moving a teacher that is no longer taught, if it were given zeros."""
    terms = [BCE, "bce(teacher.logit, label) * step(1, 0, at=3)"]
    phases = [{"steps": 9, "terms": terms, **LAST}]
    job = described(small, {"student": STUDENT, "teacher": OTHER}, phases, train={"dense": {"adam": {"lr": 0.02}}})
    two = together(pair, tmp_path / "two", job, small.encoded.folder)
    short = described(small, {"student": STUDENT, "teacher": OTHER}, [{**phases[0], "steps": 3}], train=job["train"])
    stopped = together(pair, tmp_path / "three", short, small.encoded.folder)
    teacher = {key: value for key, value in two.items() if key.startswith(("teacher.", "tables.teacher"))}
    assert teacher and all(torch.equal(value, stopped[key]) for key, value in teacher.items())
    assert not torch.equal(two["student.net.out.weight"], stopped["student.net.out.weight"])


HEADS = {"clicks": {"self_attention": {"heads": 2}}}
LONELY: dict[str, tuple[dict[str, Any], list[str]]] = {
    "lists and memory": (
        {"student": STUDENT, "other": OTHER},
        ["soft_list(student.logit, other.logit)", "soft(student.logit, memory(other.logit))"],
    ),
    "sequences and distorted views": (
        {
            "student": {**STUDENT, "pool": POOL, "distort": {"truncate": 0.5, "mask": 0.1}},
            "other": {**OTHER, "view": ["serving", "privileged"], "pool": HEADS},
        },
        ["l2(student.hidden[-1], other.hidden[-1])", "soft(student.logit, closest(label, other.logit, student.logit))"],
    ),
}


@pytest.mark.parametrize("name", LONELY)
def test_a_process_without_rows_takes_part_all_the_same(
    pair: Pair, small: Small, rich: Small, tmp_path: Path, name: str
) -> None:
    """The last batch of an epoch has one row, which is that of the first process."""
    members, terms = LONELY[name]
    log, more = (rich, rich.job) if "sequences" in name else (small, {})
    phases = [{"steps": 4, "terms": [BCE, "bce(other.logit, label)", *terms], "stop": {"every": 2}}]
    job = described(log, members, phases, train={"batch": log.encoded.rows["train"] - 1}, **more)
    parsed, spec = parse_job(job, "job")
    fit(Training(compile_job(parsed, spec), parsed.train, Data.of(log.encoded), 0), tmp_path / "one")
    two = together(pair, tmp_path / "two", job, log.encoded.folder)
    assert furthest(checkpoint.read(tmp_path / "one" / "checkpoints" / "final"), two)[0] < 1e-6


# Candidates and graphs

CANDIDATES: dict[str, dict[str, Any]] = {
    "edges": {"negatives": 2},
    "nodes, whose last batch has a single anchor": {"each": "node", "batch": 29, "positives": 1, "negatives": 3},
    "items as anchors": {"anchor": "item", "negatives": 2, "popularity": 0.5},
    "the same for all": {"negatives": 5, "shared": True, "in_batch": True},
    "from a ranking": {"negatives": 1, "ranked": {"by": "gcn", "top": 12, "count": 4}},
}
PENALISED = {"sgd": {"lr": 1.0, "l2": 30.0}}


@pytest.mark.parametrize("name", CANDIDATES)
def test_two_processes_rank_candidates_as_one_does(pair: Pair, tastes: Small, tmp_path: Path, name: str) -> None:
    """Each has its anchors and all candidates, and half of the penalty of rows that both look up; to 2e-5."""
    mf = {"user": "user_id", "item": "item_id"}
    terms = [
        "bpr(student.scores, own)",
        "soft_sides(student.scores, gcn.scores, taken)",
        "half_square(student.hidden[0])",
    ]
    changes = {
        "members.student": {"net": {"mf": mf}, "view": ["user_id", "item_id"], "dim": 8, "serve": True},
        "feeds.lists": {"candidates": CANDIDATES[name]}, "phases.1.terms": terms,
        "train.tables": PENALISED, "controls": {"none": "nothing to compare with"},
    }  # fmt: skip
    tastes.fit(tmp_path / "one", changes)
    one = checkpoint.read(tmp_path / "one" / "checkpoints" / "final")
    two = together(pair, tmp_path / "two", assign(tastes.job, changes, "test"), tastes.encoded.folder)
    assert furthest(one, two)[0] < 2e-5
    tastes.fit(tmp_path / "free", {**changes, "train.tables": {"sgd": {"lr": 1.0}}})
    free = checkpoint.read(tmp_path / "free" / "checkpoints" / "final")
    for table in ("tables.gcn.item_id", "tables.student.item_id"):
        assert float((one[table] - free[table]).abs().max()) > 1e-3, table  # the penalty matters
    lists = [(tmp_path / run / "rankings" / "student.test.parquet") for run in ("one", "two")]
    first, second = (read_lists(path).means() for path in lists)
    assert first == pytest.approx(second, abs=0.02)


# Replicas that are several processes themselves


def test_a_replica_of_two_processes_meets_others_as_one_of_a_single_process_does(
    pair: Pair, small: Small, tmp_path: Path
) -> None:
    """What is left in the shared folder is whole, whoever has left it, and each process takes its rows of it."""

    def job(name: str, shard: int) -> dict[str, Any]:
        peer = {"remote": {"of": "student", "exchange": str(tmp_path / "exchange"), "name": name, "every": 2}}
        terms = [BCE, "soft(student.logit, peer.logit)"]
        phases = [{"steps": 6, "feed": "mine", "terms": terms, **LAST}]
        return described(small, {"student": STUDENT, "peer": peer}, phases, feeds={"mine": {"shard": [shard, 2]}})

    def in_one_process(name: str, shard: int) -> dict[str, Tensor]:
        parsed, spec = parse_job(job(name, shard), "job")
        fit(Training(compile_job(parsed, spec), parsed.train, Data.of(small.encoded), 0, since=0.0), tmp_path / name)
        return checkpoint.read(tmp_path / name / "checkpoints" / "final")

    def left(name: str) -> dict[str, Tensor]:
        (meeting,) = (tmp_path / "exchange").iterdir()
        return checkpoint.read(meeting / name / f"{6:09d}")

    in_one_process("other", 1)
    one = in_one_process("mine", 0)
    kept = left("mine")
    shutil.rmtree(next((tmp_path / "exchange").iterdir()) / "mine")
    two = together(pair, tmp_path / "two", job("mine", 0), small.encoded.folder)
    assert furthest(one, two)[0] < 2e-5
    assert furthest(kept, left("mine"))[0] < 2e-5
    other = left("other")
    for key in (key for key in other if key.startswith("tables.")):
        assert torch.equal(two[key.replace("student", "peer")], other[key]), key
    found = json.loads((tmp_path / "two" / "fit.json").read_text())["exchange"]
    assert found == {"peer": {"visits": 3, "alone": 0, "stale": 2, "unusable": 0}}


# Where tables lie


OWN = ["city", "hour"]
ORDERS = ["student booster copy heir", "copy booster student heir", "heir copy booster student"]


@pytest.mark.parametrize("order", ORDERS)
def test_tables_that_are_copied_lie_beside_their_originals(small: Small, group: None, order: str) -> None:
    described_members = {
        "student": STUDENT,
        "booster": {**OTHER, "dims": {"city": 8}, "share": {"tables": "student", "own": OWN}},
        "copy": {"ema": "booster"},
        "heir": {**OTHER, "dims": {"city": 8}},
    }
    members = {name: described_members[name] for name in order.split()}
    terms = [BCE, "bce(booster.logit, label)", "bce(heir.logit, label)"]
    b = Bench.of(small, members, [{"steps": 1, "terms": terms, "carry": {"heir": "booster"}}])
    spec, tables = small.encoded.spec, small.encoded.fitted.tables
    layout = lay_out(b.plan.members, spec, tables)
    follows = {"copy": "booster", "heir": "booster"}
    placed = placements(layout, follows, 2)
    home = {table: "booster" if table in OWN else "student" for table in placed["copy"]}
    for name in follows:
        assert placed[name] == {table: placed[home[table]][table] for table in placed[name]}
        assert {*placed[name].values()} == {0, 1}
    for name in ("student", "booster"):
        assert [*placed[name].values()] == owners(layout.banks[name], 2)
    assert any(placed["booster"][table] != placed["student"][table] for table in OWN)  # so that it matters


def test_members_that_follow_each_other_in_a_circle_are_placed_as_well(small: Small, group: None) -> None:
    b = Bench.of(small, {"student": STUDENT, "other": OTHER}, [{"steps": 1, "terms": [BCE, "bce(other.logit, label)"]}])
    layout = lay_out(b.plan.members, small.encoded.spec, small.encoded.fitted.tables)
    placed = placements(layout, {"student": "other", "other": "student"}, 2)
    assert placed["student"] == placed["other"] and {*placed["student"].values()} == {0, 1}
