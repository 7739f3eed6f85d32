"""Ten classes of which four teachers know some each: a world for P3, and the job's own words for it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tests.signatures.lab import SPLIT, splits

PARTS = {"north": [0, 1, 2, 3], "south": [3, 4, 5, 6], "west": [6, 7, 8, 9, 0], "centre": [2, 5, 8]}
APART = {**PARTS, "west": [7, 8, 9], "centre": [7, 8, 9]}
CLASSES = 10
ROWS = 300  # of the small log


def labels_of(part: Sequence[int]) -> list[str]:
    return [f"next_{k}" for k in part]


def described(parts: Mapping[str, Sequence[int]], net: Mapping[str, Any]) -> dict[str, Any]:
    """The job's own members and words, for other parts of more classes."""
    members = {"student": {"net": net, "dim": 8, "serve": True}}
    members |= {name: {"net": net, "dim": 8, "labels": labels_of(part)} for name, part in parts.items()}
    terms = [
        f"categorical({name}.logits, stack({', '.join(labels_of(part))})).rows(any({', '.join(labels_of(part))}))"
        for name, part in parts.items()
    ]
    return {
        "label": labels_of(range(CLASSES)),
        "members": members,
        "phases.0.terms": terms,
        **unified(parts),
        "train": {"batch": ROWS, "table_std": 1.0},
    }


def unified(parts: Mapping[str, Sequence[int]] = PARTS, option: str = "") -> dict[str, Any]:
    said = ", ".join(f"{name}.logits" for name in parts)
    return {"phases.1.terms": [f"categorical(student.logits, probability(unify({said}{option})))"]}


def world(seed: int, rows: tuple[int, int, int]) -> tuple[dict[str, Any], np.ndarray]:
    """Six columns of twenty values that decide which of ten classes is likely, and the shares of the classes."""
    rng = np.random.default_rng(seed)
    value_NF = rng.integers(20, size=(sum(rows), 6))
    score_NK = sum(0.7 * rng.normal(size=(20, CLASSES))[value_NF[:, f]] for f in range(6))
    chosen_N = (score_NK + rng.gumbel(size=score_NK.shape)).argmax(1)
    columns = {f"c{f}": value_NF[:, f] for f in range(6)} | {"part": splits(rows), "id": np.arange(sum(rows))}
    columns |= {f"next_{k}": (chosen_N == k).astype(np.int8) for k in range(CLASSES)}
    share_NK = np.exp(score_NK)
    return columns, share_NK / share_NK.sum(1, keepdims=True)


SPEC = {
    "row_id": "id",
    "split": SPLIT,
    "serving": dict.fromkeys((f"c{f}" for f in range(6)), "categorical"),
    "post_event": dict.fromkeys(labels_of(range(CLASSES)), "binary"),
}
