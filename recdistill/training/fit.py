"""One training: a plan and a seed become parameters, scores and a log of metrics in one folder.

    seed_0/
      metrics.jsonl                    losses and validation metrics of every stage
      checkpoints/final/               parameters of all members
      scores/teacher.test.parquet      row_id, label, group, logit, score; for valid and test
      fit.json                         steps of each phase (taken; kept and planned on validation), seconds; written
      last

With ``refit`` the job is trained twice: first on ``train`` to learn from ``valid`` how many steps each phase takes,
then on both for as many epochs. Validation scores come from the first training, test scores and parameters from the
second.
"""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdistill.data.encoded import EncodedLog
from recdistill.data.permute import permute_privileged
from recdistill.data.reader import Reader, Selection, Thinning
from recdistill.data.scores import write_scores
from recdistill.data.unknown import Forgetting
from recdistill.distill.compile import Plan
from recdistill.distill.layout import is_embedded, lay_out
from recdistill.spec.train import TrainSpec
from recdistill.training import checkpoint, resume
from recdistill.training.cast import Cast
from recdistill.training.engine import Engine, Event, Listener, silent
from recdistill.training.processes import barrier, rank
from recdistill.training.resume import LATEST, Progress, Stopped
from recdistill.training.runlog import RunLog
from recdistill.training.sharding import Tables, process_group
from recdistill.training.warm_start import warm_start

DONE = "fit.json"


@dataclass(frozen=True)
class Data:
    """The encoded logs of a run: to tune on, and for the final parameters (the same one without ``refit``)."""

    tuning: EncodedLog
    final: EncodedLog


@dataclass(frozen=True)
class Training:
    """One training of a run.

    Attributes:
        plan: members and phases.
        settings: the job's training settings.
        data: the encoded logs.
        seed: of everything that is drawn.
        shuffle_privileged: whether privileged columns are permuted over the rows.
    """

    plan: Plan
    settings: TrainSpec
    data: Data
    seed: int
    shuffle_privileged: bool = False


def fit(training: Training, folder: Path, listen: Listener = silent) -> Cast:
    """Train, score and save; returns the members with their final parameters.

    Raises:
        TrainingError: training cannot go on.
    """
    started = time.monotonic()
    if training.settings.threads is not None:
        torch.set_num_threads(training.settings.threads)
    with process_group():
        before = resume.read(folder)
        barrier()
        if before is None and rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        barrier()
        metrics = folder / "metrics.jsonl" if rank() == 0 else Path(os.devnull)
        with RunLog(metrics, keep=before.log_bytes if before and rank() == 0 else 0) as log:
            cast, summary = _Fit(training, folder, log, listen, before).run()
        summary["seconds"] = round(time.monotonic() - started, 3)
        if rank() == 0:
            _finish(folder, summary)
        barrier()
    return cast


def _finish(folder: Path, summary: dict[str, Any]) -> None:
    """Say that a training is complete."""
    shutil.rmtree(folder / LATEST, ignore_errors=True)
    for shuffled in folder.glob(".shuffled-*"):
        shutil.rmtree(shuffled)
    (folder / DONE).write_text(json.dumps(summary), encoding="utf-8")


@dataclass
class _Fit:
    """The stages of one training: ``train``, or with ``refit`` first ``tune`` and then ``refit``."""

    training: Training
    folder: Path
    log: RunLog
    listen: Listener
    before: Progress | None

    def run(self) -> tuple[Cast, dict[str, Any]]:
        """Train and score; returns the members and what ``fit.json`` says about the training."""
        training, data, refit = self.training, self.training.data, self.training.settings.refit
        engine = _engine(training, data.tuning, ("train",), self.folder, self._heard)
        planned = [engine.planned_steps(phase) for phase in training.plan.phases]
        kept = self.before.tuned if self.before else None
        if kept is None:
            kept = self._stage("tune" if refit else "train", engine, None, None)
            score_split(engine, _reader(training, data.tuning, ("valid",), self.folder), "valid", self.folder)
        steps = kept
        if refit:
            rows = engine.rows
            engine = _engine(training, data.final, ("train", "valid"), self.folder, self._heard)
            steps = self._stage("refit", engine, [round(count * engine.rows / rows) for count in kept], kept)
        score_split(engine, _reader(training, data.final, ("test",), self.folder), "test", self.folder)
        checkpoint.save(engine.cast, self.folder / "checkpoints" / "final")
        return engine.cast, {"seed": training.seed, "steps": steps, "kept": kept, "planned": planned}

    def _stage(self, stage: str, engine: Engine, lengths: list[int] | None, tuned: list[int] | None) -> list[int]:
        """Run all phases, from where an earlier attempt stood; the steps behind the parameters of each."""
        self.log.stage = stage
        before = self.before if self.before and self.before.stage == stage else None
        steps = list(before.steps) if before else []
        for i in range(len(steps), len(self.training.plan.phases)):

            def save(stopped: Stopped, phase: int = i) -> None:
                progress = Progress(stage, phase, list(steps), tuned, self.log.length, stopped)
                resume.write(progress, self.folder)

            stopped = before.stopped if before and before.phase == i else None
            length = lengths[i] if lengths else None
            steps.append(engine.run(i, self.training.plan.phases[i], length, stopped=stopped, save=save))
        return steps

    def _heard(self, event: Event) -> None:
        self.log.write(event)
        self.listen(event)


