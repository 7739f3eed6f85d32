"""The serving artefact of a run: built from a checkpoint, compared with training on the test split, verified bare."""

import json
import statistics
import time
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from rich.console import Console

from recdistill.data.encoded import EncodedLog
from recdistill.data.keep_rates import correction
from recdistill.data.log import raw_batches
from recdistill.data.scores import served_logits
from recdistill.distill.compile import Plan
from recdistill.distill.layout import lay_out
from recdistill.distill.member import Member
from recdistill.errors import ExportError, LogError, RunError
from recdistill.export import artefact
from recdistill.export.build import describe_inputs, served_columns, serving_student
from recdistill.export.serving import ServingStudent
from recdistill.publish import published
from recdistill.runs import lists
from recdistill.runs.console import Reporter
from recdistill.runs.folder import RunFolder
from recdistill.runs.logs import encoded, raw_log
from recdistill.runs.rescore import Finished, required
from recdistill.runs.targets import artefact_folder
from recdistill.spec.controls import MAIN
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.strict import nearest
from recdistill.training import checkpoint
from recdistill.training.engine import EVALUATION_BATCH

LATENCY_BATCHES = (1, 32, 1024)


def export_student(
    folder: RunFolder,
    job: Job,
    plan: Plan,
    log: EncodedLog,
    raw_log: str,
    seed: int,
    member: Member | None = None,
    out: Path | None = None,
) -> dict[str, Any]:
    """Write ``student/`` and return what the report says about it; one that was there before gives way to a sound one.

    Args:
        folder: the run.
        job: its job.
        plan: its members.
        log: the encoded log of the final parameters.
        raw_log: the raw log.
        seed: whose student is exported.
        member: another member that reads serving columns only, instead of the student.
        out: where to write instead of ``student/``.

    Raises:
        ExportError: the artefact differs from the trained student, or fails its own verification.
    """
    spec, member, out = log.spec, member or plan.student, out or folder.student
    training = folder.training(MAIN, seed)
    inputs = describe_inputs(served_columns(member, plan.members), spec, log.fitted)
    batches = raw_batches(spec, raw_log, job.where, "test", required(inputs), EVALUATION_BATCH)
    first = next(batches)
    student, described = _built(member, plan, log, job, training)
    described |= {"inputs": inputs, "seed": seed, "lists": lists.described(job, spec, member, inputs)}
    items = lists.items_of(job, spec, raw_log, described["lists"]["item"]) if described["lists"] else None
    expected = served_logits(training / "scores", f"{member.name}.test")
    expected = expected + correction(member.labels, spec.negative_keep_rate)
    with published(out) as work:
        artefact.write(student, work, manifest=described, golden=first, withheld=withheld(job, spec), items=items)
        loaded, manifest = artefact.load(work)
        parity = _parity(loaded, manifest, chain([first], batches), expected)
        if not parity <= artefact.TOLERANCE:
            raise ExportError(
                f"{out}: logits differ from training by up to {parity:.3g}; this is a defect, please report it"
            )
        codes = lists.write_codes(work)
        checked = artefact.verify(work)
        if not checked["ok"]:
            failed = {name: entry["detail"] for name, entry in checked["checks"].items() if not entry["ok"]}
            raise ExportError(f"{out}: fails its verification: {failed}")
    return {
        "seed": seed,
        "codes": codes,
        "bytes": (out / "student.pt").stat().st_size,
        "parameters": manifest["parameters"],
        "parity_max_abs": parity,
        "latency": latency(loaded, manifest, first),
        "verified": sorted(checked["checks"]),
    }


def _built(
    member: Member, plan: Plan, log: EncodedLog, job: Job, training: Path
) -> tuple[ServingStudent, dict[str, Any]]:
    """The serving module from the checkpoint of a training, and what its manifest says of it."""
    parameters = checkpoint.read(training / "checkpoints" / "final")
    spec, keep_rate = log.spec, log.spec.negative_keep_rate * job.train.negative_keep_rate
    layout = lay_out(plan.members, spec, log.fitted.tables)
    student = serving_student(member, plan.members, layout, spec, log.fitted, parameters, negative_keep_rate=keep_rate)
    fingerprints = {"data": log.fingerprint}
    outputs = [job.label[k] for k in member.labels]
    return student, {"outputs": outputs, "negative_keep_rate": keep_rate, "fingerprints": fingerprints}


def withheld(job: Job, spec: FeatureSpec) -> list[str]:
    """Names that must not appear in the artefact: all that is known only after the event."""
    after = {raw for name in spec.post_event for raw in spec.sources(name)}
    served = {raw for name in spec.serving for raw in spec.given(name)}  # among them keys of post-event histories
    return sorted({*spec.post_event, *(after - served), *job.privileged})


def _parity(student: Any, manifest: dict[str, Any], batches: Any, expected: NDArray[np.float32]) -> float:
    """The largest difference between the artefact's logits and those of training."""
    largest, row = 0.0, 0
    for batch in batches:
        logits = artefact.score(student, manifest, batch, EVALUATION_BATCH).numpy().reshape(len(batch), -1)
        largest = max(largest, float(np.abs(logits - expected[row : row + len(batch)]).max()))
        row += len(batch)
    if row != len(expected):
        raise ExportError(f"parity: the log holds {row} test rows, training scored {len(expected)}; run the job again")
    return largest


def latency(student: Any, manifest: dict[str, Any], raw: pa.Table) -> dict[str, float]:
    """Median milliseconds from Arrow rows to scores, by batch size."""
    found = {}
    for batch in LATENCY_BATCHES:
        rows, seconds = raw.slice(0, batch), []
        for _ in range(20):
            start = time.perf_counter()
            artefact.score(student, manifest, rows, batch)
            seconds.append(time.perf_counter() - start)
        found[f"batch_{batch}_ms"] = round(1000 * statistics.median(seconds), 3)
    return found


def export_again(path: Path, out: Path | None, member: str | None, seed: int | None) -> dict[str, Any]:
    """Write the artefact of a finished run once more, from its checkpoints and its log.

    Raises:
        RunError: the run is not complete, or has no such member or seed, or lies in the folder to write.
        ExportError: something else than an artefact is there.
        LogError: its log has changed since.
    """
    run = Finished.open(path)
    if member is not None and member not in run.members:
        raise RunError(f"{path}: has no member {member!r}; {nearest(member, run.members)}")
    if member is not None and run.members[member].net.whole:
        raise RunError(
            f"{path}: {member!r} answers from the vectors of all users and items at once, so that it makes no artefact "
            "alone; let a student learn from it, or write its scores with `recdistill score`"
        )
    if seed is not None and seed not in run.report["seeds"]:
        raise RunError(f"{path}: has no seed {seed}; it has {run.report['seeds']}")
    out = None if out is None else artefact_folder(out, path)
    reporter = Reporter(Console(stderr=True))
    with reporter.progress:
        log, spec = raw_log(run.job, run.spec, reporter)
        data = encoded(spec, log, run.job, run.job.train.fitted_on, reporter).log
    known = json.loads((path / "manifest.json").read_text(encoding="utf-8"))["fingerprints"]["data"]
    if data.fingerprint != known:
        raise LogError(
            f"{path}: the log {log} has changed since this run (fingerprint {data.fingerprint}, was {known}); "
            "run the job again"
        )
    chosen = None if member is None else run.members[member]
    return export_student(run.folder, run.job, run.plan, data, log, run.seed if seed is None else seed, chosen, out)
