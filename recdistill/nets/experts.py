"""Experts: small nets from a student's vector to a teacher's, and a gate that reads the teacher's."""

# Shapes: B rows, S width of the student, T width of the teacher, E experts.

import torch
from torch import Tensor, nn

from recdistill.errors import TrainingError
from recdistill.nets.inputs import Inputs, Outputs, Scorer


class Experts(Scorer):
    """What stands behind the signal ``experts``: the answer of each expert, and a gate over them.

    Args:
        inputs: two fields, the student's vector and behind it the teacher's, which the gate alone reads.
        labels: E, as many as the gate has values.

    Raises:
        TrainingError: there are not two fields.

    Source: DE, Kang et al., 2020, section 3.1: one hidden layer, half as wide as both vectors together.
    """

    def __init__(self, inputs: Inputs, labels: int) -> None:
        super().__init__()
        if len(inputs.fields) != 2:
            names = [field.name for field in inputs.fields]
            raise TrainingError(f"experts: read a student's vector and a teacher's, found {names}; name both, alone")
        self.student, self.teacher = (field.width for field in inputs.fields)
        middle = (self.student + self.teacher) // 2
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(self.student, middle), nn.ReLU(), nn.Linear(middle, self.teacher))
            for _ in range(labels)
        )
        self.gate = nn.Linear(self.teacher, labels)

    def forward(self, embed_BE: Tensor) -> Outputs:
        """The logarithm of each expert's share, (B, E); the hidden taps are their answers, each (B, T)."""
        student_BS, teacher_BT = embed_BE[:, : self.student], embed_BE[:, self.student :]
        answers: list[Tensor] = []
        for expert in self.experts:
            answers.append(expert(student_BS))
        return Outputs(torch.log_softmax(self.gate(teacher_BT), 1), answers, embed_BE, [])
