"""One batch through the members: what is looked up, once for each bank, and what each member answers, when asked.

batch -> views of it, as each member's distortion wants them -> one lookup of each bank for all views together
-> detached leaves -> members answer, each once, and only if some term needs them
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from recdistill.data.batch import Batch, concat
from recdistill.data.distort import distorted
from recdistill.data.reader import take
from recdistill.distill.heads import taps_of
from recdistill.distill.layout import Assembled, Leaf, assemble
from recdistill.distill.member import Member
from recdistill.distill.schedule import Now
from recdistill.distill.signal import Scene, Signal, Store, flows, salted
from recdistill.nets.inputs import Outputs
from recdistill.spec.members import Distortion
from recdistill.training.cast import Cast
from recdistill.training.lookup import Lookup
from recdistill.training.sharding import device

Rows = tuple[int, int]
View = tuple[Distortion, str] | None  # a distortion and whose draw of it; None for the batch as it is


class Lookups:
    """The vectors that some members need for a batch: each bank is looked up once, for all views of the batch.

    Args:
        cast: the members.
        names: those that may be asked.
        batch: the rows.
        owned: the banks that collect gradients; they are looked up at once, all others when first needed.
        training: whether distortions apply that scores do not see, and signals stand in place of columns.
        seed, now: what the draws of distortions depend on.
        as_served: whether everybody sees the rows as they are.
    """

    def __init__(
        self,
        cast: Cast,
        names: Sequence[str],
        batch: Batch,
        owned: frozenset[str],
        *,
        training: bool,
        seed: int,
        now: Now,
        as_served: bool = False,
    ) -> None:
        self.cast, self.batch, self.training, self.as_served = cast, batch, training, as_served
        self.views: dict[View, Batch] = {}
        self.wanted: dict[str, list[View]] = {}
        self.found: dict[str, Lookup] = {}
        self.owned = owned
        for name in names:
            member = cast.members[name]
            if training and member.embed is not None:
                continue
            view = self.view_of(member)
            if view not in self.views:
                self.views[view] = batch
                if view is not None:
                    salt = salted(Scene({}, batch, seed, now), f"{view[0]}{view[1]}")
                    self.views[view] = distorted(batch, view[0], salt, cast.spec)
            for bank in cast.layout.members[name].banks:
                wanted = self.wanted.setdefault(bank, [])
                if view not in wanted:
                    wanted.append(view)
        for bank in self.wanted:
            if bank in owned:
                self._look_up(bank, train=True)

    def view_of(self, member: Member) -> View:
        """The view through which a member sees the batch now: equal distortions are one view.

        A second name draws a view of its own, since through the same one it would only say the same again.
        """
        how = member.distort
        if how is not None and not self.training:
            how = None if how.scores is None or self.as_served else how.model_copy(update={"levels": (how.scores,)})
        return None if how is None else (how, member.name if member.same is not None else "")

    def _look_up(self, bank: str, *, train: bool) -> Lookup:
        views = [self.views[view] for view in self.wanted[bank]]
        self.found[bank] = self.cast.tables.look_up(bank, concat(views), train=train)
        return self.found[bank]

    def leaf(self, bank: str, view: View, rows: Rows) -> Leaf:
        """The looked-up vectors of some rows of a view."""
        lookup = self.found.get(bank) or self._look_up(bank, train=False)
        first = self.wanted[bank].index(view) * len(self.batch)
        return lookup.part(first + rows[0], first + rows[1])

    def push(self, l2: float, l2_rare: float) -> None:
        """Send the collected gradients into the tables, which step at once."""
        for bank, lookup in self.found.items():
            if bank in self.owned:
                lookup.push(l2, l2_rare)

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The leaves that collect gradients, by bank."""
        return {bank: lookup.leaf_BW for bank, lookup in self.found.items() if bank in self.owned}


