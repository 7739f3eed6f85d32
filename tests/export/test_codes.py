"""Packed codes: the scan against inner products of -1 and +1, where equal scores fall, and what serving needs."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from recdistill.errors import ExportError
from recdistill.export import codes as export
from recdistill.export.artefact import scripted
from recdistill.export.codes import CodeIndex, as_bytes, faiss_index, load_index, pack, packed, unpack, write_index

HAS_FAISS = export.has_faiss()
needs_faiss = pytest.mark.skipif(not HAS_FAISS, reason="faiss is not installed; pip install recdistill[faiss]")


def some_codes(rows: int, bits: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.where(torch.rand(rows, bits, generator=generator) < 0.5, -1.0, 1.0)


def index_of(code: Tensor, ids: Tensor | None = None) -> CodeIndex:
    return CodeIndex(pack(code), torch.arange(len(code)) if ids is None else ids, code.shape[1])


def oracle(query: Tensor, code: Tensor, ids: list[int], count: int, known: list[set[int]] | None = None):
    """Scores and ids by sorting inner products, one query at a time."""
    found = []
    for b, row in enumerate((query @ code.t()).tolist()):
        left = [(-s, i) for s, i in zip(row, ids, strict=True) if known is None or i not in known[b]]
        found.append([(int(-s), i) for s, i in sorted(left)[:count]])
    return found


def pairs(found: tuple[Tensor, Tensor]) -> list[list[tuple[int, int]]]:
    return [
        [(s, i) for s, i in zip(*row, strict=True) if i >= 0]
        for row in zip(found[0].tolist(), found[1].tolist(), strict=True)
    ]


@given(st.integers(1, 200), st.integers(1, 30), st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_scores_are_the_inner_products_and_packing_can_be_undone(bits, rows, seed) -> None:
    code, query = some_codes(rows, bits, seed), some_codes(5, bits, seed + 1)
    words = pack(code)
    assert words.shape == (rows, (bits + 63) // 64) and words.dtype == torch.int64
    assert torch.equal(unpack(words, bits), code)
    assert torch.equal(index_of(code).scores(pack(query)), (query @ code.t()).long())


@pytest.mark.parametrize("bits", [1, 63, 64, 65, 128])
def test_scores_reach_both_ends_whatever_the_highest_bit(bits: int) -> None:
    code = torch.cat([torch.ones(1, bits), -torch.ones(1, bits), some_codes(6, bits)])
    assert torch.equal(index_of(code).scores(pack(code)), (code @ code.t()).long())


WAYS = st.sampled_from(["counting", "product"])


def small(index: CodeIndex, way: str, size: int) -> CodeIndex:
    """The index made to work in one way, and in blocks so small that several are put together."""
    index.many = 0 if way == "product" else 1000
    index.cells = size
    index.block = size
    index.rows = 2
    return index


@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([3, 64, 70]), st.integers(1, 20), WAYS)
@settings(deadline=None, max_examples=60)
def test_the_best_items_come_in_order_and_equal_scores_by_id(seed, count, bits, size, way) -> None:
    code, query = some_codes(9, bits, seed), some_codes(4, bits, seed + 1)
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(seed))[:9] * 3
    index = small(index_of(code, ids), way, size)
    assert pairs(index(pack(query), count)) == oracle(query, code, ids.tolist(), count)


@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 20), WAYS)
@settings(deadline=None, max_examples=60)
def test_known_items_are_left_out(seed, count, size, way) -> None:
    rng = np.random.default_rng(seed)
    code, query = some_codes(8, 6, seed), some_codes(5, 6, seed + 1)
    ids = torch.arange(8) * 2 + 10
    known = [set(rng.choice(np.arange(8, 28), rng.integers(0, 9), replace=False).tolist()) for _ in range(5)]
    offsets = torch.tensor([0, *np.cumsum([len(k) for k in known]).tolist()])
    flat = torch.tensor([i for k in known for i in k], dtype=torch.int64)
    index = small(index_of(code, ids), way, size)
    found = index(pack(query), count, offsets, flat)
    assert pairs(found) == oracle(query, code, ids.tolist(), count, known)
    assert found[0].shape == found[1].shape == (5, count)
    assert bool(((found[0] == -7) == (found[1] == -1)).all())


def test_more_results_than_items_are_filled_up_and_no_queries_are_answered() -> None:
    index = index_of(some_codes(3, 5))
    score, item = index(pack(some_codes(2, 5)), 6)
    assert (item[:, 3:] == -1).all() and (score[:, 3:] == -6).all() and (item[:, :3] >= 0).all()
    empty = index(torch.zeros((0, 1), dtype=torch.int64), 6)
    assert empty[0].shape == empty[1].shape == (0, 6)


def test_the_scripted_index_equals_the_eager_one() -> None:
    code, query = some_codes(300, 70), some_codes(export.MANY + 5, 70, 1)
    index = index_of(code)
    again = scripted(index)
    words = again.pack(query)
    assert torch.equal(words, pack(query))
    assert torch.equal(again.scores(words), index.scores(words))
    offsets, known = torch.arange(len(query) + 1) * 5, torch.arange(5 * len(query))
    for options in ((), (offsets, known)):
        found = index(words, 10, *options)
        for a, b in zip(again(words, 10, *options), found, strict=True):
            assert torch.equal(a, b)
        few = slice(0, 4)  # so few that bits are counted
        less = (offsets[:5], known[:20]) if options else ()
        for a, b in zip(again(words[few], 10, *less), found, strict=True):
            assert torch.equal(a, b[few])


@pytest.mark.parametrize(("bits", "rows"), [(64, 70_000), (300, 60_000), (2000, 9000)])
def test_products_are_exact_in_large_blocks(bits: int, rows: int) -> None:
    code, query = some_codes(rows, bits), some_codes(3, bits, 1)
    code[-1] = query[0]
    index = index_of(code)
    index.many = 0
    assert index.block < rows
    counted = index_of(code)(pack(query), 50)
    for a, b in zip(index(pack(query), 50), counted, strict=True):
        assert torch.equal(a, b)
    assert (counted[0][0, 0], counted[1][0, 0]) == (bits, rows - 1)


def test_queries_are_not_written_to() -> None:
    index, words = index_of(some_codes(30, 64)), pack(some_codes(4, 64, 1))
    kept, items = words.clone(), index.word_WN.clone()
    index(words, 5)
    assert torch.equal(words, kept) and torch.equal(index.word_WN, items)


def test_signs_of_numbers_pack_as_training_cuts_them() -> None:
    from recdistill.nets.binary import bits

    value = torch.cat([torch.zeros(1, 9), torch.randn(10, 9)])
    assert torch.equal(packed(value), pack(bits(value)))
    with pytest.raises(ExportError, match=r"expected -1 and \+1"):
        pack(value)
    with pytest.raises(ValueError, match="codes of 9 bits, not 8"):
        index_of(bits(value)).pack(value[:, :8])


def test_an_index_whose_parts_do_not_fit_is_refused() -> None:
    words = pack(some_codes(4, 64))
    for ids, bits in ((torch.tensor([1, 2, 2, 3]), 64), (torch.arange(3), 64), (torch.arange(4), 65)):
        with pytest.raises(ExportError, match="pack one code for each item"):
            CodeIndex(words, ids, bits)
    with pytest.raises(ExportError, match="pack one code"):
        CodeIndex(words[:0], torch.zeros(0, dtype=torch.int64), 64)


def test_a_folder_holds_the_index_and_is_checked_when_read(tmp_path) -> None:
    code, query = some_codes(50, 64), some_codes(3, 64, 1)
    write_index(tmp_path / "codes", pack(code), torch.arange(50) + 7, 64, faiss=False)
    index, about = load_index(tmp_path / "codes")
    assert about["bits"] == 64 and about["items"] == 50 and about["bytes_per_item"] == 8
    assert pairs(index(index.pack(query), 4)) == oracle(query, code, list(range(7, 57)), 4)
    assert sorted(p.name for p in (tmp_path / "codes").iterdir()) == ["codes.json", "codes.pt"]
    assert list(tmp_path.iterdir()) == [tmp_path / "codes"]
    with (tmp_path / "codes" / "codes.pt").open("ab") as file:
        file.write(b"x")
    for place, message in (("codes", r"codes\.pt changed since export"), ("nowhere", "export it again")):
        with pytest.raises(ExportError, match=message):
            load_index(tmp_path / place)


def test_the_index_loads_where_only_torch_is(tmp_path) -> None:
    write_index(tmp_path / "codes", pack(some_codes(50, 64)), torch.arange(50), 64, faiss=False)
    program = (
        "import sys, torch; index = torch.jit.load(sys.argv[1]); assert 'recdistill' not in sys.modules;"
        "score, item = index(index.pack(torch.ones(2, 64)), 3); print(item.shape, int(score.max()))"
    )
    command = [sys.executable, "-I", "-W", "ignore", "-c", program, str(tmp_path / "codes" / "codes.pt")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("torch.Size([2, 3])")


def test_codes_take_a_thirtysecond_of_floats() -> None:
    code = some_codes(1000, 64)
    words = pack(code)
    assert code.numel() * code.element_size() == 32 * words.numel() * words.element_size()


def test_without_faiss_nothing_but_faiss_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(export, "has_faiss", lambda: False)
    words, ids = pack(some_codes(5, 64)), torch.arange(5)
    write_index(tmp_path / "codes", words, ids, 64)
    assert not (tmp_path / "codes" / "codes.faiss").exists()
    with pytest.raises(ExportError, match=r"recdistill\[faiss\]"):
        write_index(tmp_path / "other", words, ids, 64, faiss=True)
    assert [p.name for p in tmp_path.iterdir()] == ["codes"]


@needs_faiss
@pytest.mark.parametrize("bits", [40, 64, 130])
def test_faiss_finds_the_same_scores(bits: int, tmp_path) -> None:
    import faiss

    code, query = some_codes(400, bits), some_codes(9, bits, 1)
    ids = torch.randperm(400, generator=torch.Generator().manual_seed(0)) + 5
    words, queries = pack(code), pack(query)
    write_index(tmp_path / "codes", words, ids, bits, faiss=True)
    found = faiss.read_index_binary(str(tmp_path / "codes" / "codes.faiss"))
    distance, item = found.search(as_bytes(queries), 20)
    score = index_of(code, ids)(queries, 20)[0]
    assert np.array_equal(bits - 2 * distance, score.numpy())
    by_id = dict(zip(ids.tolist(), range(400), strict=True))
    places = torch.tensor([[by_id[int(i)] for i in row] for row in item])
    assert torch.equal((query.unsqueeze(1) * code[places]).sum(2).long(), score)
    assert faiss_index(words, ids).ntotal == 400
