"""What a job says: members, phases of terms, training, controls. The Python API has the same words."""

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from recdistill.spec.columns import Binary
from recdistill.spec.features import FeatureSpec
from recdistill.spec.strict import Strict, nearest, refusal
from recdistill.spec.terms import ParsedTerm, TermSyntaxError, names_in, parse_term
from recdistill.spec.train import DenseOptimizer, StopRule, TrainSpec

SERVING, PRIVILEGED = "serving", "privileged"
WITHOUT = "-"  # before a column that a view leaves out
WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class Simulation(Strict):
    """A log made on the spot (`recdistill/data/simulate.py`) instead of a file.

    Attributes:
        simulate: ``marketplace``, the embedded log with known best scores, or ``spec``, rows of any feature spec.
        rows: number of rows.
        seed: of the generator; the same seed makes the same bytes.
        labelled: share of the training rows whose label is known already; the others carry null.
        privileged: what the post-click columns tell: real information, noise, nothing beyond the serving columns, or
            the label in disguise.
    """

    simulate: Literal["marketplace", "spec"]
    rows: int = Field(60_000, ge=100)
    seed: int = 0
    labelled: float = Field(0.1, gt=0, le=1)
    privileged: Literal["real", "noise", "serving", "label"] = "real"


def _kind_of_log(value: Any) -> str:
    return "simulation" if isinstance(value, dict | Simulation) else "path"


Log = Annotated[Annotated[str, Tag("path")] | Annotated[Simulation, Tag("simulation")], Discriminator(_kind_of_log)]


