"""Which of several runs to keep: the one whose student is best on validation, however good its teacher is."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from recdistill.evaluation.fidelity import divergence
from recdistill.evaluation.report.measures import measure_of
from recdistill.evaluation.report.wording import metric_title, num
from recdistill.runs.folder import RunFolder
from recdistill.spec.controls import MAIN

Report = Mapping[str, Any]


def chosen(reports: Mapping[Path, Report]) -> Path:
    """The run whose student is best on validation.

    Neither the test split nor the quality of a teacher has a say: a small student may not follow the best one (U3).

    Args:
        reports: of complete runs that are judged by the same metric; of equals the first one is chosen.
    """
    return max(reports, key=lambda path: on_validation(reports[path], reports[path]["student"]))


def on_validation(report: Report, member: str, metric: str | None = None) -> float:
    """The mean of a metric over seeds on the validation split, by default of the one that a run is judged by."""
    return float(report["members"][member]["valid"][metric or report["metric"]]["mean"])


def distance(path: Path, report: Report) -> float | None:
    """How far the student's answers to validation rows are from its teacher's, the mean over seeds.

    None for runs about lists, and for those in which nobody teaches.
    """
    if report["teacher"] is None or report["metric"] != "auc":
        return None
    read, training = measure_of(report["metric"]).read, RunFolder(path).training
    found = []
    for seed in report["seeds"]:
        student, teacher = (read(training(MAIN, seed), report[who], "valid") for who in ("student", "teacher"))
        found.append(divergence(student.logit_N, teacher.logit_N))
    return float(np.mean(found))


def table_of(reports: Mapping[Path, Report], metric: str) -> Table:
    """Students and their teachers on the validation split, and a mark at the run to keep."""
    table, best = Table(title="students on the validation split", title_justify="left"), chosen(reports)
    further = ["logloss"] if metric == "auc" else []
    title = metric_title(metric)
    for heading in ("run", title, *(["log loss"] if further else []), f"teacher's {title}", "divergence", ""):
        table.add_column(heading)
    for path, report in reports.items():
        student, teacher = report["student"], report["teacher"]
        table.add_row(
            str(path),
            *(num(on_validation(report, student, each)) for each in (metric, *further)),
            num(None if teacher is None else on_validation(report, teacher)),
            num(distance(path, report)),
            "best on validation" if path == best else "",
        )
    return table
