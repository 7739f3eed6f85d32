"""Losses and nets that Python has brought, beside those of this package."""

import json
import re

from recdistill.losses import catalog as losses
from recdistill.nets import catalog as nets


def own_words() -> set[str]:
    """What losses and nets are called that are not this package's, or no longer."""
    tables = ((losses.LOSSES, losses.BUILT_IN), (nets.NETS, nets.BUILT_IN))
    return {name for table, known in tables for name, value in table.items() if known.get(name) is not value}


def uses_own(described: object) -> bool:
    """Whether a job, as JSON could hold it, may speak of such a loss or net.

    What the code of one depends on, nobody can list: constants, helpers, what it encloses. So the same words may mean
    something else the next time, and what was trained by them is of no use to another run.
    """
    words = re.findall(r"\w+", json.dumps(described, ensure_ascii=False))
    return not own_words().isdisjoint(words)