def _one_key(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


class Sharing(Strict):
    """Parameters that a member takes from another one instead of having its own.

    Attributes:
        tables: the member whose embedding tables are used, for every column that both see.
        own: columns whose tables stay apart all the same.
        trunk: the member whose trunk (its first layers) is used.
    """

    tables: str | None = None
    own: list[str] = []
    trunk: str | None = None


class WarmStart(Strict):
    """Parameters to begin with: those of a member of a finished run (of its best seed, or of the one given)."""

    run: str
    member: str
    seed: int | None = None


Width = Annotated[int, Field(ge=4, multiple_of=4)]  # what the embedding kernels take


class MemberSpec(Strict):
    """One net of a job.

    Attributes:
        net: its architecture, ``{name: options}`` (`recdistill/nets`).
        view: which columns it reads: ``serving``, ``privileged``, or names of columns; ``-name`` leaves one out.
        serve: whether it is the student that is exported.
        dim: width of its embeddings, a multiple of 4.
        dims: columns whose embeddings have another width; a column that borrows a table has the width of its owner.
        pool: how a sequence becomes one vector, ``{column: {name: options}}``: ``mean`` (the default),
            ``target_attention`` or ``self_attention``.
        dropout: share of its embedding outputs dropped while training.
        trunk: widths of first layers that other members may share.
        share: what it takes from other members.
        dense: its own optimizer where it differs from ``train.dense``.
        warm_start: a member of another run to begin from.
    """

    net: Annotated[dict[str, Any], BeforeValidator(_one_key)] = Field(min_length=1, max_length=1)
    view: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = [SERVING]
    serve: bool = False
    dim: Width = 16
    dims: dict[str, Width] = {}
    pool: dict[str, Annotated[dict[str, Any], BeforeValidator(_one_key)]] = {}
    dropout: float = Field(0.0, ge=0, lt=1)
    trunk: list[int] = []
    share: Sharing = Sharing()
    dense: DenseOptimizer | None = None
    warm_start: WarmStart | None = None


class PhaseSpec(Strict):
    """A stretch of training. It moves the members that some term of it teaches, and no other."""

    terms: list[str] = Field(min_length=1)
    epochs: int | None = Field(None, ge=1)
    steps: int | None = Field(None, ge=1)
    stop: StopRule | None = None

    @model_validator(mode="after")
    def _one_length(self) -> "PhaseSpec":
        if (self.epochs is None) == (self.steps is None):
            raise refusal("give either epochs or steps")
        return self


class NoControls(Strict):
    """A job for which neither control has a meaning, with the reason."""

    none: str = Field(min_length=10)


Control = Literal["plain", "shuffled"]


def _kind_of_controls(value: Any) -> str:
    return "no controls" if isinstance(value, dict | NoControls) else "list"


Controls = Annotated[
    Annotated[list[Control], Tag("list")] | Annotated[NoControls, Tag("no controls")], Discriminator(_kind_of_controls)
]


class Job(Strict):
    """A training job: everything a run needs besides the data itself.

    Attributes:
        row: id of the bibliography row that the job shows, if any.
        paper: its title, authors and year.
        about: what the job does, in one sentence.
        spec: path of the feature spec.
        log: path of the parquet log (a file, a folder or a pattern), or a simulation.
        where: raw columns and the value (or values) that a row must have to be used.
        extends: a finished run (or an encoded log) of earlier days, whose values keep their table rows; with
            ``warm_start`` training then goes on where it ended.
        label: the post-event column to predict, or several; the first one is the main label.
        privileged: post-event columns that teachers may read.
        members, phases, train: who learns what from whom, in what order, and how.
        controls: what the result is compared with.
        seeds: number of repetitions.
        variants: named sets of overrides, ``{name: {key.path: value}}``.
    """

    row: str | None = None
    paper: str | None = None
    about: str | None = None
    spec: str
    log: Log
    where: dict[str, Any] = {}
    extends: str | None = None
    label: Annotated[list[str], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)] = Field(min_length=1)
    privileged: list[str] = []
    members: dict[str, MemberSpec] = Field(min_length=1)
    phases: list[PhaseSpec] = Field(min_length=1)
    train: TrainSpec = TrainSpec()
    controls: Controls = ["plain", "shuffled"]
    seeds: int = Field(5, ge=1)
    variants: dict[str, dict[str, Any]] = {}

    @property
    def student(self) -> str:
        """The name of the serving member."""
        return next(name for name, member in self.members.items() if member.serve)

    def terms(self, phase: int) -> list[ParsedTerm]:
        """The parsed terms of a phase."""
        return [parse_term(text) for text in self.phases[phase].terms]

    def problems(self) -> list[str]:
        """What is wrong across the fields of the job itself, one sentence each."""
        return [*_repeated(self), *_wrong_members(self), *_wrong_terms(self)]

    def problems_with(self, spec: FeatureSpec) -> list[str]:
        """What is wrong between the job and its feature spec, one sentence each."""
        return [*_wrong_labels(self, spec), *_wrong_views(self, spec)]


def _repeated(job: Job) -> list[str]:
    controls = [] if isinstance(job.controls, NoControls) else job.controls
    named: dict[str, list[str]] = {"label": job.label, "privileged": job.privileged, "controls": [*controls]}
    return [f"{key}: {names} names something twice" for key, names in named.items() if len(set(names)) < len(names)]


def _wrong_members(job: Job) -> list[str]:
    found = []
    serving = [name for name, member in job.members.items() if member.serve]
    if len(serving) != 1:
        found.append(f"members: exactly one member serves, found {serving or 'none'}; set `serve: true` on the student")
    for name in job.members:
        if not WORD.match(name):
            found.append(f"members.{name}: a member's name is a word of letters, digits and _")
        found += _wrong_sharing(job, name)
    return found


def _wrong_sharing(job: Job, name: str) -> list[str]:
    found = []
    member = job.members[name]
    for what, other in (("tables", member.share.tables), ("trunk", member.share.trunk)):
        if other is None:
            continue
        place = f"members.{name}.share.{what}"
        if other not in job.members:
            found.append(f"{place}: no member {other!r}; {nearest(other, job.members)}")
        elif other == name:
            found.append(f"{place}: a member cannot share with itself; remove it")
        elif getattr(job.members[other].share, what) is not None:
            found.append(f"{place}: {other!r} takes its {what} from another member; name that one")
        elif what == "tables" and job.members[other].dim != member.dim:
            found.append(
                f"{place}: {other!r} has dim {job.members[other].dim}, {name!r} has {member.dim}; make them equal"
            )
        elif what == "trunk" and not job.members[other].trunk:
            found.append(f"{place}: {other!r} has no trunk; give it `trunk: [width, ...]`")
    return found


