"""The pictures of a report, as SVG that stands inside the page.

They are drawn here rather than by a plotting library: text stays text in the page's own font, colours are classes of
its style sheet and so follow light, dark and print, marks tell their numbers, and equal data give equal bytes. What the
eye follows (dots against intervals, three curves, binned rates) needs little more than a linear axis.

Shapes: N rows, R tie runs, K bins that hold rows, P points of a curve.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from recdistill.data.scores import Scored
from recdistill.evaluation.auc import tie_runs
from recdistill.evaluation.calibration import reliability

NARROW, WIDE = 348, 528  # pixels: a phone or a third of the page; half of the page
CURVE_POINTS = 200  # of one ROC or precision-recall curve
FIGURE_POINTS = 2400  # of all learning curves in one picture
ROW = 54  # pixels of one strip

Point = tuple[float, float]


@dataclass(frozen=True)
class System:
    """Something that a report compares, and how pictures draw it.

    Attributes:
        name: its name in the report.
        kind: ``student``, ``member``, ``control`` or ``reference``.
        look: the CSS class that gives its colour and dashes.
        marker: the shape of its marks, a key of `MARKERS`.
        splits: its metrics by split.
    """

    name: str
    kind: str
    look: str
    marker: str
    splits: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Strip:
    """One line of a picture of intervals; numbers that are not known are None."""

    name: str
    words: str
    system: System
    mean: float | None
    interval: Sequence[float | None]
    per_seed: Sequence[float | None]
    unseen: float | None = None


@dataclass(frozen=True)
class Trace:
    """One line of a picture of curves: its segments, and the points to ring."""

    system: System
    segments: Sequence[Sequence[Point]]
    faint: bool = False
    rings: Sequence[Point] = ()


@dataclass(frozen=True)
class Figure:
    """A picture with its words; ``drawings`` holds it once for each width, by CSS class."""

    title: str
    note: str
    drawings: Mapping[str, Markup]
    key: Sequence[tuple[str, Markup]] = ()


@dataclass(frozen=True)
class Axis:
    """A linear axis between two pixels."""

    low: float
    high: float
    start: float
    end: float
    label: str = ""
    signed: bool = False

    def at(self, value: float) -> float:
        """The pixel of a value."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)

    def ticks(self, about: int = 5) -> list[tuple[float, str]]:
        """Round values on the axis with their text.

        Example:
            >>> [text for _, text in Axis(0.66, 0.8, 0, 100).ticks(4)]
            ['0.70', '0.75', '0.80']
        """
        raw = (self.high - self.low) / about
        unit = 10.0 ** math.floor(math.log10(raw))
        step = next(m * unit for m in (1, 2, 5, 10) if m * unit >= raw * (1 - 1e-9))
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        sign = "+" if self.signed else ""
        values = [k * step for k in range(first, last + 1)]
        return [(v, f"{v:{sign if abs(v) > step / 2 else ''},.{digits}f}".replace("-", "−")) for v in values]


