"""One contract for every job: whatever method it names, these things hold."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.candidates import CandidateFeed
from recdistill.data.log import raw_batches
from recdistill.data.scores import read_logits, read_scores, served_logits
from recdistill.distill.checks import behind, table_owners, trained_names
from recdistill.distill.compile import Plan
from recdistill.distill.labels import Corrected
from recdistill.distill.member import Update
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Remembering
from recdistill.export import artefact
from recdistill.export.build import describe_inputs, served_columns, serving_student
from recdistill.runs.export import withheld
from recdistill.training import checkpoint
from recdistill.training.audit import audit
from recdistill.training.engine import Engine
from recdistill.training.memory import Memory, memory_for, memory_of
from recdistill.training.optimizers import dense_optimizers
from recdistill.training.sharding import process_group
from tests.contract.jobs import JOBS, Contract
from tests.training.pair import Pair, two_processes

IDS = [str(path.relative_to(path.parents[1]).with_suffix("")) for path in JOBS]


def test_every_job_is_under_contract() -> None:
    assert len(JOBS) == 40
    assert len(set(IDS)) == len(IDS)


@pytest.fixture(scope="module", params=JOBS, ids=IDS)
def contract(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Contract:
    return Contract.of(request.param, tmp_path_factory.mktemp("contract"))


@pytest.fixture(scope="module")
def trained(contract: Contract, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the job's training, never stopped."""
    folder = tmp_path_factory.mktemp("trained") / "fit"
    contract.fit(folder)
    return folder


def parameters(folder: Path) -> dict[str, Tensor]:
    return checkpoint.read(folder / "checkpoints" / "final")


def test_everything_stays_finite(contract: Contract, trained: Path) -> None:
    assert all(bool(torch.isfinite(value).all()) for value in parameters(trained).values())
    for member in contract.plan()[0].scored:
        for split in ("valid", "test"):
            assert np.isfinite(read_logits(trained / "scores" / f"{member.name}.{split}.parquet")).all()


def test_trained_members_move_and_frozen_ones_do_not(contract: Contract) -> None:
    plan, _ = contract.plan()
    with process_group():
        engine = contract.engine()
        cast = engine.cast
        for i, phase in enumerate(plan.phases):
            before = {name: value.clone() for name, value in cast.state(cast.members).items()}
            engine.run(i, phase, steps=3)
            moved = {n for n, v in cast.state(cast.members).items() if not torch.equal(v, before[n])}
            followers = {name for name, member in cast.members.items() if member.follows is not None}
            for name in cast.members.keys() - followers:
                dense = {key for key in moved if key.startswith(f"{name}.")}
                shared = plan.members[[m.name for m in plan.members].index(name)].share.trunk in phase.trained
                moves = {name, cast.members[name].same} & trained_names(phase.trained, cast.members)
                has = name in cast.heads and any(True for _ in cast.heads[name].parameters())
                chosen = cast.members[name].net.chosen and name in phase.members  # when the phase begins
                assert bool(dense) == (chosen or (has and (bool(moves) or shared))), (i, name)
            tables = {key.split(".")[1] for key in moved if key.startswith("tables.")}
            assert tables - cast.banks_of(followers) == cast.banks_of(phase.trained), i


def test_a_term_teaches_its_learner_and_nobody_else(contract: Contract) -> None:
    plan, _ = contract.plan()
    with process_group():
        engine = contract.engine()
        cast = engine.cast
        for update in updates_of(engine, plan):
            found = audit(cast, update, batch_of(engine, update, 400), step=3, planned=4)
            for term, entry in zip(update.terms, found, strict=True):
                taught = behind(term.taught, cast.members, live=True)
                allowed = {p for name in taught for p in map(id, cast.heads[name].parameters())}
                named = {f"{n}.{k}": id(p) for n, head in cast.heads.items() for k, p in head.named_parameters()}
                reached = {name for name, gradient in entry.dense.items() if gradient.any()}
                assert {named[name] for name in reached} <= allowed, term.words
                moved = {bank for bank, gradient in entry.tables.items() if gradient.any()}
                assert moved <= cast.banks_of(taught), term.words
                assert reached or moved or entry.weight == 0 or term.memories, term.words  # of rows never met before


def updates_of(engine: Engine, plan: Plan) -> Iterator[Update]:
    """Every update, after what its phase draws candidates from is known."""
    for phase in plan.phases:
        engine.rank_candidates(phase)
        yield from phase.updates


def batch_of(engine: Engine, update: Update, rows: int) -> Batch:
    """Rows that an update may see: the first of the log, or a batch of its candidates."""
    feed = engine.feeds[update.feed]
    if isinstance(feed, CandidateFeed):
        return next(feed.epoch(rows, seed=0, epoch=0))
    return next(iter(engine.train.in_order(rows)))


