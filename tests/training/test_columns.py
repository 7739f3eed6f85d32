"""Sequences, weighted lists and widths of their own, from the log through training to the artefact."""

import io
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
import yaml

from recdistill.data.encode import encode
from recdistill.data.encoded import EncodedLog
from recdistill.distill.compile import Plan, compile_job, problems_of
from recdistill.distill.schedule import Now
from recdistill.errors import SpecError
from recdistill.export.bare import tensors
from recdistill.export.build import describe_inputs, serving_student
from recdistill.spec.job import Job
from recdistill.spec.load import parse_job
from recdistill.spec.train import TableOptimizer, TableStep
from recdistill.training.audit import audit
from recdistill.training.engine import Engine
from recdistill.training.fit import build_cast
from recdistill.training.reading import reader_of
from recdistill.training.sharding import process_group

SPEC = {
    "time": "now",
    "split": {"column": "part", "train": [0, 0], "valid": [1, 1], "test": [2, 2]},
    "serving": {
        "item": {"type": "id", "min_count": 1},
        "city": {"type": "categorical"},
        "clicks": {"type": "sequence", "vocabulary": "item", "times": "then", "max_length": 4},
        "seen": {"type": "list", "vocabulary": "item", "pool": "sum"},
        "tags": {"type": "list", "weights": "strengths"},
        "price": {"type": "numeric"},
    },
    "post_event": {"y": "binary", "after": {"type": "sequence", "hash": 20}},
}
MEMBERS = {
    "student": {
        "net": {"mlp": [8]},
        "dim": 4,
        "dims": {"city": 8},
        "pool": {"clicks": {"target_attention": {"target": "item", "layers": [4]}}},
        "serve": True,
    },
    "teacher": {
        "net": {"mlp": [8]},
        "dim": 4,
        "view": ["serving", "privileged"],
        "share": {"tables": "student"},
        "pool": {"clicks": {"self_attention": {"heads": 2}}, "after": "mean"},
    },
}
TERMS = ["bce(student.logit, y)", "bce(teacher.logit, y)", "soft(student.logit, teacher.logit)"]


@dataclass(frozen=True)
class Bench:
    raw: pl.DataFrame
    log: EncodedLog
    plan: Plan
    job: Job
    engine: Engine


def lists(rng: np.random.Generator, rows: int, longest: int, high: int, *, empty: bool = True) -> list[list[int]]:
    return [rng.integers(1, high, rng.integers(0 if empty else 1, longest + 1)).tolist() for _ in range(rows)]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    folder, rows, rng = tmp_path_factory.mktemp("columns"), 400, np.random.default_rng(0)
    clicks, tags = lists(rng, rows, 6, 30), lists(rng, rows, 3, 9)
    now = np.arange(rows) * 1000 + 10**6
    gaps = [np.sort(rng.integers(0, 10**6, len(c)))[::-1] for c in clicks]
    raw = pl.DataFrame(
        {
            "item": rng.integers(1, 30, rows), "city": rng.integers(0, 5, rows), "clicks": clicks, "now": now,
            "then": [(t - gap).tolist() for t, gap in zip(now, gaps, strict=True)],
            "seen": lists(rng, rows, 3, 30), "tags": tags, "strengths": [rng.random(len(t)).tolist() for t in tags],
            "price": rng.normal(size=rows), "after": lists(rng, rows, 4, 50), "y": rng.integers(0, 2, rows),
            "part": np.repeat([0, 1, 2], [300, 50, 50]),
        }
    )  # fmt: skip
    raw.write_parquet(folder / "log.parquet")
    (folder / "spec.yaml").write_text("")
    described: dict[str, Any] = {
        "spec": "-", "log": str(folder / "log.parquet"), "label": "y", "privileged": ["after"], "members": MEMBERS,
        "phases": [{"steps": 5, "terms": TERMS}], "controls": {"none": "a test of columns"},
        "train": {"batch": 64, "table_std": 0.3, "tables": {"sgd": {"lr": 0.5}}, "dense": {"sgd": {"lr": 0.1}}},
    }  # fmt: skip
    (folder / "spec.yaml").write_text(yaml.safe_dump(SPEC))
    job, spec = parse_job({**described, "spec": str(folder / "spec.yaml")}, "test", check=problems_of)
    log = encode(spec, str(folder / "log.parquet"), folder / "encoded")
    plan = compile_job(job, spec)
    with process_group():
        cast = build_cast(plan, job.train, log, seed=0)
        yield Bench(raw, log, plan, job, Engine(cast, reader_of(plan, log, ("train",)), None, job.train, 0))


