"""Other logs through the members of a finished run: scores as columns, and the same metrics on other rows."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from recdistill.data.counts import count_labels
from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog, load_fitted
from recdistill.data.files import scan
from recdistill.data.fit import FittedSpec
from recdistill.data.keep_rates import correction
from recdistill.data.log import ROW_ID, raw_batches
from recdistill.data.reader import Reader
from recdistill.data.recorded import Provenance
from recdistill.data.scores import Scored, scored, sigmoid
from recdistill.distill.checks import behind
from recdistill.distill.combine import fold_of
from recdistill.distill.compile import Plan, compile_job
from recdistill.distill.member import Member
from recdistill.distill.signal import Scenario, walk
from recdistill.errors import LogError, RunError
from recdistill.evaluation.report.measures import measure_of
from recdistill.evaluation.report.metrics import plain_json, summary
from recdistill.evaluation.topk import TopK
from recdistill.export import artefact
from recdistill.publish import published
from recdistill.runs.folder import RunFolder, fingerprint, write_json
from recdistill.runs.nodes import kept_nodes, kept_rankings
from recdistill.runs.targets import check_file
from recdistill.spec.controls import MAIN
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.load import load_feature_spec, read_yaml
from recdistill.spec.members import Recorded
from recdistill.spec.strict import nearest
from recdistill.training import checkpoint
from recdistill.training.engine import EVALUATION_BATCH, Engine
from recdistill.training.fit import build_cast
from recdistill.training.rankings import Rankings, vectors_of
from recdistill.training.reading import selection
from recdistill.training.sharding import process_group


@dataclass(frozen=True)
class Finished:
    """A complete run, opened again."""

    folder: RunFolder
    job: Job
    spec: FeatureSpec
    plan: Plan
    report: dict[str, Any]

    @classmethod
    def open(cls, path: Path) -> "Finished":
        """The run in a folder.

        Raises:
            RunError: the run is not complete.
        """
        report = RunFolder(path).read_report()
        job = Job.model_validate(read_yaml(path / "job.yaml"))
        spec = load_feature_spec(path / "spec.yaml")
        return cls(RunFolder(path), job, spec, compile_job(job, spec), report)

    @property
    def members(self) -> dict[str, Member]:
        """The members whose answers are scores, by name."""
        return {member.name: member for member in self.plan.scored}

    def copies(self, name: str, *, out_of_fold: bool) -> list[str]:
        """The members that a name stands for: itself, or all copies of it.

        Raises:
            RunError: there is no such member, or it has no folds but should.
        """
        known = self.job.members.get(name)
        found = [name] if name in self.members else []
        if known is not None and known.copies > 1:
            found = [f"{name}_{k}" for k in range(known.copies)]
        if not found:
            raise RunError(f"{self.folder.root}: has no member {name!r} with scores; {nearest(name, [*self.members])}")
        if out_of_fold and (known is None or not known.folds):
            raise RunError(f"{self.folder.root}: {name!r} has no folds; train it with `copies: 5, folds: true`")
        return found

    def fingerprint_of(self, name: str, seed: int) -> str:
        """A hash of a member's parameters, and of those that it reads, and of the columns that they were fitted to."""
        folder = self.folder.training(MAIN, seed) / "checkpoints" / "final"
        names = behind({name}, {m.name: replace(m, embed=None) for m in self.plan.members})
        members = json.loads((folder / "layout.json").read_text(encoding="utf-8"))["members"]
        tables = {table for name in names for table in members.get(name, {}).values()}
        prefixes = tuple(f"{name}." for name in names)
        digest = hashlib.blake2b(digest_size=16)
        for key, value in sorted(checkpoint.read(folder).items()):
            if key.startswith(prefixes) or key in tables:
                digest.update(key.encode() + value.contiguous().numpy().tobytes())
        fitted = json.loads((self.folder.root / "manifest.json").read_text(encoding="utf-8"))["fingerprints"]["data"]
        digest.update(str(fitted).encode())
        return digest.hexdigest()

    @property
    def seed(self) -> int:
        """The seed whose student was exported."""
        return int(self.report["artefact"]["seed"])

    @contextmanager
    def encoded(self, log: str, spec: FeatureSpec, where: dict[str, Any]) -> Iterator[EncodedLog]:
        """Another log, encoded with the run's own columns; all its rows form the ``test`` split."""
        fitted = load_fitted(self.folder.root / "fitted")
        known = FittedSpec({name: fitted.columns[name] for name in spec.columns})
        with TemporaryDirectory(prefix="recdistill-") as work:
            yield encode(spec, log, Path(work) / "encoded", where=where, fitted=known)

    def engine(self, log: EncodedLog, seed: int, *, labels: bool = True) -> Engine:
        """The members with the final parameters of a seed, reading that log; without its labels if it has none."""
        nodes = kept_nodes(self.folder, self.plan, log)
        cast = build_cast(self.plan, self.job.train, log, seed=seed, warm=False, nodes=nodes)
        checkpoint.restore(cast, checkpoint.read(self.folder.training(MAIN, seed) / "checkpoints" / "final"))
        read = self.plan if labels else replace(self.plan, phases=(), columns=())
        return Engine(cast, Reader(log, ("test",), selection(read, log)), None, self.job.train, seed)


