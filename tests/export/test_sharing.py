"""A student that borrows tables is exported with the very tables that it was trained on."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from recdistill.data.log import raw_batches
from recdistill.data.scores import read_logits
from recdistill.distill.layout import lay_out
from recdistill.export import artefact, bare
from recdistill.export.build import describe_inputs, serving_student
from recdistill.training import checkpoint
from tests.conftest import Small


def exported_logits(small: Small, folder: Path, overrides: dict) -> tuple[np.ndarray, np.ndarray]:
    """The artefact's logits of the test rows, and those of training."""
    small.fit(folder / "fit", overrides)
    plan, _, _ = small.plan(overrides)
    spec, fitted = small.encoded.spec, small.encoded.fitted
    layout = lay_out(plan.members, spec, fitted.tables)
    parameters = checkpoint.read(folder / "fit" / "checkpoints" / "final")
    student = serving_student(
        plan.student, plan.members, layout, spec, fitted, parameters, negative_keep_rate=spec.negative_keep_rate
    )
    inputs = describe_inputs(plan.student.serving, spec, fitted)
    names = [entry["name"] for entry in inputs]
    rows = pa.concat_tables(raw_batches(spec, str(small.log), {}, "test", names, 1000))
    scripted = artefact.scripted(student)
    numbers, texts, lengths = bare.tensors(rows, inputs)
    found = scripted.logits(numbers, texts, lengths).detach().numpy()
    return found, read_logits(folder / "fit" / "scores" / "student.test.parquet")[:, 0]


def test_columns_that_stay_apart_are_not_taken_from_the_other_member(small: Small, tmp_path: Path) -> None:
    overrides = {
        "members.student.share": {"tables": "teacher", "own": ["city", "device"]},
        "members.teacher.share": {},
        "train.tables": {"rowwise_adagrad": {"lr": 0.5}},
    }
    served, trained = exported_logits(small, tmp_path, overrides)
    assert np.abs(served - trained).max() < 1e-5 < np.std(trained)


def test_each_table_may_come_from_another_member(small: Small, tmp_path: Path) -> None:
    overrides = {
        "members.student.share": {"tables": {"user_id": "teacher", "item_id": "third"}},
        "members.teacher.share": {},
        "members.third": {"net": {"mlp": [4]}, "dim": 4},
        "phases.0.terms.3": "bce(third.logit, label)",
        "train.tables": {"rowwise_adagrad": {"lr": 0.5}},
    }
    overrides["phases.0.terms"] = [
        "bce(student.logit, label)", "bce(teacher.logit, label)", "soft(student.logit, teacher.logit)",
        overrides.pop("phases.0.terms.3"),
    ]  # fmt: skip
    served, trained = exported_logits(small, tmp_path, overrides)
    assert np.abs(served - trained).max() < 1e-5 < np.std(trained)
    plan, _, _ = small.plan(overrides)
    layout = lay_out(plan.members, small.encoded.spec, small.encoded.fitted.tables)
    homes = {feature.column: bank for feature, bank in layout.members["student"].lookups}
    assert homes["user_id"] == "teacher" and homes["item_id"] == "third" and homes["city"] == "student"
