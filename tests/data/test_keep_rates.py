"""Leaving out negatives moves the odds of the label that they were left out by, and of no other."""

import numpy as np
import pytest
import torch

from recdistill.data.keep_rates import correction
from recdistill.data.scores import sigmoid
from recdistill.training.play import play
from tests.conftest import Small
from tests.training.bench import LAST, STUDENT, Bench

LABELS = ["purchase", "click"]
TERMS = [f"bce(student.logit.{label}, {label})" for label in LABELS]


def test_the_mean_of_a_thinned_log_becomes_that_of_the_whole() -> None:
    """Two independent labels; a net that knows their shares in the thinned log alone is right about the whole one."""
    rng = np.random.default_rng(0)
    label_2N = rng.random((2, 400_000)) < np.array([[0.2], [0.3]])
    kept_N = label_2N[0] | (rng.random(400_000) < 0.1)
    share_2 = label_2N[:, kept_N].mean(1)
    seen_2 = np.log(share_2 / (1 - share_2)).astype(np.float32)
    assert seen_2[0] > 0  # odds that are ten times too high
    found_2 = sigmoid(seen_2 + correction([0, 1], 0.1))
    assert found_2 == pytest.approx(label_2N.mean(1), abs=0.005)
    assert list(sigmoid(seen_2[::-1] + correction([1, 0], 0.1))) == pytest.approx(list(found_2[::-1]))


def test_scores_correct_the_main_label_alone(small: Small, group: None) -> None:
    phases = [{"steps": 1, "terms": TERMS, **LAST}]
    b = Bench.of(small, {"student": STUDENT}, phases, label=LABELS, train={"negative_keep_rate": 0.25})
    seen = play(b.cast, ["student"], b.batch(512))["student"].logits_BK
    found = b.engine.score(["student"], b.engine.train)[0]["student"][:512]
    expected = seen + torch.tensor([np.log(0.25), 0.0], dtype=torch.float32)
    assert np.allclose(found, expected.numpy(), atol=1e-6)