def step_of(engine: Engine, update: Update, batch: Batch, micro_batch: int | None) -> dict[str, Tensor]:
    """What one update would move, and by how much; everything is put back."""
    cast = engine.cast
    before = {name: value.clone() for name, value in cast.state(cast.members).items()}
    kept = {key: {name: part.clone() for name, part in memory.state.items()} for key, memory in engine.memories.items()}
    engine.settings = engine.settings.model_copy(update={"micro_batch": micro_batch})
    optimizers = dense_optimizers(update.parts, cast, engine.settings.dense)
    engine.update(update, batch, Now(3, 4), optimizers)
    engine.memories = {key: memory_of(state) for key, state in kept.items()}
    moved = {}
    with torch.no_grad():
        for name, value in cast.state(cast.members).items():
            moved[name] = value - before[name]
            value.copy_(before[name])
    return moved


def filled(signal: Remembering, batch: Batch) -> Memory:
    """A memory in which each row of a batch has left something."""
    memory = memory_for(signal, batch.row_id_B)
    width = (2,) if isinstance(signal, Corrected) else ()
    left = torch.rand(len(batch), *width, generator=torch.Generator().manual_seed(0))
    memory.write(batch.row_id_B, left.round() if width else left)
    return memory


def test_one_batch_is_its_parts_together(contract: Contract) -> None:
    """Per term: a batch computed in parts moves everything as the whole batch does, since the engine divides once."""
    plan, _ = contract.plan()
    seen = 0
    with process_group():
        engine = contract.engine()
        for update in updates_of(engine, plan):
            batch = batch_of(engine, update, 300)
            for term in update.terms:
                if term.exempt or engine.followers.silent & term.members:
                    continue
                alone = replace(update, terms=(replace(term, schedules=()),))
                engine.memories = {m.key: filled(m, batch) for m in term.memories}
                whole, parts = (step_of(engine, alone, batch, size) for size in (None, 110))
                seen += 1
                assert any(bool(value.any()) for value in whole.values()), term.words
                for name, value in whole.items():
                    assert torch.allclose(value, parts[name], atol=1e-6), (term.words, name)
    assert seen or all(term.exempt for phase in plan.phases for term in phase.terms)


