"""What a report shows, decided once for the terminal and the page: rows, cells, units, order.

Reads `audit.json` as a plain dictionary, so an old folder can be printed again without a model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from calibit import numbers
from calibit.numbers import Style
from calibit.reporting import wording

Audit = Mapping[str, Any]
Candidate = Mapping[str, Any]
Points = Mapping[str, Mapping[str, Any]]
"""Candidate -> per-item arrays of its comparison (`Comparison.points`)."""


@dataclass(frozen=True)
class Cell:
    """One table cell: the value, its difference to the baseline and the interval of that.

    Attributes:
        value, delta, interval: printed text; empty where there is nothing to print.
        tone: "worse" or "better" where the interval excludes no change, else "".
    """

    value: str
    delta: str = ""
    interval: str = ""
    tone: str = ""


@dataclass(frozen=True)
class Row:
    """One line of the results table, the baseline's cell first.

    Attributes:
        key: metric id.
        label, short: words for the reader, on the page and where room is scarce.
        unit: unit of the value, "" if it is part of the cells.
        delta_unit: unit of the difference, "" without one.
        group: heading under which the row stands.
        cells: baseline, then one cell per candidate.
    """

    key: str
    label: str
    short: str
    unit: str
    delta_unit: str
    group: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Metric:
    """How a measured quantity is printed.

    Attributes:
        key: metric id.
        label, short, group: see `Row`.
        unit, scale, digits: printed value = value * scale with that many decimals.
        delta_unit: unit of the difference.
        better: +1 if more is better, -1 if less is, 0 if neither.
    """

    key: str
    label: str
    short: str
    group: str
    unit: str
    scale: float
    digits: int
    delta_unit: str
    better: int

    @property
    def level(self) -> Style:
        """Style of a value."""
        return Style(self.digits, self.scale)

    @property
    def change(self) -> Style:
        """Style of a difference."""
        return Style(self.digits, self.scale, signed=True)


SIZE, SPEED, ANSWERS, TEXT, ITEMS = "Size", "Speed", "Answers", "Text", "Item by item"

METRICS = (
    Metric("acc", "accuracy", "accuracy", ANSWERS, "%", 100, 1, "points", +1),
    Metric(
        "conf_true",
        "confidence in the right answer",
        "conf_true",
        ANSWERS,
        "%",
        100,
        2,
        "points",
        +1,
    ),
    Metric("ece", "calibration error (ECE)", "ECE", ANSWERS, "%", 100, 2, "points", -1),
    Metric("nll", "NLL of the right answer", "NLL", ANSWERS, "nats", 1, 3, "nats", -1),
)
DETAILS = (
    Metric("conf", "confidence", "confidence", ANSWERS, "%", 100, 2, "points", 0),
    Metric("brier", "Brier score", "Brier", ANSWERS, "", 1, 4, "", -1),
    Metric("entropy", "entropy", "entropy", ANSWERS, "nats", 1, 3, "nats", 0),
)


def tone(estimate: Mapping[str, Any] | None, better: int, *, null: float = 0.0) -> str:
    """ "better" or "worse" if the interval of a difference excludes `null`, else ""."""
    if not estimate or not better or estimate.get("lower") is None or estimate.get("upper") is None:
        return ""
    if estimate["lower"] > null:
        return "better" if better > 0 else "worse"
    if estimate["upper"] < null:
        return "worse" if better > 0 else "better"
    return ""


def succeeded(audit: Audit) -> list[Candidate]:
    """The candidates that were measured, in the order they were asked for."""
    return [row for row in audit["candidates"] if not row.get("error")]


def failed(audit: Audit) -> list[Candidate]:
    """The candidates that could not be measured; each carries its `error`."""
    return [row for row in audit["candidates"] if row.get("error")]


def verdict(one: Candidate) -> str:
    """The verdict on a candidate, `failed` where it could not be measured."""
    return "failed" if one.get("error") else str(one["verdict"]["verdict"])


def alarms(audit: Audit) -> list[str]:
    """A sentence for every check of the self-audit that failed; none of the numbers can then be
    relied on."""
    found = []
    for one in succeeded(audit):
        for check in failed_checks(one):
            first = f", first {check['first']}" if check["first"] is not None else ""
            detail = _named(str(check["detail"]), str(one["scheme"]))
            found.append(f"{one['scheme']}: {check['check']} failed ({detail}{first})")
    return found


def failed_checks(one: Candidate) -> list[Mapping[str, Any]]:
    """The lines of a candidate's self-audit that failed."""
    return [check for check in one["comparison"].get("checks", ()) if not check["passed"]]


