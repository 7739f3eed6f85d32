"""One run: load and check the job, encode the log, train the job and its controls over all seeds, export, report."""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from rich.console import Console

from recdistill.data.encode import file_fingerprint
from recdistill.data.scores import Scored, read_scores
from recdistill.distill.compile import Plan, compile_job, problems_of
from recdistill.distill.own import uses_own
from recdistill.errors import RunError
from recdistill.evaluation.report.build import BySplit, Results, build
from recdistill.evaluation.report.html import render
from recdistill.evaluation.report.measures import OfLists
from recdistill.publish import write_text
from recdistill.runs.compare import differing
from recdistill.runs.console import Reporter
from recdistill.runs.counts import check_labels, labels_of, words
from recdistill.runs.doubts import budget_warnings, column_warnings, exchange_warnings, training_warnings
from recdistill.runs.export import export_student
from recdistill.runs.folder import (
    RunFolder,
    cache_folder,
    fingerprint,
    link_tree,
    manifest,
    new_folder,
    write_json,
)
from recdistill.runs.labels import check_scores
from recdistill.runs.logs import encoded, raw_log
from recdistill.runs.nodes import keep_nodes
from recdistill.runs.references import SPLITS, references
from recdistill.spec.controls import MAIN, Arm, arms
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.load import dump_yaml, load_job, read_yaml
from recdistill.training.fit import fit, tidy
from recdistill.training.processes import agreed, barrier, in_turn, rank
from recdistill.training.reading import Data, Training
from recdistill.training.sharding import process_group
from recdistill.training.warm_start import chosen_seed


@dataclass(frozen=True)
class Request:
    """What the user asks for.

    Attributes:
        job: path of the job.
        out: the run folder; by default ``runs/`` and the job's name.
        seeds: number of repetitions, if not the job's own.
        overrides: ``key.path=value``.
        variant: one of the job's variants.
        log: a log instead of the job's own.
        resume: continue a run that was interrupted.
    """

    job: Path
    out: Path | None = None
    seeds: int | None = None
    overrides: Sequence[str] = field(default_factory=tuple)
    variant: str | None = None
    log: str | None = None
    resume: bool = False

    def load(self) -> tuple[Job, FeatureSpec]:
        """The job with everything that the request changes, and its spec.

        Raises:
            SpecError: lists every problem.
        """
        overrides = [*self.overrides, *([f"seeds={self.seeds}"] if self.seeds else [])]
        return load_job(self.job, overrides, variant=self.variant, log=self.log, check=problems_of)


def execute(request: Request, console: Console | None = None) -> RunFolder:
    """Run the job of a file to its report.

    Raises:
        RecdistillError: a mistake in job, spec or log, or an artefact that does not hold its promises.
    """
    job, spec = request.load()
    return run_job(
        job,
        spec,
        name=request.job.stem,
        variant=request.variant,
        out=request.out,
        resume=request.resume,
        console=console,
    )