def test_one_step_is_that_of_plain_embeddings(bench: Bench) -> None:
    """Against plain autograd over unpooled embeddings, with the heads as they are."""
    cast, batch = bench.engine.cast, next(iter(bench.engine.train.in_order(64)))
    rows = {
        (bank, table): shard.clone().requires_grad_()
        for bank in cast.layout.banks
        for table, shard, _ in cast.tables.shards(bank)
    }
    dims = {table: weight.shape[1] for (_, table), weight in rows.items()}
    assert dims == {"city": 8, "tags": 4, "item": 4, "clicks/gaps": 4, "after": 4}
    weight = {table: w for (_, table), w in rows.items()}
    view, after = batch.serving, batch.privileged
    assert after is not None

    def pooled(name: str, table: str, *, mean: bool) -> torch.Tensor:
        bag = view.bag(name)
        found, start = [], 0
        for length in bag.lengths_B.tolist():
            vectors = weight[table][bag.values_L[start : start + length]]
            strengths = torch.ones(length) if bag.weights_L is None else bag.weights_L[start : start + length]
            total = (vectors * strengths.unsqueeze(1)).sum(0)
            found.append(total / strengths.sum().clamp(min=1e-12) if mean else total)
            start += length
        return torch.stack(found)

    def tokens(bag: Any, *tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        flat = sum(w[ids] for w, ids in tables)
        longest = max(1, int(bag.lengths_B.max()))
        parts = torch.split(flat, bag.lengths_B.tolist())
        return torch.stack([torch.nn.functional.pad(p, (0, 0, 0, longest - len(p))) for p in parts])

    fields = {
        "city": weight["city"][view.ids(("city",))[0]],
        "tags": pooled("tags", "tags", mean=True),
        "item": weight["item"][view.ids(("item",))[0]],
        "seen": pooled("seen", "item", mean=False),
        "price": view.floats(("price",)),
    }
    bag, later = view.bag("clicks"), after.bag("after")
    clicks = tokens(bag, (weight["item"], bag.values_L), (weight["clicks/gaps"], bag.gaps_L))
    extra = tokens(later, (weight["after"], later.values_L))
    logit = {}
    for name in ("student", "teacher"):
        layout = cast.layout.members[name]
        flat = torch.cat([fields[f.name] for f in layout.inputs.fields if f.name in fields], 1)
        sequences = {"clicks": (clicks, bag.lengths_B), "after": (extra, later.lengths_B)}
        given = [sequences[s.column] for s in layout.sequences]
        logit[name] = cast.heads[name](flat, [t for t, _ in given], [n for _, n in given]).logits_BK[:, 0]
    hard = torch.nn.functional.binary_cross_entropy_with_logits
    label = batch.labels["y"]
    total = hard(logit["student"], label) + hard(logit["teacher"], label)
    total = total + hard(logit["student"], torch.sigmoid(logit["teacher"].detach()))
    expected = dict(zip(rows, torch.autograd.grad(total, list(rows.values())), strict=True))
    bench.engine.step(bench.plan.phases[0], {"log": batch}, Now(0, 5), [[]])
    moved = 0
    for bank in cast.layout.banks:
        for table, shard, _ in cast.tables.shards(bank):
            assert torch.allclose(shard, rows[bank, table] - 0.5 * expected[bank, table], atol=1e-6), (bank, table)
            moved += int(bool(expected[bank, table].any()))
    assert moved == len(rows)


def test_the_artefact_scores_as_training_does(bench: Bench) -> None:
    bench.engine.run(0, bench.plan.phases[0], steps=5)
    cast, spec, fitted = bench.engine.cast, bench.log.spec, bench.log.fitted
    student = serving_student(
        bench.plan.student,
        bench.plan.members,
        cast.layout,
        spec,
        fitted,
        cast.state(["student"]),
        negative_keep_rate=1.0,
    )
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(student), saved)
    saved.seek(0)
    reader = reader_of(bench.plan, bench.log, ("test",))
    scores, _, _ = bench.engine.score(["student"], reader)
    raw = bench.raw.filter(pl.col("part") == 2)
    inputs = describe_inputs(bench.plan.student.serving, spec, fitted)
    given = tensors(raw.to_arrow(), inputs)
    with torch.no_grad():
        found = torch.jit.load(saved).logits(*given)
    assert float((found - torch.from_numpy(scores["student"][:, 0])).abs().max()) <= 1e-5
    shuffled = raw.with_columns(pl.col("clicks").list.reverse())
    with torch.no_grad():
        saved.seek(0)
        other = torch.jit.load(saved).logits(*tensors(shuffled.to_arrow(), inputs))
    assert not torch.allclose(other, found)  # the gaps tell the order


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"dims": {"nobody": 8}}, "members.student.dims.nobody: the member reads no such column"),
        ({"dims": {"price": 8}}, "'price' is a plain number"),
        ({"dims": {"seen": 8}}, "'seen' is looked up in the table of 'item'; name that one"),
        ({"pool": {"tags": "mean"}}, "members.student.pool.tags: the member reads no such sequence"),
        ({"pool": {"clicks": "meen"}}, "unknown pooling 'meen'; did you mean 'mean'"),
        ({"pool": {"clicks": "target_attention"}}, "target_attention needs 'target'"),
        ({"pool": {"clicks": {"self_attention": {"head": 2}}}}, "no option 'head'; known: heads, positions"),
        ({"dims": {"city": 6}}, "multiple of 4"),
        (
            {
                "net": {"two_tower": {"item": ["item", "city"], "mlp": [4]}},
                "pool": {"clicks": {"target_attention": {"target": "item"}}},
            },
            "members.student.pool.clicks: the target 'item' stands in the other tower",
        ),
    ],
)
def test_mistakes_in_widths_and_poolings_are_named(bench: Bench, member: dict[str, Any], message: str) -> None:
    raw = bench.job.model_dump(mode="json", exclude_defaults=True)
    raw["members"] = {"student": {"net": {"mlp": [8]}, "serve": True, "dim": 4, **member}}
    raw["phases"] = [{"steps": 5, "terms": TERMS[:1]}]
    raw["privileged"] = []
    with pytest.raises(SpecError, match=message):
        parse_job(raw, "test", check=problems_of)


