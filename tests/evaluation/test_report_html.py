"""The page of a run: complete, self-contained, escaped, the same each time, and whole whatever is missing."""

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import polars as pl
import pytest
import yaml

from recdistill.data.scores import Scored, read_scores, write_scores
from recdistill.evaluation import auc
from recdistill.evaluation.report import figures, html
from recdistill.evaluation.report.build import Results, build
from recdistill.evaluation.report.html import render
from recdistill.evaluation.report.metrics import metrics_of, summary
from recdistill.evaluation.report.wording import discreet

ROWS = 600
SKILL = {"teacher": 1.6, "student": 1.1, "plain": 0.3, "shuffled": 0.3, "helper": 1.0, "critic": 0.9}
VOID = {"meta", "link", "br", "path", "line", "rect"}
TERMS = [
    "bce(student.logit, label) * step(1, 0.1, at=0.1)",
    "soft(student.logit, teacher.logit)",
    "bce(teacher.logit, label)",
]
INPUTS = [
    {"name": "user_id", "kind": "integer", "list": False, "missing": "the int64 minimum"},
    {"name": "tags", "kind": "text", "list": True, "missing": ""},
]
JOB = {
    "name": "two_towers",
    "row": "P6",
    "paper": "A paper (Someone, 2020)",
    "about": "A teacher and a student.",
    "label": ["buy"],
    "privileged": ["dwell"],
    "rows": {"train": 5000, "valid": ROWS, "test": ROWS, "left_out": 0},
}
ARTEFACT = {
    "bytes": 102776,
    "parameters": 13132,
    "parity_max_abs": 2.4e-7,
    "latency": {"batch_1_ms": 0.5, "batch_1024_ms": 5.5},
    "verified": ["golden", "no_privilege"],
}


class Page(HTMLParser):
    """Tags with their attributes, in order, and the text; refuses tags that do not match."""

    def __init__(self, source):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(source)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.text += " " if tag == "span" and self.open[-1] in ("td", "th", "div") else ""
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag
        if tag in ("p", "li", "dt", "dd", "td", "th", "strong"):
            self.text += " "

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.text += data

    def count(self, tag, css=None):
        return sum(t == tag and (css is None or css in (a.get("class") or "").split()) for t, a in self.tags)

    @property
    def words(self):
        return " ".join(self.text.split())


