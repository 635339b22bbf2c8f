"""The README's results table: Markdown from the `audit.json` of an audit.

make demo && .venv/bin/python benchmarks/audit_table.py runs/demo
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

HEADER = (
    "scheme", "bits/weight", "weights", "decoding", "accuracy", "confidence in the truth", "ECE",
    "perplexity", "answers flipped", "verdict",
)  # fmt: skip


def main() -> None:
    """Print the table, then the line that says what it stands on."""
    if len(sys.argv) != 2:
        sys.exit("usage: audit_table.py FOLDER   (the folder an audit wrote)")
    audit = json.loads((Path(sys.argv[1]) / "audit.json").read_text(encoding="utf-8"))
    rows = [HEADER, ["---"] * len(HEADER), baseline_row(audit)]
    rows += [candidate_row(each, audit["baseline"]) for each in audit["candidates"]]
    print("\n".join("| " + " | ".join(row) + " |" for row in rows))
    print(f"\n{standing(audit)}")


def baseline_row(audit: dict[str, Any]) -> list[str]:
    """Values of the original model."""
    baseline = audit["baseline"]
    metrics = baseline["metrics"]
    perplexity = audit["candidates"][0]["comparison"]["ppl"]["a"]["value"]
    return [
        "original",
        f"{baseline['footprint']['bits_per_weight']:.0f}",
        f"{baseline['footprint']['bytes_model'] / 1e6:.0f} MB",
        f"{baseline['speed']['decode_tok_s']['value']:.0f} tokens/s",
        *(f"{100 * metrics[name]['value']:.1f} %" for name in ("acc", "conf_true", "ece")),
        f"{perplexity:.2f}",
        "",
        "",
    ]


def candidate_row(candidate: dict[str, Any], baseline: dict[str, Any]) -> list[str]:
    """Differences from the original, with their intervals."""
    comparison, footprint = candidate["comparison"], candidate["footprint"]
    deltas = comparison["deltas"]
    speeds = [each["speed"]["decode_tok_s"]["value"] for each in (candidate, baseline)]
    flips = comparison["flips"]
    return [
        f"`{candidate['scheme']}`",
        f"{footprint['bits_per_weight']:.2f}",
        f"{footprint['bytes_model'] / 1e6:.0f} MB",
        f"× {speeds[0] / speeds[1]:.2f}",
        *(points(deltas[name]) for name in ("acc", "conf_true", "ece")),
        percent(comparison["ppl"]["ratio"]),
        f"{flips['flips']} ({flips['rw']} lost, {flips['wr']} won)",
        candidate["verdict"]["verdict"],
    ]


def points(delta: dict[str, Any]) -> str:
    """A difference of shares in percentage points."""
    value, lower, upper = (100 * delta[key] for key in ("value", "lower", "upper"))
    return f"{value:+.1f} [{lower:+.1f}, {upper:+.1f}]"


def percent(ratio: dict[str, Any]) -> str:
    """A ratio as a change in percent."""
    value, lower, upper = (100 * (ratio[key] - 1) for key in ("value", "lower", "upper"))
    return f"{value:+.1f} % [{lower:+.1f}, {upper:+.1f}]"


def standing(audit: dict[str, Any]) -> str:
    """Model, data, machine and date."""
    machine, text = audit["machine"], audit["protocol"]["text"]
    tasks = ", ".join(f"{task['n']} items of {task['name']}" for task in audit["protocol"]["tasks"])
    return (
        f"{audit['model']['name']}, {tasks}, {text['tokens']:,} tokens of {text['name']}; "
        f"{machine['cpu']}, {machine['threads']} threads, {machine['kernels']} kernels, torch "
        f"{audit['protocol']['versions']['torch']}; {audit['created'][:10]}. "
        "In brackets 95 % intervals; differences of shares in percentage points."
    )


if __name__ == "__main__":
    main()