def test_evaluating_between_steps_changes_nothing(
    contract: Contract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but the weights that follow what an evaluation has seen, which are held still here."""
    monkeypatch.setattr(
        "recdistill.training.engine.Now", lambda step, planned, seen, epoch: Now(step, planned, (), epoch)
    )
    found = []
    for every in (1, 4):
        stops = {f"phases.{i}.stop": {"every": every, "keep": "last"} for i in range(len(contract.job.phases))}
        contract.fit(tmp_path / str(every), stops)
        found.append(parameters(tmp_path / str(every)))
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_stopped_training_goes_on_bit_for_bit(
    contract: Contract, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, taken = Engine.step, [0]

    def step(*args: Any, **kwargs: Any) -> Any:
        taken[0] += 1
        if taken[0] == contract.steps * len(contract.plan()[0].phases):
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(KeyboardInterrupt):
            contract.fit(tmp_path / "fit", {"train.checkpoint_every": 2})
    contract.fit(tmp_path / "fit", {"train.checkpoint_every": 2})
    whole, parts = parameters(trained), parameters(tmp_path / "fit")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert (tmp_path / "fit" / "metrics.jsonl").read_text() == (trained / "metrics.jsonl").read_text()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    """Two processes that stay for all jobs."""
    with two_processes("tests.contract.worker") as running:
        yield running


def depends_on_who_meets(plan: Plan) -> set[str]:
    """The members that learn from rows compared with each other within a process, directly or from such a member.

    What is chosen by their answers depends on them as well.
    """
    members = {member.name: member for member in plan.members}
    found: set[str] = set()
    for _ in plan.members:
        for term in (term for phase in plan.phases for term in phase.terms):
            if term.exempt or behind(term.members, members) & found:
                found |= behind(term.taught, members, live=True)
        found |= {name for name, member in members.items() if member.follows in found}
        found |= {name for name, member in members.items() if member.net.chosen and behind({name}, members) & found}
    return found | {owner for name in found for owner in table_owners(members[name], members)}


def test_two_processes_train_as_one_does(contract: Contract, trained: Path, pair: Pair, tmp_path: Path) -> None:
    told = json.dumps([str(tmp_path / "fit"), str(contract.log.folder), contract.raw])
    for process in pair:
        assert process.stdin is not None
        process.stdin.write(told + "\n")
        process.stdin.flush()
    answers = [json.loads(process.stdout.readline()) for process in pair if process.stdout]
    assert answers == ["", ""]
    one, two = parameters(trained), parameters(tmp_path / "fit")
    assert one.keys() == two.keys()
    assert all(bool(torch.isfinite(value).all()) for value in two.values())
    unsettled = depends_on_who_meets(contract.plan()[0])
    for name, value in one.items():
        if name.removeprefix("tables.").split(".")[0].removesuffix("-tokens") in unsettled:
            continue
        assert torch.allclose(value, two[name], atol=2e-5), (name, float((value - two[name]).abs().max()))


def predicted(contract: Contract) -> list[str]:
    """The labels that the student answers."""
    return [contract.job.label[k] for k in contract.plan()[0].student.labels]


@pytest.fixture(scope="module")
def served(contract: Contract, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table]:
    """The artefact, and the raw test rows."""
    from recdistill.distill.layout import lay_out

    plan, _ = contract.plan()
    layout = lay_out(plan.members, contract.spec, contract.log.fitted.tables)
    student = serving_student(
        plan.student, plan.members, layout, contract.spec, contract.log.fitted, parameters(trained),
        negative_keep_rate=contract.spec.negative_keep_rate,
    )  # fmt: skip
    inputs = describe_inputs(served_columns(plan.student, plan.members), contract.spec, contract.log.fitted)
    needed = [entry["name"] for entry in inputs if not entry.get("optional")]
    raw = pa.concat_tables(raw_batches(contract.spec, str(contract.path), contract.job.where, "test", needed, 5000))
    folder = tmp_path_factory.mktemp("served") / "student"
    manifest = {"inputs": inputs, "outputs": predicted(contract)}
    artefact.write(student, folder, manifest=manifest, golden=raw, withheld=withheld(contract.job, contract.spec))
    return folder, raw


def test_the_artefact_answers_as_training_did(contract: Contract, trained: Path, served: Any) -> None:
    folder, raw = served
    student, manifest = artefact.load(folder)
    eager = served_logits(trained / "scores", f"{contract.plan()[0].student.name}.test")
    found = artefact.score(student, manifest, raw, 8192).numpy().reshape(len(raw), -1)
    assert found.shape == eager.shape and len(eager) > 50
    assert np.abs(found - eager).max() <= artefact.TOLERANCE
    assert np.std(eager) > 0


def test_the_artefact_holds_the_student_alone(contract: Contract, served: Any) -> None:
    folder, _ = served
    content = b"".join(file.read_bytes() for file in sorted(folder.iterdir()))
    after = set(contract.spec.post_event) - set(predicted(contract))  # what it predicts, it may name
    given = {raw for name in contract.spec.serving for raw in contract.spec.given(name)}
    for name in (*(after - given), *(m for m in contract.job.members if m != contract.job.student)):
        assert f'"{name}"'.encode() not in content, name


def test_poisoned_privileged_columns_change_no_bit(contract: Contract, served: Any) -> None:
    folder, raw = served
    _, manifest = artefact.load(folder)
    plan, _ = contract.plan()
    everything = {raw_name for name in contract.job.privileged for raw_name in contract.spec.given(name)}
    poison = sorted(everything - {entry["name"] for entry in manifest["inputs"]})
    assert poison or not contract.job.privileged
    student, _ = artefact.load(folder)
    poisoned = raw
    for name in poison:
        poisoned = poisoned.append_column(name, pa.array([float("nan")] * len(raw)))
    first, second = (artefact.score(student, manifest, rows, 8192) for rows in (raw, poisoned))
    assert torch.equal(first, second)
    assert plan.student.privileged == ()


def test_the_controls_train_as_well(contract: Contract, trained: Path, tmp_path: Path) -> None:
    for arm in contract.job.controls if isinstance(contract.job.controls, list) else ():
        contract.fit(tmp_path / arm, arm=arm)
        main, control = contract.plan()[0], contract.plan(arm=arm)[0]
        scored = read_scores(tmp_path / arm / "scores" / f"{control.student.name}.test.parquet")
        ours = read_scores(trained / "scores" / f"{main.student.name}.test.parquet")
        assert np.array_equal(scored.row_id_N, ours.row_id_N)
        # for an evaluation that few steps need not bring, or an agreement that they need not reach
        waits = any(phase.metrics for phase in main.phases) or any(
            isinstance(memory, Corrected) for phase in main.phases for memory in phase.memories.values()
        )
        assert waits or not np.array_equal(scored.logit_N, ours.logit_N), arm
