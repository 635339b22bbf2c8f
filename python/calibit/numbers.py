"""How numbers are printed: one minus sign, one rule for digits, one word for "nothing"."""

from __future__ import annotations

import math
from dataclasses import dataclass
from decimal import ROUND_HALF_UP, Context, Decimal
from typing import TypeGuard

MINUS = "\u2212"
MISSING = "\u2013"
NO_BREAK = "\u00a0"

_WIDE = Context(prec=400)  # the largest double has 309 digits before its point


def _finite(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(float(value))


def fixed(value: float | None, *, digits: int = 1, signed: bool = False, scale: float = 1) -> str:
    """A number with a fixed count of decimals and a true minus sign, halves away from zero.

    Args:
        value: the number, or None where there is none.
        digits: decimals printed.
        signed: also print "+"; a number that rounds to zero carries no sign.
        scale: factor applied first (100 turns a share into percent).

    Returns:
        For example "−1.20", "+0.3"; "–" for None, NaN and infinities.
    """
    if not _finite(value):
        return MISSING
    # 0.0125 and its copies with an error in the last bit are one number: first 12 decimals.
    exact = Decimal(repr(round(abs(float(value) * scale), max(12, digits + 3))))
    text = f"{exact.quantize(Decimal(1).scaleb(-digits), ROUND_HALF_UP, _WIDE):,f}"
    if not text.strip("0.,"):
        return text
    if float(value) < 0:
        return MINUS + text
    return "+" + text if signed else text


def small(value: float | None, *, digits: int = 4, signed: bool = False, scale: float = 1) -> str:
    """A number that is often far below 1, such as a divergence: with a fixed count of decimals
    where they show two digits of it, else two digits and a power of ten.

    Args:
        value: the number, or None where there is none.
        digits: decimals printed.
        signed: also print "+".
        scale: factor applied first.

    Returns:
        For example "0.0031", "3.1e−06"; "0" for 0 alone.
    """
    if not _finite(value):
        return MISSING
    number = float(value) * scale
    if number == 0.0:
        return "0"
    exact = Decimal(repr(abs(number)))
    if exact >= Decimal(1).scaleb(1 - digits):
        return fixed(value, digits=digits, signed=signed, scale=scale)
    rounded = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 1), ROUND_HALF_UP, _WIDE)
    text = f"{float(rounded):.1e}".replace("-", MINUS)
    return (MINUS if number < 0 else "+" if signed else "") + text


def ascii_(text: str) -> str:
    """The text with the hyphen as minus sign, for data files and terminals of any encoding."""
    return text.replace(MINUS, "-").replace(MISSING, "n/a")


def significant(value: float | None, *, digits: int = 3) -> str:
    """A positive quantity with a fixed count of significant digits, never in powers of ten."""
    if not _finite(value):
        return MISSING
    number = float(value)
    if number == 0:
        return "0"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(number))))
    return fixed(number, digits=decimals)


def count(value: float | None) -> str:
    """A whole number with thousands separated by commas."""
    return fixed(value, digits=0)


def interval(
    lower: float | None,
    upper: float | None,
    *,
    digits: int = 1,
    signed: bool = True,
    scale: float = 1,
) -> str:
    """A two-sided interval, "[−2.1, +0.4]"; empty where a bound is missing."""
    return Style(digits, scale, signed).interval(lower, upper)


@dataclass(frozen=True)
class Style:
    """How a quantity is printed: decimals, a factor applied first, whether "+" is shown, and
    whether it may be far below 1 (`small`)."""

    digits: int
    scale: float = 1
    signed: bool = False
    small: bool = False

    def value(self, number: float | None) -> str:
        """The number in this style."""
        show = small if self.small else fixed
        return show(number, digits=self.digits, scale=self.scale, signed=self.signed)

    def interval(self, lower: float | None, upper: float | None) -> str:
        """The interval in this style, "[-2.1, +0.4]"; empty where a bound is missing."""
        if not (_finite(lower) and _finite(upper)):
            return ""
        return f"[{self.value(lower)}, {self.value(upper)}]"


def ratio(value: float | None, *, digits: int = 2) -> str:
    """A factor, "×1.83"."""
    return MISSING if not _finite(value) else "\u00d7" + fixed(value, digits=digits)


def percent(share: float) -> str:
    """A share as percent, "95 %", "99.2 %"."""
    return f"{100 * share:.3g} %"


def size(bytes_: float | None) -> str:
    """Bytes in the unit that reads best (1 MB = 1e6 bytes), three significant digits."""
    if not _finite(bytes_):
        return MISSING
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(float(bytes_)) >= factor:
            return f"{significant(float(bytes_) / factor)} {unit}"
    return f"{count(bytes_)} B"


def duration(seconds: float | None) -> str:
    """A time span in words a person uses: "48 s", "6 min 10 s", "2 h 05 min"."""
    if not _finite(seconds):
        return MISSING
    whole = max(0, round(float(seconds)))
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def p_value(value: float | None) -> str:
    """A p value: "0.018", "< 0.001"."""
    if not _finite(value):
        return MISSING
    return "< 0.001" if float(value) < 0.001 else fixed(value, digits=3)


def plural(number: int, noun: str) -> str:
    """ "1 item", "2 items"."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def join(words: list[str] | tuple[str, ...]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1]))) if words else ""
