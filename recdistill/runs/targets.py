"""Where commands may write: never over what they read, nor over anything that is not theirs."""

from collections.abc import Iterable
from pathlib import Path

from recdistill.data.files import log_files
from recdistill.errors import RunError
from recdistill.export import artefact


def check_parents(place: Path) -> None:
    """A place in a folder that is there or can be made.

    Raises:
        RunError: a file is where the folder should be.
    """
    first = next(parent for parent in place.absolute().parents if parent.exists())
    if not first.is_dir():
        raise RunError(f"{place}: {first} is a file, so that nothing can lie in it; give another place")


def check_file(out: Path, logs: Iterable[str]) -> None:
    """A file to write, beside the logs that are read for it.

    Raises:
        RunError: it is a folder, or belongs to a log.
    """
    check_parents(out)
    if out.is_dir():
        raise RunError(f"{out}: is a folder; give the name of a file")
    place = out.resolve()
    for log in logs:
        inside = Path(log).is_dir() and place.is_relative_to(Path(log).resolve())
        if inside or place in {file.resolve() for file in log_files(log)}:
            raise RunError(f"{out}: would become a part of the log {log}, which is read; give another file")


def artefact_folder(out: Path, run: Path) -> Path:
    """The folder to export a run's artefact to, whatever it is called.

    Raises:
        RunError: the run or the current folder lies in it, or its parent is a file.
        ExportError: it holds something else than an artefact.
    """
    check_parents(out)
    place = out.resolve()
    for name, kept in (("the run", run), ("the current folder", Path.cwd())):
        if kept.resolve().is_relative_to(place):
            raise RunError(f"{out}: holds {name}, which would be lost; give another folder")
    if place != (run / "student").resolve():  # which is the run's own, damaged or not
        artefact.check_free(place)
    return place
