"""A dry run: what a job would train, how large it is, and which control jobs derive from it."""

from rich.console import Console
from rich.table import Table

from recdistill.distill.compile import Plan, compile_job
from recdistill.distill.layout import Layout, lay_out
from recdistill.runs.console import Reporter
from recdistill.runs.execute import Request
from recdistill.runs.labels import check_scores
from recdistill.runs.logs import encoded, raw_log
from recdistill.spec.controls import arms

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
    layout = lay_out(plan.members, spec, data.fitted.tables)
    console.print(f"log: {log}  rows {data.rows}", highlight=False)
    console.print(_members(plan, layout))
    console.print(_tables(layout, next(iter(job.train.tables.model_dump(exclude_none=True)))))
    for arm in derived:
        console.print(
            f"\n[bold]{arm.name}[/]"
            + (" (privileged columns permuted over the rows)" if arm.shuffle_privileged else "")
        )
        for i, phase in enumerate(plans[arm.name].phases):
            length = f"{phase.epochs} epochs" if phase.epochs else f"{phase.steps} steps"
            console.print(f"  phase {i}: {length}, trains {', '.join(sorted(phase.trained))}", highlight=False)
            for term in phase.terms:
                console.print(f"    {term.words}", highlight=False, markup=False)
    trainings = len(derived) * job.seeds * (2 if job.train.refit else 1)
    console.print(
        f"\n{trainings} trainings: {len(derived)} jobs x {job.seeds} seeds"
        + (", each refitted" if job.train.refit else "")
    )


def _members(plan: Plan, layout: Layout) -> Table:
    table = Table(title="members", title_justify="left")
    for heading in ("name", "net", "serving columns", "privileged columns", "input width", "shares"):
        table.add_column(heading)
    for member in plan.members:
        shares = [
            f"{what} of {who}" for what, who in (("tables", member.share.tables), ("trunk", member.share.trunk)) if who
        ]
        name = f"{member.name} (serves)" if member.serve else member.name
        width = str(layout.members[member.name].inputs.width)
        net = f"{member.net.name} {dict(member.net.options)}"
        table.add_row(name, net, ", ".join(member.serving), ", ".join(member.privileged), width, ", ".join(shares))
    return table


def _tables(layout: Layout, optimizer: str) -> Table:
    table = Table(title="embedding tables", title_justify="left")
    for heading in ("owner", "table", "rows", "dim", "MiB with optimizer state"):
        table.add_column(heading, justify="left" if heading in ("owner", "table") else "right")
    total = 0.0
    for name, bank in layout.banks.items():
        for each, rows in bank.tables.items():
            size = rows * BYTES[optimizer](bank.dims[each]) / 2**20
            total += size
            table.add_row(name, each, f"{rows:,}", str(bank.dims[each]), f"{size:,.2f}")
    table.add_row("", "all", "", "", f"{total:,.2f}", style="bold")
    return table