def scored(skill, seed, group, rows=ROWS):
    rng = np.random.default_rng(7)
    signal_N = rng.normal(size=rows)
    label_N = (2 * signal_N + rng.logistic(size=rows) > 0.5).astype(np.float32)
    own_N = np.random.default_rng(int(skill * 10)).normal(size=rows)
    seed_N = np.random.default_rng([seed, int(skill * 10)]).normal(size=rows)
    logit_N = (skill * signal_N + 0.8 * own_N + 0.1 * seed_N - 0.6).astype(np.float32)
    return Scored(np.arange(rows), label_N, logit_N, np.arange(rows) // 8 if group else None)


def write_training(folder, systems, seed, values, *, phases=1, stages=("train",), groups=True, rows=ROWS):
    folder.mkdir(parents=True)
    for name, skill in systems.items():
        for split in ("valid", "test"):
            made = scored(skill, seed, groups, rows)
            group = pl.DataFrame({"group": made.group_N}) if groups else None
            labels, logits_NK = {"buy": made.label_N}, made.logit_N[:, None]
            path = folder / "scores" / f"{name}.{split}.parquet"
            write_scores(path, row_id_N=made.row_id_N, labels=labels, logits_NK=logits_NK, roles=group)
    lines = []
    for stage in stages:
        for phase in range(phases):
            for step in (1, 10, 20, 30):
                known = {"stage": stage, "phase": phase, "step": step}
                lines.append({**known, "kind": "step", "values": dict.fromkeys(values, 0.7 - step / 100 + seed / 50)})
                if step > 1 and stage != "refit":
                    metrics = {f"{n}.{m}": 0.6 + step / 1000 for n in systems for m in ("auc", "logloss")}
                    lines.append({**known, "kind": "evaluation", "values": metrics})
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (folder / "fit.json").write_text(json.dumps({"seed": seed, "steps": [20] * phases, "seconds": 3.5}))


def make_run(
    folder, *, seeds=(0, 1), members=("student", "teacher"), controls=("plain", "shuffled"), terms=TERMS, **training
):
    """A small run on disk and its report."""
    job = {
        "log": str(folder / "secret place" / "log.parquet"),
        "members": {n: {"net": {"mlp": [64, 32]}, "view": ["serving"], "serve": n == "student"} for n in members},
        "phases": [{"terms": list(terms), "epochs": 3}],
        "train": {"batch": 64},
        "controls": list(controls) or {"none": "both controls are the job itself"},
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(job))
    manifest = {"versions": {"python": "3.11", "recdistill": "0.1.0"}, "fingerprints": {"data": "c0ffee"}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "student").mkdir()
    inputs = [
        {**entry, "feeds": [{"column": entry["name"], "unknown": "the row for unknown values"}]} for entry in INPUTS
    ]
    (folder / "student" / "manifest.json").write_text(json.dumps({"inputs": inputs, "outputs": ["buy"]}))
    for seed in seeds:
        write_training(folder / f"seed_{seed}", {n: SKILL.get(n, 1.0) for n in members}, seed, terms, **training)
        for name in controls:
            place = folder / "controls" / name / f"seed_{seed}"
            write_training(place, {"student": SKILL[name]}, seed, terms[:1], **training)
    return report_of(folder, seeds, members, controls)


def report_of(folder, seeds, members, controls):
    def read(parent, name):
        paths = {
            split: [parent / f"seed_{s}/scores/{name}.{split}.parquet" for s in seeds] for split in ("valid", "test")
        }
        return {split: [read_scores(path) for path in found] for split, found in paths.items()}

    test = read(folder, "student")["test"][0]
    results = Results(
        student="student",
        seeds=seeds,
        members={name: read(folder, name) for name in members},
        controls={name: read(folder / "controls" / name, "student") for name in controls},
        references={"best_possible": {"valid": test, "test": test}},
    )
    artefact = {**ARTEFACT, "seed": seeds[-1]}
    return json.loads(json.dumps({**build(results), "job": JOB, "artefact": artefact}))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "two_towers"
    return make_run(folder), folder


@pytest.fixture(scope="module")
def page(run):
    return Page(render(*run))


def nulled(value):
    if isinstance(value, dict):
        return {key: nulled(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [nulled(entry) for entry in value]
    return None if isinstance(value, int | float) else value


def test_a_complete_run_shows_every_section_in_order(page):
    sections = [attributes["id"] for tag, attributes in page.tags if tag == "section" and "id" in attributes]
    assert sections == ["results", "differences", "ranking", "learning", "artefact", "method"]
    assert page.count("section", "verdict") == 1
    assert page.count("section", "warnings") == 1
    titles = [
        "The student compared with its controls",
        "Other members compared with the student",
        "AUC of every system",
    ]
    titles += ["ROC", "Precision and recall", "Reliability", "Validation AUC", "Validation log loss", *TERMS]
    assert all(title in page.words for title in titles)
    assert "P6" in page.words
    assert "A paper (Someone, 2020)" in page.words
    assert "because" not in {a.get("class") for _, a in page.tags}


def test_the_verdict_stands_with_its_evidence(run, page):
    report, _ = run
    assert report["verdict"] == "helps"
    assert "Distillation helps" in page.words
    over_plain = report["comparisons"][0]
    assert f"+{over_plain['delta']:.4f} AUC compared with plain" in page.words
    low, high = over_plain["ci"]
    assert f"95 % interval +{low:.4f} to +{high:.4f}, Holm-adjusted p < 0.001" in page.words
    assert f"{100 * report['recovered_gap']['value']:.0f} % of teacher's lead over plain" in page.words
    assert "compared with best_possible" in page.words
    assert "few seeds 2 seeds say little" in page.words


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        ("helps", "Distillation helps"),
        ("no evidence", "No evidence that distillation helps"),
        ("hurts", "Distillation hurts"),
        ("not compared", "Not compared"),
    ],
)
def test_every_verdict_has_its_words(run, verdict, words):
    report, folder = run
    assert words in Page(render({**report, "verdict": verdict}, folder)).words


def test_a_difference_that_is_not_significant_says_what_the_test_would_have_seen(run):
    report, folder = run
    shaky = [{**c, "p_adjusted": 0.2, "minimum_detectable_effect": 0.0123} for c in report["comparisons"]]
    words = Page(render({**report, "comparisons": shaky, "verdict": "no evidence"}, folder)).words
    assert "Holm-adjusted p = 0.200. This test would reliably have seen a difference of 0.0123." in words


def test_the_result_table_holds_every_system_on_both_splits(page):
    heads = [a for tag, a in page.tags if tag == "th"]
    assert all(a.get("scope") in ("row", "col") for a in heads)
    assert page.count("tr", "student-row") == 2
    for name in ("student", "teacher", "plain", "shuffled", "best_possible"):
        assert page.words.count(f" {name} ") >= 2
    for name in ("Grouped AUC, by impressions", "Normalised entropy", "PCOC"):
        assert name in page.words
    assert f"the same {ROWS} rows of the test split" in page.words


def test_every_picture_is_well_formed_and_says_what_it_shows(run):
    drawn = re.findall(r"<svg.*?</svg>", render(*run), re.DOTALL)
    pictures = [svg for svg in map(ET.fromstring, drawn) if svg.get("role") == "img"]
    assert len(pictures) == 3 * 2 + 3 + 2 + len(TERMS)
    assert all(svg.findtext("title") and svg.findtext("desc") for svg in pictures)
    assert all(svg.get("aria-hidden") == "true" for svg in map(ET.fromstring, drawn) if svg.get("role") != "img")


def test_the_page_needs_nothing_from_elsewhere(run, page):
    assert page.count("script") == 1
    for _, attributes in page.tags:
        assert not {"src", "srcset", "action", "data"} & attributes.keys()
        assert attributes.get("href", "#").startswith(("#", "data:"))
    style = re.search(r"<style>(.*?)</style>", render(*run), re.DOTALL)[1]
    assert not re.search(r"@import|url\(|https?:", style)
    policy = next(a["content"] for tag, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")


def test_the_same_run_renders_to_the_same_bytes_anywhere(run, tmp_path):
    report, folder = run
    shutil.copytree(folder, tmp_path / "elsewhere")
    assert render(report, folder) == render(report, tmp_path / "elsewhere")


def test_what_the_user_wrote_is_escaped_everywhere(tmp_path):
    bad = "<script>alert(1)</script>\"'&"
    report = make_run(
        tmp_path / "run", members=("student", "teacher", "helper"), terms=[f"bce(student.logit, '{bad}')"]
    )
    text = json.dumps(report).replace('"helper"', json.dumps(bad)).replace('"teacher"', json.dumps(f"t{bad}"))
    report = json.loads(text)
    report["job"] |= dict.fromkeys(("name", "variant", "row", "paper", "about"), bad) | {
        "label": [bad],
        "privileged": [bad],
    }
    report["warnings"] = [{"cause": bad, "message": bad}]
    report["references"] = {bad: {"test": {"auc": 0.7}}}
    report["artefact"]["verified"] = [bad]
    report["comparisons"][0] |= {"b": bad, "test": bad}
    folder = tmp_path / "run"
    (folder / "manifest.json").write_text(json.dumps({"versions": {bad: bad}, "fingerprints": {bad: bad}}))
    (folder / "student" / "manifest.json").write_text(
        json.dumps({"outputs": [bad], "inputs": [{"name": bad, "kind": bad}]})
    )
    (folder / "job.yaml").write_text(
        yaml.safe_dump({"members": {bad: {"view": [bad], "net": {bad: bad}}}, "phases": [{"terms": [bad]}]})
    )
    source = render(report, folder)
    page = Page(source)
    assert page.count("script") == 1
    assert "<script>alert" not in source
    assert page.words.count("<script>alert(1)</script>") > 15


def test_nothing_of_the_machine_is_told(tmp_path):
    report = make_run(tmp_path / "run")
    report["warnings"].append({"cause": "odd", "message": f"{tmp_path}/logs/day.parquet has gaps"})
    job = yaml.safe_load((tmp_path / "run" / "job.yaml").read_text())
    job["members"]["teacher"]["warm_start"] = {"run": "/home/ann/my runs/teacher", "member": "teacher"}
    job["phases"][0]["terms"].append("hint('s3://bucket.internal/key', ~/x/y)")
    (tmp_path / "run" / "job.yaml").write_text(yaml.safe_dump(job))
    source = render(report, tmp_path / "run")
    assert "…/day.parquet has gaps" in source
    assert "…/teacher" in source
    for secret in (str(tmp_path), "/home", "my runs", "bucket.internal", "~/x"):
        assert secret not in Page(source).words


def test_prose_with_slashes_and_links_is_left_alone():
    prose = "CTR and/or CVR at 3 rows/s, see https://doi.org/10.1/x and jobs/a.yaml </b>"
    assert discreet(prose) == prose


def test_a_report_of_nulls_still_renders(run):
    report, folder = run
    words = Page(render(nulled(report), folder)).words
    assert "two_towers" in words
    assert "None" not in words
    assert "nan" not in words.lower().split()


@pytest.mark.parametrize(
    "report", [{}, {"verdict": "helps", "seeds": [0], "warnings": None, "job": None, "artefact": None}]
)
def test_an_empty_report_and_folder_give_a_page_of_sentences(report, tmp_path):
    page = Page(render(report, tmp_path))
    assert "No artefact was exported." in page.words
    assert "no logs of training" in page.words
    assert "no test scores" in page.words
    assert page.count("figure") == 0


def test_broken_files_of_the_run_folder_cost_their_part_only(tmp_path):
    report = make_run(tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.*"):
        if path.is_file():
            path.write_text("{[: broken")
    words = Page(render(report, tmp_path / "run")).words
    assert "Distillation helps" in words
    assert "no test scores" in words
    assert "no logs of training" in words


def test_a_run_without_controls_gives_its_reason_and_no_gap(tmp_path):
    report = make_run(tmp_path / "run", controls=())
    assert report["recovered_gap"] is None
    words = Page(render(report, tmp_path / "run")).words
    assert "Not compared" in words
    assert "The job gives a reason: both controls are the job itself" in words
    assert "lead over plain" not in words
    assert "teacher − student" in words


def test_a_run_of_the_student_alone_says_that_nothing_was_compared(tmp_path):
    report = make_run(tmp_path / "run", controls=(), members=("student",), terms=TERMS[:1])
    words = Page(render(report, tmp_path / "run")).words
    assert "Nothing was compared: the run has neither controls nor a second member." in words


def test_one_seed_shows_no_spread_and_says_so(tmp_path):
    report = make_run(tmp_path / "run", seeds=(0,))
    words = Page(render(report, tmp_path / "run")).words
    assert "With one seed the intervals hold the noise of the rows only" in words
    assert "Mean over 1 seed;" in words
    assert "±" not in words.split("Results on the validation split")[0]


def test_without_groups_there_are_no_grouped_columns(tmp_path):
    report = make_run(tmp_path / "run", groups=False)
    words = Page(render(report, tmp_path / "run")).words
    assert "Grouped AUC, macro" not in words
    assert "No grouped AUCs: the feature spec names no group." in words


@pytest.mark.parametrize(
    ("value", "ci", "gap", "words"),
    [
        (None, [None, None], -0.02, "No gap to recover: teacher is not above plain (−0.0200 in AUC)."),
        (
            0.4,
            [None, None],
            0.02,
            "Which share of teacher's lead over plain is recovered cannot be told: the lead itself (+0.0200 in AUC)",
        ),
        (0.4, [0.2, 0.7], 0.02, "95 % interval 20 to 70 %."),
    ],
)
def test_the_recovered_gap_is_told_whatever_is_known_of_it(run, value, ci, gap, words):
    report, folder = run
    recovered = {"value": value, "ci": ci, "gain": 0.01, "gap": gap}
    assert words in Page(render({**report, "recovered_gap": recovered}, folder)).words


def test_further_members_are_drawn_each_in_its_own_way(tmp_path):
    members = ("student", "teacher", "helper", "critic")
    report = make_run(tmp_path / "run", members=members)
    looks = [(s.look, s.marker) for s in html.systems_of(report)[:4]]
    assert len(set(looks)) == 4
    page = Page(render(report, tmp_path / "run"))
    assert page.count("path", "other-1") > 0
    assert page.count("path", "other-2") > 0
    assert "critic − student" in page.words


def test_phases_follow_each_other_and_each_kept_step_is_ringed(tmp_path):
    make_run(tmp_path / "run", phases=2, controls=(), seeds=(0,))
    history = html.read_history(tmp_path / "run" / "seed_0")
    assert [x for x, _ in history.series["step", TERMS[0]][1]] == [31, 40, 50, 60]
    assert history.kept == {20, 50}
    assert history.starts == [30]


def test_a_second_training_is_named_and_its_steps_are_not_marked(tmp_path):
    report = make_run(tmp_path / "run", stages=("tune", "refit"))
    page = Page(render(report, tmp_path / "run"))
    assert "trains again on training and validation rows" in page.words
    assert page.count("path", "ring") == 0


def test_infinite_metrics_leave_a_hole_in_their_curve(tmp_path):
    make_run(tmp_path / "run", seeds=(0,), controls=())
    log = tmp_path / "run" / "seed_0" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"student.auc": 0.62', '"student.auc": NaN'))
    history = html.read_history(tmp_path / "run" / "seed_0")
    assert [x for x, _ in history.series["evaluation", "student.auc"][0]] == [10, 30]


def test_large_score_files_and_long_logs_do_not_bloat_the_page(tmp_path):
    folder = tmp_path / "run"
    report = make_run(folder, seeds=(0,), rows=20_000, groups=False)
    lines = [
        {"stage": "train", "kind": "step", "phase": 0, "step": i, "values": {TERMS[0]: i % 7}} for i in range(1, 9000)
    ]
    (folder / "seed_0" / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    source = render(report, folder)
    assert len(source) < 250_000
    longest = max(path.count("L") for path in re.findall(r'<path class="line[^>]* d="([^"]*)"', source))
    assert longest <= figures.FIGURE_POINTS
    assert max(len(points(read_scores(folder / "seed_0/scores/student.test.parquet"))) for points in CURVES) <= 200


CURVES = (figures.roc_points, figures.precision_recall_points)


def test_the_thinned_roc_keeps_its_area():
    made = scored(1.2, 0, False, rows=20_000)
    x_P, y_P = np.array(figures.roc_points(made)).T
    assert np.trapezoid(y_P, x_P) == pytest.approx(auc(made.label_N, made.logit_N), abs=1e-3)
    assert (x_P[-1], y_P[-1]) == (1.0, 1.0)


def test_equal_scores_give_one_step_and_not_an_arbitrary_order():
    made = Scored(np.arange(4), np.array([0, 1, 1, 0], np.float32), np.zeros(4, np.float32))
    assert figures.roc_points(made) == [(0.0, 0.0), (1.0, 1.0)]
    assert figures.precision_recall_points(made) == [(1.0, 0.5)]


def test_rows_of_one_label_have_no_curves(tmp_path):
    report = make_run(tmp_path / "run")
    for path in (tmp_path / "run").rglob("*.test.parquet"):
        pl.read_parquet(path).with_columns(label=pl.lit(0.0, pl.Float32)).write_parquet(path)
    assert "no test scores of rows with both labels" in Page(render(report, tmp_path / "run")).words


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (0.66, 0.81), (-0.0012, 0.0034), (0, 1500), (-1e-9, 1e-9), (0, 3e7)]
)
def test_ticks_are_round_distinct_and_inside_the_axis(low, high):
    ticks = figures.Axis(low, high, 0, 300, signed=True).ticks()
    assert 2 <= len(ticks) <= 7
    assert len({text for _, text in ticks}) == len(ticks)
    assert all(low - 1e-12 <= value <= high * (1 + 1e-12) for value, _ in ticks)


def test_texts_and_marks_have_enough_contrast_in_light_and_dark():
    style = (Path(html.__file__).parent / "style.css.j2").read_text()
    themes = re.findall(r":root \{(.*?)\}", style, re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colour = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        grounds = ["paper", "tint", "helps-tint", "none-tint", "hurts-tint", "warn-tint"]
        assert all(contrast(colour["ink"], colour[ground]) >= 7 for ground in grounds)
        assert contrast(colour["soft"], colour["paper"]) >= 4.5
        assert all(contrast(colour[n], colour[f"{n}-tint"]) >= 4.5 for n in ("helps", "none", "hurts", "warn"))
        looks = ["student", "teacher", "plain", "shuffled", "reference", *(f"other-{i}" for i in range(1, 6))]
        assert all(contrast(colour[look], colour["paper"]) >= 3 for look in looks)


def contrast(one, other):
    """The contrast ratio of WCAG 2."""
    light = []
    for colour in (one, other):
        channels = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)]) / 255
        linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        light.append(float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05)
    return max(light) / min(light)


