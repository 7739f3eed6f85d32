"""Numbers, metrics and paths as a report says them."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from recdistill.evaluation.report.figures import known

NBSP = "\N{NO-BREAK SPACE}"
PLACE = re.compile(r"https?://\S*|(?<![\w.<])(?:[A-Za-z][\w+.-]+://|~?/|[A-Za-z]:\\|\\\\)[^\s'\",;:()]*[^\s'\",;:().]")


def num(value: object, digits: int = 4, *, signed: bool = False) -> str:
    """A number with a true minus sign; a dash where it is not known.

    Example:
        >>> num(0.04321, signed=True), num(-2, 0), num(12345, 0), num(None)
        ('+0.0432', '−2', '12,345', '–')
    """
    if not isinstance(value, int | float) or not math.isfinite(value):
        return "–"
    return f"{value:{'+' if signed else ''},.{digits}f}".replace("-", "−")


def counted(number: int, what: str) -> str:
    """A number of things.

    Example:
        >>> counted(1, "seed"), counted(1200, "row")
        ('1 seed', '1,200 rows')
    """
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def rows_of(splits: Mapping[str, int]) -> str:
    """The rows of each split that has some.

    Example:
        >>> rows_of({"train": 1234, "valid": 56, "test": 78, "left_out": 0})
        'train 1,234, valid 56, test 78 rows'
    """
    return ", ".join(f"{name.replace('_', ' ')} {rows:,}" for name, rows in splits.items() if rows) + " rows"


def options_of(options: object) -> str:
    """The options of a net.

    Example:
        >>> options_of({"layers": [64, 32], "norm": "batch"}), options_of([64, 32])
        ('layers=64·32 norm=batch', '64·32')
    """
    if isinstance(options, Mapping):
        return " ".join(f"{name}={options_of(value)}" for name, value in options.items())
    return "·".join(map(str, options)) if isinstance(options, list | tuple) else str(options)


def percent(value: object, digits: int = 0) -> str:
    """A share as a percentage."""
    text = num(value * 100 if isinstance(value, int | float) else None, digits)
    return text if text == "–" else f"{text}{NBSP}%"


def metric_title(metric: object) -> str:
    """What a metric is called; without a name it is the AUC.

    Example:
        >>> metric_title("recall@20"), metric_title(None)
        ('Recall@20', 'AUC')
    """
    name, _, cut = str(metric or "auc").partition("@")
    called = {"recall": "Recall", "hr": "Hit rate", "coverage": "Coverage"}.get(name, name.upper())
    return f"{called}@{cut}" if cut else called


def p_value(value: object) -> str:
    """A p-value as an equation: ``= 0.012``, or ``< 0.001``."""
    return "< 0.001" if isinstance(value, int | float) and value < 0.001 else f"= {num(value, 3)}"


def size(value: object) -> str:
    """Bytes in the unit that reads best."""
    if not isinstance(value, int | float):
        return "–"
    power = min(3, int(math.log(max(value, 1), 1024)))
    return f"{num(value / 1024**power, 1 if power else 0)} {('bytes', 'KiB', 'MiB', 'GiB')[power]}"


def between(ends: object, digits: int = 4, *, signed: bool = False, scale: float = 1) -> str:
    """An interval in words; empty where an end is not known."""
    if not isinstance(ends, Sequence) or len(known(ends)) != 2:
        return ""
    return " to ".join(num(end * scale, digits, signed=signed) for end in ends)


def discreet(value: Any) -> Any:
    """The value without places of this machine: of an absolute path or an address only the last part remains.

    Example:
        >>> discreet({"run": "/srv/ann/runs/p6", "note": "see /etc/hosts and jobs/a.yaml"})
        {'run': '…/p6', 'note': 'see …/hosts and jobs/a.yaml'}
    """
    if isinstance(value, dict):
        return {discreet(key): discreet(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [discreet(entry) for entry in value]
    if not isinstance(value, str):
        return value
    # A value that is a path as a whole may hold spaces; inside a sentence a path ends at the first one.
    if PLACE.match(value) and ": " not in value:
        return _last_part(value)
    return PLACE.sub(lambda found: _last_part(found[0]), value)


def _last_part(path: str) -> str:
    """The last part of a path or address; links of the web are no places of this machine."""
    return path if path.startswith(("http://", "https://")) else "…/" + re.split(r"[/\\]", path.rstrip("/\\"))[-1]