def score_run(path: Path, log: str, out: Path, member: str | None = None, *, out_of_fold: bool = False) -> int:
    """Write a member's scores of all rows of a log: row id and its columns, logit, score; returns the number of rows.

    The student is scored by its artefact and needs serving columns only; other members need what they were trained on.
    The file says whose scores it holds, so that a later job can read them (`scores:`) and refuses stale ones.

    Args:
        path: the run.
        log: the raw log.
        out: the parquet file to write; it appears only when it is complete.
        member: the member; of one with copies the mean of their probabilities.
        out_of_fold: of a member with `folds`, each row's score by the copy that has not learned from it.

    Raises:
        RunError: the run has no such member, or one without folds; or the file to write belongs to the log.
        LogError: the log lacks a column.
    """
    run = Finished.open(path)
    check_file(out, [log, *run.spec.join])
    name = member or run.plan.student.name
    copies = run.copies(name, out_of_fold=out_of_fold)
    if out_of_fold and not run.spec.row_id:
        raise RunError(
            f"{path}: folds are drawn by row id, but the feature spec names no `row_id`, so nobody can say which rows "
            "were learned from; name the columns that identify a row"
        )
    made_by = provenance(run, name, copies, out_of_fold=out_of_fold)
    if name == run.plan.student.name:
        return score_artefact(run.folder.student, log, out, run.spec, made_by)
    inputs = {n: c for n, c in run.spec.post_event.items() if n in run.job.privileged}
    spec = _without_roles(run.spec).model_copy(update={"post_event": inputs})
    signals = (signal for member in run.plan.members for signal in member.signals)
    if any(isinstance(part, Scenario) for signal in signals for part in walk(signal)):
        spec = spec.model_copy(update={"scenario": run.spec.scenario})
    with process_group(), run.encoded(log, spec, {}) as encoded:
        engine = run.engine(encoded, run.seed, labels=False)
        logits, row_id_N, _ = engine.score(copies, engine.train)
        raw = raw_batches(spec, log, {}, None, [ROW_ID, *spec.row_id], EVALUATION_BATCH)
        keys = _keys(pa.concat_tables(raw), spec)
    logits_NK = together([logits[copy] for copy in copies], row_id_N, out_of_fold=out_of_fold)
    logits_NK = logits_NK + correction(run.members[copies[0]].labels, spec.negative_keep_rate)  # as of the artefact
    table = _with_scores(keys, logits_NK, made_by.labels)
    with published(out) as work:
        pq.write_table(made_by.attach(table), work)
    return len(table)


def together(
    logits: list[NDArray[np.float32]], row_id_N: NDArray[np.int64], *, out_of_fold: bool
) -> NDArray[np.float32]:
    """One logit of each row and label from those of several copies, (N, K)."""
    if len(logits) == 1:
        return logits[0]
    stacked = np.stack(logits)
    if out_of_fold:
        fold_N = fold_of(torch.from_numpy(row_id_N), len(logits)).numpy()
        found: NDArray[np.float32] = stacked[fold_N, np.arange(len(row_id_N))]
        return found
    mixed: NDArray[np.float32] = np.log(sigmoid(stacked).mean(0) / sigmoid(-stacked).mean(0)).astype(np.float32)
    return mixed


