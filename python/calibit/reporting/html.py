"""report.html: one self-contained page, no network, no scripts; for screens wide and narrow, light
and dark, and for paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibit import numbers
from calibit.reporting import (
    ablation,
    cards,
    controls,
    draws,
    everything,
    ladder,
    panels,
    tables,
    view,
    wording,
    written,
)
from calibit.reporting.view import Audit, Points

if TYPE_CHECKING:
    from calibit.comparison import Comparison

_SECTIONS = (
    # anchor, name in the contents, key of the context that must not be empty
    ("why", "Why", "gates"),
    ("results", "Results", "measured"),
    ("tradeoff", "Memory against damage", "trade_off"),
    ("reliability", "Calibration", "reliability"),
    ("confidence", "Before and after", "before_after"),
    ("initial", "By initial confidence", "by_initial"),
    ("slices", "Slices", "slices"),
    ("flips", "Changed answers", "flips"),
    ("written", "Answers in free text", "written"),
    ("workload", "Your prompts", "workload"),
    ("languages", "Languages", "languages"),
    ("anatomy", "Where answers changed", "anatomy"),
    ("system", "Thresholds and repair", "system"),
    ("real", "Noise and direction", "real"),
    ("ladder", "Bit by bit", "ladder"),
    ("ablation", "Grid and rounding", "ablations"),
    ("draws", "Calibration draws", "draws"),
    ("speed", "Memory and speed", "speed"),
    ("everything", "Every measure", "everything"),
    ("method", "How it was measured", "method"),
    ("checks", "Self-audit", "checks"),
    ("caveats", "Limits", "caveats"),
    ("glossary", "Glossary", "glossary"),
)


def write_report(audit: Audit, path: str | Path, *, points: Points) -> Path:
    """Write the page of an audit.

    Args:
        audit: the content of `audit.json`.
        path: file to write; a reader sees the old page or the whole new one.
        points: per-item arrays by candidate, for the figures; a candidate without them has no such
            figure.

    Returns:
        The path written.
    """
    target = Path(path)
    draft = target.with_name(target.name + ".tmp")
    draft.write_text(render(audit, points), encoding="utf-8")
    draft.replace(target)
    return target


def write_comparison(comparison: Comparison, path: str | Path) -> Path:
    """Write the page of a comparison of two runs.

    Args:
        comparison: two runs compared.
        path: file to write.

    Returns:
        The path written.
    """
    from calibit.reporting.document import of_comparison

    document = of_comparison(comparison)
    points = {document["candidates"][0]["scheme"]: comparison.points}
    return write_report(document, path, points=points)


def render(audit: Audit, points: Points) -> str:
    """The page as text; every string of the audit is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    def read(name: str) -> str:
        return files("calibit.reporting").joinpath(name).read_text(encoding="utf-8")

    environment = Environment(
        loader=FunctionLoader(read),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("report.html.j2")
    return page.render(css=Markup(read("report.css")), **_context(audit, points))


def _context(audit: Audit, points: Points) -> dict[str, Any]:
    measured = view.succeeded(audit)
    context: dict[str, Any] = {
        "title": f"{audit['model']['name']}: calibit audit",
        "version": audit["calibit"],
        "created": audit["created"][:10],
        "model": audit["model"]["name"],
        "lead": cards.lead(audit),
        "level": numbers.percent(audit["protocol"]["level"]),
        "words": wording.VERDICTS,
        "cards": [
            cards.card(one, audit["baseline"], level=audit["protocol"]["level"])
            for one in audit["candidates"]
        ],
        "legend": cards.legend(audit),
        "alarms": view.alarms(audit),
        "alarm_text": wording.ALARM,
        "checks": [one for one in map(_checks, measured) if one["rows"]],
        "self_audit_text": wording.SELF_AUDIT,
        "notes": [*audit["model"]["notes"], *audit["warnings"]],
        "measured": [{"name": one["scheme"]} for one in measured],
        "baseline": "original",
        "gates": tables.gates(measured),
        **_rule(audit, measured),
        "calibrations": view.calibrations(audit),
        "mcnemar_text": wording.MCNEMAR,
        "peak_text": wording.PEAK_MEMORY,
        "results": _grouped(written.rows(audit, details=True)),
        "trade_off": panels.trade_off(audit),
        "trade_off_text": wording.trade_off(audit["protocol"]["level"]),
        "reliability": panels.reliability(measured),
        "before_after": panels.before_after(measured, points),
        "by_initial": panels.by_initial(measured),
        "slices": tables.slices(measured),
        "worst_slices": tables.worst_slices(measured),
        "flips": tables.flips(measured),
        **written.context(measured),
        **controls.context(measured),
        "draws": draws.tables(measured),
        "ladder": ladder.context(audit),
        "ablations": ablation.tables(audit),
        "speed": tables.speed(audit, measured),
        "speed_text": _speed_text(audit),
        "modules": tables.modules(measured),
        "everything": everything.context(measured),
        "everything_heads": everything.HEADS,
        "method": _method(audit),
        "command": audit["command"],
        "kept": wording.KEPT if "schema" in audit else "",
        "caveats": wording.caveats(audit),
        "intervals_text": wording.intervals(audit["protocol"]["level"]),
        "glossary": wording.GLOSSARY,
    }
    contents = [(anchor, name) for anchor, name, key in _SECTIONS if context[key]]
    return {**context, "contents": contents}


def _checks(one: view.Candidate) -> dict[str, Any]:
    rows = view.checks(one)
    bad = len(view.failed_checks(one))
    summary = f"{len(rows) - bad} of {numbers.plural(len(rows), 'check')} passed"
    return {"name": one["scheme"], "summary": summary, "rows": rows, "open": bool(bad)}


def _rule(audit: Audit, measured: Sequence[view.Candidate]) -> dict[str, str]:
    """The rule of the verdict, and which slices are too small for it: the same for everyone."""
    gates = measured[0]["verdict"]["gates"] if measured else []
    return {
        "rule": wording.rule(gates, audit["protocol"]["level"]),
        "too_small": wording.too_small(gates),
    }


def _grouped(rows: Sequence[view.Row]) -> list[tuple[str, list[view.Row]]]:
    groups: dict[str, list[view.Row]] = {}
    for row in rows:
        groups.setdefault(row.group, []).append(row)
    return list(groups.items())


def _speed_text(audit: Audit) -> str:
    speed = audit["baseline"].get("speed")
    if not speed:
        return "Speed was not measured."
    where = audit["machine"].get("cpu") or speed.get("device", "this machine")
    return (
        f"Batch 1, a prompt of {speed['prompt_tokens']} tokens, {speed['generated_tokens']} tokens "
        f"generated, {numbers.plural(speed['threads'], 'thread')} on {where}. Medians of "
        f"{speed['decode_tok_s']['n']} runs; below them the factor against the original with its "
        f"{numbers.percent(audit['protocol']['level'])} interval, and the quartiles. "
        f"{wording.SPEED}"
    )


def _method(audit: Audit) -> list[tuple[str, str]]:
    """What was measured and how, as terms and facts; facts that are not known are left out."""
    protocol, machine, model = audit["protocol"], audit["machine"], audit["model"]
    parts = [model["path"], model.get("dtype")]
    if model.get("parameters"):
        parts.insert(1, f"{numbers.count(model['parameters'])} parameters")
    versions = [f"{name} {found}" for name, found in (protocol.get("versions") or {}).items()]
    platform = [machine.get("cpu"), machine.get("platform")]
    if machine.get("threads"):
        platform.insert(1, numbers.plural(machine["threads"], "thread"))
    if machine.get("kernels"):
        platform.append(f"kernels {machine['kernels']}")
    facts = [
        ("Original", _listed(parts)),
        ("Weights", f"SHA-256 {model['weight_hash']}" if model.get("weight_hash") else ""),
        ("Items", _tasks_text(protocol)),
        ("Scoring", _scoring_text(protocol)),
        ("Text", _text_text(protocol.get("text"))),
        ("Intervals", _intervals_text(audit)),
        ("Calibration error", f"{protocol['bins']} bins of equal width, top answer"),
        ("Verdict", _policy_text(audit)),
        ("Machine", _listed(platform)),
        ("Versions", ", ".join(versions)),
        ("Made", audit["created"]),
    ]
    return [(term, fact) for term, fact in facts if fact]


def _listed(parts: Sequence[Any]) -> str:
    return ", ".join(str(part) for part in parts if part)


def _tasks_text(protocol: Mapping[str, Any]) -> str:
    named = [f"{task['name']}, {numbers.plural(task['n'], 'item')}" for task in protocol["tasks"]]
    if not named:
        return "none"
    limit = protocol.get("limit")
    sample = f"; a sample of at most {numbers.count(limit)} per task" if limit else ""
    return "; ".join(named) + sample


def _scoring_text(protocol: Mapping[str, Any]) -> str:
    bos = f", BOS rule {protocol['bos']}" if protocol.get("bos") else ""
    return f"log-likelihood of each choice after its question, rule {protocol['rule']}{bos}"


def _text_text(text: Mapping[str, Any] | None) -> str:
    if text is None:
        return "none"
    tokens = numbers.count(text["tokens"])
    return f"{text['name']}, {wording.text_words(text)}, {tokens} scored tokens"


def _intervals_text(audit: Audit) -> str:
    protocol = audit["protocol"]
    return (
        f"level {numbers.percent(protocol['level'])}; accuracy: Tango's score interval; means: BCa "
        f"bootstrap over items, {numbers.count(protocol['resamples'])} resamples, seed "
        f"{protocol['seed']}; perplexity: {_text_interval(audit)}"
    )


def _text_interval(audit: Audit) -> str:
    texts = [text for one in view.succeeded(audit) for text in one["comparison"]["texts"]]
    if any(text["ratio"].get("interval") == "t" for text in texts):
        return (
            "Student's t over windows, since a bootstrap of so few is too narrow; read it as rough"
        )
    return "bootstrap over windows"


def _policy_text(audit: Audit) -> str:
    measured = view.succeeded(audit)
    if not measured:
        return ""
    verdict = measured[0]["verdict"]
    margins = [
        f"{wording.gate_words(gate)[0]}: {wording.gate_margin(gate)}" for gate in verdict["gates"]
    ]
    return f"policy {verdict['policy']['name']}; largest damage allowed in {'; '.join(margins)}"
