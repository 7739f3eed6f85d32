"""The command line: thin commands over the library.

Exit status: 0 success, 2 a mistake that the user can mend, 1 anything else.
Heavy imports stay inside the commands, so that help and errors come at once.
"""

import json
import logging
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from recdistill import __version__
from recdistill.errors import RecdistillError

app = typer.Typer(
    help="Knowledge distillation for recommendation and CTR prediction: a parquet log, a feature spec and a job become "
    "a teacher, a serving student, an AUC report and a TorchScript file.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
out = Console(width=None if sys.stdout.isatty() else 150)
err = Console(stderr=True)

INTERRUPTED = 130

JobPath = Annotated[Path, typer.Argument(help="A job file (see jobs/).", show_default=False)]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change the job: key.path=value; may be repeated.")]
Variant = Annotated[str | None, typer.Option(help="One of the job's variants.")]
LogPath = Annotated[str | None, typer.Option("--log", help="A parquet log to use instead of the job's own.")]


def main() -> None:
    """Entry point: runs a command and turns errors into messages and exit statuses."""
    logging.getLogger("torch.fx._symbolic_trace").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="fbgemm_gpu")
    try:
        status = app(standalone_mode=False)  # the status of a typer.Exit is returned, everything else is raised
    except RecdistillError as error:
        complain(str(error))
        status = 2
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        complain(error.format_message())  # a mistake in the use of the command line itself
        status = 2
    if status == INTERRUPTED:
        err.print("interrupted; `recdistill run --resume` continues a run")
    sys.exit(status if isinstance(status, int) else 0)


def complain(message: str) -> None:
    """Print an error; its text is the user's as much as ours, so nothing in it is markup."""
    err.print("[bold red]error:[/] ", end="")
    err.print(message, markup=False, highlight=False, soft_wrap=True)


def refuse(options: Mapping[str, object], reason: str) -> None:
    """Nothing, if none of some options is given.

    Raises:
        typer.BadParameter: one is, though it would have no effect.
    """
    if given := [name for name, value in options.items() if value]:
        raise typer.BadParameter(f"{' and '.join(given)}: {reason}")


@app.command()
def run(
    job: JobPath,
    out_folder: Annotated[Path | None, typer.Option("--out", help="The run folder; by default runs/JOB.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of repetitions.")] = None,
    overrides: Overrides = None,
    variant: Variant = None,
    log: LogPath = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
) -> None:
    """Train a job and its controls over all seeds, export the student, write the report."""
    from recdistill.runs.console import conclusions, result_table
    from recdistill.runs.execute import Request, execute

    folder = execute(Request(job, out_folder, seeds, tuple(overrides or ()), variant, log, resume))
    if int(os.environ.get("RANK", "0")) > 0:
        return  # under torchrun the first process speaks for all
    report = folder.read_report()
    out.print(result_table(report))
    for line in conclusions(report):
        out.print(line, highlight=False)
    out.print(f"report: {folder.root / 'report.html'}\nstudent: {folder.student}", highlight=False)


@app.command()
def plan(job: JobPath, overrides: Overrides = None, variant: Variant = None, log: LogPath = None) -> None:
    """Check a job and show what would be trained: members, terms, tables, memory, and the control jobs."""
    from recdistill.runs.execute import Request
    from recdistill.runs.plan import show

    show(Request(job, overrides=tuple(overrides or ()), variant=variant, log=log), out)


@app.command()
def encode(
    spec: Annotated[Path, typer.Argument(help="A feature spec (see feature_specs/).", show_default=False)],
    log: Annotated[str, typer.Argument(help="A parquet log: a file, a folder or a pattern.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write.", show_default=False)],
    engine: Annotated[str, typer.Option(help="What encodes; polars, on this machine.")] = "polars",
    extends: Annotated[
        Path | None, typer.Option(help="An encoded log of earlier days; its values keep their rows.")
    ] = None,
) -> None:
    """Encode a log by its spec; skipped when nothing has changed."""
    from recdistill.data.encode import encode as encode_log
    from recdistill.evaluation.report.wording import rows_of
    from recdistill.runs.console import Reporter
    from recdistill.spec.load import load_feature_spec

    if engine != "polars":
        raise typer.BadParameter(f"{engine!r} is not available; use polars")
    reporter = Reporter(err)
    with reporter.progress, reporter.rows("encoding") as done:
        encoded = encode_log(load_feature_spec(spec), log, target, extends=extends, progress=done)
    tables = ", ".join(f"{name} {rows:,}" for name, rows in encoded.fitted.tables.items())
    out.print(f"{target}: {rows_of(encoded.rows)}", highlight=False)
    out.print(f"embedding tables: {tables} rows" if tables else "embedding tables: none", highlight=False)