def key_names(columns: list[str]) -> list[str]:
    """What the columns that identify a row are called beside ``row_id`` and the scores."""
    ours = ("row_id", "logit", "score")
    return [f"key.{name}" if name.partition(".")[0] in ours else name for name in columns]


def provenance(run: Finished, name: str, copies: list[str], *, out_of_fold: bool) -> Provenance:
    """What a score file says of whose scores it holds."""
    member = run.members[copies[0]]
    labels = [run.job.label[k] for k in member.labels]
    seed = run.seed
    print_of = fingerprint([run.fingerprint_of(copy, seed) for copy in copies])
    return Provenance(str(run.folder.root), name, seed, print_of, [*run.spec.row_id], labels, out_of_fold)


def score_artefact(folder: Path, log: str, out: Path, spec: FeatureSpec, made_by: Provenance | None = None) -> int:
    """Write the artefact's scores of all rows of a log, streaming; returns the number of rows.

    Args:
        folder: the artefact.
        log: the raw log.
        out: the parquet file to write; it appears only when it is complete.
        spec: says how rows are identified and side tables joined.
        made_by: what the file says of whose scores it holds.

    Raises:
        RunError: the file to write belongs to the log, or the log holds no rows.
        LogError: the log lacks a column, or holds it in another type than the student was trained on.
    """
    check_file(out, [log, *spec.join])
    student, manifest = artefact.load(folder)
    serving = _without_roles(spec).model_copy(update={"post_event": {}})
    columns = [ROW_ID, *dict.fromkeys([*spec.row_id, *required(manifest["inputs"])])]
    optional = fresher(manifest["inputs"])
    writer: pq.ParquetWriter | None = None
    rows = 0
    with published(out) as work:
        for raw in raw_batches(serving, log, {}, None, columns, EVALUATION_BATCH, optional):
            artefact.check_types(manifest, raw, log)
            logits = artefact.score(student, manifest, raw, EVALUATION_BATCH).numpy().reshape(len(raw), -1)
            table = _with_scores(_keys(raw, spec), logits, manifest["outputs"])
            table = table if made_by is None else made_by.attach(table)
            writer = writer or pq.ParquetWriter(work, table.schema)
            writer.write_table(table)
            rows += len(table)
        if writer is None:
            raise RunError(f"{log}: holds no rows to score")
        writer.close()
    return rows


def plain_spec(folder: Path, log: str) -> FeatureSpec:
    """The spec of a log that holds the artefact's inputs itself, without side tables; a row's number is its id.

    Raises:
        LogError: the log lacks some of them.
    """
    _, manifest = artefact.load(folder)
    known = scan(log).collect_schema().names()
    if absent := [name for name in required(manifest["inputs"]) if name not in known]:
        hints = "; ".join(f"{name!r}: {nearest(name, known)}" for name in absent)
        raise LogError(
            f"{log}: lacks columns that the artefact takes: {hints}; if side tables or earlier rows hold them, name "
            "the feature spec with --spec"
        )
    needed = [entry for entry in manifest["inputs"] if entry["name"] in required(manifest["inputs"])]
    columns = {entry["name"]: {"type": "list" if entry["list"] else "categorical"} for entry in needed}
    return FeatureSpec.model_validate({"serving": columns})


def required(inputs: list[dict[str, Any]]) -> list[str]:
    """The inputs of an artefact that a log must hold."""
    return [entry["name"] for entry in inputs if not entry.get("optional")]


def fresher(inputs: list[dict[str, Any]]) -> list[str]:
    """Those that it may hold: values of history columns, fresher than those in the artefact."""
    return [entry["name"] for entry in inputs if entry.get("optional")]


def _without_roles(spec: FeatureSpec) -> FeatureSpec:
    """The spec without what only training and evaluation need."""
    return spec.model_copy(
        update={"reference": [], "weight": None, "group": None, "scenario": None, "split": None, "time": spec.clock}
    )


