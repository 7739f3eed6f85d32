"""Runs beside each other and one after the other: folders that are free, caches that others read, code that changes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from rich.console import Console

from recdistill import api
from recdistill.data import encode as encode_module
from recdistill.distill.compile import problems_of
from recdistill.errors import RunError, SpecError
from recdistill.losses.catalog import LOSSES
from recdistill.nets.catalog import NETS
from recdistill.nets.inputs import Inputs
from recdistill.nets.towers import Mlp
from recdistill.publish import published
from recdistill.runs import execute as execute_module
from recdistill.runs import logs as logs_module
from recdistill.runs.console import Reporter
from recdistill.runs.folder import RunFolder, link_tree, new_folder
from recdistill.spec.controls import arms
from recdistill.spec.load import assign, parse_job
from recdistill.training.reading import Data
from tests.conftest import Small
from tests.runs.conftest import Command


def test_a_start_that_failed_leaves_its_folder_free(
    job: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs" / "tiny"
    assert command("run", job, "--out", out, "--log", "nothing.parquet")[0] == 2
    assert [path.name for path in out.iterdir()] == [".lock"]
    monkeypatch.chdir(tmp_path)
    assert new_folder(out, "tiny", resume=False).root == out
    assert new_folder(None, "tiny", resume=False).root == Path("runs/tiny")
    with RunFolder(out).locked():
        assert new_folder(None, "tiny", resume=False).root == Path("runs/tiny-2")
    (out / "job.yaml").touch()
    assert new_folder(None, "tiny", resume=False).root == Path("runs/tiny-2")
    with pytest.raises(RunError, match="holds files already"):
        new_folder(out, "tiny", resume=False)


def test_runs_that_finish_a_control_at_the_same_time_share_one_cache_entry(tmp_path: Path) -> None:
    made, cached = tmp_path / "made", tmp_path / "cache" / "key"
    for k in range(20):
        (made / str(k)).mkdir(parents=True)
        (made / str(k) / "fit.json").write_text("{}")

    def finished(run: int) -> None:
        for k in range(10):
            link_tree(made, cached, replace=False)
            link_tree(cached, tmp_path / f"run-{run}" / str(k))
            assert len([*(tmp_path / f"run-{run}" / str(k)).glob("*/fit.json")]) == 20

    with ThreadPoolExecutor(4) as pool:
        errors = [each.exception() for each in [pool.submit(finished, run) for run in range(4)]]
    assert errors == [None] * 4
    assert [path.name for path in cached.parent.iterdir()] == ["key"]


def kept_for_readers(small: Small, folder: Path, monkeypatch: pytest.MonkeyPatch, encoding: int) -> bool:
    """Whether what a faster run has encoded stays when this one, which had looked for it in vain, is done as well.

    Args:
        small: a log and a job.
        folder: for files.
        encoding: which one the faster run forestalls: 0 that of the job's log, 1 that of a feed.
    """
    pl.read_parquet(small.log).head(500).write_parquet(folder / "feed.parquet")
    feed = {"feeds.more": {"log": str(folder / "feed.parquet")}}
    job, spec = parse_job(assign(small.job, feed, "job"), "job")
    original, calls, theirs = encode_module._write, count(), list[int]()

    def encoded() -> Path:
        logs = logs_module.encoded(spec, str(small.log), job, ("train",), Reporter(Console(quiet=True)))
        return (logs.log if encoding == 0 else logs.feeds["more"]).folder

    def late(*given: Any) -> Any:
        if next(calls) == encoding:
            theirs.append(encoded().stat().st_ino)
        return original(*given)

    monkeypatch.setattr(encode_module, "_write", late)
    mine = encoded()
    assert len(theirs) == 1
    assert [path.name for path in mine.parent.iterdir() if path.name.startswith(".")] == []
    return mine.stat().st_ino == theirs[0]


@pytest.mark.parametrize("encoding", [0, 1], ids=["log", "feed"])
def test_what_others_read_already_is_not_replaced(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: int
) -> None:
    assert kept_for_readers(small, tmp_path, monkeypatch, encoding)


def test_a_feed_that_is_published_like_anything_else_is_replaced(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The wrong twin."""
    monkeypatch.setattr(logs_module, "published", lambda folder, replace: published(folder))
    assert not kept_for_readers(small, tmp_path, monkeypatch, 1)


@pytest.fixture
def words() -> Iterator[None]:
    """The tables of losses and nets are put back in the end."""
    kept = [(table, dict(table)) for table in (LOSSES, NETS)]
    yield
    for table, content in kept:
        table.clear()
        table.update(content)


def narrow(inputs: Inputs, labels: int) -> Mlp:
    """A net of somebody's own; what it is depends on more than its text."""
    return Mlp(inputs, labels, layers=[WIDTH])


def near(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """A loss of somebody's own."""
    return (student - teacher).abs()


WIDTH = 4
DISTILLED = "near(student.logit, teacher.logit)"


def entries(small: Small, overrides: dict[str, Any]) -> list[Path | None]:
    """Where each control of a job lies in the cache."""
    job, _ = parse_job(assign(small.job, overrides, "job"), "job", check=problems_of)
    return [execute_module._cached(arm, Data.of(small.encoded), 0) for arm in arms(job)[1:]]


@pytest.mark.usefixtures("words")
def test_controls_with_code_of_ones_own_are_not_taken_from_the_cache(small: Small) -> None:
    api.loss(near)
    assert all(entries(small, {})), "a job that does not speak of it"
    terms = [*small.job["phases"][0]["terms"], DISTILLED]
    plain, shuffled = entries(small, {"phases.0.terms": terms})
    assert plain is not None and shuffled is None, "plain drops the term that speaks of it"
    api.net(narrow)
    assert entries(small, {"members.student.net": {"narrow": {}}}) == [None, None]


@pytest.mark.usefixtures("words")
def test_otherwise_two_nets_would_share_a_control(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong twin: the job, and even the text of the net, are the same for 4 and for 400 units."""
    monkeypatch.setattr(execute_module, "uses_own", lambda described: False)
    api.net(narrow)
    found = []
    for width in (4, 400):
        monkeypatch.setitem(globals(), "WIDTH", width)
        found.append(entries(small, {"members.student.net": {"narrow": {}}}))
    assert found[0] == found[1] and None not in found[0]


@pytest.mark.usefixtures("words")
def test_a_built_in_loss_that_was_replaced_is_somebodys_own(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOSSES, "bce", near)
    assert entries(small, {}) == [None, None]


@pytest.mark.usefixtures("words")
@pytest.mark.parametrize("name", ["bce", "step"])
def test_words_of_the_package_keep_their_meaning(name: str) -> None:
    def other(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return near(student, teacher)

    other.__name__ = name
    with pytest.raises(SpecError, match=f"loss '{name}': 1 problem\n  - is a word of this package already"):
        api.loss(other)
    assert LOSSES.get(name) is not other
    other.__name__ = "mlp"
    with pytest.raises(SpecError, match="net 'mlp'"):
        api.net(other)
    other.__name__ = "mine"
    assert api.loss(other) is not None and api.loss(other) is not None  # in a notebook the same cell is run again
    assert LOSSES["mine"] is other and api.loss(LOSSES["bce"]) is not None