def checks(one: Candidate) -> list[tuple[str, str, str, str]]:
    """Every line of a candidate's self-audit: check, outcome, count with the first offender, detail
    with the names of the models."""
    found = []
    for check in one["comparison"].get("checks", ()):
        first = f", first {check['first']}" if check["first"] is not None else ""
        count = numbers.count(check["count"]) + first
        outcome = "pass" if check["passed"] else "FAIL"
        found.append((check["check"], outcome, count, _named(check["detail"], str(one["scheme"]))))
    return found


def _named(detail: str, candidate: str) -> str:
    """The detail of a check with the model's name in place of "a" and "b"."""
    for side, name in (("a: ", "original: "), ("b: ", f"{candidate}: ")):
        if detail.startswith(side):
            return name + detail.removeprefix(side)
    return detail


def rows(audit: Audit, *, details: bool = False) -> list[Row]:
    """The results table of an audit.

    Args:
        audit: the content of `audit.json`.
        details: also the rows only the page has room for.

    Returns:
        Rows in printing order; a quantity that no model has is left out.
    """
    base, measured = audit["baseline"], succeeded(audit)
    chosen = METRICS + DETAILS if details else METRICS
    table = [*_size_rows(base, measured), *_speed_rows(base, measured)]
    table += [_metric_row(metric, base, measured) for metric in chosen]
    table += [*_perplexity_rows(measured), *_item_rows(measured, details=details)]
    return [
        row for row in table if any(cell.value not in ("", numbers.MISSING) for cell in row.cells)
    ]


def _size_rows(base: Candidate, measured: Sequence[Candidate]) -> list[Row]:
    def row(key: str, label: str, short: str, show: Any, *, relative: bool) -> Row:
        first = base["footprint"].get(key)
        cells = [Cell(show(first))]
        for one in measured:
            value = one["footprint"].get(key)
            share = value / first - 1 if relative and value and first else None
            change = numbers.fixed(share, digits=0, signed=True, scale=100)
            cells.append(Cell(show(value), "" if share is None else f"{change}{numbers.NO_BREAK}%"))
        return Row(key, label, short, "", "", SIZE, tuple(cells))

    def bits(value: float | None) -> str:
        return numbers.fixed(value, digits=2)

    return [
        row(
            "bits_per_weight",
            "bits per weight, quantized layers",
            "bits/w layers",
            bits,
            relative=False,
        ),
        row(
            "bits_per_weight_model",
            "bits per weight, whole model",
            "bits/w model",
            bits,
            relative=False,
        ),
        row("bytes_model", "weight memory", "weights", numbers.size, relative=True),
        row("peak_rss", "peak memory of the process", "peak RAM", numbers.size, relative=False),
    ]


def _speed_rows(base: Candidate, measured: Sequence[Candidate]) -> list[Row]:
    found = []
    for key, label in (("decode_tok_s", "decode"), ("prefill_tok_s", "prefill")):
        first = (base.get("speed") or {}).get(key) or {}
        cells = [Cell(numbers.significant(first.get("value")))]
        for one in measured:
            value = ((one.get("speed") or {}).get(key) or {}).get("value")
            cells.append(Cell(numbers.significant(value), *speed_change(base, one, key)))
        found.append(Row(key, label, label, "tok/s", "", SPEED, tuple(cells)))
    return found


def speed_change(base: Candidate, one: Candidate, key: str) -> tuple[str, str]:
    """How many times faster a candidate is, "×1.41", and the interval of that; empty where they
    are not known. Runs recorded without their repeats have the ratio of medians and no interval.
    """
    change = (one.get("speed_change") or {}).get(key) or {}
    if change.get("value") is not None:
        bounds = numbers.interval(change["lower"], change["upper"], digits=2, signed=False)
        return numbers.ratio(change["value"]), bounds
    first, own = (((side.get("speed") or {}).get(key) or {}).get("value") for side in (base, one))
    return (numbers.ratio(own / first), "") if own and first else ("", "")


