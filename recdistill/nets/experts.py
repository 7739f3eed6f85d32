"""Experts: small nets from a student's vector to a teacher's, and a gate that chooses among them by the teacher's."""

# Shapes: B rows, S width of the student, T width of the teacher, E experts.

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError


class Experts(nn.Module):
    """What the loss `experts` compares: the answers of all experts and how much each weighs.

    The gate reads the teacher's vector. It chooses softly by the Gumbel-softmax of its logits, more and more sharply as
    the temperature falls, so that each expert becomes responsible for a part of the vectors.

    Args:
        student: S.
        teacher: T.
        count: E.

    Source: DE, Kang et al., 2020, section 3.1.
    Departure: none.
    """

    def __init__(self, student: int, teacher: int, *, count: int = 5) -> None:
        super().__init__()
        if count < 1:
            raise TrainingError(f"experts: count must be at least 1, found {count}")
        middle = (student + teacher) // 2
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(student, middle), nn.ReLU(), nn.Linear(middle, teacher)) for _ in range(count)
        )
        self.gate = nn.Linear(teacher, count)

    def forward(
        self, student_BS: Tensor, teacher_BT: Tensor, uniform_BE: Tensor | None = None, temperature: float = 1.0
    ) -> tuple[Tensor, Tensor]:
        """The answers of the experts, (B, E, T), and their weights, (B, E), which add up to 1.

        Args:
            student_BS: the student's vectors.
            teacher_BT: the teacher's vectors, which the gate reads.
            uniform_BE: numbers in [0, 1) for the Gumbel noise; without them PyTorch's generator is used. None is drawn
                in eval mode.
            temperature: of the choice, > 0.
        """
        answers: list[Tensor] = []
        for expert in self.experts:
            answers.append(expert(student_BS))
        logit_BE = torch.log_softmax(self.gate(teacher_BT), 1)
        if self.training:
            drawn = torch.rand_like(logit_BE) if uniform_BE is None else uniform_BE.to(logit_BE.dtype)
            tiny = torch.finfo(logit_BE.dtype).tiny
            exponential_BE = (-torch.log(drawn.clamp(min=tiny))).clamp(min=tiny)
            logit_BE = logit_BE - torch.log(exponential_BE)
        return torch.stack(answers, 1), torch.softmax(logit_BE / temperature, 1)
