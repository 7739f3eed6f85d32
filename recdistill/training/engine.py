"""The training loop. It knows members, terms and phases, and no method by name.

One step of a phase:

    look up each bank once -> detached leaves -> every member answers once -> terms, one scalar -> backward
    -> gradients of the leaves into the tables (which step at once) -> dense optimizers step
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.reader import Reader
from recdistill.distill.member import Phase
from recdistill.distill.signal import Scene
from recdistill.distill.term import Term, reduce
from recdistill.errors import TrainingError
from recdistill.evaluation import auc, log_loss
from recdistill.spec.train import TrainSpec
from recdistill.training.cast import Cast
from recdistill.training.optimizers import dense_optimizers
from recdistill.training.processes import add_up, rank, share_of, world
from recdistill.training.resume import Stopped, capture, restore

Scores = dict[str, NDArray[np.float32]]
EVALUATION_BATCH = 8192


@dataclass(frozen=True)
class Event:
    """Something that happened while training, for logs and progress bars.

    Attributes:
        kind: ``step`` or ``evaluation``.
        phase: number of the phase.
        step: steps taken in the phase.
        planned: steps that the phase takes at most.
        values: losses of the terms, or metrics of members, by name.
    """

    kind: str
    phase: int
    step: int
    planned: int
    values: dict[str, float]


Listener = Callable[[Event], None]
Save = Callable[[Stopped], None]


def silent(event: Event) -> None:
    """A listener that does nothing."""
    del event


@dataclass
class Engine:
    """Trains the members of a cast on the rows of a reader.

    Attributes:
        cast: the members.
        train: the rows to train on.
        valid: the rows that stop rules look at; without them a phase runs to its end.
        settings: the job's training settings.
        seed: of row order, dropout and signals.
        listen: called after steps and evaluations.
    """

    cast: Cast
    train: Reader
    valid: Reader | None
    settings: TrainSpec
    seed: int
    listen: Listener = silent

    def __post_init__(self) -> None:
        self.rows = self.train.rows()
        self.epochs_read = 0
        torch.manual_seed(self.seed + 7919 * rank())  # of dropout, which processes draw apart from each other

    def planned_steps(self, phase: Phase) -> int:
        """The steps that a phase takes unless its stop rule ends it."""
        per_epoch = math.ceil(self.rows / self.settings.batch)
        return phase.steps or (phase.epochs or 1) * per_epoch

    def run(
        self,
        index: int,
        phase: Phase,
        steps: int | None = None,
        *,
        stopped: Stopped | None = None,
        save: Save | None = None,
    ) -> int:
        """Train one phase.

        Args:
            index: its number, for logs.
            phase: the phase.
            steps: how many steps to take, without evaluation; by default the phase's own length and stop rule hold.
            stopped: where an earlier attempt stood; it goes on from there.
            save: called with where the phase stands, at its start and every ``checkpoint_every`` steps.

        Returns:
            The number of steps behind the parameters that are kept.

        Raises:
            TrainingError: a loss became infinite or NaN.
        """
        planned = self.planned_steps(phase)
        last = steps if steps is not None else planned
        watch = Watch(self, index, phase) if steps is None and self.valid is not None else None
        optimizers = dense_optimizers(
            [m for n, m in self.cast.members.items() if n in phase.trained], self.cast.heads, self.settings.dense
        )
        first, began = 0, self.epochs_read
        if stopped is not None:
            first, began = stopped.step, stopped.epoch
            kept = restore(stopped.tensors, self.cast, optimizers)
            if watch is not None:
                watch.best, watch.best_step = stopped.best, stopped.best_step
                watch.unimproved, watch.kept = stopped.unimproved, kept
        elif save is not None:
            save(self._stopped(0, began, optimizers, watch))
        for step, batch in enumerate(self._batches(last, first, began), first):
            losses = self.step(phase, batch, step, planned, optimizers)
            if step % 50 == 0 or step == last - 1:
                self._report(index, step, planned, losses)
            if watch is not None and watch.is_due(step + 1, last, math.ceil(self.rows / self.settings.batch)):
                watch.look(step + 1, planned)
                if watch.exhausted:
                    break
            if save is not None and (step + 1) % (self.settings.checkpoint_every or last) == 0 and step + 1 < last:
                save(self._stopped(step + 1, began, optimizers, watch))
        return watch.finish(last) if watch is not None else last

    def _stopped(
        self, step: int, epoch: int, optimizers: list[torch.optim.Optimizer], watch: "Watch | None"
    ) -> Stopped:
        tensors = capture(self.cast, optimizers, watch.kept if watch else {})
        if watch is None:
            return Stopped(step, epoch, math.inf, 0, 0, tensors)
        return Stopped(step, epoch, watch.best, watch.best_step, watch.unimproved, tensors)

    def _batches(self, steps: int, first: int, epoch: int) -> Iterator[Batch]:
        """The batches of the steps from ``first`` on, where the phase began with an epoch.

        The next phase goes on with the next epoch.
        """
        per_epoch = math.ceil(self.rows / self.settings.batch)
        self.epochs_read = epoch + first // per_epoch
        taken, skipped = first, first % per_epoch
        while taken < steps:
            batches = self.train.shuffled(self.settings.batch, seed=self.seed, epoch=self.epochs_read)
            for batch in itertools.islice(batches, skipped, None):
                yield batch
                taken += 1
                if taken == steps:
                    break
            skipped = 0
            self.epochs_read += 1

    def step(
        self, phase: Phase, batch: Batch, step: int, planned: int, optimizers: list[torch.optim.Optimizer]
    ) -> dict[str, Tensor]:
        """One step; returns the value of each term that has a weight, of this process's rows."""
        rows, batch = len(batch), share_of(batch)
        names = sorted(phase.members)
        lookups = self.cast.look_up(names, batch, phase.trained)
        scene = Scene(self.cast.answer(names, lookups, batch, phase.trained), batch, self.seed, step)
        losses = {}
        total: Tensor | None = None
        for term in phase.terms:
            weight = term.weight(step, planned)
            if weight == 0:
                continue
            losses[term.words] = value = term_value(term, scene)
            total = value * weight if total is None else total + value * weight
        if total is None:
            return losses
        total.backward()
        tables = self.settings.tables.step
        for lookup in lookups.values():
            lookup.push(tables.l2 / rows, tables.l2_rare / rows)
        for optimizer in optimizers:
            sum_gradients(optimizer)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return losses

    def _report(self, index: int, step: int, planned: int, losses: dict[str, Tensor]) -> None:
        values = {words: float(add_up(value.detach().clone())) for words, value in losses.items()}
        for words, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"phase {index}, step {step}: the term {words!r} is {value}; lower the learning rates, or look for "
                    "extreme values in its columns"
                )
        self.listen(Event("step", index, step + 1, planned, values))

    def score(
        self, names: list[str], reader: Reader
    ) -> tuple[Scores, NDArray[np.int64], dict[str, NDArray[np.float32]]]:
        """Logits (rows, labels) of members, row ids and raw labels, in the order of the log.

        Nothing of training changes. Logits are corrected for the share of negatives that training left out.

        Raises:
            TrainingError: a member has diverged.
        """
        logits: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        row_ids: list[NDArray[np.int64]] = []
        labels: dict[str, list[NDArray[np.float32]]] = {name: [] for name in reader.selection.labels}
        with torch.no_grad():
            for batch in reader.in_order(EVALUATION_BATCH):
                outputs = self.cast.answer(names, self.cast.look_up(names, batch, frozenset()), batch)
                for name in names:
                    logits[name].append(outputs[name].logits_BK.cpu().numpy())
                row_ids.append(batch.row_id_B.numpy())
                for name, parts in labels.items():
                    parts.append(batch.labels[name].numpy())
        shift = np.float32(math.log(self.settings.negative_keep_rate))
        scores = {name: np.concatenate(parts) + shift for name, parts in logits.items()}
        for name, values in scores.items():
            if not np.isfinite(values).all():
                raise TrainingError(
                    f"{name}: {int((~np.isfinite(values)).any(1).sum())} of {len(values)} scores are NaN or infinite; "
                    "lower its learning rates, or look for extreme values in its columns"
                )
        return scores, np.concatenate(row_ids), {name: np.concatenate(parts) for name, parts in labels.items()}


