"""Teacher labels: a finished run scores a log, and a later job reads the scores as its teacher, or refuses them."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file

from recdistill.data.encode import encode
from recdistill.data.recorded import Provenance, RecordedScores
from recdistill.data.scores import sigmoid
from recdistill.distill.combine import fold_of
from recdistill.distill.compile import problems_of
from recdistill.errors import LogError, RecdistillError, RunError, SpecError
from recdistill.runs import execute as execute_module
from recdistill.runs.execute import Request, execute
from recdistill.runs.labels import check_scores
from recdistill.runs.rescore import Finished, evaluate_run, score_run, together
from recdistill.spec.controls import arms
from recdistill.spec.load import parse_job
from recdistill.training import fit as fit_module
from recdistill.training.audit import audit
from recdistill.training.engine import Engine
from recdistill.training.fit import build_cast
from recdistill.training.play import play
from recdistill.training.reading import Data
from recdistill.training.sharding import process_group
from tests.conftest import ROOT, Small
from tests.training.bench import BCE, LAST, OTHER, STUDENT, Bench, described, problems

KEPT = 0.5  # of the negatives, in both runs
TEACHER: dict[str, Any] = {**OTHER, "view": ["serving", "privileged"]}
MEMBERS = {"student": STUDENT, "teacher": TEACHER, "crowd": {**OTHER, "copies": 3, "folds": True}}
TERMS = [BCE, "bce(teacher.logit, label)", "bce(crowd[:].logit, label)"]
SOFT = "soft(student.logit, teacher.logit)"
TRAIN = {"negative_keep_rate": KEPT, "dense": {"adam": {"lr": 0.02}}}


@pytest.fixture(scope="module")
def run(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a teacher, and three copies of a member, each of which has not seen one fold."""
    folder = tmp_path_factory.mktemp("labels")
    job = described(small, MEMBERS, [{"steps": 30, "terms": TERMS, **LAST}], privileged=["dwell_ms"], train=TRAIN)
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    before = os.environ.get("RECDISTILL_CACHE")
    os.environ["RECDISTILL_CACHE"] = str(folder / "cache")
    try:
        execute(Request(folder / "job.yaml", folder / "run"))
    finally:
        if before is not None:
            os.environ["RECDISTILL_CACHE"] = before
    return folder / "run"


