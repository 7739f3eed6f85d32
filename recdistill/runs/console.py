"""What a person sees while a run goes on and when it ends."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from recdistill.evaluation.report.wording import counted, metric_title
from recdistill.spec.graph import METRIC_AT
from recdistill.training.runlog import Event

METRICS = {
    "auc": "AUC",
    "gauc_macro": "GAUC (macro)",
    "logloss": "log loss",
    "normalized_entropy": "NE",
    "ece": "ECE",
    "pcoc": "PCOC",
}


class Reporter:
    """Progress bars of a run; on a terminal they move, elsewhere a line is printed for each finished training."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            transient=True,
        )

    @contextmanager
    def rows(self, what: str, total: int | None = None) -> Iterator[Any]:
        """A bar over rows; yields a function to call with the number of rows done."""
        task = self.progress.add_task(what, total=total, note="rows")
        try:
            yield lambda rows: self.progress.update(task, advance=rows)
        finally:
            self.progress.remove_task(task)

    @contextmanager
    def training(self, what: str) -> Iterator[Any]:
        """A bar over steps; yields a listener for the engine."""
        task = self.progress.add_task(what, total=None, note="")
        try:
            yield lambda event: self._heard(task, event)
        finally:
            self.progress.remove_task(task)

    def _heard(self, task: TaskID, event: Event) -> None:
        shown = {
            k: v for k, v in event.values.items() if event.kind == "step" or k.endswith((".auc", "@20", "@10", "@5"))
        }
        note = "  ".join(f"{k.split(' *')[0]} {v:.4f}" for k, v in list(shown.items())[:3])
        self.progress.update(task, completed=event.step, total=event.planned, note=note)

    def say(self, text: str) -> None:
        """One line."""
        self.console.print(text, highlight=False)


def result_table(report: Mapping[str, Any], title: str = "test split") -> Table:
    """Members, controls and references on the test split."""
    table = Table(title=f"{title}, mean over {counted(len(report['seeds']), 'seed')}", title_justify="left")
    table.add_column("system")
    main = report.get("metric") or "auc"
    table.add_column(f"{metric_title(main)} [95 % interval]", justify="right")
    systems = [(name, entry) for name, entry in report["members"].items()]
    systems += [(f"{name} (control)", entry) for name, entry in report["controls"].items()]
    metrics = [m for m in systems[0][1]["test"] if m != main and (m in METRICS or METRIC_AT.match(m))]
    for metric in metrics:
        table.add_column(METRICS.get(metric) or metric_title(metric), justify="right")
    for name, entry in systems:
        test = entry["test"]
        low, high = (_number(x) for x in test[f"{main}_ci"])
        style = "bold" if name == report["student"] else None
        cells = [_number(test[metric]["mean"]) for metric in metrics]
        table.add_row(name, f"{_number(test[main]['mean'])} [{low}, {high}]", *cells, style=style)
    for name, entry in report["references"].items():
        table.add_row(f"{name} (reference)", _number(entry["test"]["auc"]), *[""] * len(metrics))
    return table


def conclusions(report: Mapping[str, Any]) -> list[str]:
    """Sentences below the table: differences, recovered gap, distance to references, verdict, warnings."""
    lines = []
    for c in report["comparisons"]:
        lines.append(
            f"{c['a']} - {c['b']}: {_difference(c)}, p = {_number(c['p_adjusted'], '.2g')} "
            f"(Holm; smallest effect this test would see: {_number(c['minimum_detectable_effect'])})"
        )
    gap = report["recovered_gap"]
    if gap is not None and gap["value"] is not None:
        if None in gap["ci"]:
            lines.append("recovered gap: n/a, the teacher's lead over the plain student is itself uncertain")
        else:
            share, low, high = (whole_percent(each) for each in (gap["value"], *gap["ci"]))
            lines.append(f"recovered gap: {share} [{low}, {high}] of the teacher's lead over the plain student")
    student = report["members"][report["student"]]["test"][report["metric"]]["mean"]
    for name, entry in report["references"].items():
        theirs = entry["test"]["auc"]
        away = None if None in (student, theirs) else student - theirs
        lines.append(f"distance to {name}: {_number(away, '+.4f')} AUC")
    lines.append(f"verdict: {report['verdict']}")
    for name, found in (report.get("students") or {}).items():
        over = [c for c in found["comparisons"] if c["a"] == name]
        differences = ", ".join(f"{_difference(c)} to {c['b']}" for c in over)
        lines.append(f"further student {name}: {differences}; {found['verdict']}")
    lines += [f"warning ({w['cause']}): {w['message']}" for w in report["warnings"]]
    return lines


def whole_percent(share: float) -> str:
    """A share as a whole percentage, which is never ``-0%``."""
    return f"{round(100 * share)}%"


def _difference(comparison: Mapping[str, Any]) -> str:
    """A difference and its interval."""
    low, high = (_number(end, "+.4f") for end in comparison["ci"])
    return f"{_number(comparison['delta'], '+.4f')} [{low}, {high}]"


def _number(value: float | None, form: str = ".4f") -> str:
    return "n/a" if value is None or math.isnan(value) else f"{value:{form}}"
