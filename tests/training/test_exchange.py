"""Members of other processes: what is left in the shared folder, and what becomes of missing, old and broken peers."""

import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from recdistill.distill.schedule import Now
from recdistill.runs.doubts import exchange_warnings
from recdistill.training import checkpoint
from recdistill.training.exchange import Exchange
from tests.conftest import Small
from tests.training.bench import BCE, LAST, OTHER, STUDENT, Bench, distance, problems, same

SOFT = "soft(student.logit, peer.logit)"


def bench(small: Small, folder: Path, name: str, *, peers: int = 1, shard: int = 0, **more: Any) -> Bench:
    """A process that visits a shared folder every two steps."""
    peer = {"remote": {"of": "student", "exchange": str(folder), "name": name, "every": 2}, "copies": peers}
    soft = SOFT if peers == 1 else "soft(student.logit, mean(peer[:].logit, of='probability'))"
    phases = [{"steps": 8, "feed": "mine", "terms": [BCE, soft], **LAST}]
    feeds = {"mine": {"shard": [shard, 3]}}
    return Bench.of(small, {"student": STUDENT, "peer": peer}, phases, **{"feeds": feeds, **more})


def visit(b: Bench, step: int) -> dict[str, float]:
    found: dict[str, float] = b.engine.followers.step_taken(step, 8, b.plan.phases[0])
    return found


def advance(b: Bench, steps: range) -> None:
    for step in steps:
        b.step(at=Now(step, 8))
        visit(b, step + 1)


def left(folder: Path, name: str) -> list[Path]:
    """What a process has left, the oldest first."""
    (meeting,) = folder.iterdir()
    return sorted((meeting / name).iterdir())


def counts(b: Bench) -> dict[str, int]:
    return dict(b.engine.followers.exchanges[0].counts)


def test_a_peer_is_silent_until_somebody_has_left_something(small: Small, group: None, tmp_path: Path) -> None:
    first, second = (bench(small, tmp_path, name, shard=k) for k, name in enumerate(("first", "second")))
    assert first.engine.followers.silent == {"peer"}
    assert list(first.step()) == [BCE]
    assert visit(first, 1) == {}
    assert visit(first, 2) == {"student.alone": 1.0}
    assert first.engine.followers.silent == {"peer"}
    assert visit(second, 2) == {"student.alone": 0.0, "peer.step": 2.0, "peer.lag": 0.0}
    assert second.engine.followers.silent == set()
    assert same(second.state("peer"), first.state("student"))
    assert list(second.step()) == [BCE, SOFT]


def test_a_peer_stands_still_between_visits_and_takes_the_newest(small: Small, group: None, tmp_path: Path) -> None:
    first, second = (bench(small, tmp_path, name, shard=k) for k, name in enumerate(("first", "second")))
    advance(first, range(2))
    visit(second, 2)
    seen = second.state("peer")
    advance(first, range(2, 4))
    assert not same(first.state("student"), seen)
    second.step()
    visit(second, 3)
    assert same(second.state("peer"), seen)
    assert visit(second, 4) == {"student.alone": 0.0, "peer.step": 4.0, "peer.lag": 0.0}
    assert same(second.state("peer"), first.state("student"))
    assert visit(second, 8)["peer.lag"] == 4  # nothing new: the old one stays
    assert same(second.state("peer"), first.state("student"))


def test_only_the_last_two_of_each_stay_and_nothing_unfinished(small: Small, group: None, tmp_path: Path) -> None:
    b = bench(small, tmp_path, "first")
    b.engine.followers.step_taken(2, 8, b.plan.phases[0])
    (folder,) = left(tmp_path, "first")
    shutil.copytree(folder, folder.with_name(f"{900:09d}"))  # that nobody has taken away
    shutil.copytree(folder, folder.with_name(f".{6:09d}"))  # of one that was killed while it wrote
    advance(b, range(2, 8))
    assert [path.name for path in left(tmp_path, "first")] == [f"{6:09d}", f"{8:09d}"]
    kept = checkpoint.read(left(tmp_path, "first")[-1])
    assert {key.split(".")[0] for key in kept} == {"student", "tables"}
    assert all(torch.equal(value, kept[key]) for key, value in b.state("student").items())


