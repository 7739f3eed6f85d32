"""A job becomes members and phases: every name is resolved and every argument checked before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from recdistill.distill.checks import behind, check_members, check_phases, check_rankings, folds_of, two_owners
from recdistill.distill.copies import expanded
from recdistill.distill.member import RECORDED, Member, Part, Phase, Same, Update
from recdistill.distill.rehearse import rehearse
from recdistill.distill.schedule import Schedule
from recdistill.distill.signal import Signal
from recdistill.distill.taught import untaught
from recdistill.distill.term import Term
from recdistill.distill.words import Compiler, edit, rates, signal, term
from recdistill.edits.towers import Edit
from recdistill.errors import SpecError, TrainingError
from recdistill.nets.catalog import NETS, Net, wrong_options
from recdistill.nets.sequences import POOLS
from recdistill.spec.controls import served_with
from recdistill.spec.features import FeatureSpec
from recdistill.spec.graph import GraphSpec, RankingSpec
from recdistill.spec.job import Job, columns_of
from recdistill.spec.members import MemberSpec, Sharing
from recdistill.spec.phases import FeedSpec, PhaseSpec
from recdistill.spec.strict import nearest


@dataclass(frozen=True)
class Plan:
    """What a job trains.

    Attributes:
        members: the members in the order of the job, and behind them those that stand behind signals.
        phases: in what order, every repetition by itself.
        columns: raw binary columns that the terms need; the labels come first.
        labels: how many of them are predicted.
        feeds: rows besides those of the log.
        scenario: whether the scenario of each row is needed.
        graph, ranking: the users and items of the log, and how lists of items are judged.
        served: the student, and the members without which it could not answer.
    """

    members: tuple[Member, ...]
    phases: tuple[Phase, ...]
    columns: tuple[str, ...]
    labels: int
    feeds: Mapping[str, FeedSpec] = field(default_factory=dict)
    scenario: bool = False
    served: tuple[str, ...] = ()
    graph: GraphSpec | None = None
    ranking: RankingSpec | None = None

    @property
    def student(self) -> Member:
        """The member that serves."""
        return next(member for member in self.members if member.serve)

    @property
    def ranked(self) -> tuple[Member, ...]:
        """The members that lists of items are made with."""
        judged = self.ranking is not None
        return tuple(member for member in self.members if judged and member.net.ranks and not member.implied)

    @property
    def scored(self) -> tuple[Member, ...]:
        """The members whose answers are scores of labels."""
        return tuple(member for member in self.members if member.scored)

    @property
    def repeats(self) -> frozenset[str]:
        """Second names that are judged by the very answers of the members that they name; none of them a student."""
        first = {member.name: member for member in self.members}
        return frozenset(m.name for m in self.members if m.same and not m.judged and _alike(m, first[m.same]))


def _alike(second: Member, first: Member) -> bool:
    """Whether both are judged by the same answers."""
    as_they_are = all(member.distort is None or member.distort.scores is None for member in (second, first))
    return as_they_are and second.inputs == first.inputs


def compile_job(job: Job, spec: FeatureSpec) -> Plan:
    """The members and phases of a job.

    Raises:
        SpecError: lists every problem.
    """
    plan, problems = examine(job, spec)
    if plan is None or problems:
        raise SpecError("job", problems)
    return plan


def problems_of(job: Job, spec: FeatureSpec) -> list[str]:
    """What is wrong with a job's nets and terms, one sentence each.

    That every label is taught is asked of the job as it is written: its controls lack the terms of other members.
    """
    plan, problems = examine(job, spec)
    return problems if plan is None else untaught(plan.members, plan.phases, job.label)


def examine(job: Job, spec: FeatureSpec) -> tuple[Plan | None, list[str]]:
    """The plan, if there is one, and all problems."""
    problems: list[str] = []
    try:
        c = Compiler(expanded(job, problems), spec, problems, dict.fromkeys(job.label))
    except SpecError as error:
        return None, list(error.problems)
    members = _members(c)
    terms = {place: term(c, text, place) for place, text in c.job.terms.items()}
    lr = [rates(c, phase.lr, f"phases.{i}.lr") for i, phase in enumerate(c.job.phases)]
    by_name = members | {member.name: member for member in c.implied.values()}
    if problems or None in terms.values() or len(members) < len(c.job.members):
        in_order = all(problem.startswith("phases.") for problem in problems) and len(members) == len(c.job.members)
        return None, [*problems, *(_owned_twice(c.job, terms, lr, by_name) if in_order else ())]
    served = served_with(c.job)
    problems += [*check_members(by_name, served, spec), *check_rankings(by_name, c.job)]
    if problems:
        return None, problems
    phases = [_phase(phase, i, terms, lr[i], by_name, c.job) for i, phase in enumerate(c.job.phases)]
    problems += check_phases(phases, by_name, c.job, spec)
    problems += rehearse(list(by_name.values()), phases, spec, c.job.feeds)
    if problems:
        return None, problems
    every = tuple(made for made, phase in zip(phases, c.job.phases, strict=True) for _ in range(phase.repeat))
    plan = Plan(
        members=tuple(by_name.values()),
        phases=every,
        columns=tuple(c.columns),
        labels=len(job.label),
        feeds=c.job.feeds,
        scenario=c.scenario,
        served=tuple(served),
        graph=job.graph,
        ranking=job.ranking,
    )
    return plan, []


def net_of(described: Mapping[str, Any]) -> Net:
    """``{name: options}`` as a net; a plain list means the layers of an mlp."""
    ((name, options),) = described.items()
    if isinstance(options, list):
        options = {"layers" if name == "mlp" else "mlp": options}
    return Net(name, dict(options or {}))


def _members(c: Compiler) -> dict[str, Member]:
    """The job's members; those derived from another are built last."""
    made: dict[str, Member | None] = dict.fromkeys(c.job.members)
    for name, described in c.job.members.items():
        if described.of is None:
            made[name] = _recorded(c, name, described) if described.scores is not None else _member(c, name, described)
    seconds = [(name, described) for name, described in c.job.members.items() if described.of is not None]
    for name, described in sorted(seconds, key=lambda pair: _is_second(c, pair[1].of)):
        source = made.get(described.of or "")
        if source is not None:
            made[name] = (_edited if described.edit else _second)(c, name, described, source)
    return {name: member for name, member in made.items() if member is not None}


