"""One batch through the members: what is looked up, once for each bank, and what each member answers, when asked.

batch -> views of it, as each member's distortion wants them -> one lookup of each bank for all views together
-> detached leaves -> members answer, each once, and only if some term needs them
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Literal

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
from recdistill.errors import TrainingError
from recdistill.nets.inputs import Outputs
from recdistill.nets.retrieval import GraphNet
from recdistill.spec.graph import SIDES
from recdistill.spec.members import Distortion
from recdistill.training.cast import Cast, Propagated
from recdistill.training.lookup import Lookup, spread
from recdistill.training.processes import world
from recdistill.training.sharding import at_work, device

Rows = tuple[int, int]
View = tuple[Distortion, str] | Literal["nodes"] | None  # a distortion and whose draw of it; None: the batch as it is


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
            if (training and member.embed is not None) or cast.propagated(name) is not None:
                continue
            view = self.view_of(member)
            if view not in self.views:
                self.views[view] = self._seen(view, seed, now)
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
        if member.net.whole:
            return "nodes"
        how = member.distort
        if how is not None and not self.training:
            how = None if how.scores is None or self.as_served else how.model_copy(update={"levels": (how.scores,)})
        return None if how is None else (how, member.name if member.same is not None else "")

    def _seen(self, view: View, seed: int, now: Now) -> Batch:
        """The rows of a view."""
        if view is None:
            return self.batch
        if view == "nodes":
            return nodes(self.batch, self.cast)
        salt = salted(Scene({}, self.batch, seed, now), f"{view[0]}{view[1]}")
        return distorted(self.batch, view[0], salt, self.cast.spec)

    def _look_up(self, bank: str, *, train: bool) -> Lookup:
        views = [self.views[view] for view in self.wanted[bank]]
        lookup = self.cast.tables.look_up(bank, concat(views), train=train)
        if train and world() > 1 and (self.batch.candidates is not None or "nodes" in self.wanted[bank]):
            share_B = torch.cat([self._share(view) for view in self.wanted[bank]])
            lookup.share = spread(self.cast.tables.banks[bank], lookup, share_B)
        self.found[bank] = lookup
        return lookup

    def _share(self, view: View) -> Tensor:
        """This process's share of each row of a view; rows held by every process count 1 / world."""
        rows = len(self.views[view])
        alone = 0 if view == "nodes" else rows if self.batch.candidates is None else self.batch.candidates.anchors
        return torch.cat([torch.ones(alone), torch.full((rows - alone,), 1 / world())])

    def leaf(self, bank: str, view: View, rows: Rows) -> Leaf:
        """The looked-up vectors of some rows of a view."""
        lookup = self.found.get(bank) or self._look_up(bank, train=False)
        before = self.wanted[bank][: self.wanted[bank].index(view)]
        first = sum(len(self.views[each]) for each in before)
        return lookup.part(first + rows[0], first + rows[1])

    def push(self, rows: int) -> None:
        """Send the collected gradients into the tables, which step at once.

        Args:
            rows: of the batch over all processes, by which penalties are divided.
        """
        for bank, lookup in self.found.items():
            if bank in self.owned:
                step = self.cast.tables.steps[bank]
                lookup.push(step.l2 / rows, step.l2_rare / rows)

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
        self.nodes: dict[str, Propagated] = {}
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
            with at_work():
                outputs = head(given.flat_BE, given.tokens, given.lengths)
            return in_float32(outputs)

    def _given(self, member: Member) -> Assembled:
        """What a member's head receives."""
        if member.net.whole:
            return self._convolved(member)
        if self.lookups.training and member.embed is not None:
            return Assembled(let_through(member.embed, member.embed.value(self.scene)).to(device()), [], [])
        view = self.lookups.view_of(member)
        if view not in self.parts:
            self.parts[view] = self._rows_of(self.lookups.views.get(view, self.lookups.batch))
        visible = self.parts[view]
        if member.name in self.cast.served:
            visible = replace(visible, privileged=None)
        layout = self.cast.layout.members[member.name]
        leaves = {bank: self.lookups.leaf(bank, view, self.rows) for bank in layout.banks}
        taps = taps_of(member, self.scene, let_through)
        with at_work():
            return assemble(layout, leaves, visible, taps, device=device())

    def _convolved(self, member: Member) -> Assembled:
        """The vectors of each row's user and item, as the tables hold them, and as the graph has made them."""
        user, item = (str(member.net.options[side]) for side in ("user", "item"))
        user_UD, item_ID, of_user_UD, of_item_ID = self._propagated(member)
        user_B, item_B = self.scene.batch.serving.ids((user, item)).long()
        first = {user: user_UD[user_B], item: item_ID[item_B]}
        columns = [first[column.name] for column in self.cast.layout.members[member.name].columns]
        return Assembled(torch.cat([*columns, of_user_UD[user_B], of_item_ID[item_B]], 1), [], [])

    def _propagated(self, member: Member) -> Propagated:
        """All users and items before and after the graph; of a member that does not move this is done once."""
        known = self.nodes.get(member.name) or self.cast.propagated(member.name)
        if known is not None:
            return known
        layout = self.cast.layout.members[member.name]
        everyone = self.lookups.views["nodes"]
        leaves = {bank: self.lookups.leaf(bank, "nodes", (0, len(everyone))) for bank in layout.banks}
        flat_NE = assemble(layout, leaves, everyone, device=device()).flat_BE
        width = flat_NE.shape[1] // 2
        of = {column.name: flat_NE[:, k * width : (k + 1) * width] for k, column in enumerate(layout.columns)}
        rows = {feature.column: self.cast.layout.banks[bank].tables[feature.table] for feature, bank in layout.lookups}
        user, item = (of[name][: rows[name]] for name in (member.net.options["user"], member.net.options["item"]))
        net = self.cast.heads[member.name].net
        assert isinstance(net, GraphNet)
        self.nodes[member.name] = (user, item, *net.propagate(user, item))
        if not self.learns(member.name):
            self.cast.keep_propagated(member.name, self.nodes[member.name])
        return self.nodes[member.name]

    def _rows_of(self, batch: Batch) -> Batch:
        first, end = self.rows
        return batch if end - first == len(batch) else take(batch, torch.arange(first, end))

    def _autocast(self) -> AbstractContextManager[object]:
        low = bool(self.trained) and self.cast.precision == "bfloat16"
        return torch.autocast(device().type, dtype=torch.bfloat16, enabled=low)