def test_seeds_terms_and_logs_do_not_mix(small: Small, group: None, tmp_path: Path) -> None:
    first, second = (bench(small, tmp_path, name, shard=k) for k, name in enumerate(("first", "second")))
    control = bench(small, tmp_path, "second", shard=1, controls=["shuffled"])
    visit(first, 2)
    second.engine.followers.exchanges[0].trained_on = ("another log", 0)
    assert visit(second, 2) == {"student.alone": 1.0}
    second.engine.followers.exchanges[0].trained_on = (small.encoded.fingerprint, 1)
    assert visit(second, 2) == {"student.alone": 1.0}
    phase = control.plan.phases[0]
    from recdistill.distill.compile import compile_job
    from recdistill.spec.controls import arms

    (shuffled,) = (arm.job for arm in arms(control.job) if arm.name == "shuffled_signal")
    other = compile_job(shuffled, small.encoded.spec).phases[0]
    assert control.engine.followers.step_taken(2, 8, other) == {"student.alone": 1.0}
    assert control.engine.followers.step_taken(2, 8, phase)["student.alone"] == 0


# Earlier runs, and what is not complete


def check_nobody_is_heard(b: Bench) -> None:
    assert visit(b, 4) == {"student.alone": 1.0}
    assert counts(b)["unusable"] == 0


def test_what_an_earlier_run_has_left_is_not_heard(small: Small, group: None, tmp_path: Path) -> None:
    visit(bench(small, tmp_path, "first"), 8)
    second = bench(small, tmp_path, "second", shard=1)
    check_nobody_is_heard(second)
    assert second.engine.followers.silent == {"peer"}
    second.engine.followers.exchanges[0].since = 0.0  # the wrong twin: whatever is there is heard
    with pytest.raises(AssertionError):
        check_nobody_is_heard(second)
    second.engine.followers.exchanges[0].since = time.time()
    again = bench(small, tmp_path, "first")
    again.engine.followers.phase_begins(again.plan.phases[0], first=True)
    visit(again, 2)  # who begins later is heard, though an earlier run had come further
    assert visit(second, 6) == {"student.alone": 0.0, "peer.step": 2.0, "peer.lag": 4.0}


