"""Nets whose logit is an inner product of a user's and an item's vector, so that all items can be ranked at once.

Each ends its hidden taps in the two vectors that are multiplied, the user's before the item's; whoever ranks needs them
alone. Such nets say so (``ranks``). Vectors of graph convolutions come from the whole graph; they are computed once for
all nodes, and a row only looks its two up.
"""

# Shapes: B rows, D width of a vector, R bits of a code, U user rows, I item rows.

import torch
from torch import Tensor

from recdistill.errors import TrainingError
from recdistill.nets.binary import Binariser, spread
from recdistill.nets.graph import Bipartite, CrossGcn, LightGcn, Propagation
from recdistill.nets.inputs import Count, Inputs, Outputs, Scorer
from recdistill.nets.towers import places


def two_fields(name: str, inputs: Inputs, labels: int, user: str, item: str) -> tuple[Tensor, Tensor, int]:
    """Where the vectors of user and item lie in the input, and their width.

    Raises:
        TrainingError: there are no such fields of one width, or several logits are asked for.
    """
    if labels != 1:
        raise TrainingError(f"{name}: has one inner product, so one label, but {labels} are asked for")
    widths = {field.name: field.width for field in inputs.embedded}
    if user not in widths or item not in widths or widths[user] != widths[item]:
        raise TrainingError(
            f"{name}: needs the embedded columns {user!r} and {item!r} of one width, found {widths}; let the member "
            "read both"
        )
    return places(inputs, {user}), places(inputs, {item}), widths[user]


class Mf(Scorer):
    """Matrix factorisation: ``<vector of the user, vector of the item>``.

    Args:
        inputs: the fields of the input vector.
        labels: 1.
        user, item: the columns of the ids.

    Source: Koren, Bell and Volinsky, 2009, equation 1, without biases.
    """

    user_places: Tensor
    item_places: Tensor
    ranks = True

    def __init__(self, inputs: Inputs, labels: int, *, user: str, item: str) -> None:
        super().__init__()
        user_places, item_places, _ = two_fields("mf", inputs, labels, user, item)
        self.register_buffer("user_places", user_places, persistent=False)
        self.register_buffer("item_places", item_places, persistent=False)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits of each row; the hidden taps are the two vectors."""
        user_BD, item_BD = embed_BE.index_select(1, self.user_places), embed_BE.index_select(1, self.item_places)
        return Outputs((user_BD * item_BD).sum(1, keepdim=True), [user_BD, item_BD], embed_BE, [])


class BinaryMf(Scorer):
    """Matrix factorisation of codes: ``beta / sqrt(R) <b_user, b_item>``, the codes of `Binariser`.

    Args:
        inputs: the fields of the input vector.
        labels: 1.
        user, item: the columns of the ids, whose embeddings have a number for each bit.
        kind: how codes are made.
        beta: the spread of the scores of unrelated codes.

    Source: P10, Wang et al., 2019.
    Departure: the score is scaled, so that losses see numbers of the size they were made for.
    """

    user_places: Tensor
    item_places: Tensor
    ranks = True
    codes = True

    def __init__(
        self, inputs: Inputs, labels: int, *, user: str, item: str, kind: str = "stochastic", beta: float = 2.0
    ) -> None:
        super().__init__()
        user_places, item_places, bits = two_fields("binary_mf", inputs, labels, user, item)
        self.register_buffer("user_places", user_places, persistent=False)
        self.register_buffer("item_places", item_places, persistent=False)
        self.binariser = Binariser(kind)
        self.scale = spread(beta, bits)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits of each row; the hidden taps are the relaxed codes, the user's code times the scale, the item's."""
        user_BR, user_code_BR = self.binariser(embed_BE.index_select(1, self.user_places))
        item_BR, item_code_BR = self.binariser(embed_BE.index_select(1, self.item_places))
        scaled_BR = self.scale * user_code_BR
        logits_BK = (scaled_BR * item_code_BR).sum(1, keepdim=True)
        return Outputs(logits_BK, [user_BR, item_BR, scaled_BR, item_code_BR], embed_BE, [])


class GraphNet(Scorer):
    """The inner product of vectors that a graph convolution has computed for all nodes.

    The input of a row holds the vectors of its user and item as they lie in the tables, and behind them those that the
    convolution has made of them.

    Args:
        name: of the net.
        inputs: the fields of the input vector.
        labels: 1.
        user, item: the columns of the ids.
    """

    ranks = True
    whole = True  # needs all rows of its tables
    first_places: Tensor
    settled_user: Tensor | None
    settled_item: Tensor | None

    def __init__(self, name: str, inputs: Inputs, labels: int, user: str, item: str) -> None:
        super().__init__()
        user_places, item_places, self.width = two_fields(name, inputs, labels, user, item)
        if len(inputs.embedded) > 2:
            raise TrainingError(f"{name}: reads {user!r} and {item!r} alone; take other columns out of its view")
        self.register_buffer("first_places", torch.cat([user_places, item_places]), persistent=False)
        self.register_buffer("settled_user", None)
        self.register_buffer("settled_item", None)
        self.propagation: Propagation | None = None

    def connect(self, adjacency: Bipartite) -> None:
        """Attach the adjacency."""
        self.propagation = Propagation(adjacency)

    def settle(self, users: int, items: int) -> None:
        """Allocate buffers for precomputed, frozen vectors of all users and items."""
        self.settled_user, self.settled_item = torch.zeros(users, self.width), torch.zeros(items, self.width)

    def propagate(self, user_UD: Tensor, item_ID: Tensor) -> tuple[Tensor, Tensor]:
        """The vectors of all users, (U, D), and of all items, (I, D): settled, or from the rows of their tables.

        Raises:
            TrainingError: it was told of no graph.
        """
        if self.settled_user is not None and self.settled_item is not None:
            return self.settled_user, self.settled_item
        if self.propagation is None:
            raise TrainingError("graph net: was told of no graph; name users and items in the job's `graph`")
        return self.convolve(self.propagation, user_UD, item_ID)

    def convolve(self, propagation: Propagation, user_UD: Tensor, item_ID: Tensor) -> tuple[Tensor, Tensor]:
        """The convolution of the net."""
        raise NotImplementedError

    def forward(self, embed_BE: Tensor) -> Outputs:
        """Logits of each row; the hidden taps are the vectors of the tables, then those of the convolution."""
        first_BW = embed_BE.index_select(1, self.first_places)
        user_BD, item_BD = embed_BE[:, -2 * self.width : -self.width], embed_BE[:, -self.width :]
        hidden = [first_BW[:, : self.width], first_BW[:, self.width :], user_BD, item_BD]
        return Outputs((user_BD * item_BD).sum(1, keepdim=True), hidden, embed_BE, [])


class LightGcnNet(GraphNet):
    """`LightGcn` on the job's graph.

    Args:
        inputs: the fields of the input vector.
        labels: 1.
        user, item: the columns of the ids.
        layers: of the convolution.
    """

    def __init__(self, inputs: Inputs, labels: int, *, user: str, item: str, layers: Count = 3) -> None:
        super().__init__("light_gcn", inputs, labels, user, item)
        self.convolution = LightGcn(layers=layers)

    def convolve(self, propagation: Propagation, user_UD: Tensor, item_ID: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over layers."""
        found: tuple[Tensor, Tensor] = self.convolution(propagation, user_UD, item_ID)
        return found


class CrossGcnNet(GraphNet):
    """`CrossGcn` on the job's graph.

    Args:
        inputs: the fields of the input vector.
        labels: 1.
        user, item: the columns of the ids.
        layers, activation, own: of the convolution.
    """

    def __init__(
        self,
        inputs: Inputs,
        labels: int,
        *,
        user: str,
        item: str,
        layers: Count = 3,
        activation: str = "tanh",
        own: bool = False,
    ) -> None:
        super().__init__("cross_gcn", inputs, labels, user, item)
        self.convolution = CrossGcn(width=self.width, layers=layers, activation=activation, own=own)

    def convolve(self, propagation: Propagation, user_UD: Tensor, item_ID: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over layers that cross what arrives with the first vectors."""
        found: tuple[Tensor, Tensor] = self.convolution(propagation, user_UD, item_ID)
        return found