@dataclass
class Watch:
    """Follows the validation metric of a phase, remembers the best parameters, and says when to stop."""

    engine: Engine
    index: int
    phase: Phase
    best: float = math.inf
    best_step: int = 0
    unimproved: int = 0
    kept: dict[str, Tensor] = field(default_factory=dict)

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.phase.stop.patience is not None and self.unimproved >= self.phase.stop.patience

    def is_due(self, step: int, last: int, per_epoch: int) -> bool:
        """Whether to look after this step."""
        return step % (self.phase.stop.every or per_epoch) == 0 or step == last

    def look(self, step: int, planned: int) -> None:
        """Evaluate the trained members; lower is better, so an AUC counts with a minus."""
        assert self.engine.valid is not None
        trained = [name for name in self.engine.cast.members if name in self.phase.trained]
        metrics = evaluate(self.engine, trained, self.engine.valid)
        self.engine.listen(Event("evaluation", self.index, step, planned, metrics))
        student = [name for name in trained if self.engine.cast.members[name].serve]
        monitor = self.phase.stop.monitor
        values = [metrics[f"{name}.{monitor}"] for name in student or trained]
        value = float(np.mean(values)) * (-1 if monitor == "auc" else 1)
        if value < self.best:
            self.best, self.best_step, self.unimproved = value, step, 0
            if self.phase.stop.keep == "best":
                self.kept = {key: tensor.clone() for key, tensor in self.engine.cast.state(trained).items()}
        else:
            self.unimproved += 1

    def finish(self, last: int) -> int:
        """Return to the best parameters, if they are to be kept; the steps that led to the parameters now in place."""
        if self.phase.stop.keep == "last" or not self.kept:
            return last
        trained = [name for name in self.engine.cast.members if name in self.phase.trained]
        with torch.no_grad():
            for key, tensor in self.engine.cast.state(trained).items():
                tensor.copy_(self.kept[key])
        return self.best_step


def evaluate(engine: Engine, names: list[str], reader: Reader) -> dict[str, float]:
    """AUC and log loss of members on the main label, ``member.metric`` to value."""
    scores, _, labels = engine.score(names, reader)
    label = labels[reader.selection.labels[0]]
    known = ~np.isnan(label)
    found = {}
    for name, logits in scores.items():
        logit = logits[known, 0]
        found[f"{name}.auc"] = auc(label[known], logit)
        found[f"{name}.logloss"] = log_loss(label[known], logit)
    return found


def term_value(term: Term, scene: Scene) -> Tensor:
    """The scalar of a term: the weighted sum over its rows or lists by the global weight of what it is divided by."""
    loss, weight = term.losses(scene)
    total = add_up((scene.batch.weight_B if term.over == "batch" else weight).sum())
    return reduce(loss, weight, total)


def sum_gradients(optimizer: torch.optim.Optimizer) -> None:
    """Add up dense gradients over processes; losses are divided by global weights already."""
    for group in optimizer.param_groups if world() > 1 else ():
        for parameter in group["params"]:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            add_up(parameter.grad)
