"""A small feature spec and a small job that are right, for tests that break them in one place."""

import copy

from recdistill.spec.features import FeatureSpec
from recdistill.spec.job import Job
from recdistill.spec.load import assign

SPEC = {
    "row_id": ["user", "time_ms"],
    "time": "time_ms",
    "group": "user",
    "serving": {
        "user": {"type": "id"},
        "item": {"type": "id", "min_count": 3},
        "tags": {"type": "list", "separator": "|", "vocabulary": "category"},
        "category": "categorical",
        "price": {"type": "numeric", "log": True},
        "price_band": {"type": "numeric", "column": "price", "buckets": 8},
    },
    "post_event": {
        "click": "binary",
        "buy": "binary",
        "dwell_ms": {"type": "numeric", "log": True},
        "dwell_band": {"type": "numeric", "column": "dwell_ms", "buckets": 8},
        "next_item": {"type": "id", "vocabulary": "item"},
    },
    "reference": ["production"],
}

JOB = {
    "spec": "spec.yaml",
    "log": "log.parquet",
    "label": "buy",
    "privileged": ["dwell_ms", "click"],
    "members": {
        "student": {"net": {"mlp": [8]}, "serve": True},
        "teacher": {"net": {"mlp": [8]}, "view": ["serving", "privileged"], "share": {"tables": "student"}},
    },
    "phases": [
        {"epochs": 1, "terms": ["bce(student.logit, label)", "bce(teacher.logit, label)"]},
        {"epochs": 1, "terms": ["soft(student.logit, teacher.logit, temperature=2)"]},
    ],
}


def changed(raw, **values):
    """A copy with values at dotted paths, written with two underscores for a dot."""
    return assign(raw, {path.replace("__", "."): value for path, value in values.items()}, "test")


def without(raw, *path):
    """A copy without what lies at a path."""
    copied = copy.deepcopy(raw)
    node = copied
    for part in path[:-1]:
        node = node[part]
    del node[path[-1]]
    return copied


def spec(**values):
    return FeatureSpec.model_validate(changed(SPEC, **values))


def job(**values):
    return Job.model_validate(changed(JOB, **values))
