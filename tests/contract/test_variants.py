"""Every variant of every job is a job, too: it compiles, and so do its controls."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from recdistill.distill.compile import compile_job, problems_of
from recdistill.errors import SpecError
from recdistill.spec.controls import arms
from recdistill.spec.load import load_job, read_yaml
from tests.contract.jobs import JOBS

FOUND = [(path, name, str(changes)) for path in JOBS for name, changes in read_yaml(path).get("variants", {}).items()]
VARIANTS = [(path, name) for path, name, changes in FOUND if "frozen" not in changes]
OF_A_RUN = [(path, name) for path, name, changes in FOUND if "frozen" in changes]


def ids(variants: Sequence[tuple[Path, str]]) -> list[str]:
    return [f"{path.stem}-{name}" for path, name in variants]


def check_variant_is_a_job(path: Path, name: str, *overrides: str) -> None:
    job, spec = load_job(path, overrides, variant=name, check=problems_of)
    plain, _ = load_job(path, overrides, check=problems_of)
    assert job.model_copy(update={"variants": {}}) != plain.model_copy(update={"variants": {}}), "it changes nothing"
    for arm in arms(job):
        assert compile_job(arm.job, spec).members


@pytest.mark.parametrize(("path", "name"), VARIANTS, ids=ids(VARIANTS))
def test_a_variant_is_a_job(path: Path, name: str) -> None:
    check_variant_is_a_job(path, name)


@pytest.mark.parametrize(("path", "name"), OF_A_RUN, ids=ids(OF_A_RUN))
def test_a_variant_that_needs_a_finished_run_asks_for_it(path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="frozen: runs/teacher is no run; name the folder"):
        check_variant_is_a_job(path, name)


def test_a_variant_of_an_unknown_column_is_noticed() -> None:
    path, name = next(each for each in VARIANTS if each[1] == "columns")
    with pytest.raises(SpecError):
        check_variant_is_a_job(path, name, "members.student.view=[nowhere]")
