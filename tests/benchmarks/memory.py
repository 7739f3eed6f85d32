"""`python -m tests.benchmarks.memory`: simulate, encode and train on a log of many rows; how much memory each takes.

Each stage is a process of its own, so that its peak is its own. The log is the simulated marketplace with two history
columns on top of its spec; training is one pass over all training rows.
"""

import argparse
import json
import multiprocessing
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

GIB = 2**20  # ru_maxrss counts in KiB
LIMIT = 6.0
HISTORIES = {
    "user_clicks": {"type": "history", "keys": "user_id"},
    "item_clicks": {"type": "history", "keys": "item_id"},
}


def simulate(folder: Path, rows: int) -> None:
    from recdistill.data.simulate import simulate_marketplace

    simulate_marketplace(folder / "log.parquet", rows=rows, labelled=0.5)


def encoded(folder: Path) -> Any:
    from recdistill.data.encode import encode
    from recdistill.spec.load import parse_feature_spec, read_yaml

    raw = read_yaml("feature_specs/marketplace.yaml")
    raw["serving"] = {**raw["serving"], **HISTORIES}
    return encode(parse_feature_spec(raw, "memory"), str(folder / "log.parquet"), folder / "encoded")


def encode_log(folder: Path, rows: int) -> None:
    del rows
    encoded(folder)


def train(folder: Path, rows: int) -> None:
    del rows
    from recdistill.distill.compile import compile_job
    from recdistill.spec.job import Job
    from recdistill.training.engine import Engine
    from recdistill.training.fit import build_cast
    from recdistill.training.reading import reader_of
    from recdistill.training.sharding import process_group

    log = encoded(folder)
    members = {
        "student": {"net": {"mlp": [64, 32]}, "dim": 8, "serve": True},
        "teacher": {
            "net": {"mlp": [64, 32]}, "dim": 8, "view": ["serving", "privileged"], "share": {"tables": "student"},
        },
    }  # fmt: skip
    terms = ["bce(student.logit, label)", "bce(teacher.logit, label)", "soft(student.logit, teacher.logit)"]
    job = Job.model_validate(
        {
            "spec": "-", "log": "-", "label": "purchase", "privileged": ["dwell_ms", "reviews_opened"],
            "members": members, "phases": [{"epochs": 1, "terms": terms}], "train": {"precision": "bfloat16"},
            "controls": {"none": "a benchmark"},
        }
    )  # fmt: skip
    plan = compile_job(job, log.spec)
    with process_group():
        cast = build_cast(plan, job.train, log, seed=0)
        Engine(cast, reader_of(plan, log, ("train",)), None, job.train, 0).run(0, plan.phases[0])


def measured(stage: Callable[[Path, int], None], folder: Path, rows: int, pipe: Any) -> None:
    start = time.perf_counter()
    stage(folder, rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / GIB
    pipe.send(json.dumps({"seconds": time.perf_counter() - start, "peak": peak}))


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=20_000_000)
    arguments.add_argument("--folder", type=Path, default=Path(".recdistill/memory"))
    given = arguments.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    peaks = []
    for stage in (simulate, encode_log, train):
        receive, send = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("spawn")
        process = context.Process(target=measured, args=(stage, given.folder, given.rows, send))
        process.start()
        found = json.loads(receive.recv())
        process.join()
        peaks.append(found["peak"])
        speed = given.rows / found["seconds"]
        print(
            f"| {stage.__name__} | {found['seconds']:.0f} s | {speed:,.0f} rows/s | {found['peak']:.2f} GiB |",
            flush=True,
        )
    verdict = "under" if max(peaks) < LIMIT else "OVER"
    print(f"{given.rows:,} rows: peak {max(peaks):.2f} GiB, {verdict} {LIMIT:.0f} GiB")


if __name__ == "__main__":
    main()
