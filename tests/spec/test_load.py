"""YAML files to specs: all problems at once, with their place, and nothing but `SpecError` for any content."""

import copy
from datetime import date, datetime

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recdistill.errors import SpecError
from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.load import (
    assign,
    dump_yaml,
    load_feature_spec,
    load_job,
    parse_feature_spec,
    parse_job,
    read_yaml,
)
from recdistill.spec.strict import nearest
from tests.spec.jobs import JOB, SPEC, changed, job, spec, without


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the right spec and the right job, which names the spec by a relative path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    return tmp_path


def problems_of_spec(raw):
    with pytest.raises(SpecError) as caught:
        parse_feature_spec(raw, "spec.yaml")
    return caught.value.problems


def problems_of_job(raw):
    with pytest.raises(SpecError) as caught:
        parse_job(raw, "job.yaml")
    return caught.value.problems


# Reading YAML


def test_a_file_becomes_a_spec_and_a_job_brings_its_spec_along(folder):
    assert load_feature_spec(folder / "spec.yaml") == spec()
    assert load_job(folder / "job.yaml") == (job(), spec())


def read(folder, text):
    path = folder / "some.yaml"
    path.write_text(text, encoding="utf-8")
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("join: {side.parquet: {on: key}}", {"join": {"side.parquet": {"on": "key"}}}),
        ("a: [on, off, yes, no, y, n]", {"a": ["on", "off", "yes", "no", "y", "n"]}),
        ("a: [true, False, TRUE]", {"a": [True, False, True]}),
        ("a: [1, 0.5, ~, 2022-04-25, '1']", {"a": [1, 0.5, None, date(2022, 4, 25), "1"]}),
        ("a: &x {k: 1, l: 2}\nb: {<<: *x, l: 3}", {"a": {"k": 1, "l": 2}, "b": {"k": 1, "l": 3}}),
        ("ключ: 日本", {"ключ": "日本"}),
    ],
)
def test_yaml_is_read_as_version_1_2_reads_it(folder, text, content):
    assert read(folder, text) == content