def test_scenarios_and_weights_enter_the_metrics():
    rng = np.random.default_rng(5)
    label_N, logit_N = rng.integers(0, 2, 400).astype(np.float32), rng.normal(size=400).astype(np.float32)
    scenario_N = np.where(np.arange(400) < 300, "feed", "search")
    weight_N = rng.integers(0, 3, 400).astype(np.float32)
    rows = Scored(np.arange(400), label_N, logit_N, None, scenario_N, weight_N)
    found = metrics_of(rows)
    feed, search = (metrics_of(rows.only(scenario_N == name))["auc"] for name in ("feed", "search"))
    assert (found["auc_scenario.feed"], found["auc_scenario.search"]) == (feed, search)
    assert found["auc_within_scenarios"] == pytest.approx(0.75 * feed + 0.25 * search)
    copies = np.repeat(np.arange(400), weight_N.astype(int))
    copied = metrics_of(Scored(copies, label_N[copies], logit_N[copies]))
    assert found["auc_weighted"] == pytest.approx(copied["auc"])
    assert found["auc"] != pytest.approx(copied["auc"])
    for name in ("logloss", "normalized_entropy", "pcoc"):
        assert found[name] == pytest.approx(copied[name])


def test_the_page_shows_scenarios_where_there_are_some(tmp_path):
    rows = 200
    rng = np.random.default_rng(1)
    label_N, scenario_N = rng.integers(0, 2, rows).astype(np.float32), np.where(np.arange(rows) < 150, "feed", "<b>")
    made = [Scored(np.arange(rows), label_N, rng.normal(size=rows).astype(np.float32), None, scenario_N)] * 2
    scores = dict.fromkeys(("valid", "test"), made)
    report = build(Results("student", [0, 1], {"student": scores}, {"plain": scores}))
    page = render(report, tmp_path)
    assert "AUC within each scenario" in page and ">feed</th>" in page
    assert "&lt;b&gt;</th>" in page
    plain = [Scored(s.row_id_N, s.label_N, s.logit_N) for s in made]
    other = dict.fromkeys(("valid", "test"), plain)
    assert "AUC within each scenario" not in render(build(Results("student", [0, 1], {"student": other}, {})), tmp_path)