@app.command()
def score(
    source: Annotated[
        Path, typer.Argument(metavar="RUN|ARTEFACT", help="A run folder or an artefact folder.", show_default=False)
    ],
    log: Annotated[str, typer.Argument(help="A parquet log.", show_default=False)],
    target: Annotated[Path, typer.Argument(metavar="OUT.parquet", help="The file to write.", show_default=False)],
    member: Annotated[str | None, typer.Option(help="The member to score with; by default the student.")] = None,
    out_of_fold: Annotated[
        bool, typer.Option("--out-of-fold", help="Score each row by the copy that has not learned from it.")
    ] = False,
    spec: Annotated[Path | None, typer.Option(help="For an artefact: the feature spec, for row ids and joins.")] = None,
    top: Annotated[
        int | None, typer.Option(min=1, help="Write the N best items of each user instead of row scores.")
    ] = None,
    known: Annotated[str | None, typer.Option(help="With --top: a log of users and items that are left out.")] = None,
    items: Annotated[str | None, typer.Option(help="With --top: a file of other items, new ones for example.")] = None,
) -> None:
    """Write a member's scores of every row of a log, or the best items of every user."""
    from recdistill.evaluation.report.wording import counted
    from recdistill.runs.rescore import score_artefact, score_run
    from recdistill.spec.load import load_feature_spec

    of_runs: dict[str, object] = {"--member": member, "--out-of-fold": out_of_fold}
    is_artefact = (source / "student.pt").exists()
    if is_artefact:
        refuse(of_runs, "an artefact holds its student alone; name the run instead")
    else:
        refuse({"--spec": spec}, "a run has its own feature spec; this option is for artefacts")
    if top is None:
        refuse({"--known": known, "--items": items}, "about lists; say how long they are to be with --top")
    else:
        from recdistill.runs.lists import write_top

        refuse({**of_runs, "--spec": spec}, "lists come from the artefact alone; leave it out, or leave out --top")
        folder = source if is_artefact else source / "student"
        users = write_top(folder, log, target, top, known=known, items=items)
        out.print(f"{target}: {counted(users, 'user')}", highlight=False)
        return
    if is_artefact:
        from recdistill.runs.rescore import plain_spec

        found = load_feature_spec(spec) if spec is not None else plain_spec(source, log)
        rows = score_artefact(source, log, target, found)
    else:
        rows = score_run(source, log, target, member, out_of_fold=out_of_fold)
    out.print(f"{target}: {counted(rows, 'row')}", highlight=False)


@app.command()
def evaluate(
    run_folder: RunPath,
    log: Annotated[str, typer.Option("--log", help="The parquet log to score.", show_default=False)],
    json_out: Annotated[Path | None, typer.Option("--json", help="Also write the metrics to this file.")] = None,
) -> None:
    """Score another log with every member and with the artefact, and show their metrics."""
    from recdistill.evaluation.report.wording import counted
    from recdistill.runs.console import result_table
    from recdistill.runs.rescore import evaluate_run

    found = evaluate_run(run_folder, log, json_out)
    shown: dict[str, Any] = {**found, "controls": {}, "references": {}}
    if "artefact" in found:
        shown["members"] = {**found["members"], "artefact": found["artefact"]}
    out.print(result_table(shown, title=f"{log}: {counted(found['rows'], 'row')}"))


@app.command()
def export(
    run_folder: RunPath,
    target: Annotated[Path | None, typer.Option("--out", help="The artefact folder; by default RUN/student.")] = None,
    member: Annotated[str | None, typer.Option(help="Another member that reads serving columns only.")] = None,
    seed: Annotated[int | None, typer.Option(help="Another seed than the best on validation.")] = None,
) -> None:
    """Write the serving artefact of a finished run again, or that of another member or seed."""
    from recdistill.runs.export import export_again

    made = export_again(run_folder, target, member, seed)
    out.print(json.dumps(made, indent=1))


@app.command()
def verify(artefact: Annotated[Path, typer.Argument(help="An artefact folder.", show_default=False)]) -> None:
    """Check an artefact in a fresh interpreter without recdistill, torchrec and fbgemm."""
    from recdistill.export.artefact import verify as verify_artefact

    result = verify_artefact(artefact)
    table = Table(title=str(artefact), title_justify="left")
    table.add_column("check")
    table.add_column("ok")
    table.add_column("detail")
    for name, entry in result["checks"].items():
        table.add_row(name, "yes" if entry["ok"] else "NO", entry["detail"])
    out.print(table)
    if not result["ok"]:
        err.print("the artefact does not hold its promises; export the run again")
        raise typer.Exit(2)


@app.command()
def compare(runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False)]) -> None:
    """Put several runs side by side: a table, paired differences, and what their jobs differ in."""
    from recdistill.runs.compare import show

    show(runs, out)


@app.command()
def report(run_folder: RunPath) -> None:
    """Render a run's HTML report again and show its table."""
    from recdistill.evaluation.report.html import render
    from recdistill.publish import write_text
    from recdistill.runs.console import conclusions, result_table
    from recdistill.runs.folder import RunFolder

    found = RunFolder(run_folder).read_report()
    write_text(run_folder / "report.html", render(found, run_folder))
    out.print(result_table(found))
    for line in conclusions(found):
        out.print(line, highlight=False)
    out.print(f"report: {run_folder / 'report.html'}", highlight=False)


@app.command()
def methods(
    row: Annotated[str | None, typer.Argument(help="One row of the bibliography, for example P6.")] = None,
    folder: Annotated[Path, typer.Option("--jobs", help="Where the jobs lie.")] = Path("jobs"),
) -> None:
    """List the bibliography: row, paper, job (or that it is pending), one line on each."""
    from recdistill.runs.methods import show

    show(folder, row, out)


@app.command()
def doctor() -> None:
    """Check the installation: versions, a lookup in a sharded table, a scripted module."""
    from recdistill.runs.doctor import show

    if not show(out):
        raise typer.Exit(2)


@app.command()
def version() -> None:
    """Print the version."""
    out.print(__version__)


if __name__ == "__main__":
    main()
