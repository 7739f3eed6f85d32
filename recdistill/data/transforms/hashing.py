"""64-bit hashes that agree between the pipeline (numpy) and the artefact (TorchScript).

Integers: splitmix64 (Steele, Lea and Flood, 2014). Texts: FNV-1a (Fowler, Noll and Vo) over UTF-8 bytes, finished by
splitmix64, because FNV alone mixes the last bytes poorly. Hashes travel as int64, the same bits read as signed.
"""

from functools import cache

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from recdistill.data.transforms.raw import LARGEST_WHOLE, MISSING_INT

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
_FNV_OFFSET = 0xCBF29CE484222325
_FNV_PRIME = 0x100000001B3


def splitmix64(values_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """The hash of each integer.

    Example:
        >>> splitmix64(np.array([0, 1, -1])).tolist()
        [-2152535657050944081, -7995527694508729151, -1956407806741107680]
    """
    x = values_N.view(np.uint64) + np.uint64(_GOLDEN)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(_MIX_1)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(_MIX_2)
    return (x ^ (x >> np.uint64(31))).view(np.int64)


def hash_texts(texts: pl.Series) -> NDArray[np.int64]:
    """The hash of each text; a null counts as the empty text.

    Example:
        >>> hash_texts(pl.Series(["", "a", "é"])).tolist()
        [-4359066618775142608, 6857225946766476583, 7936488146098753722]
    """
    offsets, content = utf8(texts)
    hashes = fnv1a(content, offsets[:-1], np.diff(offsets))
    return splitmix64(hashes.view(np.int64))


def utf8(texts: pl.Series) -> tuple[NDArray[np.int64], NDArray[np.uint8]]:
    """Where each text starts, and after them where the last one ends, (N + 1,), in the bytes of all texts; no nulls."""
    array = texts.fill_null("").cast(pl.String).to_arrow().cast(pa.large_binary())
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    _, offset_buffer, byte_buffer = array.buffers()
    offsets = np.frombuffer(offset_buffer, np.int64)[array.offset : array.offset + len(array) + 1]
    return offsets, np.frombuffer(byte_buffer or b"", np.uint8)


def fnv1a(
    content: NDArray[np.uint8],
    start_N: NDArray[np.int64],
    length_N: NDArray[np.int64],
    before_N: NDArray[np.uint64] | None = None,
) -> NDArray[np.uint64]:
    """FNV-1a state per byte run, optionally continued from an earlier state."""
    longest = int(length_N.max(initial=0))
    sortable = -length_N.astype(np.int16) if longest < 2**15 else -length_N  # small numbers are sorted much faster
    order = np.argsort(sortable, kind="stable")  # longest first: those still unread stay a prefix
    start, length = start_N[order], length_N[order]
    hashes = np.full(len(start_N), _FNV_OFFSET, np.uint64) if before_N is None else before_N[order]
    for position, count in enumerate(np.searchsorted(-length, -np.arange(longest), side="left")):
        hashes[:count] = (hashes[:count] ^ content[start[:count] + position]) * np.uint64(_FNV_PRIME)
    found = np.empty_like(hashes)
    found[order] = hashes
    return found


def bucket_of(hash_N: NDArray[np.int64], buckets: int) -> NDArray[np.int64]:
    """The bucket, in [0, buckets), of each hash; the sign bit is dropped so that signed and unsigned division agree."""
    return (hash_N & np.int64(2**63 - 1)) % np.int64(buckets)


def hashable(dtype: pl.DataType) -> bool:
    """Whether `key_hash` takes a column of this type."""
    text = dtype == pl.String or isinstance(dtype, pl.Categorical | pl.Enum)
    return text or dtype.is_integer() or dtype.is_float() or dtype.is_temporal() or dtype == pl.Boolean


def key_hash(series: pl.Series) -> NDArray[np.int64]:
    """The hash of each value of a series; missing values have one too, and whole floats that of the integer.

    Example:
        >>> bool((key_hash(pl.Series([7])) == key_hash(pl.Series([7.0]))).all())
        True
    """
    if series.dtype == pl.String or isinstance(series.dtype, pl.Categorical | pl.Enum):
        return hash_texts(series.cast(pl.String))
    if series.dtype.is_float():
        return splitmix64(_float_keys(series.cast(pl.Float64).fill_null(float("nan")).to_numpy()))
    integers = series.reinterpret(signed=True) if series.dtype == pl.UInt64 else series.cast(pl.Int64)
    return splitmix64(integers.fill_null(MISSING_INT).to_numpy())


def hash_in_turn(columns: pl.Series) -> NDArray[np.int64]:
    """One hash for each row of a struct: its fields' hashes, in their order.

    Example:
        >>> rows = pl.DataFrame({"a": [1, 2], "b": ["x", "x"]}).to_struct()
        >>> len(set(hash_in_turn(rows).tolist()))
        2
    """
    total = np.zeros(len(columns), np.int64)
    for column in columns.struct.unnest():
        total = splitmix64(total ^ key_hash(column))
    return total


def _float_keys(number_N: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers as integers, fractions as their bits, NaN as missing."""
    whole_N = (np.floor(number_N) == number_N) & (np.abs(number_N) < LARGEST_WHOLE)
    key_N = np.where(whole_N, np.where(whole_N, number_N, 0).astype(np.int64), number_N.view(np.int64))
    return np.where(np.isnan(number_N), MISSING_INT, key_N)


def splitmix64_tensor(values_N: Tensor) -> Tensor:
    """`splitmix64` of int64 tensors: products wrap, and a mask makes the arithmetic shift a logical one."""
    x = values_N + -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


def hash_texts_tensor(texts: list[str]) -> Tensor:
    """`hash_texts` in TorchScript, where a text is its bytes and integers wrap; in eager Python neither holds."""
    hashes: list[int] = []
    for text in texts:
        h = -3750763034362895579
        for i in range(len(text)):
            h = (h ^ ord(text[i])) * 1099511628211
        hashes.append(h)
    return splitmix64_tensor(torch.tensor(hashes, dtype=torch.int64))


@cache
def text_hash(text: str) -> int:
    """The hash of one text, as `hash_texts` gives it.

    Example:
        >>> text_hash("home") == int(hash_texts(pl.Series(["home"]))[0])
        True
    """
    return int(hash_texts(pl.Series([text]))[0])
