"""Every job of `jobs/` on a small log that is simulated from its own feature spec, a few steps per phase."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.data.simulate_spec import flat_spec, simulate_spec
from recdistill.distill.compile import Plan, compile_job, problems_of
from recdistill.spec.controls import Arm, arms
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.load import assign, dump_yaml, parse_job, read_yaml
from recdistill.training.cast import Cast
from recdistill.training.engine import Engine
from recdistill.training.fit import engine_of, fit
from recdistill.training.reading import Data, Logs, Training
from recdistill.training.runlog import silent

JOBS = sorted((Path(__file__).parents[2] / "jobs").rglob("*.yaml"))
ROWS = 1600
# Row-wise Adagrad hides a wrong scale of gradients, and dropout draws differently in two processes.
SMOOTH = {"tables": {"sgd": {"lr": 0.5}}, "dense": {"sgd": {"lr": 0.05}}, "batch": 200, "table_std": 0.1}


@dataclass(frozen=True)
class Contract:
    """One job, ready to be trained on its small log."""

    name: str
    raw: dict[str, Any]
    job: Job
    spec: FeatureSpec
    path: Path
    log: EncodedLog
    steps: int  # of every phase

    @classmethod
    def of(cls, path: Path, folder: Path) -> "Contract":
        """The job of a file, shortened: few steps, smooth optimizers, one seed."""
        folder.mkdir(parents=True, exist_ok=True)
        raw = dict(read_yaml(path))
        found, spec = parse_job(raw, str(path), check=problems_of)
        log = folder / "log.parquet"
        simulate_spec(spec, log, rows=ROWS, labelled=0.6, label=found.label, where=found.where)
        (folder / "spec.yaml").write_text(dump_yaml(flat_spec(spec)))
        remembers = any(phase.memories for phase in compile_job(found, spec).phases)
        steps = 10 if remembers else 4  # more than an epoch, so that rows are met again
        changes: dict[str, Any] = {"spec": str(folder / "spec.yaml"), "log": str(log), "seeds": 1, "variants": {}}
        for i, phase in enumerate(raw["phases"]):
            kept = {key: value for key, value in phase.items() if key not in ("epochs", "steps", "stop")}
            changes[f"phases.{i}"] = {**kept, "steps": steps, "stop": {"every": 2}}
        kept = {key: value for key, value in raw.get("train", {}).items() if key in ("keep_labels", "unknown")}
        changes["train"] = {**kept, **SMOOTH}
        if raw.get("ranking", {}).get("sampled"):
            changes["ranking.sampled"] = None  # users of the small log hold out several items
        for name, member in raw["members"].items():
            changes[f"members.{name}.dropout"] = 0.0
            net = member.get("net")
            for kind, options in net.items() if isinstance(net, dict) else ():
                if isinstance(options, dict) and "dropout" in options:
                    changes[f"members.{name}.net.{kind}.dropout"] = 0.0
                if kind.startswith("binary_"):
                    changes[f"members.{name}.net.{kind}.kind"] = "cut"  # bits are drawn apart in parts and processes
            if member.get("snapshot", {}).get("every", 0) > 1:  # a fraction is short enough
                changes[f"members.{name}.snapshot.every"] = 2
            changes[f"members.{name}.warm_start"] = None
            changes |= {f"members.{name}.dense": None, f"members.{name}.tables": None}
        raw = assign(raw, changes, str(path))
        job, spec = parse_job(raw, str(path), check=problems_of)
        encoded = encode(spec, str(log), folder / "encoded", where=job.where)
        return cls(str(path.relative_to(path.parents[1])), raw, job, spec, log, encoded, steps)

    def plan(self, overrides: Mapping[str, Any] | None = None, arm: str = "main") -> tuple[Plan, Arm]:
        """What an arm of the job trains."""
        job, _ = parse_job(assign(self.raw, overrides or {}, self.name), self.name, check=problems_of)
        chosen = next(a for a in arms(job) if a.name.startswith(arm))
        return compile_job(chosen.job, self.spec), chosen

    def engine(self) -> Engine:
        """What trains the job, before its first step."""
        plan, chosen = self.plan()
        training = Training(plan, chosen.job.train, Data.of(self.log), 0)
        return engine_of(training, Logs(self.log), ("train",), Path("/nowhere"), silent)

    def fit(self, folder: Path, overrides: Mapping[str, Any] | None = None, arm: str = "main") -> Cast:
        """A whole training."""
        plan, chosen = self.plan(overrides, arm)
        training = Training(plan, chosen.job.train, Data.of(self.log), 0, chosen.shuffle_privileged)
        return fit(training, folder)
