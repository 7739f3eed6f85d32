"""Two processes over gloo train as one does: the same gradients, whatever the layout of tables over processes."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from recdistill.training import checkpoint
from tests.conftest import ROOT, Small

WORKER = """
import json, sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from recdistill.data.encoded import EncodedLog
from recdistill.distill.compile import compile_job, problems_of
from recdistill.spec.load import parse_job
from recdistill.training.fit import fit
from recdistill.training.reading import Data, Training

folder, encoded, described = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
job, spec = parse_job(described, "test", check=problems_of)
log = EncodedLog.open(Path(encoded))
fit(Training(compile_job(job, spec), job.train, Data.of(log), 0), folder)
"""
SMOOTH: dict[str, Any] = {
    "members.student.dropout": 0.0,
    "train.tables": {"sgd": {"lr": 2.0}},  # row-wise Adagrad would hide a wrong scale
    "train.dense": {"sgd": {"lr": 0.1}},
    "train.checkpoint_every": 5,
}


def together(small: Small, folder: Path, overrides: dict[str, Any], processes: int = 2) -> dict[str, torch.Tensor]:
    """The parameters after training in several processes."""
    from recdistill.spec.load import assign

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    described = json.dumps(assign(small.job, overrides, "test"))
    running = []
    for rank in range(processes):
        env = os.environ | {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo",
        }  # fmt: skip
        command = [sys.executable, "-c", WORKER, str(folder), str(small.encoded.folder), described]
        running.append(subprocess.Popen(command, cwd=ROOT, env=env, stderr=subprocess.PIPE, text=True))
    errors = [process.communicate(timeout=120)[1] for process in running]
    assert [process.returncode for process in running] == [0] * processes, "\n".join(errors)
    return checkpoint.read(folder / "checkpoints" / "final")


def alone(small: Small, folder: Path, overrides: dict[str, Any]) -> dict[str, torch.Tensor]:
    small.fit(folder, overrides)
    return checkpoint.read(folder / "checkpoints" / "final")


def test_two_processes_train_as_one_does(small: Small, tmp_path: Path) -> None:
    one, two = alone(small, tmp_path / "one", SMOOTH), together(small, tmp_path / "two", SMOOTH)
    assert one.keys() == two.keys()
    start = alone(small, tmp_path / "start", {**SMOOTH, "train.tables": {"sgd": {"lr": 1e-9}}})
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=2e-5), (key, float((value - two[key]).abs().max()))
    moved = [key for key in one if key.startswith("tables.") and float((one[key] - start[key]).abs().max()) > 1e-3]
    assert moved  # so that the tolerance means something
    for name in ("student.test", "teacher.valid"):
        first, second = ((tmp_path / run / "scores" / f"{name}.parquet").stat().st_size for run in ("one", "two"))
        assert abs(first - second) < 2000
    summaries = [json.loads((tmp_path / run / "fit.json").read_text())["kept"] for run in ("one", "two")]
    assert summaries[0] == summaries[1]
    assert not (tmp_path / "two" / "checkpoints" / "latest").exists()


@pytest.mark.slow
def test_terms_over_lists_and_row_wise_adagrad_as_well(small: Small, tmp_path: Path) -> None:
    overrides = {
        **SMOOTH,
        "phases.0.terms.2": "soft_list(student.logit, teacher.logit) * step(0, 0.5, at=4)",
        "train.tables": {"rowwise_adagrad": {"lr": 0.05, "eps": 1e-3}},
    }
    one, two = alone(small, tmp_path / "one", overrides), together(small, tmp_path / "two", overrides)
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=1e-4), (key, float((value - two[key]).abs().max()))