def _metric_row(metric: Metric, base: Candidate, measured: Sequence[Candidate]) -> Row:
    def value(one: Candidate) -> str:
        number = (one["metrics"].get(metric.key) or {}).get("value")
        return numbers.fixed(number, digits=metric.digits, scale=metric.scale)

    cells = [Cell(value(base))]
    for one in measured:
        delta = one["comparison"]["deltas"].get(metric.key)
        cells.append(_with_delta(value(one), delta, metric))
    return Row(
        metric.key,
        metric.label,
        metric.short,
        metric.unit,
        metric.delta_unit,
        metric.group,
        tuple(cells),
    )


def _with_delta(value: str, delta: Mapping[str, Any] | None, metric: Metric) -> Cell:
    if not delta or delta.get("value") is None:
        return Cell(value)
    return Cell(
        value,
        metric.change.value(delta["value"]),
        metric.change.interval(delta.get("lower"), delta.get("upper")),
        tone(delta, metric.better),
    )


def _perplexity_rows(measured: Sequence[Candidate]) -> list[Row]:
    """One row per text: perplexities, and their ratio as a change in percent."""
    found: dict[str, list[Cell]] = {}
    for place, one in enumerate(measured):
        for text in one["comparison"]["texts"]:
            first = numbers.fixed(text["a"].get("value"), digits=2)
            cells = found.setdefault(text["name"], [Cell(first)])
            cells += [Cell(numbers.MISSING)] * (place + 1 - len(cells))
            cells.append(_ratio_cell(text))
    total = len(measured) + 1
    return [
        Row(
            f"ppl:{name}",
            f"perplexity of {name}",
            "perplexity",
            "",
            "%",
            TEXT,
            tuple(cells + [Cell(numbers.MISSING)] * (total - len(cells))),
        )
        for name, cells in found.items()
    ]


def _ratio_cell(text: Mapping[str, Any]) -> Cell:
    value, ratio = numbers.fixed(text["b"].get("value"), digits=2), text["ratio"]
    if ratio.get("value") is None:
        return Cell(value)
    lower, upper = (None if ratio[end] is None else ratio[end] - 1 for end in ("lower", "upper"))
    change = Style(1, 100, signed=True)
    return Cell(
        value,
        f"{change.value(ratio['value'] - 1)}{numbers.NO_BREAK}%",
        change.interval(lower, upper),
        tone(ratio, -1, null=1.0),
    )


def _item_rows(measured: Sequence[Candidate], *, details: bool) -> list[Row]:
    def row(key: str, label: str, short: str, unit: str, cells: list[Cell]) -> Row:
        return Row(key, label, short, unit, "", ITEMS, (Cell(""), *cells))

    table = [
        row(
            "flips",
            "flips",
            "flips",
            "",
            [_flip_cell(one["comparison"]["flips"]) for one in measured],
        ),
        _divergence_row(measured, "kl_ab", "KL from original", "KL", "nats"),
    ]
    if details:
        label = "JS distance, base 2"
        table.append(_divergence_row(measured, "js_distance", label, "JS distance", ""))
    worst = [_worst_cell(one["comparison"].get("worst_slice")) for one in measured]
    return [
        *table,
        row(
            "worst_slice",
            "largest loss shown in a slice, confidence in the right answer",
            "loss shown in a slice, conf_true",
            "",
            worst,
        ),
    ]


def _flip_cell(flips: Mapping[str, Any]) -> Cell:
    if flips["flips"] is None:
        return Cell(numbers.MISSING)
    lost, won = (
        f"{numbers.count(flips[key])} {word}" for key, word in (("rw", "lost"), ("wr", "won"))
    )
    return Cell(numbers.count(flips["flips"]), lost, won)


def _divergence_row(
    measured: Sequence[Candidate], key: str, label: str, short: str, unit: str
) -> Row:
    cells, style = [Cell("")], Style(4, small=True)
    for one in measured:
        found = one["comparison"][key]
        bounds = style.interval(found.get("lower"), found.get("upper"))
        cells.append(Cell(style.value(found.get("value")), "", bounds))
    return Row(key, label, short, unit, "", ITEMS, tuple(cells))