def _keys(raw: pa.Table, spec: FeatureSpec) -> pa.Table:
    """What identifies each row: its id, and the columns that this is made of."""
    return raw.select([ROW_ID, *spec.row_id]).rename_columns(["row_id", *key_names(spec.row_id)])


def _with_scores(table: pa.Table, logits_NK: NDArray[np.float32], labels: list[str]) -> pa.Table:
    for k, name in enumerate(labels):
        suffix = "" if k == 0 else f".{name}"
        table = table.append_column(f"logit{suffix}", pa.array(logits_NK[:, k]))
        table = table.append_column(f"score{suffix}", pa.array(sigmoid(logits_NK[:, k]).astype(np.float32)))
    return table


def evaluate_run(path: Path, log: str, out: Path | None = None) -> dict[str, Any]:
    """Metrics of every member of every seed, and of the reloaded artefact, on another log.

    Args:
        path: the run.
        log: the raw log.
        out: a JSON file to write the metrics to as well.

    Returns:
        The report: ``metric`` and ``members`` as in report.json under the split ``test``, and ``artefact`` likewise;
        members of which only scores are left have none of other rows. Where the job judges lists, these are judged by
        what users take in the log, without what the run knew; the artefact, whose lists are its own, has no entry.

    Raises:
        RunError: the run is not complete, or the file to write belongs to the log.
        LogError: the log lacks a column.
    """
    run = Finished.open(path)
    if out is not None:
        check_file(out, [log, *run.spec.join])
    spec = run.spec.model_copy(update={"split": None, "time": run.spec.clock})
    with process_group(), run.encoded(log, spec, dict(run.job.where)) as encoded:
        rankings = kept_rankings(run.folder, run.plan, encoded)
        found = _of_rows(run, log, spec, encoded) if rankings is None else _of_lists(run, encoded, rankings)
        rows = encoded.rows["test"]
    about = {"student": run.plan.student.name, "seeds": run.report["seeds"], "rows": rows}
    result: dict[str, Any] = plain_json({"metric": run.report["metric"], **found, **about})
    if out is not None:
        write_json(out, result)
    return result


def _of_rows(run: Finished, log: str, spec: FeatureSpec, encoded: EncodedLog) -> dict[str, Any]:
    """How members and the artefact score rows."""
    label, roles = run.job.label[0], encoded.roles("test")
    if not count_labels(encoded, "test", [label])[label].known:
        raise LogError(f"{log}: label {label!r} is known in no row, so nothing can be judged; `score` needs no labels")
    per_member: dict[str, list[Scored]] = {
        name: [] for name, m in run.members.items() if 0 in m.labels and not isinstance(m.origin, Recorded)
    }
    for seed in run.report["seeds"]:
        engine = run.engine(encoded, seed)
        logits, row_id_N, labels = engine.score(list(per_member), engine.train)
        known_N = ~np.isnan(labels[label])
        for name, found in per_member.items():
            found.append(scored(row_id_N, labels[label], logits[name][:, 0], roles).only(known_N))
    student, manifest = artefact.load(run.folder.student)
    inputs = manifest["inputs"]
    raw = raw_batches(spec, log, run.job.where, None, required(inputs), EVALUATION_BATCH, fresher(inputs))
    parts = [artefact.score(student, manifest, b, EVALUATION_BATCH).numpy().reshape(len(b), -1)[:, 0] for b in raw]
    served_N = np.concatenate(parts) - np.float32(np.log(spec.negative_keep_rate))  # of this log, as those of members
    served = scored(row_id_N, labels[label], served_N, roles).only(known_N)
    members = {name: {"test": summary(found)} for name, found in per_member.items()}
    return {"members": members, "artefact": {"test": summary([served])}}


def _of_lists(run: Finished, encoded: EncodedLog, rankings: Rankings) -> dict[str, Any]:
    """How good the lists of members are."""
    measure = measure_of(run.report["metric"])
    found: dict[str, list[TopK]] = {member.name: [] for member in run.plan.ranked}
    for seed in run.report["seeds"]:
        cast = run.engine(encoded, seed).cast
        for name, lists in found.items():
            lists.append(rankings.judge(vectors_of(cast, name, seed=seed)))
    return {"members": {name: {"test": measure.summary(lists)} for name, lists in found.items()}}
