"""`python -m tests.benchmarks.codes`: the K best of many items, by packed codes and by float vectors; writes CODES.md.

1,000 users, 100,000 items, the best 100. What is compared, all answers exact:

- *float32*: matrix product and `topk`, in one piece, and in the piece size that is fastest;
- *packed scan*: the TorchScript of `export/codes.py` as it is, which for so many users unpacks blocks of items and
  multiplies signs; and *counting*: the same made to count the differing bits of packed words, as it does for few users;
- *faiss*: a flat binary index on the same words, if faiss is installed.

A second table is about one user at a time, as a request asks.

Rounds are interleaved, so that a slow moment of the machine hits all alike; the fastest round is the least disturbed.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from recdistill.export.artefact import scripted
from recdistill.export.codes import CodeIndex, as_bytes, faiss_index, has_faiss, packed, unpack

HEAD = "| bits | what | ms, median | of float32 | ms, fastest | of float32 | bytes an item |"


def contenders(bits: int, users: int, items: int, count: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Each way with the bytes that an item takes; they are checked against each other first."""
    generator = torch.Generator().manual_seed(0)
    user, item = (torch.randn(n, bits, generator=generator) for n in (users, items))
    words, queries = packed(item), packed(user)
    index, counting = (scripted(CodeIndex(words, torch.arange(items), bits).eval()) for _ in range(2))
    counting.many = users + 1
    user_code, item_code = unpack(queries, bits), unpack(words, bits)

    def pieces(size: int) -> Callable[[], object]:
        return lambda: [(user[i : i + size] @ item.t()).topk(count) for i in range(0, users, size)]

    score = index(queries, count)[0]
    assert torch.equal(score, (user_code @ item_code.t()).topk(count).values.long())
    assert all(torch.equal(a, b) for a, b in zip(index(queries, count), counting(queries, count), strict=True))
    found = {
        "float32": (pieces(users), 4 * bits),
        "packed scan": (lambda: index(queries, count), words.shape[1] * 8),
        "packed scan, counting": (lambda: counting(queries, count), words.shape[1] * 8),
    }
    if users > 64:
        found["float32, 64 users at a time"] = (pieces(64), 4 * bits)
    if has_faiss():
        import faiss

        faiss.omp_set_num_threads(torch.get_num_threads())
        other = faiss_index(words, torch.arange(items))
        assert (bits - 2 * torch.from_numpy(other.search(as_bytes(queries), count)[0]) == score).all()
        found["faiss"] = (lambda: other.search(as_bytes(queries), count), words.shape[1] * 8)
    return found


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--users", type=int, default=1000)
    arguments.add_argument("--items", type=int, default=100_000)
    arguments.add_argument("--count", type=int, default=100)
    arguments.add_argument("--rounds", type=int, default=7)
    given = arguments.parse_args()
    text = f"# Codes\n\n{__doc__.split(chr(10), 2)[2].strip()}\n"
    for users in (given.users, 1):
        lines, ratios = [HEAD, "|---|---|---|---|---|---|---|"], []
        for bits in (64, 128):
            compare(bits, users, given, lines, ratios)
        print("\n".join(ratios))
        text += "\n" + "\n".join([*lines, "", *ratios]) + f"\n\n{users:,} users, {given.items:,} items, the best "
        text += f"{given.count}, {given.rounds} rounds, {torch.get_num_threads()} threads.\n"
    text += f"\ntorch {torch.__version__}, Python {sys.version.split()[0]}.\n"
    (Path(__file__).parent / "CODES.md").write_text(text)


def compare(bits: int, users: int, given: argparse.Namespace, lines: list[str], ratios: list[str]) -> None:
    """Add the lines of a table, and the ratios that faiss is about, for one length of code."""
    ways = contenders(bits, users, given.items, given.count)
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(given.rounds if users > 1 else 30 * given.rounds):
        for name, (run, _) in ways.items():
            start = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - start))
    median = {name: statistics.median(values) for name, values in times.items()}
    fastest = {name: min(values) for name, values in times.items()}
    for name in ways:
        both = (f"{one[name]:.4g} | {one[name] / one['float32']:.2f}" for one in (median, fastest))
        lines.append(f"| {bits} | {name} | {' | '.join(both)} | {ways[name][1]} |")
        print(lines[-1], flush=True)
    if "faiss" in median:
        others = ", ".join(
            f"{value / median['faiss']:.1f} of {name}" for name, value in median.items() if name != "faiss"
        )
        ratios.append(f"{bits} bits, times the speed: faiss has {others}.")


if __name__ == "__main__":
    main()