@dataclass
class Play(Mapping[str, Outputs]):
    """What the members answer for some rows; a member answers when it is first asked, and once.

    Attributes:
        cast: the members.
        lookups: the vectors.
        rows: first row and end of the rows that are played.
        trained: who answers in training mode and with gradients; the others are frozen, but gradients pass through
            those that read a trained member's output live.
        seed, now, memories: of the scene.
        passed: who stands between a term and those who learn from it.
    """

    cast: Cast
    lookups: Lookups
    rows: Rows
    trained: frozenset[str] = frozenset()
    seed: int = 0
    now: Now = field(default_factory=Now)
    memories: Mapping[str, Store] = field(default_factory=dict)
    passed: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.answers: dict[str, Outputs] = {}
        self.parts: dict[View, Batch] = {}
        self.scene = Scene(self, self._rows_of(self.lookups.batch), self.seed, self.now, self.memories)

    def __getitem__(self, name: str) -> Outputs:
        if name not in self.answers:
            self.answers[name] = self._answer(self.cast.members[name])
        return self.answers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.cast.members)

    def __len__(self) -> int:
        return len(self.cast.members)

    def learns(self, name: str) -> bool:
        """Whether gradients reach a member, or pass through it."""
        member = self.cast.members[name]
        if name in self.trained:
            return True
        return any(flows(s) and any(self.learns(m) for m in s.members) for s in self._read(member))

    def _read(self, member: Member) -> tuple[Signal, ...]:
        """What a member reads of others now."""
        return member.signals if self.lookups.training else member.inputs

    def _answer(self, member: Member) -> Outputs:
        """A member's outputs. One that serves, or that the student reads, is given no privileged view."""
        if member.name in self.cast.recorded:
            logits_BK = self.cast.recorded[member.name].read(self.scene.batch.row_id_B)
            return Outputs(logits_BK, [], logits_BK.new_zeros(len(logits_BK), 0), [])
        head, learns = self.cast.heads[member.name], self.learns(member.name)
        head.train(member.name in self.trained)
        if learns and member.name not in self.trained:
            self.passed.add(member.name)
        with torch.set_grad_enabled(learns), self._autocast():
            given = self._given(member)
            return in_float32(head(given.flat_BE, given.tokens, given.lengths))

    def _given(self, member: Member) -> Assembled:
        """What a member's head receives."""
        if self.lookups.training and member.embed is not None:
            return Assembled(let_through(member.embed, member.embed.value(self.scene)), [], [])
        view = self.lookups.view_of(member)
        if view not in self.parts:
            self.parts[view] = self._rows_of(self.lookups.views.get(view, self.lookups.batch))
        visible = self.parts[view]
        if member.name in self.cast.served:
            visible = replace(visible, privileged=None)
        layout = self.cast.layout.members[member.name]
        leaves = {bank: self.lookups.leaf(bank, view, self.rows) for bank in layout.banks}
        return assemble(layout, leaves, visible, taps_of(member, self.scene, let_through))

    def _rows_of(self, batch: Batch) -> Batch:
        first, end = self.rows
        return batch if end - first == len(batch) else take(batch, torch.arange(first, end))

    def _autocast(self) -> AbstractContextManager[object]:
        low = bool(self.trained) and self.cast.precision == "bfloat16"
        return torch.autocast(device().type, dtype=torch.bfloat16, enabled=low)


def let_through(signal: Signal, value: Tensor) -> Tensor:
    """The value of what a member reads; its gradient stops here unless it is written ``live(...)``."""
    return value if flows(signal) else value.detach()


def in_float32(outputs: Outputs) -> Outputs:
    """Outputs as float32, so that losses and metrics never see a lower precision."""
    return Outputs(
        outputs.logits_BK.float(),
        [h.float() for h in outputs.hidden],
        outputs.embed_BE.float(),
        [weight.float() for weight in outputs.attention],
    )


def play(
    cast: Cast,
    names: Sequence[str],
    batch: Batch,
    trained: frozenset[str] = frozenset(),
    *,
    seed: int = 0,
    now: Now | None = None,
    as_served: bool = False,
) -> Play:
    """A whole batch through some members; those that are trained answer in training mode, with gradients."""
    owned = cast.banks_of(trained)
    moment = now or Now()
    lookups = Lookups(
        cast, names, batch, owned, training=bool(trained), seed=seed, now=moment, as_served=as_served
    )  # fmt: skip
    return Play(cast, lookups, (0, len(batch)), trained, seed, moment)
