"""Values that are taken for unknown ones while training: how many, which, and nothing else."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.data.reader import Reader, Selection
from recdistill.data.transforms.rows import UNKNOWN
from recdistill.data.unknown import Forgetting
from recdistill.spec.features import FeatureSpec
from recdistill.spec.train import Unknown

ROWS = 8000
SPEC = {
    "row_id": "key",
    "serving": {
        "item": {"type": "id", "min_count": 1},
        "hashed": {"type": "categorical", "hash": 50},
        "tags": {"type": "list", "vocabulary": "item"},
        "price": {"type": "numeric"},
    },
    "post_event": {"after": {"type": "categorical"}, "y": "binary"},
}
SELECTION = Selection(("item", "hashed", "tags", "price"), ("after",), ("y",))


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> EncodedLog:
    folder, rng = tmp_path_factory.mktemp("unknown"), np.random.default_rng(1)
    frame = pl.DataFrame(
        {
            "key": np.arange(ROWS), "item": np.where(rng.random(ROWS) < 0.5, 1, rng.integers(2, 400, ROWS)),
            "hashed": rng.integers(0, 99, ROWS), "tags": [[1, 2, 2]] * ROWS, "price": rng.normal(size=ROWS),
            "after": rng.integers(0, 3, ROWS), "y": rng.integers(0, 2, ROWS),
        }
    )  # fmt: skip
    frame.write_parquet(folder / "log.parquet")
    return encode(FeatureSpec.model_validate(SPEC), str(folder / "log.parquet"), folder / "encoded")


def read(log: EncodedLog, setting: Unknown | None, *, batch: int = 512, epoch: int = 0, seed: int = 0):
    """Encoded columns by row id, as training reads them."""
    reader = Reader(log, ("train",), SELECTION)
    reader.forgetting = None if setting is None else Forgetting.of(log.fitted, setting, seed)
    batches = list(reader.shuffled(batch, seed=0, epoch=epoch))
    order = torch.argsort(torch.cat([b.row_id_B for b in batches]))
    ids = {n: torch.cat([b.serving.ids((n,))[0] for b in batches])[order] for n in ("item", "hashed")}
    after = torch.cat([b.privileged.ids(("after",))[0] for b in batches])[order]
    tags = torch.cat([b.serving.bag("tags").values_L.view(-1, 3) for b in batches])[order]
    floats = torch.cat([b.serving.floats(("price",)) for b in batches])[order]
    return {**ids, "after": after, "tags": tags, "price": floats}


def test_about_the_asked_share_becomes_unknown_and_nothing_else_changes(log: EncodedLog) -> None:
    plain, found = read(log, None), read(log, Unknown(rate=0.2))
    for name in ("item", "after", "tags"):
        changed = plain[name] != found[name]
        assert 0.17 < changed.float().mean() < 0.23, name
        assert bool((found[name][changed] == UNKNOWN).all())
    assert torch.equal(plain["hashed"], found["hashed"])
    assert torch.equal(plain["price"], found["price"])


def test_rare_values_are_replaced_more_often(log: EncodedLog) -> None:
    plain, found = read(log, None)["item"], read(log, Unknown(rare=5.0))["item"]
    changed = plain != found
    counts = log.fitted.counts("item")
    assert counts is not None and counts[:2].tolist() == [0, 0]
    frequent = plain == plain.mode().values
    assert changed[frequent].float().mean() < 0.005
    expected = np.mean(5 / (5 + counts[plain[~frequent].numpy()]))
    assert abs(float(changed[~frequent].float().mean()) - expected) < 0.03


def test_draws_depend_on_row_and_epoch_and_seed_but_not_on_batches(log: EncodedLog) -> None:
    first = read(log, Unknown(rate=0.3))
    assert all(torch.equal(v, read(log, Unknown(rate=0.3), batch=100)[n]) for n, v in first.items())
    assert not torch.equal(first["item"], read(log, Unknown(rate=0.3), epoch=1)["item"])
    assert not torch.equal(first["item"], read(log, Unknown(rate=0.3), seed=1)["item"])
    places = (first["tags"] == UNKNOWN).float().mean(0)
    assert bool((places > 0.2).all())  # values of one list are drawn apart from each other
    both = ((first["tags"][:, 0] == UNKNOWN) & (first["tags"][:, 1] == UNKNOWN)).float().mean()
    assert both < 0.15


def test_nothing_is_forgotten_unless_asked_for_and_never_when_scoring(log: EncodedLog) -> None:
    assert Forgetting.of(log.fitted, Unknown(), 0) is None
    reader = Reader(log, ("train",), SELECTION)
    plain = [b.serving.ids_FB for b in reader.in_order(512)]
    reader.forgetting = Forgetting.of(log.fitted, Unknown(rate=0.5), 0)
    assert all(torch.equal(a, b.serving.ids_FB) for a, b in zip(plain, reader.in_order(512), strict=True))


def test_counts_survive_the_disk(log: EncodedLog) -> None:
    counts = EncodedLog.open(Path(log.folder)).fitted.counts("item")
    raw = np.bincount(read(log, None)["item"].numpy(), minlength=len(counts))
    tags = np.bincount(read(log, None)["tags"].flatten().numpy(), minlength=len(counts))
    assert np.array_equal(counts[2:], (raw + tags)[2:])
