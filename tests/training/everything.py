"""One job that uses all that changes while training: followers, memory, gates, feeds, generations, weights."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.data.log import spec_of
from recdistill.distill.compile import compile_job, problems_of
from recdistill.spec.load import parse_job
from recdistill.training.fit import fit
from recdistill.training.reading import Data, Logs, Training
from tests.conftest import Small
from tests.training.bench import described

MEMBERS: dict[str, Any] = {
    "student": {"net": {"mlp": [8]}, "dim": 4, "serve": True},
    "teacher": {"net": {"mlp": [8]}, "dim": 4, "view": ["serving", "privileged"]},
    "critic": {"net": {"mlp": [4]}, "view": [], "inputs": ["live(student.hidden[-1])"], "outputs": 1},
    "noisy": {"same": "student", "distort": {"mask": 0.1, "noise": 0.2}},
    "average": {"ema": {"of": "student", "decay": 0.8}},
    "best": {"best": {"of": "student", "average": 2}},
    "snap": {"snapshot": {"of": "student", "every": 3}},
    "before": {"previous": "student"},
}  # fmt: skip
BCE = "bce(student.logit, label)"
REMEMBERED = "soft(student.logit, memory(student.logit, decay=0.5)) * 0.5"
GATED = "bce(gate(teacher.logit, average.logit, by=student.embed), label)"
TAUGHT = [
    BCE, "bce(noisy.logit, label) * 0.5", "bce(teacher.logit, label)", "soft(student.logit, average.logit) * 0.3",
    "soft(student.logit, best.logit) * 0.2", "soft(student.logit, snap.logit) * 0.2",
    "soft(student.logit, before.logit) * 0.3", REMEMBERED, GATED,
    "soft(student.logit, teacher.logit) * stalled(0.2, 0.9, student.auc)",
    "l2(adapt(student.hidden[-1], width=8), teacher.hidden[-1]) * cycle(0.3, 0.1, over=3)",
]  # fmt: skip
FIRST = {"steps": 4, "terms": [BCE, "bce(teacher.logit, label)", REMEMBERED], "stop": {"every": 2}}
AGAIN = {
    "steps": 9, "repeat": 2, "restart": "student", "lr": "cycle(1, 0.1, over=4)",
    "stop": {"every": 2, "monitor": "auc"},
    "updates": [
        {"terms": TAUGHT, "feed": "mixed"},
        {"terms": ["bce(critic.logit, click)"], "train": "critic", "every": 2},
    ],
}  # fmt: skip
STEPS = 4 + 2 * 9


@dataclass(frozen=True)
class Everything:
    """The job, the log, and its pool."""

    job: dict[str, Any]
    log: EncodedLog
    pool: EncodedLog

    def training(self, changes: Mapping[str, Any]) -> Training:
        from recdistill.spec.load import assign

        job, spec = parse_job(assign(self.job, changes, "everything"), "everything", check=problems_of)
        logs = Logs(self.log, {"pool": self.pool})
        return Training(compile_job(job, spec), job.train, Data(logs, logs), 0)

    def fit(self, folder: Path, changes: Mapping[str, Any] | None = None) -> Any:
        return fit(self.training(changes or {}), folder)


def everything_of(small: Small, folder: Path) -> Everything:
    """The job on the small marketplace, with a pool of unlabelled impressions."""
    path = folder / "pool.parquet"
    frame = pl.read_parquet(small.log).head(700).with_columns(pl.col("impression_id") + 10**6)
    frame.drop("purchase").write_parquet(path)
    pool = encode(spec_of(small.encoded.spec, str(path)), str(path), folder / "pool", fitted=small.encoded.fitted)
    feeds = {"pool": {"log": str(path)}, "mixed": {"mix": {"log": 3, "pool": 1}}}
    train = {"batch": 700, "tables": {"rowwise_adagrad": {"lr": 0.05}}, "dense": {"adam": {"lr": 0.01}}}
    job = described(small, MEMBERS, [FIRST, AGAIN], feeds=feeds, train=train, privileged=["dwell_ms"])
    return Everything(job, small.encoded, pool)
