"""The training loop. It knows members, updates and phases, and no method by name.

One update of a step:

    look up each bank once -> detached leaves -> members answer once, if asked -> terms, one scalar -> backward
    -> gradients of the leaves into the tables (which step at once) -> dense optimizers step

A step is the updates of its phase, one after the other; then followers follow.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.candidates import CandidateFeed
from recdistill.data.keep_rates import correction
from recdistill.data.reader import Reader
from recdistill.distill.member import Phase, Update
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Remembering
from recdistill.distill.term import Term
from recdistill.errors import TrainingError
from recdistill.spec.phases import LOG
from recdistill.spec.train import TrainSpec
from recdistill.training.cast import Cast
from recdistill.training.choose import choose
from recdistill.training.feeds import Cursor, Feed, LogFeed, unique_rows
from recdistill.training.followers import Followers
from recdistill.training.memory import Memory, memory_for, memory_of
from recdistill.training.optimizers import dense_optimizers, scale_learning_rates, sum_gradients
from recdistill.training.play import Lookups, Play, play
from recdistill.training.processes import add_up, rank, share_of
from recdistill.training.rankings import Rankings, top_places, vectors_of
from recdistill.training.resume import Stopped, capture, restore
from recdistill.training.runlog import Event, Listener, silent
from recdistill.training.value import divisor, term_value
from recdistill.training.watch import Watch

Scores = dict[str, NDArray[np.float32]]
Save = Callable[[Stopped], None]
Optimizers = list[torch.optim.Optimizer]
EVALUATION_BATCH = 8192
REPORT_EVERY = 50


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
        feeds: further rows, by name.
        rankings: how lists of items are judged on validation, if they are.
        since: when the run began; what others had left in shared folders by then is not heard.
    """

    cast: Cast
    train: Reader
    valid: Reader | None
    settings: TrainSpec
    seed: int
    listen: Listener = silent
    feeds: Mapping[str, Feed] = field(default_factory=dict)
    rankings: Rankings | None = None
    since: float = 0.0

    def __post_init__(self) -> None:
        self.feeds = {LOG: LogFeed(self.train), **self.feeds}
        self.cursors = {name: Cursor(feed, self.settings.batch, self.seed) for name, feed in self.feeds.items()}
        self.followers = Followers(self.cast, (self.train.log.fingerprint, self.seed), self.since)
        self.memories: dict[str, Memory] = {}
        self.generations: dict[str, int] = {}
        self.begun: set[str] = set()  # the members that some phase has trained
        torch.manual_seed(self.seed + 7919 * rank())  # of dropout, which processes draw apart from each other

    def planned_steps(self, phase: Phase) -> int:
        """The steps that a phase takes unless its stop rule ends it."""
        return phase.steps or (phase.epochs or 1) * self.steps_of(phase)

    def steps_of(self, phase: Phase) -> int:
        """Steps per epoch of the first feed; steps in which no update reads it do not consume it."""
        feed = phase.updates[0].feed
        everys = [update.every for update in phase.updates if update.feed == feed]
        cycle = math.lcm(*everys)
        read = sum(any(step % every == 0 for every in everys) for step in range(cycle))
        return math.ceil(self.feeds[feed].steps(self.settings.batch) * cycle / read)

    def rows_of(self, phase: Phase) -> int:
        """The rows of one epoch of a phase's first feed."""
        return self.feeds[phase.updates[0].feed].rows()

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
        self._remember(phase)
        if stopped is None:
            self._begin(index, phase)
        optimizers = [dense_optimizers(u.parts, self.cast, self.settings.dense) for u in phase.updates]
        first, per_epoch = 0, self.steps_of(phase)
        if stopped is not None:
            first = stopped.step
            self._go_on(stopped, optimizers, watch)
        elif save is not None:
            save(self._stopped(0, optimizers, watch))
        self.cast.moved(self.cast.members)  # since the phase before
        self.rank_candidates(phase)
        taken = first
        for step in range(first, last):
            now = Now(step, planned, tuple(watch.seen) if watch else (), step // per_epoch)
            self._set_rates(phase, now, optimizers)
            losses = self.step(phase, self._batches(phase, step), now, optimizers)
            taken = step + 1
            self._follow(index, phase, taken, planned)
            if step % REPORT_EVERY == 0 or taken == last:
                self._report(index, step, planned, losses)
            if watch is not None and watch.is_due(taken, last, per_epoch):
                watch.look(taken, planned)
                if watch.exhausted:
                    break
            if save is not None and taken % (self.settings.checkpoint_every or last) == 0 and taken < last:
                save(self._stopped(taken, optimizers, watch))
        for cursor in self.cursors.values():
            cursor.close()
        return watch.finish(taken) if watch is not None else taken

    def _begin(self, index: int, phase: Phase) -> None:
        """What happens before the first step of a phase."""
        self.followers.phase_begins(phase, first=index == 0)
        for name in phase.restart:
            self.generations[name] = self.generations.get(name, 0) + 1
            self.cast.begin_anew(name, self.generations[name])
        with torch.no_grad():
            for to, of in phase.carry:
                for mine, theirs in self.cast.pairs(to, of):
                    mine.copy_(theirs)
        for name in sorted(phase.trained - self.begun):
            self.cast.edit(name)
        self.begun |= phase.trained
        if self.valid is not None:
            for name, found in choose(self.cast, phase.members, self.valid).items():
                values = {f"{name}.{key}": value for key, value in found.items()}
                self.listen(Event("choice", index, 0, self.planned_steps(phase), values))
        for cursor in self.cursors.values():
            cursor.begin()
        self.cast.tables.set_learning_rate(1.0)

    def rank_candidates(self, phase: Phase) -> None:
        """The rankings that the candidates of a phase are drawn from, of members that it does not move."""
        for name in {update.feed for update in phase.updates}:
            feed = self.feeds[name]
            if isinstance(feed, CandidateFeed) and (ranked := feed.spec.ranked) is not None:
                vectors = vectors_of(self.cast, ranked.by, seed=self.seed)
                feed.order = top_places(vectors, feed.sides.positives, feed.spec.anchor, ranked.top)

    def _remember(self, phase: Phase) -> None:
        """Room for what the terms of a phase remember of the rows of its feeds; earlier phases may have filled it."""
        used = {update.feed for update in phase.updates if any(term.memories for term in update.terms)}
        rows = unique_rows({name: feed for name, feed in self.feeds.items() if name in used})
        for key, memory in phase.memories.items():
            self.memories.setdefault(key, memory_for(memory, rows)).admit(rows)

    def _batches(self, phase: Phase, step: int) -> dict[str, Batch]:
        """The next batch of every feed that an update of this step reads."""
        used = dict.fromkeys(update.feed for update in phase.updates if step % update.every == 0)
        return {name: next(self.cursors[name]) for name in used}

    def _set_rates(self, phase: Phase, now: Now, optimizers: Sequence[Optimizers]) -> None:
        """Scale all learning rates as the phase says."""
        if not phase.lr:
            return
        factor = math.prod(schedule.weight(now) for schedule in phase.lr)
        for group in optimizers:
            scale_learning_rates(group, factor)
        self.cast.tables.set_learning_rate(factor)

    def _follow(self, index: int, phase: Phase, step: int, planned: int) -> None:
        """Let followers follow, and tell what they have found of other processes."""
        if met := self.followers.step_taken(step, planned, phase):
            self.listen(Event("exchange", index, step, planned, met))

    def step(
        self, phase: Phase, batches: Mapping[str, Batch], now: Now, optimizers: Sequence[Optimizers]
    ) -> dict[str, Tensor]:
        """One step; returns the value of each term that has a weight, of this process's rows, by its name in logs."""
        losses: dict[str, Tensor] = {}
        for j, (update, own) in enumerate(zip(phase.updates, optimizers, strict=True)):
            if now.step % update.every == 0:
                found = self.update(update, batches[update.feed], now, own)
                losses |= {phase.called(j, words): value for words, value in found.items()}
        return losses

    def update(self, update: Update, batch: Batch, now: Now, optimizers: Optimizers) -> dict[str, Tensor]:
        """One move: the gradients of an update's terms into whatever it trains."""
        rows, batch = len(batch), share_of(batch)
        heard = [term for term in update.terms if not term.members & self.followers.silent]
        terms = [(term, weight) for term in heard if (weight := term.weight(now)) != 0]
        remembered = {memory.key: memory for term in heard for memory in term.memories}  # whatever a term weighs
        if not terms and not remembered:
            return {}
        self.cast.moved(update.trained)  # graphs pass their gradients on, so what they made before is of no use
        owned = self.cast.banks_of(name for name in update.trained if terms and update.owns_tables(name))
        lookups = Lookups(self.cast, sorted(update.members), batch, owned, training=True, seed=self.seed, now=now)
        losses = self._backward(update, lookups, terms, remembered, now)
        if not terms:
            return {}
        lookups.push(rows)
        for optimizer in optimizers:
            sum_gradients(optimizer)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.cast.moved(update.trained)
        return losses

    def _backward(
        self,
        update: Update,
        lookups: Lookups,
        terms: Sequence[tuple[Term, float]],
        remembered: Mapping[str, Remembering],
        now: Now,
    ) -> dict[str, Tensor]:
        """Collect the gradients of all terms, in parts of the batch if the job says so, and note what is remembered."""
        size = self.settings.micro_batch or max(len(lookups.batch), 1)
        parts = [(a, min(a + size, len(lookups.batch))) for a in range(0, max(len(lookups.batch), 1), size)]
        totals = self._totals(update, lookups, terms, now, parts) if len(parts) > 1 else {}
        losses: dict[str, Tensor] = {}
        seen: dict[str, list[tuple[Tensor, Tensor]]] = {key: [] for key in remembered}
        for part in parts:
            played = Play(self.cast, lookups, part, update.trained, self.seed, now, self.memories)
            values = {term.words: (term_value(term, played.scene, totals.get(term.words)), w) for term, w in terms}
            total = sum(value * weight for value, weight in values.values())
            if isinstance(total, Tensor):  # and not the sum of no terms
                self._push_back(total, update, lookups, played)
            losses = {words: losses[words] + v if words in losses else v for words, (v, _) in values.items()}
            with torch.no_grad():
                for key, memory in remembered.items():
                    seen[key].append((played.scene.batch.row_id_B, memory.noted(played.scene)))
        for key, found in seen.items():  # once, since processes may have other numbers of parts
            self.memories[key].write(torch.cat([rows for rows, _ in found]), torch.cat([value for _, value in found]))
        return losses

    def _totals(
        self, update: Update, lookups: Lookups, terms: Sequence[tuple[Term, float]], now: Now, parts: Sequence[Any]
    ) -> dict[str, Tensor]:
        """What each term divides by, for all parts of a batch together; the random numbers of dropout are put back."""
        found: dict[str, Tensor] = {}
        with torch.no_grad(), torch.random.fork_rng():
            for part in parts:
                scene = Play(self.cast, lookups, part, update.trained, self.seed, now, self.memories).scene
                for term, _ in terms:
                    total = divisor(term, scene)
                    found[term.words] = found[term.words] + total if term.words in found else total
        return {words: add_up(total) for words, total in found.items()}

    def _push_back(self, total: Tensor, update: Update, lookups: Lookups, played: Play) -> None:
        """Gradients for what the update trains, and for nothing else that they pass through."""
        if not total.requires_grad:
            raise TrainingError(
                f"terms {[t.words for t in update.terms]}: reach none of {sorted(update.trained)}; read outputs "
                "through live(...) where gradients are to pass"
            )
        if not played.passed and all(not part.path for part in update.parts):
            total.backward()
            return
        inputs = [*lookups.leaves.values(), *(p for part in update.parts for p in self.cast.parameters_of(part))]
        torch.autograd.backward(total, inputs=inputs)

    def _report(self, index: int, step: int, planned: int, losses: dict[str, Tensor]) -> None:
        values = {words: float(add_up(value.detach().clone())) for words, value in losses.items()}
        for words, value in values.items():
            if not math.isfinite(value):
                raise TrainingError(
                    f"phase {index}, step {step}: the term {words!r} is {value}; lower the learning rates, or look for "
                    "extreme values in its columns"
                )
        self.listen(Event("step", index, step + 1, planned, values))

    def _stopped(self, step: int, optimizers: Sequence[Optimizers], watch: Watch | None) -> Stopped:
        """Where the phase stands."""
        flat = [optimizer for group in optimizers for optimizer in group]
        tensors = capture(self.cast, flat, watch.kept if watch else {})
        tensors |= {f"memory/{k}/{name}": t for k, m in self.memories.items() for name, t in m.state.items()}
        tensors |= {f"followers/{name}": tensor for name, tensor in self.followers.tensors.items()}
        progress = {
            "feeds": {name: [cursor.number, cursor.taken] for name, cursor in self.cursors.items()},
            "followers": self.followers.progress,
            "generations": dict(self.generations),
            "begun": sorted(self.begun),
        }
        if watch is not None:
            progress["watch"] = watch.progress
        return Stopped(step, progress, tensors)

    def _go_on(self, stopped: Stopped, optimizers: Sequence[Optimizers], watch: Watch | None) -> None:
        """Put everything back as it stood."""
        kept = restore(stopped.tensors, self.cast, [optimizer for group in optimizers for optimizer in group])
        for name, (number, taken) in stopped.progress["feeds"].items():
            self.cursors[name].go_to(number, taken)
        self.generations, self.begun = dict(stopped.progress["generations"]), {*stopped.progress["begun"]}
        own = {n.removeprefix("followers/"): t for n, t in stopped.tensors.items() if n.startswith("followers/")}
        self.followers.restore(stopped.progress["followers"], own)
        states: dict[str, dict[str, Tensor]] = {}
        for name, tensor in stopped.tensors.items():
            if name.startswith("memory/"):
                key, _, part = name.removeprefix("memory/").rpartition("/")
                states.setdefault(key, {})[part] = tensor
        self.memories = {key: memory_of(state) for key, state in states.items()}
        if watch is not None:
            watch.restore(stopped.progress["watch"], kept)

    def score(
        self, names: list[str], reader: Reader, *, as_served: bool = False
    ) -> tuple[Scores, NDArray[np.int64], dict[str, NDArray[np.float32]]]:
        """Logits (rows, labels) of members, row ids and raw labels, in the order of the log.

        Nothing of training changes. Logits are corrected for the share of negatives that training left out
        (`keep_rates.py`), so that they are those of the log. With
        ``as_served`` members that are judged on distorted rows answer to the rows as they are.

        Raises:
            TrainingError: a member has diverged.
        """
        logits: dict[str, list[NDArray[np.float32]]] = {name: [] for name in names}
        row_ids: list[NDArray[np.int64]] = []
        labels: dict[str, list[NDArray[np.float32]]] = {name: [] for name in reader.selection.labels}
        with torch.no_grad():
            for batch in reader.in_order(EVALUATION_BATCH):
                played = play(self.cast, list(self.cast.members), batch, seed=self.seed, as_served=as_served)
                for name in names:
                    logits[name].append(played[name].logits_BK.cpu().numpy())
                row_ids.append(batch.row_id_B.numpy())
                for name, parts in labels.items():
                    parts.append(batch.labels[name].numpy())
        kept, members = self.settings.negative_keep_rate, self.cast.members
        scores = {n: np.concatenate(parts) + correction(members[n].labels, kept) for n, parts in logits.items()}
        for name, values in scores.items():
            if not np.isfinite(values).all():
                raise TrainingError(
                    f"{name}: {int((~np.isfinite(values)).any(1).sum())} of {len(values)} scores are NaN or infinite; "
                    "lower its learning rates, or look for extreme values in its columns"
                )
        return scores, np.concatenate(row_ids), {name: np.concatenate(parts) for name, parts in labels.items()}
