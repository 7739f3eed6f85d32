"""Every row of the bibliography has its job, signature and documented mechanism, or is named as pending."""

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from recdistill.data import distort
from recdistill.distill import batchwise, combine, labels, learned, schedule, selector, unify, vectors
from recdistill.distill.signal import Remembered
from recdistill.evaluation.alignment import Alignment, projection
from recdistill.losses import distribution, embedding, listwise, order, ranking_distillation, representation, response
from recdistill.nets import binary, graph, grouped, mixtures, retrieval
from recdistill.runs.methods import bibliography, shown
from recdistill.spec import members
from recdistill.training import exchange
from tests.signatures.lab import JOBS

Mechanism = Callable[..., object] | ModuleType

PENDING = {
    "K1", "K2", "K3", "K4", "K5", "K7",
    "T1", "T3", "T4", "T5", "T6", "T7", "T8", "T9",
    "D1",
    "F1", "F2", "F3",
    "E4", "E5", "E6",
    "A1", "A2", "A3", "A4", "A5", "A6",
    "P1", "P4", "P5", "P7", "P8", "P9",
}  # fmt: skip
MECHANISMS: dict[str, list[Mechanism]] = {  # where a row's mechanism lives, whose docstring says where it comes from
    "U1": [projection, Alignment.bound],
    "U2": [listwise.score_gap],
    "U4": [labels.corrected],
    "K6": [response.soft, listwise.soft_list],
    "S1": [members.Distortion, distribution.mmd],
    "S2": [members.Previous, selector.sure, batchwise.scrambled],
    "S3": [members.Snapshot, schedule.cycle, response.softened],
    "D2": [batchwise.quota],
    "O1": [exchange, members.Remote, members.Snapshot],
    "O2": [members.Best, schedule.stalled],
    "O3": [Remembered],
    "O4": [members.Sharing, representation.l2],
    "O5": [learned.gate],
    "E1": [order.relative_order],
    "E3": [schedule.behind, combine.route],
    "E7": [mixtures.Average],
    "E8": [selector.smallest, combine.out_of_fold],
    "E9": [combine.pick],
    "E10": [selector.agrees],
    "E11": [mixtures.Blend],
    "E12": [distort],
    "A7": [grouped.Grouped, vectors.top, vectors.pad],
    "P2a": [labels.first_known, labels.unflipped, labels.hedged, batchwise.smoothed],
    "P2b": [selector.smallest],
    "P3": [unify.unify],
    "P6": [members.Sharing],
    "P10": [
        binary.stochastic, binary.BinaryTwoTower, retrieval.BinaryMf, graph.CrossGcn,
        ranking_distillation.soft_sides, embedding.quantisation,
    ],
}  # fmt: skip
COMPOSED = {  # rows that are put together from what is there anyway
    "T2": "K6 once for each link of a chain",
    "U3": "K6 up to a step, and a teacher whose phase has a learning rate of its own",
}
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


def check_says_where_it_comes_from(text: str, row: str) -> None:
    """A docstring names the row among its sources, each of which begins with its row, and says what differs."""
    source, _, departure = " ".join(text.partition("Source:")[2].split()).partition("Departure:")
    assert re.search(rf"(?:^|; ){row},", source), f"`Source` does not name {row}"
    assert departure.strip(), "`Departure` is missing; `none` if nothing differs"


def test_each_row_with_a_signature_names_its_mechanism_or_what_it_is_composed_of() -> None:
    assert MECHANISMS.keys() | COMPOSED.keys() == PAPERS.keys() - PENDING
    assert not MECHANISMS.keys() & COMPOSED.keys()


@pytest.mark.parametrize(("row", "mechanism"), [(row, each) for row, found in MECHANISMS.items() for each in found])
def test_a_mechanism_says_where_it_comes_from_and_what_differs(row: str, mechanism: Mechanism) -> None:
    check_says_where_it_comes_from(inspect.getdoc(mechanism) or "", row)


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("", "P2b"),
        (inspect.getdoc(selector.smallest), "E9"),  # of another row
        ((inspect.getdoc(selector.smallest) or "").replace("Source:", ""), "P2b"),
        ((inspect.getdoc(selector.smallest) or "").partition("Departure:")[0], "P2b"),
        ((inspect.getdoc(selector.smallest) or "").partition("P2b: within")[0], "P2b"),  # Departure of nothing
        ("The share of signals that speak for a click (E1).\n\nDeparture: none.", "E1"),  # named in passing
    ],
)
def test_a_docstring_without_source_or_departure_is_noticed(text: str, row: str) -> None:
    with pytest.raises(AssertionError):
        check_says_where_it_comes_from(text, row)
