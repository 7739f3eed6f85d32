"""A bipartite graph of users and items, whose nodes are rows of the embedding tables.

    user rows  0 1 2 3 ...   item rows  0 1 2 3 4 ...      rows 0 (missing) and 1 (unknown) have no edges
    edges      (2, 3) (2, 4) (3, 2) ...                    each pair once, sorted by user, then item

Sorted edges are at the same time the jagged lists of each user's items (`Positives`) and the rows of the sparse
adjacency, so one copy serves graph convolution, negative sampling and masking.
"""

# Shapes: U user rows, I item rows, E edges, N nodes, B rows of a batch, M items of each.

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recdistill.data.draws import words
from recdistill.data.transforms.rows import FIRST
from recdistill.errors import LogError
from recdistill.publish import published

FORMAT = 1


class Csr(NamedTuple):
    """A sparse matrix by rows: where each row starts, int64 (rows + 1,), and the column and weight of each entry."""

    offsets: Tensor
    columns: Tensor
    weights: Tensor

    def dense(self, width: int) -> Tensor:
        """The whole matrix; for small ones."""
        rows = len(self.offsets) - 1
        row_E = torch.repeat_interleave(torch.arange(rows), self.offsets.diff())
        return self.weights.new_zeros(rows, width).index_put((row_E, self.columns), self.weights, accumulate=True)


class Halves(NamedTuple):
    """The two blocks of a bipartite adjacency: ``user`` is (U, I), ``item`` is its transpose, (I, U)."""

    user: Csr
    item: Csr


@dataclass(frozen=True, eq=False)
class Positives:
    """The items of each user, ascending, one list after the other.

    Attributes:
        offsets: where each user's list starts, and the end of the last one, int64 (U + 1,).
        item_E: the items, int64 (E,).
        items: I, rows of the item table.
    """

    offsets: Tensor
    item_E: Tensor
    items: int

    @property
    def users(self) -> int:
        """U, rows of the user table."""
        return len(self.offsets) - 1

    def count(self, user_B: Tensor) -> Tensor:
        """How many items each user has, int64 (B,)."""
        return self.offsets[user_B + 1] - self.offsets[user_B]

    def contains(self, user_B: Tensor, item_BM: Tensor) -> Tensor:
        """Whether an item is one of the user's, bool (B, M)."""
        wanted_BM = user_B.unsqueeze(1) * self.items + item_BM
        place_BM = torch.searchsorted(self._key_E, wanted_BM).clamp(max=max(len(self.item_E) - 1, 0))
        return self._key_E[place_BM] == wanted_BM if len(self.item_E) else torch.zeros_like(wanted_BM, dtype=torch.bool)

    def among(self, user_B: Tensor, item_M: Tensor) -> Tensor:
        """Whether each of some items, the same for all users, is one of a user's, bool (B, M).

        It looks for the users' items among these, which is much faster than looking for each of these in each list.
        """
        unique_N, column_M = torch.unique(item_M, return_inverse=True)
        item_L, offsets = self.of(user_B)
        row_L = torch.repeat_interleave(torch.arange(len(user_B)), offsets.diff())
        place_L = torch.searchsorted(unique_N, item_L).clamp(max=max(len(unique_N) - 1, 0))
        found_L = torch.nonzero(unique_N[place_L] == item_L).flatten() if len(unique_N) else place_L[:0]
        is_taken_BN = torch.zeros(len(user_B), len(unique_N), dtype=torch.bool)
        is_taken_BN[row_L[found_L], place_L[found_L]] = True
        return is_taken_BN[:, column_M]

    def of(self, user_B: Tensor) -> tuple[Tensor, Tensor]:
        """The items of some users one after the other, (L,), and where each list starts and the last one ends."""
        length_B = self.count(user_B)
        offsets = torch.cat([length_B.new_zeros(1), length_B.cumsum(0)])
        shift_L = torch.repeat_interleave(self.offsets[user_B] - offsets[:-1], length_B)
        return self.item_E[shift_L + torch.arange(len(shift_L))], offsets

    @cached_property
    def _key_E(self) -> Tensor:
        """User and item of each edge as one number; ascending, because the edges are."""
        return torch.repeat_interleave(torch.arange(self.users), self.offsets.diff()) * self.items + self.item_E


