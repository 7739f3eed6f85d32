"""Training a job from Python, and what is left of it: the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from recdistill.api.job import Member, Phase, job
from recdistill.distill.compile import problems_of
from recdistill.runs.execute import run_job
from recdistill.runs.folder import RunFolder
from recdistill.runs.lists import write_top
from recdistill.runs.rescore import Finished, evaluate_run, score_run
from recdistill.spec.load import parse_job


@dataclass(frozen=True)
class Run:
    """A finished run."""

    folder: Path

    @property
    def report(self) -> dict[str, Any]:
        """The report: metrics of members and controls, comparisons, verdict."""
        return RunFolder(self.folder).read_report()

    @property
    def student(self) -> Path:
        """The artefact."""
        return RunFolder(self.folder).student

    def frozen(self, member: str | None = None, *, seed: int | None = None) -> Member:
        """A member of the run, by default its student, to teach others."""
        name = member or Finished.open(self.folder).plan.student.name
        return Member(frozen={"run": str(self.folder), "member": name, "seed": seed})

    def score(self, log: str, out: str | Path, member: str | None = None, *, out_of_fold: bool = False) -> Member:
        """Write a member's scores of a log, and give them back as a member that another job can read."""
        score_run(self.folder, log, Path(out), member, out_of_fold=out_of_fold)
        return Member(scores=str(out))

    def top(self, log: str, out: str | Path, count: int, *, known: str | None = None, items: str | None = None) -> int:
        """Write the best items of every user of a log by the artefact (`recdistill.runs.lists.write_top`)."""
        return write_top(self.student, log, Path(out), count, known=known, items=items)

    def evaluate(self, log: str) -> dict[str, Any]:
        """Metrics of every member, and of the artefact, on another log."""
        return evaluate_run(self.folder, log)


def fit(
    members: Sequence[Member],
    log: str | Mapping[str, Any],
    *phases: Phase,
    out: str | Path | None = None,
    name: str = "python",
    quiet: bool = False,
    **settings: Any,
) -> Run:
    """Train a job and its controls over all seeds, export the student, write the report.

    Args:
        members: of the job, as its log and its phases (`recdistill.api.job.job`).
        log: the parquet log, or a simulation.
        *phases: in what order.
        out: the run folder; by default ``runs/NAME``.
        name: of the run.
        quiet: whether progress bars are left out.
        settings: ``spec``, ``predict``, ``know`` and further keys of a job.

    Raises:
        RecdistillError: a mistake in job, spec or log.
    """
    described, spec = parse_job(job(members, log, *phases, **settings), name, check=problems_of)
    folder = run_job(
        described, spec, name=name, out=Path(out) if out else None, console=Console(stderr=True, quiet=quiet)
    )
    return Run(folder.root)


def open_run(folder: str | Path) -> Run:
    """A finished run in a folder.

    Raises:
        RunError: the run is not complete.
    """
    Finished.open(Path(folder))
    return Run(Path(folder))
