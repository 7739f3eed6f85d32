"""Binary codes as they are served: packed into words, scored by counting the bits in which two of them differ.

    score = R - 2 * popcount(user xor item), the inner product of the codes as -1 and +1

    codes.pt       TorchScript: the packed codes of all items and the scan; loads with plain torch
    codes.faiss    the same codes as a binary index of faiss, if that is installed
    codes.json     what is in the folder

An item takes R / 8 bytes, 1/32 of a float vector of as many numbers. PyTorch has no operation that counts bits, so
there are two ways to the same numbers, both exact. *Counting* adds bits up side by side within each word, a dozen cheap
operations for 64 bits; they are kept so small that PyTorch does not share them among threads, which would wait for each
other longer than they work. *A product* unpacks a block of items to -1 and +1 and multiplies it with the queries, which
pays as soon as there are many: it costs what the product of float vectors costs. Equal scores go by item id, so that a
list is the same on every machine.
"""

# Shapes: B queries, N items, R bits, W words of 64 bits, K results, E items known to the queries.

import hashlib
import importlib.util
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recdistill.errors import ExportError
from recdistill.export.artefact import save_script
from recdistill.publish import is_foreign, published

FORMAT = 1
MANY = 32  # queries from which on a product beats counting
CELLS = 2**15 - 1  # distances counted at a time: from 2**15 on PyTorch shares an operation among threads
BLOCK = 2**16  # items that are unpacked at a time
EXACT = 2**24  # whole numbers up to it are exact in float32


def pack(code_NR: Tensor) -> Tensor:
    """Codes of -1 and +1 as words of 64 bits, int64 (N, W); +1 is a set bit, and bits behind the last are not set.

    Args:
        code_NR: the codes, (N, R).

    Raises:
        ExportError: they hold something else.

    Example:
        >>> pack(torch.tensor([[1.0, -1.0, 1.0], [-1.0, -1.0, -1.0]])).tolist()
        [[5], [0]]
    """
    if code_NR.dim() != 2 or not bool((code_NR.abs() == 1).all()):
        raise ExportError(
            f"codes: expected -1 and +1 of shape (N, R), found other values or another shape, {tuple(code_NR.shape)}; "
            "take the signs that the member is scored with"
        )
    return packed(code_NR)


def packed(value_NR: Tensor) -> Tensor:
    """The signs of numbers as words of 64 bits, int64 (N, W); 0 counts as positive, as in training."""
    rows, width = value_NR.size(0), value_NR.size(1)
    words: list[Tensor] = [torch.zeros((0, rows), dtype=torch.int64)]
    for first in range(0, width, 64):
        is_set = (value_NR[:, first : first + 64] >= 0).to(torch.int64)
        words.append(torch.bitwise_left_shift(is_set, torch.arange(is_set.size(1))).sum(1).unsqueeze(0))
    return torch.cat(words).t().contiguous()


def unpack(word_NW: Tensor, bits: int) -> Tensor:
    """What `pack` has packed: codes of -1 and +1, float32 (N, R).

    Example:
        >>> unpack(torch.tensor([[5]]), 3)
        tensor([[ 1., -1.,  1.]])
    """
    is_set = torch.bitwise_right_shift(word_NW.unsqueeze(2), torch.arange(64)) & 1
    return (2.0 * is_set.flatten(1)[:, :bits] - 1.0).to(torch.float32)


def unpacked(word_NW: Tensor, sign_256: Tensor, bits: int) -> Tensor:
    """Codes of -1 and +1, float32 (N, R), from words, byte by byte with the signs of each byte, (256, 8)."""
    shift_8 = 8 * torch.arange(8)
    byte_NV = torch.bitwise_right_shift(word_NW.unsqueeze(2), shift_8).flatten(1) & 255
    return sign_256[byte_NV].flatten(1)[:, :bits]


