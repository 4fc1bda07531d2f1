"""Line and scatter plots as inline SVG: no library, no script, readable in light and dark.

Colours, strokes and fonts are classes of `report.css`, so one image follows the reader's theme. Values that are not
finite (and, on a logarithmic axis, not positive) interrupt a line instead of breaking the plot.
"""

import html
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, SupportsFloat

import numpy as np

WIDTH, HEIGHT = 720, 340
LEFT, RIGHT, TOP, BOTTOM = 84, 16, 12, 54  # room for the larger text of narrow screens
ASIDE = 7  # pixels between points of several series at the same x
NUM_COLOURS = 6  # of the style sheet; dashes tell further series apart
MAX_POINTS = 800  # of a drawn line; more than pixels can show

Values = Sequence[SupportsFloat] | np.ndarray


class Markup(str):
    """Text that is HTML already. Every other string is escaped where it enters a page."""

    __slots__ = ()


class Series(NamedTuple):
    """One line or set of points."""

    name: str
    x: Values
    y: Values
    low: Values | None = None  # interval around y: a band, or whiskers of points
    high: Values | None = None
    labels: Sequence[str] = ()  # written beside points
    style: Literal["line", "faint", "points", "steps"] = "line"
    is_set_apart: bool = False  # diamonds instead of dots, dashes instead of a line


class Axis(NamedTuple):
    """A scale from data to pixels, and its ticks."""

    to_pixels: Callable[[np.ndarray], np.ndarray]
    ticks: Sequence[float]


def escape(text: Any) -> Markup:
    """Text as markup; markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text)))


def smooth(y: Values, window: SupportsFloat) -> np.ndarray:
    """Exponential moving average with a memory of `window` values, without the usual bias towards the start.

    Values that are not finite are left out of the average.
    """
    decay, mean, weight = 1 - 1 / max(float(window), 1.0), 0.0, 0.0
    result = np.empty(len(y))
    for i, value in enumerate(np.asarray(y, np.float64)):
        if np.isfinite(value):
            mean, weight = decay * mean + (1 - decay) * value, decay * weight + (1 - decay)
        result[i] = mean / weight if weight else math.nan
    return result


def pareto_front(x: Values, y: Values) -> np.ndarray:
    """Indices, by rising x, of the points that no other beats: smaller x (cost) and larger y (quality)."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    best, front = -math.inf, []
    for i in np.lexsort((-y, x)):
        if y[i] > best:
            best = y[i]
            front.append(i)
    return np.asarray(front, np.int64)


def draw(
    series: Sequence[Series],
    *,
    x_label: str = "",
    y_label: str = "",
    log_x: bool = False,
    log_y: bool = False,
) -> Markup:
    """A figure of one or several series with axes, ticks and, for two or more names, a legend."""
    parts = [_clean(s, log_x, log_y) for s in series]
    xs = np.concatenate([np.empty(0), *(np.asarray(s.x) for s in parts)])
    ys = np.concatenate([np.empty(0), *(np.asarray(v) for s in parts for v in (s.y, s.low, s.high) if v is not None)])
    xs, ys = xs[np.isfinite(xs)], ys[np.isfinite(ys)]
    if not len(xs) or not len(ys):
        return Markup('<figure class="plot"><p class="empty">Nothing to plot yet: no finite values.</p></figure>')
    x_axis = _axis(xs, LEFT, WIDTH - RIGHT, log_x, padding=0.0 if all(s.style != "points" for s in parts) else 0.06)
    y_axis = _axis(ys, HEIGHT - BOTTOM, TOP, log_y, padding=0.05)
    body = _frame(x_axis, y_axis, x_label, y_label)
    drawn = zip(parts, _colours(parts), _aside(parts), strict=True)
    body += "".join(_series(s, colour, aside, x_axis, y_axis) for s, colour, aside in drawn)
    names = ", ".join(s.name for s in parts if s.name)
    title = html.escape(f"{y_label or 'values'} against {x_label or 'x'}: {names}")
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{title}">{body}</svg>'
    return Markup(f'<figure class="plot">{_legend(parts)}{svg}</figure>')


def number(value: SupportsFloat) -> str:
    """A short number: 0.25, 1500, 20k, 3M, 1e-05."""
    value = float(value)
    size = abs(value)
    if size >= 1e4:
        for limit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
            if limit <= size < 1e3 * limit:
                return f"{value / limit:.4g}{suffix}"
    return f"{value:.4g}"


