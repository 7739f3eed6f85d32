"""On a real log: what the pipeline encoded is what the artefact's encoders answer, column by column."""

from pathlib import Path
from typing import get_args

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch

from recdistill.data.encode import encode
from recdistill.data.log import raw_batches
from recdistill.data.transforms.history import raw_name
from recdistill.export.bare import tensors
from recdistill.export.build import describe_inputs
from recdistill.spec.columns import AnyColumn
from recdistill.spec.load import load_feature_spec, parse_feature_spec, read_yaml
from tests.conftest import ROOT, SHARED

pytestmark = [pytest.mark.real, pytest.mark.slow]
LOG = SHARED / "kuairand" / "log.parquet"
TEST_ROWS = 37_696
TYPES = {get_args(c.model_fields["type"].annotation)[0] for c in get_args(get_args(AnyColumn)[0])}
FURTHER = {  # so that every type is there
    "tab_tag": {"type": "cross", "of": ["tab", "tag"], "hash": 5000},
    "tag_words": {"type": "text", "column": "tag", "hash": 3000, "ngrams": 2, "idf": True},
    "no_music": {"type": "missing", "column": "music_id"},
    "length": {"type": "numeric", "column": "duration_ms", "buckets": 20},
    "band": {"type": "numeric", "column": "duration_ms", "edges": [10_000, 60_000]},
    "weighed": {"type": "list", "column": "hist_watch", "vocabulary": "video_id", "weights": "hist_watch"},
    "minute": {"type": "date_part", "column": "event_time_utc", "part": "hour_of_week", "zone": "Asia/Shanghai"},
    "hashed": {"type": "categorical", "column": "author_id", "hash": 1000},
}


def test_every_column_of_every_test_row_is_encoded_alike(tmp_path: Path) -> None:
    raw_spec = read_yaml(ROOT / "feature_specs" / "kuairand.yaml")
    spec = parse_feature_spec({**raw_spec, "serving": {**raw_spec["serving"], **FURTHER}}, "kuairand")
    log = encode(spec, str(LOG), tmp_path / "encoded")
    encoded = log.view("test", "serving").collect()
    assert len(encoded) == TEST_ROWS
    assert {spec.columns[name].type for name in spec.serving} == TYPES - {"binary"}
    names = tuple(spec.serving)
    inputs = describe_inputs(names, spec, log.fitted)
    assert raw_name("user_rate") not in {entry["name"] for entry in inputs}
    needed = [entry["name"] for entry in inputs if not entry.get("optional")]
    raw = pa.concat_tables(raw_batches(spec, str(LOG), {}, "test", needed, 10_000))
    given = tensors(raw, inputs)
    for name in names:
        found = torch.jit.script(log.fitted.columns[name].torch())(*given, TEST_ROWS)
        expected = encoded[name]
        if log.fitted.columns[name].kind in ("bag", "sequence"):
            values_L, lengths_B, channel_L = found
            assert np.array_equal(lengths_B.numpy(), expected.list.len().to_numpy()), name
            assert np.array_equal(values_L.numpy(), expected.explode(empty_as_null=False).to_numpy()), name
            for channel in (c for c in encoded.columns if c.startswith(f"{name}/")):
                assert np.array_equal(channel_L.numpy(), encoded[channel].explode(empty_as_null=False).to_numpy()), name
        elif log.fitted.columns[name].kind == "id":
            assert np.array_equal(found.numpy(), expected.to_numpy()), name
        else:
            assert np.allclose(found.numpy(), expected.to_numpy(), rtol=0, atol=1e-6), name


def test_histories_know_nothing_of_later_rows(tmp_path: Path) -> None:
    """A thousand training rows, recounted one by one."""
    spec = load_feature_spec(ROOT / "feature_specs" / "kuairand.yaml")
    log = encode(spec, str(LOG), tmp_path / "encoded")
    column = log.fitted.columns["user_views"]
    found = log.view("train", "serving").select("user_views").collect().to_series().to_numpy()
    raw = pl.read_parquet(LOG, columns=["user_id", "time_ms", "date"]).filter(pl.col("date") <= 20220430)
    rows = np.random.default_rng(0).choice(len(raw), 1000, replace=False)
    user, time = raw["user_id"].to_numpy(), raw["time_ms"].to_numpy()
    for row in rows:
        count = int(((user == user[row]) & (time < time[row])).sum())
        expected = (np.log1p(count) - column.shift) / column.scale
        assert found[row] == pytest.approx(expected, abs=1e-5)
