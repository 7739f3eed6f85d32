"""The report as one HTML file that needs no network: verdict, result table, pictures, artefact, how it was made.

The page says what `report.json` says; pictures add curves from the score files and logs of the run folder. Whatever is
missing or null is left out or said in a sentence: a page with a hole is better than a finished run without a report.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import yaml
from jinja2 import ChainableUndefined, Environment, FileSystemLoader

from recdistill.data.scores import Scored, read_scores
from recdistill.errors import RecdistillError
from recdistill.evaluation.report import figures
from recdistill.evaluation.report.figures import Figure, Point, Strip, System, Trace
from recdistill.evaluation.report.wording import (
    NBSP,
    between,
    discreet,
    metric_title,
    num,
    options_of,
    p_value,
    percent,
    size,
)

JUDGED = "test"
LOOKS = {"student": ("student", "circle"), "teacher": ("teacher", "diamond"), "plain": ("plain", "square")}
OTHERS = [
    (f"other-{i + 1}", marker) for i, marker in enumerate(("triangle", "square", "diamond", "circle", "triangle"))
]
Parsed = TypeVar("Parsed")


def render(report: Mapping[str, Any], folder: Path) -> str:
    """The page of a run.

    Args:
        report: the content of ``report.json``.
        folder: the run folder.

    Returns:
        HTML; the same run gives the same text.
    """
    systems = systems_of(report)
    job = _read(folder / "job.yaml", yaml.safe_load)
    return (
        _environment()
        .get_template("template.html.j2")
        .render(
            report=report,
            systems=systems,
            student=next((s for s in systems if s.kind == "student"), None),
            pictures=pictures(report, folder, systems),
            job=discreet(job) if isinstance(job, dict) else {},
            recipe=recipe(job),
            manifest=_read(folder / "manifest.json", json.loads) or {},
            artefact=_read(folder / "student" / "manifest.json", json.loads) or {},
            trainings=trainings(report, folder),
        )
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=ChainableUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = {
        "title": metric_title,
        "num": num,
        "percent": percent,
        "p": p_value,
        "size": size,
        "between": between,
        "discreet": discreet,
        "options": options_of,
    }
    environment.filters |= filters
    return environment


def recipe(job: object) -> str:
    """Members, phases and training settings of a job as YAML."""
    kept = {key: job[key] for key in ("members", "phases", "train") if key in job} if isinstance(job, dict) else {}
    return yaml.safe_dump(discreet(kept), sort_keys=False, allow_unicode=True, width=100) if kept else ""


def systems_of(report: Mapping[str, Any]) -> list[System]:
    """Everything that the report compares: student, teacher, other members, controls, references."""
    student, teacher = report.get("student"), report.get("teacher")
    members, controls, references = (report.get(part) or {} for part in ("members", "controls", "references"))
    spare = cycle(OTHERS)
    found = []
    for name in sorted(members, key=lambda name: (name != student, name != teacher)):
        role = "student" if name == student else "teacher" if name == teacher else "other"
        kind = "student" if name == student else "member"
        found.append(System(name, kind, *(LOOKS.get(role) or next(spare)), members[name]))
    for name, splits in controls.items():
        found.append(System(name, "control", *LOOKS.get(name, ("shuffled", "triangle")), splits))
    return [*found, *(System(name, "reference", "reference", "circle", splits) for name, splits in references.items())]


def pictures(report: Mapping[str, Any], folder: Path, systems: Sequence[System]) -> dict[str, Any]:
    """All pictures that the run has the data for."""
    seeds = list(report.get("seeds") or [])
    exported = (report.get("artefact") or {}).get("seed")
    shown = exported if exported is not None or not seeds else seeds[0]
    return {
        "seed": shown,
        "forests": [f for f in (forest(report, systems, of_student=of) for of in (True, False)) if f],
        "values": values(systems, report.get("metric") or "auc"),
        "thresholds": thresholds(folder, systems, seeds, shown),
        "learning": learning(folder, systems, sorted(seeds, key=lambda seed: seed != shown), report.get("metric")),
    }


def forest(report: Mapping[str, Any], systems: Sequence[System], *, of_student: bool) -> Figure | None:
    """Differences of the student from its controls, or of the other members from the student.

    The two have an axis each, because a teacher's lead may be many times what distillation gains.
    """
    rows = []
    for found in (report.get("comparisons") or []) if systems else []:
        if (found["a"] == report.get("student")) == of_student:
            system = next((s for s in systems if s.name == found["a"] and s.kind in ("student", "member")), systems[0])
            name, interval = f"{found['a']} − {found['b']}", found.get("ci") or ()
            words = _with_interval(found["delta"], interval, signed=True)
            per_seed, unseen = found.get("delta_per_seed") or (), found.get("minimum_detectable_effect")
            rows.append(Strip(name, words, system, found["delta"], interval, per_seed, unseen))
    title = "The student compared with its controls" if of_student else "Other members compared with the student"
    axis = f"difference in {metric_title(report.get('metric'))} on the test split"
    return figures.strips(title, "", rows, axis, references={}, signed=True)


def values(systems: Sequence[System], metric: str) -> Figure | None:
    """The metric of every system, seed by seed, with the references as lines."""
    rows, lines = [], {}
    for system in systems:
        entry = system.splits.get(JUDGED) or {}
        value = entry.get(metric)
        if isinstance(value, Mapping):
            interval, mean = entry.get(f"{metric}_ci") or (), value.get("mean")
            words = _with_interval(mean, interval)
            rows.append(Strip(system.name, words, system, mean, interval, value.get("per_seed") or ()))
        elif value is not None:
            lines[system.name] = value
    note = "Vertical lines: reference scores that came with the log." if lines else ""
    title = metric_title(metric)
    return figures.strips(f"{title} of every system", note, rows, f"{title} on the test split", references=lines)


def _with_interval(value: object, ends: object, *, signed: bool = False) -> str:
    words = between(ends, signed=signed)
    return f"{num(value, signed=signed)}  ({words})" if words else num(value, signed=signed)


def thresholds(folder: Path, systems: Sequence[System], seeds: Sequence[object], shown: object) -> list[Figure]:
    """ROC, precision-recall and reliability of student, teacher and plain control, for one seed."""
    student = next((s.name for s in systems if s.kind == "student"), "")
    scored: list[tuple[System, Scored]] = []
    for system in systems:
        if system.look in ("student", "teacher", "plain"):
            name = student if system.kind == "control" else system.name
            found = _read_scores(training_folder(folder, system, shown) / "scores" / f"{name}.{JUDGED}.parquet")
            if found is not None and figures.has_both_classes(found):
                scored.append((system, found))
    if not scored:
        return []
    base = float(scored[0][1].label_N.mean())
    place = seeds.index(shown) if shown in seeds else 0
    calibrated = [(system, s) for system, s in scored if system.kind != "control"]
    areas, errors = _each(scored, "auc", place), _each(calibrated, "ece", place)
    roc = figures.curves(
        "ROC",
        f"AUC of this seed: {areas}. Dashed: a score that knows nothing.",
        [Trace(system, [figures.roc_points(s)]) for system, s in scored],
        ("share of negatives above", 0, 1),
        ("share of positives above", 0, 1),
        guides=[((0, 0), (1, 1))],
    )
    precision = figures.curves(
        "Precision and recall",
        f"Dashed: the share of positives, {percent(base, 1)}.",
        [Trace(system, [figures.precision_recall_points(s)]) for system, s in scored],
        ("recall: share of positives above", 0, 1),
        ("precision: positives among those above", 0, 1),
        guides=[((0, base), (1, base))],
    )
    note = (
        f"ECE of this seed: {errors}. 20 bins of equal mass, with the 95{NBSP}% noise of each. Above the dashed line "
        "predictions are too low, below it too high."
    )
    return [roc, precision, *([figures.reliability_figure(calibrated, note)] if calibrated else [])]


def _each(scored: Sequence[tuple[System, Scored]], metric: str, place: int) -> str:
    """One number of each system, for one of the seeds."""
    words = []
    for system, _ in scored:
        values = ((system.splits.get(JUDGED) or {}).get(metric) or {}).get("per_seed") or ()
        words.append(f"{system.name} {num(values[place] if place < len(values) else None)}")
    return ", ".join(words)


def learning(folder: Path, systems: Sequence[System], seeds: Sequence[object], metric: object) -> dict[str, Any]:
    """Validation metrics over steps, and the loss of every term, of the job and of the plain control.

    Args:
        folder: the run folder.
        systems: what the report compares.
        seeds: the seed to stress first.
        metric: what the report compares systems by.
    """
    student = next((s for s in systems if s.kind == "student"), None)
    plain = next((s for s in systems if s.kind == "control" and s.name == "plain"), None)
    if student is None:
        return {"metrics": [], "terms": []}
    main = _histories(folder, student, seeds)
    control = _histories(folder, plain, seeds) if plain else []
    metrics = []
    shown = {str(metric or "auc"): metric_title(metric), "auc": "AUC", "logloss": "log loss"}
    for name, label in shown.items():
        trained = [system for system in systems if system.kind in ("student", "member")]
        drawn = [(system, f"{system.name}.{name}", main) for system in trained]
        drawn += [(plain, f"{student.name}.{name}", control)] if plain else []
        metrics.append(_over_steps(f"Validation {label}", label, drawn, main))
    terms = []
    for words in dict.fromkeys(name for history in main for kind, name in history.series if kind == "step"):
        learner = re.match(r"\w+\((\w+)", words)
        system = next((s for s in systems if learner and s.name == learner[1] and s.kind == "member"), student)
        drawn = [(system, words, main), *([(plain, words, control)] if plain else [])]
        terms.append(_over_steps(words, "loss of the batch", drawn, main))
    is_refit = any(history.is_refit for history in main)
    return {"metrics": [f for f in metrics if f], "terms": [f for f in terms if f], "is_refit": is_refit}


@dataclass(frozen=True)
class History:
    """The log of one training, with its phases one after another on one axis of steps.

    Attributes:
        series: by kind of event and name, one segment of points for each phase.
        kept: the step behind the parameters that each phase kept.
        starts: where the later phases begin.
        is_refit: whether the final parameters came from a second training, which the series do not show.
    """

    series: Mapping[tuple[str, str], Sequence[Sequence[Point]]]
    kept: frozenset[float]
    starts: Sequence[float]
    is_refit: bool


def read_history(folder: Path) -> History | None:
    """The log of a training; None where there is none."""
    lines = _read(folder / "metrics.jsonl", lambda text: [json.loads(line) for line in text.splitlines()])
    if not lines:
        return None
    first = [line for line in lines if line["stage"] == lines[0]["stage"]]
    length: dict[int, int] = {}
    for line in first:
        length[line["phase"]] = max(length.get(line["phase"], 0), line["step"])
    start = {phase: sum(steps for other, steps in length.items() if other < phase) for phase in length}
    series: dict[tuple[str, str], dict[int, list[Point]]] = {}
    for line in first:
        for name, value in line["values"].items():
            if figures.known([value]):
                segments = series.setdefault((line["kind"], name), {})
                segments.setdefault(line["phase"], []).append((start[line["phase"]] + line["step"], value))
    is_refit = len(first) < len(lines)
    steps = (_read(folder / "fit.json", json.loads) or {}).get("steps") or []
    kept = frozenset() if is_refit else frozenset(float(start.get(i, 0) + count) for i, count in enumerate(steps))
    segments_of = {key: list(segments.values()) for key, segments in series.items()}
    return History(segments_of, kept, sorted(start.values())[1:], is_refit)


def _histories(folder: Path, system: System, seeds: Sequence[object]) -> list[History]:
    found = [read_history(training_folder(folder, system, seed)) for seed in seeds]
    return [history for history in found if history is not None]


def _over_steps(
    title: str, label: str, drawn: Sequence[tuple[System, str, list[History]]], main: list[History]
) -> Figure | None:
    """One picture of series over steps; the first training stands out, and its kept steps are ringed."""
    lines = sum(len(histories) for _, _, histories in drawn)
    traces = []
    for system, name, histories in drawn:
        for i, history in enumerate(histories):
            segments = [*history.series.get(("evaluation", name), []), *history.series.get(("step", name), [])]
            most = max(12, figures.FIGURE_POINTS // max(1, lines * len(segments)))
            rings = [point for segment in segments for point in segment if i == 0 and point[0] in history.kept]
            if segments:
                traces.append(Trace(system, [figures.thinned(s, most) for s in segments], i > 0, rings))
    points = [point for trace in traces for segment in trace.segments for point in segment]
    if not points:
        return None
    low, high = figures.padded([value for _, value in points])
    last = max(step for step, _ in points)
    guides = [((start, low), (start, high)) for start in main[0].starts]
    return figures.curves(title, "", traces, ("step", 0, last), (label, low, high), guides=guides, height=270)


def trainings(report: Mapping[str, Any], folder: Path) -> list[dict[str, Any]]:
    """For the job and each control the steps that every seed kept, by phase, and the mean of the seconds it took."""
    made = []
    for arm in ("", *(report.get("controls") or {})):
        parent = folder / "controls" / arm if arm else folder
        found = [_read(parent / f"seed_{seed}" / "fit.json", json.loads) for seed in report.get("seeds") or []]
        done = [entry for entry in found if isinstance(entry, dict)]
        seconds = figures.known(entry.get("seconds") for entry in done)
        if done:
            mean = sum(seconds) / len(seconds) if seconds else None
            made.append(
                {"arm": arm or "the job itself", "steps": [e.get("steps") or [] for e in done], "seconds": mean}
            )
    return made


def training_folder(folder: Path, system: System, seed: object) -> Path:
    """Where the training of a system lies."""
    return (folder / "controls" / system.name if system.kind == "control" else folder) / f"seed_{seed}"


def _read(path: Path, parse: Callable[[str], Parsed]) -> Parsed | None:
    """A parsed file of the run folder; None where it is missing or broken."""
    try:
        return parse(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _read_scores(path: Path) -> Scored | None:
    try:
        return read_scores(path)
    except RecdistillError:
        return None