def _clean(series: Series, log_x: bool, log_y: bool) -> Series:
    """The series as float arrays, with NaN for what cannot be drawn."""

    def values(data: Values, is_log: bool) -> np.ndarray:
        array = np.asarray(data, np.float64)
        return np.where(np.isfinite(array) & (array > 0 if is_log else True), array, np.nan)

    x, y = values(series.x, log_x), values(series.y, log_y)
    if x.shape != y.shape:
        raise ValueError(f"series {series.name!r} has {x.size} x but {y.size} y values")
    low, high = (None if bound is None else values(bound, log_y) for bound in (series.low, series.high))
    return series._replace(x=x, y=y, low=low, high=high)


def _axis(values: np.ndarray, start: int, end: int, is_log: bool, padding: float) -> Axis:
    scale = np.log10 if is_log else np.asarray
    low, high = float(scale(values.min())), float(scale(values.max()))
    margin = padding * (high - low) or (0.0 if high > low else 0.1 * abs(low) or 0.5)
    low, high = low - margin, high + margin

    def to_pixels(data: np.ndarray) -> np.ndarray:
        return start + (scale(data) - low) / (high - low) * (end - start)

    return Axis(to_pixels, _log_ticks(low, high) if is_log else _ticks(low, high))


def _ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten, at most `most` intervals."""
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * m for m in (1, 2, 5, 10) if (high - low) / (unit * m) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12 - math.floor(math.log10(step))) for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten, with 2 and 5 between them where there are few; equal steps within less than a decade."""
    if high - low < 0.7:
        return [tick for tick in _ticks(10**low, 10**high) if tick > 0]
    every = math.ceil((high - low) / 8)
    factors = (1, 2, 5) if high - low < 3 else (1,)
    powers = range(math.floor(low), math.ceil(high) + 1, every)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in factors]
    return [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]