@pytest.fixture(scope="module")
def scores(run: Path, small: Small, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher's scores of the whole log."""
    path = tmp_path_factory.mktemp("scores") / "teacher.parquet"
    score_run(run, str(small.log), path, "teacher")
    return path


def reading(small: Small, teacher: dict[str, Any], **more: Any) -> Bench:
    """A job with a teacher from elsewhere."""
    more = {"privileged": ["dwell_ms"], "train": TRAIN, **more}
    phases = [{"steps": 6, "terms": [BCE, SOFT], **LAST}]
    return Bench.of(small, {"student": STUDENT, "teacher": teacher}, phases, **more)


def frozen(run: Path) -> dict[str, Any]:
    return {**TEACHER, "frozen": {"run": str(run), "member": "teacher"}}


def rewritten(scores: Path, path: Path, change: Callable[[pl.DataFrame], pl.DataFrame]) -> Path:
    """Another score file that says of itself what the first one says."""
    pq.write_table(Provenance.of(scores).attach(change(pl.read_parquet(scores)).to_arrow()), path)
    return path


def gradients(b: Bench) -> dict[str, torch.Tensor]:
    batch = next(iter(b.engine.train.shuffled(512, seed=3, epoch=0)))
    entry = audit(b.cast, b.plan.phases[0], batch)[1]
    assert entry.words == SOFT
    return {**entry.dense, **entry.tables}


def test_a_student_cannot_serve_on_scores_that_are_recorded(small: Small) -> None:
    changes = {"members.student.inputs": ["teacher.logit"], "members.teacher": {"scores": "scores.parquet"}}
    with pytest.raises(SpecError, match=r"members.teacher: only its scores of a log are left, but the student reads"):
        small.plan({**changes, "phases.0.terms": ["bce(student.logit, label)"], "privileged": []})


def test_recorded_scores_teach_as_the_frozen_teacher_itself(run: Path, scores: Path, small: Small, group: None) -> None:
    live, recorded = reading(small, frozen(run)), reading(small, {"scores": str(scores)})
    batch = live.batch(512)
    answers = [play(b.cast, ["teacher"], batch)["teacher"].logits_BK[:, 0] for b in (live, recorded)]
    assert torch.allclose(*answers, atol=1e-6) and float(answers[0].std()) > 0.05
    first, second = gradients(live), gradients(recorded)
    student = {name for name in first if not name.startswith("teacher")}
    assert student == second.keys() and any(bool(first[name].any()) for name in student)
    for name in student:
        assert torch.allclose(first[name], second[name], atol=1e-6), name
    for split in (live.engine.train, live.engine.valid):
        found = [b.engine.score(["teacher"], split)[0]["teacher"] for b in (live, recorded)]
        assert np.allclose(*found, atol=1e-5)  # reported on one scale as well


def test_scores_are_those_of_a_log_with_all_its_negatives(run: Path, scores: Path, small: Small, group: None) -> None:
    """Whatever share of them either run has trained on; a job that leaves out none reads them as they are."""
    file = pl.read_parquet(scores).sort("row_id")["logit"].to_numpy()
    rows = torch.from_numpy(pl.read_parquet(scores).sort("row_id")["row_id"].to_numpy().copy())
    for rate in (1.0, 0.5, 0.25):
        b = reading(small, {"scores": str(scores)}, train={**TRAIN, "negative_keep_rate": rate})
        read = b.cast.recorded["teacher"].read(rows)[:, 0].numpy()
        assert np.allclose(read, file - np.log(rate), atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": {**TRAIN, "negative_keep_rate": 1.0}}, f"share {KEPT} of the negatives of 'purchase', .* keeps 1 "),
        ({"label": "click"}, f"of 'purchase', this job keeps {KEPT} of those of 'click'"),
    ],
)
def test_a_frozen_teacher_that_has_seen_other_negatives_is_refused(
    run: Path, small: Small, group: None, change: dict[str, Any], message: str
) -> None:
    """Its logits would be off by a constant, in what it teaches and in what is reported of it."""
    with pytest.raises(RunError, match=message + r".*read them with `scores:`"):
        reading(small, frozen(run), **change)