def _wrong_terms(job: Job) -> list[str]:
    found = []
    for i, phase in enumerate(job.phases):
        for j, text in enumerate(phase.terms):
            try:
                parse_term(text)
            except TermSyntaxError as error:
                found.append(f"phases.{i}.terms.{j}: {error}")
    return found


def _wrong_labels(job: Job, spec: FeatureSpec) -> list[str]:
    found = []
    for name in job.label:
        if name not in spec.post_event:
            found.append(f"label: {name!r} is not a post-event column of the spec; {nearest(name, spec.post_event)}")
        elif not isinstance(spec.post_event[name], Binary):
            found.append(f"label: {name!r} is of type {spec.post_event[name].type}; a label is binary")
    raw_labels = {spec.source(name): name for name in job.label if name in spec.post_event}
    for name in job.privileged:
        if name in job.label:
            found.append(f"privileged: {name!r} is the label; a teacher must not read it")
        elif name in spec.post_event and (read := raw_labels.keys() & spec.given(name)):
            label = raw_labels[min(read)]
            found.append(
                f"privileged: {name!r} reads the raw column of the label {label!r}; a teacher must not read it"
            )
        elif name not in spec.post_event:
            where = "is a serving column already" if name in spec.serving else "is not a post-event column of the spec"
            found.append(f"privileged: {name!r} {where}; {nearest(name, spec.post_event)}")
    return found


def _wrong_views(job: Job, spec: FeatureSpec) -> list[str]:
    found = []
    for name, member in job.members.items():
        place = f"members.{name}.view"
        found += [f"{place}: {problem}" for word in member.view if (problem := _wrong_word(job, spec, member, word))]
        if PRIVILEGED in member.view and not job.privileged:
            found.append(f"{place}: 'privileged' is empty; name privileged columns in the job")
        if len(set(member.view)) != len(member.view):
            found.append(f"{place}: {member.view} names something twice")
        for column in member.share.own:
            if column not in spec.columns:
                found.append(f"members.{name}.share.own: no column {column!r}; {nearest(column, spec.columns)}")
    return found


def _wrong_word(job: Job, spec: FeatureSpec, member: MemberSpec, word: str) -> str | None:
    """What is wrong with one word of a member's view."""
    if member.serve and (word == PRIVILEGED or word in spec.post_event):
        return (
            f"a serving member may read serving columns only, but {word!r} is known after the event; remove it, or let "
            "another member serve"
        )
    if word in spec.post_event and word not in job.privileged:
        return f"{word!r} is not among the job's privileged columns; add it there"
    if word not in (SERVING, PRIVILEGED) and word.removeprefix(WITHOUT) not in spec.columns:
        return f"no column {word!r}; {nearest(word, [SERVING, PRIVILEGED, *spec.columns])}"
    return None


def columns_of(view: list[str], spec: FeatureSpec, privileged: list[str]) -> tuple[list[str], list[str]]:
    """The serving and the privileged columns that a member's view stands for, in the spec's order."""
    wanted = set(view)
    left_out = {word.removeprefix(WITHOUT) for word in view if word.startswith(WITHOUT)}
    serving = [name for name in spec.serving if (SERVING in wanted or name in wanted) and name not in left_out]
    return serving, [n for n in privileged if (PRIVILEGED in wanted or n in wanted) and n not in left_out]


def member_names(job: Job, term: ParsedTerm) -> list[str]:
    """The members that a term mentions, in order of appearance."""
    return [str(n.path[0]) for n in names_in(term) if n.path[0] in job.members]
