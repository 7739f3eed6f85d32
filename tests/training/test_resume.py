"""A training that is stopped and continued is, bit for bit, the one that was never stopped."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recdistill.data import permute
from recdistill.errors import RunError
from recdistill.training import fit as fit_module
from recdistill.training import resume
from recdistill.training.engine import Engine
from recdistill.training.reading import Data, Training
from recdistill.training.resume import Stopped
from recdistill.training.runlog import Event
from tests.conftest import Small
from tests.training.everything import STEPS, TAUGHT, Everything, everything_of

JOB: dict[str, Any] = {
    "phases": [
        {"steps": 7, "terms": ["bce(teacher.logit, label)"], "stop": {"every": 3}},
        {
            "epochs": 3,
            "terms": ["bce(student.logit, label) * step(1, 0.5, at=4)", "soft(student.logit, teacher.logit) * 0.5"],
            "stop": {"every": 3, "patience": 3},
        },
    ],
    "members.teacher.share.tables": None,
    "train.checkpoint_every": 4,
    "train.batch": 700,
}


class Stop(Exception):
    pass


def everything(folder: Path) -> dict[str, bytes]:
    """All files of a training but its timing."""
    found = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
    summary = json.loads(found.pop("fit.json"))
    del summary["seconds"]
    return found | {"fit": json.dumps(summary).encode()}


def stopped_after(small: Small, folder: Path, steps: int, overrides: dict[str, Any], monkeypatch: Any) -> None:
    """A training that fails in a step."""
    original, taken = Engine.step, [0]

    def step(*args: Any, **kwargs: Any) -> Any:
        if taken[0] == steps:
            raise Stop
        taken[0] += 1
        return original(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step)
        with pytest.raises(Stop):
            small.fit(folder, overrides)


@pytest.mark.parametrize("optimizer", ["rowwise_adagrad", "adagrad", "sgd"])
@pytest.mark.parametrize("steps", [5, 7, 13])
def test_a_stopped_training_goes_on_bit_for_bit(
    small: Small, tmp_path: Path, monkeypatch: Any, optimizer: str, steps: int
) -> None:
    overrides = {**JOB, "train.tables": {optimizer: {"lr": 0.05}}}
    small.fit(tmp_path / "whole", overrides)
    stopped_after(small, tmp_path / "parts", steps, overrides, monkeypatch)
    small.fit(tmp_path / "parts", overrides)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


def test_it_may_be_stopped_again_and_in_the_second_stage(small: Small, tmp_path: Path, monkeypatch: Any) -> None:
    overrides = {**JOB, "train.refit": True, "train.unknown": {"rate": 0.1}}
    small.fit(tmp_path / "whole", overrides)
    for steps in (6, 9, 12, 5):
        stopped_after(small, tmp_path / "parts", steps, overrides, monkeypatch)
    small.fit(tmp_path / "parts", overrides)
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")
    assert b"refit" in (tmp_path / "parts" / "metrics.jsonl").read_bytes()


def test_it_really_goes_on(small: Small, tmp_path: Path, monkeypatch: Any) -> None:
    stopped_after(small, tmp_path / "parts", 6, JOB, monkeypatch)
    taken = []
    original = Engine.step
    monkeypatch.setattr(Engine, "step", lambda *a, **k: (taken.append(1), original(*a, **k))[1])
    cast = small.fit(tmp_path / "parts", JOB)
    assert cast is not None
    events = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    last = max(e["step"] for e in events if e["phase"] == 1)
    assert len(taken) == 7 - 4 + last
    assert not (tmp_path / "parts" / "checkpoints" / "latest").exists()


@pytest.mark.parametrize("forget", ["random", "tables", "dense", "kept", "schedule", "rows"])
def test_whatever_is_forgotten_shows(small: Small, tmp_path: Path, monkeypatch: Any, forget: str) -> None:
    """The wrong twins of resumption: each loses one part of the state."""
    from recdistill.training import engine, fit, watch
    from recdistill.training.resume import Progress

    if forget == "kept":  # then the first evaluation stays the best, so that its parameters have to survive
        monkeypatch.setattr(watch, "evaluate", lambda _, names, *__: {f"{name}.logloss": 1.0 for name in names})
    small.fit(tmp_path / "whole", JOB)
    stopped_after(small, tmp_path / "parts", 16, JOB, monkeypatch)
    original, read = engine.restore, fit.resume.read

    def restore(tensors: Any, cast: Any, optimizers: Any) -> Any:
        fresh = engine.capture(cast, [], {})
        lost = {k: v.clone() for k, v in fresh.items() if k.split("/")[0] == forget}
        left = {k: v for k, v in tensors.items() if not (forget in ("dense", "kept") and k.startswith(forget))}
        return original({**left, **lost}, cast, optimizers)

    def late(folder: Path) -> Progress | None:
        found = read(folder)
        assert found is not None
        if forget == "schedule":
            object.__setattr__(found.stopped, "step", found.stopped.step - 1)
        else:
            found.stopped.progress["feeds"] = {"log": [0, found.stopped.step]}
        return found

    if forget in ("schedule", "rows"):
        monkeypatch.setattr(fit.resume, "read", late)
    else:
        monkeypatch.setattr(engine, "restore", restore)
    small.fit(tmp_path / "parts", JOB)
    assert everything(tmp_path / "parts") != everything(tmp_path / "whole")


def test_a_checkpoint_that_cannot_be_used_is_refused(small: Small, tmp_path: Path, monkeypatch: Any) -> None:
    stopped_after(small, tmp_path / "parts", 6, JOB, monkeypatch)
    latest = tmp_path / "parts" / "checkpoints" / "latest"
    described = json.loads((latest / "progress.json").read_text())
    (latest / "progress.json").write_text(json.dumps({**described, "processes": 2}))
    with pytest.raises(RunError, match="written by another number of processes than the 1 that run now"):
        small.fit(tmp_path / "parts", JOB)
    (latest / "progress.json").write_text(json.dumps(described))
    with pytest.raises(RunError, match="it is of another job"):
        small.fit(tmp_path / "parts", {**JOB, "members.student.dim": 8})
    (latest / "state-0.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunError, match="cannot be read"):
        small.fit(tmp_path / "parts", JOB)


def heard_of(small: Small, folder: Path) -> list[Event]:
    """What a training that goes on says."""
    plan, job, shuffle = small.plan(JOB)
    heard: list[Event] = []
    fit_module.fit(Training(plan, job.train, Data.of(small.encoded), 0, shuffle), folder, heard.append)
    return heard


def test_listeners_hear_the_rest_only(small: Small, tmp_path: Path, monkeypatch: Any) -> None:
    stopped_after(small, tmp_path / "parts", 6, JOB, monkeypatch)
    heard = heard_of(small, tmp_path / "parts")
    assert heard[0].phase == 0 and heard[0].step > 4


@pytest.mark.parametrize("recovers", [True, False], ids=["", "twin"])
def test_a_training_that_is_killed_while_its_checkpoint_is_replaced_goes_on(
    small: Small, tmp_path: Path, monkeypatch: Any, recovers: bool
) -> None:
    """Both have hidden names then, beside what earlier kills have left; the wrong twin does not look for them."""
    stopped_after(small, tmp_path / "parts", 6, JOB, monkeypatch)
    checkpoints = tmp_path / "parts" / "checkpoints"
    (checkpoints / "latest").rename(checkpoints / ".latest-00000000")
    (checkpoints / ".latest-11111111").mkdir()
    (checkpoints / ".latest-11111111" / "state-0.safetensors").write_bytes(b"half")
    if not recovers:
        monkeypatch.setattr(resume, "recover", lambda target, mark: None)
    assert (heard_of(small, tmp_path / "parts")[0].step > 4) is recovers
    assert [path.name for path in checkpoints.iterdir()] == ["final"]


@pytest.mark.parametrize("fails", ["write_text", "tidy"])
def test_a_training_that_is_killed_at_its_very_end_is_not_lost(
    small: Small, tmp_path: Path, monkeypatch: Any, fails: str
) -> None:
    def stop(*_: object) -> None:
        raise Stop

    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(fit_module, fails, stop)
        small.fit(tmp_path / "fit", JOB)
    assert (tmp_path / "fit" / "checkpoints" / "latest" / "progress.json").exists()
    if fails == "tidy":
        assert json.loads((tmp_path / "fit" / "fit.json").read_text())["steps"]
    else:
        assert not (tmp_path / "fit" / "fit.json").exists()
        assert heard_of(small, tmp_path / "fit")[0].phase == 1  # the first one is not trained again
    fit_module.tidy(tmp_path / "fit")
    assert sorted(path.name for path in (tmp_path / "fit").iterdir()) == [
        "checkpoints", "fit.json", "metrics.jsonl", "scores",
    ]  # fmt: skip
    assert [path.name for path in (tmp_path / "fit" / "checkpoints").iterdir()] == ["final"]


def test_a_shuffled_training_that_is_stopped_while_it_permutes_goes_on(
    small: Small, tmp_path: Path, monkeypatch: Any
) -> None:
    original = permute.pq.ParquetWriter

    def failing(path: Path, *given: Any, **options: Any) -> Any:
        if "test" in str(path.relative_to(tmp_path)):
            raise Stop
        return original(path, *given, **options)

    small.fit(tmp_path / "whole", JOB, arm="shuffled")
    with monkeypatch.context() as patch, pytest.raises(Stop):
        patch.setattr(permute.pq, "ParquetWriter", failing)
        small.fit(tmp_path / "parts", JOB, arm="shuffled")
    assert {path.name for path in (tmp_path / "parts").glob(".shuffled-0/*/*")} == {"train", "valid"}
    small.fit(tmp_path / "parts", JOB, arm="shuffled")
    assert everything(tmp_path / "parts") == everything(tmp_path / "whole")


# One job that uses everything at once


@pytest.fixture(scope="module")
def all_of_it(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Everything:
    return everything_of(small, tmp_path_factory.mktemp("everything"))


@pytest.fixture(scope="module")
def uninterrupted(all_of_it: Everything, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole") / "fit"
    all_of_it.fit(folder, DROPPED)
    return everything(folder)


DROPPED = {"members.student.dropout": 0.1, "train.checkpoint_every": 2}


def interrupted(job: Everything, folder: Path, steps: int) -> bool:
    """Whether a training was stopped behind so many steps, or had come to its end before."""
    original, taken = Engine.step, [0]

    def step(*args: Any, **kwargs: Any) -> Any:
        taken[0] += 1
        if taken[0] > steps:
            raise Stop
        return original(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "step", step)
        try:
            job.fit(folder, DROPPED)
        except Stop:
            return True
    return False


def test_the_job_uses_what_it_says(uninterrupted: dict[str, bytes]) -> None:
    events = [json.loads(line) for line in uninterrupted["metrics.jsonl"].splitlines()]
    last = next(e for e in reversed(events) if e["kind"] == "step")
    assert {*last["values"]} == {
        *TAUGHT,
        "bce(critic.logit, click)",
    }  # all have copied
    assert all(value != 0 for value in last["values"].values())
    assert [e["phase"] for e in events if e["kind"] == "evaluation"] == [0] * 2 + [1] * 5 + [2] * 5


def test_everything_goes_on_bit_for_bit_however_often_it_is_stopped(
    all_of_it: Everything, uninterrupted: dict[str, bytes], tmp_path: Path
) -> None:
    """A checkpoint is written every other step and at the beginning of each phase, so steps are taken again."""
    stops = 0
    while interrupted(all_of_it, tmp_path / "fit", 5):
        stops += 1
        assert stops < STEPS
    assert stops >= 4
    assert everything(tmp_path / "fit") == uninterrupted


@pytest.mark.parametrize("steps", range(1, STEPS, 4))
def test_everything_goes_on_bit_for_bit_from_anywhere(
    all_of_it: Everything, uninterrupted: dict[str, bytes], tmp_path: Path, steps: int
) -> None:
    assert interrupted(all_of_it, tmp_path / "fit", steps)
    all_of_it.fit(tmp_path / "fit", DROPPED)
    assert everything(tmp_path / "fit") == uninterrupted


def forgotten(stopped: Stopped, what: str) -> Stopped:
    """Where a training stood, without one part of it."""
    progress, tensors = json.loads(json.dumps(stopped.progress)), dict(stopped.tensors)
    match what:
        case "memory":
            tensors |= {k: torch.zeros_like(v) for k, v in tensors.items() if k.endswith(("/total", "/entered"))}
        case "average" | "snap" | "before" | "best":  # the followers' own parameters
            tensors |= {k: v + 0.01 for k, v in tensors.items() if k.startswith(f"parameters/{what}.")}
        case "ready":
            progress["followers"]["ready"] = []
        case "kept":  # the parameters of the best evaluations
            tensors |= {k: v + 0.01 for k, v in tensors.items() if k.startswith("followers/")}
        case "found":  # how good they were
            progress["followers"]["best"] = {"best": [0.0, 0.0]}
        case "mixed" | "log":
            progress["feeds"][what] = [0, 0]
        case "generations":
            progress["generations"] = {}
        case "seen" | "best_step":
            progress["watch"][what] = [] if what == "seen" else 0
        case "gate" | "adapter":
            tensors |= {k: v + 0.01 for k, v in tensors.items() if k.startswith(f"parameters/{what}")}
    assert what == "lr" or progress != stopped.progress or any(tensors[k] is not v for k, v in stopped.tensors.items())
    return Stopped(stopped.step, progress, tensors)


@pytest.mark.parametrize(
    "what",
    ["memory", "average", "snap", "before", "best", "ready", "kept", "found", "mixed", "log", "generations", "seen",
     "best_step", "gate", "adapter", "lr"],
)  # fmt: skip
def test_whatever_of_everything_is_forgotten_shows(
    all_of_it: Everything, uninterrupted: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """The wrong twins: each loses one part of what is kept, in the first repetition, when all of it is in use."""
    assert interrupted(all_of_it, tmp_path / "fit", 4 + 6)
    go_on, set_rates = Engine._go_on, Engine._set_rates
    went_on: list[int] = []

    def forgetful(self: Engine, stopped: Stopped, *given: Any) -> None:
        assert stopped.step == 6
        went_on.append(stopped.step)
        go_on(self, forgotten(stopped, what), *given)

    def late(self: Engine, phase: Any, now: Any, optimizers: Any) -> None:
        if now.step != 6:  # of the first repetition; in the second one nothing is forgotten
            set_rates(self, phase, now, optimizers)

    monkeypatch.setattr(Engine, "_go_on", forgetful)
    if what == "lr":
        monkeypatch.setattr(Engine, "_set_rates", late)
    all_of_it.fit(tmp_path / "fit", DROPPED)
    assert went_on and everything(tmp_path / "fit") != uninterrupted