def _member(c: Compiler, name: str, member: MemberSpec) -> Member | None:
    """A member with a net of its own."""
    place = f"members.{name}.net"
    ((net_name, options),) = (member.net or {"": None}).items()
    if net_name not in NETS:
        c.problems.append(f"{place}: unknown net {net_name!r}; {nearest(net_name, NETS)}")
        return None
    if not isinstance(options, dict | list | None):
        c.problems.append(f"{place}.{net_name}: expected options as a mapping or a list, found {options!r}")
        return None
    net = net_of({net_name: options})
    wrong = [*net.problems(), *_wrong_sides(c, net)]
    c.problems += [f"{place}: {problem}" for problem in wrong]
    serving, privileged = columns_of(member.columns, c.spec, c.job.privileged)
    if not serving and not privileged and not member.inputs and member.embed is None:
        c.problems.append(f"members.{name}.view: names no column, and the member reads no signal either")
    c.problems += _wrong_widths(c, name, member, [*serving, *privileged])
    c.problems += _wrong_pools(c, name, member, net, [*serving, *privileged])
    inputs, embed = _signals(c, name, member)
    if wrong or (member.serve and privileged):
        return None  # the latter is reported with the job's views
    lent = c.job.members.get(member.share.trunk or "")
    return Member(
        name,
        net,
        tuple(serving),
        tuple(privileged),
        serve=bool(member.serve),
        judged=bool(member.serve) or member.compare,
        labels=tuple(c.job.label.index(label) for label in member.labels or c.job.label),
        origin=member.frozen,
        inputs=inputs,
        embed=embed,
        outputs=member.outputs,
        distort=member.distort,
        fold=member.fold,
        dim=member.dim,
        dims=member.dims,
        pool=member.pool,
        dropout=member.dropout,
        trunk=tuple(lent.trunk if lent is not None else member.trunk),
        share=member.share,
        init=member.init,
        dense=member.dense,
        tables=member.tables,
        warm_start=member.warm_start,
    )


