"""Which folder a run is written to or continued in, and what is said of one that is something else."""

import shutil
from pathlib import Path

import pytest

from recdistill.runs.folder import new_folder
from tests.conftest import Small
from tests.runs.conftest import Command


def begun(name: str, job: str, *, complete: bool = False) -> Path:
    """A run below ``runs``, as far as its folder tells."""
    folder = Path("runs") / name
    folder.mkdir(parents=True)
    (folder / "job.yaml").write_text(job)
    if complete:
        (folder / "report.json").write_text("{}")
    return folder


def test_the_newest_run_of_the_very_job_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    begun("a", "x", complete=True)
    begun("a-2", "x", complete=True)
    begun("a-10", "y", complete=True)
    begun("a-b", "x")
    assert new_folder(None, "a", resume=True, job="x").root == Path("runs/a-2")
    assert new_folder(None, "a", resume=True, job="y").root == Path("runs/a-10")
    assert new_folder(None, "a", resume=True, job="z").root == Path("runs/a-3")
    assert new_folder(None, "a", resume=False, job="x").root == Path("runs/a-3")
    begun("a-9", "x", complete=True)
    assert new_folder(None, "a", resume=True, job="x").root == Path("runs/a-9")
    begun("a-4", "x")  # what is not finished comes first
    assert new_folder(None, "a", resume=True, job="x").root == Path("runs/a-4")


def test_resuming_shows_a_finished_run_and_names_what_differs_from_it(
    run: Path, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = shutil.copy(run.parent / "job.yaml", tmp_path / "tiny.yaml")
    shutil.copytree("feature_specs", tmp_path / "feature_specs")
    folder = tmp_path / "runs" / "tiny"
    shutil.copytree(run, folder)
    monkeypatch.setenv("RECDISTILL_CACHE", str(run.parent / "cache"))
    status, _, err = command("run", job, "--out", folder, "--resume", "--seeds", 3)
    assert status == 2 and "was started with another job (seeds was 2, is 3" in err
    monkeypatch.chdir(tmp_path)
    status, out, err = command("run", job, "--resume")
    assert status == 0, err
    assert "report: runs/tiny/report.html" in out and [path.name for path in folder.parent.iterdir()] == ["tiny"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["verify", "RUN"], "is a run; verify RUN/student"),
        (["verify", "nowhere"], "nowhere: cannot be verified: does not exist"),
        (["report", "nowhere"], "nowhere: does not exist"),
        (["evaluate", "RUN/student", "--log", "LOG"], "is an artefact, not a run"),
        (["run", "JOB", "--out", "JOB"], "is a file; give another --out"),
        (["run", "JOB", "--out", "JOB/x"], "is a file, so that nothing can lie in it"),
    ],
)
def test_a_folder_of_another_kind_is_named(
    words: list[str], message: str, run: Path, job: Path, small: Small, command: Command
) -> None:
    def placed(text: str) -> str:
        return text.replace("RUN", str(run)).replace("LOG", str(small.log)).replace("JOB", str(job))

    status, _, err = command(*map(placed, words))
    assert status == 2 and placed(message) in err and "Traceback" not in err
