"""Runs that several modules look at."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from recdistill import cli
from tests.conftest import Small

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    """A call of the command line: its exit status, and what it writes to both outputs."""

    def call(*words: object) -> tuple[int, str, str]:
        from rich.console import Console

        monkeypatch.setattr(sys, "argv", ["recdistill", *map(str, words)])
        monkeypatch.setattr(cli, "out", Console(width=150))
        monkeypatch.setattr(cli, "err", Console(width=150, stderr=True))
        try:
            cli.main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def trained(small: Small, folder: Path, changes: Mapping[str, Any] | None = None) -> Path:
    """A run of a small job in a folder that holds its cache as well."""
    from recdistill.runs.execute import Request, execute
    from recdistill.spec.load import assign

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(assign(small.job, changes or {}, "test")))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RECDISTILL_CACHE", str(folder / "cache"))
        return execute(Request(folder / "job.yaml", folder / "run")).root


@pytest.fixture(scope="session")
def run(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete run of the small job, two seeds."""
    return trained(small, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def job(small: Small, tmp_path: Path) -> Path:
    """The small job in a file, one seed."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**small.job, "seeds": 1}))
    return path


@pytest.fixture(scope="session")
def ranked(tastes: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose result is a metric of lists and whose student makes codes of features."""
    return trained(tastes, tmp_path_factory.mktemp("ranked"))


@pytest.fixture(scope="session")
def splits(tastes: Small, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The raw rows of training, validation and test of its log."""
    folder, rows = tmp_path_factory.mktemp("splits"), pl.read_parquet(tastes.log)
    paths = [folder / f"{part}.parquet" for part in range(3)]
    for part, path in enumerate(paths):
        rows.filter(pl.col("part") == part).write_parquet(path)
    return paths
