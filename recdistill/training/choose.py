"""Members that are chosen on validation rows instead of trained: the weights of an ensemble, a calibration."""

from collections.abc import Iterable
from typing import Any

import torch

from recdistill.data.reader import Reader
from recdistill.training.cast import Cast
from recdistill.training.play import play
from recdistill.training.sharding import at_work, device

BATCH = 8192


def choose(cast: Cast, names: Iterable[str], valid: Reader) -> dict[str, dict[str, float]]:
    """Refit members that are fitted on validation rows, using the rows with known labels.

    Returns:
        By member what its net says of the choice.
    """
    wanted = [name for name in sorted(names) if cast.members[name].net.chosen]
    found: dict[str, dict[str, float]] = {}
    for name in wanted:
        label = valid.selection.labels[cast.members[name].labels[0]]
        inputs, labels = [], []
        with torch.no_grad():
            for batch in valid.in_order(BATCH):
                known_B = ~torch.isnan(batch.labels[label])
                inputs.append(play(cast, [*cast.members], batch)[name].embed_BE[known_B])
                labels.append(batch.labels[label][known_B])
        net: Any = cast.heads[name].net
        with at_work():
            found[name] = net.choose(torch.cat(inputs).to(device()), torch.cat(labels).to(device()))
    return found