def test_members_and_artefact_are_evaluated_on_the_scale_of_the_log(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The artefact answers for a log that lacks no negatives; on one that lacks some, both are judged alike."""
    monkeypatch.setenv("RECDISTILL_CACHE", str(tmp_path / "cache"))
    spec = yaml.safe_load((ROOT / "feature_specs/marketplace.yaml").read_text())
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**spec, "negative_keep_rate": 0.25}, sort_keys=False))
    job = described(small, {"student": STUDENT}, [{"steps": 20, "terms": [BCE], **LAST}], train=TRAIN)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({**job, "spec": str(tmp_path / "spec.yaml")}))
    execute(Request(tmp_path / "job.yaml", tmp_path / "run"))
    found = evaluate_run(tmp_path / "run", str(small.log))
    member, served = found["members"]["student"]["test"], found["artefact"]["test"]
    for metric in ("auc", "logloss", "pcoc"):
        assert served[metric]["mean"] == pytest.approx(member[metric]["mean"], abs=1e-6)


def test_the_student_and_others_are_scored_on_one_scale(small: Small, run: Path, tmp_path: Path) -> None:
    """A log that lacks three of four negatives: the artefact corrects for it, and so do the scores of other members."""
    poorer = tmp_path / "run"
    shutil.copytree(run, poorer)
    spec = yaml.safe_load((poorer / "spec.yaml").read_text())
    (poorer / "spec.yaml").write_text(yaml.safe_dump({**spec, "negative_keep_rate": 0.25}, sort_keys=False))
    logits = []
    for folder in (run, poorer):
        score_run(folder, str(small.log), tmp_path / "s.parquet", "teacher")
        logits.append(pl.read_parquet(tmp_path / "s.parquet")["logit"].to_numpy())
    assert np.allclose(logits[1] - logits[0], np.log(0.25), atol=1e-5)


def test_the_order_of_a_score_file_changes_no_bit(scores: Path, small: Small, group: None, tmp_path: Path) -> None:
    states = []
    orders = (lambda f: f, lambda f: f.sample(fraction=1, shuffle=True, seed=1), lambda f: f.reverse())
    for k, change in enumerate(orders):
        b = reading(small, {"scores": str(rewritten(scores, tmp_path / f"{k}.parquet", change))})
        b.engine.run(0, b.plan.phases[0])
        states.append(b.state("student"))
    assert all(torch.equal(states[0][key], state[key]) for state in states[1:] for key in state)
    swapped = rewritten(scores, tmp_path / "s.parquet", lambda f: f.with_columns(pl.col("logit").reverse()))
    b = reading(small, {"scores": str(swapped)})
    b.engine.run(0, b.plan.phases[0])
    assert any(not torch.equal(states[0][key], value) for key, value in b.state("student").items())


class ByPosition(RecordedScores):
    """The wrong twin: a cache that is read in the order of the log, whatever the rows of a batch are."""

    def __init__(self, file: Path, row_id_N: Any, logits_NK: Any) -> None:
        super().__init__(file, row_id_N, logits_NK)
        self.ordered, self.place = torch.from_numpy(logits_NK.copy()), 0

    def read(self, row_id_B: torch.Tensor) -> torch.Tensor:
        found = self.ordered[(self.place + torch.arange(len(row_id_B))) % len(self.ordered)]
        self.place += len(row_id_B)
        return found


def test_a_cache_that_is_read_by_position_teaches_otherwise(
    run: Path, scores: Path, small: Small, group: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = gradients(reading(small, {"scores": str(scores)}))
    monkeypatch.setattr(fit_module, "RecordedScores", ByPosition)
    wrong = gradients(reading(small, {"scores": str(scores)}))
    assert max(float((right[name] - wrong[name]).abs().max()) for name in right) > 1e-4


# Refusals


def job_with(small: Small, teacher: dict[str, Any], **more: Any) -> tuple[Any, Any]:
    members = {"student": STUDENT, "teacher": teacher}
    return parse_job(
        described(small, members, [{"steps": 2, "terms": [BCE, SOFT], **LAST}], **more), "job", check=problems_of
    )


def refused_by_a_run(small: Small, folder: Path, teacher: dict[str, Any], **more: Any) -> str:
    """Why a whole run of a job is refused; not a step of it is taken."""

    def step(*_: Any) -> Any:
        raise AssertionError("a step was taken")

    folder.mkdir(exist_ok=True)
    members = {"student": STUDENT, "teacher": teacher}
    job = described(small, members, [{"steps": 2, "terms": [BCE, SOFT], **LAST}], **more)
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(RecdistillError) as caught:
        patch.setattr(Engine, "step", step)
        execute(Request(folder / "job.yaml", folder / "run"))
    return str(caught.value)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_a_row_without_a_score_is_found_before_anything_is_trained(
    scores: Path, small: Small, tmp_path: Path, split: str
) -> None:
    row = small.encoded.labels(split).collect()["row_id"][3]
    file = rewritten(scores, tmp_path / "s.parquet", lambda f: f.filter(pl.col("row_id") != row))
    message = refused_by_a_run(small, tmp_path / "job", {"scores": str(file)})
    assert f"{file}: holds no scores of 1 of {small.encoded.rows[split]} rows that are asked for" in message


def test_the_rows_of_a_pool_need_scores_as_well(scores: Path, small: Small, group: None, tmp_path: Path) -> None:
    members = {"student": STUDENT, "teacher": {"scores": str(scores)}}
    later = pl.read_parquet(small.log).head(300).with_columns(pl.col("impression_id") + 10**6)
    later.write_parquet(tmp_path / "p.parquet")
    pool = encode(small.encoded.spec, str(tmp_path / "p.parquet"), tmp_path / "pool", fitted=small.encoded.fitted)
    feeds = {"pool": {"log": str(tmp_path / "p.parquet")}}
    for feed in ("log", "pool"):
        updates = [{"terms": [BCE], "train": "student.tables"}, {"terms": [SOFT], "feed": feed, "train": "student.net"}]
        phases = [{"steps": 2, "updates": updates}]
        b = Bench.of(small, members, phases, logs={"pool": pool}, feeds=feeds)
        if feed == "log":  # the pool is there, but nobody reads the scores on it
            fit_module._check_recorded(b.engine, b.plan, small.encoded)
            continue
        with pytest.raises(LogError, match="holds no scores of 300 of 300 rows that are asked for"):
            fit_module._check_recorded(b.engine, b.plan, small.encoded)
    found = problems(small, members, [{"steps": 2, "feed": "z", "terms": [SOFT]}], feeds={"z": {"noise": 9}})
    assert "phases.0: 'teacher' has no scores of the rows of the feed 'z'" in found


def test_files_that_do_not_fit_are_refused_before_anything_is_read(
    run: Path, scores: Path, small: Small, tmp_path: Path
) -> None:
    twice = rewritten(scores, tmp_path / "twice.parquet", lambda f: pl.concat([f, f[5:6]]))
    assert "scores a row twice" in refused_by_a_run(small, tmp_path / "a", {"scores": str(twice)})
    bare = tmp_path / "bare.parquet"
    pl.read_parquet(scores).write_parquet(bare)
    message = refused_by_a_run(small, tmp_path / "b", {"scores": str(bare)})
    assert "bare.parquet: does not say whose scores it holds" in message and not (tmp_path / "b" / "run").exists()
    message = refused_by_a_run(small, tmp_path / "c", {"scores": str(scores)}, label="click")
    assert "holds no scores of ['click'], only of ['purchase']" in message
    absent = {"scores": {"file": str(scores), "run": str(tmp_path / "nowhere")}}
    with pytest.raises(RunError, match="nowhere"):
        check_scores(*job_with(small, absent))


def spec_with(tmp_path: Path, **changes: Any) -> str:
    spec = yaml.safe_load((ROOT / "feature_specs" / "marketplace.yaml").read_text())
    kept = {key: value for key, value in {**spec, **changes}.items() if value is not None}
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(kept, sort_keys=False))
    return str(tmp_path / "spec.yaml")


def test_rows_that_are_identified_otherwise_are_refused(scores: Path, small: Small, tmp_path: Path) -> None:
    for row_id, message in (
        (["impression_id", "day"], r"its scores are of another row_id: expected \['impression_id', 'day'\]"),
        (None, "rows are found by their ids, but the feature spec names no `row_id`"),
    ):
        job, spec = job_with(small, {"scores": str(scores)}, spec=spec_with(tmp_path, row_id=row_id))
        with pytest.raises(LogError, match=message):
            check_scores(job, spec)


def changed(run: Path, folder: Path, prefix: str) -> Path:
    """A copy of a run in which some parameters are others."""
    shutil.copytree(run, folder)
    for file in (folder / "seed_0" / "checkpoints" / "final").glob("*.safetensors"):
        with safe_open(file, "pt") as content:
            metadata = content.metadata()
            tensors = {key: content.get_tensor(key) for key in content.keys()}  # noqa: SIM118, no mapping
        save_file({k: v + 1e-3 if k.startswith(prefix) else v for k, v in tensors.items()}, file, metadata)
    return folder


@pytest.mark.parametrize(
    ("prefix", "stale"),
    [("teacher.", True), ("tables.teacher.city", True), ("student.", False), ("tables.crowd_0", False)],
)
def test_scores_of_a_teacher_that_has_changed_since_are_refused(
    run: Path, scores: Path, small: Small, tmp_path: Path, prefix: str, stale: bool
) -> None:
    later = changed(run, tmp_path / "later", prefix)
    job, spec = job_with(small, {"scores": {"file": str(scores), "run": str(later)}})
    if not stale:
        check_scores(job, spec)
        return
    with pytest.raises(LogError, match=r"its scores are of another fingerprint: .*score the log again"):
        check_scores(job, spec)


def test_the_run_that_a_file_names_is_looked_at_if_it_is_still_there(
    run: Path, scores: Path, small: Small, tmp_path: Path
) -> None:
    later = changed(run, tmp_path / "later", "nothing")
    own = tmp_path / "own.parquet"
    score_run(later, str(small.log), own, "teacher")
    job, spec = job_with(small, {"scores": str(own)})
    check_scores(job, spec)
    manifest = later / "manifest.json"
    manifest.write_text(manifest.read_text().replace(small.encoded.fingerprint, "0" * 32))
    with pytest.raises(LogError, match="its scores are of another fingerprint"):
        check_scores(job, spec)  # fitted to another log
    shutil.rmtree(later)
    check_scores(job, spec)  # nobody is left to ask


# Copies and folds


def live_logits(run: Path, small: Small, names: list[str]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Logits of members for the whole log, by their parameters, and row ids."""
    finished = Finished.open(run)
    with process_group(), finished.encoded(str(small.log), finished.spec.model_copy(update={"split": None}), {}) as log:
        found, rows, _ = (engine := finished.engine(log, 0)).score(names, engine.train)
    return {name: logits[:, 0] for name, logits in found.items()}, rows


def test_out_of_fold_every_row_is_scored_by_the_copy_that_has_not_seen_it(
    run: Path, small: Small, tmp_path: Path
) -> None:
    copies = [f"crowd_{k}" for k in range(3)]
    live, rows = live_logits(run, small, copies)
    folds = fold_of(torch.from_numpy(rows), 3).numpy()
    score_run(run, str(small.log), tmp_path / "o.parquet", "crowd", out_of_fold=True)
    found = pl.read_parquet(tmp_path / "o.parquet")
    assert np.array_equal(found["row_id"].to_numpy(), rows)
    stacked = np.stack([live[name] for name in copies])
    assert np.allclose(found["logit"].to_numpy(), stacked[folds, np.arange(len(rows))], atol=1e-6)
    for wrong in ((folds + 1) % 3, (folds + 2) % 3):
        assert not np.allclose(found["logit"].to_numpy(), stacked[wrong, np.arange(len(rows))], atol=1e-3)
    made_by = Provenance.of(tmp_path / "o.parquet")
    assert made_by.out_of_fold and made_by.member == "crowd"
    check_scores(*job_with(small, {"scores": str(tmp_path / "o.parquet")}))


def test_copies_together_are_the_mean_of_their_probabilities(run: Path, small: Small, tmp_path: Path) -> None:
    live, _ = live_logits(run, small, [f"crowd_{k}" for k in range(3)])
    score_run(run, str(small.log), tmp_path / "m.parquet", "crowd")
    found = pl.read_parquet(tmp_path / "m.parquet")
    expected = np.mean([sigmoid(logit) for logit in live.values()], 0)
    assert np.allclose(found["score"].to_numpy(), expected, atol=1e-6)
    assert np.allclose(sigmoid(found["logit"].to_numpy()), expected, atol=1e-6)
    score_run(run, str(small.log), tmp_path / "one.parquet", "crowd_1")
    assert np.allclose(pl.read_parquet(tmp_path / "one.parquet")["logit"].to_numpy(), live["crowd_1"], atol=1e-6)
    assert len({Provenance.of(tmp_path / f"{n}.parquet").fingerprint for n in ("m", "one")}) == 2


def test_copies_that_are_sure_stay_finite() -> None:
    logits = [np.array([[80.0], [-80.0], [0.0]], np.float32), np.array([[70.0], [-90.0], [0.0]], np.float32)]
    found = together(logits, np.arange(3), out_of_fold=False)
    assert np.isfinite(found).all() and found[2] == 0
    assert found[0] == pytest.approx(70 + np.log(2), abs=1e-3)  # the less sure one decides
    assert found[1] == pytest.approx(-80 - np.log(2), abs=1e-3)


@pytest.mark.parametrize(
    ("member", "out_of_fold", "message"),
    [
        ("nobody", False, "has no member 'nobody' with scores"),
        ("teacher", True, "'teacher' has no folds; train it with `copies: 5, folds: true`"),
        ("crowd_1", True, "'crowd_1' has no folds"),
        (None, True, "'student' has no folds"),
    ],
)
def test_members_that_cannot_be_scored_so_are_named(
    run: Path, small: Small, tmp_path: Path, member: str | None, out_of_fold: bool, message: str
) -> None:
    with pytest.raises(RunError, match=message):
        score_run(run, str(small.log), tmp_path / "s.parquet", member, out_of_fold=out_of_fold)
    assert not (tmp_path / "s.parquet").exists()


def test_folds_need_row_ids(run: Path, small: Small, tmp_path: Path) -> None:
    counted = tmp_path / "run"
    shutil.copytree(run, counted)
    spec = yaml.safe_load((counted / "spec.yaml").read_text())
    (counted / "spec.yaml").write_text(yaml.safe_dump({**spec, "row_id": []}, sort_keys=False))
    with pytest.raises(RunError, match="folds are drawn by row id, but the feature spec names no `row_id`"):
        score_run(counted, str(small.log), tmp_path / "s.parquet", "crowd", out_of_fold=True)


def test_without_row_ids_rows_are_told_by_their_number(run: Path, scores: Path, small: Small, tmp_path: Path) -> None:
    counted = tmp_path / "run"
    shutil.copytree(run, counted)
    spec = yaml.safe_load((counted / "spec.yaml").read_text())
    (counted / "spec.yaml").write_text(yaml.safe_dump({**spec, "row_id": []}, sort_keys=False))
    assert score_run(counted, str(small.log), tmp_path / "s.parquet", "teacher") == 6000
    found = pl.read_parquet(tmp_path / "s.parquet")
    assert found.columns == ["row_id", "logit", "score"] and found["row_id"].to_list() == list(range(6000))
    assert found["logit"].to_list() == pl.read_parquet(scores)["logit"].to_list()


def test_keys_that_are_called_like_scores_stay_apart(small: Small, run: Path, tmp_path: Path) -> None:
    """A raw column ``row_id`` identifies the rows, and beside its hash it must still be found."""
    renamed, log = tmp_path / "run", tmp_path / "log.parquet"
    shutil.copytree(run, renamed)
    spec = yaml.safe_load((renamed / "spec.yaml").read_text())
    (renamed / "spec.yaml").write_text(yaml.safe_dump({**spec, "row_id": ["row_id"]}, sort_keys=False))
    pl.read_parquet(small.log).rename({"impression_id": "row_id"}).write_parquet(log)
    for member in ("teacher", "student"):
        score_run(renamed, str(log), tmp_path / "s.parquet", member)
        found = pl.read_parquet(tmp_path / "s.parquet")
        assert found.columns[:2] == ["row_id", "key.row_id"]
        assert sorted(found["key.row_id"].to_list()) == list(range(len(found)))
        rows = torch.from_numpy(found["row_id"].to_numpy().copy())
        read = RecordedScores.open(tmp_path / "s.parquet", ["purchase"]).read(rows)[:, 0]
        assert read.tolist() == found["logit"].to_list()


def test_a_run_with_recorded_scores_is_evaluated_on_other_rows_without_them(
    run: Path, scores: Path, small: Small, tmp_path: Path
) -> None:
    reader = tmp_path / "run"
    shutil.copytree(run, reader)
    job = yaml.safe_load((reader / "job.yaml").read_text())
    job["members"]["teacher"] = {"scores": str(scores)}
    job["phases"][0]["terms"] = [TERMS[0], TERMS[2], SOFT]
    (reader / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    later = pl.read_parquet(small.log).filter(pl.col("day") == 9).with_columns(pl.col("impression_id") + 10**7)
    later.write_parquet(tmp_path / "later.parquet")
    found = evaluate_run(reader, str(tmp_path / "later.parquet"))
    assert {*found["members"]} == {"student", "crowd_0", "crowd_1", "crowd_2"} and found["rows"] == len(later)
    assert score_run(reader, str(tmp_path / "later.parquet"), tmp_path / "crowd.parquet", "crowd") == len(later)


def test_controls_of_other_teachers_are_not_taken_from_the_cache(
    run: Path, scores: Path, small: Small, tmp_path: Path
) -> None:
    """A job says only where its teacher lies; what lies there may have changed."""
    own = rewritten(scores, tmp_path / "s.parquet", lambda f: f)
    later = changed(run, tmp_path / "later", "nothing")
    members = {"student": STUDENT, "teacher": {"scores": str(own)}, "old": {**frozen(later), "share": {}}}
    terms = [BCE, SOFT, "soft(student.logit, old.logit)"]
    more = {"privileged": ["dwell_ms"], "controls": ["shuffled"]}
    job, _ = parse_job(described(small, members, [{"steps": 2, "terms": terms}], **more), "job", check=problems_of)
    data = Data.of(small.encoded)

    def keys() -> tuple[Any, dict[str, str]]:
        return execute_module._cached(arms(job)[1], data, 0), execute_module.made_before(job)

    first = keys()
    assert keys() == first and [*first[1]] == ["scores teacher", "frozen old"]
    rewritten(scores, own, lambda f: f.with_columns(pl.col("logit") + 1))
    second = keys()
    assert second[0] != first[0] and second[1]["frozen old"] == first[1]["frozen old"]
    shutil.rmtree(later)
    changed(run, later, "teacher.")
    third = keys()
    assert third[0] != second[0] and third[1]["frozen old"] != second[1]["frozen old"]


def test_a_member_that_reads_the_scenario_scores_a_log_that_has_it(run: Path, small: Small, tmp_path: Path) -> None:
    reader = tmp_path / "run"
    shutil.copytree(run, reader)
    spec = yaml.safe_load((reader / "spec.yaml").read_text())
    (reader / "spec.yaml").write_text(yaml.safe_dump({**spec, "scenario": "device"}, sort_keys=False))
    job = yaml.safe_load((reader / "job.yaml").read_text())
    inputs = ["route(scenario, student.logit, teacher.logit, values='0 1')"]
    job["members"]["head"] = {**job["members"]["teacher"], "view": [], "inputs": inputs}
    job["phases"][0]["terms"].append("bce(head.logit, label)")
    (reader / "job.yaml").write_text(yaml.safe_dump(job, sort_keys=False))
    (file,) = (reader / "seed_0" / "checkpoints" / "final").glob("*.safetensors")
    with safe_open(file, "pt") as content:
        metadata, tensors = content.metadata(), {k: content.get_tensor(k) for k in content.keys()}  # noqa: SIM118
    finished = Finished.open(reader)
    with process_group():
        cast = build_cast(finished.plan, finished.job.train, small.encoded, seed=0)
    tensors |= {f"head.{k}": v.clone() for k, v in cast.heads["head"].state_dict().items()}
    save_file(tensors, file, metadata)
    score_run(reader, str(small.log), tmp_path / "s.parquet", "head")
    found = pl.read_parquet(tmp_path / "s.parquet")
    assert len(found) == 6000 and found["logit"].std() > 0
