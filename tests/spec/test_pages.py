"""The pages on jobs and feature specs name every key that there is, and no other."""

import inspect
import re

import pytest
import yaml

from recdistill.nets.sequences import POOLS
from recdistill.spec import columns
from recdistill.spec.features import FeatureSpec
from recdistill.spec.graph import CandidatesSpec, GraphSpec, Ranked, RankingSpec
from recdistill.spec.job import Job, Simulation
from recdistill.spec.members import (
    Best,
    Distortion,
    Edited,
    Ema,
    FromRun,
    MemberSpec,
    Recorded,
    Remote,
    Sharing,
    Snapshot,
)
from recdistill.spec.phases import FeedSpec, PhaseSpec, UpdateSpec
from recdistill.spec.train import Adam, Sgd, StopRule, TableStep, TrainSpec, Unknown
from tests.conftest import ROOT

JOBS = (ROOT / "jobs" / "README.md").read_text(encoding="utf-8")
SPECS = (ROOT / "feature_specs" / "README.md").read_text(encoding="utf-8")
TYPES = [
    columns.Categorical,
    columns.Id,
    columns.Bag,
    columns.Sequence,
    columns.Text,
    columns.Cross,
    columns.DatePart,
    columns.Numeric,
    columns.History,
    columns.Missing,
    columns.Binary,
]
BORROWED = {"categorical": ["id"], "list": ["id"]}  # "the same": options that the row above has


def rows(page, heading):
    """The cells of all tables of a section, row by row, without heads."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.strip().split("|")[1:-1]] for line in lines]
    return [row for row in cells if "`" in row[0]]


def spans(text):
    """What stands in code."""
    return re.findall(r"`([^`]+)`", text)


def words(text):
    """The first word of each code span."""
    return {re.match(r"\w*", span)[0] for span in spans(text)} - {""}


def keys(page, heading):
    """The keys that the first column of a section names."""
    return {word for row in rows(page, heading) for word in words(row[0])}


def row(page, heading, key):
    """Every word in code in the rows whose first column names a key."""
    found = [" ".join(cells) for cells in rows(page, heading) if key in words(cells[0])]
    assert found, key
    return {word for text in found for span in spans(text) for word in re.findall(r"[a-z]\w*", span)}


SECTIONS = {"The job": Job, "Phases": PhaseSpec, "Feeds": FeedSpec, "Training": TrainSpec}


@pytest.mark.parametrize("heading", SECTIONS)
def test_a_table_of_the_page_on_jobs_names_every_key_and_no_other(heading):
    assert keys(JOBS, heading) == {*SECTIONS[heading].model_fields}


def test_the_tables_of_members_name_every_key_and_every_pooling_and_no_other():
    assert keys(JOBS, "Members") == {*MemberSpec.model_fields} | {*POOLS}


def test_the_defaults_of_training_are_those_that_the_page_names():
    given = {next(iter(words(key))): yaml.safe_load(default.strip("`")) for key, default, _ in rows(JOBS, "Training")}
    assert TrainSpec.model_validate(given) == TrainSpec()


@pytest.mark.parametrize("name", POOLS)
def test_the_row_of_a_pooling_names_its_options(name):
    parameters = inspect.signature(POOLS[name]).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    (named,) = (cells[1] for cells in rows(JOBS, "Members") if words(cells[0]) == {name})
    assert words(named) == options


INSIDE = [
    ("Members", "frozen", FromRun),
    ("Members", "warm_start", FromRun),
    ("Members", "scores", Recorded),
    ("Members", "ema", Ema),
    ("Members", "best", Best),
    ("Members", "snapshot", Snapshot),
    ("Members", "remote", Remote),
    ("Members", "edit", Edited),
    ("Members", "share", Sharing),
    ("Members", "distort", Distortion),
    ("Phases", "updates", UpdateSpec),
    ("Phases", "stop", StopRule),
    ("The job", "log", Simulation),
    ("Training", "unknown", Unknown),
    ("Training", "dense", Adam),
    ("Training", "dense", Sgd),
    ("Training", "tables", TableStep),
    ("Ranking items for users", "graph", GraphSpec),
    ("Ranking items for users", "ranking", RankingSpec),
    ("Ranking items for users", "candidates", CandidatesSpec),
    ("Ranking items for users", "candidates", Ranked),
]


@pytest.mark.parametrize(("heading", "key", "model"), INSIDE)
def test_the_row_of_a_key_names_what_stands_below_it(heading, key, model):
    assert {*model.model_fields} - row(JOBS, heading, key) == set()


def test_the_table_of_roles_names_every_key_and_no_other():
    assert keys(SPECS, "Roles") == {*FeatureSpec.model_fields}


@pytest.mark.parametrize("model", TYPES)
def test_the_table_of_types_names_every_option(model):
    name = model.model_fields["type"].annotation.__args__[0]
    found = row(SPECS, "Column types", name).union(*(row(SPECS, "Column types", n) for n in BORROWED.get(name, [])))
    assert {*model.model_fields} - {"type", "column"} - found == set()


def test_every_type_is_in_the_table_and_no_other():
    assert keys(SPECS, "Column types") == {m.model_fields["type"].annotation.__args__[0] for m in TYPES}


def test_the_section_on_sequences_names_what_makes_them():
    (section,) = re.findall(r"^## Sequences\n(.*?)(?=^## )", SPECS, re.MULTILINE | re.DOTALL)
    assert all(key in section for key in columns.Past.model_fields)
