"""A paired bootstrap of the calibration error against scipy.stats.bootstrap.

    python benchmarks/bench_bootstrap.py [--items 10000] [--resamples 9999] [--out FILE.jsonl]

The statistic is the change of the ECE (15 bins) between two models on the same items: both sides
are computed anew on every resample. calibit's draws are compared with a NumPy reference, and with
themselves on one thread, before they are timed. scipy gets the same statistic, vectorised over the
resamples; it is timed on fewer of them and scaled, because its time is proportional to them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import workbench
from scipy import stats

from calibit.measures import Resampling
from calibit.measures.calibration import binned_change

BINS = 15
SCIPY_RESAMPLES = 60
BATCH = 5
"""Resamples that scipy holds at once: its fastest of 5, 20 and 60."""

RULES = {"width": "ece", "mass": "ece_mass"}

Model = tuple[np.ndarray, np.ndarray]
"""Confidence and correctness, float64 `[N]` each."""


def main() -> None:
    """One row per binning rule."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--resamples", type=int, default=9_999)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--out", type=Path, help="write JSON lines here")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = workbench.Rows("bootstrap", options.out)
    models = two_models(options.items)
    draw = Resampling(resamples=options.resamples)
    for rule, metric in RULES.items():
        check(models, rule)
        work = {"calibit": lambda rule=rule: change_draws(models, rule, draw)}
        if rule == "width":
            work["scipy"] = lambda: scipy_interval(models, SCIPY_RESAMPLES)
        seconds = workbench.time_in_turn(work, turns=options.turns)
        if "scipy" in seconds:
            seconds["scipy"] = seconds["scipy"] * (options.resamples / SCIPY_RESAMPLES)
        report(rows, metric, options, seconds)


def report(
    rows: workbench.Rows,
    metric: str,
    options: argparse.Namespace,
    seconds: dict[str, np.ndarray],
) -> None:
    """Print and store the seconds of calibit and how many times as long scipy takes."""
    ours = seconds["calibit"]
    low, middle, high = np.percentile(ours, [15, 50, 85])
    case = {"metric": metric, "items": options.items, "resamples": options.resamples}
    row = {**case, "seconds": middle, "seconds_15": low, "seconds_85": high}
    text = f"{metric:9} {options.items:,} items x {options.resamples:,} resamples, both models: "
    text += f"{middle:.2f} s [{low:.2f}, {high:.2f}]"
    if "scipy" in seconds:
        ratio = workbench.Ratio.of(seconds["scipy"], ours)
        row["scipy_times_as_long"] = vars(ratio)
        row["scipy_resamples"] = SCIPY_RESAMPLES
        text += f"; scipy takes {ratio} times as long (timed on {SCIPY_RESAMPLES}, scaled)"
    rows.add(text, row)


def two_models(n: int) -> tuple[Model, Model]:
    """Reference and candidate on the same items: the second is noisier."""
    rng = np.random.default_rng(0)
    c = rng.uniform(0.25, 1.0, n)
    other = np.clip(c + rng.normal(0.0, 0.05, n), 0.25, 1.0)
    right = (rng.random(n) < c).astype(float)
    flipped = np.where(rng.random(n) < 0.05, 1.0 - right, right)
    return (c, right), (other, flipped)


def change_draws(models: tuple[Model, Model], rule: str, draw: Resampling) -> np.ndarray:
    """Change of the ECE on every resample, float64 `[resamples]`; one seed draws the same items."""
    return binned_change(RULES[rule], *models, bins=BINS, resampling=draw).draws


def scipy_interval(models: tuple[Model, Model], resamples: int) -> object:
    """The percentile interval that scipy gives for the same statistic (bins of equal width)."""
    data = [column for model in models for column in model]
    return stats.bootstrap(
        data,
        change_of_arrays,
        n_resamples=resamples,
        batch=BATCH,
        paired=True,
        vectorized=True,
        method="percentile",
        rng=np.random.default_rng(0),
    )


def change_of_arrays(
    c_a: np.ndarray, r_a: np.ndarray, c_b: np.ndarray, r_b: np.ndarray, axis: int = -1
) -> np.ndarray:
    """Change of the ECE of arrays `[..., N]`, all rows at once."""
    return _ece(c_b, r_b) - _ece(c_a, r_a)


def _ece(c: np.ndarray, r: np.ndarray) -> np.ndarray:
    flat_c, flat_r = c.reshape(-1, c.shape[-1]), r.reshape(-1, c.shape[-1])
    edges = np.arange(1, BINS + 1) / BINS
    place = np.minimum(np.searchsorted(edges, flat_c, side="left"), BINS - 1)
    place += BINS * np.arange(len(flat_c))[:, None]
    gap = np.bincount(place.ravel(), (flat_r - flat_c).ravel(), minlength=BINS * len(flat_c))
    return (np.abs(gap.reshape(-1, BINS)).sum(axis=1) / c.shape[-1]).reshape(c.shape[:-1])


def check(models: tuple[Model, Model], rule: str) -> None:
    """End the benchmark where draws differ from NumPy's or between numbers of threads."""
    few = Resampling(resamples=100)
    drawn = change_draws(models, rule, few)
    with one_thread():
        if change_draws(models, rule, few).tobytes() != drawn.tobytes():
            workbench.fail("one thread draws other resamples than several")
    if rule != "width":
        return
    n = len(models[0][0])
    index = np.random.default_rng(0).integers(0, n, (100, n))
    wanted = change_of_arrays(*(column[index] for model in models for column in model))
    if np.abs(drawn - wanted).max() > 1e-12:  # sums of n terms of at most 1 in float64
        workbench.fail(f"draws differ from NumPy's by {np.abs(drawn - wanted).max():.2g}")


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread inside the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


if __name__ == "__main__":
    main()