def known(values: Iterable[float | None]) -> list[float]:
    """The finite numbers among values."""
    return [float(v) for v in values if v is not None and math.isfinite(v)]


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of values with some room at both ends."""
    low, high = min(values), max(values)
    room = (high - low) * share or max(abs(low), 1.0) * 0.01
    return low - room, high + room


def _diamond(x: float, y: float, r: float) -> str:
    side = f"{1.3 * r:.1f}"
    return f"M{x},{y - 1.3 * r:.1f}l{side},{side}l-{side},{side}l-{side},-{side}z"


MARKERS: Mapping[str, Callable[[float, float, float], str]] = {
    "circle": lambda x, y, r: f"M{x - r:.1f},{y}a{r},{r} 0 1 0 {2 * r},0a{r},{r} 0 1 0 {-2 * r},0z",
    "diamond": _diamond,
    "square": lambda x, y, r: f"M{x - r:.1f},{y - r:.1f}h{2 * r}v{2 * r}h{-2 * r}z",
    "triangle": lambda x, y, r: f"M{x - 1.2 * r:.1f},{y + r:.1f}h{2.4 * r:.1f}l{-1.2 * r:.1f},{-2.1 * r:.1f}z",
}


class Canvas:
    """An SVG picture under construction."""

    def __init__(self, width: int, height: int, title: str = "", description: str = "") -> None:
        size = {"viewBox": f"0 0 {width} {height}", "width": str(width), "height": str(height)}
        self.root = ET.Element("svg", {**size, "role": "img"} if title else {**size, "aria-hidden": "true"})
        if title:
            self.add("title", text=title)
            self.add("desc", text=description)

    def add(self, tag: str, look: str = "", text: str = "", tip: str = "", **attributes: object) -> None:
        """Add an element; ``look`` is its class, ``tip`` what it says under a pointer."""
        named = {name.replace("_", "-"): str(value) for name, value in attributes.items()}
        element = ET.SubElement(self.root, tag, {"class": look, **named} if look else named)
        element.text = text or None
        if tip:
            ET.SubElement(element, "title").text = tip

    def rule(self, look: str, start: Point, end: Point, tip: str = "") -> None:
        """A straight line."""
        self.add("line", look, tip=tip, x1=start[0], y1=start[1], x2=end[0], y2=end[1])

    def path(self, look: str, points: Sequence[Point]) -> None:
        """A line through points."""
        self.add("path", look, d="M" + "L".join(f"{x:g},{y:g}" for x, y in points))

    def mark(self, look: str, marker: str, at: Point, *, size: float = 4, tip: str = "") -> None:
        """A mark of some shape."""
        self.add("path", look, tip=tip, d=MARKERS[marker](*at, size))

    def words(self, look: str, text: str, at: Point, anchor: str = "start") -> None:
        """A line of text."""
        self.add("text", look, text, x=at[0], y=at[1], text_anchor=anchor)

    def axes(self, x: Axis, y: Axis) -> None:
        """Both axes with a light grid; the vertical one is named at its top."""
        for value, text in y.ticks(5):
            self.rule("grid", (x.start, y.at(value)), (x.end, y.at(value)))
            self.words("tick", text, (x.start - 6, y.at(value) + 4), "end")
        self.horizontal(x, y.start, 5)
        self.words("axis", y.label, (2, y.end - 10))

    def horizontal(self, x: Axis, bottom: float, about: int) -> None:
        """The horizontal axis."""
        self.rule("base", (x.start, bottom), (x.end, bottom))
        for value, text in x.ticks(about):
            self.rule("base", (x.at(value), bottom), (x.at(value), bottom + 4))
            self.words("tick", text, (x.at(value), bottom + 17), "middle")
        self.words("axis", x.label, ((x.start + x.end) / 2, bottom + 34), "middle")

    def markup(self) -> Markup:
        """The picture; every text in it is escaped."""
        return Markup(ET.tostring(self.root, encoding="unicode"))


def key(systems: Sequence[System], *, marks: bool) -> list[tuple[str, Markup]]:
    """A sample of the line of each system, with its mark if the picture has marks, and its name."""
    found = []
    for system in systems:
        canvas = Canvas(30, 12)
        canvas.path(f"line {system.look}", [(1, 6), (29, 6)])
        if marks:
            canvas.mark(f"mark {system.look}", system.marker, (15, 6), size=3.5)
        found.append((system.name, canvas.markup()))
    return found


def strips(
    title: str, note: str, rows: Sequence[Strip], label: str, *, references: Mapping[str, float], signed: bool = False
) -> Figure | None:
    """Mean, interval and seeds of each row over one axis, around zero if they are signed; None without numbers."""
    values = known([v for r in rows for v in (r.mean, *r.interval, *r.per_seed)])
    if not values:
        return None
    values += [*references.values(), *([0.0] if signed else [])]
    values += [side * u for u in known(r.unseen for r in rows) for side in (-1, 1)]
    drawings = {
        css: _strips(width, title, rows, Axis(*padded(values), 8, width - 8, label, signed), references)
        for css, width in (("wide", WIDE), ("narrow", NARROW))
    }
    return Figure(title, note, drawings)


def _strips(width: int, title: str, rows: Sequence[Strip], x: Axis, references: Mapping[str, float]) -> Markup:
    head = 16 * len(references) + (6 if references else 0)
    bottom = head + ROW * len(rows) + 2
    canvas = Canvas(width, bottom + 42, title, "; ".join(f"{row.name}: {row.words}" for row in rows))
    about = 5 if width == NARROW else 7
    lanes = [(head + ROW * i + 20, head + ROW * (i + 1) - 4) for i in range(len(rows))]
    for (top, low), row in zip(lanes, rows, strict=True):
        if row.unseen is not None:
            band = (x.at(-row.unseen), x.at(row.unseen))
            canvas.add("rect", "unseen", x=band[0], y=top, width=round(band[1] - band[0], 1), height=low - top)
        for value, _ in x.ticks(about):
            canvas.rule("zero" if x.signed and abs(value) < 1e-12 else "grid", (x.at(value), top), (x.at(value), low))
    _references(canvas, x, references, [(head, head), *lanes])
    for (top, _), row in zip(lanes, rows, strict=True):
        most = max(8, int((width - 7 * len(row.words)) / 7.2))
        canvas.words("name", row.name if len(row.name) <= most else row.name[: most - 1] + "…", (8, top - 6))
        canvas.words("value", row.words, (width - 8, top - 6), "end")
        _strip(canvas, row, x, top)
    canvas.horizontal(x, bottom, about)
    return canvas.markup()


def _references(canvas: Canvas, x: Axis, references: Mapping[str, float], lanes: Sequence[tuple[float, float]]) -> None:
    """Named vertical lines through the lanes, in an order in which no line crosses the name of another."""
    middle = (x.low + x.high) / 2
    in_order = sorted(references.items(), key=lambda item: (item[1] > middle, -abs(item[1] - middle)))
    for i, (name, value) in enumerate(in_order):
        side, anchor = (-5, "end") if value > middle else (5, "start")
        canvas.words("note", f"{name} {value:.4f}", (x.at(value) + side, 11 + 16 * i), anchor)
        for top, low in [(2 + 16 * i, lanes[0][1]), *lanes[1:]]:
            canvas.rule("reference", (x.at(value), top), (x.at(value), low), tip=f"{name} {value:.4f}")


def _strip(canvas: Canvas, row: Strip, x: Axis, top: float) -> None:
    """Interval and mean on one line, the seeds below it, so that no mark hides another."""
    y, ends = top + 10, known(row.interval)
    if len(ends) == 2:
        canvas.rule(f"interval {row.system.look}", (x.at(ends[0]), y), (x.at(ends[1]), y), tip=row.words)
    if row.mean is not None:
        canvas.mark(f"mark {row.system.look}", row.system.marker, (x.at(row.mean), y), size=5, tip=row.words)
    for value in known(row.per_seed):
        canvas.mark(f"seed {row.system.look}", "circle", (x.at(value), y + 13), size=3, tip=f"one seed: {value:.4f}")


def curves(
    title: str,
    note: str,
    traces: Sequence[Trace],
    x: tuple[str, float, float],
    y: tuple[str, float, float],
    *,
    guides: Sequence[tuple[Point, Point]] = (),
    height: int = 330,
) -> Figure:
    """Lines over two axes, with straight guides behind them; x and y give label and range."""
    systems = list({trace.system.name: trace.system for trace in traces}.values())
    names = ", ".join(system.name for system in systems)
    canvas = Canvas(NARROW, height, title, f"{y[0]} against {x[0]} of {names}. {note}")
    across = Axis(x[1], x[2], 46, NARROW - 16, x[0])
    up = Axis(y[1], y[2], height - 44, 26, y[0])
    canvas.axes(across, up)
    for start, end in guides:
        canvas.rule("guide", (across.at(start[0]), up.at(start[1])), (across.at(end[0]), up.at(end[1])))
    for trace in sorted(traces, key=lambda trace: not trace.faint):
        for segment in trace.segments:
            look = f"line {trace.system.look}{' faint' if trace.faint else ''}"
            canvas.path(look, [(across.at(a), up.at(b)) for a, b in segment])
    for trace in traces:
        for a, b in trace.rings:
            tip = f"{trace.system.name}: {b:.4f} at {a:,.0f}"
            canvas.mark(f"ring {trace.system.look}", trace.system.marker, (across.at(a), up.at(b)), tip=tip)
    return Figure(title, note, {"": canvas.markup()}, key(systems, marks=any(trace.rings for trace in traces)))


def thinned(points: Sequence[Point], most: int) -> list[Point]:
    """At most ``most`` of the points, evenly chosen, always with both ends."""
    if len(points) <= most:
        return list(points)
    return [points[i] for i in np.linspace(0, len(points) - 1, most).round().astype(int)]


def roc_points(scored: Scored) -> list[Point]:
    """Share of negatives and of positives above each threshold, at steps of equal length along the curve.

    Example:
        >>> roc_points(Scored(np.arange(4), np.array([0.0, 1, 0, 1]), np.array([1.0, 2, 3, 4])))
        [(0.0, 0.0), (0.0, 0.5), (0.5, 0.5), (0.5, 1.0), (1.0, 1.0)]
    """
    true_R, false_R = _above(scored)
    x_P, y_P = (np.append(0.0, count_R / count_R[-1]) for count_R in (false_R, true_R))
    return _spaced(x_P, y_P, x_P + y_P)


def precision_recall_points(scored: Scored) -> list[Point]:
    """Recall and precision at each threshold, at equal steps of recall."""
    true_R, false_R = _above(scored)
    recall_R = true_R / true_R[-1]
    return _spaced(recall_R, true_R / (true_R + false_R), recall_R)


def has_both_classes(scored: Scored) -> bool:
    """Whether curves of thresholds exist."""
    return 0 < float(scored.label_N.sum()) < len(scored.label_N)


def _above(scored: Scored) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positives and negatives at or above each distinct score, from the highest down, (R,) each."""
    order_N, start_R = tie_runs(scored.logit_N)
    positive_R = np.add.reduceat(scored.label_N[order_N].astype(np.float64), start_R)[::-1]
    size_R = np.diff(start_R, append=len(order_N))[::-1]
    return np.cumsum(positive_R), np.cumsum(size_R - positive_R)


