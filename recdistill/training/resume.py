"""Stopping in the middle of a phase and going on as if nothing had happened, bit for bit.

    FOLDER/checkpoints/latest/
      state-0.safetensors    of each process: parameters, optimizer states, the best parameters so far, memories, random
                             numbers
      progress.json          stage, phase and step; places of feeds; what the stop rule has seen; length of the log

A checkpoint replaces the one before it only when it is complete, and if the process is killed just then, one of both
is found. It is read by as many processes as have written it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from recdistill.errors import RunError
from recdistill.publish import recover, write_text
from recdistill.training.cast import Cast
from recdistill.training.processes import barrier, published_together, rank, world

LATEST = Path("checkpoints") / "latest"
WRITTEN_LAST = "progress.json"


@dataclass(frozen=True)
class Stopped:
    """Where a phase stands.

    Attributes:
        step: steps taken.
        progress: everything that changes while training and is no tensor: the places of the feeds, what followers and
            the stop rule have seen.
        tensors: everything that changes while training, by name.
    """

    step: int
    progress: dict[str, Any]
    tensors: dict[str, Tensor] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class Progress:
    """Where a training stands.

    Attributes:
        stage: ``train``, or ``tune`` and ``refit``.
        phase: number of the phase.
        steps: steps behind the parameters of the phases that are done.
        tuned: the same of the first stage, once it is done.
        log_bytes: length of the metrics log.
        stopped: where the phase stands.
    """

    stage: str
    phase: int
    steps: list[int]
    tuned: list[int] | None
    log_bytes: int
    stopped: Stopped


def write(progress: Progress, folder: Path) -> None:
    """Replace the checkpoint of a training; every process writes its own tensors.

    Args:
        progress: where the training stands.
        folder: of the training.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in progress.stopped.tensors.items()}
    with published_together(folder / LATEST) as work:
        save_file(_apart(tensors), work / f"state-{rank()}.safetensors")
        barrier()
        if rank() == 0:
            described = asdict(progress)
            del described["stopped"]["tensors"]
            described["processes"] = world()
            write_text(work / WRITTEN_LAST, json.dumps(described))


def read(folder: Path) -> Progress | None:
    """The checkpoint of a training, or None if it has none.

    Raises:
        RunError: it was written by another number of processes, or cannot be read.
    """
    latest = folder / LATEST
    if rank() == 0:
        recover(latest, WRITTEN_LAST)
    barrier()
    if not (latest / WRITTEN_LAST).exists():
        return None
    try:
        described = json.loads((latest / WRITTEN_LAST).read_text(encoding="utf-8"))
        if described.pop("processes") != world():
            raise RunError(
                f"{latest}: was written by another number of processes than the {world()} that run now; start as "
                "many as before, or remove the folder to begin this training anew"
            )
        with safe_open(latest / f"state-{rank()}.safetensors", "pt") as content:
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118, no mapping
        stopped = Stopped(**described.pop("stopped"), tensors=tensors)
        return Progress(**described, stopped=stopped)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise RunError(f"{latest}: cannot be read ({error}); remove the folder to begin this training anew") from None


def capture(cast: Cast, optimizers: Sequence[torch.optim.Optimizer], kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Everything that changes while training, by name; the tensors themselves, not copies."""
    found = {f"parameters/{key}": value for key, value in cast.state(cast.members).items()}
    found |= {f"tables/{key}": value for key, value in cast.tables.optimizer_state().items()}
    for i, optimizer in enumerate(optimizers):
        for j, state in optimizer.state_dict()["state"].items():
            found |= {f"dense/{i}/{j}/{key}": value for key, value in state.items()}
    found |= {f"kept/{key}": value for key, value in kept.items()}
    return found | random_states()


def random_states() -> dict[str, Tensor]:
    """The states of PyTorch's random numbers, of which dropout draws."""
    states = {"random": torch.get_rng_state()}
    return states | ({"random.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def restore(
    tensors: Mapping[str, Tensor], cast: Cast, optimizers: Sequence[torch.optim.Optimizer]
) -> dict[str, Tensor]:
    """Put everything back; returns the best parameters so far.

    Raises:
        RunError: the checkpoint is of another job.
    """
    with torch.no_grad():
        for prefix, state in (("parameters", cast.state(cast.members)), ("tables", cast.tables.optimizer_state())):
            for key, value in state.items():
                found = tensors.get(f"{prefix}/{key}")
                if found is None or found.shape != value.shape:
                    raise RunError(f"checkpoint: {key} is missing or has another shape; it is of another job")
                value.copy_(found)
    for i, optimizer in enumerate(optimizers):
        state_by_parameter: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            if name.startswith(f"dense/{i}/"):
                _, _, parameter, key = name.split("/")
                state_by_parameter.setdefault(int(parameter), {})[key] = value
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state_by_parameter})
    torch.set_rng_state(tensors["random"])
    if torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return {name.removeprefix("kept/"): value for name, value in tensors.items() if name.startswith("kept/")}


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors with storage of their own, which the format asks for."""
    return {name: tensor.clone() for name, tensor in tensors.items()}