def _worst_cell(worst: Mapping[str, Any] | None) -> Cell:
    """The slice with the largest loss the data show; the sign is turned from damage to change."""
    if not worst or not worst.get("slice"):
        return Cell(numbers.MISSING)
    if not worst["lower"] > 0:
        return Cell("none shown")
    low, mid, high = (-worst[key] for key in ("upper", "damage", "lower"))
    change, name = Style(2, 100, signed=True), wording.slice_words(worst["slice"])
    return Cell(name, change.value(mid), change.interval(low, high), "worse")


def headline(audit: Audit) -> list[str]:
    """What was audited, in a few phrases: model, items, text, machine."""
    protocol, machine = audit["protocol"], audit["machine"]
    number = len(audit["candidates"])
    title = f"{audit['model']['name']}: {numbers.plural(number, 'candidate')} against the original"
    tasks = numbers.join(
        [f"{numbers.count(task['n'])} items of {task['name']}" for task in protocol["tasks"]]
    )
    facts = [tasks] if tasks else []
    text = protocol.get("text")
    if text:
        shown = f"{text['name']} in {wording.text_words(text)}"
        facts.append(f"{numbers.count(text['tokens'])} tokens of {shown}")
    if machine.get("kernels"):
        facts.append(f"kernels {machine['kernels']}")
    if machine.get("threads"):
        facts.append(numbers.plural(machine["threads"], "thread"))
    level = numbers.percent(protocol["level"])
    return [
        title,
        *facts,
        f"under each value its difference from the original and the {level} interval",
    ]


_CALIBRATION = ("source", "tokens", "sequences")


def calibrations(audit: Audit) -> list[str]:
    """What the candidates that need it were calibrated on, a sentence per text."""
    found: dict[tuple[Any, ...], list[str]] = {}
    for one in succeeded(audit):
        used = (one.get("quantization") or {}).get("calibration")
        if used:
            key = tuple(used[name] for name in _CALIBRATION)
            found.setdefault(key, []).append(str(one["scheme"]))
    return [
        wording.calibration_words(names, dict(zip(_CALIBRATION, key, strict=True)))
        for key, names in found.items()
    ]


def run_rows(meta: Mapping[str, Any], metrics: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """(name, value, interval) of what one run measured.

    Args:
        meta: `run.json`.
        metrics: metric id -> estimate as a mapping; `ppl:NAME` for the texts, `greedy:TASK` for
            tasks with a single choice, `right:TASK` for those answered in free text,
            `recalibrated:METRIC` for a map of the top answer.
    """
    found = []
    for metric in (*METRICS, *DETAILS):
        one = metrics.get(metric.key)
        if not one or one["value"] is None:
            continue
        value = f"{metric.level.value(one['value'])} {metric.unit}".rstrip()
        found.append((metric.label, value, metric.level.interval(one["lower"], one["upper"])))
    for name, one in metrics.items():
        kind, _, task = name.partition(":")
        if kind in ("greedy", "right"):
            level = METRICS[0].level
            share = f"{level.value(one['value'])} {METRICS[0].unit}".rstrip()
            label = f"accuracy of {task}, {'greedy' if kind == 'greedy' else 'in free text'}"
            found.append((label, share, level.interval(one["lower"], one["upper"])))
        if name.startswith("recalibrated:"):
            key = name.removeprefix("recalibrated:")
            found.append((f"{key} after recalibration", numbers.fixed(one["value"], digits=4), ""))
        if name.startswith("ppl:"):
            value = numbers.fixed(one["value"], digits=2)
            found.append((f"perplexity of {name.removeprefix('ppl:')}", value, ""))
    footprint = meta["footprint"]
    found.append(("weight memory", numbers.size(footprint["bytes_model"]), ""))
    bits = numbers.fixed(footprint["bits_per_weight_model"], digits=2)
    found.append(("bits per weight, whole model", bits, ""))
    for key, label in (("decode_tok_s", "decode"), ("prefill_tok_s", "prefill")):
        rate = (meta.get("speed") or {}).get(key)
        if rate:
            value = f"{numbers.significant(rate['value'])} tok/s"
            found.append((label, value, f"kernels {meta['speed']['kernels']}"))
    return found