def nodes(batch: Batch, cast: Cast) -> Batch:
    """A row for each user and each item, both from 0 on, with the columns of a batch.

    Raises:
        TrainingError: the members were told of no users and items.
    """
    if cast.nodes is None:
        raise TrainingError("nodes: a net works on a graph that was not built; this is a defect")
    row_N = torch.arange(max(map(cast.nodes.catalogue.rows, SIDES)))
    ids = {side: row_N * (row_N < cast.nodes.catalogue.rows(side)) for side in SIDES}
    view = batch.serving
    serving = cast.nodes.catalogue.join(view.names, ids)
    unknown = {name: torch.full((len(row_N),), torch.nan) for name in batch.labels}
    return Batch(row_N, serving, unknown, torch.zeros(len(row_N)))


def let_through(signal: Signal, value: Tensor) -> Tensor:
    """The value of what a member reads; its gradient stops here unless it is written ``live(...)``."""
    return value if flows(signal) else value.detach()


def in_float32(outputs: Outputs) -> Outputs:
    """Outputs as float32 on the CPU: losses and metrics never see a lower precision, nor another device."""
    return Outputs(
        outputs.logits_BK.to("cpu", torch.float32),
        [h.to("cpu", torch.float32) for h in outputs.hidden],
        outputs.embed_BE.to("cpu", torch.float32),
        [weight.to("cpu", torch.float32) for weight in outputs.attention],
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
