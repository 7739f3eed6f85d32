"""`make bench`: speed as ratios, every pair measured side by side in one run; writes RESULTS.md beside this file.

The shape is that of a Criteo-like model: 26 tables of 200,000 rows x 16, batch 4,096, MLP 416-256-128-1. What is
compared:

- the *bare step*: FBGEMM tables and the MLP on batches that lie ready in memory; nothing can be faster with these
  parts;
- *end to end*: the engine of this project, reading the encoded log from parquet, shuffling, with its schedules, terms
  and logs;
- *teacher and student by hand*: that step written out for one job on ready batches, beside the engine's on the same
  batches, which says what the engine itself costs;
- *plain PyTorch*: sparse embeddings with SparseAdam, Adam for the rest, batches in memory; either one table for all
  fields, which is the most that care can do, or a table for each field, as models are usually written.

Rounds are interleaved, so that a slow moment of the machine hits all alike; medians are quoted.
"""

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import polars as pl
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import nn

from recdistill.data.batch import Batch
from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.distill.compile import Plan, compile_job
from recdistill.distill.schedule import Now
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.training.engine import Engine
from recdistill.training.fit import build_cast, reader_of
from recdistill.training.optimizers import dense_optimizers
from recdistill.training.sharding import process_group

FIELDS, ROWS, DIM, BATCH = 26, 200_000, 16, 4096
HEAD = "| precision | what | rows/s (median) | of the bare step | of plain, one table | of plain, 26 tables |"
Round = Callable[[int], float]  # steps -> rows per second


def mlp(width: int = FIELDS * DIM) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1))


def autocast(precision: str) -> object:
    return torch.autocast("cpu", dtype=torch.bfloat16) if precision == "bfloat16" else nullcontext()