def test_who_begins_anew_withdraws_what_an_earlier_attempt_has_left(
    small: Small, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (bench(small, tmp_path, name, shard=k) for k, name in enumerate(("first", "second")))
    phase = first.plan.phases[0]
    visit(first, 8)
    first.engine.followers.phase_begins(phase, first=True)
    check_nobody_is_heard(second)
    visit(first, 8)
    monkeypatch.setattr(Exchange, "begin", lambda *_: None)
    first.engine.followers.phase_begins(phase, first=True)
    with pytest.raises(AssertionError):
        check_nobody_is_heard(second)


def check_goes_on(small: Small, folder: Path, progress: dict[str, Any]) -> None:
    """Visits are counted on, and what has been left at the last one stays, since somebody may be reading it."""
    b = bench(small, folder, "first")
    b.engine.followers.restore(json.loads(json.dumps(progress)), {})
    visit(b, 6)
    assert counts(b) == {"visits": 3, "alone": 3, "stale": 0, "unusable": 0}
    assert [path.name for path in left(folder, "first")] == [f"{4:09d}", f"{6:09d}"]


def test_a_training_that_goes_on_counts_on_and_withdraws_nothing_too_soon(
    small: Small, group: None, tmp_path: Path
) -> None:
    b = bench(small, tmp_path, "first")
    nothing = b.engine.followers.progress | {
        "exchanges": [bench(small, tmp_path, "first").engine.followers.exchanges[0].progress]
    }
    for step in (2, 4):
        visit(b, step)
    check_goes_on(small, tmp_path, b.engine.followers.progress)
    for step in (2, 4):
        visit(b, step)
    with pytest.raises(AssertionError):
        check_goes_on(small, tmp_path, nothing)


def interrupted(save: Callable[..., None], b: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that is killed while it leaves its parameters: files are there, but not all."""

    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save", save)
        patch.setattr(checkpoint, "_sort_header", killed)
        with pytest.raises(KeyboardInterrupt):
            visit(b, 2)


def in_place(cast: Any, folder: Path, names: Any = None) -> None:
    @contextmanager
    def at_once(target: Path) -> Iterator[Path]:
        target.mkdir(parents=True)
        yield target

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "published_together", at_once)
        SAVE(cast, folder, names)


SAVE = checkpoint.save


def test_what_is_being_left_is_not_heard(
    small: Small, group: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (bench(small, tmp_path, name, shard=k) for k, name in enumerate(("first", "second")))
    interrupted(SAVE, first, monkeypatch)
    check_nobody_is_heard(second)
    interrupted(in_place, first, monkeypatch)
    with pytest.raises(AssertionError):
        check_nobody_is_heard(second)


# Peers that cannot be used


def changed(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
        save_file(change(load_file(file)), file, metadata)


def cut_short(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def nonsense(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        file.write_bytes(b"what is this" * 99)


def emptied(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()


def without_metadata(folder: Path) -> None:
    for file in folder.glob("*.safetensors"):
        save_file({}, file)


def headless(folder: Path) -> None:
    (folder / "layout.json").unlink()


def diverged(folder: Path) -> None:
    changed(folder, lambda found: {k: torch.full_like(v, torch.nan) for k, v in found.items()})


def of_another_shape(folder: Path) -> None:
    changed(folder, lambda found: {k: torch.cat([v, v]) for k, v in found.items()})


def lacking(folder: Path) -> None:
    changed(folder, lambda found: {k: v for k, v in found.items() if "bias" not in k})


BROKEN = [cut_short, nonsense, emptied, without_metadata, headless, diverged, of_another_shape, lacking]


@pytest.mark.parametrize("spoil", BROKEN)
def test_what_cannot_be_used_is_passed_over_and_counted(
    small: Small, group: None, tmp_path: Path, spoil: Callable[[Path], None]
) -> None:
    first, second = (bench(small, tmp_path, name, shard=k) for k, name in enumerate(("first", "second")))
    advance(first, range(2))
    older = first.state("student")
    advance(first, range(2, 4))
    before, last = left(tmp_path, "first")
    spoil(last)
    assert visit(second, 4) == {"student.alone": 0.0, "peer.step": 2.0, "peer.lag": 2.0}
    assert same(second.state("peer"), older)
    assert counts(second) == {"visits": 1, "alone": 0, "stale": 0, "unusable": 1}
    spoil(before)
    assert visit(second, 6) == {"student.alone": 1.0}
    assert same(second.state("peer"), older)  # what it knew before, it knows still
    assert counts(second) == {"visits": 2, "alone": 1, "stale": 0, "unusable": 3}


def test_files_and_strange_folders_are_no_peers(small: Small, group: None, tmp_path: Path) -> None:
    b = bench(small, tmp_path, "first")
    visit(b, 2)
    (meeting,) = tmp_path.iterdir()
    (meeting / "notes.txt").write_text("somebody was here")
    (meeting / "empty").mkdir()
    (meeting / "third" / "soon").mkdir(parents=True)
    assert visit(b, 4) == {"student.alone": 1.0}
    assert counts(b) == {"visits": 2, "alone": 2, "stale": 0, "unusable": 0}


def test_without_peers_a_training_is_a_lone_one(small: Small, group: None, tmp_path: Path) -> None:
    b = bench(small, tmp_path / "exchange", "first")
    b.fit(tmp_path / "fit")
    phases = [{"steps": 8, "feed": "mine", "terms": [BCE], **LAST}]
    lone = Bench.of(small, {"student": STUDENT}, phases, feeds={"mine": {"shard": [0, 3]}})
    lone.fit(tmp_path / "lone")
    ours, theirs = (checkpoint.read(tmp_path / run / "checkpoints" / "final") for run in ("fit", "lone"))
    assert all(torch.equal(value, ours[key]) for key, value in theirs.items())
    found = json.loads((tmp_path / "fit" / "fit.json").read_text())
    assert found["exchange"] == {"peer": {"visits": 4, "alone": 4, "stale": 0, "unusable": 0}}
    told = exchange_warnings({"main": [found, {}]})
    assert [each["cause"] for each in told] == ["missing_peers"]
    assert told[0]["message"].startswith("main: on 4 of 4 visits peer found nobody else in the shared folder")
    broken = {"exchange": {"peer": {"visits": 4, "alone": 0, "stale": 0, "unusable": 2}}}
    assert [each["cause"] for each in exchange_warnings({"main": [broken]})] == ["unusable_peers"]
    slow = {"exchange": {"peer": {"visits": 4, "alone": 0, "stale": 1, "unusable": 0}}}
    assert exchange_warnings({"main": [slow]}) == []
    gone = {"exchange": {"peer": {"visits": 4, "alone": 0, "stale": 2, "unusable": 0}}}
    assert [each["cause"] for each in exchange_warnings({"main": [gone]})] == ["stale_peers"]
    never = {"exchange": {"peer": {"visits": 0, "alone": 0, "stale": 0, "unusable": 0}}}
    assert [each["cause"] for each in exchange_warnings({"main": [never]})] == ["missing_peers"]


# Several


def test_copies_are_as_many_peers_and_stand_in_for_those_that_are_missing(
    small: Small, group: None, tmp_path: Path
) -> None:
    names = ("first", "second", "third")
    first, second, third = (bench(small, tmp_path, name, peers=2, shard=k) for k, name in enumerate(names))
    second.step()
    visit(first, 2)
    assert visit(second, 2) == {
        "student.alone": 0.0,
        **{f"peer_{k}.step": 2.0 for k in (0, 1)},
        **{f"peer_{k}.lag": 0.0 for k in (0, 1)},
    }
    assert same(second.state("peer_0"), first.state("student"))
    assert same(second.state("peer_1"), first.state("student"))
    visit(third, 2)
    assert same(third.state("peer_0"), first.state("student"))
    assert same(third.state("peer_1"), second.state("student"))
    assert distance(first.state("student"), second.state("student")) > 0


def test_a_peer_on_borrowed_tables_has_all_of_them(small: Small, group: None, tmp_path: Path) -> None:
    members = {
        "student": {**STUDENT, "share": {"tables": "owner", "own": ["city"]}},
        "owner": OTHER,
        "peer": {"remote": {"of": "student", "exchange": str(tmp_path), "name": "first", "every": 2}},
    }
    phases = [{"steps": 8, "terms": [BCE, "bce(owner.logit, label)", SOFT], **LAST}]
    b = Bench.of(small, members, phases)
    b.step()
    exchange = b.engine.followers.exchanges[0]
    exchange.visit(b.plan.phases[0], 2)
    (meeting,) = tmp_path.iterdir()
    (meeting / "first").rename(meeting / "second")
    assert exchange.visit(b.plan.phases[0], 4)["student.alone"] == 0
    from recdistill.training.play import play

    played = play(b.cast, ["student", "peer"], b.batch())
    assert torch.equal(played["student"].logits_BK, played["peer"].logits_BK)


def test_what_a_job_may_not_say_of_a_shared_folder(small: Small) -> None:
    remote = {"of": "student", "exchange": "e", "name": "a", "every": 2}
    for changes, message in (
        ({"name": "a/b"}, "members.peer.remote.name"),
        ({"name": ".a"}, "members.peer.remote.name"),
        ({"every": 0}, "members.peer.remote.every"),
        ({"of": "nobody"}, "members.peer.remote: no member 'nobody'"),
    ):
        members = {"student": STUDENT, "peer": {"remote": {**remote, **changes}}}
        found = problems(small, members, [{"steps": 2, "terms": [BCE]}])
        assert any(message in problem for problem in found), (message, found)
