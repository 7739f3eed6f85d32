"""One training: a plan and a seed become parameters, scores and a log of metrics in one folder.

    seed_0/
      metrics.jsonl                    losses and validation metrics of every stage
      checkpoints/final/               parameters of all members
      scores/teacher.test.parquet      row_id, label, group, logit, score; for valid and test
      scores/as_served/                of members judged on distorted rows: what they answer to the rows as they are
      rankings/teacher.test.parquet    how good a member's list is for each user, if the job judges lists
      fit.json                         steps of each phase (taken; kept and planned on validation), findings, visits of
                                       shared folders, seconds; written last

With ``refit`` the job is trained twice: first on ``train`` to learn from ``valid`` how many steps each phase takes,
then on both for as many epochs. Validation scores come from the first training, test scores and parameters from the
second.
"""

import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdistill.data.encoded import EncodedLog
from recdistill.data.keep_rates import correction
from recdistill.data.nodes import Nodes
from recdistill.data.reader import Reader
from recdistill.data.recorded import RecordedScores
from recdistill.data.scores import AS_SERVED, write_scores
from recdistill.data.thinning import Thinning
from recdistill.data.unknown import Forgetting
from recdistill.distill.checks import in_batch
from recdistill.distill.compile import Plan
from recdistill.distill.layout import lay_out
from recdistill.distill.member import Member
from recdistill.errors import TrainingError
from recdistill.evaluation.lists import write_lists
from recdistill.publish import remove, write_text
from recdistill.spec.members import FromRun, Recorded
from recdistill.spec.train import TrainSpec
from recdistill.training import checkpoint, resume
from recdistill.training.cast import Cast
from recdistill.training.engine import Engine
from recdistill.training.findings import findings
from recdistill.training.processes import barrier, rank, world
from recdistill.training.rankings import Rankings, events_of, lost_of, vectors_of
from recdistill.training.reading import Logs, Training, feeds_of, nodes_of, reader_for, reader_of
from recdistill.training.resume import LATEST, Progress, Stopped
from recdistill.training.runlog import Event, Listener, RunLog, silent
from recdistill.training.sharding import Tables, process_group
from recdistill.training.warm_start import refuse_other_negatives, warm_start

DONE = "fit.json"


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
            remove(folder)
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
    write_text(folder / DONE, json.dumps(summary))
    tidy(folder)


def tidy(folder: Path) -> None:
    """Remove what a complete training needs no more: where it stood, permuted columns, what killed processes left."""
    hidden = chain(folder.glob(".*"), (folder / LATEST).parent.glob(".*"))
    for path in (folder / LATEST, *hidden):
        remove(path)


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
        engine = engine_of(training, data.tuning, ("train",), self.folder, self._heard)
        _check_recorded(engine, training.plan, data.tuning.log)
        phases = training.plan.phases
        planned = [engine.planned_steps(phase) for phase in phases]
        kept = self.before.tuned if self.before else None
        if kept is None:
            kept = self._stage("tune" if refit else "train", engine, None, None)
            self._score(engine, data.tuning.log, "valid")
        steps = kept
        if refit:
            before = [engine.rows_of(phase) for phase in phases]
            engine = engine_of(training, data.final, ("train", "valid"), self.folder, self._heard)
            after = [engine.rows_of(phase) for phase in phases]
            lengths = [round(count * new / old) for count, new, old in zip(kept, after, before, strict=True)]
            steps = self._stage("refit", engine, lengths, kept)
        for name in engine.followers.silent & engine.cast.served:
            raise TrainingError(
                f"members.{name}: serves, but has copied nothing from {engine.cast.members[name].follows!r} in all of "
                "training; let it follow sooner, or train longer"
            )
        self._score(engine, data.final.log, "test")
        checkpoint.save(engine.cast, self.folder / "checkpoints" / "final")
        met = {copy: exchange.counts for exchange in engine.followers.exchanges for copy in exchange.copies}
        found = findings(engine, training.plan, reader_for(training, data.tuning.log, ("valid",), self.folder))
        counted = {"seed": training.seed, "steps": steps, "kept": kept, "planned": planned}
        return engine.cast, {**counted, "findings": found, "exchange": met}

    def _score(self, engine: Engine, log: EncodedLog, split: str) -> None:
        """Write what the members answer for a split, and how good their lists are."""
        score_split(engine, reader_for(self.training, log, (split,), self.folder), split, self.folder)
        watched = engine.rankings if split == "valid" else None
        rankings = watched or rankings_of(self.training.plan, log, split)
        if rankings is not None:
            rank_split(engine, rankings, [member.name for member in self.training.plan.ranked], split, self.folder)

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


def _check_recorded(engine: Engine, plan: Plan, log: EncodedLog) -> None:
    """Raise unless recorded scores exist for all rows that they are asked for, now or at the end of training."""
    for name, scores in engine.cast.recorded.items():
        for split in ("train", "valid", "test"):
            scores.read(torch.from_numpy(reader_of(plan, log, (split,)).row_ids()))
        for feed in {u.feed for phase in plan.phases for u in phase.updates if name in u.members}:
            scores.read(engine.feeds[feed].row_ids())


