"""The page on the Python API runs as it stands, and what it writes is what a job file would say."""

import re
from pathlib import Path

import polars as pl
import pytest

from recdistill import api
from recdistill.api import Member, Phase, Update, job, label, privileged, serving, tables, to_yaml, trunk
from recdistill.distill.combine import SIGNALS
from recdistill.distill.schedule import SCHEDULES
from recdistill.distill.selector import SELECTORS
from recdistill.errors import SpecError
from recdistill.losses.catalog import LOSSES
from recdistill.nets.catalog import NETS
from recdistill.spec.load import read_yaml
from recdistill.spec.names import MARKS
from tests.conftest import ROOT

PAGE = ROOT / "recdistill" / "python.md"
SAID = {"spec": "feature_specs/marketplace.yaml", "predict": "purchase"}


@pytest.mark.slow
def test_the_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    assert len(blocks) >= 9
    (tmp_path / "feature_specs").symlink_to(ROOT / "feature_specs")
    monkeypatch.chdir(tmp_path)
    added = {*LOSSES}
    names: dict[str, object] = {}
    try:
        for block in blocks:
            exec(compile(block, str(PAGE), "exec"), names)
        found = names["rows"]
        assert found.auc > found.random_auc  # type: ignore[attr-defined]
        assert pl.read_parquet("top.parquet")["place"].to_list() == [*range(1, 11)] * 2
        assert {p.name for p in Path("runs").iterdir()} >= {
            "pfd",
            "mean",
            "rocket",
            "coteaching",
            "codes",
            "born_again",
            "dafl",
            "n2n",
        }
    finally:
        for name in {*LOSSES} - added:
            del LOSSES[name]


def test_every_word_of_a_job_is_a_function_here() -> None:
    for catalog in (LOSSES, SIGNALS, SELECTORS, SCHEDULES, NETS):
        assert {*catalog} <= {*dir(api)}
        assert all(callable(getattr(api, name)) for name in catalog)
    assert all(getattr(api, mark).text({}) == mark for mark in MARKS)
    with pytest.raises(AttributeError, match="no attribute 'bec'"):
        api.bec  # noqa: B018


def test_layers_are_lists_of_widths_unless_a_net_has_an_option_of_that_name() -> None:
    assert api.mlp([8, 4]) == {"mlp": [8, 4]} and api.mlp(layers=[8], dropout=0.1) == {
        "mlp": {"layers": [8], "dropout": 0.1}
    }
    assert api.light_gcn(user="u", item="i", layers=2) == {"light_gcn": {"user": "u", "item": "i", "layers": 2}}


def test_python_and_yaml_say_the_same(tmp_path: Path) -> None:
    student = Member(api.mlp([64, 32]), dim=8, dropout=0.1, serve=True)
    few = ["category", "age_band", "device", "price", "privileged"]
    teacher = Member(api.mlp([64, 32]), dim=8, view=few, share=tables(student))
    phase = Phase(
        api.bce(student.logit, label) * api.step(1, 0.1, at=0.1),
        api.soft(student.logit, teacher.logit) * api.step(0, 0.9, at=0.1),
        api.bce(teacher.logit, label),
        epochs=20,
    )
    log = {"simulate": "marketplace", "rows": 200000}
    settings = {"train": {"batch": 1024, "table_std": 0.05, "stop": {"patience": 4}}, "where": {"click": 1}}
    made = job([student, teacher], log, phase, know=["dwell_ms", "reviews_opened", "in_cart"], **SAID, **settings)
    (tmp_path / "job.yaml").write_text(to_yaml(made))
    from recdistill.spec.load import load_job

    (ours, _), (theirs, _) = load_job(tmp_path / "job.yaml"), load_job("jobs/applications/privileged_features.yaml")
    named = {"row", "paper", "about", "variants"}
    assert ours.model_dump(exclude=named) == theirs.model_dump(exclude=named)
    assert (
        read_yaml(tmp_path / "job.yaml")["phases"] == read_yaml("jobs/applications/privileged_features.yaml")["phases"]
    )


def test_every_form_of_a_member_and_a_phase_can_be_said() -> None:
    a = Member(api.mlp([8]), trunk=[8], dim=4, name="a")
    b = Member(api.mlp([8]), serve=True, dim=4, name="b", trunk=[8], share=tables(a) | trunk(a))
    copies = [a.ema(decay=0.9), a.best(average=2), a.snapshot(every=0.5), a.previous(), a.again(distort={"mask": 0.2})]
    copies.append(a.remote("runs/exchange", "here", every=25))
    seen = [api.soft(b.logit, copy.logit) for copy in copies]
    first = Phase(Update(api.bce(a.logit, label), train=[a]), steps=2)
    second = Phase(
        *[api.bce(b.logit, label), api.bce(a.logit, label), *seen], steps=2, carry={b: a}, lr=api.cosine(1, 0, over=0.9)
    )
    made = job([a, b, *copies], {"simulate": "marketplace", "rows": 6000}, first, second, controls=["plain"], **SAID)
    members = made["members"]
    assert members["b"]["share"] == {"tables": "a", "trunk": "a"}
    assert members["member_2"] == {"ema": {"of": "a", "decay": 0.9}} and members["member_6"]["same"] == "a"
    assert members["member_7"]["remote"] == {"of": "a", "exchange": "runs/exchange", "name": "here", "every": 25}
    assert made["phases"][1]["carry"] == {"b": "a"} and made["phases"][1]["lr"] == "cosine(1, 0, over=0.9)"
    assert made["phases"][0]["updates"] == [{"terms": ["bce(a.logit, label)"], "train": ["a"]}]
    assert (serving + privileged - "user_id") == ("serving", "privileged", "-user_id")


def test_two_members_of_one_name_and_wrong_words_are_refused() -> None:
    student = Member(api.mlp([8]), serve=True)
    with pytest.raises(SpecError, match="names two alike"):
        job(
            [student, Member(api.mlp([8]), name="student")],
            "log",
            Phase(api.bce(student.logit, label), steps=1),
            **SAID,
        )
    with pytest.raises(SpecError, match=r"did you mean 'student\.logit'"):
        job([student], "log", Phase(api.bce(student.logitt, label), steps=1), **SAID)
