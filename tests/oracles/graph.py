"""Slow graphs: sets and loops where `recdistill.data` sorts, dense matrices where it is sparse."""

from collections import Counter

import numpy as np


def edges_of(rows, user, item, keep):
    """The distinct (user, item) of the rows (dictionaries) that are kept."""
    return sorted({(row[user], row[item]) for row in rows if keep(row)})


def core(edges, least_user, least_item):
    """Edges left after taking away one node that has too few, again and again."""
    left = set(edges)
    while True:
        users, items = Counter(u for u, _ in left), Counter(i for _, i in left)
        weak = [e for e in left if users[e[0]] < least_user or items[e[1]] < least_item]
        if not weak:
            return sorted(left)
        left.remove(weak[0])


def adjacency(edges, users, items):
    """The dense symmetric ``D^-1/2 A D^-1/2`` over users, then items."""
    a = np.zeros((users + items, users + items))
    for u, i in edges:
        a[u, users + i] = a[users + i, u] = 1
    degree = a.sum(1)
    scale = np.array([d**-0.5 if d else 0.0 for d in degree])
    return scale[:, None] * a * scale[None, :]


def propagate(matrix, first_ND, layers):
    """The mean of the layers ``E, A E, A A E, ...``."""
    found, layer = [first_ND], first_ND
    for _ in range(layers):
        layer = matrix @ layer
        found.append(layer)
    return sum(found) / len(found)
