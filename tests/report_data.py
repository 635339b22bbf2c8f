"""Made-up audits for tests of reporting and of the command line: no model, real comparisons."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from calibit.auditing import assembly, models
from calibit.auditing.job import Job
from calibit.comparison import Comparison, compare
from calibit.measures.scores import Scores

DOMAINS = (
    "animals",
    "arithmetic",
    "calendar",
    "capitals",
    "elements",
    "opposites",
    "plurals",
    "units",
)
LANGUAGES = ("en", "fr", "de")
WINDOWS, TOKENS = 16, 64

# scheme -> noise added to the scores, rise of the text loss, bits per weight, speed-up
SCHEMES: Mapping[str, tuple[float, float, float, float]] = {
    "nf4": (0.35, 0.022, 4.5, 1.84),
    "fp4-dq": (0.8, 0.085, 4.13, 1.79),
    "int4-g128": (0.6, 0.06, 4.13, 1.91),
    "gptq-int4-g128": (0.3, 0.018, 4.13, 1.9),
    "int8-g128": (0.02, 0.0004, 8.13, 1.32),
}


@dataclass(frozen=True)
class FakeRun:
    """What `compare` needs of a run, from arrays."""

    meta: Mapping[str, Any]
    given: Scores
    nll: np.ndarray
    windows: np.ndarray = field(default_factory=lambda: np.repeat(np.arange(WINDOWS), TOKENS))

    def scores(self, rule: str = "sum") -> Scores:
        return self.given

    def text_nll(self, name: str) -> np.ndarray:
        return self.nll


def run_of(name: str, noise: float, rise: float, bits: float, faster: float, *, n: int) -> FakeRun:
    """A run whose scores are the baseline's plus noise, with plausible footprint and speed."""
    common = np.random.default_rng(7)
    gold = common.integers(0, 4, n)
    z = common.normal(0, 1.4, (n, 4))
    z[np.arange(n), gold] += 1.0
    nll = common.gamma(2.0, 1.4, WINDOWS * TOKENS)
    own = np.random.default_rng(sum(map(ord, name)))
    moved = z * (1 - noise / 8) + own.normal(0, noise, z.shape) if noise else z
    slices = [{"domain": DOMAINS[i % 8], "lang": LANGUAGES[i % 3]} for i in range(n)]
    ids = [f"probe-{i}" for i in range(n)]
    scores = Scores.from_arrays(moved, gold, ids=ids, task="probe", slices=slices)
    loss = nll + rise + (own.normal(0, 0.3, nll.shape) if noise else 0)
    return FakeRun(_meta(name, bits, faster, n), scores, np.abs(loss))


def _meta(name: str, bits: float, faster: float, n: int) -> dict[str, Any]:
    ours = "torch" if name == models.BASELINE else "avx2"
    rates = {"prefill_tok_s": 560.0 / faster**0.3, "decode_tok_s": 21.3 * faster}
    speed = {
        key: {
            "value": v,
            "lower": 0.97 * v,
            "upper": 1.02 * v,
            "n": 5,
            "values": [share * v for share in (0.96, 0.97, 1.0, 1.02, 1.03)],
        }
        for key, v in rates.items()
    }
    size = 28_000_000 * 4 + int(106_000_000 * bits / 8)
    return {
        "scheme": name,
        "weight_hash": "0f" * 32,
        "dtype": "float32",
        "kernels": ours,
        "threads": 2,
        "bos": "tokenizer",
        "tokenizer_hash": "ab",
        "versions": {"calibit": "0.1.0", "python": "3.11.7", "torch": "2.13.0"},
        "tasks": [{"name": "probe", "n": n, "items_hash": "cd"}],
        "text": [
            {
                "name": "pydoc",
                "protocol": "gptq@w65@16",
                "tokens": WINDOWS * TOKENS,
                "windows": WINDOWS,
            }
        ],
        "batch_plan": {},
        "footprint": {
            "parameters": 134_515_008,
            "bits_per_weight": bits,
            "bits_per_weight_model": 8 * size / 134_515_008,
            "bytes_weights": int(106_000_000 * bits / 8),
            "bytes_meta": 0,
            "bytes_model": size,
            "peak_rss": 1_200_000_000,
        },
        "speed": {
            **speed,
            "kernels": ours,
            "dtype": "float32",
            "threads": 2,
            "prompt_tokens": 128,
            "generated_tokens": 32,
        },
    }


def comparison_of(name: str = "nf4", *, n: int = 400, resamples: int = 300) -> Comparison:
    """A made-up candidate against the made-up baseline."""
    base = run_of(models.BASELINE, 0, 0, 32, 1, n=n)
    return compare(base, run_of(name, *SCHEMES[name], n=n), resamples=resamples)


def audit_of(
    *schemes: str,
    n: int = 400,
    resamples: int = 300,
    errors: Mapping[str, str] | None = None,
    model: str = "SmolLM2-135M-Instruct",
) -> tuple[dict[str, Any], dict[str, Mapping[str, np.ndarray]]]:
    """The content of `audit.json` of a made-up audit, and the points of its figures.

    Args:
        schemes: names of SCHEMES; all where omitted.
        n: items.
        resamples: of the intervals.
        errors: candidates that fail, with the reason.
        model: name of the baseline.
    """
    names = schemes or tuple(SCHEMES)
    failed = dict(errors or {})
    job = Job(model=model, schemes=names, resamples=resamples)
    entries = [models.Entry(models.BASELINE, models.BASELINE)]
    entries += [models.Entry(name, name, scheme=name) for name in names]
    entries += [models.Entry(name, name, source=name) for name in failed]
    runs = {models.BASELINE: run_of(models.BASELINE, 0, 0, 32, 1, n=n)}
    runs |= {name: run_of(name, *SCHEMES[name], n=n) for name in names}
    base = runs[models.BASELINE]
    comparisons = {name: compare(base, runs[name], resamples=resamples) for name in names}
    records: dict[str, Mapping[str, Any]] = {models.BASELINE: {"source_hash": "00"}}
    records |= {name: _record(name) for name in names}
    content = assembly.assemble(
        job,
        entries,
        runs,
        records,
        comparisons,
        failed,
        command="calibit audit model --schemes ...",
    )
    return content, {name: dict(one.points) for name, one in comparisons.items()}


def _record(name: str) -> dict[str, Any]:
    rows = [
        {
            "name": f"model.layers.{i}.mlp.down_proj",
            "shape": (576, 1536),
            "scheme": name,
            "error": 0.09 + i / 1e3,
            "bits_per_weight": 4.5,
            "loss_ratio": 0.8 if name.startswith("gptq") else None,
            "notes": (),
        }
        for i in range(30)
    ]
    calibration = {"source": "pydoc", "sequences": 16, "tokens": 8192, "notes": []}
    return {
        "modules": rows,
        "seconds": 12.3,
        "notes": [],
        "source_hash": "00",
        "calibration": calibration if name.startswith("gptq") else None,
    }
