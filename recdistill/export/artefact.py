"""Writes ``student/``: the scripted student, its manifest and golden rows; and checks it.

    student/
      student.pt        TorchScript; loads with plain torch
      manifest.json     inputs, outputs, corrections, fingerprints
      golden.parquet    raw rows and their scores
      items.parquet     raw columns of the items that lists are made of, if the student ranks
      codes/            its codes of them, if it makes codes (`codes.py`)

An archive that names anything that may not serve is not written.
"""

import hashlib
import json
import subprocess
import sys
import warnings
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from recdistill import __version__
from recdistill.data.transforms.rows import TextVocabulary
from recdistill.errors import ExportError, LogError
from recdistill.export import bare
from recdistill.export.serving import ServingStudent
from recdistill.publish import is_foreign, published

FORMAT = 1
GOLDEN_ROWS = 256
TOLERANCE = 1e-5  # of a logit, at any batch size


def write(
    student: ServingStudent,
    folder: Path,
    *,
    manifest: Mapping[str, Any],
    golden: pa.Table,
    withheld: Iterable[str],
    items: pa.Table | None = None,
) -> None:
    """Write the artefact; the folder appears only when it is complete.

    Args:
        student: the serving module.
        folder: where to write.
        manifest: ``inputs``, ``outputs`` and whatever else should be recorded.
        golden: raw rows.
        withheld: names that must not appear in the archive.
        items: raw columns of the items that lists are made of.

    Raises:
        ExportError: a withheld name appears in the archive, or the folder holds something else.
    """
    check_free(folder)
    with published(folder) as work:
        work.mkdir()
        save_script(student, work / "student.pt")
        data, code = bare.words(work / "student.pt")
        values = {word for text in vocabulary_texts(student) for word in bare.WORD.findall(text.encode())}
        checkable = [name for name in withheld if name.encode() not in code | values]
        if found := [name for name in checkable if name.encode() in data]:
            raise ExportError(f"student.pt names {found}, which must not serve; this is a defect, please report it")
        saved = torch.jit.load(str(work / "student.pt"))
        rows = golden.slice(0, GOLDEN_ROWS)
        with torch.no_grad():
            scores = saved(*bare.tensors(rows, manifest["inputs"]))
        outputs = manifest["outputs"]
        columns = (
            {"score": scores} if len(outputs) == 1 else {f"score.{n}": scores[:, k] for k, n in enumerate(outputs)}
        )
        for name, column in columns.items():
            rows = rows.append_column(name, pa.array(column.numpy()))
        pq.write_table(rows, work / "golden.parquet")
        if items is not None:
            pq.write_table(items, work / "items.parquet")
        files = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(work.iterdir())}
        numbers = [t for t in [*student.parameters(), *student.buffers()] if t.is_floating_point()]
        full = {
            "format": FORMAT,
            "created_by": f"recdistill {__version__}, torch {torch.__version__}",
            **manifest,
            "parameters": sum(t.numel() for t in numbers),
            "withheld": sorted(bare.withheld_hash(name) for name in checkable),
            "files": files,
        }
        (work / "manifest.json").write_text(json.dumps(full, indent=1), encoding="utf-8")


def check_free(folder: Path) -> None:
    """A place for an artefact, where nothing is or an older artefact.

    Raises:
        ExportError: something else is there, which would be lost.
    """
    if is_foreign(folder, "manifest.json", {"format", "inputs", "withheld"}):
        raise ExportError(f"{folder}: exists and holds no artefact; give another folder")


def vocabulary_texts(student: ServingStudent) -> Iterator[str]:
    """Every text that the student knows as a value of some column."""
    for module in student.modules():
        if isinstance(module, TextVocabulary):
            yield from module.index


def save_script(student: torch.nn.Module, path: Path) -> None:
    """Script and save, without the entries that hold source text and absolute paths, and with fixed time stamps."""
    scripted(student).save(str(path.with_suffix(".full")))
    with zipfile.ZipFile(path.with_suffix(".full")) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as target:
        for entry in source.infolist():
            if not entry.filename.endswith(".debug_pkl"):
                clean = zipfile.ZipInfo(entry.filename.replace(f"{path.stem}.full", path.stem), (1980, 1, 1, 0, 0, 0))
                target.writestr(clean, source.read(entry))
    path.with_suffix(".full").unlink()


def scripted(module: torch.nn.Module) -> Any:
    """The module as TorchScript, without the notice that TorchScript is deprecated; this is its one place."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        return torch.jit.script(module)


def load(folder: Path) -> tuple[Any, dict[str, Any]]:
    """The scripted student of an artefact and its manifest.

    Loading an archive runs the code in it: load only what you trust.

    Raises:
        ExportError: the folder holds no artefact.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
            return torch.jit.load(str(folder / "student.pt")), manifest
    except (OSError, ValueError, RuntimeError) as error:
        raise ExportError(
            f"{folder}: holds no readable artefact ({str(error).splitlines()[0]}); export the run again"
        ) from None


def check_types(manifest: Mapping[str, Any], raw: pa.Table, log: str) -> None:
    """Raw columns must be of the types that the student was trained on.

    Raises:
        LogError: one is not, so that it would be read as something else.
    """
    if wrong := bare.misfits(raw.schema, manifest["inputs"]):
        raise LogError(f"{log}: {'; '.join(wrong)}; cast the columns in the log")


def score(student: Any, manifest: Mapping[str, Any], raw: pa.Table, batch: int) -> torch.Tensor:
    """The logits of raw rows, in batches of a given size."""
    with torch.no_grad():
        parts = [
            student.logits(*bare.tensors(raw.slice(start, batch), manifest["inputs"]))
            for start in range(0, len(raw), batch)
        ]
    return torch.cat(parts)


def vectors(student: Any, manifest: Mapping[str, Any], raw: pa.Table, batch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The vectors of users and of items of raw rows, in batches of a given size; columns of either may be absent."""
    with torch.no_grad():
        parts = [
            student.vectors(*bare.tensors(raw.slice(start, batch), manifest["inputs"]))
            for start in range(0, len(raw), batch)
        ]
    return torch.cat([user for user, _ in parts]), torch.cat([item for _, item in parts])


def verify(folder: Path) -> dict[str, Any]:
    """The checks of an artefact, made by a fresh interpreter that cannot import recdistill, torchrec and fbgemm.

    Raises:
        ExportError: the check could not be made.
    """
    if not folder.exists():
        raise ExportError(f"{folder}: cannot be verified: does not exist; give an artefact folder")
    if (folder / "student" / "student.pt").exists():
        raise ExportError(f"{folder}: cannot be verified: is a run; verify {folder / 'student'}")
    command = [sys.executable, "-I", bare.__file__, str(folder.resolve())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        reason = done.stderr.strip().splitlines()[-1:] or ["no output"]
        raise ExportError(f"{folder}: cannot be verified: {reason[0]}; export the run again") from None
    return result
