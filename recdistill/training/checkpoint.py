"""Parameters on disk: torch.distributed.checkpoint with safetensors files, so no pickle is written or read.

FOLDER/*.safetensors   dense parameters ``member.name`` and tables ``tables.bank.table``
FOLDER/layout.json     for each member the table of every column; second names of parameters
"""

import json
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed

from recdistill.distill.layout import Layout, table_key
from recdistill.errors import RunError
from recdistill.training.cast import Cast
from recdistill.training.processes import barrier, published_together, rank


def save(cast: Cast, folder: Path, names: Iterable[str] | None = None) -> None:
    """Write the parameters of all members, or of some; the folder appears only when it is complete."""
    names = [name for name in (cast.heads if names is None else names) if name in cast.heads]
    dense = {f"{n}.{k}": v for n in names for k, v in cast.heads[n].state_dict().items()}
    aliases = shared_names(dense)
    state: dict[str, Any] = {key: value for key, value in dense.items() if key not in aliases}
    state |= cast.tables.sharded_state(cast.banks_of(names))
    with published_together(folder) as work:
        with _quiet():
            save_distributed(state, storage_writer=HuggingFaceStorageWriter(str(work), save_distributed=True))
        barrier()
        if rank() == 0:
            for file in work.glob("*.safetensors"):
                _sort_header(file)
            layout = {**describe(cast.layout), "aliases": aliases}
            (work / "layout.json").write_text(json.dumps(layout, indent=1), encoding="utf-8")


def shared_names(state: Mapping[str, Tensor]) -> dict[str, str]:
    """Names of parameters that belong to several members, each with the first name of the same parameter."""
    first: dict[tuple[int, tuple[int, ...]], str] = {}
    aliases = {}
    for name, value in state.items():
        known = first.setdefault((value.data_ptr(), tuple(value.shape)), name) if value.numel() else name
        if known != name:
            aliases[name] = known
    return aliases


def describe(layout: Layout) -> dict[str, object]:
    """Where each member's columns are looked up, as JSON."""
    return {
        "members": {
            name: {feature.name: table_key(bank, feature.table) for feature, bank in member.lookups}
            for name, member in layout.members.items()
        }
    }


def read(folder: Path) -> dict[str, Tensor]:
    """All parameters of a checkpoint, whole tables included, without a process group.

    Raises:
        RunError: there is no readable checkpoint.
    """
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise RunError(f"{folder}: holds no checkpoint; finish the run with `recdistill run --resume`")
    parts: dict[str, list[tuple[list[int], Tensor]]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as content:
                placed = json.loads((content.metadata() or {}).get("DCP_SHARDING_INFO", "{}"))
                for key in content.keys():  # noqa: SIM118, no mapping
                    offsets = placed.get(key, {}).get("saved_offsets", [])
                    parts.setdefault(key, []).append((offsets, content.get_tensor(key)))
        except (SafetensorError, OSError) as error:
            raise RunError(f"{file}: is not a readable checkpoint ({error}); run the job again") from None
    whole = {
        key: torch.cat([t for _, t in sorted(v, key=lambda f: f[0])]) if len(v) > 1 else v[0][1]
        for key, v in parts.items()
    }
    aliases = json.loads((folder / "layout.json").read_text(encoding="utf-8"))["aliases"]
    return whole | {name: whole[known] for name, known in aliases.items()}


def restore(cast: Cast, parameters: Mapping[str, Tensor]) -> None:
    """Copy whole parameters into a cast of the same members; every process takes its own rows.

    Raises:
        RunError: a parameter is missing or has another shape.
    """
    with torch.no_grad():
        for name, head in cast.heads.items():
            for key, value in head.state_dict().items():
                _copy(value, parameters, f"{name}.{key}")
        for bank in cast.layout.banks:
            for table, shard, first in cast.tables.shards(bank):
                whole = parameters.get(table_key(bank, table))
                rows = None if whole is None else whole[first : first + len(shard)]
                _copy(shard, {} if rows is None else {"": rows}, "", table_key(bank, table))


def _copy(target: Tensor, source: Mapping[str, Tensor], key: str, shown: str | None = None) -> None:
    if key not in source or source[key].shape != target.shape:
        found = "nothing" if key not in source else f"shape {tuple(source[key].shape)}"
        raise RunError(
            f"checkpoint: {shown or key}: expected shape {tuple(target.shape)}, found {found}; it is of another job"
        )
    target.copy_(source[key])


def _sort_header(file: Path) -> None:
    """Give a safetensors header one order, so that equal parameters are equal bytes; its length does not change."""
    with file.open("r+b") as handle:
        (size,) = struct.unpack("<Q", handle.read(8))
        header = json.loads(handle.read(size))
        text = json.dumps(_sorted(header), separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        handle.seek(8)
        handle.write(text.ljust(size))


def _sorted(value: object) -> object:
    return (
        {k: _sorted(value[k]) for k in sorted(value, key=lambda k: (k != "__metadata__", k))}
        if isinstance(value, dict)
        else value
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's notice that ShardedTensor, which TorchRec still uses, will give way to DTensor."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Please use DTensor", FutureWarning)
        yield
