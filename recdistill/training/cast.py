"""The members at work: their heads, the tables they look up, and what they answer for a batch."""

import hashlib
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace

import torch
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.distill.layout import Layout, MemberLayout, assemble, pools_of
from recdistill.distill.member import Member
from recdistill.errors import TrainingError, VisibilityError
from recdistill.nets.catalog import Head
from recdistill.nets.inputs import Inputs, Outputs
from recdistill.nets.towers import Stack
from recdistill.spec.features import FeatureSpec
from recdistill.training.sharding import Lookup, Tables, device


class Cast:
    """All members of a job, built and ready to answer.

    Args:
        members: who plays.
        layout: where their columns are looked up.
        tables: the embedding tables.
        spec: the feature spec, for the roles of columns.
        labels: number of labels that every member predicts.
        precision: of the heads, ``float32`` or ``bfloat16``.
        seed: of the initial parameters; those of a member depend on its own name and the seed alone.

    Raises:
        VisibilityError: a member that serves was given a column that is known only after the event.
    """

    def __init__(
        self,
        members: Iterable[Member],
        layout: Layout,
        tables: Tables,
        spec: FeatureSpec,
        *,
        labels: int,
        precision: str,
        seed: int,
    ) -> None:
        self.members = {member.name: member for member in members}
        self.layout, self.tables, self.spec = layout, tables, spec
        self.precision, self.labels = precision, labels
        for member in self.members.values():
            refuse_leak(member, layout.members[member.name], spec)
        self.heads: dict[str, Head] = {}
        for member in sorted(self.members.values(), key=lambda m: m.share.trunk is not None):
            self.heads[member.name] = self._head(member, seed).to(device())

    def _head(self, member: Member, seed: int) -> Head:
        inputs = self.layout.members[member.name].inputs
        digest = hashlib.blake2b(f"{seed}/{member.name}".encode(), digest_size=7).digest()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int.from_bytes(digest))
            pools = pools_of(member, self.layout.members[member.name])
            trunk = Stack(inputs.width, list(member.trunk))
            if member.share.trunk is not None:
                trunk = self.heads[member.share.trunk].trunk
                theirs = self.layout.members[member.share.trunk].inputs
                if theirs != inputs:
                    raise TrainingError(
                        f"members.{member.name}.share.trunk: reads {[f.name for f in inputs.fields]}, but the trunk of "
                        f"{member.share.trunk!r} reads {[f.name for f in theirs.fields]}; give both the same view"
                    )
            net_inputs = Inputs.plain(trunk.width) if len(trunk.blocks) else inputs
            return Head(pools, trunk, member.net.build(net_inputs, self.labels), member.dropout)

    def look_up(self, names: Iterable[str], batch: Batch, trained: frozenset[str]) -> dict[str, Lookup]:
        """One lookup of each bank that the named members need; banks of trained members collect gradients."""
        banks = dict.fromkeys(bank for name in names for bank in self.layout.members[name].banks)
        live = {bank for name in trained for bank in self.layout.members[name].banks}
        return {bank: self.tables.look_up(bank, batch, train=bank in live) for bank in banks}

    def answer(
        self, names: Iterable[str], lookups: Mapping[str, Lookup], batch: Batch, trained: frozenset[str] = frozenset()
    ) -> dict[str, Outputs]:
        """The outputs of members, each computed once: trained ones in training mode, the others frozen.

        A member that serves receives the batch without its privileged view. The lower precision is used in training
        steps only; scores are always computed in float32.
        """
        outputs = {}
        for name in names:
            head, train = self.heads[name], name in trained
            head.train(train)
            visible = replace(batch, privileged=None) if self.members[name].serve else batch
            with torch.set_grad_enabled(train), self._autocast(bool(trained)):
                given = assemble(self.layout.members[name], lookups, visible)
                outputs[name] = in_float32(head(given.flat_BE, given.tokens, given.lengths))
        return outputs

    def _autocast(self, training: bool) -> AbstractContextManager[object]:
        return torch.autocast(device().type, dtype=torch.bfloat16, enabled=training and self.precision == "bfloat16")

    def state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The parameters of members by name, in their own storage: dense ones, local rows of their banks."""
        names = list(names)
        dense = {f"{n}.{key}": value for n in names for key, value in self.heads[n].state_dict().items()}
        banks = dict.fromkeys(bank for name in names for bank in self.layout.members[name].banks)
        rows = {f"tables.{b}.{table}": shard for b in banks for table, shard, _ in self.tables.shards(b)}
        return dense | rows


def refuse_leak(member: Member, layout: MemberLayout, spec: FeatureSpec) -> None:
    """Nothing, if a member that serves is wired to serving columns only.

    Raises:
        VisibilityError: it is not.
    """
    if not member.serve:
        return
    wired = {f.name for f in layout.inputs.fields} | {p.feature.column for p in layout.pieces if p.feature}
    seen = sorted(
        (wired | set(layout.serving_floats) | {*layout.privileged_floats, *member.privileged}) - set(spec.serving)
    )
    if seen:
        raise VisibilityError(
            f"members.{member.name}: serves, but reads {seen}, known only after the event; a serving member reads "
            "serving columns only, so remove them from its view"
        )


def in_float32(outputs: Outputs) -> Outputs:
    """Outputs as float32, so that losses and metrics never see a lower precision."""
    return Outputs(
        outputs.logits_BK.float(),
        [h.float() for h in outputs.hidden],
        outputs.embed_BE.float(),
        [weight.float() for weight in outputs.attention],
    )