def _signals(c: Compiler, name: str, member: MemberSpec) -> tuple[tuple[Signal, ...], Signal | None]:
    """What a member reads of others, beside its columns and in place of them."""
    inputs = [signal(c, text, f"members.{name}.inputs.{i}") for i, text in enumerate(member.inputs)]
    embed = None if member.embed is None else signal(c, member.embed, f"members.{name}.view.embed")
    return tuple(found for found in inputs if found is not None), embed


def _is_second(c: Compiler, name: str | None) -> bool:
    """Whether a member has the net of another one."""
    member = c.job.members.get(name or "")
    return member is not None and member.of is not None


def _second(c: Compiler, name: str, described: MemberSpec, source: Member) -> Member:
    """A member that has the net of another one: a copy that follows it, or a second name of it."""
    origin = described.following or Same(source.name)
    inputs, embed = _signals(c, name, described)
    changes: dict[str, Any] = {
        "name": name,
        "serve": bool(described.serve),
        "judged": bool(described.serve) or described.compare,
        "origin": origin,
        "inputs": inputs or source.inputs,
        "embed": embed,
        "distort": described.distort,
        "warm_start": None,
    }
    if not isinstance(origin, Same):
        changes["share"] = Sharing()
    return replace(source, **changes)


def _edited(c: Compiler, name: str, described: MemberSpec, source: Member) -> Member | None:
    """A member of its own whose net is made from another one's."""
    assert described.edit is not None
    place, key = f"members.{name}.edit", "layers" if source.net.name == "mlp" else "mlp"
    widths, edits = list(source.net.options.get(key, [])), list[Edit]()
    for i, text in enumerate(described.edit.by):
        found = edit(c, text, f"{place}.by.{i}")
        if found is None:
            return None
        try:
            widths = found.widths(widths)
        except TrainingError as error:
            c.problems.append(f"{place}.by.{i}: {error}")
            return None
        edits.append(found)
    return replace(
        source,
        name=name,
        net=Net(source.net.name, {**source.net.options, key: widths}),
        serve=bool(described.serve),
        judged=bool(described.serve) or described.compare,
        dense=described.dense,
        tables=described.tables,
        share=Sharing(),
        edited=(source.name, tuple(edits)),
    )


def _recorded(c: Compiler, name: str, member: MemberSpec) -> Member:
    """A member of which only scores are left."""
    labels = tuple(c.job.label.index(label) for label in member.labels or c.job.label)
    return Member(name, Net(RECORDED), (), labels=labels, origin=member.scores)


def _wrong_widths(c: Compiler, name: str, member: MemberSpec, columns: list[str]) -> list[str]:
    found = []
    for column in member.dims:
        place = f"members.{name}.dims.{column}"
        if column not in columns:
            found.append(f"{place}: the member reads no such column; {nearest(column, columns)}")
        elif not c.spec.columns[column].embedded:
            found.append(f"{place}: {column!r} is a plain number, which has no embedding; remove it")
        elif c.spec.table(column) != column:
            found.append(f"{place}: {column!r} is looked up in the table of {c.spec.table(column)!r}; name that one")
        elif member.share.tables is not None and column not in member.share.own:
            found.append(f"{place}: the table belongs to {member.share.tables!r}; set its width there")
    return found


def _wrong_sides(c: Compiler, net: Net) -> list[str]:
    """Columns of a net's sides that are none of the spec's."""
    items = net.options.get("item")
    named = [name for name in items if isinstance(name, str)] if isinstance(items, list) else []
    return [f"item: no column {n!r}; {nearest(n, c.spec.columns)}" for n in named if n not in c.spec.columns]


