"""`make table`: every row of the bibliography that has a job, on one simulated log, beside its controls.

Each job runs as `recdistill run` would, on `--rows` impressions of the marketplace (of the log that it asks for
otherwise) and over `--seeds` seeds; a row whose report is there already is not run again. Writes `jobs/RESULTS.md`.
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from recdistill.evaluation.report.wording import metric_title, num
from recdistill.runs.execute import Request, execute
from recdistill.runs.methods import bibliography, shown
from recdistill.spec.load import read_yaml

ROOT = Path(__file__).parents[2]
OUT = ROOT / "jobs" / "RESULTS.md"
HEAD = """# What the rows show

Every row of the bibliography that has a job, over {seeds} seeds on one simulated log: {rows:,} impressions of the
embedded marketplace (P10, whose students rank, on the embedded preferences). Written by `make table`; nothing was tuned
for it, and most of these jobs were made for other amounts of data. A difference is the student's to a control on the
same test rows, with its 95 % interval; it is bold where the interval leaves zero out and the test, corrected for the
number of comparisons, says so as well (p below .05). Cost is the time of the whole training relative to that of the
student alone.

| row | job | metric | teacher | plain | shuffled | student | student − plain | student − shuffled | cost |
|---|---|---|---|---|---|---|---|---|---|
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=60_000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--only", nargs="*", help="rows of the bibliography; by default all that have a job")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "table", help="where the runs lie")
    asked = parser.parse_args()
    jobs = shown(ROOT / "jobs")
    for row in asked.only or [row for row in bibliography() if row in jobs]:
        measure(jobs[row][0], asked.out / row, asked.rows, asked.seeds)
    reports = {row: found for row in bibliography() if row in jobs and (found := read(asked.out / row)) is not None}
    lines = [line(row, jobs[row][0], report) for row, report in reports.items()]
    head = HEAD.format(seeds=asked.seeds, rows=asked.rows)
    OUT.write_text(head + "".join(lines) + untold(reports), encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


def measure(path: Path, out: Path, rows: int, seeds: int) -> None:
    """Run a row's job, unless its report is there."""
    if read(out) is not None:
        return
    simulated = read_yaml(path)["log"]
    smaller = [f"log.rows={rows}"] if simulated["simulate"] == "marketplace" else []
    request = Request(path, out, seeds, tuple(smaller), resume=out.exists())
    execute(request, console=Console(stderr=True))


def read(out: Path) -> dict[str, Any] | None:
    """The report of a run, once it is complete."""
    path = out / "report.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def line(row: str, path: Path, report: Mapping[str, Any]) -> str:
    """One line of the table."""
    metric = report["metric"]

    def mean(entry: Mapping[str, Any] | None) -> str:
        return num(entry["test"][metric]["mean"] if entry else None)

    controls = {name.partition("_")[0]: entry for name, entry in report["controls"].items()}
    cells = [row, f"`{path.relative_to(ROOT / 'jobs').with_suffix('')}`", metric_title(metric)]
    cells += [mean(report["members"].get(report["teacher"])), mean(controls.get("plain"))]
    cells += [mean(controls.get("shuffled")), mean(report["members"][report["student"]])]
    cells += [difference(report, name) for name in ("plain", "shuffled")]
    times = report["timings"]
    cost = statistics.mean(times["main"]) / statistics.mean(times["plain"]) if "plain" in times else None
    return f"| {' | '.join([*cells, f'{num(cost, 1)} x' if cost else '–'])} |\n"


def difference(report: Mapping[str, Any], control: str) -> str:
    """The difference to a control with its interval, bold where it is told apart from none."""
    for c in report["comparisons"]:
        if c["a"] == report["student"] and c["b"].partition("_")[0] == control:
            text = f"{num(c['delta'], signed=True)} [{num(c['ci'][0], signed=True)}, {num(c['ci'][1], signed=True)}]"
            apart = not c["ci"][0] <= 0 <= c["ci"][1] and c["p_adjusted"] < 0.05
            return f"**{text}**" if apart else text
    return "–"


def untold(reports: Mapping[str, Mapping[str, Any]]) -> str:
    """Which rows are compared with nothing, and why that is so."""
    jobs = shown(ROOT / "jobs")
    reasons = {row: job["controls"]["none"] for row, (_, job) in jobs.items() if isinstance(job.get("controls"), dict)}
    told = [f"- {row}: {reason}." for row, reason in reasons.items() if row in reports]
    return "\nWithout controls:\n\n" + "\n".join(told) + "\n" if told else ""


if __name__ == "__main__":
    main()
