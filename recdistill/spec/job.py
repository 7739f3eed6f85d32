"""What a job says: members, phases of terms, training, controls. The Python API has the same words."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag

from recdistill.spec.columns import Binary
from recdistill.spec.features import FeatureSpec
from recdistill.spec.graph import METRIC_AT, GraphSpec, RankingSpec
from recdistill.spec.idle import without_effect
from recdistill.spec.members import PRIVILEGED, SERVING, WITHOUT, MemberSpec, ServingView
from recdistill.spec.names import hidden_columns, like_controls
from recdistill.spec.phases import LOG, FeedSpec, PhaseSpec
from recdistill.spec.strict import Strict, nearest
from recdistill.spec.terms import ParsedTerm, TermSyntaxError, names_in, parse_signal, parse_term
from recdistill.spec.train import TrainSpec

WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]*\Z")


class Simulation(Strict):
    """A log made on the spot (`recdistill/data/simulate.py`) instead of a file.

    Attributes:
        simulate: ``marketplace``, the embedded log with known best scores; ``preferences``, the one of who took what;
            or ``spec``, rows of any feature spec.
        rows: number of rows.
        seed: of the generator; the same seed makes the same bytes.
        labelled: share of the training rows whose label is known already; the others carry null.
        privileged: what the post-click columns tell: real information, noise, nothing beyond the serving columns, or
            the label in disguise.
    """

    simulate: Literal["marketplace", "preferences", "spec"]
    rows: int = Field(60_000, ge=100)
    seed: int = 0
    labelled: float = Field(0.1, gt=0, le=1)
    privileged: Literal["real", "noise", "serving", "label"] = "real"


def _kind_of_log(value: Any) -> str:
    return "simulation" if isinstance(value, dict | Simulation) else "path"


Log = Annotated[Annotated[str, Tag("path")] | Annotated[Simulation, Tag("simulation")], Discriminator(_kind_of_log)]


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
        feeds: rows besides those of the log, by name.
        graph: the users and items of the log, for nets over graphs, feeds of candidates, and rankings.
        ranking: how lists of items are judged, if the result is to be about them.
        product: what the job is for, if not a student: a report, for example.
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
    feeds: dict[str, FeedSpec] = {}
    graph: GraphSpec | None = None
    ranking: RankingSpec | None = None
    train: TrainSpec = TrainSpec()
    product: Literal["student"] = "student"
    controls: Controls = ["plain", "shuffled"]
    seeds: int = Field(5, ge=1)
    variants: dict[str, dict[str, Any]] = {}

    @property
    def student(self) -> str:
        """The name of the serving member."""
        return next(name for name, member in self.members.items() if member.serve)

    @property
    def students(self) -> list[str]:
        """The members that are judged beside their controls, the serving one first."""
        further = [name for name, member in self.members.items() if member.compare and name != self.student]
        return [self.student, *further]

    @property
    def signals(self) -> dict[str, str]:
        """Every signal that a member reads, by its place in the job."""
        found: dict[str, str] = {}
        for name, member in self.members.items():
            if member.embed is not None:
                found[f"members.{name}.view.embed"] = member.embed
            found |= {f"members.{name}.inputs.{i}": text for i, text in enumerate(member.inputs)}
        return found

    @property
    def terms(self) -> dict[str, str]:
        """Every term by its place in the job."""
        found: dict[str, str] = {}
        for i, phase in enumerate(self.phases):
            for j, move in enumerate(phase.moves):
                place = f"phases.{i}.updates.{j}.terms" if phase.updates else f"phases.{i}.terms"
                found |= {f"{place}.{k}": text for k, text in enumerate(move.terms)}
        return found

    @property
    def rates(self) -> dict[str, str]:
        """Every factor of learning rates by its place in the job."""
        return {f"phases.{i}.lr": phase.lr for i, phase in enumerate(self.phases) if phase.lr is not None}

    def problems(self) -> list[str]:
        """What is wrong across the fields of the job itself, one sentence each."""
        return [
            *_repeated(self),
            *self.loose_ends(),
            *_unread(parse_term, {**self.terms, **self.rates}),
            *_wrong_phases(self),
            *_wrong_feeds(self),
            *_wrong_rankings(self),
        ]

    def loose_ends(self) -> list[str]:
        """What is wrong with members and what they name; as long as there is any, meanings cannot be looked for."""
        return [*_wrong_members(self), *_unread(parse_signal, self.signals)]

    def problems_with(self, spec: FeatureSpec) -> list[str]:
        """What is wrong between the job and its feature spec, one sentence each."""
        graph = self.graph.problems_with(spec) if self.graph is not None else []
        hidden = hidden_columns(spec, self.label[0], candidates=self.graph is not None)
        return [*_wrong_labels(self, spec), *_wrong_views(self, spec), *_wrong_shards(self, spec), *graph, *hidden]


def _repeated(job: Job) -> list[str]:
    controls = [] if isinstance(job.controls, NoControls) else job.controls
    named: dict[str, list[str]] = {"label": job.label, "privileged": job.privileged, "controls": [*controls]}
    return [f"{key}: {names} names something twice" for key, names in named.items() if len(set(names)) < len(names)]


def _wrong_members(job: Job) -> list[str]:
    found = []
    serving = [name for name, member in job.members.items() if member.serve]
    if len(serving) != 1:
        found.append(f"members: exactly one member serves, found {serving or 'none'}; set `serve: true` on the student")
    else:
        found += like_controls([*job.members], job.students)
    for name, member in job.members.items():
        if not WORD.match(name):
            found.append(f"members.{name}: a member's name is a word of letters, digits and _")
        found += _wrong_sharing(job, name)
        found += [*_wrong_origin(job, name), *without_effect(name, job.members[name])]
        found += [f"members.{name}.labels: {problem}" for problem in _wrong_predictions(job, member)]
        if isinstance(member.serve, ServingView) and member.embed is None:
            found.append(
                f"members.{name}.serve: a view of its own is for a member with `view: {{embed: ...}}`; put the columns "
                "into `view`"
            )
        if member.compare and (member.copies > 1 or member.outputs is not None or member.scores is not None):
            found.append(f"members.{name}.compare: a further student is one net of its own that predicts labels")
        if member.serve and member.outputs is not None:
            found.append(f"members.{name}.outputs: a member that serves answers a logit for each label; remove it")
        if member.fold is not None and member.fold[0] >= member.fold[1]:
            found.append(f"members.{name}.fold: of {member.fold[1]} folds the last is {member.fold[1] - 1}")
        if member.folds and (member.copies < 2 or member.share != type(member.share)()):
            found.append(f"members.{name}.folds: needs several copies, none of which shares anything")
    return found


def _wrong_predictions(job: Job, member: MemberSpec) -> list[str]:
    """What is wrong with the labels that a member predicts."""
    unknown = [label for label in member.labels if label not in job.label]
    found = [f"no label {label!r} in the job; {nearest(label, job.label)}" for label in unknown]
    if len({*member.labels}) < len(member.labels):
        found.append(f"{member.labels} names something twice")
    if member.serve and member.labels and member.labels[0] != job.label[0]:
        found.append(f"a serving member predicts {job.label[0]!r}, the main label, first")
    return found


def _wrong_origin(job: Job, name: str) -> list[str]:
    """What is wrong with whom a member follows."""
    member = job.members[name]
    if member.of is None:
        return []
    key = member.origin
    other = without_index(member.of)
    if other not in job.members:
        return [f"members.{name}.{key}: no member {other!r}; {nearest(other, job.members)}"]
    theirs = job.members[other]
    averaged = member.best is not None and theirs.ema is not None  # an average has a best evaluation of its own
    if other == name or (theirs.of is not None and not averaged) or theirs.scores is not None:
        return [f"members.{name}.{key}: {other!r} has no parameters of its own; name a member that is trained"]
    return []


def without_index(name: str) -> str:
    """``teacher`` of ``teacher[0]``."""
    return name.partition("[")[0]


def _wrong_sharing(job: Job, name: str) -> list[str]:
    found = []
    share, member = job.members[name].share, job.members[name]
    used = [("tables", o) for o in share.table_owners] + [(f"modules.{p}", o) for p, (o, _) in share.borrowed.items()]
    if share.trunk is not None:
        used.append(("trunk", share.trunk))
    for what, word in used:
        place, other = f"members.{name}.share.{what}", without_index(word)
        if other not in job.members:
            found.append(f"{place}: no member {other!r}; {nearest(other, job.members)}")
            continue
        theirs = job.members[other]
        if other == name:
            if member.copies == 1:
                found.append(f"{place}: a member cannot share with itself; remove it")
        elif (what == "tables" and theirs.share.tables is not None and theirs.share.table_owners != [other]) or (
            what == "trunk" and theirs.share.trunk not in (None, other)
        ):
            found.append(f"{place}: {other!r} takes its {what} from another member; name that one")
        elif what == "tables" and theirs.dim != member.dim:
            found.append(f"{place}: {other!r} has dim {theirs.dim}, {name!r} has {member.dim}; make them equal")
        if what == "trunk" and other in job.members and not theirs.trunk:
            found.append(f"{place}: {other!r} has no trunk; give it `trunk: [width, ...]`")
    return found


def _unread(parse: Callable[[str], object], texts: Mapping[str, str]) -> list[str]:
    """Texts outside the grammar, by their places."""
    found = []
    for place, text in texts.items():
        try:
            parse(text)
        except TermSyntaxError as error:
            found.append(f"{place}: {error}")
    return found


def _wrong_phases(job: Job) -> list[str]:
    found = []
    feeds = [LOG, *job.feeds]
    for i, phase in enumerate(job.phases):
        for j, move in enumerate(phase.moves):
            place = f"phases.{i}.updates.{j}" if phase.updates else f"phases.{i}"
            if move.feed not in feeds:
                found.append(f"{place}.feed: no feed {move.feed!r}; {nearest(move.feed, feeds)}")
            found += _unknown(f"{place}.train", (part.partition(".")[0] for part in move.train), job)
        found += _unknown(f"phases.{i}.restart", phase.restart, job)
        found += _unknown(f"phases.{i}.carry", [*phase.carry, *phase.carry.values()], job)
    return found


def _wrong_feeds(job: Job) -> list[str]:
    found = []
    feeds = [LOG, *job.feeds]
    if LOG in job.feeds:
        found.append(f"feeds.{LOG}: is the name of the job's own training rows; choose another one")
    for name, feed in job.feeds.items():
        for part in feed.mix:
            if part not in feeds or part == name or (part != LOG and not job.feeds[part].of_log):
                found.append(f"feeds.{name}.mix.{part}: is no feed of rows of a log; {nearest(part, feeds)}")
        if feed.candidates is not None:
            ranked = feed.candidates.ranked
            if job.graph is None:
                found.append(f"feeds.{name}.candidates: needs users and items; name them in the job's `graph`")
            if ranked is not None and ranked.by not in job.members:
                place = f"feeds.{name}.candidates.ranked.by"
                found.append(f"{place}: no member {ranked.by!r}; {nearest(ranked.by, job.members)}")
    return found


def _wrong_rankings(job: Job) -> list[str]:
    found = []
    if job.ranking is not None and job.graph is None:
        found.append("ranking: needs users and items; name them in the job's `graph`")
    stops = {"train.stop": job.train.stop}
    stops |= {f"phases.{i}.stop": phase.stop for i, phase in enumerate(job.phases) if phase.stop is not None}
    for place, stop in stops.items():
        if METRIC_AT.match(stop.monitor or "") and job.ranking is None:
            found.append(f"{place}.monitor: {stop.monitor!r} is about lists; say how they are judged in `ranking`")
    return found


def _unknown(place: str, names: Iterable[str], job: Job) -> list[str]:
    bare = [without_index(name) for name in names]
    return [f"{place}: no member {name!r}; {nearest(name, job.members)}" for name in bare if name not in job.members]


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


def _wrong_shards(job: Job, spec: FeatureSpec) -> list[str]:
    ungrouped = [name for name, feed in job.feeds.items() if feed.by == "group" and spec.group is None]
    return [f"feeds.{name}.by: the feature spec names no `group`; add the raw column" for name in ungrouped]


def _wrong_views(job: Job, spec: FeatureSpec) -> list[str]:
    found = []
    for name, member in job.members.items():
        views = [("view", member.view)] if isinstance(member.view, list) else []
        views += [("serve.view", member.serve.view)] if isinstance(member.serve, ServingView) else []
        for key, view in views:
            place, serves = f"members.{name}.{key}", (bool(member.serve) or member.compare) and view == member.columns
            found += [f"{place}: {problem}" for word in view if (problem := _wrong_word(job, spec, serves, word))]
            if PRIVILEGED in view and not job.privileged:
                found.append(f"{place}: 'privileged' is empty; name privileged columns in the job")
            if len(set(view)) != len(view):
                found.append(f"{place}: {view} names something twice")
        shared = {"own": member.share.own, "tables": member.share.tables}
        distorted = list(member.distort.columns) if member.distort is not None else []
        for key, columns in (*((f"share.{k}", v) for k, v in shared.items()), ("distort.columns", distorted)):
            for column in columns if isinstance(columns, list | dict) else ():
                if column not in spec.columns:
                    found.append(f"members.{name}.{key}: no column {column!r}; {nearest(column, spec.columns)}")
    return found


def _wrong_word(job: Job, spec: FeatureSpec, serves: bool, word: str) -> str | None:
    """What is wrong with one word of a member's view."""
    if serves and (word == PRIVILEGED or word in spec.post_event):
        return (
            f"a serving member may read serving columns only, but {word!r} is known after the event; remove it, or let "
            "another member serve"
        )
    if word in job.label:
        return f"{word!r} is the label, so no member reads it; take it out"
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
    known = [name for name in privileged if name in spec.post_event]  # others are reported
    return serving, [n for n in known if (PRIVILEGED in wanted or n in wanted) and n not in left_out]


def member_names(job: Job, term: ParsedTerm) -> list[str]:
    """The members that a term mentions, in order of appearance."""
    return [str(n.path[0]) for n in names_in(term) if n.path[0] in job.members]