BROKEN = {
    "key twice": ("a: 1\nb: 2\na: 3", "is not valid YAML: key 'a' is given twice"),
    "deep key twice": ("a: [{b: {c: 1, c: 2}}]", "key 'c' is given twice"),
    "key twice in other quotes": ("a: 1\n'a': 2", "key 'a' is given twice"),
    "open bracket": ("a: [1", "is not valid YAML"),
    "list as key": ("? [a]\n: 1", "unhashable key"),
    "mapping as key": ("? {a: 1}\n: 1", "unhashable key"),
    "13th month": ("a: 2022-13-45", "is not valid YAML: month must be in 1..12"),
    "tag that does not fit": ("a: !!int x", "is not valid YAML"),
    "boolean tag that does not fit": ("a: !!bool x", "is not valid YAML"),
    "time tag that does not fit": ("a: !!timestamp x", "is not valid YAML"),
    "python object": (
        "a: !!python/object/apply:os.system ['true']",
        "is not valid YAML: could not determine a constructor",
    ),
    "two documents": ("a: 1\n---\na: 2", "expected a single document"),
    "unknown alias": ("a: *x", "undefined alias"),
    "tab": ("\ta: 1", "is not valid YAML"),
    "nothing": ("", "is empty where a mapping of keys is expected"),
    "a list": ("- a", "holds a list where"),
    "a text": ("abc", "holds a text where"),
    "a number": ("3", "holds one value where"),
    "deep nesting": ("a: " + "[" * 1500, "is not valid YAML"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_file_that_is_no_mapping_in_yaml_is_refused(folder, text, message):
    with pytest.raises(SpecError) as caught:
        read(folder, text)
    assert message in str(caught.value)
    assert str(caught.value).startswith(f"{folder / 'some.yaml'}: 1 problem\n")


@pytest.mark.parametrize("kind", ["absent", "folder", "bytes"])
def test_a_file_that_cannot_be_read_is_named(tmp_path, kind):
    path = tmp_path / "spec.yaml"
    if kind == "folder":
        path.mkdir()
    if kind == "bytes":
        path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SpecError, match="cannot be read") as caught:
        read_yaml(path)
    assert caught.value.place == str(path)


# Problems with their places

PLACES = {
    "unknown key": ({"grup": "user"}, "grup: unknown key; did you mean 'group'?"),
    "unknown key that resembles none": (
        {"qqq": 1},
        "qqq: unknown key; known: row_id, time, group, weight, scenario, split, join, serving, post_event, reference, "
        "negative_keep_rate",
    ),
    "unknown key of a column": (
        {"serving__price__scal": "none"},
        "serving.price.scal: unknown key; did you mean 'scale'?",
    ),
    "unknown key of a join": (
        {"join": {"x": {"on": "user", "dropp": []}}},
        "join.x.dropp: unknown key; did you mean 'drop'?",
    ),
    "unknown key of a split": (
        {"split": {"column": "d", "train": [1, 2], "valid": [3, 3], "test": [4, 4], "tests": 1}},
        "split.tests: unknown key; did you mean 'test'?",
    ),
    "unknown type": (
        {"serving__price__type": "nummeric"},
        "serving.price: unknown type 'nummeric'; did you mean 'numeric'?",
    ),
    "unknown short type": ({"serving__user": "ids"}, "serving.user: unknown type 'ids'; did you mean 'id'?"),
    "type that is a number": (
        {"serving__user": {"type": 3}},
        "serving.user: unknown type '3'; known: categorical, id,",
    ),
    "no type": ({"serving__user": {"min_count": 3}}, "serving.user: needs a `type`"),
    "no column": ({"serving__user": None}, "serving.user: expected a mapping of keys, found nothing"),
    "wrong type of value": (
        {"serving__user": {"type": "id", "min_count": "many"}},
        "serving.user.min_count: expected a whole number, found 'many'",
    ),
    "too small": (
        {"serving__user": {"type": "id", "min_count": 0}},
        "serving.user.min_count: input should be greater than",
    ),
    "half a clip": ({"serving__price__clip": [1]}, "serving.price.clip.1: is required"),
    "key that is a number": ({"serving": {1: "id", "a": "id"}}, "serving.1: expected a text, found 1"),
    "no bound": ({"split": {"column": "d", "train": [1, 2], "valid": [3, 3]}}, "split.test: is required"),
    "half a bound": (
        {"split": {"column": "d", "train": [1], "valid": [3, 3], "test": [4, 5]}},
        "split.train.1: is required",
    ),
    "share too large": ({"split": {"time": {"valid": 3}}}, "split.time.valid: input should be less than 1, found 3"),
    "hash share too large": (
        {"split": {"hash": {"valid": 3}}},
        "split.hash.valid: input should be less than 1, found 3",
    ),
    "range upside down": (
        {"split": {"column": "d", "train": [2, 1], "valid": [3, 3], "test": [4, 5]}},
        "split: train: [2, 1] is empty; give the earlier bound first",
    ),
    "unknown split": ({"split": {"rows": 1}}, "split: a split names `column`, `time` or `hash`"),
    "list instead of mapping": ({"serving": ["user"]}, "serving: expected a mapping of keys, found ['user']"),
}


@pytest.mark.parametrize(("values", "message"), PLACES.values(), ids=PLACES)
def test_a_problem_of_a_spec_is_told_with_its_place(values, message):
    problems = problems_of_spec(changed(SPEC, **values))
    assert any(problem.startswith(message) for problem in problems), problems


JOB_PLACES = {
    "unknown key": ({"laber": 1}, "laber: unknown key; did you mean 'label'?"),
    "unknown key in a list": ({"phases__1__epoch": 1}, "phases.1.epoch: unknown key; did you mean 'epochs'?"),
    "epochs and steps": ({"phases__1__steps": 1}, "phases.1: give either epochs or steps"),
    "optimizer": ({"train__dense": {"adan": {}}}, "train.dense.adan: unknown key; did you mean 'adam'?"),
    "simulation": ({"log": {"simulate": "marketplace", "row": 5}}, "log.row: unknown key; did you mean 'rows'?"),
    "simulation rows": (
        {"log": {"simulate": "spec", "rows": 5}},
        "log.rows: input should be greater than or equal to 100",
    ),
    "control": ({"controls": ["plain", "noise"]}, "controls.1: input should be 'plain' or 'shuffled', found 'noise'"),
    "short reason": (
        {"controls": {"none": "no"}},
        "controls.none: string should have at least 10 characters, found 'no'",
    ),
    "key beside the reason": (
        {"controls": {"none": "there is nothing", "plain": 1}},
        "controls.plain: unknown key; known: none",
    ),
    "spec that is no path": ({"spec": 3}, "spec: expected a text, found 3"),
    "member that is no mapping": ({"members__student": 3}, "members.student: expected a mapping of keys, found 3"),
    "members that are a list": ({"members": ["a"]}, "members: expected a mapping of keys, found ['a']"),
    "no members": ({"members": {}}, "members: expected at least 1 of them, found 0"),
    "no phases": ({"phases": []}, "phases: expected at least 1 of them, found 0"),
    "two nets": (
        {"members__student__net": {"mlp": [1], "deepfm": {}}},
        "members.student.net: expected at most 1 of them, found 2",
    ),
    "number": ({"members__student__dropout": "much"}, "members.student.dropout: expected a number, found 'much'"),
    "flag": ({"train__refit": "perhaps"}, "train.refit: expected true or false, found 'perhaps'"),
    "list": ({"privileged": 3}, "privileged: expected a list, found 3"),
}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(("values", "message"), JOB_PLACES.values(), ids=JOB_PLACES)
def test_a_problem_of_a_job_is_told_with_its_place(values, message):
    problems = problems_of_job(changed(JOB, **values))
    assert any(problem.startswith(message) for problem in problems), problems


@pytest.mark.usefixtures("folder")
def test_what_is_missing_is_required():
    assert problems_of_spec(without(SPEC, "serving")) == ("serving: is required",)
    assert "phases: is required" in problems_of_job(without(JOB, "phases"))
    assert problems_of_spec({**SPEC, "join": {"side.parquet": {}}}) == ("join.side.parquet.on: is required",)


def test_all_problems_of_a_spec_come_in_one_message():
    broken = changed(
        SPEC,
        grup="user",
        serving__user__min_cont=3,
        serving__price__scal="none",
        serving__item__type="idd",
        post_event__click="flag",
        split={"time": {"valid": 2}},
        negative_keep_rate=0,
        reference=["category"],
    )
    with pytest.raises(SpecError) as caught:
        parse_feature_spec(broken, "spec.yaml")
    assert sorted(problem.split(": ")[0] for problem in caught.value.problems) == [
        "grup",
        "negative_keep_rate",
        "post_event.click",
        "post_event.next_item.vocabulary",  # its owner, serving.item, is no column as long as its type is unknown
        "reference",
        "serving.item",
        "serving.price.scal",
        "serving.user.min_cont",
        "split.time.valid",
    ]
    assert str(caught.value).startswith("spec.yaml: 9 problems\n  - ")


@pytest.mark.usefixtures("folder")
def test_all_problems_of_a_job_and_between_it_and_its_spec_come_in_one_message():
    broken = changed(
        JOB,
        sed=3,
        label="bye",
        privileged=["dwell_ms", "price"],
        train__batch=0,
        members__student__view=["serving", "dwell_ms"],
        members__teacher__share__tables="pupil",
        phases__0__terms=["bce(student.logit, label) + 1"],
    )
    assert sorted(problem.split(": ")[0] for problem in problems_of_job(broken)) == [
        "label",
        "members.student.view",
        "members.teacher.share.tables",
        "phases.0.terms.0",
        "privileged",
        "sed",
        "train.batch",
    ]


def test_no_problem_is_told_twice():
    problems = problems_of_spec(changed(SPEC, a=1, b=1, reference=["category", "category"]))
    assert len(problems) == len(set(problems)) == 3


@pytest.mark.usefixtures("folder")
def test_elements_of_a_list_are_left_out_from_its_end():
    phases = [{"epochs": 1, "terms": ["f(x)"]} for _ in range(12)]
    phases[10]["terms"] = ["f(x) + 1"]
    for i in (2, 9, 11):
        del phases[i]["epochs"]
    *incomplete, expression = problems_of_job(changed(JOB, phases=phases))
    assert incomplete == [f"phases.{i}: give either epochs or steps" for i in (2, 9, 11)]
    assert "'f(x) + 1' is an expression" in expression


def test_a_job_with_a_wrong_spec_tells_the_problems_of_the_spec(folder):
    (folder / "spec.yaml").write_text("grup: user\nserving: {a: id}")
    with pytest.raises(SpecError) as caught:
        load_job(folder / "job.yaml")
    assert caught.value.place == "spec.yaml"
    assert caught.value.problems == ("grup: unknown key; did you mean 'group'?",)


def test_a_job_whose_spec_is_absent_says_so(folder):
    (folder / "spec.yaml").unlink()
    with pytest.raises(SpecError, match=r"spec\.yaml: 1 problem\n  - cannot be read: No such file"):
        load_job(folder / "job.yaml")


@pytest.mark.usefixtures("folder")
def test_a_further_check_adds_its_problems_to_those_of_the_job():
    with pytest.raises(SpecError) as caught:
        parse_job(changed(JOB, label="bye"), "job.yaml", check=lambda job, spec: [f"{job.student} reads {spec.group}"])
    assert caught.value.problems[1:] == ("student reads user",)


@pytest.mark.usefixtures("folder")
def test_a_further_check_sees_no_job_that_could_not_be_built():
    with pytest.raises(SpecError):
        parse_job(without(JOB, "members"), "job.yaml", check=lambda *_: pytest.fail("called"))


@pytest.mark.parametrize(
    ("word", "known", "hint"),
    [
        ("lable", ["label", "log"], "did you mean 'label'?"),
        ("x", ["label", "log"], "known: label, log"),
        ("x", [], "known: none"),
        ("x", iter(["label"]), "known: label"),
    ],
)
def test_a_hint_names_the_nearest_word_or_all_of_them(word, known, hint):
    assert nearest(word, known) == hint


# Overrides and variants


def set_(folder, *overrides, **options):
    return load_job(folder / "job.yaml", overrides, **options)[0]


@pytest.mark.parametrize(
    ("override", "values"),
    [
        ("train.batch=128", {"train__batch": 128}),
        ("train.dense.adam.lr=0.5", {"train__dense": {"adam": {"lr": 0.5}}}),
        ("label=click", {"label": "click", "privileged": ["dwell_ms"]}),
        ("phases.1.epochs=7", {"phases__1__epochs": 7}),
        ("phases.-1.epochs=7", {"phases__1__epochs": 7}),
        ("phases.0.terms.0=bce(student.logit, click)", {"phases__0__terms__0": "bce(student.logit, click)"}),
        ("where={on: [1, 2], city: ~}", {"where": {"on": [1, 2], "city": None}}),
        ("where.city=no", {"where": {"city": "no"}}),
        ("where.city=a=b", {"where": {"city": "a=b"}}),
        ("members.teacher.share={}", {"members__teacher__share": {}}),
        (" seeds = 3", {"seeds": 3}),
        ("about=", {"about": None}),
    ],
)
def test_an_override_replaces_the_value_at_its_path(folder, override, values):
    overrides = [override, "privileged=[dwell_ms]"] if "privileged" in values else [override]
    assert set_(folder, *overrides) == job(**values)


def test_later_overrides_win(folder):
    assert set_(folder, "seeds=3", "seeds=4").seeds == 4


BAD_OVERRIDES = {
    "no value": ("train.batch", "expected key.path=value, for example train.batch=1024"),
    "no path": ("=3", "expected key.path=value"),
    "no YAML": ("seeds=[1", "the value is not valid YAML"),
    "13th month": ("where.day=2022-13-01", "the value is not valid YAML: month must be"),
    "key twice": ("where={a: 1, a: 2}", "key 'a' is given twice"),
    "index too large": ("phases.2.epochs=1", "phases.2: '2' does not point into a list of 2; count from 0"),
    "index too small": ("phases.-3.epochs=1", "phases.-3: '-3' does not point into a list of 2; count from 0"),
    "index that is a word": ("phases.first.epochs=1", "phases.first: 'first' does not point into a list of 2"),
    "last index": ("phases.0.terms.9=f(x)", "phases.0.terms.9: '9' does not point into a list of 2"),
    "other digits": ("phases.².epochs=1", "phases.²: '²' does not point into a list of 2"),
    "two signs": ("phases.--1.epochs=1", "phases.--1: '--1' does not point into a list of 2"),
    "long index": (f"phases.{'9' * 5000}.epochs=1", "does not point into a list of 2"),
    "unknown member": ("members.studnt.dim=8", "members.studnt.dim: no member 'studnt'; did you mean 'student'?"),
    "unknown key": ("train.bach=3", "train.bach: unknown key; did you mean 'batch'?"),
    "wrong value": ("seeds=none", "seeds: expected a whole number, found 'none'"),
}


@pytest.mark.parametrize(("override", "message"), BAD_OVERRIDES.values(), ids=BAD_OVERRIDES)
def test_an_override_that_points_nowhere_or_says_nothing_is_refused(folder, override, message):
    with pytest.raises(SpecError) as caught:
        set_(folder, override)
    assert message in str(caught.value)


def test_overrides_may_make_a_member(folder):
    made = set_(folder, "members.other.dim=8", "members.other.net={mlp: [4]}", "members.third={net: {mlp: [4]}}")
    assert made.members["other"].dim == 8 and made.members["third"].net == {"mlp": [4]}


def test_assigning_leaves_the_original_as_it_is():
    original, value = {"a": {"b": [1, {"c": 2}]}}, [5]
    before = copy.deepcopy(original)
    result = assign(original, {"a.b.1.c": value, "x.y": 1, "a.b.0": value}, "here")
    assert result == {"a": {"b": [[5], {"c": [5]}]}, "x": {"y": 1}}
    assert original == before
    result["a"]["b"][0].append(6)
    assert value == [5]


def test_a_value_in_the_way_of_a_path_gives_way_to_a_mapping():
    assert assign({"log": "a.parquet"}, {"log.simulate": "spec"}, "here") == {"log": {"simulate": "spec"}}


VARIANTS = {"wide": {"members.student.net": {"mlp": [64]}, "seeds": 2}, "none": None, "listed": ["seeds"]}


def test_a_variant_is_applied_before_the_log_and_the_overrides(folder):
    (folder / "job.yaml").write_text(
        yaml.safe_dump({**JOB, "variants": {"wide": {**VARIANTS["wide"], "log": "v.parquet"}}})
    )
    wide = set_(folder, "seeds=9", variant="wide", log="other.parquet")
    assert wide.members["student"].net == {"mlp": [64]}
    assert (wide.seeds, wide.log) == (9, "other.parquet")
    assert set_(folder).seeds == 5


@pytest.mark.parametrize(
    ("variants", "name", "message"),
    [
        (VARIANTS, "wid", "no variant 'wid'; did you mean 'wide'?"),
        (VARIANTS, "none", "variants.none: expected a mapping {key.path: value}, found None"),
        (VARIANTS, "listed", "variants.listed: expected a mapping {key.path: value}, found ['seeds']"),
        (None, "wide", "no variant 'wide'; known: none"),
        (["wide"], "wide", "no variant 'wide'; known: none"),
        ({1: {}}, "wide", "no variant 'wide'; known: 1"),
    ],
)
def test_a_variant_that_is_none_is_refused(folder, variants, name, message):
    (folder / "job.yaml").write_text(yaml.safe_dump({**JOB, "variants": variants}))
    with pytest.raises(SpecError) as caught:
        set_(folder, variant=name)
    assert caught.value.problems == (message,)


# Round trips

SPECS = {
    "as it is": {},
    "all roles": {"weight": "w", "scenario": "s", "negative_keep_rate": 0.25},
    "join on two keys": {"join": {"a b.parquet": {"on": ["user", "on"], "drop": ["x*"], "keep": ["y"]}}},
    "split by number": {"split": {"column": "d", "train": [0, 1.5], "valid": [2, 2], "test": [3, 1e9]}},
    "split by date": {
        "split": {
            "column": "d",
            "train": [date(2022, 4, 1)] * 2,
            "valid": [date(2022, 5, 1)] * 2,
            "test": [date(2022, 6, 1)] * 2,
        }
    },
    "split by hour": {
        "split": {
            "column": "d",
            "train": [datetime(2022, 4, 1, 5)] * 2,
            "valid": [datetime(2022, 4, 1, 6, 30)] * 2,
            "test": [datetime(2022, 4, 1, 7, 0, 1)] * 2,
        }
    },
    "split by text that looks like a date": {
        "split": {"column": "d", "train": ["2022-04-01"] * 2, "valid": ["2022-05-01"] * 2, "test": ["2022-06-01"] * 2}
    },
    "split by hash": {"split": {"hash": {"key": "user", "valid": 0.3}}},
    "clip": {"serving__price__clip": [-1e-9, float("inf")]},
    "names that look like other things": {
        "serving__on": {"type": "id", "column": "1.5"},
        "group": "yes",
        "time": "null",
    },
    "names of all kinds": {"serving__日本 \U0001f600: #": {"type": "categorical", "column": "- a\n'"}},
}


@pytest.mark.parametrize("values", SPECS.values(), ids=SPECS)
def test_a_dumped_spec_is_read_back_as_it_was(tmp_path, values):
    made = spec(**values)
    (tmp_path / "dumped.yaml").write_text(dump_yaml(made), encoding="utf-8")
    assert FeatureSpec.model_validate(read_yaml(tmp_path / "dumped.yaml")) == made


JOBS = {
    "as it is": {},
    "simulation": {"log": {"simulate": "marketplace", "rows": 1000, "labelled": 0.5}},
    "filters": {"where": {"on": ["yes", None, 1, 1.5, True], "day": date(2022, 4, 1), "none": None}},
    "optimizers": {"train": {"dense": {"adamw": {"lr": 1e-7}}, "tables": {"sgd": {}}, "threads": 2, "refit": True}},
    "no controls": {"controls": {"none": "because of: reasons"}},
    "empty controls": {"controls": []},
    "variants": {"variants": {"a": {"members.student.net": {"mlp": None}, "seeds": None}}},
    "odd terms": {"phases__0__terms": ["f('a: b # c')", '  f("\'")\n * 2']},
    "all of a member": {
        "members__third": {
            "net": {"dcn": {"layers": [1, {"deep": None}], "x": 1e-12}},
            "dim": 32,
            "trunk": [4, 4],
            "share": {"own": ["user"]},
            "dense": {"sgd": {"momentum": 0.5}},
            "warm_start": {"run": "runs/a", "member": "teacher", "seed": 0},
        }
    },
}


@pytest.mark.parametrize("values", JOBS.values(), ids=JOBS)
def test_a_dumped_job_is_read_back_as_it_was(tmp_path, values):
    made = job(**values)
    (tmp_path / "dumped.yaml").write_text(dump_yaml(made), encoding="utf-8")
    assert Job.model_validate(read_yaml(tmp_path / "dumped.yaml")) == made


def test_a_dumped_job_shows_its_defaults_and_no_empty_field():
    shown = yaml.safe_load(dump_yaml(job()))
    assert shown["seeds"] == 5
    assert shown["train"]["batch"] == 4096
    assert "about" not in shown
    assert list(shown)[:3] == ["spec", "log", "where"]


# Noise

junk = st.sampled_from(
    [
        None,
        True,
        0,
        -1,
        2.5,
        float("nan"),
        "",
        "x",
        "id",
        "serving",
        [],
        [1],
        ["a"],
        {},
        {"a": 1},
        {1: 2},
        date(2022, 1, 1),
    ]
).map(copy.deepcopy)


def paths(node, prefix=()):
    yield prefix
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, child in items:
        yield from paths(child, (*prefix, key))


def damaged(raw, data):
    """A copy with some values replaced by junk, removed, or surrounded by unknown keys."""
    copied = copy.deepcopy(raw)
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from([p for p in paths(copied) if p]))
        node = copied
        for part in path[:-1]:
            node = node[part]
        kind = data.draw(st.sampled_from(["junk", "remove", "add"]))
        if kind == "remove":
            del node[path[-1]]
        elif kind == "add" and isinstance(node[path[-1]], dict):
            node[path[-1]][data.draw(st.sampled_from(["column", "time", "on", "type", "x", 3, None]))] = data.draw(junk)
        else:
            node[path[-1]] = data.draw(junk)
        if not copied:
            break
    return copied


