"""A job becomes members and phases: every name is resolved and every argument checked before anything is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from recdistill.distill.member import Member, Phase
from recdistill.distill.words import Compiler, term
from recdistill.errors import SpecError
from recdistill.nets.catalog import NETS, Net, wrong_options
from recdistill.nets.sequences import POOLS
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job, MemberSpec, columns_of
from recdistill.spec.strict import nearest


@dataclass(frozen=True)
class Plan:
    """What a job trains: members in the order of the job, and phases.

    Attributes:
        members: who is trained.
        phases: in what order.
        columns: raw binary columns that the terms need; the labels come first.
        labels: how many of them are predicted.
    """

    members: tuple[Member, ...]
    phases: tuple[Phase, ...]
    columns: tuple[str, ...]
    labels: int

    @property
    def student(self) -> Member:
        """The member that serves."""
        return next(member for member in self.members if member.serve)


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
    """What is wrong with a job's nets and terms, one sentence each."""
    return examine(job, spec)[1]


def examine(job: Job, spec: FeatureSpec) -> tuple[Plan | None, list[str]]:
    """The plan, if there is one, and all problems."""
    c = Compiler(job, spec, columns=dict.fromkeys(job.label))
    members = [_member(c, name, member) for name, member in job.members.items()]
    phases = [_phase(c, i) for i in range(len(job.phases))]
    if not c.problems:
        _check_training(c, [p for p in phases if p], [m for m in members if m])
    if c.problems:
        return None, c.problems
    return Plan(tuple(m for m in members if m), tuple(p for p in phases if p), tuple(c.columns), len(job.label)), []


def net_of(described: Mapping[str, Any]) -> Net:
    """``{name: options}`` as a net; a plain list means the layers of an mlp."""
    ((name, options),) = described.items()
    if isinstance(options, list):
        options = {"layers" if name == "mlp" else "mlp": options}
    return Net(name, dict(options or {}))


def _member(c: Compiler, name: str, member: MemberSpec) -> Member | None:
    place = f"members.{name}.net"
    ((net_name, options),) = member.net.items()
    if net_name not in NETS:
        c.problems.append(f"{place}: unknown net {net_name!r}; {nearest(net_name, NETS)}")
        return None
    if not isinstance(options, dict | list | None):
        c.problems.append(f"{place}.{net_name}: expected options as a mapping or a list, found {options!r}")
        return None
    net = net_of(member.net)
    c.problems += [f"{place}: {problem}" for problem in net.problems()]
    serving, privileged = columns_of(member.view, c.spec, c.job.privileged)
    if not serving and not privileged:
        c.problems.append(f"members.{name}.view: names no column")
    c.problems += _wrong_widths(c, name, member, [*serving, *privileged])
    c.problems += _wrong_pools(c, name, member, [*serving, *privileged])
    if member.serve and privileged:
        return None  # reported with the job's views
    return Member(
        name,
        net,
        tuple(serving),
        tuple(privileged),
        serve=member.serve,
        dim=member.dim,
        dims=member.dims,
        pool=member.pool,
        dropout=member.dropout,
        trunk=tuple(member.trunk),
        share=member.share,
        dense=member.dense,
        warm_start=member.warm_start,
    )


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


def _wrong_pools(c: Compiler, name: str, member: MemberSpec, columns: list[str]) -> list[str]:
    found = []
    sequences = [column for column in columns if c.spec.columns[column].type == "sequence"]
    for column, ((pool, options),) in ((column, described.items()) for column, described in member.pool.items()):
        place = f"members.{name}.pool.{column}"
        if column not in sequences:
            found.append(f"{place}: the member reads no such sequence; {nearest(column, sequences)}")
        elif pool not in POOLS:
            found.append(f"{place}: unknown pooling {pool!r}; {nearest(pool, POOLS)}")
        else:
            found += [f"{place}: {problem}" for problem in wrong_options(pool, POOLS[pool], options or {})]
            found += _across_towers(place, member, column, (options or {}).get("target"))
    return found


def _across_towers(place: str, member: MemberSpec, column: str, target: str | None) -> list[str]:
    """A tower whose sequence attends to the other side could not be computed before that side is known."""
    item = (member.net.get("two_tower") or {}).get("item", [])
    if target is None or "two_tower" not in member.net or (column in item) == (target in item):
        return []
    return [f"{place}: the target {target!r} stands in the other tower than {column!r}; name one of its own side"]


def _phase(c: Compiler, index: int) -> Phase | None:
    phase = c.job.phases[index]
    terms = [term(c, text, f"phases.{index}.terms.{j}") for j, text in enumerate(phase.terms)]
    if None in terms:
        return None
    return Phase(tuple(t for t in terms if t), phase.stop or c.job.train.stop, phase.epochs, phase.steps)


def _check_training(c: Compiler, phases: list[Phase], members: list[Member]) -> None:
    """Each member is trained by some phase, and no phase moves what a frozen member of it uses."""
    never = [m.name for m in members if not any(m.name in p.trained for p in phases)]
    c.problems += [f"members.{name}: no term teaches it; add one, or remove the member" for name in never]
    by_name = {m.name: m for m in members}
    for i, phase in enumerate(phases):
        for frozen in sorted(phase.members - phase.trained):
            for trained in sorted(phase.trained):
                for what in ("tables", "trunk"):
                    if _owner(by_name[frozen], what) == _owner(by_name[trained], what):
                        c.problems.append(
                            f"phases.{i}: trains {trained!r}, whose {what} the frozen {frozen!r} uses as well, so it "
                            f"would change; give {frozen!r} {what} of its own, or add a term that teaches it"
                        )


def _owner(member: Member, what: str) -> str:
    source = member.share.tables if what == "tables" else member.share.trunk
    return source or member.name
