"""A comparison of two runs in the form of an audit of one candidate: one report serves both."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from calibit.comparison import Comparison
    from calibit.verdict import Policy

Meta = Mapping[str, Any]


def of_comparison(
    comparison: Comparison,
    *,
    policy: Policy | None = None,
    metas: tuple[Meta, Meta] = ({}, {}),
    command: str = "calibit.compare(...)",
) -> dict[str, Any]:
    """The comparison as a report shows it.

    Args:
        comparison: two runs compared.
        policy: margins of the verdict; the default policy where omitted.
        metas: `run.json` of reference and candidate, for memory, speed and machine.
        command: what made it.
    """
    base, own = metas
    names = (str(comparison.models["a"]["title"]), _label(comparison.models["b"]))
    return {
        "calibit": version("calibit"),
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": {
            "cpu": None,
            "threads": base.get("threads"),
            "kernels": own.get("kernels"),
            "platform": None,
        },
        "model": {
            "name": names[0],
            "path": names[0],
            "weight_hash": base.get("weight_hash"),
            "parameters": _footprint(base).get("parameters"),
            "dtype": base.get("dtype"),
            "notes": [],
        },
        "protocol": _protocol(comparison, base),
        "baseline": {
            **_row("baseline", base),
            "metrics": {key: one.to_dict() for key, one in comparison.a.items()},
        },
        "candidates": [
            {
                **_row(names[1], own),
                "speed_change": _speed_change(comparison, base, own),
                "metrics": {key: one.to_dict() for key, one in comparison.b.items()},
                "comparison": comparison.to_dict(),
                "verdict": comparison.verdict(policy).to_dict(),
                "modules": [],
            }
        ],
        "warnings": list(comparison.warnings),
    }


def _label(model: Meta) -> str:
    """The candidate's name where it says the scheme, or none is known, else both; a path shows its
    last part only."""
    short, scheme = str(model["name"]).rstrip("/").rpartition("/")[2], model["scheme"]
    return short if scheme is None or str(scheme) in short else str(model["title"])


def _row(name: str, meta: Meta) -> dict[str, Any]:
    return {"scheme": name, "footprint": _footprint(meta), "speed": meta.get("speed")}


def _speed_change(comparison: Comparison, base: Meta, own: Meta) -> dict[str, Any]:
    from calibit.comparison import speed_changes

    found = speed_changes(
        base.get("speed"), own.get("speed"), level=float(comparison.protocol["level"])
    )
    return {key: one.to_dict() for key, one in found.items()}


def _footprint(meta: Meta) -> Mapping[str, Any]:
    return meta.get("footprint") or {}


def _protocol(comparison: Comparison, base: Meta) -> dict[str, Any]:
    protocol = comparison.protocol
    text = comparison.texts[0] if comparison.texts else None
    return {
        "tasks": list(protocol["tasks"]),
        "limit": None,
        "rule": protocol["rule"],
        "bos": base.get("bos"),
        "text": None
        if text is None
        else {
            "name": text.name,
            "protocol": text.protocol,
            "tokens": text.tokens,
            "windows": text.windows,
        },
        "level": protocol["level"],
        "resamples": protocol["resamples"],
        "seed": protocol["seed"],
        "bins": protocol["bins"],
        "rigor": "quick",
        "versions": base.get("versions") or {},
    }