def test_rare_values_are_pulled_back_in_proportion_to_their_rarity(bench: Bench) -> None:
    """Two steps without any loss on a vector but the penalty: the pull times the number of occurrences is the same."""
    settings = bench.job.train.model_copy(update={"tables": TableOptimizer(sgd=TableStep(lr=1.0, l2_rare=0.5))})
    cast = build_cast(bench.plan, settings, bench.log, seed=0)
    engine = Engine(cast, reader_of(bench.plan, bench.log, ("train",)), None, settings, 0)
    batch = next(iter(engine.train.in_order(64)))
    before = {(b, t): shard.clone() for b in cast.layout.banks for t, shard, _ in cast.tables.shards(b)}
    (phase,) = bench.plan.phases
    (update,) = phase.updates
    faint = replace(update, terms=tuple(replace(term, scale=1e-30) for term in update.terms))
    engine.step(replace(phase, updates=(faint,)), {"log": batch}, Now(0, 5), [[]])
    for table, columns in {"city": ["city"], "item": ["item", "clicks"]}.items():
        bank = "student" if table == "city" else "student-tokens"
        (shard,) = (s for t, s, _ in cast.tables.shards(bank) if t == table)
        counts = bench.log.fitted.counts(table)
        assert counts is not None
        view = batch.serving
        ids = torch.cat([view.ids((c,))[0] if c in view.id_names else view.bag(c).values_L for c in columns])
        seen = torch.bincount(ids, minlength=len(counts))
        factor = 1 - 0.5 / 64 * seen / torch.from_numpy(np.maximum(counts, 1))
        factor[:2] = 1  # reserved rows have no count
        expected = before[bank, table] * factor.float().unsqueeze(1)
        assert torch.allclose(shard, expected, atol=1e-6), table
        assert not torch.allclose(shard, before[bank, table], atol=1e-6)


def test_attention_can_be_distilled(bench: Bench) -> None:
    raw = bench.job.model_dump(mode="json", exclude_defaults=True)
    raw["members"]["teacher"]["pool"] = {"clicks": {"target_attention": {"target": "item", "normalise": True}}}
    raw["phases"] = [{"steps": 5, "terms": [TERMS[1], "l2(student.attention.clicks, teacher.attention.clicks)"]}]
    job, spec = parse_job(raw, "test", check=problems_of)
    plan = compile_job(job, spec)
    cast = build_cast(plan, job.train, bench.log, seed=0)
    batch = next(iter(reader_of(plan, bench.log, ("train",)).in_order(64)))
    hint = audit(cast, plan.phases[0], batch)[1]
    assert hint.reaches("student") and not hint.reaches("teacher")
    assert any("pools" in name for name in hint.dense)
    raw["phases"][0]["terms"][1] = "l2(student.attention.tags, teacher.attention.clicks)"
    with pytest.raises(SpecError, match=r"did you mean 'student\.attention\.clicks'"):
        parse_job(raw, "test", check=problems_of)
