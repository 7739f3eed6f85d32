"""Fixtures that several folders share: one small marketplace, encoded once, and jobs on it."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("no clock", deadline=None)  # a busy machine is no mistake
settings.load_profile("no clock")
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
LABELLED = 0.5


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests on real logs are skipped, and counted, where the logs are absent."""
    if SHARED.exists():
        return
    real = [item for item in items if item.get_closest_marker("real")]
    for item in real:
        item.add_marker(
            pytest.mark.skip(reason=f"one of {len(real)} tests on real logs, which are not here: ../shared/data")
        )


@pytest.fixture(autouse=True)
def _in_the_root_with_a_cache_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("RECDISTILL_CACHE", str(tmp_path / "cache"))


@dataclass(frozen=True)
class Small:
    """A small marketplace: its raw log, its encoded log, and a job on it as a mapping."""

    log: Path
    encoded: Any
    job: dict[str, Any]

    def plan(self, overrides: Mapping[str, Any] | None = None, arm: str = "main") -> Any:
        from recdistill.distill.compile import compile_job, problems_of
        from recdistill.spec.controls import arms
        from recdistill.spec.load import assign, parse_job

        job, spec = parse_job(assign(self.job, overrides or {}, "small"), "small", check=problems_of)
        chosen = next(a for a in arms(job) if a.name == arm)
        return compile_job(chosen.job, spec), chosen.job, chosen.shuffle_privileged

    def fit(self, folder: Path, overrides: Mapping[str, Any] | None = None, *, seed: int = 0, arm: str = "main") -> Any:
        from recdistill.training.fit import fit
        from recdistill.training.reading import Data, Training

        plan, job, shuffle = self.plan(overrides, arm)
        return fit(Training(plan, job.train, Data.of(self.encoded), seed, shuffle), folder)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    from recdistill.data.encode import encode
    from recdistill.data.simulate import simulate_marketplace
    from recdistill.spec.load import load_feature_spec

    folder = tmp_path_factory.mktemp("small")
    log = folder / "log.parquet"
    simulate_marketplace(log, rows=6000, labelled=LABELLED)
    spec = load_feature_spec(ROOT / "feature_specs" / "marketplace.yaml")
    job: dict[str, Any] = {
        "spec": "feature_specs/marketplace.yaml",
        "log": str(log),
        "label": "purchase",
        "privileged": ["dwell_ms", "reviews_opened"],
        "members": {
            "student": {"net": {"mlp": [16, 8]}, "dim": 4, "dropout": 0.1, "serve": True},
            "teacher": {
                "net": {"dcn_v2": {"mlp": [16]}},
                "dim": 4,
                "view": ["serving", "privileged"],
                "share": {"tables": "student"},
            },
        },
        "phases": [
            {
                "steps": 12,
                "terms": [
                    "bce(student.logit, label) * step(1, 0.5, at=4)",
                    "bce(teacher.logit, label)",
                    "soft(student.logit, teacher.logit) * step(0, 0.5, at=4)",
                ],
                "stop": {"every": 6},
            }
        ],
        "train": {"batch": 512, "table_std": 0.1, "tables": {"rowwise_adagrad": {"lr": 0.1}}},
        "seeds": 2,
    }
    return Small(log, encode(spec, str(log), folder / "encoded"), job)


@pytest.fixture(scope="session")
def tastes(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """30 users who took 26 of 52 items each; a graph, a teacher on it, and codes that learn to rank like it."""
    from recdistill.data.encode import encode
    from recdistill.data.simulate_preferences import simulate_preferences
    from recdistill.spec.load import load_feature_spec

    folder = tmp_path_factory.mktemp("tastes")
    log = folder / "log.parquet"
    simulate_preferences(log, rows=780)
    spec = load_feature_spec(ROOT / "feature_specs" / "preferences.yaml")
    sides = {"user": "user_id", "item": "item_id"}
    tower = {"binary_two_tower": {"item": ["item_id", "genre", "tempo"], "mlp": [8], "bits": 16}}
    job: dict[str, Any] = {
        "spec": "feature_specs/preferences.yaml",
        "log": str(log),
        "label": "chosen",
        "graph": {**sides, "user_columns": "region", "item_columns": ["genre", "tempo"]},
        "ranking": {"metric": "recall@5", "at": [5]},
        "members": {
            "gcn": {"net": {"light_gcn": {**sides, "layers": 2}}, "view": ["user_id", "item_id"], "dim": 8},
            "student": {"net": tower, "dim": 4, "serve": True},
        },
        "feeds": {
            "pairs": {"candidates": {"negatives": 2}},
            "lists": {"candidates": {"each": "node", "batch": 16, "positives": 2, "negatives": 6}},
        },
        "phases": [
            {"feed": "pairs", "steps": 6, "terms": ["bpr(gcn.scores, own)"]},
            {
                "feed": "lists",
                "steps": 6,
                "terms": ["bpr(student.scores, own)", "soft_sides(student.scores, gcn.scores, taken)"],
                "stop": {"every": 3},
            },
        ],
        "train": {"batch": 128, "table_std": 1.0, "tables": {"sgd": {"lr": 1.0}}, "dense": {"sgd": {"lr": 0.1}}},
        "controls": ["plain"],
        "seeds": 1,
    }
    return Small(log, encode(spec, str(log), folder / "encoded"), job)


@pytest.fixture
def group() -> Iterator[None]:
    """A process group of this process alone, for tests that build tables themselves."""
    from recdistill.training.sharding import process_group

    with process_group():
        yield
