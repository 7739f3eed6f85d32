"""Where commands write: nothing that they read, and nothing that is not theirs, is lost."""

from pathlib import Path

import pytest

from recdistill.errors import ExportError
from recdistill.export.codes import write_index
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