def popcount_(word: Tensor, spare: Tensor) -> Tensor:
    """The number of set bits of each word, in its place; ``spare`` is a buffer of the same shape.

    Counts of neighbouring bits, pairs and nibbles are added side by side; one multiplication adds up the bytes. The
    masks remove what an arithmetic shift drags in from the sign.

    Source: Warren, Hacker's Delight, 2002, section 5-1.
    """
    torch.bitwise_right_shift(word, 1, out=spare)
    spare.bitwise_and_(0x5555555555555555)
    word.sub_(spare)
    torch.bitwise_right_shift(word, 2, out=spare)
    spare.bitwise_and_(0x3333333333333333)
    word.bitwise_and_(0x3333333333333333)
    word.add_(spare)
    torch.bitwise_right_shift(word, 4, out=spare)
    word.add_(spare)
    word.bitwise_and_(0x0F0F0F0F0F0F0F0F)
    word.mul_(0x0101010101010101)
    return word.bitwise_right_shift_(56)


class CodeIndex(nn.Module):
    """The packed codes of items, and the scan that finds the best of them for a packed query.

    Args:
        word_NW: codes from `pack`, int64 (N, W).
        item_N: the id of each, int64 (N,), all different.
        bits: R.

    Raises:
        ExportError: ids occur twice, or shapes do not fit.
    """

    word_WN: Tensor
    item_N: Tensor
    sign_256: Tensor

    def __init__(self, word_NW: Tensor, item_N: Tensor, bits: int) -> None:
        super().__init__()
        if word_NW.shape != (len(item_N), (bits + 63) // 64) or len(item_N.unique()) != len(item_N) or not len(item_N):
            raise ExportError(
                f"codes: {bits} bits of {len(item_N)} items ({len(item_N.unique())} different) take words of shape "
                f"{(len(item_N), (bits + 63) // 64)}, found {tuple(word_NW.shape)}; pack one code for each item"
            )
        order_N = torch.argsort(item_N)  # ties go by place, which is then the order of ids
        self.register_buffer("word_WN", word_NW[order_N].t().contiguous())
        self.register_buffer("item_N", item_N[order_N].contiguous())
        byte_256 = torch.arange(256).unsqueeze(1)
        self.register_buffer("sign_256", 2.0 * (torch.bitwise_right_shift(byte_256, torch.arange(8)) & 1) - 1.0)
        self.bits = bits
        self.many = MANY
        self.cells = CELLS
        self.block = min(BLOCK, EXACT // (bits + 1))
        self.rows = 512  # queries that a block is multiplied with at a time

    def forward(
        self,
        word_BW: Tensor,
        count: int,
        known_offsets: Tensor | None = None,
        known_E: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The best items of each query: scores and ids, int64 (B, K), best first, equal scores by id.

        Args:
            word_BW: packed queries, int64 (B, W).
            count: K.
            known_offsets: where the list of each query starts in ``known_E``, and the last one ends, int64 (B + 1,).
            known_E: ids that a query must not find, int64 (E,).

        Where fewer than K items are left, scores are ``-R - 1`` and ids -1.
        """
        row_E, place_E = self.known(known_offsets, known_E)
        wanted = min(count, self.item_N.numel())
        if word_BW.size(0) >= self.many:
            return self.named(self.by_product(word_BW, wanted, row_E, place_E), count)
        return self.named(self.by_counting(word_BW, wanted, row_E, place_E), count)

    def by_counting(self, word_BW: Tensor, count: int, row_E: Tensor, place_E: Tensor) -> Tensor:
        """The lowest ``distance * N + place`` of each query, ascending, int64 (B, K); one query after the other."""
        items = self.item_N.numel()
        place_N = torch.arange(items)
        key_N = torch.empty(items, dtype=torch.int64)
        found = torch.empty((word_BW.size(0), count), dtype=torch.int64)
        for query in range(word_BW.size(0)):
            for first in range(0, items, self.cells):
                last = min(first + self.cells, items)
                key = self.distances(word_BW[query : query + 1], first, last)[0].mul_(items)
                torch.add(key, place_N[first:last], out=key_N[first:last])
            if row_E.numel() > 0:
                key_N[place_E[row_E == query]] = (self.bits + 1) * items
            found[query] = key_N.topk(count, 0, False, True)[0]
        return found

    def by_product(self, word_BW: Tensor, count: int, row_E: Tensor, place_E: Tensor) -> Tensor:
        """The same from products of signs.

        The product is taken of codes times the size of a block, with the place subtracted as one more number, so that
        all keys differ and are whole numbers that float32 holds exactly, whatever the order of summation.
        """
        items, queries = self.item_N.numel(), word_BW.size(0)
        size = self.block
        one_B1 = torch.ones((queries, 1))
        user_BR = torch.cat([unpacked(word_BW, self.sign_256, self.bits), one_B1], 1)
        buffer = torch.empty((min(self.rows, queries), min(size, items)))  # used again: fresh memory is slow
        parts: list[Tensor] = []
        for first in range(0, items, size):
            last = min(first + size, items)
            item_NR = unpacked(self.word_WN[:, first:last].t().contiguous(), self.sign_256, self.bits) * size
            place_N1 = torch.arange(last - first).unsqueeze(1).to(torch.float32)
            item_NR = torch.cat([item_NR, -place_N1], 1)
            found: list[Tensor] = []
            for start in range(0, queries, self.rows):
                end = min(start + self.rows, queries)
                key = buffer[: end - start, : last - first]
                torch.mm(user_BR[start:end], item_NR.t(), out=key)
                if row_E.numel() > 0:
                    edge_2 = torch.searchsorted(row_E, torch.tensor([start, end]))
                    low, high = int(edge_2[0]), int(edge_2[1])
                    row_F, place_F = row_E[low:high] - start, place_E[low:high] - first
                    mine = (place_F >= 0) & (place_F < last - first)
                    key[row_F[mine], place_F[mine]] = -(self.bits + 2.0) * size
                found.append(key.topk(min(count, last - first), 1, True, True)[0])
            best = torch.cat(found).to(torch.int64)
            product = torch.div(best + (size - 1), size, rounding_mode="floor")
            place = product * size - best + first
            parts.append(torch.div(self.bits - product, 2, rounding_mode="floor") * items + place)
        return torch.cat(parts, 1).topk(count, 1, False, True)[0]

    @torch.jit.export
    def scores(self, word_BW: Tensor) -> Tensor:
        """The scores of all items, ascending in id, int64 (B, N)."""
        return self.bits - 2 * self.distances(word_BW, 0, self.item_N.numel())

    @torch.jit.export
    def pack(self, value_BR: Tensor) -> Tensor:
        """Queries from codes, or from the numbers whose signs they are, (B, R)."""
        if value_BR.size(1) != self.bits:
            raise ValueError("the index has codes of " + str(self.bits) + " bits, not " + str(value_BR.size(1)))
        return packed(value_BR)

    def distances(self, word_BW: Tensor, first: int, last: int) -> Tensor:
        """In how many bits each query differs from the items in some places, int64 (B, last - first)."""
        total = torch.bitwise_xor(word_BW[:, 0].unsqueeze(1), self.word_WN[0, first:last])
        spare = torch.empty_like(total)
        popcount_(total, spare)
        for w in range(1, self.word_WN.size(0)):
            more = torch.bitwise_xor(word_BW[:, w].unsqueeze(1), self.word_WN[w, first:last])
            total.add_(popcount_(more, spare))
        return total

    def known(self, known_offsets: Tensor | None, known_E: Tensor | None) -> tuple[Tensor, Tensor]:
        """The query and the place of each known item that the index holds."""
        if known_offsets is None or known_E is None:
            return torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
        row_E = torch.repeat_interleave(torch.arange(known_offsets.numel() - 1), known_offsets.diff())
        place_E = torch.searchsorted(self.item_N, known_E).clamp(max=self.item_N.numel() - 1)
        is_here_E = self.item_N[place_E] == known_E
        return row_E[is_here_E], place_E[is_here_E]

    def named(self, key_BK: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Scores and ids from distances and places."""
        items = self.item_N.numel()
        distance_BK = torch.div(key_BK, items, rounding_mode="floor")
        is_left_BK = distance_BK <= self.bits
        id_BK = torch.where(is_left_BK, self.item_N[key_BK.remainder(items)], torch.full_like(key_BK, -1))
        score_BK = torch.where(is_left_BK, self.bits - 2 * distance_BK, torch.full_like(key_BK, -self.bits - 1))
        missing = count - key_BK.size(1)
        if missing > 0:
            score_BK = nn.functional.pad(score_BK, [0, missing], value=-self.bits - 1.0)
            id_BK = nn.functional.pad(id_BK, [0, missing], value=-1.0)
        return score_BK, id_BK


def has_faiss() -> bool:
    """Whether faiss is installed."""
    return importlib.util.find_spec("faiss") is not None


def faiss_index(word_NW: Tensor, item_N: Tensor) -> Any:
    """A flat binary index of faiss on packed codes, whose results carry the items' ids.

    It returns distances d, so that ``R - 2 d`` is the score. The same items are found, but equal scores come in any
    order.

    Raises:
        ExportError: faiss is not installed.
    """
    if not has_faiss():
        raise ExportError("codes: faiss is not installed; install recdistill[faiss], or serve codes.pt alone")
    import faiss

    flat = faiss.IndexBinaryFlat(64 * word_NW.shape[1])
    flat.use_heap = False  # counting distances selects the best a fifth faster than a heap, and as exactly
    index = faiss.IndexBinaryIDMap(flat)
    index.own_fields = True
    flat.this.disown()  # the map frees it
    index.add_with_ids(as_bytes(word_NW), item_N.numpy())
    return index


def as_bytes(word_NW: Tensor) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Packed codes as faiss takes them, uint8 (N, 8 W)."""
    return np.ascontiguousarray(word_NW.numpy()).view(np.uint8)


def write_index(folder: Path, word_NW: Tensor, item_N: Tensor, bits: int, *, faiss: bool | None = None) -> None:
    """Write the codes of items; the folder appears only when it is complete.

    Args:
        folder: where to write.
        word_NW: codes from `pack`.
        item_N: the id of each.
        bits: R.
        faiss: whether to write an index of faiss as well; None if it is installed.

    Raises:
        ExportError: codes and ids do not fit, faiss is asked for and not installed, or the folder holds something else.
    """
    if is_foreign(folder, "codes.json", {"format", "bits", "files"}):
        raise ExportError(f"{folder}: exists and holds no codes; give another folder")
    with published(folder) as work:
        work.mkdir()
        index = CodeIndex(word_NW, item_N, bits).eval()
        save_script(index, work / "codes.pt")
        if has_faiss() if faiss is None else faiss:
            other = faiss_index(word_NW, item_N)
            import faiss as library

            library.write_index_binary(other, str(work / "codes.faiss"))
        about = {
            "format": FORMAT,
            "bits": bits,
            "items": len(item_N),
            "bytes_per_item": 8 * word_NW.shape[1],
            "score": "bits - 2 * popcount(query xor item); equal scores by item id",
            "files": {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(work.iterdir())},
        }
        (work / "codes.json").write_text(json.dumps(about, indent=1), encoding="utf-8")


def load_index(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The scripted index of a folder and what is said about it.

    Loading runs the code in the archive: load only what you trust.

    Raises:
        ExportError: the folder holds no index, or files that have changed since.
    """
    try:
        about = json.loads((folder / "codes.json").read_text(encoding="utf-8"))
        digests = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in about["files"]}
        if wrong := sorted(name for name, digest in digests.items() if digest != about["files"][name]):
            raise ValueError(f"{wrong[0]} changed since export")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            return torch.jit.load(str(folder / "codes.pt")), about
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ExportError(f"{folder}: holds no readable index of codes ({reason}); export it again") from None
