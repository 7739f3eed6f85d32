"""Several runs side by side."""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from recdistill.data.scores import Scored, read_scores, same_rows
from recdistill.errors import RunError
from recdistill.evaluation.significance import compare, holm_adjusted
from recdistill.runs.folder import RunFolder
from recdistill.spec.controls import MAIN
from recdistill.spec.load import read_yaml


def show(paths: list[Path], console: Console) -> None:
    """Print a leaderboard, the paired differences to the best run, and the settings in which the jobs differ.

    Raises:
        RunError: fewer than two runs, or one of them is not complete.
    """
    if len(paths) < 2:
        raise RunError("compare needs at least two run folders")
    reports = {path: RunFolder(path).read_report() for path in paths}
    order = sorted(paths, key=lambda p: -reports[p]["members"][reports[p]["student"]]["test"]["auc"]["mean"])
    console.print(_leaderboard({path: reports[path] for path in order}))
    for line in _differences(order, reports):
        console.print(line, highlight=False)
    console.print(_settings(order))


def _leaderboard(reports: dict[Path, dict[str, Any]]) -> Table:
    table = Table(title="students on the test split", title_justify="left")
    for heading in ("run", "AUC [95 % interval]", "log loss", "over plain", "recovered gap", "parameters", "verdict"):
        table.add_column(heading)
    for path, report in reports.items():
        test = report["members"][report["student"]]["test"]
        low, high = test["auc_ci"]
        over = next((c["delta"] for c in report["comparisons"] if c["b"] == "plain"), None)
        gap = (report["recovered_gap"] or {}).get("value")
        table.add_row(
            str(path),
            f"{test['auc']['mean']:.4f} [{low:.4f}, {high:.4f}]",
            f"{test['logloss']['mean']:.4f}",
            "n/a" if over is None else f"{over:+.4f}",
            "n/a" if gap is None else f"{gap:.0%}",
            f"{report['artefact']['parameters']:,}",
            report["verdict"],
        )
    return table


def _students(path: Path, report: dict[str, Any]) -> list[Scored]:
    folder = RunFolder(path)
    name = f"{report['student']}.test.parquet"
    return [read_scores(folder.training(MAIN, seed) / "scores" / name) for seed in report["seeds"]]


def _differences(order: list[Path], reports: dict[Path, dict[str, Any]]) -> list[str]:
    """Paired tests of the best run against each other one that scored the same rows with as many seeds."""
    best, *others = order
    first = _students(best, reports[best])
    comparable, lines = [], []
    for path in others:
        found = _students(path, reports[path])
        if len(found) == len(first) and same_rows(first[0], found):
            comparable.append((path, compare(first[0].label_N, [s.logit_N for s in first], [s.logit_N for s in found])))
        else:
            lines.append(f"{best} and {path} scored other rows or seeds; no paired test")
    adjusted = holm_adjusted([comparison for _, comparison in comparable])
    for (path, _), c in zip(comparable, adjusted, strict=True):
        lines.append(f"{best} - {path}: {c.delta:+.4f} [{c.ci[0]:+.4f}, {c.ci[1]:+.4f}], p = {c.p_adjusted:.2g} (Holm)")
    return lines


def _settings(paths: list[Path]) -> Table:
    jobs = {path: _flat(read_yaml(path / "job.yaml")) for path in paths}
    table = Table(title="where the jobs differ", title_justify="left")
    table.add_column("setting")
    for path in paths:
        table.add_column(str(path))
    for key in sorted(set().union(*jobs.values())):
        values = [str(job.get(key, "-")) for job in jobs.values()]
        if len(set(values)) > 1 and not key.startswith("variants"):
            table.add_row(key, *values)
    return table


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted keys."""
    if isinstance(value, dict) and value:
        return {k: v for key, inner in value.items() for k, v in _flat(inner, f"{prefix}{key}.").items()}
    if isinstance(value, list) and any(isinstance(v, dict) for v in value):
        return {k: v for i, inner in enumerate(value) for k, v in _flat(inner, f"{prefix}{i}.").items()}
    return {prefix.rstrip("."): value}
