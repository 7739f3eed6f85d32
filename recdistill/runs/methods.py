"""The bibliography, and the jobs that show its rows."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recdistill.errors import RunError
from recdistill.spec.load import read_yaml
from recdistill.spec.strict import nearest

LIST = Path(__file__).with_name("bibliography.yaml")
PENDING = "pending"


@dataclass(frozen=True)
class Paper:
    """A row of the bibliography.

    Attributes:
        title, authors, year: of the paper; of one nothing but the title is known.
        job: the job that shows it, below ``jobs/``, without its ending.
    """

    title: str
    job: str
    authors: str | None = None
    year: int | None = None

    def __str__(self) -> str:
        return f"{self.title} ({self.authors}, {self.year})" if self.authors else self.title


def bibliography() -> dict[str, Paper]:
    """All rows by their ids, in the bibliography's own order."""
    return {row: Paper(**entry) for row, entry in read_yaml(LIST).items()}


def shown(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Row id to its job, for every job below a folder that names a row."""
    jobs = {path: read_yaml(path) for path in sorted(folder.rglob("*.yaml"))}
    return {str(job["row"]): (path, job) for path, job in jobs.items() if job.get("row")}


def show(folder: Path, row: str | None, console: Console) -> None:
    """Print the list, or everything about one row.

    Raises:
        RunError: there is no such row.
    """
    papers, jobs = bibliography(), shown(folder)
    if not jobs:
        raise RunError(f"{folder}: holds no job that names a row of the bibliography; give the folder with --jobs")
    if row is not None:
        _show_one(row, papers, jobs, console)
        return
    table = Table()
    for heading in ("row", "paper", "job", "what it does"):
        table.add_column(heading)
    for name in dict.fromkeys([*papers, *jobs]):
        path, job = jobs.get(name, (PENDING, {}))
        table.add_row(name, job.get("paper") or str(papers.get(name, "")), str(path), job.get("about", ""))
    console.print(table)
    console.print(f"{len(papers.keys() & jobs.keys())} of {len(papers)} rows have a job", highlight=False)


def _show_one(
    row: str, papers: dict[str, Paper], jobs: dict[str, tuple[Path, dict[str, Any]]], console: Console
) -> None:
    """Print everything about a row."""
    if row in jobs:
        path, job = jobs[row]
        console.print(f"[bold]{row}[/]  {job.get('paper', '')}\n{job.get('about', '')}\n{path}\n", highlight=False)
        console.print(path.read_text(encoding="utf-8"), markup=False, highlight=False)
    elif row in papers:
        console.print(f"[bold]{row}[/]  {papers[row]}\n{PENDING}: no job shows it yet", highlight=False)
    else:
        raise RunError(f"there is no row {row!r}; {nearest(row, {**papers, **jobs})}")