RICH_SPEC = changed(
    SPEC,
    split={"column": "d", "train": [1, 2], "valid": [3, 3], "test": [4, 5]},
    join={"a.parquet": {"on": "item", "drop": ["x"]}},
    serving__price__clip=[0, 1],
)
RICH_JOB = changed(
    JOB,
    where={"a": [1]},
    controls={"none": "there is nothing"},
    train={"dense": {"adam": {"lr": 0.1}}, "stop": {"patience": 3}},
    log={"simulate": "marketplace"},
    variants={"a": {"b": 1}},
    members__student__trunk=[4],
)


@settings(max_examples=300)
@given(st.data())
def test_a_damaged_spec_is_refused_with_nothing_but_a_list_of_problems(data):
    raw = damaged(RICH_SPEC, data)
    try:
        made = parse_feature_spec(raw, "spec.yaml")
    except SpecError as error:
        assert error.problems
        assert all(isinstance(problem, str) and problem for problem in error.problems)
    else:
        assert made.problems() == []


@pytest.mark.usefixtures("folder")
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_job_is_refused_with_nothing_but_a_list_of_problems(data):
    raw = damaged(RICH_JOB, data)
    if isinstance(raw.get("spec"), str):
        raw["spec"] = "spec.yaml"
    try:
        made, its_spec = parse_job(raw, "job.yaml")
    except SpecError as error:
        assert error.problems
    else:
        assert made.problems() == made.problems_with(its_spec) == []


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.sampled_from("ab:-[]{}!&*<>?|#'\"%@`,\n\t 01~="), max_size=25))
def test_no_text_in_a_file_raises_anything_but_a_spec_error(folder, text):
    try:
        read(folder, text)
    except SpecError as error:
        assert len(error.problems) == 1
