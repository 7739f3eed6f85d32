"""Several runs side by side."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recdistill.errors import RunError
from recdistill.evaluation.report.measures import Answers, measure_of
from recdistill.evaluation.report.wording import metric_title
from recdistill.evaluation.significance import holm_adjusted
from recdistill.runs.choice import table_of
from recdistill.runs.console import whole_percent
from recdistill.runs.folder import RunFolder
from recdistill.spec.controls import MAIN
from recdistill.spec.load import read_yaml


def show(paths: list[Path], console: Console) -> None:
    """Print leaderboards of both splits, the paired differences to the best run, and what the jobs differ in.

    Which run to keep is told by validation; the test split only says what it is worth.

    Raises:
        RunError: fewer than two runs, one of them is not complete, or they are judged by different metrics.
    """
    if len(paths) < 2:
        raise RunError("compare needs at least two run folders")
    reports = {path: RunFolder(path).read_report() for path in paths}
    judged_by = {str(path): report["metric"] for path, report in reports.items()}
    if len({*judged_by.values()}) > 1:
        raise RunError(f"compare: the runs are judged by different metrics, {judged_by}; compare those of one metric")
    metric = next(iter(judged_by.values()))
    order = sorted(paths, key=lambda path: -_test(reports[path])[metric]["mean"])
    ranked = {path: reports[path] for path in order}
    console.print(_leaderboard(ranked, metric))
    console.print(table_of(ranked, metric))
    for line in _differences(order, reports, metric):
        console.print(line, highlight=False)
    console.print(_settings(order))


def _test(report: dict[str, Any]) -> dict[str, Any]:
    """The metrics of a run's student on the test split."""
    found: dict[str, Any] = report["members"][report["student"]]["test"]
    return found


def _leaderboard(reports: dict[Path, dict[str, Any]], metric: str) -> Table:
    further = [("log loss", "logloss")] if metric == "auc" else []
    table = Table(title="students on the test split", title_justify="left")
    for heading in ("run", f"{metric_title(metric)} [95 % interval]", *(title for title, _ in further)):
        table.add_column(heading)
    for heading in ("over plain", "recovered gap", "parameters", "verdict"):
        table.add_column(heading)
    for path, report in reports.items():
        test = _test(report)
        low, high = test[f"{metric}_ci"]
        over = next((c["delta"] for c in report["comparisons"] if c["b"] == "plain"), None)
        gap = report["recovered_gap"]
        known = gap is not None and gap["value"] is not None and None not in gap["ci"]
        table.add_row(
            str(path),
            f"{test[metric]['mean']:.4f} [{low:.4f}, {high:.4f}]",
            *(f"{test[name]['mean']:.4f}" for _, name in further),
            "n/a" if over is None else f"{over:+.4f}",
            whole_percent(gap["value"]) if known else "n/a",
            f"{report['artefact']['parameters']:,}",
            report["verdict"],
        )
    return table


def _differences(order: list[Path], reports: dict[Path, dict[str, Any]], metric: str) -> list[str]:
    """Paired tests of the best run against each other one about the same rows or users with as many seeds."""
    measure = measure_of(metric)

    def students(path: Path) -> Answers:
        training, report = RunFolder(path).training, reports[path]
        return [measure.read(training(MAIN, seed), report["student"], "test") for seed in report["seeds"]]

    best, *others = order
    first = students(best)
    comparable, lines = [], []
    for path in others:
        found = students(path)
        if len(found) == len(first) and measure.alike(first[0], found):
            comparable.append((path, measure.compare(first, found)))
        else:
            lines.append(f"{best} and {path} are about other rows, users or seeds; no paired test")
    adjusted = holm_adjusted([comparison for _, comparison in comparable])
    for (path, _), c in zip(comparable, adjusted, strict=True):
        lines.append(f"{best} - {path}: {c.delta:+.4f} [{c.ci[0]:+.4f}, {c.ci[1]:+.4f}], p = {c.p_adjusted:.2g} (Holm)")
    return lines


def _settings(paths: list[Path]) -> Table:
    jobs = {str(path): read_yaml(path / "job.yaml") for path in paths}
    table = Table(title="where the jobs differ", title_justify="left")
    table.add_column("setting")
    for path in paths:
        table.add_column(str(path))
    for key, values in differing(list(jobs.values())).items():
        table.add_row(key, *values)
    return table


def differing(jobs: list[dict[str, Any]]) -> dict[str, list[str]]:
    """The settings, as dotted keys, in which jobs differ, with their values."""
    flat = [_flat(job) for job in jobs]
    values = {key: [str(job.get(key, "-")) for job in flat] for key in sorted(set().union(*flat))}
    return {k: found for k, found in values.items() if len(set(found)) > 1 and not k.startswith("variants")}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): value}
