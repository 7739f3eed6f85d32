"""A bench for signatures: a row's own job on a small log made for it, through the real pipeline and engine.

A signature changes a job by overrides only; a wrong twin is the same job with one mechanism replaced.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml
from torch import Tensor

from recdistill.data.batch import Batch
from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.data.lists import in_lists
from recdistill.data.scores import read_scores
from recdistill.distill.compile import Plan, compile_job, examine
from recdistill.distill.member import Member
from recdistill.evaluation import auc, log_loss
from recdistill.nets.inputs import Outputs
from recdistill.spec.controls import arms
from recdistill.spec.job import Job
from recdistill.spec.load import assign, parse_job, read_yaml
from recdistill.training.audit import Audit, audit
from recdistill.training.cast import Cast
from recdistill.training.fit import build_cast, fit
from recdistill.training.play import Play, play
from recdistill.training.reading import Data, Training, reader_of
from recdistill.training.sharding import process_group

JOBS = Path(__file__).parents[2] / "jobs"


@dataclass(frozen=True)
class Outcome:
    """A finished training."""

    folder: Path
    cast: Cast

    def auc(self, member: str, split: str = "test") -> float:
        scored = read_scores(self.folder / "scores" / f"{member}.{split}.parquet")
        return auc(scored.label_N, scored.logit_N)

    def logloss(self, member: str, split: str = "test") -> float:
        scored = read_scores(self.folder / "scores" / f"{member}.{split}.parquet")
        return log_loss(scored.label_N, scored.logit_N)

    def logits(self, member: str, split: str = "test") -> np.ndarray:
        return read_scores(self.folder / "scores" / f"{member}.{split}.parquet").logit_N

    def parameters(self, member: str) -> dict[str, np.ndarray]:
        return {name: value.numpy(force=True).copy() for name, value in self.cast.state([member]).items()}


class Lab:
    """Trains variations of one job on one log."""

    def __init__(
        self, folder: Path, job: str, columns: Mapping[str, Any], spec: Mapping[str, Any], overrides: Mapping[str, Any]
    ) -> None:
        self.folder, self.columns = folder, columns
        folder.mkdir(parents=True, exist_ok=True)
        pl.DataFrame(columns).write_parquet(folder / "log.parquet")
        (folder / "spec.yaml").write_text(yaml.safe_dump(dict(spec)))
        self.raw = assign(
            read_yaml(JOBS / f"{job}.yaml"), {"spec": str(folder / "spec.yaml"), "where": {}, **overrides}, job
        )
        self.raw["log"] = str(folder / "log.parquet")
        self.count = 0

    def job(self, overrides: Mapping[str, Any] | None = None) -> tuple[Job, EncodedLog]:
        """The job and its log; parts of a job are trained as well, which leave some labels untaught."""
        raw = assign(self.raw, overrides or {}, "lab")
        job, spec = parse_job(raw, "lab", check=lambda *given: examine(*given)[1])
        out = self.folder / "encoded" / f"{abs(hash(str(job.where)))}"
        log = encode(spec, str(job.log), out, where=job.where)
        return job, in_lists(log, ("train",), out.with_name(f"{out.name}-lists")) if job.train.whole_lists else log

    def plan(self, overrides: Mapping[str, Any] | None = None, arm: str = "main") -> tuple[Plan, Job, EncodedLog, bool]:
        job, log = self.job(overrides)
        chosen = next(a for a in arms(job) if a.name == arm)
        return compile_job(chosen.job, log.spec), chosen.job, log, chosen.shuffle_privileged

    def fit(self, overrides: Mapping[str, Any] | None = None, *, seed: int = 0, arm: str = "main") -> Outcome:
        plan, job, log, shuffle = self.plan(overrides, arm)
        self.count += 1
        folder = self.folder / f"fit_{self.count}"
        with process_group():
            return Outcome(folder, fit(Training(plan, job.train, Data.of(log), seed, shuffle), folder))

    def audit(
        self,
        overrides: Mapping[str, Any] | None = None,
        *,
        step: int = 0,
        seen: Sequence[Mapping[str, float]] = (),
        arm: str = "main",
        phase: int = 0,
    ) -> tuple[list[Audit], Cast]:
        plan, job, log, _ = self.plan(overrides, arm)
        with process_group():
            cast = build_cast(plan, job.train, log, seed=0)
            batch = next(iter(reader_of(plan, log, ("train",)).in_order(job.train.batch)))
            return audit(cast, plan.phases[phase], batch, step=step, seen=seen), cast

    def batch(self) -> Batch:
        """The rows that `audit` and `outputs` look at."""
        plan, job, log, _ = self.plan()
        return next(iter(reader_of(plan, log, ("train",)).in_order(job.train.batch)))

    def outputs(self, overrides: Mapping[str, Any] | None = None, *, arm: str = "main") -> dict[str, Outputs]:
        """What all members answer for the batch of `audit`; the same numbers, as long as the job has no dropout."""
        plan, job, log, _ = self.plan(overrides, arm)
        with process_group():
            cast = build_cast(plan, job.train, log, seed=0)
            batch = next(iter(reader_of(plan, log, ("train",)).in_order(job.train.batch)))
            played = play(cast, list(cast.members), batch)
            with torch.no_grad():
                return {name: played[name] for name in cast.members}

    def answers(self, found: Outcome, split: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Outputs]:
        """What the trained members of `fit` answer for all rows of a split, in the order of the log."""
        plan, job, log, _ = self.plan(overrides)
        with process_group():
            cast = build_cast(plan, job.train, log, seed=0)
            with torch.no_grad():
                trained = found.cast.state(cast.members)
                for name, value in cast.state(cast.members).items():
                    value.copy_(trained[name])
                batch = next(iter(reader_of(plan, log, (split,)).in_order(1_000_000)))
                played = play(cast, list(cast.members), batch)
                return {name: played[name] for name in cast.members}


@contextmanager
def answering(change: Callable[[str, Outputs, Batch], Outputs]) -> Iterator[None]:
    """Within it a member answers ``change(name, answer, rows)`` instead of its own answer."""
    answer = Play._answer

    def changed(played: Play, member: Member) -> Outputs:
        return change(member.name, answer(played, member), played.scene.batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Play, "_answer", changed)
        yield


def slopes(found: Audit, cast: Cast, member: str) -> Tensor:
    """The gradient of a term on the logit of each row of a logistic member, read off that on its looked-up vectors."""
    leaf_BW = found.tables[member]
    weight_W = dict(cast.heads[member].named_parameters())["net.out.weight"].detach()[0, : leaf_BW.shape[1]]
    return leaf_BW @ weight_W / weight_W.square().sum()


def mean_auc(labs: Sequence[Lab], member: str, overrides: Mapping[str, Any] | None = None, arm: str = "main") -> float:
    """The test AUC of a member, averaged over several logs; each is trained with the seed of its place."""
    return float(np.mean([lab.fit(overrides, seed=i, arm=arm).auc(member) for i, lab in enumerate(labs)]))


def same(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> bool:
    """Whether two sets of arrays are equal bit for bit."""
    return ours.keys() == theirs.keys() and all(np.array_equal(ours[name], theirs[name]) for name in ours)


def pairs_of_fields(
    seed: int, rows: Sequence[int], *, alone: float = 0.35, pairs: float = 1.2
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Six categorical columns of twenty values, which count alone and in pairs, and the logit of each row; CTR 0.32."""
    rng = np.random.default_rng(seed)
    value_NF = rng.integers(20, size=(sum(rows), 6))
    first_FV, vector_FVK = alone * rng.normal(size=(6, 20)), 0.3 * rng.normal(size=(6, 20, 4))
    field_F = np.arange(6)
    vector_NFK = vector_FVK[field_F, value_NF]
    pair_N = (np.square(vector_NFK.sum(1)) - np.square(vector_NFK).sum(1)).sum(1) / 2
    logit_N = first_FV[field_F, value_NF].sum(1) + pairs * pair_N - 0.95
    return {f"c{k}": value_NF[:, k] for k in field_F} | {"part": splits(rows)}, logit_N


def clicks(logit_N: np.ndarray, seed: int) -> np.ndarray:
    """Labels drawn from logits."""
    rng = np.random.default_rng([seed, 1])
    return (rng.random(len(logit_N)) < 1 / (1 + np.exp(-logit_N))).astype(np.int8)


def splits(rows: Sequence[int]) -> np.ndarray:
    """A split column: so many rows of train (0), valid (1) and test (2)."""
    return np.repeat(np.arange(3), rows)


SPLIT = {"column": "part", "train": [0, 0], "valid": [1, 1], "test": [2, 2]}
