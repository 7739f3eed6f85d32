"""The serving artefact: what goes in, what comes out, and what must never be inside."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from recdistill.data.fit import FittedSpec
from recdistill.data.log import raw_batches
from recdistill.data.reader import Reader, Selection
from recdistill.data.scores import read_logits
from recdistill.distill.layout import lay_out
from recdistill.errors import ExportError, VisibilityError
from recdistill.export import artefact, bare
from recdistill.export.build import describe_inputs, serving_student
from recdistill.training import checkpoint
from tests.conftest import Small

PRIVILEGED = ["dwell_ms", "reviews_opened"]


class Exported:
    """A trained student, its artefact, and the raw test rows."""

    def __init__(self, small: Small, folder: Path) -> None:
        self.small, self.folder = small, folder
        small.fit(folder / "fit")
        self.plan, self.job, _ = small.plan()
        self.parameters = checkpoint.read(folder / "fit" / "checkpoints" / "final")
        self.layout = lay_out(self.plan.members, small.encoded.spec, small.encoded.fitted.tables)
        self.student = self.build()
        self.inputs = describe_inputs(self.plan.student.serving, small.encoded.spec, small.encoded.fitted)
        self.raw = self.read([entry["name"] for entry in self.inputs])
        self.write(folder / "student")
        self.loaded, self.manifest = artefact.load(folder / "student")

    def build(self, member: Any = None, keep_rate: float = 1.0) -> Any:
        encoded = self.small.encoded
        chosen = member or self.plan.student
        return serving_student(
            chosen,
            self.plan.members,
            self.layout,
            encoded.spec,
            encoded.fitted,
            self.parameters,
            negative_keep_rate=keep_rate,
        )

    def read(self, columns: list[str]) -> pa.Table:
        return pa.concat_tables(raw_batches(self.small.encoded.spec, str(self.small.log), {}, "test", columns, 1000))

    def write(self, folder: Path, student: Any = None) -> None:
        manifest = {"inputs": self.inputs, "outputs": ["purchase"]}
        withheld = [*PRIVILEGED, "in_cart", "click"]
        artefact.write(student or self.student, folder, manifest=manifest, golden=self.raw, withheld=withheld)

    def scores(self, table: pa.Table) -> Tensor:
        return self.loaded(*bare.tensors(table, self.inputs))


@pytest.fixture(scope="module")
def exported(small: Small, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return Exported(small, tmp_path_factory.mktemp("exported"))


def test_the_artefact_scores_every_test_row_as_training_did(exported: Exported) -> None:
    trained = read_logits(exported.folder / "fit" / "scores" / "student.test.parquet")[:, 0]
    again = artefact.score(exported.loaded, exported.manifest, exported.raw, 8192).numpy()
    assert np.array_equal(again, trained)  # the same batch size: the same bits
    one_by_one = artefact.score(exported.loaded, exported.manifest, exported.raw.slice(0, 50), 1).numpy()
    assert np.abs(one_by_one - trained[:50]).max() <= artefact.TOLERANCE


def test_encoded_ids_are_those_of_training(exported: Exported) -> None:
    encoded = exported.small.encoded
    names = tuple(f.name for f in exported.layout.members["student"].inputs.embedded)
    reader = Reader(encoded, ("test",), Selection(names))
    expected = torch.cat([batch.serving.ids_FB for batch in reader.in_order(512)], 1)
    numbers, texts, _ = bare.tensors(exported.raw, exported.inputs)
    found = torch.stack([single(numbers, texts, {}, len(exported.raw)) for single in exported.student.singles])
    assert torch.equal(found, expected)


def test_privileged_columns_poisoned_or_dropped_change_no_bit(exported: Exported) -> None:
    everything = exported.read([*(entry["name"] for entry in exported.inputs), *PRIVILEGED])
    poisoned = everything
    for name in PRIVILEGED:
        place = poisoned.column_names.index(name)
        poisoned = poisoned.set_column(place, name, pa.array([float("nan")] * len(everything)))
    clean = exported.scores(everything)
    assert torch.equal(clean, exported.scores(poisoned))
    assert torch.equal(clean, exported.scores(everything.drop_columns(PRIVILEGED)))


def test_a_serving_column_that_is_poisoned_does_change_scores(exported: Exported) -> None:
    """Otherwise the poison test could not fail."""
    place = exported.raw.column_names.index("price")
    poisoned = exported.raw.set_column(place, "price", pa.array([float("nan")] * len(exported.raw)))
    assert not torch.equal(exported.scores(exported.raw), exported.scores(poisoned))


def test_missing_unknown_and_absent_values_have_their_rows(exported: Exported) -> None:
    empty = exported.loaded({"user_id": torch.tensor([-(2**63), -(2**63)])}, {}, {})
    absent = exported.loaded({"hour": torch.tensor([-(2**63), -(2**63)])}, {"city": ["", ""]}, {})
    assert torch.equal(empty, absent)
    unknown = [exported.loaded({"user_id": torch.tensor([value])}, {}, {}) for value in (10**15, -5)]
    assert torch.equal(*unknown)
    assert exported.loaded({}, {}, {}).shape == (0,)


@pytest.mark.parametrize(
    ("numbers", "texts", "lengths", "message"),
    [
        ({"user_id": torch.tensor([1, 2]), "hour": torch.tensor([1])}, {}, {}, "has 1 rows, others have 2"),
        ({"user_id": torch.tensor([1])}, {"city": ["a", "b"]}, {}, "column city has 2 rows, others have 1"),
        ({"tags": torch.tensor([1, 2, 3])}, {}, {"tags": torch.tensor([1, 1])}, "do not add up"),
        ({"tags": torch.tensor([1])}, {}, {"tags": torch.tensor([2, -1])}, "negative length in column tags"),
    ],
)
def test_inputs_that_do_not_fit_together_are_refused(exported: Exported, numbers, texts, lengths, message) -> None:
    with pytest.raises(Exception, match=message):
        exported.loaded(numbers, texts, lengths)


def test_the_encoded_entry_takes_what_training_saw(exported: Exported) -> None:
    encoded = exported.small.encoded
    names = tuple(f.name for f in exported.layout.members["student"].inputs.embedded)
    batch = next(iter(Reader(encoded, ("test",), Selection((*names, "price"))).in_order(64)))
    found = exported.loaded.encoded(batch.serving.ids_FB, [], [], [], batch.serving.floats_BN)
    expected = exported.loaded.logits(*bare.tensors(exported.raw.slice(0, 64), exported.inputs))
    assert torch.equal(found, expected)


def test_the_file_holds_the_student_alone(exported: Exported) -> None:
    path = exported.folder / "student" / "student.pt"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
        content = b"".join(archive.read(name) for name in names)
    assert not [name for name in names if name.endswith("debug_pkl")]
    assert not [word for word in [*PRIVILEGED, "in_cart", "teacher"] if word.encode() in content]
    assert b"/" + b"work" not in content and b"site-packages" not in content
    own = sum(v.numel() for k, v in exported.parameters.items() if k.startswith(("student.", "tables.student.")))
    cuts = len(exported.small.encoded.fitted.columns["price_band"].cuts)
    corrections = len(exported.manifest["outputs"])
    assert exported.manifest["parameters"] == own + cuts + corrections


def test_the_same_student_is_written_as_the_same_bytes(exported: Exported, tmp_path: Path) -> None:
    exported.write(tmp_path / "again")
    for name in ("student.pt", "golden.parquet", "manifest.json"):
        assert (tmp_path / "again" / name).read_bytes() == (exported.folder / "student" / name).read_bytes()


def test_an_artefact_verifies_where_recdistill_cannot_be_imported(exported: Exported) -> None:
    result = artefact.verify(exported.folder / "student")
    assert result["ok"], result
    assert set(result["checks"]) == {
        "files", "no_privilege", "parameters", "golden", "one_by_one", "empty", "missing", "bare",
    }  # fmt: skip


def test_the_bare_interpreter_really_forbids_the_packages() -> None:
    import subprocess
    import sys

    script = f"import sys; sys.path.insert(0, {str(Path(bare.__file__).parent)!r}); import bare\n"
    script += "sys.meta_path.insert(0, bare._Forbid())\nimport torchrec"
    done = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "torchrec cannot be imported here" in done.stderr


def damaged(exported: Exported, folder: Path, damage: str) -> Path:
    target = folder / damage
    shutil.copytree(exported.folder / "student", target)
    manifest = json.loads((target / "manifest.json").read_text())
    if damage == "golden":
        table = pq.read_table(target / "golden.parquet")
        place = table.column_names.index("score")
        pq.write_table(
            table.set_column(place, "score", pa.array(table["score"].to_numpy() + 1e-6)), target / "golden.parquet"
        )
    elif damage == "no_privilege":
        manifest["withheld"].append(bare.withheld_hash("price"))  # as if a column that serves were privileged
    elif damage == "parameters":
        manifest["parameters"] -= 1
    elif damage == "files":
        manifest["files"]["student.pt"] = "0" * 64
    (target / "manifest.json").write_text(json.dumps(manifest))
    return target


@pytest.mark.parametrize("damage", ["golden", "no_privilege", "parameters", "files"])
def test_each_alarm_of_verify_rings(exported: Exported, tmp_path: Path, damage: str) -> None:
    result = artefact.verify(damaged(exported, tmp_path, damage))
    assert not result["ok"]
    assert not result["checks"][damage]["ok"]


def test_a_planted_name_is_refused_at_export(exported: Exported, tmp_path: Path) -> None:
    exported.student.singles[0].source, kept = "dwell_ms", exported.student.singles[0].source
    try:
        with pytest.raises(ExportError, match="names \\['dwell_ms'\\]"):
            exported.write(tmp_path / "leak")
    finally:
        exported.student.singles[0].source = kept
    assert list(tmp_path.iterdir()) == []


def test_a_column_called_like_a_word_of_the_code_or_a_value_is_no_false_alarm(
    exported: Exported, tmp_path: Path
) -> None:
    manifest = {"inputs": exported.inputs, "outputs": ["purchase"]}
    words = ["weight", "city_1", "dwell_ms"]
    artefact.write(exported.student, tmp_path / "a", manifest=manifest, golden=exported.raw, withheld=words)
    made = json.loads((tmp_path / "a" / "manifest.json").read_text())
    assert made["withheld"] == [bare.withheld_hash("dwell_ms")]


def test_a_member_that_reads_privileged_columns_cannot_be_exported(exported: Exported) -> None:
    teacher = next(m for m in exported.plan.members if m.name == "teacher")
    with pytest.raises(VisibilityError, match="export of 'teacher': reads 'dwell_ms'"):
        exported.build(teacher)


def test_negatives_left_out_of_the_log_are_corrected_for(exported: Exported) -> None:
    thinned = exported.build(keep_rate=0.25)
    plain = exported.student.logits(*bare.tensors(exported.raw, exported.inputs))
    corrected = thinned.logits(*bare.tensors(exported.raw, exported.inputs))
    odds = torch.exp(plain.double()) * 0.25  # four times as many negatives as the log shows
    assert torch.allclose(torch.exp(corrected.double()), odds, rtol=1e-5)


@pytest.mark.parametrize("before", ['"line\\n"', '"a \\"quoted\\" word"', '"\\\\"'])
def test_a_name_in_the_code_is_found_behind_escaped_characters(tmp_path: Path, before: str) -> None:
    archive = tmp_path / "student.pt"
    with zipfile.ZipFile(archive, "w") as content:
        content.writestr("student/code/__torch__.py", f'f = {before}; g = uninitialized; h = "dwell_ms"')
    data, code = bare.words(archive)
    assert b"dwell_ms" in data and b"uninitialized" in code and b"uninitialized" not in data


def test_a_folder_without_an_artefact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="holds no readable artefact"):
        artefact.load(tmp_path)
    with pytest.raises(ExportError, match="cannot be verified"):
        artefact.verify(tmp_path)


def test_lists_texts_and_separators_go_in_raw(tmp_path: Path, group: None) -> None:
    """Every input kind at once, against the encoded log; the marketplace has neither lists nor floats as keys."""
    from recdistill.data.encode import encode
    from recdistill.distill.compile import compile_job
    from recdistill.spec.features import FeatureSpec
    from recdistill.spec.job import Job
    from recdistill.training.fit import build_cast
    from recdistill.training.play import play
    from recdistill.training.reading import reader_of

    rng = np.random.default_rng(0)
    n = 300
    frame = pl.DataFrame(
        {
            "item": rng.integers(0, 9, n),
            "kind": pl.Series(rng.integers(0, 4, n).astype(float)).set(pl.Series(rng.random(n) < 0.1), None),
            "name": rng.choice(["ann", "bob", "", "çé"], n),
            "tags": [",".join(rng.choice(["a", "b", "c"], rng.integers(0, 4))) for _ in range(n)],
            "seen": pl.Series(
                [rng.integers(0, 12, rng.integers(0, 5)).tolist() for _ in range(n)], dtype=pl.List(pl.Int64)
            ),
            "price": rng.normal(0, 5, n),
            "y": rng.integers(0, 2, n),
        }
    )
    frame.write_parquet(tmp_path / "log.parquet")
    spec = FeatureSpec.model_validate(
        {
            "serving": {
                "item": {"type": "id", "min_count": 1},
                "kind": "categorical",
                "name": {"type": "categorical", "hash": 50},
                "tags": {"type": "list", "separator": ","},
                "seen": {"type": "list", "vocabulary": "item", "max_length": 3, "pool": "sum"},
                "price": {"type": "numeric", "clip": [-3, 3], "scale": "minmax"},
                "band": {"type": "numeric", "column": "price", "buckets": 5},
            },
            "post_event": {"y": "binary"},
        }
    )
    encoded = encode(spec, str(tmp_path / "log.parquet"), tmp_path / "encoded")
    raw = {
        "spec": "-", "log": "-", "label": "y", "controls": {"none": "not compared here"},
        "members": {"student": {"net": {"deepfm": {"mlp": [8]}}, "dim": 4, "serve": True}},
        "phases": [{"steps": 3, "terms": ["bce(student.logit, y)"]}], "train": {"batch": 64, "table_std": 0.3},
    }  # fmt: skip
    plan = compile_job(Job.model_validate(raw), spec)
    cast = build_cast(plan, Job.model_validate(raw).train, encoded, seed=0)
    checkpoint.save(cast, tmp_path / "final")
    student = serving_student(
        plan.student,
        plan.members,
        cast.layout,
        spec,
        encoded.fitted,
        checkpoint.read(tmp_path / "final"),
        negative_keep_rate=1.0,
    )
    inputs = describe_inputs(plan.student.serving, spec, encoded.fitted)
    assert {e["name"]: (e["kind"], e["list"]) for e in inputs} == {
        "item": ("integer", False), "kind": ("float", False), "name": ("text", False), "tags": ("text", False),
        "seen": ("integer", True), "price": ("float", False),
    }  # fmt: skip
    rows = pa.concat_tables(
        raw_batches(spec, str(tmp_path / "log.parquet"), {}, "test", [e["name"] for e in inputs], 1000)
    )
    found = artefact.scripted(student)(*bare.tensors(rows, inputs))
    batch = next(iter(reader_of(plan, encoded, ("test",)).in_order(1000)))
    answer = play(cast, ["student"], batch)["student"]
    assert torch.equal(found, torch.sigmoid(answer.logits_BK[:, 0]))
    assert isinstance(encoded.fitted, FittedSpec) and len(found) > 20