def _wrong_pools(c: Compiler, name: str, member: MemberSpec, net: Net, columns: list[str]) -> list[str]:
    found = []
    sequences = [column for column in columns if c.spec.columns[column].type == "sequence"]
    for column, ((pool, options),) in ((column, described.items()) for column, described in member.pool.items()):
        place = f"members.{name}.pool.{column}"
        if column not in sequences:
            found.append(f"{place}: the member reads no such sequence; {nearest(column, sequences)}")
        elif pool not in POOLS:
            found.append(f"{place}: unknown pooling {pool!r}; {nearest(pool, POOLS)}")
        elif not isinstance(options, dict | None):
            found.append(f"{place}.{pool}: expected options as a mapping, found {options!r}")
        elif wrong := wrong_options(pool, POOLS[pool], options or {}):
            found += [f"{place}: {problem}" for problem in wrong]
        elif net.name == "two_tower" and not net.problems():
            found += _across_towers(place, net.options["item"], column, (options or {}).get("target"))
    return found


def _across_towers(place: str, item: list[str], column: str, target: str | None) -> list[str]:
    """A tower's sequence must attend to its own side, so that towers can be computed separately."""
    if target is None or (column in item) == (target in item):
        return []
    return [f"{place}: the target {target!r} stands in the other tower than {column!r}; name one of its own side"]


def _phase(
    phase: PhaseSpec,
    index: int,
    terms: Mapping[str, Term | None],
    lr: tuple[Schedule, ...],
    members: Mapping[str, Member],
    job: Job,
) -> Phase:
    """One repetition of a phase."""
    updates = []
    for j, move in enumerate(phase.moves):
        place = f"phases.{index}.updates.{j}.terms." if phase.updates else f"phases.{index}.terms."
        mine = tuple(_kept_apart(t, members) for key, t in terms.items() if key.startswith(place) and t is not None)
        parts = tuple(part for word in move.train if (part := Part(*_cut(word))).member in members)
        taught = {name for each in mine for name in each.taught}
        moved = parts or tuple(Part(name) for name in members if name in behind(taught, members, live=True))
        moved = moved if parts else tuple(part for part in moved if members[part.member].trainable)
        needed = behind({name for each in mine for name in each.members}, members)
        updates.append(Update(mine, moved, frozenset(needed), move.every, move.feed))
    carry = tuple((to, of) for to, of in phase.carry.items() if {to, of} <= members.keys())
    restart = tuple(name for name in phase.restart if name in members)  # others are reported with the job itself
    chosen = phase.stop or job.train.stop
    if chosen.monitor is None:
        chosen = chosen.model_copy(update={"monitor": job.ranking.metric if job.ranking is not None else "logloss"})
    return Phase(
        updates=tuple(updates),
        stop=chosen,
        epochs=phase.epochs,
        steps=phase.steps,
        lr=lr,
        restart=restart,
        carry=carry,
    )


def _owned_twice(
    job: Job, terms: Mapping[str, Term | None], lr: list[tuple[Schedule, ...]], members: Mapping[str, Member]
) -> list[str]:
    """Tables that several updates move, as far as that can be told while some terms are wrong."""
    phases = [_phase(phase, i, terms, lr[i], members, job) for i, phase in enumerate(job.phases)]
    return [problem for i, phase in enumerate(phases) for problem in two_owners(phase, i, members)]


def _kept_apart(term: Term, members: Mapping[str, Member]) -> Term:
    """The term, excluding the held-out fold of the member it teaches."""
    folds = folds_of(behind(term.taught, members, live=True), members)
    return replace(term, fold=next(iter(folds), None))


def _cut(word: str) -> tuple[str, str]:
    """Member and path of ``student.trunk``."""
    member, _, path = word.partition(".")
    return member, path
