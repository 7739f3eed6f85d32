"""Search over edits: a policy proposes, a trial is trained and judged, the policy learns from the reward.

Every trial is a training of its own, with its own tables, optimizers and artefact; this loop only knows decisions and
rewards.
"""

# Shapes: N decisions, K choices of each.

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from recdistill.errors import TrainingError

Decision = tuple[object, ...]  # what may be chosen at one place


@dataclass(frozen=True)
class Trial:
    """One proposal and what came of it."""

    chosen: tuple[object, ...]
    reward: float


@dataclass(frozen=True)
class Found:
    """The best trial, and all of them in order."""

    best: Trial
    trials: tuple[Trial, ...]


@dataclass
class Reinforce:
    """Independent choices whose probabilities follow the reward.

    ``theta += rate (reward - baseline) grad log p(chosen)``, with a moving average of rewards as the baseline.

    Args:
        trials: how many proposals are tried.
        rate: step size of the logits.
        decay: of the baseline.
        seed: of the proposals.

    Source: REINFORCE, Williams, 1992, equation 11; T4, N2N Learning, Ashok et al., 2018, for its use on architectures.
    Departure: one table of logits for each decision instead of a recurrent controller, so that a search of a few dozen
        trials can learn anything at all.
    """

    trials: int = 20
    rate: float = 1.0
    decay: float = 0.8
    seed: int = 0
    logits: list[Tensor] = field(default_factory=list)

    def search(self, decisions: Sequence[Decision], trial: Callable[[tuple[object, ...]], float]) -> Found:
        """The best choice of all decisions.

        Args:
            decisions: what may be chosen at each place.
            trial: trains and judges a proposal; a finite reward, larger is better. A proposal that was tried before is
                not trained again.

        Raises:
            TrainingError: there is nothing to decide, or a reward is not finite.
        """
        if not decisions or not all(decisions):
            raise TrainingError(f"search: needs decisions with choices, found {list(decisions)}")
        generator = torch.Generator().manual_seed(self.seed)
        self.logits = [torch.zeros(len(choices), dtype=torch.float64) for choices in decisions]
        known: dict[tuple[int, ...], float] = {}
        history, baseline = [], math.nan
        for _ in range(self.trials):
            places = tuple(int(torch.multinomial(each.softmax(0), 1, generator=generator)) for each in self.logits)
            chosen = tuple(choices[k] for choices, k in zip(decisions, places, strict=True))
            if places not in known:
                known[places] = float(trial(chosen))
            reward = known[places]
            if not math.isfinite(reward):
                raise TrainingError(f"search: the reward of {chosen} is {reward}; judge trials by finite numbers")
            history.append(Trial(chosen, reward))
            baseline = reward if math.isnan(baseline) else baseline
            for logits_K, k in zip(self.logits, places, strict=True):
                gradient_K = -logits_K.softmax(0)
                gradient_K[k] += 1
                logits_K += self.rate * (reward - baseline) * gradient_K
            baseline = self.decay * baseline + (1 - self.decay) * reward
        return Found(max(history, key=lambda each: each.reward), tuple(history))


def compression_reward(parameters: int, before: int, auc: float, teacher_auc: float) -> float:
    """``C (2 - C) A / A_teacher`` with the compression ``C = 1 - parameters / before``.

    Source: T4, N2N Learning, Ashok et al., 2018, section 3.3: the first factor prefers compression, with less and less
        to gain from more of it, the second keeps the quality.
    Departure: AUC above chance instead of accuracy.
    """
    saved = 1 - parameters / before
    return saved * (2 - saved) * (auc - 0.5) / (teacher_auc - 0.5)
