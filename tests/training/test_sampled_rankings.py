"""Lists of items on a log of pairs: who is counted under the protocol of sampled candidates."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.errors import LogError
from recdistill.spec.graph import GraphSpec, RankingSpec
from recdistill.spec.load import load_feature_spec
from recdistill.training import rankings
from recdistill.training.rankings import Rankings, Vectors, events_of, lost_of
from tests.conftest import ROOT

USERS, ITEMS, NEW = 6, 30, 1000
GRAPH = GraphSpec(user="user_id", item="item_id")
SPEC = RankingSpec(metric="hr@5", at=[5], sampled={"others": 8, "draws": 2})


def pairs(path: Path, valid: dict[int, list[int]]) -> EncodedLog:
    """Each user takes every other item in training, and some in validation."""
    rows = [(u, i, "train") for u in range(USERS) for i in range(u % 2, ITEMS, 2)]
    rows += [(u, i, "valid") for u, items in valid.items() for i in items] + [(0, 1, "test")]
    pl.DataFrame(rows, schema=["user_id", "item_id", "split"], orient="row").write_parquet(path / "log.parquet")
    return encode(load_feature_spec(ROOT / "feature_specs" / "citeulike.yaml"), str(path / "log.parquet"), path / "log")


def judged(log: EncodedLog) -> Rankings:
    """How lists are judged on validation."""
    wanted, known = (events_of(log, GRAPH, (split,)) for split in ("valid", "train"))
    return Rankings.of(SPEC, wanted, known, lost_W=lost_of(log, GRAPH, "valid"))


def test_held_out_items_that_training_has_not_known_are_never_found(tmp_path: Path) -> None:
    log = pairs(tmp_path, {0: [3], 1: [4], 2: [NEW], 3: [NEW]})
    made = judged(log)
    users, items = (log.fitted.tables[name] for name in ("user_id", "item_id"))
    generator = torch.Generator().manual_seed(0)
    vectors = Vectors(torch.rand(users, 4, generator=generator), torch.rand(items, 4, generator=generator))
    found = made.judge(vectors)
    assert len(found.user_V) == 4 and len({*found.user_V.tolist()}) == 4
    assert bool((np.diff(found.user_V) > 0).all())
    lost = np.isin(found.user_V, made.lost_W)
    assert lost.sum() == 2
    assert all(bool((value_V[lost] == 0).all()) for value_V in found.values.values())
    everything = made.judge(Vectors(torch.zeros(users, 4), torch.zeros(items, 4)))  # all tied: 5 of 9 places
    assert np.allclose(everything.values["hr@5"][~lost], 5 / 9)


def test_a_user_with_several_held_out_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="several held-out items"):
        judged(pairs(tmp_path, {0: [3, 5]}))


@pytest.mark.parametrize("denser", [0, 10**9])
def test_scores_of_pairs_are_inner_products_however_they_are_computed(
    denser: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rankings, "DENSER", denser)
    monkeypatch.setattr(rankings, "SCORES", 64)
    generator = torch.Generator().manual_seed(0)
    vectors = Vectors(torch.randn(7, 3, generator=generator), torch.randn(20, 3, generator=generator))
    user_B, item_BN = np.array([6, 2, 2, 0]), np.array([[1, 19], [0, 0], [5, 4], [3, 2]])
    expected = [
        [float(vectors.user_UD[u] @ vectors.item_ID[i]) for i in row] for u, row in zip(user_B, item_BN, strict=True)
    ]
    assert np.allclose(vectors.pair_scores(user_B, item_BN), expected, atol=1e-6)
