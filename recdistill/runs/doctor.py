"""Whether the installation works: the versions that belong together, one sharded lookup, one scripted module."""

import importlib.metadata
from collections.abc import Callable

from rich.console import Console

TESTED = {"torch": "2.13", "torchrec": "1.8", "fbgemm-gpu-cpu": "1.8", "fbgemm-gpu": "1.8"}


def show(console: Console) -> bool:
    """Print each check; whether all passed."""
    checks: dict[str, Callable[[], str]] = {"versions": versions, "sharded lookup": lookup, "TorchScript": script}
    passed = True
    for name, check in checks.items():
        try:
            console.print(f"[green]ok[/]    {name}: {check()}", highlight=False)
        except Exception as error:  # whatever is broken, the doctor says so
            passed = False
            console.print(f"[red]BROKEN[/] {name}: {type(error).__name__}: {error}", highlight=False)
    if not passed:
        console.print(
            "Install the tested set: `pip install --no-deps -r requirements-cpu.lock` on a CPU machine, "
            "`pip install recdistill` on a GPU machine."
        )
    return passed


def versions() -> str:
    """The versions of torch, torchrec and fbgemm, which must be a tested triple.

    Raises:
        RuntimeError: one of them is missing or untested.
    """
    found = {}
    for name in TESTED:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    if not any(name.startswith("fbgemm") for name in found):
        raise RuntimeError("neither fbgemm-gpu nor fbgemm-gpu-cpu is installed")
    wrong = {name: version for name, version in found.items() if not version.startswith(TESTED[name])}
    if wrong or not {"torch", "torchrec"} <= found.keys():
        raise RuntimeError(f"found {found}; tested are {TESTED}")
    return ", ".join(f"{name} {version}" for name, version in found.items())


def lookup() -> str:
    """One training step of a sharded table in a group of one process."""
    import torch

    from recdistill.data.batch import Batch, View
    from recdistill.distill.layout import Bank, Feature, Layout
    from recdistill.spec.train import TableOptimizer, TableStep
    from recdistill.training.sharding import Tables, process_group

    bank = Bank("doctor", (Feature("id", "id", "serving"),), {"id": 10}, {"id": 4})
    with process_group():
        optimizer = TableOptimizer(rowwise_adagrad=TableStep())
        tables = Tables(Layout({"doctor": bank}, {}), optimizer, std=0.1, seed=0)
        view = View("serving", torch.tensor([[2, 3]]), ("id",), torch.zeros(2, 0), ())
        found = tables.look_up("doctor", Batch(torch.arange(2), view, {}, torch.ones(2)), train=True)
        found.leaf_BW.sum().backward()
        found.push()
    return "a table of 10 rows answered and learned"


def script() -> str:
    """A scripted module answers like the eager one."""
    import warnings

    import torch

    from recdistill.data.transforms.rows import IntegerHash
    from recdistill.export.artefact import scripted

    module = IntegerHash(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        same = torch.equal(scripted(module)(torch.arange(5)), module(torch.arange(5)))
    if not same:
        raise RuntimeError("a scripted module answers differently from the eager one")
    return "a scripted module answers like the eager one"
