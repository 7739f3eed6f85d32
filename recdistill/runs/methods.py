"""The bibliography as far as jobs show it: every job that names its row."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recdistill.errors import RunError
from recdistill.spec.load import read_yaml
from recdistill.spec.strict import nearest


def rows(folder: Path) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Row id to its job, for every job below a folder that names a row."""
    jobs = {path: read_yaml(path) for path in sorted(folder.rglob("*.yaml"))}
    return {str(job["row"]): (path, job) for path, job in jobs.items() if job.get("row")}


def show(folder: Path, row: str | None, console: Console) -> None:
    """Print the list, or everything about one row.

    Raises:
        RunError: there is no such row.
    """
    found = rows(folder)
    if not found:
        raise RunError(f"{folder}: holds no job that names a row of the bibliography; give the folder with --jobs")
    if row is not None:
        if row not in found:
            raise RunError(f"no job shows row {row!r}; {nearest(row, found)}")
        path, job = found[row]
        console.print(f"[bold]{row}[/]  {job.get('paper', '')}\n{job.get('about', '')}\n{path}\n", highlight=False)
        console.print(path.read_text(encoding="utf-8"), markup=False, highlight=False)
        return
    table = Table()
    for heading in ("row", "paper", "job", "what it does"):
        table.add_column(heading)
    for name, (path, job) in found.items():
        table.add_row(name, str(job.get("paper", "")), str(path), str(job.get("about", "")))
    console.print(table)
