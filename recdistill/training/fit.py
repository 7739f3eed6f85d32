"""One training: a plan and a seed become parameters, scores and a log of metrics in one folder.

    seed_0/
      metrics.jsonl                    losses and validation metrics of every stage
      checkpoints/final/               parameters of all members
      scores/teacher.test.parquet      row_id, label, group, logit, score; for valid and test
      scores/as_served/                of members judged on distorted rows: what they answer to the rows as they are
      fit.json                         steps of each phase (taken; kept and planned on validation), findings, seconds;
                                       written last

With ``refit`` the job is trained twice: first on ``train`` to learn from ``valid`` how many steps each phase takes,
then on both for as many epochs. Validation scores come from the first training, test scores and parameters from the
second.
"""

import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recdistill.data.encoded import EncodedLog
from recdistill.data.permute import permute_privileged
from recdistill.data.reader import Reader, Selection, Thinning
from recdistill.data.recorded import RecordedScores
from recdistill.data.scores import AS_SERVED, write_scores
from recdistill.data.unknown import Forgetting
from recdistill.distill.compile import Plan
from recdistill.distill.layout import is_embedded, lay_out
from recdistill.distill.member import Member
from recdistill.distill.signal import Scenario, walk
from recdistill.errors import LogError
from recdistill.spec.members import FromRun, Recorded
from recdistill.spec.phases import LOG
from recdistill.spec.train import TrainSpec
from recdistill.training import checkpoint, resume
from recdistill.training.cast import Cast
from recdistill.training.engine import Engine
from recdistill.training.feeds import Feed, LogFeed, MixFeed, NoiseFeed
from recdistill.training.findings import findings
from recdistill.training.processes import barrier, rank
from recdistill.training.resume import LATEST, Progress, Stopped
from recdistill.training.runlog import Event, Listener, RunLog, silent
from recdistill.training.sharding import Tables, process_group
from recdistill.training.warm_start import warm_start

DONE = "fit.json"


@dataclass(frozen=True)
class Logs:
    """The encoded log of a training, and the other logs that its feeds read."""

    log: EncodedLog
    feeds: Mapping[str, EncodedLog] = field(default_factory=dict)


@dataclass(frozen=True)
class Data:
    """The encoded logs of a run: to tune on, and for the final parameters (the same ones without ``refit``)."""

    tuning: Logs
    final: Logs

    @classmethod
    def of(cls, log: EncodedLog) -> "Data":
        """One log for everything."""
        return cls(Logs(log), Logs(log))


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
        _check_recorded(engine, training.plan, data.tuning.log)
        phases = training.plan.phases
        planned = [engine.planned_steps(phase) for phase in phases]
        kept = self.before.tuned if self.before else None
        if kept is None:
            kept = self._stage("tune" if refit else "train", engine, None, None)
            score_split(engine, _reader(training, data.tuning.log, ("valid",), self.folder), "valid", self.folder)
        steps = kept
        if refit:
            before = [engine.rows_of(phase) for phase in phases]
            engine = _engine(training, data.final, ("train", "valid"), self.folder, self._heard)
            after = [engine.rows_of(phase) for phase in phases]
            lengths = [round(count * new / old) for count, new, old in zip(kept, after, before, strict=True)]
            steps = self._stage("refit", engine, lengths, kept)
        score_split(engine, _reader(training, data.final.log, ("test",), self.folder), "test", self.folder)
        checkpoint.save(engine.cast, self.folder / "checkpoints" / "final")
        found = findings(engine, training.plan, _reader(training, data.tuning.log, ("valid",), self.folder))
        summary = {"seed": training.seed, "steps": steps, "kept": kept, "planned": planned, "findings": found}
        return engine.cast, summary

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
    """Nothing, if there are recorded scores of all rows that they are asked for, now or at the end of training."""
    for name, scores in engine.cast.recorded.items():
        for split in ("train", "valid", "test"):
            scores.read(torch.from_numpy(reader_of(plan, log, (split,)).row_ids()))
        for feed in {u.feed for phase in plan.phases for u in phase.updates if name in u.members}:
            scores.read(engine.feeds[feed].row_ids())


def build_cast(plan: Plan, settings: TrainSpec, log: EncodedLog, *, seed: int, warm: bool = True) -> Cast:
    """The members of a plan with initial parameters; with ``warm`` those of another run for whom the job says so."""
    layout = lay_out(plan.members, log.spec, log.fitted.tables)
    rarity = rarity_by_table(log) if settings.tables.step.l2_rare else {}
    by_name = {member.name: member for member in plan.members}
    originals = {n: o for n, m in by_name.items() if (o := _original(m, by_name)) is not m}
    follows = {name: (original.name, *original.share.table_owners) for name, original in originals.items()}
    tables = Tables(layout, settings.tables, std=settings.table_std, seed=seed, rarity=rarity, follows=follows)
    recorded = {}
    for member in plan.members:
        if isinstance(member.origin, Recorded):
            recorded[member.name] = RecordedScores.open(
                Path(member.origin.file), [plan.columns[k] for k in member.labels]
            )
    cast = Cast(
        plan.members, layout, tables, log.spec, precision=settings.precision, seed=seed, recorded=recorded
    )  # fmt: skip
    for member in plan.members if warm else ():
        if isinstance(member.origin, FromRun):
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


