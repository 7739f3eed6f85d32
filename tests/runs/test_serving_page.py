"""The page on serving runs as it stands, and a caller may say *missing* in each of the ways that it names."""

import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from recdistill.api import Member, Phase, bce, fit, label, mlp
from tests.conftest import ROOT

PAGE = (ROOT / "recdistill" / "serving.md").read_text(encoding="utf-8")
pytestmark = pytest.mark.slow
LEAST = torch.iinfo(torch.int64).min


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def log(rows: int = 1500) -> pl.DataFrame:
    """A log with a column of every kind that the page names."""
    rng = np.random.default_rng(0)
    length = rng.integers(0, 4, rows)
    return pl.DataFrame(
        {
            "ts": np.arange(rows),
            "user": rng.integers(0, 40, rows),
            "item": rng.choice(["lamp", "sofa", "desk"], rows),
            "price": rng.lognormal(size=rows),
            "shown_at": pl.from_epoch(1_700_000_000_000 + 60_000 * np.arange(rows), "ms"),
            "tags": [rng.integers(0, 9, n).tolist() for n in length],
            "seen": [rng.choice(["lamp", "sofa"], n).tolist() for n in length],
            "seen_at": [[row - n + k for k in range(n)] for row, n in enumerate(length)],
            "buy": rng.integers(0, 2, rows),
        }
    ).with_columns(pl.col("shown_at").cast(pl.Datetime("ms")))


@pytest.fixture(scope="module")
def names(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What the snippets of the page leave, run one after the other beside the student that they serve."""
    folder = tmp_path_factory.mktemp("serving")
    found: dict[str, object] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("RECDISTILL_CACHE", str(folder / "cache"))
        (declared,) = blocks("yaml")
        Path("spec.yaml").write_text(declared)
        log().write_parquet("log.parquet")
        student = Member(mlp([8]), serve=True, dim=4, name="student")
        settings = {"train": {"batch": 256, "table_std": 0.3}, "seeds": 1, "quiet": True, "name": "job"}
        said = {"spec": "spec.yaml", "predict": "buy", "controls": {"none": "a page, not a result"}, **settings}
        fit([student], "log.parquet", Phase(bce(student.logit, label), steps=6), **said)
        for block in blocks("python"):
            exec(compile(block, "serving.md", "exec"), found)
    return found


def served(names, numbers=(), texts=(), lengths=(), without=()):
    """The student's answer to the rows of the page, with some columns replaced and others left out."""
    given = [
        {**names[part], **dict(new)} for part, new in (("numbers", numbers), ("texts", texts), ("lengths", lengths))
    ]
    with torch.inference_mode():
        return names["student"](*({k: v for k, v in part.items() if k not in without} for part in given))


def test_the_page_runs(names) -> None:
    assert names["probability"].shape == (2,) and not names["probability"].requires_grad
    assert [c["name"] for c in names["manifest"]["inputs"] if c["list"]] == ["tags", "seen", "seen_at"]


SAYS_MISSING = {
    "integer": ("user", {"numbers": {"user": torch.full((2,), LEAST)}}),
    "float": ("price", {"numbers": {"price": torch.full((2,), torch.nan, dtype=torch.float64)}}),
    "text": ("item", {"texts": {"item": ["", ""]}}),
    "time": ("shown_at", {"numbers": {"shown_at": torch.full((2,), LEAST)}}),
    "list": (
        "tags",
        {"numbers": {"tags": torch.zeros(0, dtype=torch.int64)}, "lengths": {"tags": torch.tensor([0, 0])}},
    ),
    "elements": ("tags", {"numbers": {"tags": torch.full((3,), LEAST)}}),
}


@pytest.mark.parametrize(("column", "said"), SAYS_MISSING.values(), ids=SAYS_MISSING)
def test_a_missing_value_is_what_an_absent_column_is(names, column, said) -> None:
    absent = served(names, without=[column])
    assert torch.equal(served(names, **said), absent)
    assert not torch.equal(absent, names["probability"])


def test_columns_of_other_lengths_are_refused(names) -> None:
    with pytest.raises(Exception, match="column price has 3 rows, others have 2"):
        served(names, {"price": torch.zeros(3)}, without=["shown_at", "ts"])
