"""One self-contained HTML page: figures, samples, scores and the command that made them.

    sections = {
        "Run": [report.facts({"steps": 5000, "seed": 0}), report.command("python -m experiments.scenes")],
        "Loss": [plots.draw([plots.Series("train", steps, loss)], x_label="step", y_label="loss", log_y=True)],
        "Samples": [report.images(images, prompts, zoom=4)],
        "Scores": [report.scores([report.Score("counting", 0.81, 0.74, 0.87, chance=0.2)])],
    }
    atomic.write("report.html", report.page("Scenes", sections))

A page has no script and refers to nothing outside itself: images are embedded, and its content security policy
forbids the network. Text is escaped on the way in: a prompt cannot become markup, only what these functions return is.
"""

import base64
import io
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nova_jax.evaluation.plots import Markup, escape, number

STYLE = pathlib.Path(__file__).with_name("report.css").read_text(encoding="utf-8")
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class Score(NamedTuple):
    """A rate between 0 and 1 with its confidence interval."""

    name: str
    value: float
    low: float
    high: float
    chance: float | None = None  # what guessing gets
    num_samples: int | None = None
    is_total: bool = False  # set off from its parts


def page(title: str, sections: Mapping[str, Iterable[Any]], *, subtitle: str = "") -> str:
    """The whole document.

    Args:
        title: heading and window title.
        sections: heading -> parts; markup is placed as it is, any other text becomes a paragraph.
        subtitle: one sentence under the title.
    """
    anchors = {heading: f"s{i}-{_slug(heading)}" for i, heading in enumerate(sections)}
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for heading, anchor in anchors.items())
    body = "".join(
        f'<section id="{anchors[heading]}"><h2>{escape(heading)}</h2>{"".join(map(_part, parts))}</section>'
        for heading, parts in sections.items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{STYLE}</style></head>\n"
        f'<body><header><h1>{escape(title)}</h1><p class="subtitle">{escape(subtitle)}</p>'
        f"{f'<nav>{links}</nav>' if len(anchors) > 3 else ''}</header>\n<main>{body}</main></body></html>\n"
    )


def facts(values: Mapping[str, Any]) -> Markup:
    """A table of names and values; nested mappings (a config, `environment.describe()`) become dotted names."""
    rows = "".join(f"<tr><th>{escape(name)}</th><td>{_value(value)}</td></tr>" for name, value in _flat(values))
    return Markup(f'<div class="scroll"><table class="facts"><tbody>{rows}</tbody></table></div>')


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> Markup:
    """Rows under a header; floats are shortened, and columns of numbers aligned right."""
    rows = [list(row) for row in rows]
    is_numeric = [all(map(_is_number, column)) for column in zip(*rows, strict=True)] or [False] * len(header)
    head = "".join(_cell(name, is_right, "th") for name, is_right in zip(header, is_numeric, strict=True))
    body = "".join(f"<tr>{''.join(map(_cell, row, is_numeric))}</tr>" for row in rows)
    return Markup(f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>')


def scores(values: Iterable[Score]) -> Markup:
    """A table of rates with bars: value, interval as a whisker, chance level as a dotted line."""
    rows = "".join(_score_row(score) for score in values)
    head = '<th>score</th><th class="num">value</th><th class="num">95 % interval</th><th class="num">chance</th>'
    head += '<th class="num">n</th><th class="bar"><span class="soft">0 to 1</span></th>'
    return Markup(
        f'<div class="scroll"><table class="scores"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def images(
    images: Iterable[np.ndarray],
    captions: Iterable[str] | None = None,
    *,
    zoom: int = 1,
    verdicts: Iterable[bool | None] | None = None,
) -> Markup:
    """A grid of images with captions; several frames play in a loop.

    Args:
        images: uint8, (h, w, c) or (f, h, w, c); 1, 3 or 4 channels.
        captions: one per image.
        zoom: page pixels per image pixel, without blur.
        verdicts: whether each image is right, shown beside its caption; None: not judged.

    Raises:
        ValueError: an image is not uint8 of such a shape, or the numbers of items differ.
    """
    images = list(images)
    captions = [""] * len(images) if captions is None else captions
    verdicts = [None] * len(images) if verdicts is None else verdicts
    figures = (_figure(p, c, zoom, v) for p, c, v in zip(images, captions, verdicts, strict=True))
    return Markup(f'<div class="images">{"".join(figures)}</div>')


def command(text: str) -> Markup:
    """A shell command; one click selects all of it."""
    return Markup(f'<pre class="command">{escape(text)}</pre>')


def _part(part: Any) -> str:
    return part if isinstance(part, Markup) else f"<p>{escape(part)}</p>"


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _value(value: Any) -> Markup:
    return escape(number(float(value)) if isinstance(value, (float, np.floating)) else value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _cell(value: Any, is_right: bool, tag: str = "td") -> str:
    opening = f'{tag} class="num"' if is_right else tag
    return f"<{opening}>{_value(value)}</{tag}>"


def _score_row(score: Score) -> str:
    chance = "" if score.chance is None else f"{score.chance:.3f}"
    count = "" if score.num_samples is None else f"{score.num_samples:,}"
    numbers = (f"{score.value:.3f}", f"{score.low:.3f} to {score.high:.3f}", chance, count)
    cells = "".join(f'<td class="num">{text}</td>' for text in numbers)
    kind = ' class="total"' if score.is_total else ""
    return f'<tr{kind}><th>{escape(score.name)}</th>{cells}<td class="bar">{_bar(score)}</td></tr>'


def _bar(score: Score) -> str:
    value, low, high = (100 * min(max(v, 0.0), 1.0) for v in (score.value, score.low, score.high))
    guess = "" if score.chance is None else f'<path class="axis guess" d="M{100 * score.chance:.1f} 1V19"/>'
    return (
        '<svg viewBox="0 0 100 20" preserveAspectRatio="none" aria-hidden="true" class="c0">'
        f'<rect class="band" x="0" y="4" width="{value:.1f}" height="12"/>{guess}'
        f'<path class="line" d="M{low:.1f} 10H{high:.1f}M{value:.1f} 4V16"/></svg>'
    )


def _figure(image: np.ndarray, caption: str, zoom: int, verdict: bool | None) -> str:
    png = _png(image)
    height, width = image.shape[-3:-1]
    mark = {True: '<span class="good">right</span> ', False: '<span class="bad">wrong</span> ', None: ""}[verdict]
    return (
        f'<figure style="width:{max(zoom * width, 72)}px"><img alt="{escape(caption)}" width="{zoom * width}" '
        f'height="{zoom * height}" src="data:image/png;base64,{png}">'
        f"<figcaption>{mark}{escape(caption)}</figcaption></figure>"
    )


def _png(image: np.ndarray) -> str:
    """Base64 of a PNG; of an animated one at 8 frames a second when there are several frames."""
    if image.dtype != np.uint8 or image.ndim not in (3, 4) or image.shape[-1] not in (1, 3, 4):
        raise ValueError(f"an image must be uint8 (h, w, c) or (f, h, w, c), not {image.dtype} {image.shape}")
    frames = image if image.ndim == 4 else image[None]
    first, *others = (Image.fromarray(f[..., 0] if f.shape[-1] == 1 else f) for f in frames)
    buffer = io.BytesIO()
    motion = {"save_all": True, "append_images": others, "duration": 125, "loop": 0} if others else {}
    first.save(buffer, "PNG", **motion)
    return base64.b64encode(buffer.getvalue()).decode()