def selection(plan: Plan, log: EncodedLog, feed: str | None = None, *, lists: bool = False) -> Selection:
    """The columns that some member reads, embedded ones in the order of lookup; or only those of a feed's updates."""
    updates = [u for phase in plan.phases for u in phase.updates if feed in (None, u.feed)]
    names = {name for update in updates for name in update.members}
    members = [member for member in plan.members if feed is None or member.name in names]
    terms = [term for update in updates for term in update.terms]
    looked_at = [part for thing in (*terms, *(s for m in members for s in m.signals)) for part in walk(thing)]
    scenarios = plan.scenario and any(isinstance(part, Scenario) for part in looked_at)
    listed = lists or any(term.scope == "list" for term in terms)
    serving, privileged = (_read_by(members, plan, log, audience) for audience in ("serving", "privileged"))
    return Selection(serving, privileged, plan.columns, listed, scenarios)


def _read_by(members: Sequence[Member], plan: Plan, log: EncodedLog, audience: str) -> tuple[str, ...]:
    """All columns of an audience, in the order in which the banks look them up, so that a batch needs no reordering."""
    wanted = dict.fromkeys(column for member in members for column in getattr(member, audience))
    layout = lay_out(plan.members, log.spec, log.fitted.tables)
    looked_up = [f.column for bank in layout.banks.values() for f in bank.features if f.column in wanted]
    return tuple(dict.fromkeys([*looked_up, *(c for c in wanted if not is_embedded(log.spec, c))]))


def _engine(training: Training, logs: Logs, splits: tuple[str, ...], folder: Path, listen: Listener) -> Engine:
    settings, log = training.settings, logs.log
    thinning = Thinning(training.seed, settings.keep_labels, settings.negative_keep_rate)
    train = _reader(training, log, splits, folder, thinning, lists=settings.whole_lists)
    train.forgetting = Forgetting.of(log.fitted, settings.unknown, training.seed)
    train.whole_lists = settings.whole_lists
    valid = _reader(training, log, ("valid",), folder) if "valid" not in splits else None
    cast = build_cast(training.plan, settings, log, seed=training.seed)
    feeds = _feeds(training, logs, train, folder)
    return Engine(cast, train, valid, settings, training.seed, listen, feeds)


def _feeds(training: Training, logs: Logs, train: Reader, folder: Path) -> dict[str, Feed]:
    """The feeds besides the log; a mixture reads of all its parts what its own updates need."""
    plan = training.plan

    def of_log(name: str, reads_for: str) -> LogFeed:
        lists = train.whole_lists and LOG in plan.feeds[reads_for].mix
        chosen = selection(plan, train.log, reads_for, lists=lists)
        if name == LOG:
            return LogFeed(replace(train, selection=chosen))
        log = logs.feeds[name]
        _refuse_lacking(plan, log, chosen, name, reads_for)
        # all rows of a log from which nothing is learned form the test split
        post_event = _permuted(training, log, ("test",), folder)
        return LogFeed(Reader(log, ("test",), chosen, post_event=post_event, forgetting=train.forgetting))

    feeds: dict[str, Feed] = {}
    used = {update.feed for phase in plan.phases for update in phase.updates}
    for name, feed in ((name, feed) for name, feed in plan.feeds.items() if name in used):
        if feed.noise is not None:
            feeds[name] = NoiseFeed(feed.noise)
        elif feed.mix:
            feeds[name] = MixFeed(tuple(of_log(part, name) for part in feed.mix), tuple(feed.mix.values()))
        else:
            feeds[name] = of_log(name, name)
    return feeds


def _refuse_lacking(plan: Plan, log: EncodedLog, chosen: Selection, name: str, reads_for: str) -> None:
    """Nothing, if another log holds what is read of it.

    Raises:
        LogError: it does not.
    """
    lacking = [column for column in chosen.privileged if column not in log.spec.post_event]
    readers = [
        member.name
        for member in plan.members
        if {*lacking} & {*member.privileged}
        and any(u.feed == reads_for and member.name in u.members for phase in plan.phases for u in phase.updates)
    ]
    roles = [("group", chosen.groups), ("scenario", chosen.scenarios)]
    lacking += [f"the spec's {role}" for role, read in roles if read and getattr(log.spec, role) is None]
    if lacking:
        who = f"{', '.join(readers)} read" if readers else "terms look at"
        raise LogError(
            f"feeds.{name}: {plan.feeds[name].log} lacks {', '.join(lacking)}, which {who} on the feed {reads_for!r}; "
            "add what is missing to that log, or give them another feed"
        )


def reader_of(plan: Plan, log: EncodedLog, splits: tuple[str, ...]) -> Reader:
    """All rows of some splits, with the columns that a plan needs."""
    return Reader(log, splits, selection(plan, log))


def _reader(
    training: Training,
    log: EncodedLog,
    splits: tuple[str, ...],
    folder: Path,
    thinning: Thinning | None = None,
    *,
    lists: bool = False,
) -> Reader:
    chosen = selection(training.plan, log, lists=lists)
    return Reader(log, splits, chosen, thinning or Thinning(), _permuted(training, log, splits, folder))


def _permuted(training: Training, log: EncodedLog, splits: tuple[str, ...], folder: Path) -> Path | None:
    """Where the privileged columns of a log lie that were permuted over its rows, if the training asks for it."""
    read = dict.fromkeys(column for member in training.plan.members for column in member.privileged)
    privileged = tuple(column for column in read if column in log.spec.post_event)
    if not training.shuffle_privileged or not privileged:
        return None
    post_event = folder / f".shuffled-{rank()}" / log.fingerprint
    for split in splits:
        if not (post_event / split).exists():
            permute_privileged(log, split, privileged, seed=training.seed, out=post_event)
    return post_event


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
