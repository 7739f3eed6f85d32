"""The members of a job, built: their heads, their tables, the scores that are read instead of them."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from recdistill.data.nodes import Nodes
from recdistill.data.recorded import RecordedScores
from recdistill.distill.checks import behind, trained_names
from recdistill.distill.heads import build_heads
from recdistill.distill.layout import Layout, MemberLayout, table_key
from recdistill.distill.member import Member, Part
from recdistill.edits.towers import transplant
from recdistill.errors import TrainingError, VisibilityError
from recdistill.nets.catalog import Head
from recdistill.nets.graph import Bipartite, Sparse
from recdistill.nets.retrieval import GraphNet
from recdistill.spec.features import FeatureSpec
from recdistill.spec.graph import SIDES
from recdistill.spec.members import FromRun
from recdistill.training.batch_norm import over_all_processes
from recdistill.training.sharding import Tables, device

Propagated = tuple[Tensor, Tensor, Tensor, Tensor]  # users and items, before and after the graph


class Cast:
    """All members of a job, built and ready to answer.

    Args:
        members: who plays.
        layout: where their columns are looked up.
        tables: the embedding tables.
        spec: the feature spec, for the roles of columns.
        precision: of the heads, ``float32`` or ``bfloat16``.
        seed: of the initial parameters; those of a member depend on its own name and the seed alone.
        recorded: the scores of members that have no net.
        nodes: users and items, for members that work on a graph or rank.

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
        precision: str,
        seed: int,
        recorded: Mapping[str, RecordedScores] | None = None,
        nodes: Nodes | None = None,
    ) -> None:
        self.members = {member.name: member for member in members}
        self.tables, self.spec, self.precision, self.seed = tables, spec, precision, seed
        self.recorded = dict(recorded or {})
        self.nodes = nodes
        self._propagated: dict[str, Propagated] = {}
        serving = {name for name, member in self.members.items() if member.serve}
        self.served = frozenset(behind(serving, {n: replace(m, embed=None) for n, m in self.members.items()}))
        made = build_heads(list(self.members.values()), layout, lambda member: drawn(seed, member.name))
        self.layout = Layout(layout.banks, made.layouts)
        self.heads: dict[str, Head] = {name: head.to(device()) for name, head in made.heads.items()}
        over_all_processes(self.heads.values())
        for member in self.members.values():
            net = self.heads[member.name].net if member.name in self.heads else None
            if isinstance(net, GraphNet) and isinstance(member.origin, FromRun):
                net.settle(*self._nodes_of(member))  # by the graph of its own run
                net.to(device())
            elif isinstance(net, GraphNet) and nodes is not None:
                net.connect(Bipartite(*(Sparse(*half) for half in nodes.graph.normalised())))
                net.to(device())
        for name in self.served:
            refuse_leak(self.members[name], self.layout.members[name], spec)

    def _nodes_of(self, member: Member) -> list[int]:
        """The rows of the tables of a member's users and items."""
        lookups = self.layout.members[member.name].lookups
        rows = {feature.column: self.layout.banks[bank].tables[feature.table] for feature, bank in lookups}
        return [rows[str(member.net.options[side])] for side in SIDES]

    def begin_anew(self, name: str, generation: int) -> None:
        """Re-initialise a member, differently in each generation; modules it shares are reset for everyone."""
        seed = f"{self.seed}/{generation}"
        layout = Layout(self.layout.banks, self.layout.members)
        fresh = build_heads(list(self.members.values()), layout, lambda member: drawn(seed, member.name))
        with torch.no_grad():
            for key, value in self.heads[name].state_dict().items():
                value.copy_(fresh.heads[name].state_dict()[key])
        for bank in self.layout.members[name].banks:
            if self.layout.banks[bank].owner == name:
                self.tables.begin_anew(bank, seed)

    def edit(self, name: str) -> None:
        """Initialise an edited member from its source's edited parameters and tables."""
        edited = self.members[name].edited
        if edited is not None:
            of, edits = edited
            transplant(self.heads[of].net, self.heads[name].net, edits)
            with torch.no_grad():
                for mine, theirs in self.tables_beside(name, of):
                    mine.copy_(theirs)

    def propagated(self, name: str) -> Propagated | None:
        """What the graph of a member has made of all users and items, if its parameters rest since."""
        return self._propagated.get(name)

    def keep_propagated(self, name: str, vectors: Propagated) -> None:
        """Remember it until the member moves."""
        self._propagated[name] = vectors

    def moved(self, names: Iterable[str]) -> None:
        """Told by whoever has changed the parameters of members; their second names have moved as well."""
        names = trained_names(names, self.members)
        for name in [n for n in self._propagated if n in names or self.members[n].same in names]:
            del self._propagated[name]

    def banks_of(self, names: Iterable[str]) -> frozenset[str]:
        """The banks that some members look up."""
        return frozenset(bank for name in names for bank in self.layout.members[name].banks)

    def parameters_of(self, part: Part) -> list[nn.Parameter]:
        """The dense parameters of a part."""
        if part.path == "tables":
            return []
        return list(self.heads[part.member].get_submodule(part.path).parameters())

    def state(self, names: Iterable[str]) -> dict[str, Tensor]:
        """The parameters of members by name, in their own storage: dense ones, local rows of their banks."""
        names = [name for name in names if name in self.heads]
        dense = {f"{n}.{key}": value for n in names for key, value in self.heads[n].state_dict().items()}
        banks = dict.fromkeys(bank for name in names for bank in self.layout.members[name].banks)
        rows = {table_key(b, table): shard for b in banks for table, shard, _ in self.tables.shards(b)}
        return dense | rows

    def pairs(self, to: str, of: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameters of a member beside those of another one that is built alike, in their own storage."""
        ours, theirs = self.heads[to].state_dict(), self.heads[of].state_dict()
        for key, value in ours.items():
            yield value, theirs[key]
        yield from self.tables_beside(to, of)

    def tables_beside(self, to: str, of: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The local rows of a member's tables beside those of another one that reads the same columns.

        Raises:
            TrainingError: a table of the one lies in another process than that of the other.
        """
        sources = {feature.name: (bank, feature.table) for feature, bank in self.layout.members[of].lookups}
        lookups = self.layout.members[to].lookups
        tables = {(bank, f.table): sources[f.name] for f, bank in lookups if f.name in sources}
        shards = {(b, table): shard for b in self.layout.banks for table, shard, _ in self.tables.shards(b)}
        for own, source in tables.items():
            if own != source and own in shards:
                if source not in shards:
                    raise TrainingError(
                        f"{to!r} and {of!r}: their tables {own[1]!r} lie in different processes, so one cannot be "
                        "copied to the other; let neither share tables with others"
                    )
                yield shards[own], shards[source]


@contextmanager
def drawn(seed: object, name: str) -> Iterator[None]:
    """A context whose random numbers depend on a seed and a name; PyTorch's state outside is kept."""
    digest = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=7).digest()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(digest))
        yield


def refuse_leak(member: Member, layout: MemberLayout, spec: FeatureSpec) -> None:
    """Raise unless a member that serves, or that the student reads, is wired to serving columns only.

    Raises:
        VisibilityError: it is not.
    """
    read = {column.name for column in (*layout.columns, *layout.pooled)}
    wired = read | {p.feature.column for p in layout.pieces if p.feature}
    seen = sorted(
        (wired | set(layout.serving_floats) | {*layout.privileged_floats, *member.privileged}) - set(spec.serving)
    )
    if seen:
        raise VisibilityError(
            f"members.{member.name}: serves, but reads {seen}, known only after the event; a serving member reads "
            "serving columns only, so remove them from its view"
        )
