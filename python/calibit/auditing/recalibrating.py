"""Recalibration from recorded runs: fit a map, and put it beside the checkpoint it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibit.auditing import job as jobs
from calibit.numbers import Style
from calibit.recalibration import FILE, Recalibration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from calibit.measures import Scores
    from calibit.runs import Run

_SHOWN = {
    "nll": "NLL of the right answer",
    "log_loss": "log loss of the top answer",
    "brier": "Brier score",
    "brier_top1": "Brier score of the top answer",
    "ece": "calibration error (ECE)",
    "debiased_l2": "debiased L2 error",
    "auroc": "AUROC",
    "acc": "accuracy",
}


@dataclass(frozen=True)
class Recalibrated:
    """A fitted map and where it was written.

    Attributes:
        map: the map; the identity where no gain was shown.
        path: its file.
        run: folder of the run it was fitted on.
    """

    map: Recalibration
    path: Path
    run: Path

    def table(self) -> RenderableType:
        """What was fitted, and the metrics before and after for a terminal."""
        from rich.console import Group
        from rich.table import Table

        table = Table("out of fold", "before", "after", "change", box=None, pad_edge=False)
        tried = self.map.table
        for key, words in _SHOWN.items():
            if key in tried["before"]:
                table.add_row(words, *_cells(tried, key))
        return Group(*self._sentences(), "", table)

    def to_dict(self) -> dict[str, Any]:
        """The map and the run it was fitted on."""
        return {"recalibration": self.map.to_dict(), "run": str(self.run)}

    def _sentences(self) -> list[str]:
        found, tried = self.map, self.map.table["method"]
        items = f"{found.n:,} labelled items of {self.run}, rule {found.rule}"
        if found.method == "identity":
            return [f"{tried} fitted on {items}: the identity was kept ({found.reason})."]
        scalars = {k: v for k, v in found.parameters.items() if isinstance(v, int | float)}
        shown = ", ".join(f"{k} {v:.4g}" for k, v in scalars.items() if not isinstance(v, bool))
        lines = [f"{tried} fitted on {items}{f': {shown}' if shown else ''}."]
        if found.parameters.get("clipped"):
            lines.append("The best temperature lies at the end of the range: do not rely on it.")
        return lines


def recalibrate(
    source: str | Path,
    checkpoint: str | Path,
    *,
    method: str = "temperature",
    reference: str | Path | None = None,
    slice_key: str | None = None,
    rule: str = "sum",
    level: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> Recalibrated:
    """Fit a recalibration map on a recorded run and write `calibration.json` into a checkpoint.

    Args:
        source: folder of a run of the checkpoint, or of an audit that holds one.
        checkpoint: folder of the model.
        method: temperature, label_free, slice_temperature, platt or isotonic.
        reference: run of the original for label_free; in an audit its baseline where omitted.
        slice_key: key of the slices for slice_temperature.
        rule: scoring rule.
        level, resamples, seed: of the intervals.
        overwrite: replace a map that is there.
        trust_remote_code: let the model bring code of its own.

    Returns:
        The map; the identity, and why, where the gain out of fold is not shown.

    Raises:
        FileNotFoundError: no such run or checkpoint.
        ValueError: a run of other weights, an unknown method, what it needs and was not given.
        FileExistsError: there is a map already.
    """
    from calibit.measures import Resampling

    folder, source = Path(checkpoint), Path(source)
    _check(folder, method, slice_key, overwrite=overwrite)
    weights = _weights_of(folder, trust_remote_code=trust_remote_code)
    run = _run_of(source, weights, folder)
    scores = run.scores(rule)
    first = _reference(source, reference, scores, rule) if method == "label_free" else None
    made = Recalibration.fit(
        scores,
        model_hash=weights,
        method=method,
        reference=first,
        slices=slice_key,
        resampling=Resampling(level=level, resamples=resamples, seed=seed),
    )
    return Recalibrated(made, made.save(folder), run.path or source)


def load_map(model: str, *, rule: str, weights: str | None = None) -> Recalibration:
    """The map beside a model.

    Args:
        model: its folder.
        rule: scoring rule that it is wanted for.
        weights: hash of the weights in memory; None takes the map at its word, for `evaluate`
            compares them.

    Raises:
        FileNotFoundError: no map there.
        ValueError: a file that is no map, a map of other weights or another rule.
    """
    import json

    path = Path(model) / FILE
    if not path.is_file():
        raise FileNotFoundError(
            f"[eval] expected {FILE} in {model} for --recalibrated, got none; make one: calibit "
            "recalibrate RUN --checkpoint DIR"
        )
    if weights is None:
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"[eval] expected a map in {path}, got a damaged file ({error}); fit it again: "
                "calibit recalibrate RUN --checkpoint DIR --overwrite"
            ) from error
        weights = str(content.get("model_hash")) if isinstance(content, dict) else ""
    return Recalibration.load(path, model_hash=weights, rule=rule)


def top_answer_measures(scores: Scores, recorded: Mapping[str, Any] | None) -> dict[str, Any]:
    """Measures of the top answer's confidence after a Platt or isotonic map, as
    `recalibrated:METRIC`; empty for other maps, which are in the scores already.

    Args:
        scores: of the run.
        recorded: its recorded map.
    """
    from calibit import measures

    if recorded is None or not scores.labelled.any():
        return {}
    found = Recalibration.from_dict(
        recorded, model_hash=recorded["model_hash"], rule=recorded["rule"], source="run.json"
    )
    if not found.top_answer_only:
        return {}
    known = scores.take(scores.labelled)
    confidence, right = found.confidence(known), known.correct
    made = {name: getattr(measures, name)(confidence, right) for name in ("ece", "brier_top1")}
    return {f"recalibrated:{name}": one for name, one in made.items()}


def _check(folder: Path, method: str, slice_key: str | None, *, overwrite: bool) -> None:
    from calibit.measures.gain import METHODS

    if method not in METHODS:
        raise ValueError(f"[recalibrate] expected a method of {', '.join(METHODS)}, got {method!r}")
    if (slice_key is not None) != (method == "slice_temperature"):
        raise ValueError(
            "[recalibrate] expected --slice for the method slice_temperature, and only for it, "
            f"got {slice_key!r} for {method}"
        )
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"[recalibrate] expected the folder of a model with config.json, got {folder}"
        )
    if (folder / FILE).exists() and not overwrite:
        raise FileExistsError(
            f"[recalibrate] expected a checkpoint without {FILE}, got one in {folder}; --overwrite "
            "replaces it"
        )


def _weights_of(folder: Path, *, trust_remote_code: bool) -> str:
    from calibit.auditing.models import open_model
    from calibit.fingerprint import weight_hash

    return weight_hash(open_model(str(folder), trust_remote_code=trust_remote_code).model)


def _run_of(source: Path, weights: str, checkpoint: Path) -> Run:
    """The run of these weights: the folder itself, or the one of an audit's that has them."""
    from calibit.runs import META, Run

    inside = sorted(path.parent for path in (source / jobs.RUNS).glob(f"*/{META}"))
    folders = [source] if (source / META).is_file() or not inside else inside
    runs = [Run.load(folder) for folder in folders]
    found = [run for run in runs if run.meta.get("weight_hash") == weights]
    if not found:
        seen = ", ".join(f"{one.name} {run.meta.get('weight_hash')}" for one, run in
                         zip(folders, runs, strict=True))  # fmt: skip
        raise ValueError(
            f"[recalibrate] expected a run of the weights in {checkpoint} ({weights}), got {seen}; "
            "evaluate the checkpoint first: calibit eval"
        )
    if found[0].meta.get("recalibration"):
        raise ValueError(
            f"[recalibrate] expected a run of the bare model, got one whose scores went through a "
            f"map already in {found[0].path}"
        )
    return found[0]


def _reference(source: Path, reference: str | Path | None, like: Scores, rule: str) -> Scores:
    from calibit.comparison.pairing import aligned, as_run

    baseline = source / jobs.RUNS / "baseline"
    chosen = Path(reference) if reference is not None else baseline
    if reference is None and not baseline.is_dir():
        raise ValueError(
            "[recalibrate] expected --reference, a run of the original on the same items, for the "
            "method label_free, got none"
        )
    return aligned(as_run(chosen).scores(rule), like, name=str(chosen))


def _cells(tried: Mapping[str, Any], key: str) -> tuple[str, str, str]:
    before, after = (tried[side][key] for side in ("before", "after"))
    change = tried["change"].get(key) or {}
    level, moved = Style(4), ""
    if change.get("value") is not None:
        signed = Style(4, signed=True)
        bounds = signed.interval(change.get("lower"), change.get("upper"))
        moved = f"{signed.value(change['value'])} {bounds}".rstrip()
    return level.value(before), level.value(after), moved