def run_job(
    job: Job,
    spec: FeatureSpec,
    *,
    name: str,
    variant: str | None = None,
    out: Path | None = None,
    resume: bool = False,
    console: Console | None = None,
) -> RunFolder:
    """Run a job to its report.

    Args:
        job: the job.
        spec: its feature spec.
        name: how the report calls it.
        variant: the variant of the job that this is.
        out: the run folder; by default ``runs/`` and the name.
        resume: continue a run that was interrupted.
        console: where progress is shown.

    Raises:
        RecdistillError: a mistake in job, spec or log, or an artefact that does not hold its promises.
    """
    check_scores(job, spec)
    plans = [(arm, compile_job(arm.job, spec)) for arm in arms(job)]
    stem = name + (f"-{variant}" if variant else "")
    with process_group():
        folder = agreed(new_folder(out, stem, resume=resume, job=dump_yaml(job)) if rank() == 0 else None)
        assert folder is not None
        reporter = Reporter(console or Console(stderr=True, quiet=rank() > 0))
        with folder.locked() if rank() == 0 else nullcontext(), reporter.progress:
            log, spec = in_turn(lambda: raw_log(job, spec, reporter))
            data = Data(
                in_turn(lambda: encoded(spec, log, job, ("train",), reporter)),
                in_turn(lambda: encoded(spec, log, job, job.train.fitted_on, reporter)),
            )
            counts = labels_of(data.final.log, plans[0][1])
            check_labels(counts, plans[0][1])
            if rank() == 0:
                for line in words(counts):
                    reporter.say(line)
                _prepare(folder, job, plans[0][1], spec, data)
            barrier()
            since = time.time()
            for seed in range(job.seeds):
                for arm, plan in plans:
                    training = Training(plan, arm.job.train, data, seed, arm.shuffle_privileged, since)
                    _train(folder, arm, training, reporter)
            if rank() == 0:
                _conclude(folder, {"name": name, "variant": variant}, job, plans, data, log)
            barrier()
    return folder


def _conclude(
    folder: RunFolder,
    called: Mapping[str, str | None],
    job: Job,
    plans: Sequence[tuple[Arm, Plan]],
    data: Data,
    log: str,
) -> None:
    """Export the best student and write the report, which makes the run complete."""
    seeds = list(range(job.seeds))
    results = collect(folder, plans, data, seeds)
    artefact = export_student(folder, job, plans[0][1], data.final.log, log, best_seed(results))
    fits = {arm.name: [folder.summary(arm.name, seed) for seed in seeds] for arm, _ in plans}
    stopping = {arm.name: fits[arm.name] for arm, plan in plans if plan.phases[-1].stop.keep == "best"}
    kept = fits[MAIN][seeds.index(artefact["seed"])]["steps"]
    doubts = [*training_warnings(plans[0][1], kept), *budget_warnings(stopping), *exchange_warnings(fits)]
    results = replace(results, warnings=[*results.warnings, *doubts])
    timings = {name: [summary["seconds"] for summary in found] for name, found in fits.items()}
    predicted = [job.label[k] for k in plans[0][1].student.labels]
    judged = predicted if job.ranking is not None else predicted[1:]
    rows = {label: collect(folder, plans, data, seeds, label) for label in judged}
    tasks = {label: build(results) for label, results in rows.items() if _has_both_classes(results)}
    students = {name: build(collect(folder, plans, data, seeds, student=name)) for name in job.students[1:]}
    report = {
        **build(results),
        "tasks": tasks,
        "students": students,
        "job": {**called, **describe(job, data)},
        "artefact": artefact,
    }
    report |= {"timings": timings, "findings": over_seeds([summary.get("findings", {}) for summary in fits[MAIN]])}
    write_text(folder.root / "report.html", render(report, folder.root))
    write_json(folder.report, report)


def _prepare(folder: RunFolder, job: Job, plan: Plan, spec: FeatureSpec, data: Data) -> None:
    """Write what the run is, before anything is trained.

    Raises:
        RunError: the folder holds the beginning of a run of another job.
        LogError: a reference of the log could not be reported in the end.
    """
    if plan.ranking is None:
        references(data.final.log, plan.columns[0])
    _check_job(folder.root / "job.yaml", dump_yaml(job))
    write_text(folder.root / "job.yaml", dump_yaml(job))
    write_text(folder.root / "spec.yaml", dump_yaml(spec))
    prints = {"spec": fingerprint(spec.model_dump(mode="json")), "job": fingerprint(job.model_dump(mode="json"))}
    prints |= {"data": data.final.log.fingerprint, "tuning_data": data.tuning.log.fingerprint}
    prints |= {f"feed {name}": log.fingerprint for name, log in data.final.feeds.items()}
    prints |= made_before(job)
    made_with = manifest(list(range(job.seeds)), prints)
    if (folder.root / "manifest.json").exists():
        before = json.loads((folder.root / "manifest.json").read_text(encoding="utf-8"))
        changed = [
            name for name, value in made_with["fingerprints"].items() if before["fingerprints"].get(name) != value
        ]
        if changed:
            raise RunError(
                f"{folder.root}: {', '.join(changed)} changed since this run was started; give another --out"
            )
    write_json(folder.root / "manifest.json", made_with)
    fitted = folder.root / "fitted"
    if not fitted.exists():
        link_tree(data.final.log.folder, fitted, only=("manifest.json", "fitted.json", "vocabularies"))
    if plan.graph is not None and not (folder.root / "nodes").exists():
        keep_nodes(folder, plan, data.final.log, job.train.fitted_on)


def _check_job(path: Path, job: str) -> None:
    """A run is continued with the job that it was started with.

    Raises:
        RunError: it is another one.
    """
    if path.exists() and path.read_text(encoding="utf-8") != job:
        values = differing([read_yaml(path), yaml.safe_load(job)])
        found = ", ".join(f"{key} was {before}, is {now}" for key, (before, now) in values.items())
        about = f" ({found})" if found else ""
        raise RunError(
            f"{path.parent}: was started with another job{about}; give another --out, or the job of its job.yaml"
        )


def _train(folder: RunFolder, arm: Arm, training: Training, reporter: Reporter) -> None:
    """One training, unless it is done already or lies in the cache."""
    seed = training.seed
    target = folder.training(arm.name, seed)
    cached = _cached(arm, training.data, seed)
    if agreed(_is_there(folder, arm, seed, cached) if rank() == 0 else False):
        return
    with reporter.training(f"{arm.name}, seed {seed}") as listen:
        fit(training, target, listen)
    if rank() == 0:
        if cached is not None:
            link_tree(target, cached, replace=False)
        scored = read_scores(target / "scores" / f"{training.plan.student.name}.valid.parquet")
        reporter.say(f"{arm.name}, seed {seed}: {len(scored.label_N)} validation rows scored")


def _is_there(folder: RunFolder, arm: Arm, seed: int, cached: Path | None) -> bool:
    """Whether a training is done; one that another run has cached is linked here."""
    if not folder.is_done(arm.name, seed) and cached is not None and cached.exists():
        link_tree(cached, folder.training(arm.name, seed))
    if folder.is_done(arm.name, seed):
        tidy(folder.training(arm.name, seed))
        return True
    return False


def _cached(arm: Arm, data: Data, seed: int) -> Path | None:
    """Where a control's training lies in the cache; the job itself, and whatever has code of its own, is trained."""
    kept = {"members", "phases", "train", "label", "privileged", "feeds", "graph", "ranking"}
    described = arm.job.model_dump(mode="json", include=kept)
    if arm.name == MAIN or uses_own(described):
        return None
    parts = [described, arm.shuffle_privileged, seed]
    logs = [log.fingerprint for part in (data.tuning, data.final) for log in (part.log, *part.feeds.values())]
    key = fingerprint([parts, logs, made_before(arm.job), manifest([], {})])
    return cache_folder("trainings") / key


def made_before(job: Job) -> dict[str, str]:
    """A hash of everything that earlier runs have made and this one reads: recorded scores, and parameters."""
    found = {}
    for name, member in job.members.items():
        if member.scores is not None:
            found[f"scores {name}"] = file_fingerprint(Path(member.scores.file))
        for key, source in (("frozen", member.frozen), ("warm_start", member.warm_start)):
            if source is not None:
                run = Path(source.run)
                seed = chosen_seed(run) if source.seed is None else source.seed
                files = sorted((run / f"seed_{seed}" / "checkpoints" / "final").glob("*"))
                found[f"{key} {name}"] = fingerprint([seed, *(file_fingerprint(file) for file in files)])
    return found


