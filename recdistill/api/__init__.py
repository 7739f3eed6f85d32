"""The Python API: a job said in Python, in the same words.

    student = Member(mlp([64, 32]), serve=True)
    teacher = Member(mlp([64, 32]), view=serving + privileged, share=tables(student))
    run = fit(
        [student, teacher],
        "log.parquet",
        Phase(
            bce(student.logit, label) * step(1, 0.5, at=0.1),
            bce(teacher.logit, label),
            soft(student.logit, teacher.logit) * step(0, 0.5, at=0.1),
            epochs=3,
        ),
        spec="spec.yaml", predict="buy", know=["dwell"],
    )

What is said here becomes the text of a job, which is checked, trained, compared and exported as any other; the run's
``job.yaml`` holds it. Only Python can bring functions of its own: a loss (`loss`) or a net (`net`).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import yaml

from recdistill.api.expressions import Column, Word
from recdistill.api.job import Member, Phase, Share, Update, View, job
from recdistill.api.run import Run, fit, open_run
from recdistill.distill.combine import SIGNALS
from recdistill.distill.schedule import SCHEDULES
from recdistill.distill.selector import SELECTORS
from recdistill.errors import SpecError
from recdistill.losses import catalog as losses
from recdistill.losses.catalog import LOSSES
from recdistill.nets import catalog as nets
from recdistill.nets.catalog import NETS
from recdistill.spec.names import MARKS

__all__ = [
    "Member", "Phase", "Run", "Update", "column", "fit", "job", "label", "log_q", "loss", "modules", "net", "open_run",
    "own", "popularity", "privileged", "scenario", "serving", "tables", "taken", "to_yaml", "trunk",
]  # fmt: skip

Function = TypeVar("Function", bound=Callable[..., Any])

serving, privileged = View(("serving",)), View(("privileged",))
label, scenario = Column("label"), Column("scenario")
own, taken, log_q, popularity = map(Column, MARKS)


def __getattr__(name: str) -> Any:
    """Every loss, signal, selector and schedule that a term can name is a function here, and every net."""
    for catalog in (LOSSES, SIGNALS, SELECTORS, SCHEDULES):
        if name in catalog:
            return Word(name, catalog)
    if name in NETS:
        return described_net(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *LOSSES, *SIGNALS, *SELECTORS, *SCHEDULES, *NETS])


def loss(function: Function) -> Word:
    """A loss of your own: learner first, then targets, options by keyword, one value per row; to be used as a word.

    Raises:
        SpecError: its name already means something else.
    """
    _refuse_taken("loss", function, losses.BUILT_IN, SCHEDULES)  # what a term is made of
    LOSSES[function.__name__] = function
    return Word(function.__name__, LOSSES)


def net(module: Function) -> Callable[..., dict[str, Any]]:
    """A net of your own: a module built from ``(inputs, outputs, **options)``; to be used as `mlp` is.

    One that ranks, or is otherwise of a kind of its own, says so as a `recdistill.nets.inputs.Scorer`.

    Raises:
        SpecError: its name already means something else.
    """
    _refuse_taken("net", module, nets.BUILT_IN)
    NETS[module.__name__] = module
    return described_net(module.__name__)


def _refuse_taken(kind: str, made: Callable[..., Any], *known: Mapping[str, object]) -> None:
    name = made.__name__
    if any(words.get(name, made) is not made for words in known):
        raise SpecError(f"{kind} {name!r}", ["is a word of this package already; give yours another name"])


def described_net(name: str) -> Callable[..., dict[str, Any]]:
    """A function that describes a net: ``mlp([64, 32])``, ``dcn_v2(mlp=[64])``."""

    def make(layers: Sequence[int] | None = None, /, **options: Any) -> dict[str, Any]:
        if layers is None:
            return {name: options}
        if not options:
            return {name: [*layers]}
        return {name: {"layers" if name == "mlp" else "mlp": [*layers], **options}}

    make.__name__, make.__doc__ = name, NETS[name].__doc__
    return make


def tables(member: Member, **by_column: Member) -> Share:
    """The tables of another member."""
    return Share((("tables", by_column or member),))


def trunk(member: Member) -> Share:
    """The first layers of another member."""
    return Share((("trunk", member),))


def modules(**paths: Member | str) -> Share:
    """Modules of other members by their paths, or as ``"light.net.out"``; write ``__`` for a dot of an own path."""
    return Share((("modules", {path.replace("__", "."): member for path, member in paths.items()}),))


def column(name: str) -> Column:
    """A raw binary column."""
    return Column(name)


def to_yaml(described: Mapping[str, Any]) -> str:
    """A job (`job`) as the text of a job file."""
    return yaml.safe_dump(dict(described), sort_keys=False, allow_unicode=True, width=120)
