"""Where commands write: nothing that they read, and nothing that is not theirs, is lost."""

import shutil
from pathlib import Path

import polars as pl
import pytest
import yaml

from recdistill.errors import ExportError, RunError
from recdistill.export.codes import write_index
from recdistill.runs.rescore import score_artefact
from recdistill.spec.load import load_feature_spec
from tests.conftest import Small
from tests.runs.conftest import Command


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder, save the lock of a run."""
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file() and f.name != ".lock"}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("precious", "exists and holds no artefact"),
        ("precious/thesis.txt", "exists and holds no artefact"),
        ("precious/thesis.txt/student", "thesis.txt is a file"),
        ("RUN", "holds the run, which would be lost"),
        ("RUN/..", "holds the run, which would be lost"),
        ("RUN/seed_0", "exists and holds no artefact"),
        (".", "holds the current folder"),
    ],
)
def test_export_replaces_nothing_but_an_artefact(
    target: str, message: str, run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("x")
    before = contents(run)
    status, _, err = command("export", run, "--out", target.replace("RUN", str(run)))
    assert status == 2 and message in err and "Traceback" not in err
    assert contents(run) == before and contents(tmp_path) == {"precious/thesis.txt": b"x"}


def test_export_replaces_an_artefact_and_fills_an_empty_folder(run: Path, command: Command, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for _ in range(2):
        status, _, err = command("export", run, "--out", tmp_path / "new")
        assert status == 0, err
    assert (tmp_path / "new" / "student.pt").read_bytes() == (run / "student" / "student.pt").read_bytes()


def test_codes_replace_nothing_but_codes(tmp_path: Path) -> None:
    import torch

    (tmp_path / "thesis.txt").write_text("x")
    with pytest.raises(ExportError, match="exists and holds no codes"):
        write_index(tmp_path, torch.zeros(2, 1, dtype=torch.int64), torch.arange(2), 64)
    assert contents(tmp_path) == {"thesis.txt": b"x"}


@pytest.mark.parametrize(
    "words",
    [
        ["score", "RUN", "LOG", "OUT"],
        ["score", "RUN", "LOG", "OUT", "--member", "teacher"],
        ["score", "RUN/student", "LOG", "OUT"],
        ["score", "RUN", "LOG", "OUT", "--top", 3],
        ["evaluate", "RUN", "--log", "LOG", "--json", "OUT"],
    ],
)
@pytest.mark.parametrize(
    ("log", "out", "message"),
    [
        ("log/a.parquet", "log/a.parquet", "would become a part of the log"),
        ("log/a.parquet", "log/../other/link.parquet", "would become a part of the log"),
        ("log", "log/scores.parquet", "would become a part of the log"),
        ("log/*.parquet", "log/a.parquet", "would become a part of the log"),
        ("log", "other", "is a folder"),
        ("log", "log/a.parquet/scores.parquet", "a.parquet is a file"),
    ],
)
def test_a_log_is_never_written_over(
    words: list[str], log: str, out: str, message: str, run: Path, small: Small, command: Command, tmp_path: Path
) -> None:
    for name in ("log", "other"):
        (tmp_path / name).mkdir()
    shutil.copy(small.log, tmp_path / "log" / "a.parquet")
    (tmp_path / "other" / "link.parquet").symlink_to(tmp_path / "log" / "a.parquet")
    before = contents(tmp_path)
    places = {"LOG": tmp_path / log, "OUT": tmp_path / out, "RUN": run, "RUN/student": run / "student"}
    status, _, err = command(*[places.get(word, word) for word in words])
    assert status == 2 and message in err and "Traceback" not in err
    assert contents(tmp_path) == before


def test_side_tables_are_not_written_over_either(run: Path, small: Small, tmp_path: Path) -> None:
    side = tmp_path / "users.parquet"
    pl.read_parquet(small.log).select("user_id").unique().with_columns(age=30).write_parquet(side)
    spec = yaml.safe_load((run / "spec.yaml").read_text())
    spec["join"] = {str(side): {"on": "user_id"}}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec))
    before = side.read_bytes()
    with pytest.raises(RunError, match="would become a part of the log"):
        score_artefact(run / "student", str(small.log), side, load_feature_spec(tmp_path / "spec.yaml"))
    assert side.read_bytes() == before


def test_the_folder_of_a_file_is_made(run: Path, small: Small, command: Command, tmp_path: Path) -> None:
    scores, metrics = tmp_path / "new" / "scores.parquet", tmp_path / "newer" / "metrics.json"
    assert command("score", run, small.log, scores)[0] == 0
    assert command("evaluate", run, "--log", small.log, "--json", metrics)[0] == 0
    assert len(pl.read_parquet(scores)) == 6000 and "members" in yaml.safe_load(metrics.read_text())