def collect(
    folder: RunFolder,
    plans: Sequence[tuple[Arm, Plan]],
    data: Data,
    seeds: list[int],
    label: str | None = None,
    *,
    student: str | None = None,
) -> Results:
    """What all trainings have answered, and warnings about the data.

    Args:
        folder: the run.
        plans: the job and its controls.
        data: the encoded logs.
        seeds: the seeds.
        label: a label whose rows are looked at; by default the lists of a job about lists, or the main label.
        student: the member that is judged beside its controls, by default the serving one.
    """
    student = student or plans[0][1].student.name
    if label is None and plans[0][1].ranking is not None:
        return _collect_lists(folder, plans, OfLists(plans[0][1].ranking.metric), seeds, student)
    label = None if label == plans[0][1].columns[0] else label

    def scores(arm: str, member: str) -> dict[str, list[Scored]]:
        parts = {
            split: [folder.training(arm, s) / "scores" / f"{member}.{split}.parquet" for s in seeds] for split in SPLITS
        }
        return {split: [read_scores(path, label) for path in paths] for split, paths in parts.items()}

    main, *controls = _judging(plans, student)
    shown = [m for m in main[1].scored if m.name not in main[1].repeats]
    number = 0 if label is None else main[1].columns.index(label)
    return Results(
        student=student,
        seeds=seeds,
        members={m.name: scores(MAIN, m.name) for m in shown if number in m.labels},
        controls={arm.control: scores(arm.name, _name_in(arm, plan, main[1], student)) for arm, plan in controls},
        references=references(data.final.log, main[1].columns[0]) if label is None else {},
        warnings=column_warnings(data.tuning.log, main[0].job, label or main[1].columns[0]),
        second_names=[m.name for m in shown if m.same == student],
    )


def _collect_lists(
    folder: RunFolder, plans: Sequence[tuple[Arm, Plan]], measure: OfLists, seeds: list[int], student: str
) -> Results:
    """How good the lists of all trainings are."""

    def lists(arm: str, member: str) -> BySplit:
        return {split: [measure.read(folder.training(arm, s), member, split) for s in seeds] for split in SPLITS}

    main, *controls = _judging(plans, student)
    return Results(
        student=student,
        seeds=seeds,
        members={m.name: lists(MAIN, m.name) for m in main[1].ranked if m.name not in main[1].repeats},
        controls={arm.control: lists(arm.name, _name_in(arm, plan, main[1], student)) for arm, plan in controls},
        measure=measure,
    )


def _judging(plans: Sequence[tuple[Arm, Plan]], student: str) -> list[tuple[Arm, Plan]]:
    """The job and the controls of this student."""
    return [(arm, plan) for arm, plan in plans if arm.of in (None, student)]


def _name_in(arm: Arm, plan: Plan, main: Plan, student: str) -> str:
    """The student's name in a control, where ``student_0`` becomes ``student``."""
    serves = student == main.student.name or arm.of == student
    return plan.student.name if serves else student


def _has_both_classes(results: Results) -> bool:
    """Whether the labelled rows hold clicks and others, as an AUC needs."""
    return len(np.unique(results.members[results.student]["test"][0].label_N)) > 1


def over_seeds(findings: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """What the trainings of a job have found, each finding over those seeds that have made it."""
    names = dict.fromkeys(name for each in findings for name in each)
    values = {name: [each[name] for each in findings if name in each] for name in names}
    return {name: {"mean": float(np.mean(found)), "per_seed": found} for name, found in values.items()}


def best_seed(results: Results) -> int:
    """The seed whose student is best on validation."""
    valid = results.members[results.student]["valid"]
    return results.seeds[int(np.argmax([results.measure.value(answer) for answer in valid]))]


def describe(job: Job, data: Data) -> dict[str, Any]:
    """The job as the report describes it."""
    return {
        "row": job.row,
        "paper": job.paper,
        "about": job.about,
        "label": job.label,
        "privileged": job.privileged,
        "rows": data.final.log.rows,
    }
