"""Whole runs through the command line: what they write, say and refuse."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from recdistill.distill.compile import compile_job
from recdistill.evaluation import auc
from recdistill.runs.choice import distance
from recdistill.runs.folder import RunFolder
from recdistill.spec.load import dump_yaml, load_job
from tests.conftest import Small
from tests.runs.conftest import Command


def test_a_run_folder_holds_what_the_contract_says(run: Path) -> None:
    expected = [
        "job.yaml",
        "spec.yaml",
        "manifest.json",
        "fitted",
        "controls",
        "student",
        "report.json",
        "report.html",
        "seed_0",
        "seed_1",
    ]
    assert [name for name in expected if not (run / name).exists()] == []
    for arm in (".", "controls/plain", "controls/shuffled"):
        for seed in ("seed_0", "seed_1"):
            assert (run / arm / seed / "metrics.jsonl").exists()
            assert list((run / arm / seed / "checkpoints" / "final").glob("*.safetensors"))
            assert (run / arm / seed / "scores" / "student.test.parquet").exists()
    scores = pl.read_parquet(run / "seed_0" / "scores" / "teacher.test.parquet")
    assert scores.columns == ["row_id", "label", "logit", "score", "group"]
    assert scores.schema["score"] == pl.Float32
    left = [p.name for p in run.rglob(".*") if p.name != ".lock"]
    assert left == []


def test_a_report_holds_what_the_contract_says(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    assert set(report) >= {
        "schema_version", "members", "controls", "comparisons", "recovered_gap", "artefact", "verdict", "warnings",
        "references", "tasks", "timings",
    }  # fmt: skip
    student = report["members"]["student"]["test"]
    for metric in ("auc", "gauc_macro", "logloss", "normalized_entropy", "ece", "pcoc", "rows", "positives", "churn"):
        assert set(student[metric]) == {"mean", "std", "per_seed"} and len(student[metric]["per_seed"]) == 2
    assert student["auc_ci"][0] < student["auc"]["mean"] < student["auc_ci"][1]
    assert set(report["controls"]) == {"plain", "shuffled"}
    assert [(c["a"], c["b"]) for c in report["comparisons"]] == [
        ("student", "plain"), ("student", "shuffled"), ("teacher", "student"),
    ]  # fmt: skip
    assert report["artefact"]["parity_max_abs"] == 0
    assert report["verdict"] in ("helps", "no evidence", "hurts")
    assert "few_seeds" in [w["cause"] for w in report["warnings"]]
    assert set(report["references"]) == {"best_serving", "best_full"}


def test_the_resolved_job_is_a_job_again_with_all_defaults(run: Path) -> None:
    job, spec = load_job(run / "job.yaml")
    assert dump_yaml(job) == (run / "job.yaml").read_text()
    assert job.train.stop.monitor is None
    assert compile_job(job, spec).phases[0].stop.monitor == "logloss"  # what nothing else says


def test_the_artefact_is_that_of_the_seed_best_on_validation(run: Path) -> None:
    report = json.loads((run / "report.json").read_text())
    valid = report["members"]["student"]["valid"]["auc"]["per_seed"]
    assert report["artefact"]["seed"] == int(np.argmax(valid))


def test_the_same_run_twice_gives_the_same_report(run: Path, job: Path, command: Command, tmp_path: Path) -> None:
    reports = []
    for name in ("a", "b"):
        status, _, err = command("run", job, "--out", tmp_path / name)
        assert status == 0, err
        report = json.loads((tmp_path / name / "report.json").read_text())
        del report["artefact"]["latency"], report["timings"]
        reports.append(report)
    assert reports[0] == reports[1]


def test_run_shows_a_table_and_a_verdict(job: Path, command: Command, tmp_path: Path) -> None:
    status, out, _ = command("run", job, "--out", tmp_path / "a", "--set", "controls=[plain]")
    assert status == 0
    for words in (
        "student",
        "plain (control)",
        "best_serving (reference)",
        "verdict:",
        "distance to best_serving",
        "report.html",
    ):
        assert words in out


def test_controls_come_from_the_cache_the_second_time(job: Path, command: Command, tmp_path: Path, monkeypatch) -> None:
    import recdistill.runs.execute as execute

    trained = []
    original = execute.fit
    monkeypatch.setattr(execute, "fit", lambda t, folder, listen: trained.append(folder) or original(t, folder, listen))
    command("run", job, "--out", tmp_path / "a")
    assert [f.parent.name for f in trained] == ["a", "plain", "shuffled"]
    command("run", job, "--out", tmp_path / "b")
    assert [f.parent.name for f in trained[3:]] == ["b"]
    trained.clear()
    command("run", job, "--out", tmp_path / "c", "--set", "train.batch=256")
    assert len(trained) == 3


def test_an_interrupted_run_continues_where_it_stopped(
    job: Path, command: Command, tmp_path: Path, monkeypatch
) -> None:
    import recdistill.runs.execute as execute

    original = execute.fit
    count = iter(range(10))

    def interrupted(training, folder, listen):
        if next(count) == 1:
            raise KeyboardInterrupt
        return original(training, folder, listen)

    monkeypatch.setattr(execute, "fit", interrupted)
    status, _, err = command("run", job, "--out", tmp_path / "a")
    assert status == 130 and "--resume" in err
    assert not RunFolder(tmp_path / "a").report.exists()
    status, _, err = command("report", tmp_path / "a")
    assert status == 2 and "is no complete run" in err
    monkeypatch.setattr(execute, "fit", original)
    status, _, err = command("run", job, "--out", tmp_path / "a")
    assert status == 2 and "--resume" in err
    first = (tmp_path / "a" / "seed_0" / "fit.json").read_bytes()
    status, _, _ = command("run", job, "--out", tmp_path / "a", "--resume")
    assert status == 0
    assert (tmp_path / "a" / "seed_0" / "fit.json").read_bytes() == first


def test_resuming_with_another_job_is_refused(job: Path, command: Command, tmp_path: Path) -> None:
    assert command("run", job, "--out", tmp_path / "a")[0] == 0
    status, _, err = command("run", job, "--out", tmp_path / "a", "--resume", "--set", "train.batch=99")
    assert status == 2 and "was started with another job" in err


def test_two_runs_cannot_write_the_same_folder(job: Path, command: Command, tmp_path: Path) -> None:
    with RunFolder(tmp_path / "a").locked():
        status, _, err = command("run", job, "--out", tmp_path / "a", "--resume")
    assert status == 2 and "another run writes here" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "jobs/nothing.yaml"], "cannot be read"),
        (["run"], "Missing argument"),
        (["run", "JOB", "--set", "train.bach=3"], "did you mean 'batch'"),
        (["run", "JOB", "--set", "train"], "expected key.path=value"),
        (["run", "JOB", "--log", "nothing.parquet"], "no parquet file here"),
        (["run", "JOB", "--variant", "x"], "no variant 'x'"),
        (
            ["run", "JOB", "--set", "members.student.view=[serving,privileged]"],
            "a serving member may read serving columns only",
        ),
        (["run", "JOB", "--set", "members.student.view=[user_id,dwell_ms]"], "but 'dwell_ms' is known after the event"),
        (["methods", "P99"], "there is no row 'P99'"),
        (["verify", "."], "cannot be verified"),
        (["score", "RUN", "LOG", "OUT", "--member", "teachr"], "did you mean 'teacher'"),
        (["score", "ARTEFACT", "LOG", "OUT", "--member", "teacher"], "--member: an artefact holds its student alone"),
        (["score", "ARTEFACT", "LOG", "OUT", "--out-of-fold"], "--out-of-fold: an artefact holds its student alone"),
        (["score", "RUN", "LOG", "OUT", "--spec", "SPEC"], "--spec: a run has its own feature spec"),
        (["score", "RUN", "LOG", "OUT", "--top", "3", "--member", "teacher"], "--member: lists come from the artefact"),
        (["score", "ARTEFACT", "LOG", "OUT", "--top", "3", "--spec", "SPEC"], "--spec: lists come from the artefact"),
        (["score", "RUN", "LOG", "OUT", "--known", "LOG"], "--known: about lists; say how long they are to be"),
        (["evaluate", "jobs", "--log", "LOG"], "is no complete run"),
        (["compare", "RUN"], "at least two"),
        (["export", "RUN", "--member", "teacher"], "reads 'dwell_ms', known only after the event"),
    ],
)
def test_a_mistake_of_the_user_gets_a_message_and_status_2(
    words: list[str], message: str, command: Command, job: Path, run: Path, small: Small, tmp_path: Path
) -> None:
    places = {"JOB": job, "RUN": run, "LOG": small.log, "OUT": tmp_path / "x.parquet"}
    places |= {"ARTEFACT": run / "student", "SPEC": Path("feature_specs/marketplace.yaml")}
    status, out, err = command(*[places.get(word, word) for word in words])
    assert status == 2
    assert message in " ".join(err.split())
    assert "Traceback" not in out + err
    assert not (tmp_path / "x.parquet").exists()


def test_plan_shows_members_tables_terms_and_controls(job: Path, command: Command) -> None:
    status, out, _ = command("plan", job)
    assert status == 0
    for words in (
        "student (serves)",
        "dwell_ms, reviews_opened",
        "user_id",
        "MiB",
        "plain",
        "shuffled",
        "3 trainings: 3 jobs x 1 seed",
    ):
        assert words in out
    assert "soft(student.logit, teacher.logit) * step(0, 0.5, at=4)" in out


def test_score_writes_every_row_of_any_member(run: Path, small: Small, command: Command, tmp_path: Path) -> None:
    paths = {member: tmp_path / f"{member}.parquet" for member in ("student", "teacher")}
    assert command("score", run, small.log, paths["student"])[0] == 0
    assert command("score", run, small.log, paths["teacher"], "--member", "teacher")[0] == 0
    seed = json.loads((run / "report.json").read_text())["artefact"]["seed"]
    for member, path in paths.items():
        scored = pl.read_parquet(path)
        assert scored.columns == ["row_id", "impression_id", "logit", "score"]
        assert len(scored) == 6000 and scored["impression_id"].to_list() == list(range(6000))
        trained = pl.read_parquet(run / f"seed_{seed}" / "scores" / f"{member}.test.parquet")
        both = trained.join(scored, on="row_id", suffix="_again")
        assert len(both) == len(trained)
        assert np.allclose(both["logit"], both["logit_again"], atol=1e-5)


def test_the_student_scores_a_log_without_any_post_event_column(
    run: Path, small: Small, command: Command, tmp_path: Path
) -> None:
    tomorrow = pl.read_parquet(small.log).drop(
        "purchase", "click", "dwell_ms", "reviews_opened", "in_cart", "best_serving", "best_full"
    )
    tomorrow.write_parquet(tmp_path / "tomorrow.parquet")
    assert command("score", run, tmp_path / "tomorrow.parquet", tmp_path / "a.parquet")[0] == 0
    assert command("score", run / "student", small.log, tmp_path / "b.parquet")[0] == 0
    a, b = (pl.read_parquet(tmp_path / f"{name}.parquet") for name in ("a", "b"))
    assert a["logit"].to_list() == b["logit"].to_list()
    status, _, err = command("score", run, tmp_path / "tomorrow.parquet", tmp_path / "c.parquet", "--member", "teacher")
    assert status == 2 and "the spec needs columns" in err


def test_evaluate_gives_the_reported_metrics_on_the_test_rows(
    run: Path, small: Small, command: Command, tmp_path: Path
) -> None:
    pl.read_parquet(small.log).filter(pl.col("day") == 9).write_parquet(tmp_path / "test.parquet")
    status, out, _ = command("evaluate", run, "--log", tmp_path / "test.parquet", "--json", tmp_path / "found.json")
    assert status == 0 and "artefact" in out
    found = json.loads((tmp_path / "found.json").read_text())
    report = json.loads((run / "report.json").read_text())
    assert found["metric"] == report["metric"] == "auc"
    for member in ("student", "teacher"):
        again, before = (r["members"][member]["test"]["auc"]["per_seed"] for r in (found, report))
        assert again == pytest.approx(before, abs=1e-6)
    seed = report["artefact"]["seed"]
    served = found["artefact"]["test"]["auc"]["mean"]
    assert served == pytest.approx(report["members"]["student"]["test"]["auc"]["per_seed"][seed], abs=1e-6)


def test_export_writes_the_artefact_again_and_that_of_another_seed(run: Path, command: Command, tmp_path: Path) -> None:
    seed = json.loads((run / "report.json").read_text())["artefact"]["seed"]
    assert command("export", run, "--out", tmp_path / "same")[0] == 0
    assert (tmp_path / "same" / "student.pt").read_bytes() == (run / "student" / "student.pt").read_bytes()
    assert command("export", run, "--out", tmp_path / "other", "--seed", 1 - seed)[0] == 0
    assert (tmp_path / "other" / "student.pt").read_bytes() != (run / "student" / "student.pt").read_bytes()


def test_export_refuses_a_log_that_has_changed(job: Path, small: Small, command: Command, tmp_path: Path) -> None:
    log = tmp_path / "log.parquet"
    pl.read_parquet(small.log).write_parquet(log)
    assert command("run", job, "--out", tmp_path / "a", "--log", log)[0] == 0
    pl.read_parquet(log).with_columns(pl.col("price") + 1).write_parquet(log)
    status, _, err = command("export", tmp_path / "a")
    assert status == 2 and "has changed since this run" in err


def test_verify_compare_report_methods_and_encode_answer(
    run: Path, small: Small, command: Command, tmp_path: Path
) -> None:
    assert "golden" in command("verify", run / "student")[1]
    status, out, _ = command("compare", run, run)
    assert status == 0 and "+0.0000" in out
    assert "students on the validation split" in out and out.count("best on validation") == 1
    apart = distance(run, RunFolder(run).read_report())
    assert apart is not None and apart > 0 and f"{apart:.4f}" in out
    assert "verdict" in command("report", run)[1]
    assert "P6" in command("methods")[1]
    assert "teacher" in command("methods", "P6")[1]
    (tmp_path / "jobs").mkdir()
    shutil.copy("jobs/applications/privileged_features.yaml", tmp_path / "jobs")
    assert "1 of 62 rows have a job" in command("methods", "--jobs", tmp_path / "jobs")[1]
    assert "pending" in command("methods", "U1", "--jobs", tmp_path / "jobs")[1]
    status, out, _ = command("encode", "feature_specs/marketplace.yaml", small.log, tmp_path / "encoded")
    assert status == 0 and "train 4," in out and "embedding tables: " in out and "{" not in out


def test_several_labels_are_trained_scored_and_served_together(job: Path, command: Command, tmp_path: Path) -> None:
    import torch

    terms = ["bce(student.logit, purchase)", "bce(student.logit.click, click)", "bce(teacher.logit, purchase)"]
    both = ["--set", "label=[purchase,click]", "--set", f"phases.0.terms={terms}"]
    both += ["--set", "members.teacher.labels=purchase"]
    status, _, err = command("run", job, "--out", tmp_path / "a", *both)
    assert status == 0, err
    scores = pl.read_parquet(tmp_path / "a" / "seed_0" / "scores" / "student.test.parquet")
    assert {"label.click", "logit.click", "score.click"} < set(scores.columns)
    student = torch.jit.load(str(tmp_path / "a" / "student" / "student.pt"))
    assert student({"user_id": torch.tensor([1, 2, 3])}, {}, {}).shape == (3, 2)
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert set(report["tasks"]) == {"click"}
    assert "auc" in report["tasks"]["click"]["members"]["student"]["test"]


def test_a_label_that_the_student_does_not_predict_is_not_reported(job: Path, command: Command, tmp_path: Path) -> None:
    terms = ["bce(student.logit, purchase)", "bce(teacher.logit, click)"]
    labels = ["--set", "members.student.labels=purchase", "--set", "members.teacher.labels=click"]
    words = ["--set", "label=[purchase,click]", "--set", f"phases.0.terms={terms}", *labels]
    status, _, err = command("run", job, "--out", tmp_path / "a", *words)
    assert status == 0, err
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    assert not report["tasks"] and "student" in report["members"] and "teacher" not in report["members"]
    assert json.loads((tmp_path / "a" / "student" / "manifest.json").read_text())["outputs"] == ["purchase"]


def test_a_warm_start_begins_with_the_other_runs_parameters(
    run: Path, job: Path, command: Command, tmp_path: Path
) -> None:
    from recdistill.training import checkpoint

    warm = f"members.student.warm_start={{run: {run}, member: student, seed: 0}}"
    still = [
        "phases.0.steps=1",
        "train.dense={sgd: {lr: 1.0e-20}}",
        "train.tables={sgd: {lr: 1.0e-20}}",
        "controls={none: nothing to compare}",
    ]
    words = [w for s in [warm, *still] for w in ("--set", s)]
    status, _, err = command("run", job, "--out", tmp_path / "a", *words)
    assert status == 0, err
    before = checkpoint.read(run / "seed_0" / "checkpoints" / "final")
    after = checkpoint.read(tmp_path / "a" / "seed_0" / "checkpoints" / "final")
    own = [key for key in before if key.startswith(("student.", "tables.student."))]
    assert len(own) > 10
    import torch

    assert all(torch.equal(before[key], after[key]) for key in own)


def test_a_warm_start_from_a_net_built_differently_is_refused(
    run: Path, job: Path, command: Command, tmp_path: Path
) -> None:
    words = ["--set", f"members.student.warm_start={{run: {run}, member: teacher}}"]
    status, _, err = command("run", job, "--out", tmp_path / "a", *words)
    assert status == 2 and "build both alike" in " ".join(err.split())


def test_a_log_can_be_simulated_from_the_jobs_own_spec(job: Path, command: Command, tmp_path: Path) -> None:
    words = ["--set", "log={simulate: spec, rows: 2000, labelled: 1.0}", "--set", "phases.0.steps=3"]
    status, out, err = command("run", job, "--out", tmp_path / "a", *words)
    assert status == 0, err
    assert "verdict" in out


def test_doctor_finds_a_working_installation(command: Command) -> None:
    status, out, _ = command("doctor")
    assert status == 0 and out.count("ok") >= 3


@pytest.mark.parametrize(
    "name", ["run", "plan", "encode", "score", "evaluate", "export", "verify", "compare", "report", "methods", "doctor"]
)
def test_every_command_explains_itself(name: str, command: Command) -> None:
    status, out, _ = command(name, "--help")
    assert status == 0 and "Usage" in out


def test_help_comes_without_loading_heavy_libraries() -> None:
    import subprocess

    code = "import sys; import recdistill.cli; sys.exit(any(m in sys.modules for m in ('torch', 'polars', 'pyarrow')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_further_students_are_judged_beside_controls_of_their_own(job: Path, tmp_path: Path, command: Command) -> None:
    words = yaml.safe_load(job.read_text())
    words["members"]["light"] = {"net": {"mlp": [4]}, "dim": 4, "compare": True}
    words["phases"][-1]["terms"] += ["bce(light.logit, label)", "soft(light.logit, teacher.logit)"]
    job.write_text(yaml.safe_dump(words))
    out = tmp_path / "run"
    status, said, _ = command("run", job, "--out", out)
    assert status == 0 and "further student light: " in said
    report = json.loads((out / "report.json").read_text())
    found = report["students"]["light"]
    assert found["student"] == "light" and list(found["controls"]) == ["plain", "shuffled"]
    folders = {"plain": "controls/plain_light", "shuffled": "controls/shuffled"}
    for control, folder in folders.items():
        served = auc_of(out / folder / "seed_0" / "scores" / "light.test.parquet")
        assert found["controls"][control]["test"]["auc"]["mean"] == pytest.approx(served)
        delta = next(c["delta"] for c in found["comparisons"] if (c["a"], c["b"]) == ("light", control))
        assert delta == pytest.approx(auc_of(out / "seed_0" / "scores" / "light.test.parquet") - served)
    assert not (out / "controls" / "plain" / "seed_0" / "scores" / "light.test.parquet").exists()
    assert "Further students" in (out / "report.html").read_text()


def test_views_of_a_member_are_not_reported_beside_it(job: Path, tmp_path: Path, command: Command) -> None:
    """As long as they are judged on the rows as they are; on distorted ones they say something of their own."""
    words = yaml.safe_load(job.read_text())
    words["members"]["view"] = {"same": "teacher", "distort": {"mask": 0.3}, "copies": 2}
    words["members"]["masked"] = {"same": "teacher", "distort": {"mask": 0.3, "scores": 1.0}}
    words["phases"][-1]["terms"] += ["soft(student.logit, mean(view[:].logit))", "soft(student.logit, masked.logit)"]
    job.write_text(yaml.safe_dump(words))
    status, _, _ = command("run", job, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert status == 0 and report["members"].keys() == {"student", "teacher", "masked"}
    assert report["members"]["masked"] != report["members"]["teacher"]
    assert not [name for name in report["findings"] if "view" in name]


def auc_of(path: Path) -> float:
    scores = pl.read_parquet(path)
    return auc(scores["label"].to_numpy(), scores["logit"].to_numpy())


@pytest.mark.slow
def test_a_student_that_is_one_of_several_copies_is_found_in_its_controls(
    job: Path, tmp_path: Path, command: Command
) -> None:
    words = yaml.safe_load(job.read_text())
    words["members"]["student"]["copies"] = 2
    words["phases"][-1]["terms"] = [
        "bce(student[:].logit, label)",
        "bce(teacher.logit, label)",
        "soft(student[:].logit, teacher.logit)",
    ]
    words["members"]["teacher"].pop("share")
    job.write_text(yaml.safe_dump(words))
    status, _, _ = command("run", job, "--out", tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert status == 0 and report["student"] == "student_0"
    alone = auc_of(tmp_path / "run" / "controls" / "plain" / "seed_0" / "scores" / "student.test.parquet")
    assert report["controls"]["plain"]["test"]["auc"]["mean"] == pytest.approx(alone)