def batches(seed: int, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ready = [
        (
            torch.randint(ROWS, (FIELDS, BATCH), generator=generator),
            torch.randint(2, (BATCH,), generator=generator).float(),
        )
        for _ in range(8)
    ]
    for step in range(steps):
        yield ready[step % len(ready)]


def timed(step: Callable[[torch.Tensor, torch.Tensor], None], steps: int) -> float:
    data = list(batches(0, steps))
    step(*data[0])
    start = time.perf_counter()
    for ids, label in data:
        step(ids, label)
    return steps * BATCH / (time.perf_counter() - start)


def bare(precision: str) -> Round:
    """The limit: FBGEMM lookup, MLP, fused Adam and row-wise Adagrad, on ready batches."""
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)] * FIELDS,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.02,
    )
    tables.init_embedding_weights_uniform(-0.01, 0.01)
    tower = mlp()
    optimizer = torch.optim.Adam(tower.parameters(), fused=True)
    offsets = torch.arange(FIELDS * BATCH + 1)

    def step(ids: torch.Tensor, label: torch.Tensor) -> None:
        vectors = tables(ids.reshape(-1), offsets)
        with autocast(precision):
            logit = tower(vectors)[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logit.float(), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda steps: timed(step, steps)


def by_hand(encoded: EncodedLog, precision: str) -> Round:
    """A teacher and a student on shared tables, written out for this one job, on ready batches of the encoded log."""
    ready = some_batches(encoded)
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(ROWS, DIM, EmbeddingLocation.HOST, ComputeDevice.CPU)] * FIELDS,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.02,
    )
    tables.init_embedding_weights_uniform(-0.01, 0.01)
    student, teacher = mlp(), mlp(FIELDS * DIM + 4)
    optimizer = torch.optim.Adam([*student.parameters(), *teacher.parameters()], fused=True)
    offsets = torch.arange(FIELDS * BATCH + 1)
    hard = nn.functional.binary_cross_entropy_with_logits

    def step(batch: Batch) -> None:
        assert batch.privileged is not None
        vectors = tables(batch.serving.ids_FB.reshape(-1), offsets)
        with autocast(precision):
            ours = student(vectors)[:, 0].float()
            theirs = teacher(torch.cat([vectors, batch.privileged.floats_BN], 1))[:, 0].float()
        label = batch.labels["y"]
        loss = hard(ours, label) + hard(theirs, label) + 0.5 * hard(ours, torch.sigmoid(theirs.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return lambda steps: timed_on(ready, step, steps)


def engine_step(encoded: EncodedLog, precision: str) -> Round:
    """The same job by the engine, on the same batches."""
    ready = some_batches(encoded)
    plan, job = plan_of(encoded, precision, "privileged")
    cast = build_cast(plan, job.train, encoded, seed=0)
    engine = Engine(cast, reader_of(plan, encoded, ("train",)), None, job.train, 0)
    (phase,) = plan.phases
    optimizers = [dense_optimizers(update.parts, cast, job.train.dense) for update in phase.updates]
    return lambda steps: timed_on(ready, lambda b: engine.step(phase, {"log": b}, Now(20), optimizers), steps)


def some_batches(encoded: EncodedLog) -> list[Batch]:
    plan, _ = plan_of(encoded, "float32", "privileged")
    reader = reader_of(plan, encoded, ("train",))
    return list(itertools.islice(reader.shuffled(BATCH, seed=0, epoch=0), 8))


def timed_on(ready: list[Batch], step: Callable[[Batch], object], steps: int) -> float:
    step(ready[0])
    start = time.perf_counter()
    for i in range(steps):
        step(ready[i % len(ready)])
    return steps * BATCH / (time.perf_counter() - start)


def plain_pytorch(precision: str) -> Round:
    """One sparse embedding for all fields, SparseAdam on the touched rows, Adam for the tower."""
    table = nn.Embedding(FIELDS * ROWS, DIM, sparse=True)
    nn.init.normal_(table.weight, std=0.01)
    tower = mlp()
    sparse = torch.optim.SparseAdam(list(table.parameters()), lr=0.001)
    dense = torch.optim.Adam(tower.parameters(), fused=True)
    start = (torch.arange(FIELDS) * ROWS).unsqueeze(1)

    def step(ids: torch.Tensor, label: torch.Tensor) -> None:
        vectors = table((ids + start).t()).flatten(1)
        with autocast(precision):
            logit = tower(vectors)[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logit.float(), label).backward()
        for optimizer in (sparse, dense):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return lambda steps: timed(step, steps)


def plain_tables(precision: str) -> Round:
    """A sparse embedding for each field, as a model is usually written; SparseAdam on the touched rows."""
    tables = nn.ModuleList(nn.Embedding(ROWS, DIM, sparse=True) for _ in range(FIELDS))
    for table in tables:
        nn.init.normal_(table.weight, std=0.01)
    tower = mlp()
    sparse = torch.optim.SparseAdam(list(tables.parameters()), lr=0.001)
    dense = torch.optim.Adam(tower.parameters(), fused=True)

    def step(ids: torch.Tensor, label: torch.Tensor) -> None:
        vectors = torch.cat([table(column) for table, column in zip(tables, ids, strict=True)], 1)
        with autocast(precision):
            logit = tower(vectors)[:, 0]
        nn.functional.binary_cross_entropy_with_logits(logit.float(), label).backward()
        for optimizer in (sparse, dense):
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return lambda steps: timed(step, steps)


def simulated(folder: Path, rows: int) -> EncodedLog:
    """A raw log of the benchmark's shape, encoded."""
    spec = FeatureSpec.model_validate(
        {
            "split": {"column": "part", "train": [0, 0], "valid": [1, 1], "test": [2, 2]},
            "serving": {f"c{i}": {"type": "categorical", "hash": ROWS - 2} for i in range(FIELDS)},
            "post_event": {"y": "binary", **{f"p{i}": "numeric" for i in range(4)}},
        }
    )
    rng = np.random.default_rng(0)
    path = folder / "log.parquet"
    if not path.exists():
        columns = {f"c{i}": rng.integers(0, 10**9, rows, dtype=np.int64) for i in range(FIELDS)}
        columns |= {f"p{i}": rng.normal(size=rows).astype(np.float32) for i in range(4)}
        columns |= {
            "y": rng.integers(0, 2, rows, dtype=np.int8),
            "part": np.minimum(np.arange(rows) // (rows - 2000), 1),
        }
        columns["part"][-1000:] = 2
        pl.DataFrame(columns).write_parquet(path)
    start = time.perf_counter()
    encoded = encode(spec, str(path), folder / "encoded")
    if (seconds := time.perf_counter() - start) > 1:
        print(f"encoded {rows:,} rows in {seconds:.1f} s ({rows / seconds:,.0f} rows/s)")
    return encoded


def plan_of(encoded: EncodedLog, precision: str, kind: str) -> tuple[Plan, Job]:
    """The benchmark's architecture as a job: a plain student, or a student and a teacher on shared tables."""
    net = {"mlp": [256, 128]}
    members: dict[str, object] = {"student": {"net": net, "dim": DIM, "serve": True}}
    terms = ["bce(student.logit, y)"]
    if kind == "privileged":
        members["teacher"] = {"net": net, "dim": DIM, "view": ["serving", "privileged"], "share": {"tables": "student"}}
        terms += ["bce(teacher.logit, y)", "soft(student.logit, teacher.logit) * step(0, 0.5, at=10)"]
    raw = {
        "spec": "-", "log": "-", "label": "y", "members": members, "phases": [{"steps": 10**6, "terms": terms}],
        "privileged": [f"p{i}" for i in range(4)] if kind == "privileged" else [],
        "train": {"batch": BATCH, "precision": precision}, "controls": {"none": "a benchmark"},
    }  # fmt: skip
    job = Job.model_validate(raw)
    return compile_job(job, encoded.spec), job


def end_to_end(encoded: EncodedLog, precision: str, kind: str) -> Round:
    """The engine as `run` uses it: reading, shuffling, terms, reports."""
    plan, job = plan_of(encoded, precision, kind)
    cast = build_cast(plan, job.train, encoded, seed=0)
    engine = Engine(cast, reader_of(plan, encoded, ("train",)), None, job.train, 0)
    engine.run(0, plan.phases[0], steps=3)

    def measure(steps: int) -> float:
        start = time.perf_counter()
        engine.run(0, plan.phases[0], steps=steps)
        return steps * BATCH / (time.perf_counter() - start)

    return measure


def reader_alone(encoded: EncodedLog) -> Round:
    """Reading, shuffling and cutting batches, with nobody to train."""
    plan, _ = plan_of(encoded, "float32", "plain")
    reader = reader_of(plan, encoded, ("train",))

    def measure(steps: int) -> float:
        start, rows = time.perf_counter(), 0
        for batch in reader.shuffled(BATCH, seed=0, epoch=0):
            rows += len(batch)
            if rows >= steps * BATCH:
                break
        return rows / (time.perf_counter() - start)

    return measure


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=1_000_000)
    arguments.add_argument("--steps", type=int, default=60)
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--folder", type=Path, default=Path(".recdistill/bench"))
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    encoded = simulated(given.folder, given.rows)
    lines = [HEAD, "|---|---|---|---|---|---|"]
    with process_group():
        for precision in ("float32", "bfloat16"):
            runs: dict[str, Round] = {
                "bare step": bare(precision),
                "end to end, student": end_to_end(encoded, precision, "plain"),
                "end to end, privileged features": end_to_end(encoded, precision, "privileged"),
                "teacher and student by hand": by_hand(encoded, precision),
                "teacher and student, engine": engine_step(encoded, precision),
                "plain PyTorch, one sparse table": plain_pytorch(precision),
                "plain PyTorch, 26 sparse tables": plain_tables(precision),
            }
            found: dict[str, list[float]] = {name: [] for name in runs}
            for _ in range(given.rounds):
                for name, run in runs.items():
                    found[name].append(run(given.steps if "plain" not in name else max(10, given.steps // 4)))
            median = {name: statistics.median(values) for name, values in found.items()}
            overhead = 1 - median["teacher and student, engine"] / median["teacher and student by hand"]
            print(f"{precision}: the engine costs {overhead:.0%} of a step written by hand")
            for name, value in median.items():
                of_bare = value / median["bare step"]
                of_one, of_many = (
                    value / median[f"plain PyTorch, {n}"] for n in ("one sparse table", "26 sparse tables")
                )
                lines.append(f"| {precision} | {name} | {value:,.0f} | {of_bare:.2f} | {of_one:.1f} | {of_many:.1f} |")
                print(lines[-1], flush=True)
        reader = statistics.median(reader_alone(encoded)(given.steps * 2) for _ in range(given.rounds))
        lines.append(f"| | reader alone | {reader:,.0f} | | | |")
        print(lines[-1])
    text = f"# Speed\n\n{__doc__.split(chr(10), 2)[2].strip()}\n\n" + "\n".join(lines)
    text += f"\n\n{given.rows:,} rows, {given.steps} steps a round, {given.rounds} rounds, "
    text += f"{torch.get_num_threads()} threads, torch {torch.__version__}, Python {sys.version.split()[0]}.\n"
    (Path(__file__).parent / "RESULTS.md").write_text(text)


if __name__ == "__main__":
    main()
