"""Columns of type ``text``: the words of a text, and runs of neighbouring words, as an unordered bag by hash.

Words are the longest runs of ASCII letters and digits and of bytes beyond ASCII. Pipeline and artefact read the same
bytes, so they agree on any text; a language without spaces needs its words separated in the log.

The bag holds all words in their order, then all pairs, and so on; a word that occurs twice is held twice. A text
without a word is missing. With ``idf`` a word weighs ``log((1 + N) / (1 + df)) + 1``: N training rows, of which df hold
a word of the same bucket.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from recdistill.data.transforms.column import Fitted, Kind, Learned
from recdistill.data.transforms.elements import flat, lists
from recdistill.data.transforms.hashing import bucket_of, fnv1a, splitmix64, splitmix64_tensor, utf8
from recdistill.data.transforms.raw import keyed_by_text
from recdistill.data.transforms.rows import FIRST, MISSING
from recdistill.errors import LogError
from recdistill.spec import columns as declared

SPACE = b" "


def types(name: str, column: declared.Text, schema: pl.Schema, source: str) -> dict[str, pl.DataType]:  # noqa: ARG001
    """The raw column and its type.

    Raises:
        LogError: it holds no texts.
    """
    if not keyed_by_text(schema[source]):
        raise LogError(f"{name}: expected texts, found {schema[source]}; cast the column in the log, or declare a list")
    return {source: schema[source]}


def frequencies(name: str, column: declared.Text, learned: Learned, train: pl.LazyFrame) -> pl.LazyFrame:
    """The number of training rows that hold each embedding row of the column: ``row``, ``df``."""
    (bags,) = _fitted(name, column, learned).polars()
    held = train.select(row=bags.list.unique()).explode("row").filter(pl.col("row") >= FIRST)
    return held.group_by("row").agg(df=pl.len())


def fit(name: str, column: declared.Text, learned: Learned) -> "Text":
    """The fitted column."""
    if not column.idf:
        return _fitted(name, column, learned)
    count_V = np.zeros(column.hash)
    count_V[learned.frames[name]["row"].to_numpy() - FIRST] = learned.frames[name]["df"].to_numpy()
    weight_V = np.log((1 + (learned.statistics["__rows__"] or 0)) / (1 + count_V)) + 1
    return _fitted(name, column, learned, pl.DataFrame({"weight": weight_V.astype(np.float32)}))


def _fitted(name: str, column: declared.Text, learned: Learned, idf: pl.DataFrame | None = None) -> "Text":
    source, _ = learned.only(name)
    return Text(name, source, column.hash, column.ngrams, column.max_length, column.lower, idf, table=name)


@dataclass(frozen=True)
class Text(Fitted):
    """A fitted text; ``idf`` holds the ``weight`` of each bucket."""

    name: str
    source: str
    buckets: int
    ngrams: int
    max_length: int | None
    lower: bool
    idf: pl.DataFrame | None
    table: str
    kind: ClassVar[Kind] = "bag"

    @property
    def raw(self) -> dict[str, pl.DataType]:
        """The raw column."""
        return {self.source: pl.String()}

    @property
    def tables(self) -> dict[str, int]:
        """A table of its own."""
        return {self.table: FIRST + self.buckets}

    @property
    def unknown(self) -> str:
        """All words are hashed."""
        return "hashed like any other"

    @property
    def meaning(self) -> tuple[object, ...]:
        """The number of buckets, and whether capitals count."""
        return self.buckets, self.lower

    def polars(self) -> list[pl.Expr]:
        """Embedding rows, List(Int32), and with ``idf`` their weights, List(Float32)."""
        bags = pl.col(self.source).map_batches(self._bags, return_dtype=pl.List(pl.Int32), is_elementwise=True)
        if self.idf is None:
            return [bags.alias(self.name)]
        weights = bags.map_batches(self._weights, return_dtype=pl.List(pl.Float32), is_elementwise=True)
        return [bags.alias(self.name), weights.alias(f"{self.name}/weights")]

    def _bags(self, texts: pl.Series) -> pl.Series:
        """The bag of each text."""
        hash_L, row_L = grams(texts, letters(lower=self.lower), self.ngrams, self.max_length)
        count_B = np.bincount(row_L, minlength=len(texts))
        empty_B = np.flatnonzero(count_B == 0)
        value_L = np.concatenate([FIRST + bucket_of(hash_L, self.buckets), np.full(len(empty_B), MISSING)])
        order_L = np.argsort(np.concatenate([row_L, empty_B]), kind="stable")
        return lists(np.maximum(count_B, 1), value_L[order_L].astype(np.int32))

    def _weights(self, bags: pl.Series) -> pl.Series:
        """The weights of each bag."""
        return lists(bags.list.len().to_numpy(), self.weight_V[flat(bags).to_numpy()])

    @property
    def weight_V(self) -> NDArray[np.float32]:
        """The weight of each row of the table, 1 for the reserved ones; empty without ``idf``."""
        if self.idf is None:
            return np.zeros(0, np.float32)
        return np.concatenate([np.ones(FIRST, np.float32), self.idf["weight"].to_numpy()])

    def torch(self) -> nn.Module:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and weights, float32 (L,) or empty, from raw inputs."""
        longest = -1 if self.max_length is None else self.max_length
        table = letters(lower=self.lower).tolist()
        return TextModule(self.source, table, self.buckets, self.ngrams, longest, torch.tensor(self.weight_V))


