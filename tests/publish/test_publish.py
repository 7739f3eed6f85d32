"""What is published is there completely or not at all: kills at every point, failures, and writers side by side."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from recdistill import publish
from recdistill.publish import leftovers, link_or_copy, published, recover, write_text

CHANGES = ("mkdir", "rename", "replace", "unlink", "rmdir")
KILLED = 9
Write = Callable[[Path, str], object]


class Stop(BaseException):
    """Like KeyboardInterrupt, no Exception."""


def write_folder(folder: Path, version: str) -> None:
    """Two files of one version; the second one says that the folder is whole."""
    folder.mkdir()
    (folder / "part").write_text(version)
    (folder / "whole").write_text(version)


def well(target: Path, version: str) -> None:
    with published(target) as work:
        write_folder(work, version)


def careless(target: Path, version: str) -> None:
    """The wrong twin: what was there goes before the new one comes."""
    work = target.with_name(f".{target.name}-00000000")
    write_folder(work, version)
    shutil.rmtree(target, ignore_errors=True)
    work.rename(target)


def version_of(folder: Path) -> str | None:
    """The version of a whole folder; None if there is none."""
    found = [path.read_text() for path in (folder / "part", folder / "whole") if path.exists()]
    return found[0] if len(found) == 2 and found[0] == found[1] else None


def killed(before: int, action: Callable[[], object]) -> bool:
    """Whether a process that does something is killed before its so many-th change of the file system."""
    child = os.fork()
    if child == 0:
        steps = count()
        for name in CHANGES:
            setattr(os, name, dying(getattr(os, name), steps, before))
        action()
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED


def dying(original: Callable[..., Any], steps: "count[int]", before: int) -> Callable[..., Any]:
    def change(*given: Any, **options: Any) -> Any:
        if next(steps) == before:
            os._exit(KILLED)
        return original(*given, **options)

    return change


def lost_by(write: Write, folder: Path, *, recovering: bool = True) -> list[int]:
    """Before which changes a kill loses the older version and the newer one."""
    lost = []
    for step in count():
        target = folder / str(step) / "target"
        target.parent.mkdir(parents=True)
        write_folder(target, "old")
        was_killed = killed(step, lambda target=target: write(target, "new"))  # type: ignore[misc]
        if recovering:
            recover(target, "whole")
        if version_of(target) is None:
            lost.append(step)
        if not was_killed:
            assert step >= 3 and version_of(target) == "new"
            return lost
    raise AssertionError


def test_a_kill_at_any_point_leaves_the_older_folder_or_the_new_one(tmp_path: Path) -> None:
    assert lost_by(well, tmp_path) == []


def test_without_recovery_or_order_a_kill_loses_both(tmp_path: Path) -> None:
    """The wrong twins: nobody looks for what stepped aside; what was there is removed first."""
    assert lost_by(well, tmp_path / "a", recovering=False) != []
    assert lost_by(careless, tmp_path / "b", recovering=False) != []


def test_a_kill_at_any_point_leaves_the_older_file_or_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "file"
    found = []
    for step in count():
        write_text(path, "old")
        was_killed = killed(step, lambda: write_text(path, "new"))
        found.append(path.read_text())
        if not was_killed:
            break
    assert {*found} == {"old", "new"} and found[-1] == "new"


@pytest.mark.parametrize("write", [well, lambda target, version: write_text(target, version)], ids=["folder", "file"])
def test_what_fails_leaves_what_was_there_and_nothing_else(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    write(target, "old")
    with pytest.raises(Stop), published(target) as work:
        work.write_text("half")
        raise Stop
    rename, steps = os.rename, count()

    def failing(source: Path, place: Path) -> None:
        if place == target and next(steps) == 0:
            raise Stop
        rename(source, place)

    monkeypatch.setattr(os, "rename", failing)
    monkeypatch.setattr(os, "replace", failing)
    with pytest.raises(Stop):
        write(target, "new")
    assert (version_of(target) if target.is_dir() else target.read_text()) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]
    write(target, "new")
    assert (version_of(target) if target.is_dir() else target.read_text()) == "new"


def test_a_folder_that_somebody_else_was_faster_to_publish_stays_if_asked_for(tmp_path: Path) -> None:
    target = tmp_path / "target"
    for replace, expected in ((False, "theirs"), (True, "mine")):
        with published(target, replace=replace) as work:
            write_folder(work, "mine")
            if not target.exists():
                write_folder(target, "theirs")
        assert version_of(target) == expected
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_folders_do_not_take_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("mine")
    with pytest.raises(NotADirectoryError):
        well(tmp_path / "target", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["target"] and (tmp_path / "target").read_text() == "mine"


def errors_of_writers(write: Write, target: Path) -> list[BaseException]:
    """What goes wrong when eight writers write one folder ten times each, side by side."""
    with ThreadPoolExecutor(8) as pool:
        done = [pool.submit(lambda: [write(target, "same") for _ in range(10)]) for _ in range(8)]
    return [error for each in done if (error := each.exception()) is not None]


def test_writers_side_by_side_do_not_disturb_each_other(tmp_path: Path) -> None:
    assert errors_of_writers(well, tmp_path / "target") == []
    assert version_of(tmp_path / "target") == "same"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_writers_that_share_a_name_for_their_work_do(tmp_path: Path) -> None:
    """The wrong twin."""
    assert errors_of_writers(careless, tmp_path / "target") != []


def test_leftovers_are_those_of_the_target_alone_the_newest_first(tmp_path: Path) -> None:
    names = [".a-0000000b", ".a-0000000a", ".a-b-00000000", ".b-00000000", ".a", ".a-0"]
    for age, name in enumerate(names):
        write_folder(tmp_path / name, name)
        os.utime(tmp_path / name, (0, 1000 - age))
    assert [path.name for path in leftovers(tmp_path / "a")] == names[:2]
    (tmp_path / names[0] / "whole").unlink()
    recover(tmp_path / "a", "whole")
    assert version_of(tmp_path / "a") == names[1]
    recover(tmp_path / "a", "part")  # is there already
    assert version_of(tmp_path / "a") == names[1]


def test_a_file_gets_a_second_name_or_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_text("content")
    link_or_copy(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a").samefile(tmp_path / "b")

    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(publish.os, "link", refuse)  # as some file systems do
    link_or_copy(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "content" and not (tmp_path / "a").samefile(tmp_path / "c")
