"""Files and folders that are there completely or not at all, whoever reads, writes beside, or is killed.

Work goes on beside the target, under a hidden name of its own:

    .TARGET-1f8a09c3    being written, or an older folder on its way out

A file takes the place of another one in one step. Folders need two: the older one steps aside, the new one takes its
place. Whoever is killed in between leaves both under hidden names, which `recover` finds. Nobody else looks at these.
"""

import errno
import json
import os
import secrets
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def published(target: Path, *, replace: bool = True) -> Iterator[Path]:
    """A path to write to, whose file or folder becomes the target when the block is done; if it fails, nothing does.

    Args:
        target: where it is to be.
        replace: whether a folder takes the place of one that is there by then. In a cache it does not: whoever was
            faster has put the same there, and others may be reading it.
    """
    with aside(target) as work:
        yield work
        put(work, target, replace=replace)


@contextmanager
def aside(target: Path) -> Iterator[Path]:
    """A path beside the target, where nothing is; what is there in the end and was not `put` anywhere is removed."""
    target.parent.mkdir(parents=True, exist_ok=True)
    work = _beside(target)
    try:
        yield work
    finally:
        remove(work)


def put(work: Path, target: Path, *, replace: bool = True) -> None:
    """Let a finished file or folder beside the target take its place; see `published`."""
    if not work.is_dir():
        work.replace(target)
    elif replace and target.is_dir():
        _swap(work, target)
    else:
        try:
            work.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # of a folder that somebody else has put there
                raise


def _swap(work: Path, target: Path) -> None:
    """Let a folder take the place of another one, which is gone only when it stands there."""
    old = _beside(target)
    try:
        with suppress(FileNotFoundError):  # another writer is replacing it right now
            target.rename(old)
        put(work, target, replace=False)
    except BaseException:
        if old.exists() and not target.exists():
            old.rename(target)
        raise
    finally:
        remove(old)


def _beside(target: Path) -> Path:
    return target.with_name(f".{target.name}-{secrets.token_hex(4)}")


def is_foreign(target: Path, mark: str, keys: Collection[str]) -> bool:
    """Whether something lies there that is not ours to replace: a file, or a folder with files of another kind.

    Args:
        target: where a folder is to be.
        mark: the JSON file that tells what such a folder holds.
        keys: what this file speaks of in a folder of ours, whole or not.
    """
    if not target.is_dir():
        return target.exists()
    try:
        told = json.loads((target / mark).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        told = None
    is_ours = isinstance(told, dict) and told.keys() >= {*keys}
    return not is_ours and any(target.iterdir())


def leftovers(target: Path) -> list[Path]:
    """What killed writers have left beside a target, the newest first; work of others, if there are others."""
    named = f".{target.name}-"
    found = [path for path in target.parent.glob(".*-????????") if path.name[:-8] == named]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def recover(target: Path, mark: str) -> None:
    """Put the newest whole folder that a killed writer has left in the place of a target that is missing.

    Args:
        target: a folder that nobody else writes.
        mark: the file that is written last, so that a folder with it is whole.
    """
    whole = [left for left in leftovers(target) if (left / mark).exists()]
    if whole and not target.exists():
        whole[0].rename(target)


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file."""
    with published(path) as work:
        work.write_text(text, encoding="utf-8")


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """A second name for a file where the file system allows it, a copy elsewhere."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