def build_cast(
    plan: Plan, settings: TrainSpec, log: EncodedLog, *, seed: int, warm: bool = True, nodes: Nodes | None = None
) -> Cast:
    """The members of a plan with initial parameters; with ``warm`` those of another run for whom the job says so."""
    layout = lay_out(plan.members, log.spec, log.fitted.tables)
    own = {member.name: member.tables for member in plan.members if member.tables is not None}
    rarity = rarity_by_table(log) if any(o.step.l2_rare for o in (settings.tables, *own.values())) else {}
    by_name = {member.name: member for member in plan.members}
    follows = {to: of for phase in plan.phases for to, of in phase.carry}
    follows |= {n: original for n, m in by_name.items() if (original := _original(m, by_name).name) != n}
    tables = Tables(layout, settings.tables, std=settings.table_std, seed=seed, rarity=rarity, follows=follows, own=own)
    recorded = {}
    for member in plan.members:
        if isinstance(member.origin, Recorded):
            labels = [plan.columns[k] for k in member.labels]
            shift_K = -correction(member.labels, log.spec.negative_keep_rate * settings.negative_keep_rate)
            recorded[member.name] = RecordedScores.open(Path(member.origin.file), labels, shift_K)
    cast = Cast(
        plan.members,
        layout,
        tables,
        log.spec,
        precision=settings.precision,
        seed=seed,
        recorded=recorded,
        nodes=nodes,
    )
    for member in plan.members if warm else ():
        if isinstance(member.origin, FromRun):
            refuse_other_negatives(member, member.origin, plan.columns[0], log.spec, settings)
            warm_start(cast, member, member.origin, log.fitted, exact=True)
        elif member.warm_start is not None:
            warm_start(cast, member, member.warm_start, log.fitted)
    return cast


def _original(member: Member, members: Mapping[str, Member]) -> Member:
    """The member whose parameters it has in the end, if it follows another one or is an edit of it."""
    while (of := member.follows or (member.edited[0] if member.edited else None)) is not None:
        member = members[of]
    return member


def rarity_by_table(log: EncodedLog) -> dict[str, Tensor]:
    """1 / n for each row of a table with a vocabulary, where its value occurs n times in training."""
    found = {}
    for table in log.fitted.tables:
        counts = log.fitted.counts(table)
        if counts is not None:
            found[table] = torch.from_numpy(np.where(counts > 0, 1 / np.maximum(counts, 1), 0).astype(np.float32))
    return found


def engine_of(training: Training, logs: Logs, splits: tuple[str, ...], folder: Path, listen: Listener) -> Engine:
    """The engine of a training on some splits, with members as they begin.

    Raises:
        TrainingError: a net normalises over batches, of which each of several processes sees a part.
    """
    settings, log = training.settings, logs.log
    for name in in_batch(training.plan.phases, {m.name: m for m in training.plan.members}) if world() > 1 else ():
        raise TrainingError(
            f"members.{name}.net: `norm: batch` would count statistics of its own in each of {world()} processes; "
            "train in one process, or take `norm: layer`"
        )
    thinning = Thinning(training.seed, settings.keep_labels, settings.negative_keep_rate)
    train = reader_for(training, log, splits, folder, thinning, lists=settings.whole_lists)
    train.forgetting = Forgetting.of(log.fitted, settings.unknown, training.seed)
    train.whole_lists = settings.whole_lists
    valid = reader_for(training, log, ("valid",), folder) if "valid" not in splits else None
    nodes = nodes_of(training.plan, log, splits)
    cast = build_cast(training.plan, settings, log, seed=training.seed, nodes=nodes)
    feeds = feeds_of(training, logs, train, nodes, folder)
    rankings = rankings_of(training.plan, log, "valid") if valid is not None else None
    return Engine(cast, train, valid, settings, training.seed, listen, feeds, rankings, training.since)


def rankings_of(plan: Plan, log: EncodedLog, split: str) -> Rankings | None:
    """How lists are judged on a split, if the job judges any."""
    if plan.graph is None or plan.ranking is None:
        return None
    before = ("train",) if split == "valid" else ("train", "valid")
    wanted, known = events_of(log, plan.graph, (split,)), events_of(log, plan.graph, before)
    if plan.ranking.sampled is None:
        return Rankings.of(plan.ranking, wanted, known)
    taken = events_of(log, plan.graph, ("train", "valid", "test"))
    return Rankings.of(plan.ranking, wanted, known, taken, lost_of(log, plan.graph, split))


def score_split(engine: Engine, reader: Reader, split: str, folder: Path) -> None:
    """One score file per member for a split, and one more for each that is judged on distorted rows."""
    scored = [name for name, member in engine.cast.members.items() if member.scored]
    _score(engine, reader, split, scored, folder / "scores")
    distorted = [name for name in scored if (how := engine.cast.members[name].distort) and how.scores is not None]
    if distorted:
        _score(engine, reader, split, distorted, folder / "scores" / AS_SERVED, as_served=True)


def _score(
    engine: Engine, reader: Reader, split: str, names: list[str], folder: Path, *, as_served: bool = False
) -> None:
    logits, row_id_N, labels = engine.score(names, reader, as_served=as_served)
    if rank() > 0:
        return
    for name, logits_NK in logits.items():
        numbers = engine.cast.members[name].labels
        predicted = {label: labels[label] for label in (reader.selection.labels[k] for k in numbers)}
        path = folder / f"{name}.{split}.parquet"
        roles, main = reader.log.roles(split), reader.selection.labels[0]
        write_scores(path, row_id_N=row_id_N, labels=predicted, logits_NK=logits_NK, roles=roles, main=main)


def rank_split(engine: Engine, rankings: Rankings, names: Sequence[str], split: str, folder: Path) -> None:
    """One file per member for a split: how good its list is for each user."""
    for name in names:
        judged = rankings.judge(vectors_of(engine.cast, name, seed=engine.seed))
        if rank() == 0:
            write_lists(folder / "rankings" / f"{name}.{split}.parquet", judged)