def build_cast(plan: Plan, settings: TrainSpec, log: EncodedLog, *, seed: int, warm: bool = True) -> Cast:
    """The members of a plan with initial parameters; with ``warm`` those of another run for whom the job says so."""
    layout = lay_out(plan.members, log.spec, log.fitted.tables)
    rarity = rarity_by_table(log) if settings.tables.step.l2_rare else {}
    tables = Tables(layout, settings.tables, std=settings.table_std, seed=seed, rarity=rarity)
    cast = Cast(plan.members, layout, tables, log.spec, labels=plan.labels, precision=settings.precision, seed=seed)
    for member in plan.members:
        if warm and member.warm_start is not None:
            warm_start(cast, member, member.warm_start, log.fitted)
    return cast


def rarity_by_table(log: EncodedLog) -> dict[str, Tensor]:
    """1 / n for each row of a table with a vocabulary, where its value occurs n times in training."""
    found = {}
    for table in log.fitted.tables:
        counts = log.fitted.counts(table)
        if counts is not None:
            found[table] = torch.from_numpy(np.where(counts > 0, 1 / np.maximum(counts, 1), 0).astype(np.float32))
    return found


def selection(plan: Plan, log: EncodedLog) -> Selection:
    """The columns that some member reads, embedded ones in the order of lookup."""
    serving = _read_by(plan, log, "serving")
    lists = any(term.per_list for phase in plan.phases for term in phase.terms)
    return Selection(serving, _read_by(plan, log, "privileged"), plan.columns, lists)


def _read_by(plan: Plan, log: EncodedLog, audience: str) -> tuple[str, ...]:
    """All columns of an audience, in the order in which the banks look them up, so that a batch needs no reordering."""
    wanted = dict.fromkeys(column for member in plan.members for column in getattr(member, audience))
    layout = lay_out(plan.members, log.spec, log.fitted.tables)
    looked_up = [f.column for bank in layout.banks.values() for f in bank.features if f.column in wanted]
    return tuple(dict.fromkeys([*looked_up, *(c for c in wanted if not is_embedded(log.spec, c))]))


def _engine(training: Training, log: EncodedLog, splits: tuple[str, ...], folder: Path, listen: Listener) -> Engine:
    thinning = Thinning(training.seed, training.settings.keep_labels, training.settings.negative_keep_rate)
    train = _reader(training, log, splits, folder, thinning)
    train.forgetting = Forgetting.of(log.fitted, training.settings.unknown, training.seed)
    valid = _reader(training, log, ("valid",), folder) if "valid" not in splits else None
    cast = build_cast(training.plan, training.settings, log, seed=training.seed)
    return Engine(cast, train, valid, training.settings, training.seed, listen)


def reader_of(plan: Plan, log: EncodedLog, splits: tuple[str, ...]) -> Reader:
    """All rows of some splits, with the columns that a plan needs."""
    return Reader(log, splits, selection(plan, log))


def _reader(
    training: Training, log: EncodedLog, splits: tuple[str, ...], folder: Path, thinning: Thinning | None = None
) -> Reader:
    chosen = selection(training.plan, log)
    post_event = None
    if training.shuffle_privileged and chosen.privileged:
        post_event = folder / f".shuffled-{rank()}" / log.fingerprint
        for split in splits:
            if not (post_event / split).exists():
                permute_privileged(log, split, chosen.privileged, seed=training.seed, out=post_event)
    return Reader(log, splits, chosen, thinning or Thinning(), post_event)


def score_split(engine: Engine, reader: Reader, split: str, folder: Path) -> None:
    """One score file per member for a split."""
    logits, row_id_N, labels = engine.score(list(engine.cast.members), reader)
    if rank() > 0:
        return
    predicted = {name: labels[name] for name in reader.selection.labels[: engine.cast.labels]}
    for name, logits_NK in logits.items():
        path = folder / "scores" / f"{name}.{split}.parquet"
        write_scores(path, row_id_N=row_id_N, labels=predicted, logits_NK=logits_NK, roles=reader.log.roles(split))
