"""The run folder and the cache: what lies where.

RUN/
  job.yaml spec.yaml          resolved, with all defaults
  manifest.json               versions, seeds, fingerprints of spec, data and code
  fitted/                     vocabularies and scales of the final parameters
  nodes/                      users and items of the final parameters, if the job speaks of them
  seed_0/ ...                 trainings of the job itself (`recdistill/training/fit.py`)
  controls/plain/seed_0/ ...  trainings of the controls
  student/                    the artefact
  report.json report.html     a run is complete only when report.json exists

CACHE/  ($RECDISTILL_CACHE, or .recdistill in the current directory; safe to delete)
  logs/ encoded/ trainings/   simulated logs, encoded logs and finished control trainings, by fingerprint; a folder is
                              never replaced, since others may be reading it
"""

import fcntl
import glob
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import recdistill
from recdistill.errors import RunError
from recdistill.publish import link_or_copy, published, write_text
from recdistill.runs.targets import check_parents
from recdistill.spec.controls import MAIN
from recdistill.training.fit import DONE

LOCK = ".lock"
LIBRARIES = (
    "torch",
    "torchrec",
    "fbgemm-gpu-cpu",
    "fbgemm-gpu",
    "polars",
    "pyarrow",
    "numpy",
    "scipy",
    "scikit-learn",
    "pydantic",
)


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run."""

    root: Path

    @property
    def report(self) -> Path:
        """The report, whose presence makes the run complete."""
        return self.root / "report.json"

    @property
    def student(self) -> Path:
        """The serving artefact."""
        return self.root / "student"

    def training(self, arm: str, seed: int) -> Path:
        """The folder of one training."""
        parent = self.root if arm == MAIN else self.root / "controls" / arm
        return parent / f"seed_{seed}"

    def is_done(self, arm: str, seed: int) -> bool:
        """Whether a training is finished."""
        return (self.training(arm, seed) / DONE).exists()

    def summary(self, arm: str, seed: int) -> dict[str, Any]:
        """What a finished training says about itself: steps and seconds."""
        found: dict[str, Any] = json.loads((self.training(arm, seed) / DONE).read_text(encoding="utf-8"))
        return found

    def read_report(self) -> dict[str, Any]:
        """The report.

        Raises:
            RunError: the run is not complete.
        """
        try:
            found: dict[str, Any] = json.loads(self.report.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            if not self.root.exists():
                raise RunError(f"{self.root}: does not exist; give the folder of a run") from None
            if (self.root / "student.pt").exists():
                raise RunError(f"{self.root}: is an artefact, not a run; give the folder of its run") from None
            raise RunError(
                f"{self.root}: is no complete run; finish it with `recdistill run JOB --out {self.root} --resume`"
            ) from None
        return found

    @property
    def holds_files(self) -> bool:
        """Whether more is here than the lock, which a run leaves that has failed before it began."""
        return self.root.exists() and any(entry.name != LOCK for entry in self.root.iterdir())

    @property
    def is_free(self) -> bool:
        """Whether nothing is here and nobody is about to begin."""
        if self.holds_files:
            return False
        try:
            with self.locked():
                return True
        except RunError:
            return False

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for this process.

        Raises:
            RunError: another process holds it.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / LOCK).open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise RunError(f"{self.root}: another run writes here; wait for it, or give another --out") from None
            yield


def new_folder(out: Path | None, stem: str, *, resume: bool, job: str = "") -> RunFolder:
    """The folder of a run: the one asked for, or the first free ``runs/STEM``, ``runs/STEM-2``, ...

    Args:
        out: the one asked for.
        stem: what it is called otherwise.
        resume: whether a run that was started may be continued; without ``out`` the newest one of this very job, one
            that is not finished first.
        job: the job as `RunFolder` holds it in job.yaml.

    Raises:
        RunError: the folder asked for is none, or holds a run already.
    """
    if out is not None:
        check_parents(out)
        if out.exists() and not out.is_dir():
            raise RunError(f"{out}: is a file; give another --out")
        folder = RunFolder(out)
        if folder.holds_files and not resume:
            state = "a complete run" if folder.report.exists() else "files"
            raise RunError(f"{out}: holds {state} already; give another --out, or continue it with --resume")
        return folder
    if resume and (mine := _runs_of(stem, job)):
        return min(mine, key=lambda folder: folder.report.exists())
    number = 1
    while True:
        folder = RunFolder(Path("runs") / (stem if number == 1 else f"{stem}-{number}"))
        if folder.is_free or (resume and not folder.report.exists()):
            return folder
        number += 1


def _runs_of(stem: str, job: str) -> list[RunFolder]:
    """All runs of a job below ``runs``, the newest first."""
    named = re.compile(rf"{re.escape(stem)}(?:-(\d+))?")
    found = {path: named.fullmatch(path.parent.name) for path in Path("runs").glob(f"{glob.escape(stem)}*/job.yaml")}
    numbers = {path: int(match[1] or 1) for path, match in found.items() if match is not None}
    mine = [path for path in numbers if path.read_text(encoding="utf-8") == job]
    return [RunFolder(path.parent) for path in sorted(mine, key=numbers.__getitem__, reverse=True)]


def cache_folder(kind: str) -> Path:
    """A folder of the cache."""
    return Path(os.environ.get("RECDISTILL_CACHE", ".recdistill")) / kind


def write_json(path: Path, value: object) -> None:
    """Write JSON so that the file is there completely or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False))


def fingerprint(value: object) -> str:
    """A hash of anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()


@cache
def code_fingerprint() -> str:
    """A hash of this package's source, so that a change of code never meets an old cache."""
    digest = hashlib.blake2b(digest_size=16)
    root = Path(recdistill.__file__).parent
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that results depend on."""
    found = {"python": platform.python_version(), "recdistill": recdistill.__version__}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def link_tree(source: Path, target: Path, only: Sequence[str] | None = None, *, replace: bool = True) -> None:
    """A copy of a folder, or of some of its entries, that shares the files' content where the file system allows it.

    It is there completely or not at all; with ``replace`` in the place of a folder that was there before.
    """

    def left_out(folder: str, names: list[str]) -> list[str]:
        return [n for n in names if only is not None and Path(folder) == source and n not in only]

    with published(target, replace=replace) as work:
        shutil.copytree(source, work, copy_function=link_or_copy, ignore=left_out)


def manifest(seeds: list[int], fingerprints: Mapping[str, str]) -> dict[str, Any]:
    """What a run was made with."""
    return {"versions": versions(), "seeds": seeds, "fingerprints": {**fingerprints, "code": code_fingerprint()}}
