"""Nets without parameters, which put together what other members answer."""

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Inputs, Outputs

CERTAIN = 1e-6  # a mean probability is kept this far from 0 and 1 before it becomes a logit


class Average(nn.Module):
    """The mean of the probabilities behind the logits that it reads, as a logit; nothing of it is trained."""

    def __init__(self, inputs: Inputs, labels: int) -> None:
        super().__init__()
        if any(field.embedded for field in inputs.fields) or inputs.width % labels:
            raise TrainingError(
                f"average: reads logits of other members, {labels} of each, and no columns; found "
                f"{[field.name for field in inputs.fields]}; write `view: []` and `inputs: [a.logit, b.logit]`"
            )
        self.labels = labels
        self.certain = CERTAIN

    def forward(self, embed_BE: Tensor) -> Outputs:
        """One logit for each row and label."""
        logits_BMK = embed_BE.reshape(embed_BE.shape[0], embed_BE.shape[1] // self.labels, self.labels)
        hidden: list[Tensor] = []
        attention: list[Tensor] = []
        return Outputs(torch.logit(torch.sigmoid(logits_BMK).mean(1), self.certain), hidden, embed_BE, attention)
