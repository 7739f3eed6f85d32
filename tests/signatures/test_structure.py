"""Signatures run a row's own job through the real engine: none has a training loop or a net of its own."""

import ast
from pathlib import Path

import pytest
import torch
from torch import nn

OPTIMIZERS = {name for name, value in vars(torch.optim).items() if isinstance(value, type)}
LAYERS = {name for name, value in vars(nn).items() if isinstance(value, type)}
OURS = {"dense_optimizers", "optimizers"}
FORBIDDEN = {"backward", "optim"} | OPTIMIZERS | LAYERS | OURS

WRONG = [
    "def train(loss):\n    loss.backward()",
    "import torch\nstep = torch.optim.SGD",
    "from torch import optim",
    "from torch.optim import Adam as Stepper",
    "from recdistill.training.optimizers import dense_optimizers",
    "from torch import nn\nclass Student(nn.Module): ...",
    "from torch.nn import Module as Net",
    "from torch import nn\nstudent = nn.Linear(2, 1)",
]


def words_of(node: ast.AST) -> set[str]:
    """The names that a piece of source mentions; texts and comments do not count."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return {name}
        case ast.ImportFrom(module=module, names=names):
            return {*(module or "").split("."), *(alias.name for alias in names)}
        case ast.Import(names=names):
            return {part for alias in names for part in alias.name.split(".")}
    return set()


def check_has_no_loop_or_net_of_its_own(source: str) -> None:
    words = set().union(*(words_of(node) for node in ast.walk(ast.parse(source))))
    assert not words & FORBIDDEN, f"a signature changes a job by overrides only, but this one has {words & FORBIDDEN}"


FILES = sorted(path for path in Path(__file__).parent.glob("*.py") if path.name != Path(__file__).name)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_signature_has_no_training_loop_and_no_net_of_its_own(path: Path) -> None:
    check_has_no_loop_or_net_of_its_own(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("source", WRONG)
def test_a_loop_or_a_net_is_noticed(source: str) -> None:
    with pytest.raises(AssertionError):
        check_has_no_loop_or_net_of_its_own(source)
