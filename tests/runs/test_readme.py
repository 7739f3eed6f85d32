"""The examples of the README, as a reader would type them."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_the_own_data_example_runs(tmp_path: Path) -> None:
    rng, rows = np.random.default_rng(0), 6000
    user, item = rng.integers(0, 200, rows), rng.integers(0, 50, rows)
    want = rng.normal(size=200)[user] + rng.normal(size=50)[item]
    frame = pl.DataFrame(
        {
            "ts": np.arange(rows), "user": user, "item": item, "tags": rng.integers(0, 20, (rows, 2)).tolist(),
            "price": rng.lognormal(size=rows), "dwell": np.exp(want + rng.normal(size=rows)),
            "buy": (want + rng.logistic(size=rows) > 0).astype(np.int8),
        }
    )  # fmt: skip
    (tmp_path / "mine").mkdir()
    frame.write_parquet(tmp_path / "mine" / "log.parquet")
    (script,) = [block for block in blocks("sh") if "mine/spec.yaml" in block]
    assert len(script.splitlines()) <= 40
    script = script.replace("recdistill run mine/job.yaml", "recdistill run mine/job.yaml --seeds 2")
    script = script.replace("recdistill ", f"{sys.executable} -m recdistill ")
    done = subprocess.run(["bash", "-euc", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "job" / "report.html").exists()
    assert "verdict:" in done.stdout
    (serving,) = blocks("python")
    served = subprocess.run([sys.executable, "-c", serving], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert served.returncode == 0, served.stderr
    assert 0 < float(re.findall(r"[0-9.]+", served.stdout)[0]) < 1


def test_every_page_that_is_named_exists() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("*/README.md")]
    broken = [
        (str(page), link)
        for page in pages
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []
