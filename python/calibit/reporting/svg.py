"""SVG written by hand: a few shapes, a linear scale, ticks that fall on round numbers.

Figures carry class names, not colours: the style sheet of the page decides, so one drawing serves
light and dark screens and paper. Everything is escaped here, once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape

Attributes = Mapping[str, str | float]


@dataclass(frozen=True)
class Scale:
    """Linear map from data [low, high] to pixels [start, end]."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """Pixel position of a value; values outside the range are clamped to its ends."""
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


def ticks(low: float, high: float, *, target: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) inside [low, high], about `target`."""
    span = high - low
    if not (math.isfinite(span) and span > 0):
        return [low]
    rough = span / max(1, target)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * unit for unit in (1, 2, 5, 10) if power * unit >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_digits(values: Iterable[float]) -> int:
    """Decimals needed to tell neighbouring ticks apart."""
    ordered = sorted(values)
    steps = [b - a for a, b in itertools.pairwise(ordered) if b > a]
    return max(0, -math.floor(math.log10(min(steps)) + 1e-9)) if steps else 0


def _attribute(value: str | float) -> str:
    if isinstance(value, str):
        return escape(value, quote=True)
    return f"{value:.1f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def element(name: str, attributes: Attributes, content: str = "") -> str:
    """One element; `content` must be markup already (text goes through `text`)."""
    fields = "".join(f' {key}="{_attribute(value)}"' for key, value in attributes.items())
    return f"<{name}{fields}>{content}</{name}>" if content else f"<{name}{fields}/>"


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line of class `style`."""
    return element("line", {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "class": style})


def rect(x: float, y: float, width: float, height: float, style: str, tip: str = "") -> str:
    """A rectangle of class `style`; `tip` is shown on hover."""
    box: Attributes = {"x": x, "y": y, "width": width, "height": height, "class": style}
    return element("rect", box, _tip(tip))


def circle(x: float, y: float, radius: float, style: str, tip: str = "") -> str:
    """A circle of class `style`; `tip` is shown on hover."""
    return element("circle", {"cx": x, "cy": y, "r": radius, "class": style}, _tip(tip))


def path(points: Iterable[tuple[float, float]], style: str, *, closed: bool = False) -> str:
    """A polyline through pixel positions; `closed` returns to the start."""
    steps = [f"{_attribute(float(x))} {_attribute(float(y))}" for x, y in points]
    if not steps:
        return ""
    return element("path", {"d": "M" + "L".join(steps) + ("Z" if closed else ""), "class": style})


def text(x: float, y: float, content: str, style: str, *, anchor: str = "middle") -> str:
    """Text of class `style`, escaped; `anchor` is start, middle or end."""
    place: Attributes = {"x": x, "y": y, "class": style, "text-anchor": anchor}
    return element("text", place, escape(content))


def vertical_text(x: float, y: float, content: str, style: str) -> str:
    """Text that reads upwards, centred on the position."""
    turn = f"rotate(-90 {_attribute(x)} {_attribute(y)})"
    place: Attributes = {"x": x, "y": y, "class": style, "text-anchor": "middle", "transform": turn}
    return element("text", place, escape(content))


def figure(width: int, height: int, parts: Iterable[str], *, label: str) -> str:
    """A whole drawing; `label` is what a screen reader says in its place."""
    frame: Attributes = {
        "viewBox": f"0 0 {width} {height}",
        "role": "img",
        "aria-label": label,
        "class": "figure",
        "preserveAspectRatio": "xMidYMid meet",
    }
    return element("svg", frame, "".join(parts))


def _tip(tip: str) -> str:
    return f"<title>{escape(tip)}</title>" if tip else ""