def _spaced(x_P: NDArray[np.float64], y_P: NDArray[np.float64], way_P: NDArray[np.float64]) -> list[Point]:
    """Points at equal steps of a quantity that never falls; all of them if they are few."""
    if len(way_P) > CURVE_POINTS:
        steps = np.linspace(way_P[0], way_P[-1], CURVE_POINTS)
        chosen = np.unique(np.append(np.searchsorted(way_P, steps)[:-1], len(way_P) - 1))
        x_P, y_P = x_P[chosen], y_P[chosen]
    return list(zip(x_P.tolist(), y_P.tolist(), strict=True))


def reliability_figure(scored: Sequence[tuple[System, Scored]], note: str) -> Figure:
    """Observed against predicted rates in 20 bins of equal mass, with the binomial noise of each bin."""
    title = "Reliability"
    tables = [(system, reliability(s.label_N, s.score_N)) for system, s in scored]
    top = padded([0.0, *(v for _, t in tables for v in (t.prob_K.max(), t.rate_K.max()))], 0.05)[1]
    described = "; ".join(f"{s.name} predicts {t.prob_K.min():.3f} to {t.prob_K.max():.3f}" for s, t in tables)
    canvas = Canvas(NARROW, 330, title, f"Observed against predicted rate in bins of equal mass. {described}.")
    x, y = Axis(0, top, 46, NARROW - 16, "predicted rate"), Axis(0, top, 286, 26, "observed rate")
    canvas.axes(x, y)
    canvas.rule("guide", (x.at(0), y.at(0)), (x.at(top), y.at(top)))
    for system, t in tables:
        canvas.path(f"line {system.look} faint", [(x.at(p), y.at(r)) for p, r in zip(t.prob_K, t.rate_K, strict=True)])
        reach_K = 1.96 * np.sqrt(t.rate_K * (1 - t.rate_K) / t.rows_K)
        for p, r, reach, rows in zip(t.prob_K, t.rate_K, reach_K, t.rows_K, strict=True):
            low, high = max(r - reach, 0.0), min(r + reach, top)
            canvas.rule(f"whisker {system.look}", (x.at(p), y.at(low)), (x.at(p), y.at(high)))
            tip = f"{system.name}: predicted {p:.4f}, observed {r:.4f}, {rows:,.0f} rows"
            canvas.mark(f"mark {system.look}", system.marker, (x.at(p), y.at(r)), size=3.5, tip=tip)
    return Figure(title, note, {"": canvas.markup()}, key([system for system, _ in scored], marks=True))
