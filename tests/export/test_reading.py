"""A student that reads other members: they are served with it, and nobody else is."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from torch import Tensor

from recdistill.data.log import raw_batches
from recdistill.distill.layout import lay_out
from recdistill.errors import ExportError, VisibilityError
from recdistill.export import artefact
from recdistill.export.bare import tensors
from recdistill.export.build import describe_inputs, served_columns, served_members, serving_student
from recdistill.training import checkpoint
from recdistill.training.fit import build_cast
from tests.conftest import Small
from tests.training.bench import LAST, Bench, problems
from tests.training.rich import POOL, rich_log

BASE: dict[str, Any] = {"net": {"mlp": [8, 4]}, "dim": 4}
UNREAD = {"net": {"mlp": [16]}, "dim": 8, "view": ["serving", "privileged"]}
READER = {"net": {"mlp": []}, "view": [], "serve": True}
STUDENT, UNREAD_TERM = "bce(student.logit, label)", "bce(unread.logit, label)"

MEMBERS: dict[str, dict[str, Any]] = {
    "the mean of heads": {
        "student": {**READER, "inputs": ["live(first.logit)", "second.logit"]},
        "second": {**BASE, "net": {"dcn_v2": {"mlp": [4]}}, "view": ["serving", "-clicks"]},
        "first": {**BASE, "pool": POOL},
    },
    "a layer of a frozen trunk": {
        "first": {**BASE, "trunk": [8], "pool": POOL},
        "student": {**BASE, "inputs": ["first.hidden[0]"], "view": ["item", "price", "tags"], "serve": True},
    },
    "outputs of all kinds": {
        "student": {**READER, "inputs": ["second.logit", "first.embed", "first.hidden[-2]"], "view": "city"},
        "second": {**READER, "serve": False, "inputs": ["first.logits", "live(first.hidden[1])"]},
        "first": {**BASE, "pool": POOL},
    },
    "tables that are lent by an unread member": {
        "student": {
            **BASE, "net": {"mlp": []}, "trunk": [8], "inputs": ["first.logit"], "view": ["item", "price"],
            "serve": True, "share": {"tables": "unread_owner"},
        },
        "first": {**BASE, "view": ["city", "clicks"]}, "unread_owner": {**BASE, "net": {"mlp": [3]}},
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return rich_log(tmp_path_factory.mktemp("rich"))


def bench(rich: Small, name: str) -> Bench:
    members = {"unread": UNREAD, **MEMBERS[name]}
    first = [f"bce({n}.logit, label)" for n in members if n != "student"]
    phases = [{"steps": 2, "terms": first, **LAST}, {"steps": 3, "terms": [STUDENT], "train": "student", **LAST}]
    if "share" in members["student"]:
        phases[1]["train"] = "student.net"
    b = Bench.of(rich, members, phases, **rich.job)
    for index, phase in enumerate(b.plan.phases):
        b.engine.run(index, phase)
    return b


def parameters(b: Bench) -> dict[str, Tensor]:
    found = b.cast.state(b.cast.members)
    return {key: value.clone() for key, value in found.items()}


def served(b: Bench, given: dict[str, Tensor] | None = None) -> Any:
    encoded = b.small.encoded
    return serving_student(
        b.plan.student, b.plan.members, b.cast.layout, encoded.spec, encoded.fitted, given or parameters(b),
        negative_keep_rate=1.0,
    )  # fmt: skip


def loaded(module: Any) -> Any:
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(module), saved)
    saved.seek(0)
    return torch.jit.load(saved)


def raw(b: Bench) -> tuple[pa.Table, list[dict[str, Any]]]:
    encoded = b.small.encoded
    inputs = describe_inputs(served_columns(b.plan.student, b.plan.members), encoded.spec, encoded.fitted)
    names = [entry["name"] for entry in inputs]
    return pa.concat_tables(raw_batches(encoded.spec, str(b.small.log), {}, "test", names, 100)), inputs


def scores(b: Bench) -> Tensor:
    reader = replace(b.engine.valid, splits=("test",))
    return torch.from_numpy(b.engine.score(["student"], reader)[0]["student"])[:, 0]


@pytest.mark.parametrize("name", MEMBERS)
def test_the_artefact_answers_as_training_did(rich: Small, group: None, name: str) -> None:
    b = bench(rich, name)
    rows, inputs = raw(b)
    student, expected = loaded(served(b)), scores(b)
    with torch.no_grad():
        found = student.logits(*tensors(rows, inputs))
        single = torch.cat([student.logits(*tensors(rows.slice(k, 1), inputs)) for k in range(8)])
    assert float(expected.std()) > 1e-3 and len(expected) == 150
    assert float((found - expected).abs().max()) <= 1e-5
    assert float((single - expected[:8]).abs().max()) <= 1e-5


@pytest.mark.parametrize("name", MEMBERS)
def test_nothing_of_an_unread_member_is_inside_and_all_that_is_read_is_needed(
    rich: Small, group: None, name: str
) -> None:
    b = bench(rich, name)
    read = {n for n in MEMBERS[name] if n != "unread_owner"}
    assert {m.name for m in served_members(b.plan.student, b.plan.members)} == read
    before, (rows, inputs) = parameters(b), raw(b)
    given = tensors(rows, inputs)
    dense = {n: sum(v.numel() for k, v in before.items() if k.startswith(f"{n}.")) for n in b.cast.members}
    module = served(b, before)
    assert sum(p.numel() for p in module.parameters()) == sum(dense[n] for n in read)
    widths = {tuple(buffer.shape)[-1:] for key, buffer in module.named_buffers() if key.endswith("weight")}
    assert (8,) not in widths  # the width of the unread member's tables
    assert not {entry["name"] for entry in inputs} & {"after", "dwell", "y", "liked"}
    with torch.no_grad():
        answer = module.logits(*given)
        for other in b.cast.members:
            own = (f"{other}.", f"tables.{other}.", f"tables.{other}-tokens.")
            poisoned = {k: torch.full_like(v, torch.nan) if k.startswith(own) else v for k, v in before.items()}
            same = torch.equal(served(b, poisoned).logits(*given), answer)
            tables_lent = other == "unread_owner"  # its tables are the student's as well, its net is not
            assert same == (other not in read and not tables_lent), other
    unneeded = ("unread.", "tables.unread.", "tables.unread-tokens.", "unread_owner.")
    without = {k: v for k, v in before.items() if not k.startswith(unneeded)}
    assert torch.equal(served(b, without).logits(*given), answer)  # what is not read need not even be there
    missing = {k: v for k, v in before.items() if not k.startswith("first.")}
    with pytest.raises(ExportError, match=r"the checkpoint has no parameter 'first\."):
        served(b, missing)


def test_columns_of_the_members_that_are_read_are_needed_as_well(rich: Small, group: None) -> None:
    b = bench(rich, "outputs of all kinds")
    assert b.plan.student.serving == ("city",)
    assert {*served_columns(b.plan.student, b.plan.members)} == {"item", "city", "clicks", "tags", "price"}
    rows, inputs = raw(b)
    student = served(b)
    with torch.no_grad():
        answer = student.logits(*tensors(rows, inputs))
        price = rows.column_names.index("price")
        other = rows.set_column(price, "price", pa.array([5.0] * len(rows)))
        assert not torch.allclose(student.logits(*tensors(other, inputs)), answer)


def test_a_privileged_member_that_is_read_is_refused_at_export_whatever_else_was_missed(
    rich: Small, group: None
) -> None:
    b = bench(rich, "the mean of heads")
    forged = tuple(replace(m, privileged=("dwell",)) if m.name == "second" else m for m in b.plan.members)
    encoded = b.small.encoded
    layout = lay_out(forged, encoded.spec, encoded.fitted.tables)
    with pytest.raises(
        VisibilityError, match="export of 'student': 'second', which it needs, reads 'dwell', known only"
    ):
        serving_student(
            b.plan.student, forged, layout, encoded.spec, encoded.fitted, parameters(b), negative_keep_rate=1.0
        )
    with pytest.raises(VisibilityError, match=r"members\.second: serves, but reads \['dwell'\]"):
        build_cast(replace(b.plan, members=forged), b.job.train, encoded, seed=0)
    unread = next(m for m in b.plan.members if m.name == "unread")
    assert unread.privileged == ("after", "dwell")  # which does not matter, because nobody reads it
    members = {"unread": UNREAD, "student": {**READER, "inputs": ["unread.logit"]}}
    found = problems(rich, members, [{"steps": 1, "terms": [STUDENT, UNREAD_TERM]}], **rich.job)
    assert any("but the student reads its output when it serves" in problem for problem in found)


@pytest.mark.parametrize(
    "word", ["probability(first.logit)", "noise(4)", "first.attention.clicks", "shuffled(first.logit)"]
)
def test_what_cannot_be_computed_when_serving_is_refused(rich: Small, word: str) -> None:
    members = {"first": {**BASE, "pool": POOL}, "student": {**READER, "inputs": [word]}}
    found = problems(rich, members, [{"steps": 1, "terms": [STUDENT, "bce(first.logit, label)"]}], **rich.job)
    assert any("cannot be computed when the student serves" in problem for problem in found), found


def test_an_average_of_a_reading_student_serves_with_what_the_student_reads(rich: Small, group: None) -> None:
    members = {
        "first": {**BASE, "pool": POOL}, "unread": UNREAD,
        "live": {**BASE, "inputs": ["first.hidden[0]"], "view": ["item", "price"]},
        "student": {"ema": {"of": "live", "decay": 0.5}, "serve": True},
    }  # fmt: skip
    terms = ["bce(live.logit, label)", "bce(first.logit, label)", UNREAD_TERM]
    b = Bench.of(rich, members, [{"steps": 4, "terms": terms, **LAST}], **rich.job)
    b.engine.run(0, b.plan.phases[0])
    assert {m.name for m in served_members(b.plan.student, b.plan.members)} == {"first", "student"}
    rows, inputs = raw(b)
    with torch.no_grad():
        found = loaded(served(b)).logits(*tensors(rows, inputs))
    assert float((found - scores(b)).abs().max()) <= 1e-5


def test_the_artefact_of_a_reading_student_is_verified_without_us(rich: Small, group: None, tmp_path: Path) -> None:
    b = bench(rich, "the mean of heads")
    checkpoint.save(b.cast, tmp_path / "final")
    rows, inputs = raw(b)
    student = served(b, checkpoint.read(tmp_path / "final"))
    described, withheld = {"inputs": inputs, "outputs": ["y"]}, ["y", "liked", "after", "dwell"]
    artefact.write(student, tmp_path / "student", manifest=described, golden=rows, withheld=withheld)
    checked = artefact.verify(tmp_path / "student")
    assert checked["ok"], checked
    content = b"".join(file.read_bytes() for file in sorted((tmp_path / "student").iterdir()))
    assert not any(word.encode() in content for word in ("unread", "dwell"))
    module, manifest = artefact.load(tmp_path / "student")
    again = artefact.score(module, manifest, rows, 64)
    assert float((again - scores(b)).abs().max()) <= artefact.TOLERANCE