def _frame(x_axis: Axis, y_axis: Axis, x_label: str, y_label: str) -> str:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    parts = []
    for tick, y in zip(y_axis.ticks, y_axis.to_pixels(np.asarray(y_axis.ticks)), strict=True):
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{right}"/>')
        parts.append(f'<text class="tick end" x="{LEFT - 8}" y="{y + 4:.1f}">{number(tick)}</text>')
    for tick, x in zip(x_axis.ticks, x_axis.to_pixels(np.asarray(x_axis.ticks)), strict=True):
        parts.append(f'<path class="axis" d="M{x:.1f} {bottom}v5"/>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{bottom + 21}">{number(tick)}</text>')
    parts.append(f'<path class="axis" d="M{LEFT} {bottom}H{right}"/>')
    parts.append(f'<text class="label mid" x="{(LEFT + right) / 2}" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    middle = (TOP + bottom) / 2
    parts.append(f'<text class="label mid" transform="translate(18 {middle}) rotate(-90)">{escape(y_label)}</text>')
    return "".join(parts)


def _series(series: Series, classes: str, aside: np.ndarray, x_axis: Axis, y_axis: Axis) -> str:
    x, y = x_axis.to_pixels(np.asarray(series.x)) + aside, y_axis.to_pixels(np.asarray(series.y))
    bounds = None
    if series.low is not None and series.high is not None:
        bounds = y_axis.to_pixels(np.asarray(series.low)), y_axis.to_pixels(np.asarray(series.high))
    if series.style == "points":
        return _points(series, classes, x, y, bounds)
    band = ""
    if bounds is not None:
        outline = np.concatenate([x, x[::-1]]), np.concatenate([bounds[0], bounds[1][::-1]])
        band = f'<path class="band {classes}" d="{_path(*outline, "line")}Z"/>'
    dash = " dashed" if series.is_set_apart and "dashed" not in classes else ""
    return f'{band}<path class="line {classes}{dash}" d="{_path(*_thin(x, y), series.style)}"/>'


def _aside(series: Sequence[Series]) -> list[np.ndarray]:
    """Pixels that each point moves aside, so that points of several series at the same x stand side by side."""
    moves = [np.zeros(len(s.x)) for s in series]
    rivals = [i for i, s in enumerate(series) if s.style == "points"]
    for i in rivals:
        for j, x in enumerate(np.asarray(series[i].x)):
            here = [k for k in rivals if x in np.asarray(series[k].x)]
            moves[i][j] = ASIDE * (here.index(i) - (len(here) - 1) / 2) if here else 0.0
    return moves


def _path(x: np.ndarray, y: np.ndarray, style: str) -> str:
    """Move and line commands; a gap wherever a coordinate is NaN."""
    commands, pen_is_down = [], False
    for i, j in zip(x, y, strict=True):
        if not (np.isfinite(i) and np.isfinite(j)):
            pen_is_down = False
            continue
        if pen_is_down and style == "steps":
            commands.append(f"H{i:.1f}V{j:.1f}")
        else:
            commands.append(f"{'L' if pen_is_down else 'M'}{i:.1f} {j:.1f}")
        pen_is_down = True
    return "".join(commands)


def _points(
    series: Series, classes: str, x: np.ndarray, y: np.ndarray, bounds: tuple[np.ndarray, np.ndarray] | None
) -> str:
    parts = []
    for i in np.flatnonzero(np.isfinite(x) & np.isfinite(y)).tolist():
        if bounds is not None and np.isfinite([bounds[0][i], bounds[1][i]]).all():
            parts.append(f'<path class="line {classes}" d="M{x[i]:.1f} {bounds[0][i]:.1f}V{bounds[1][i]:.1f}"/>')
        label = series.labels[i] if i < len(series.labels) else ""
        exact = f"{series.name} {label}: {number(series.x[i])}, {number(series.y[i])}".strip()
        parts.append(_mark(series, classes, x[i], y[i], f"<title>{escape(exact)}</title>"))
        if label and bounds is not None and np.isfinite(bounds[1][i]):
            parts.append(
                f'<text class="tick note mid" x="{x[i]:.1f}" y="{bounds[1][i] - 5:.1f}">{escape(label)}</text>'
            )
        elif label:
            is_far_right = x[i] > WIDTH - RIGHT - 7 * len(label) - 12
            side, dx = ("end", -9) if is_far_right else ("", 9)
            parts.append(
                f'<text class="tick note {side}" x="{x[i] + dx:.1f}" y="{y[i] - 6:.1f}">{escape(label)}</text>'
            )
    return "".join(parts)


def _mark(series: Series, classes: str, x: float, y: float, title: str = "") -> str:
    """A dot, or the diamond of a series that is set apart."""
    if series.is_set_apart:
        return f'<path class="dot {classes}" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6Z">{title}</path>'
    return f'<circle class="dot {classes}" cx="{round(x, 1):g}" cy="{round(y, 1):g}" r="4.5">{title}</circle>'


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most `MAX_POINTS` points: of every stretch the lowest and the highest, so that spikes stay. Gaps stay too."""
    if len(x) <= MAX_POINTS:
        return x, y
    kept = []
    for stretch in np.array_split(np.arange(len(x)), MAX_POINTS // 2):
        finite = stretch[np.isfinite(y[stretch])]
        ends = (stretch[0],) if not len(finite) else (finite[y[finite].argmin()], finite[y[finite].argmax()])
        kept.extend(sorted(set(ends)))
    return x[kept], y[kept]


def _colours(series: Sequence[Series]) -> list[str]:
    """Classes of each series; a faint one has the colour of the next that is not, whose background it is."""
    colours, index = [], 0
    for s in series:
        dash = " dashed" if (index // NUM_COLOURS) % 2 else ""
        colours.append(f"c{index % NUM_COLOURS}{dash}{' faint' if s.style == 'faint' else ''}")
        index += s.style != "faint"
    return colours


def _legend(series: Sequence[Series]) -> str:
    keys = []
    for s, colour in zip(series, _colours(series), strict=True):
        if s.name and s.style != "faint":
            dash = " dashed" if s.is_set_apart and "dashed" not in colour else ""
            line = f'<path class="line {colour}{dash}" d="M1 6H23"/>'
            mark = _mark(s, colour, 12.0, 6.0) if s.style == "points" else line
            key = f'<svg class="key" viewBox="0 0 24 12" aria-hidden="true">{mark}</svg>'
            keys.append(f"<li>{key}{escape(s.name)}</li>")
    return f'<ul class="legend">{"".join(keys)}</ul>' if len(keys) > 1 else ""
