"""audit.json: everything an audit found, in one versioned schema."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibit.auditing import models
from calibit.auditing.draws import Built
from calibit.auditing.draws import warnings as draw_warnings
from calibit.auditing.job import TEXT, Job
from calibit.auditing.ladder import ladder
from calibit.auditing.models import BASELINE, Entry
from calibit.auditing.result import SCHEMA

if TYPE_CHECKING:
    from calibit.comparison import Comparison, RunLike
    from calibit.verdict import Policy

STEADY = 1.3
"""Largest ratio between two timings of the same work on a machine that is called quiet."""

SAME_KIND = (
    "GPTQ was calibrated on the same kind of text as the perplexity is measured on (other parts of "
    "it): its perplexity may look better here than on your text."
)
SAME_TEXT = (
    "GPTQ was calibrated on the very text that the perplexity is measured on: its perplexity looks "
    "better here than on any other text."
)


def policy_of(source: Mapping[str, Any] | str | Path | None) -> Policy:
    """A policy from a mapping, a YAML file or None (the default policy).

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown or refused metric, or a margin that is no number above 0.
    """
    from calibit.verdict import Policy

    if source is None:
        return Policy()
    if isinstance(source, Mapping):
        return Policy.from_dict(source)
    if not Path(source).is_file():
        raise FileNotFoundError(
            f"[policy] expected a YAML file, got {str(source)!r}, which does not exist"
        )
    return Policy.from_yaml(source)


def policy_dict(source: Mapping[str, Any] | str | Path | None) -> dict[str, Any] | None:
    """The policy as a mapping, None for the default."""
    if source is None:
        return None
    return policy_of(source).to_dict()


def assemble(
    job: Job,
    entries: Sequence[Entry],
    runs: Mapping[str, RunLike],
    records: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Comparison],
    errors: Mapping[str, str],
    *,
    command: str,
    notes: Sequence[str] = (),
    draws: Mapping[str, Built] | None = None,
    ablations: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """The content of `audit.json`, in JSON types.

    Args:
        job: what was asked for.
        entries: the models, the baseline first.
        runs: finished runs by entry name; the baseline's is there.
        records: how each entry's weights came about.
        comparisons: by candidate name.
        errors: why a candidate could not be measured.
        command: the command line.
        notes: what the tasks' readers want said.
        draws: builds with other calibration draws, by candidate name.
        ablations: effects of grid and rounding, JSON types.
    """
    draws = draws or {}
    base = runs[BASELINE].meta
    candidates = [
        _candidate(entry, runs, records, comparisons, errors, job) for entry in entries[1:]
    ]
    for one in candidates:
        one["draws"] = draws[one["scheme"]].to_dict() if one["scheme"] in draws else None
    luck = [line for name, built in draws.items() for line in draw_warnings(name, built)]
    content = {
        "schema": SCHEMA,
        "calibit": base["versions"]["calibit"],
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": command,
        "machine": _machine(base, runs),
        "model": {
            "name": models.model_name(job.model),
            "path": job.model,
            "weight_hash": base.get("weight_hash"),
            "parameters": base["footprint"]["parameters"],
            "dtype": base.get("dtype"),
            "notes": models.notes_of(job.model),
        },
        "protocol": _protocol(job, base, records),
        "baseline": _baseline(job, runs, comparisons),
        "candidates": candidates,
        "ablations": list(ablations),
        "ladder": ladder(job, runs, list(comparisons)),
        "warnings": [*notes, *luck, *_warnings(job, entries, runs, records, comparisons)],
    }
    return json.loads(json.dumps(content, allow_nan=False))


def _baseline(
    job: Job, runs: Mapping[str, RunLike], comparisons: Mapping[str, Comparison]
) -> dict[str, Any]:
    from calibit.measures import Resampling, summarize

    run = runs[BASELINE]
    if comparisons:
        metrics = next(iter(comparisons.values())).a
    else:
        resampling = Resampling(level=job.level, resamples=job.resamples, seed=job.seed)
        metrics = summarize(run.scores(job.rule), resampling=resampling)
    return {
        "scheme": BASELINE,
        "run": f"runs/{BASELINE}",
        "footprint": run.meta["footprint"],
        "speed": run.meta["speed"],
        "metrics": {name: one.to_dict() for name, one in metrics.items()},
        "comparison": None,
        "verdict": None,
        "modules": [],
        "quantization": None,
    }


def _candidate(
    entry: Entry,
    runs: Mapping[str, RunLike],
    records: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Comparison],
    errors: Mapping[str, str],
    job: Job,
) -> dict[str, Any]:
    row: dict[str, Any] = {
        "scheme": entry.name,
        "run": f"runs/{entry.folder}",
        "source": entry.source,
    }
    if entry.name in errors:
        return {**row, "error": errors[entry.name], "comparison": None, "verdict": None}
    meta, comparison = runs[entry.name].meta, comparisons[entry.name]
    record = dict(records[entry.name])
    modules = record.pop("modules", [])
    return {
        **row,
        "footprint": meta["footprint"],
        "speed": _speed(meta, record),
        "speed_change": _speed_change(runs[BASELINE].meta, meta, job),
        "metrics": {name: one.to_dict() for name, one in comparison.b.items()},
        "comparison": comparison.to_dict(),
        "verdict": comparison.verdict(policy_of(job.policy)).to_dict(),
        "modules": modules,
        "quantization": record,
    }


def _speed(meta: Mapping[str, Any], record: Mapping[str, Any]) -> dict[str, Any] | None:
    """The speed of a run; a foreign checkpoint ran on its own kernels, not on ours."""
    speed = meta.get("speed")
    method = record.get("checkpoint")
    if speed is None or method in (None, models.NATIVE, models.FLOAT):
        return speed
    return {**speed, "kernels": f"{method}, its own"}


def _speed_change(base: Mapping[str, Any], meta: Mapping[str, Any], job: Job) -> dict[str, Any]:
    from calibit.comparison import speed_changes

    found = speed_changes(base.get("speed"), meta.get("speed"), level=job.level)
    return {key: one.to_dict() for key, one in found.items()}


def _protocol(
    job: Job, base: Mapping[str, Any], records: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    text = next(iter(base["text"]), None)
    return {
        "tasks": [{"name": task["name"], "n": task["n"]} for task in base["tasks"]],
        "limit": job.limit,
        "rule": job.rule,
        "bos": job.bos,
        "text": None
        if text is None
        else {key: text[key] for key in ("name", "protocol", "tokens", "windows")},
        "calibration": job.calibration,
        "calibration_tokens": _calibration_tokens(records.values()),
        "calibration_seeds": list(job.seeds),
        "level": job.level,
        "resamples": job.resamples,
        "seed": job.seed,
        "bins": 15,
        "rigor": job.rigor,
        "batch_tokens": base.get("batch_plan", {}).get("batch_tokens"),
        "versions": base["versions"],
    }


def _calibration_tokens(records: Iterable[Mapping[str, Any]]) -> int | None:
    """Tokens that GPTQ calibrated on, the same for every scheme of an audit; None without GPTQ."""
    found = (record.get("calibration") for record in records)
    return next((int(one["tokens"]) for one in found if one), None)


def _machine(base: Mapping[str, Any], runs: Mapping[str, RunLike]) -> dict[str, Any]:
    """CPU, threads, and the kernel table that the quantized models ran on."""
    kernels = [run.meta["kernels"] for name, run in runs.items() if name != BASELINE]
    ours = [name for name in kernels if name != "torch"]
    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "threads": base["threads"],
        "kernels": ours[0] if ours else "torch",
        "platform": platform.platform(),
    }


def processor() -> str:
    """The processor's name as Linux gives it, else what Python knows."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _warnings(
    job: Job,
    entries: Sequence[Entry],
    runs: Mapping[str, RunLike],
    records: Mapping[str, Mapping[str, Any]],
    comparisons: Mapping[str, Comparison],
) -> list[str]:
    from calibit.recalibration import FILE as MAP_FILE  # with torch, which `--help` goes without

    base = runs[BASELINE].meta
    found: list[str] = []
    for entry in entries[1:]:
        if entry.name not in comparisons:
            continue
        found += models.lineage(entry, job, base, records[entry.name])
        found += [f"{entry.name}: {note}." for note in records[entry.name].get("notes") or ()]
        if entry.source is not None and (Path(entry.source) / MAP_FILE).is_file():
            found.append(
                f"{entry.name}: its {MAP_FILE} was not applied, an audit judges the bare model; "
                "calibit eval --recalibrated applies it."
            )
        found += [_named(warning, entry.name) for warning in comparisons[entry.name].warnings]
    if any(entry.kind == "gptq" for entry in entries) and job.text == job.calibration:
        found.append(SAME_KIND if job.text == TEXT else SAME_TEXT)
    found += _busy_machine([run.meta.get("speed") for run in runs.values()])
    return list(dict.fromkeys(found))


def _busy_machine(speeds: Iterable[Mapping[str, Any] | None]) -> list[str]:
    """A doubt about the speeds where a fixed workload, timed beside each model, did not stay the
    same: then the machine had other work."""
    references = [speed["reference"] for speed in speeds if speed and speed.get("reference")]
    for key in references[0] if references else ():
        rates = [reference[key]["value"] for reference in references]
        if max(rates) > STEADY * min(rates):
            return [
                "Speeds are not comparable: a fixed workload timed beside each model ran up to "
                f"{max(rates) / min(rates):.1f} times faster beside one than beside another, so "
                "the machine was busy with other work. Measure again on a quiet machine."
            ]
    return []


def _named(sentence: str, candidate: str) -> str:
    """A comparison's warning with the names that the audit uses."""
    sentence = sentence.replace("the reference", "the baseline")
    sentence = sentence.replace("the candidate", candidate)
    return sentence[:1].upper() + sentence[1:].rstrip(".") + "."