@dataclass(frozen=True, eq=False)
class Graph:
    """Users and items with the edges between them.

    Attributes:
        users: U, rows of the user table, the reserved ones included.
        items: I, rows of the item table.
        user_E: the user row of each edge, int64 (E,); edges are sorted by user, then item, and none occurs twice.
        item_E: the item row of each edge.
        built: what the graph was made from, in words and numbers.

    Raises:
        LogError: the edges are not of that form.

    Example:
        >>> graph = Graph.of(4, 5, torch.tensor([3, 2, 2, 2]), torch.tensor([2, 4, 3, 4]))
        >>> graph.user_E.tolist(), graph.item_E.tolist(), graph.item_degree_I.tolist()
        ([2, 2, 3], [3, 4, 2], [0, 0, 1, 1, 1])
        >>> graph.normalised().user.dense(5)[2]
        tensor([0.0000, 0.0000, 0.0000, 0.7071, 0.7071])
    """

    users: int
    items: int
    user_E: Tensor
    item_E: Tensor
    built: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sides = {"user": (self.user_E, self.users), "item": (self.item_E, self.items)}
        for name, (row_E, rows) in sides.items():
            if row_E.dtype != torch.int64 or row_E.dim() != 1 or len(row_E) != len(self.user_E):
                raise LogError(
                    f"graph: {name} rows must be int64 of shape ({len(self.user_E)},), found {row_E.dtype} of shape "
                    f"{tuple(row_E.shape)}; make it with Graph.of"
                )
            if len(row_E) and not (int(row_E.min()) >= FIRST and int(row_E.max()) < rows):
                raise LogError(
                    f"graph: {name} rows must lie in [{FIRST}, {rows}), as those of its table, found "
                    f"[{int(row_E.min())}, {int(row_E.max())}]; build the graph from the log that was encoded"
                )
        key_E = self.user_E * self.items + self.item_E
        if bool((key_E[1:] <= key_E[:-1]).any()):
            raise LogError("graph: edges must be sorted by user and item, each once; make it with Graph.of")

    @classmethod
    def of(cls, users: int, items: int, user_E: Tensor, item_E: Tensor, **built: Any) -> "Graph":
        """The graph of edges in any order; edges that occur several times become one."""
        key_E = torch.unique(user_E * items + item_E)
        return cls(users, items, key_E // items, key_E % items, built)

    @cached_property
    def user_degree_U(self) -> Tensor:
        """The number of items of each user row, int64 (U,)."""
        return torch.bincount(self.user_E, minlength=self.users)

    @cached_property
    def item_degree_I(self) -> Tensor:
        """The number of users of each item row, int64 (I,)."""
        return torch.bincount(self.item_E, minlength=self.items)

    @cached_property
    def positives(self) -> Positives:
        """The items of each user."""
        return Positives(offsets_of(self.user_degree_U), self.item_E, self.items)

    def flipped(self) -> "Graph":
        """The same graph with users and items exchanged."""
        order_E = torch.argsort(self.item_E, stable=True)
        return Graph(self.items, self.users, self.item_E[order_E], self.user_E[order_E], self.built)

    def normalised(self, dtype: torch.dtype = torch.float32) -> Halves:
        """The halves of ``D^-1/2 A D^-1/2``: an edge weighs one over the root of the product of its degrees."""
        weight_E = (self.user_degree_U[self.user_E] * self.item_degree_I[self.item_E]).double().rsqrt().to(dtype)
        order_E = torch.argsort(self.item_E, stable=True)
        user = Csr(offsets_of(self.user_degree_U), self.item_E, weight_E)
        return Halves(user, Csr(offsets_of(self.item_degree_I), self.user_E[order_E], weight_E[order_E]))

    def permuted(self, seed: int) -> "Graph":
        """A control: the same degrees, but the items of all edges permuted over them.

        Pairs that the permutation makes twice become one edge, so that a few degrees are smaller.
        """
        order_E = torch.argsort(words(torch.arange(len(self.item_E)), 1, purpose="permuted graph", seed=seed)[:, 0])
        return Graph.of(self.users, self.items, self.user_E, self.item_E[order_E], **{**self.built, "permuted": seed})

    def popularity_groups(self, groups: int) -> Tensor:
        """The group of each item row, 0 the least popular, so that all groups have about the same number of edges.

        Item rows without an edge are in the first group.

        Source: UnKD, Chen et al., 2023, section 3.2.
        """
        order_I = torch.argsort(self.item_degree_I, stable=True)
        share_I = self.item_degree_I[order_I].cumsum(0) - self.item_degree_I[order_I]
        group_I = (share_I * groups // max(len(self.item_E), 1)).clamp(max=groups - 1)
        return torch.zeros_like(group_I).index_copy(0, order_I, group_I)

    def save(self, path: Path) -> None:
        """Write the graph to a safetensors file, which appears only when it is complete."""
        about = {"format": FORMAT, "users": self.users, "items": self.items, "built": dict(self.built)}
        tensors = {"user_E": self.user_E.contiguous(), "item_E": self.item_E.contiguous()}
        with published(path) as work:
            save_file(tensors, work, {"graph": json.dumps(about, default=str)})

    @classmethod
    def load(cls, path: Path) -> "Graph":
        """The graph that `save` has written.

        Raises:
            LogError: the file holds none.
        """
        try:
            with safe_open(path, "pt") as file:
                about = json.loads((file.metadata() or {})["graph"])
                if about["format"] != FORMAT:
                    raise ValueError(f"format {about['format']} instead of {FORMAT}")
                edges = file.get_tensor("user_E"), file.get_tensor("item_E")
            return cls(int(about["users"]), int(about["items"]), *edges, about["built"])
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            raise LogError(f"{path}: holds no readable graph ({error}); build it again") from None


def offsets_of(length_R: Tensor) -> Tensor:
    """CSR offsets for lists of these lengths, int64 (R + 1,)."""
    return torch.cat([length_R.new_zeros(1), length_R.cumsum(0)])
