"""Two processes that live as long as the tests, and train together what they are told."""

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from recdistill.training import checkpoint
from tests.conftest import ROOT

Pair = Sequence[subprocess.Popen[str]]
PATIENCE = 90  # seconds after which a pair that waits for each other is given up


@contextmanager
def two_processes(worker: str = "tests.training.worker") -> Iterator[Pair]:
    """Two processes of one group over gloo, which run a module that answers line by line."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    running = []
    for rank in ("0", "1"):
        own = {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", worker]
        pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        running.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | common | own, text=True, **pipes))
    yield running
    for process in running:
        process.kill()
        process.communicate()


def together(
    pair: Pair,
    folder: Path,
    job: Mapping[str, Any],
    log: Path,
    feeds: Mapping[str, Path] | None = None,
    *,
    dividing: bool = False,
    apart: bool = False,
    since: float = 0.0,
) -> dict[str, Tensor]:
    """The parameters after training in several processes, who hear what others have left `since` some moment.

    As wrong twins these are dividing dense gradients, or normalise batches apart from each other.
    """
    paths = {name: str(path) for name, path in (feeds or {}).items()}
    wrong = {"dividing": dividing, "apart": apart}
    told = json.dumps({"folder": str(folder), "job": job, "log": str(log), "feeds": paths, "since": since, **wrong})
    for process in pair:
        assert process.stdin is not None
        process.stdin.write(told + "\n")
        process.stdin.flush()
    answers = []
    for process in pair:
        assert process.stdout is not None
        ready, _, _ = select.select([process.stdout], [], [], PATIENCE)
        answers.append(json.loads(process.stdout.readline()) if ready else "waits for the other process")
    assert answers == [""] * len(pair)
    return checkpoint.read(folder / "checkpoints" / "final")


def held(folder: Path) -> list[dict[str, list[str]]]:
    """The tables of each bank that each process has kept after a training."""
    return [json.loads((folder / f"held-{rank}.json").read_text()) for rank in (0, 1)]


def furthest(one: Mapping[str, Tensor], two: Mapping[str, Tensor]) -> tuple[float, str]:
    """The largest difference, and where it is."""
    assert one.keys() == two.keys()
    return max((float((value - two[key]).abs().max()), key) for key, value in one.items() if value.numel())