def letters(*, lower: bool) -> NDArray[np.uint8]:
    """What each byte counts as in a word, (256,); 0 if it separates words."""
    found = np.array([i if i >= 128 or chr(i).isalnum() else 0 for i in range(256)], np.uint8)
    if lower:
        found[ord("A") : ord("Z") + 1] = found[ord("a") : ord("z") + 1]
    return found


def grams(
    texts: pl.Series, letter_256: NDArray[np.uint8], ngrams: int, max_length: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The hashes of all words and their runs, words of all texts first, and the text of each."""
    offsets, content = utf8(texts)
    letter_C = letter_256[content[offsets[0] : offsets[-1]]]
    start_W, end_W = words(letter_C, offsets - offsets[0])
    row_W = np.searchsorted(offsets - offsets[0], start_W, side="right") - 1
    if max_length is not None:
        near_W = np.arange(len(row_W)) - np.searchsorted(row_W, row_W) < max_length
        start_W, end_W, row_W = start_W[near_W], end_W[near_W], row_W[near_W]
    state_W = fnv1a(letter_C, start_W, end_W - start_W)
    hashes, rows = [state_W.copy()], [row_W]
    space = np.frombuffer(SPACE, np.uint8)
    for k in range(1, ngrams):
        (first_W,) = np.nonzero(row_W[:-k] == row_W[k:])
        spaced_W = fnv1a(space, np.zeros_like(first_W), np.ones_like(first_W), state_W[first_W])
        state_W[first_W] = fnv1a(letter_C, start_W[first_W + k], (end_W - start_W)[first_W + k], spaced_W)
        hashes.append(state_W[first_W])
        rows.append(row_W[first_W])
    return splitmix64(np.concatenate(hashes).view(np.int64)), np.concatenate(rows)


def words(letter_C: NDArray[np.uint8], offset_N: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where words start and end; none goes on from one text to the next."""
    is_first_C, is_last_C = letter_C > 0, letter_C > 0
    is_first_C[1:] &= letter_C[:-1] == 0
    is_last_C[:-1] &= letter_C[1:] == 0
    inner_N = offset_N[(offset_N > 0) & (offset_N < len(letter_C))]
    is_first_C[inner_N] = letter_C[inner_N] > 0
    is_last_C[inner_N - 1] = letter_C[inner_N - 1] > 0
    return np.flatnonzero(is_first_C), np.flatnonzero(is_last_C) + 1


class TextModule(nn.Module):
    """`Text` inside the artefact."""

    weight: Tensor
    letters: list[int]

    def __init__(
        self, source: str, letters: list[int], buckets: int, ngrams: int, longest: int, weight_V: Tensor
    ) -> None:
        super().__init__()
        self.source = source
        self.letters = letters
        self.buckets = buckets
        self.ngrams = ngrams
        self.longest = longest
        self.register_buffer("weight", weight_V)

    def forward(
        self,
        numbers: dict[str, Tensor],  # noqa: ARG002
        texts: dict[str, list[str]],
        lengths: dict[str, Tensor],  # noqa: ARG002
        batch: int,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Embedding rows, int64 (L,), lengths, int64 (B,), and weights, float32 (L,) or empty."""
        if self.source not in texts:
            rows_L = torch.zeros(batch, dtype=torch.int64)
            return rows_L, torch.ones_like(rows_L), self.weights(rows_L)
        hashes: list[int] = []
        counts: list[int] = []
        empty: list[int] = []
        known: dict[str, list[int]] = {}  # rows of one request often share a text
        for text in texts[self.source]:
            if text not in known:
                known[text] = hash_grams(text, self.letters, self.ngrams, self.longest)
            found = known[text]
            if len(found) == 0:
                empty.append(len(hashes))
                hashes.append(0)
            hashes.extend(found)
            counts.append(max(len(found), 1))
        hash_L = splitmix64_tensor(torch.tensor(hashes, dtype=torch.int64))
        rows_L = 2 + (hash_L & 0x7FFFFFFFFFFFFFFF) % self.buckets
        rows_L[torch.tensor(empty, dtype=torch.int64)] = 0
        return rows_L, torch.tensor(counts, dtype=torch.int64), self.weights(rows_L)

    def weights(self, rows_L: Tensor) -> Tensor:
        """The weight of each embedding row, or nothing if all are 1."""
        return self.weight[rows_L] if self.weight.numel() > 0 else self.weight


def hash_grams(text: str, letters: list[int], ngrams: int, longest: int) -> list[int]:
    """The unfinished hashes of all words of a text, then of all pairs, and so on; in TorchScript, as `grams` does.

    There a text is its bytes and integers wrap; in eager Python neither holds.
    """
    codes: list[int] = []
    starts: list[int] = []
    ends: list[int] = []
    states: list[int] = []
    state = -3750763034362895579
    start = 0
    for character in text + " ":
        code = letters[ord(character)]
        if code > 0:
            state = (state ^ code) * 1099511628211
        else:
            if len(codes) > start:
                states.append(state)
                starts.append(start)
                ends.append(len(codes))
                state = -3750763034362895579
                if len(states) == longest:
                    break
            start = len(codes) + 1
        codes.append(code)
    hashes = states[:]
    for k in range(1, ngrams):
        for i in range(len(states) - k):
            state = (states[i] ^ 32) * 1099511628211
            for place in range(starts[i + k], ends[i + k]):
                state = (state ^ codes[place]) * 1099511628211
            states[i] = state
            hashes.append(state)
    return hashes
