"""What a slip of the keyboard can make of a job: one value, key or word of it broken, in every way."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recdistill.spec.load import assign

WRONG = (None, "text", 7, -0.5, True, [], {}, [[]], {"text": {}})  # values of every type, most of them out of place
PART = re.compile(r"[A-Za-z_]\w*|(?<![\w.])\d+(?:\.\d+)?")  # the words and the numbers of a term
APART = ("spec", "log", "variants", "row", "paper", "about")  # other files, other jobs, and what is only said
HUGE = 10**12


@dataclass(frozen=True)
class Mutation:
    """One mistake in a job: a value that stands in place of a right one.

    Attributes:
        place: the key path of the value.
        words: what is wrong.
        value: the wrong value.
    """

    place: str
    words: str
    value: Any

    def __str__(self) -> str:
        return f"{self.place}: {self.words}"

    def of(self, raw: Mapping[str, Any]) -> dict[str, Any]:
        """The job with the mistake in it."""
        return assign(raw, {self.place: self.value}, str(self))


def mutations(raw: Mapping[str, Any]) -> list[Mutation]:
    """Every mistake that a job can be given in one place."""
    return [
        Mutation(place, words, value)
        for place, node in _nodes(raw)
        if place.partition(".")[0] not in APART
        for words, value in (*_in_place_of(node), *_with_other_keys(node))
    ]


def misspelt(word: str) -> str:
    """A word with two letters in each other's places."""
    return word[:1] + word[2:3] + word[1:2] + word[3:] if len(word) > 2 else f"{word}x"


def _nodes(raw: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every value within nested mappings and lists, by its place."""
    if place:
        yield place, raw
    inside = raw.items() if isinstance(raw, dict) else enumerate(raw) if isinstance(raw, list) else ()
    for key, value in inside:
        if "." not in str(key):
            yield from _nodes(value, f"{place}.{key}" if place else str(key))


def _in_place_of(node: Any) -> Iterator[tuple[str, Any]]:
    """Wrong values for a right one."""
    for wrong in WRONG:
        yield f"{wrong!r} for {node!r}", wrong
    if isinstance(node, list) and node:
        yield f"{node[0]!r} twice", [node[0], *node]
    if isinstance(node, str):
        for part in PART.finditer(node):
            for other in _numbers(part.group()) if part.group()[0].isdigit() else [misspelt(part.group())]:
                yield f"{other} for {part.group()} in {node!r}", node[: part.start()] + other + node[part.end() :]
    elif isinstance(node, int | float) and not isinstance(node, bool):
        for number in (-node, 0, HUGE):
            yield f"{number} for {node}", number


def _numbers(right: str) -> list[str]:
    """Wrong numbers in a term."""
    return [f"-{right}", "0", str(HUGE)]


def _with_other_keys(node: Any) -> Iterator[tuple[str, Any]]:
    """A mapping with a key misspelt or left out."""
    for key in node if isinstance(node, dict) else ():
        yield f"{key} misspelt", {misspelt(k) if k == key else k: v for k, v in node.items()}
        yield f"{key} left out", {k: v for k, v in node.items() if k != key}