def with_manifest(folder, **changes):
    place = folder / "student" / "manifest.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))


def test_an_artefact_of_lists_returns_scores_and_explains_its_checks(tmp_path):
    report = make_run(tmp_path / "run")
    with_manifest(tmp_path / "run", outputs=["event"], lists={"user": ["user_id"], "item": ["item_id"], "codes": True})
    report["artefact"]["verified"] = ["items", "codes"]
    words = Page(render(report, tmp_path / "run")).words
    assert "returns a score of a user (user_id) with an item (item_id)" in words and "no probability" in words
    assert "the probability of" not in words
    assert "the scores of all items that lists are made of are finite" in words
    assert "the packed codes are as exported, and score as the student does" in words


def test_inputs_say_their_unit_and_whether_they_are_optional(tmp_path):
    report = make_run(tmp_path / "run")
    when = {"name": "seen", "kind": "integer", "list": False, "unit": "us", "missing": "none", "feeds": []}
    with_manifest(tmp_path / "run", inputs=[when, {**when, "name": "rate", "kind": "float", "optional": True}])
    words = Page(render(report, tmp_path / "run")).words
    assert "integer, microseconds since 1970 none" in words
    assert "float, microseconds since 1970, optional" in words


def test_options_of_nets_are_said_in_words(tmp_path):
    report = make_run(tmp_path / "run")
    job = yaml.safe_load((tmp_path / "run" / "job.yaml").read_text())
    job["members"]["student"]["net"] = {"mlp": {"layers": [64, 32], "norm": "batch"}}
    (tmp_path / "run" / "job.yaml").write_text(yaml.safe_dump(job))
    assert "mlp layers=64·32 norm=batch" in Page(render(report, tmp_path / "run")).words


def test_the_interval_of_a_metric_of_lists_is_no_metric(tmp_path):
    report = make_run(tmp_path / "run")
    lists = {"recall@20": {"mean": 0.1, "std": 0.01, "per_seed": [0.1, 0.1]}, "recall@20_ci": [0.08, 0.12]}
    for entry in (*report["members"].values(), *report["controls"].values()):
        entry["test"] = entry["valid"] = lists
    words = Page(render({**report, "metric": "recall@20"}, tmp_path / "run")).words
    assert "Recall@20" in words and "Recall@20_ci" not in words


def test_two_trainings_have_one_churn_of_unknown_spread():
    answers = [Scored(np.arange(4), np.float32([0, 1, 0, 1]), np.float32([0, 1, k, 2])) for k in range(3)]
    two, three = (summary(answers[:count])["churn"] for count in (2, 3))
    assert two["mean"] > 0 and np.isnan(two["std"])
    assert np.isfinite(three["std"])
