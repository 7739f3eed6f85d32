"""A dry run: what a job would train, how large it is, and which control jobs derive from it."""

from rich.console import Console
from rich.table import Table

from recdistill.distill.compile import Plan, compile_job
from recdistill.distill.layout import Layout, lay_out
from recdistill.distill.member import RECORDED, Member, Phase, Same
from recdistill.evaluation.report.wording import counted, options_of, rows_of
from recdistill.runs.console import Reporter
from recdistill.runs.counts import check_labels, labels_of, words
from recdistill.runs.execute import Request
from recdistill.runs.labels import check_scores
from recdistill.runs.logs import encoded, raw_log
from recdistill.runs.references import references
from recdistill.spec.controls import arms
from recdistill.spec.members import FromRun, Recorded
from recdistill.spec.phases import LOG
from recdistill.spec.train import TableOptimizer

BYTES = {"rowwise_adagrad": lambda dim: 4 * dim + 4, "adagrad": lambda dim: 8 * dim, "sgd": lambda dim: 4 * dim}


def show(request: Request, console: Console) -> None:
    """Print members, phases, tables, memory and the derived jobs.

    Raises:
        SpecError: the job is wrong.
        LogError: the log is.
    """
    job, spec = request.load()
    check_scores(job, spec)
    derived = arms(job)
    plans = {arm.name: compile_job(arm.job, spec) for arm in derived}
    reporter = Reporter(console)
    with reporter.progress:
        log, spec = raw_log(job, spec, reporter)
        data = encoded(spec, log, job, ("train",), reporter).log
    plan = plans["main"]
    if plan.ranking is None:
        references(data, plan.columns[0])
    layout = lay_out(plan.members, spec, data.fitted.tables)
    counts = labels_of(data, plan)
    console.print(f"log: {log}  {rows_of(data.rows)}", highlight=False)
    for line in words(counts):
        console.print(line, highlight=False)
    check_labels(counts, plan)
    console.print(_members(plan, layout))
    console.print(tables_of(plan, layout, job.train.tables))
    for arm in derived:
        console.print(
            f"\n[bold]{arm.name}[/]"
            + (" (privileged columns permuted over the rows)" if arm.shuffle_privileged else "")
        )
        for i, phase in enumerate(plans[arm.name].phases):
            for line in _phase(i, phase):
                console.print(line, highlight=False, markup=False)
    trainings = len(derived) * job.seeds * (2 if job.train.refit else 1)
    console.print(
        f"\n{counted(trainings, 'training')}: {counted(len(derived), 'job')} x {counted(job.seeds, 'seed')}"
        + (", each refitted" if job.train.refit else "")
    )


def _phase(index: int, phase: Phase) -> list[str]:
    """A phase in words: its length, what precedes it, and each update with its terms."""
    length = counted(phase.epochs, "epoch") if phase.epochs else counted(phase.steps or 0, "step")
    lines = [f"  phase {index}: {length}"]
    if phase.restart:
        lines[0] += f", {', '.join(phase.restart)} anew"
    lines += [f"    {to} begins with the parameters of {of}" for to, of in phase.carry]
    lines += [f"    learning rates times {schedule.words}" for schedule in phase.lr]
    for update in phase.updates:
        parts = ", ".join(f"{part.member}.{part.path}".rstrip(".") for part in update.parts)
        often = f", every {update.every} steps" if update.every > 1 else ""
        rows = f", on {update.feed}" if update.feed != LOG else ""
        lines.append(f"    trains {parts}{often}{rows}")
        lines += [f"      {term.words}" for term in update.terms]
    return lines


def origin_of(member: Member) -> str:
    """Where a member's parameters come from, in words."""
    match member.origin:
        case FromRun(run=run, member=name):
            return f"frozen: {name} of {run}"
        case Recorded(file=file):
            return f"scores in {file}"
        case Same(of=of):
            return f"the same as {of}"
        case None:
            return "trained" if member.edited is None else f"{member.edited[0]} after edits"
    return f"{type(member.origin).__name__.lower()} of {member.follows}"


HEADINGS = ("name", "origin", "net", "serving columns", "privileged columns", "inputs", "input width", "shares")


def _members(plan: Plan, layout: Layout) -> Table:
    rows = [_member(member, layout) for member in plan.members]
    shown = [i for i in range(len(HEADINGS)) if any(row[i] for row in rows)]
    table = Table(*(HEADINGS[i] for i in shown), title="members", title_justify="left")
    for row in rows:
        table.add_row(*(row[i] for i in shown))
    return table


def _member(member: Member, layout: Layout) -> tuple[str, ...]:
    """What the table says of a member, one text for each of ``HEADINGS``."""
    owners = (("tables", ", ".join(member.share.table_owners)), ("trunk", member.share.trunk))
    shares = [f"{what} of {who}" for what, who in owners if who]
    shares += [f"{theirs} of {owner}" for owner, theirs in member.share.borrowed.values()]
    name = f"{member.name} (serves)" if member.serve else member.name
    width = str(layout.members[member.name].inputs.width)
    net = f"{member.net.name} {options_of(member.net.options)}".rstrip()
    net = "" if member.same or member.follows or member.net.name == RECORDED else net
    columns = (", ".join(member.serving), ", ".join(member.privileged), ", ".join(map(str, member.signals)))
    return (name, origin_of(member), net, *columns, width, ", ".join(shares))


def tables_of(plan: Plan, layout: Layout, optimizer: TableOptimizer) -> Table:
    """Rows and memory of every table, with the state of the optimizer that moves it."""
    moved_by = {member.name: member.tables or optimizer for member in plan.members}
    table = Table(title="embedding tables", title_justify="left")
    for heading in ("owner", "table", "rows", "dim", "MiB with optimizer state"):
        table.add_column(heading, justify="left" if heading in ("owner", "table") else "right")
    total = 0.0
    for name, bank in layout.banks.items():
        for each, rows in bank.tables.items():
            size = rows * BYTES[moved_by[bank.owner].kind](bank.dims[each]) / 2**20
            total += size
            table.add_row(name, each, f"{rows:,}", str(bank.dims[each]), f"{size:,.2f}")
    table.add_row("", "all", "", "", f"{total:,.2f}", style="bold")
    return table
