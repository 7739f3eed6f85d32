"""Every row of the bibliography has its job and its signature, or is named as pending."""

from pathlib import Path

import pytest

from recdistill.runs.methods import bibliography, shown
from tests.signatures.lab import JOBS

PENDING = {
    "K1", "K2", "K3", "K4", "K5", "K7",
    "T1", "T3", "T4", "T5", "T6", "T7", "T8", "T9",
    "D1",
    "F1", "F2", "F3",
    "E4", "E5", "E6",
    "A1", "A2", "A3", "A4", "A5", "A6",
    "P1", "P4", "P5", "P7", "P8", "P9",
}  # fmt: skip
PAPERS = bibliography()
SHOWN = shown(JOBS)


def signature(row: str) -> Path:
    return Path(__file__).with_name(f"test_{row.lower()}.py")


def test_the_bibliography_has_62_rows_with_a_job_of_its_own_each() -> None:
    assert len(PAPERS) == len({paper.job for paper in PAPERS.values()}) == 62
    assert {*SHOWN, *PENDING} <= PAPERS.keys()


def test_a_row_is_done_or_pending_and_never_both() -> None:
    done = {row for row in PAPERS if row in SHOWN and signature(row).exists()}
    assert done == PAPERS.keys() - PENDING


def test_no_signature_is_of_no_row() -> None:
    others = {"test_rows.py", "test_structure.py"}
    found = {path.name for path in Path(__file__).parent.glob("test_*.py")} - others
    assert found <= {signature(row).name for row in PAPERS}


@pytest.mark.parametrize("row", SHOWN)
def test_a_row_has_the_job_that_the_bibliography_names_and_no_other(row: str) -> None:
    path, job = SHOWN[row]
    paper = PAPERS[row]
    assert path.relative_to(JOBS).with_suffix("").as_posix() == paper.job
    assert job["paper"] == str(paper) and job["about"]
    same = [other for other in JOBS.rglob("*.yaml") if f"row: {row}\n" in other.read_text(encoding="utf-8")]
    assert same == [path]
    if signature(row).exists():
        assert f'ROW = "{paper.job}"' in signature(row).read_text(encoding="utf-8"), "a signature runs its own job"
