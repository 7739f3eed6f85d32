"""A mistake in a job is told in a sentence, whatever it is: a job is refused by name or accepted, and nothing else."""

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from recdistill.distill.compile import problems_of
from recdistill.errors import SpecError
from recdistill.spec.job import Job
from recdistill.spec.load import parse_job, read_yaml
from tests.conftest import Small
from tests.contract.jobs import JOBS
from tests.contract.mutations import Mutation, mutations

IN_EACH = 20  # of some 600 for each job; the long version tries them all
SHARED = next(path for path in JOBS if path.stem == "privileged_features")


def escaped(raw: Mapping[str, Any], chosen: Iterable[Mutation]) -> list[str]:
    """The mistakes that are neither accepted nor told."""
    found = []
    for mutation in chosen:
        try:
            parse_job(mutation.of(raw), str(mutation), check=problems_of)
        except SpecError:
            continue
        except Exception as error:  # anything else is a traceback to whoever made the mistake
            found.append(f"{mutation}: {error!r}")
    return found


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_a_mistake_in_a_job_is_told_or_harmless(path: Path) -> None:
    raw = read_yaml(path)
    chosen = random.Random(path.stem).sample(mutations(raw), IN_EACH)
    assert escaped(raw, chosen) == []


@pytest.mark.signature
@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
def test_every_mistake_in_a_job_is_told_or_harmless(path: Path) -> None:
    raw = read_yaml(path)
    assert escaped(raw, mutations(raw)) == []


def test_a_compiler_that_looks_at_loose_ends_lets_mistakes_escape(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Job, "loose_ends", lambda _: [])
    raw = read_yaml(SHARED)
    assert escaped(raw, [m for m in mutations(raw) if ".share" in m.place]) != []


SLIPS = {
    "tables of nobody": ({"members.teacher.share.tables": "studnt"}, "no member 'studnt'; did you mean 'student'?"),
    "a trunk of nobody": ({"members.teacher.share": {"trunk": "studnt"}}, "no member 'studnt'"),
    "modules of nobody": ({"members.teacher.share": {"modules": {"net.stack": "studnt"}}}, "no member 'studnt'"),
    "no such label": ({"members.teacher.labels": ["bye"]}, "members.teacher.labels: no label 'bye' in the job"),
    "a label twice": ({"members.teacher.labels": ["purchase"] * 2}, "names something twice"),
    "a negative layer": (
        {"members.student.net": {"mlp": [-8, 4]}},
        "layers is a list, each a whole number, at least 1",
    ),
    "an immense layer": ({"members.student.net": {"mlp": [10**12]}}, "below 16385, found [1000000000000]"),
    "a negative trunk": ({"members.student.trunk": [-4]}, "members.student.trunk.0: input should be greater than"),
    "an empty trunk": ({"members.student.trunk": [0]}, "members.student.trunk.0: input should be greater than"),
    "a beta above one": ({"train.dense": {"adam": {"betas": [0.9, 1.5]}}}, "train.dense.adam.betas.1: input should be"),
    "an immense adapter": (
        {"phases.0.terms.2": "l2(adapt(student.hidden[0], width=1000000000000), teacher.hidden[0])"},
        "adapt: widths are whole numbers from 1 to 16384",
    ),
    "an unknown side": (
        {"members.student.net": {"two_tower": {"item": ["itm_id"], "mlp": [8]}}},
        "item: no column 'itm_id'; did you mean 'item_id'?",
    ),
}


@pytest.mark.parametrize(("changes", "words"), SLIPS.values(), ids=SLIPS)
def test_a_slip_is_told_where_it_is(small: Small, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError) as refused:
        small.plan(changes)
    assert words in str(refused.value)


def test_copies_that_are_not_as_many_as_the_texts_are_told() -> None:
    raw = read_yaml(next(path for path in JOBS if path.stem == "multi_scenario"))
    raw["members"]["expert"]["copies"] = 7
    with pytest.raises(SpecError, match=r"each\(\) names \[4\] texts for 7 copies"):
        parse_job(raw, "multi_scenario", check=problems_of)


def test_a_pooling_takes_options_by_name() -> None:
    raw = read_yaml(next(path for path in JOBS if path.stem == "long_view"))
    raw["members"]["student"]["pool"] = {"watched": {"self_attention": [2]}}
    with pytest.raises(SpecError, match=r"pool\.watched\.self_attention: expected options as a mapping, found \[2\]"):
        parse_job(raw, "long_view", check=problems_of)
