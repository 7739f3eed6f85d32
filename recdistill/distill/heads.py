"""The nets of all members, built so that what is shared is one module and what reads others knows their widths."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from recdistill.data.batch import Batch, View
from recdistill.distill.layout import Column, Layout, MemberLayout
from recdistill.distill.member import RECORDED, Member
from recdistill.distill.signal import Scene, Signal
from recdistill.errors import TrainingError
from recdistill.nets.catalog import Head
from recdistill.nets.inputs import Inputs, Outputs
from recdistill.nets.sequences import build_pool
from recdistill.nets.towers import Stack

Draws = Callable[[Member], AbstractContextManager[object]]
TRIAL_ROWS = 2


@dataclass(frozen=True)
class Heads:
    """What `build_heads` has made.

    Attributes:
        heads: by member; a second name has the very head of the first. Members of which only scores are left have none.
        layouts: of all members, completed by the widths of what they read of others.
        trial: what each member answers for `TRIAL_ROWS` rows of zeros.
    """

    heads: dict[str, Head]
    layouts: dict[str, MemberLayout]
    trial: dict[str, Outputs]


def build_heads(members: Sequence[Member], layout: Layout, draws: Draws) -> Heads:
    """The heads of all members, each after those that it borrows from or reads.

    Args:
        members: the members.
        layout: where their columns lie.
        draws: the context in which the initial parameters of a member are drawn.

    Raises:
        TrainingError: a module cannot be shared.
    """
    made = Heads({}, dict(layout.members), {})
    for member in in_order(members):
        if member.net.name == RECORDED:
            zeros = torch.zeros(TRIAL_ROWS, member.width)
            made.trial[member.name] = Outputs(zeros, [], torch.zeros(TRIAL_ROWS, 0), [])
            continue
        taps = [width_of(signal, made.trial) for signal in member.inputs]
        named = tuple(Column(f"input {i}", width, embedded=False) for i, width in enumerate(taps))
        if member.net.whole:
            named += convolved(made.layouts[member.name])
        mine = made.layouts[member.name] = replace(made.layouts[member.name], taps=named)
        if member.same is not None:
            made.heads[member.name] = made.heads[member.same]
        else:
            with draws(member):
                made.heads[member.name] = _head(member, mine, made)
        made.trial[member.name] = answer_zeros(made.heads[member.name], mine)
    return made


def convolved(layout: MemberLayout) -> tuple[Column, ...]:
    """Columns for the convolved vectors, after the table vectors, with equal widths and order."""
    return tuple(Column(f"{c.name} in the graph", c.width, embedded=False) for c in layout.columns if c.embedded)


def in_order(members: Sequence[Member]) -> list[Member]:
    """The members, each after those that it needs."""
    by_name = {member.name: member for member in members}
    placed: dict[str, Member] = {}

    def place(member: Member) -> None:
        if member.name in placed:
            return
        share = member.share
        needed = [share.trunk, *(owner for owner, _ in share.borrowed.values()), member.same]
        needed += sorted({m for signal in member.signals for m in signal.members})
        for name in needed:
            if name is not None and name in by_name:
                place(by_name[name])
        placed[member.name] = member

    for member in members:
        place(member)
    return list(placed.values())


def width_of(signal: Signal, trial: Mapping[str, Outputs]) -> int:
    """How many values a signal has for a row, found by asking for it."""
    value = signal.value(Scene(trial, trial_batch()))
    return 1 if value.dim() == 1 else value.shape[1]


def trial_batch() -> Batch:
    """Rows without columns, for a look at shapes."""
    nothing = View("serving", torch.zeros(0, TRIAL_ROWS, dtype=torch.int64), (), torch.zeros(TRIAL_ROWS, 0), ())
    row_id_B = torch.arange(TRIAL_ROWS)
    return Batch(row_id_B, nothing, {}, torch.ones(TRIAL_ROWS), group_B=row_id_B, scenario_B=row_id_B)


def answer_zeros(head: Head, layout: MemberLayout) -> Outputs:
    """What a head answers for rows of zeros."""
    training = head.training
    head.eval()
    with torch.no_grad():
        tokens = [torch.zeros(TRIAL_ROWS, 1, sequence.tokens.width) for sequence in layout.sequences]
        lengths = [torch.ones(TRIAL_ROWS, dtype=torch.int64) for _ in layout.sequences]
        found: Outputs = head(torch.zeros(TRIAL_ROWS, layout.flat.width), tokens, lengths)
    head.train(training)
    return found


def _head(member: Member, layout: MemberLayout, made: Heads) -> Head:
    pools = pools_of(member, layout)
    trunk = Stack(layout.inputs.width, list(member.trunk))
    if member.share.trunk is not None:
        theirs = made.layouts[member.share.trunk].inputs
        if theirs != layout.inputs:
            raise TrainingError(
                f"members.{member.name}.share.trunk: reads {[f.name for f in layout.inputs.fields]}, but the trunk of "
                f"{member.share.trunk!r} reads {[f.name for f in theirs.fields]}; give both the same view"
            )
        trunk = made.heads[member.share.trunk].trunk
    net_inputs = Inputs.plain(trunk.width) if len(trunk.blocks) else layout.inputs
    head = Head(pools, trunk, member.net.build(net_inputs, member.width), member.dropout)
    if member.init != 1:
        with torch.no_grad():
            for parameter in (*head.net.parameters(), *head.pools.parameters()):
                parameter.mul_(member.init)
    for path, (owner, there) in member.share.borrowed.items():
        _share_module(head, path, made.heads[owner], there, f"members.{member.name}.share.modules.{path}", owner)
    return head


def _share_module(head: Head, path: str, lender: Head, theirs: str, place: str, owner: str) -> None:
    """Replace a head's own module with another head's.

    Raises:
        TrainingError: there is no such module, or the two are built differently.
    """
    try:
        own, other = head.get_submodule(path), lender.get_submodule(theirs)
    except AttributeError:
        known, lent = ([name for name, _ in each.named_modules() if name] for each in (head, lender))
        raise TrainingError(
            f"{place}: no module {path!r} here, or {theirs!r} in {owner!r}; the own net has {known}, the other {lent}"
        ) from None
    if shapes(own) != shapes(other):
        raise TrainingError(
            f"{place}: is built differently in {owner!r}; its parameters have the shapes {shapes(other)}"
        )
    parent, _, name = path.rpartition(".")
    head.get_submodule(parent).add_module(name, other)


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """The shape of each parameter and buffer of a module."""
    return {name: tuple(value.shape) for name, value in module.state_dict().items()}


def pools_of(member: Member, layout: MemberLayout) -> list[nn.Module]:
    """The poolings of a member's sequences, in order, with parameters drawn from PyTorch's generator."""
    return [build_pool(member.pool.get(s.column, {"mean": {}}), layout.flat, s.tokens.width) for s in layout.sequences]


def taps_of(member: Member, scene: Scene, detached: Callable[[Signal, Tensor], Tensor]) -> list[Tensor]:
    """What a member reads of others, each (B, W)."""
    values = [detached(signal, signal.value(scene)) for signal in member.inputs]
    return [value.unsqueeze(1) if value.dim() == 1 else value for value in values]
