"""Recalibration: a map of a model's confidence, fitted on labelled items and kept beside it.

`fit` measures the gain on folds that the map was not fitted on and keeps the identity where no
gain is shown. A stored map belongs to one model and one scoring rule: loading refuses any other.
`evaluate(..., recalibration=)` records a map in the run, whose scores are then those of the map.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from calibit.measures.calibrators import Isotonic, Platt, SliceTemperatures, Temperature
from calibit.measures.distributions import Distributions, as_distributions
from calibit.measures.estimate import plain
from calibit.measures.gain import (
    METHODS,
    TOP_LABEL_METHODS,
    CalibrationGain,
    CalibrationMap,
    calibration_gain,
)
from calibit.measures.resampling import Resampling
from calibit.measures.scores import Scores

SCHEMA = "calibit.calibration/1"
FILE = "calibration.json"
IDENTITY = "identity"
FOLD_RULE = "sha256(id)[:8] mod 5"


@dataclass(frozen=True)
class Recalibration:
    """A fitted recalibration map with what it was fitted on and what it gains.

    Attributes:
        method: "identity", or one of temperature, label_free, slice_temperature, platt, isotonic.
        parameters: of the map, as JSON types; empty for the identity.
        rule: scoring rule of the scores it applies to.
        model_hash: hash of the model's weights it was fitted for.
        items_hash: hash of the items it was fitted on.
        n: number of those items.
        folds: how items were assigned to the folds of the evaluation.
        table: method tried, metrics before and after out of fold, changes with intervals.
        reason: why the map is the identity.
    """

    method: str
    parameters: Mapping[str, Any]
    rule: str
    model_hash: str
    items_hash: str
    n: int
    folds: str = FOLD_RULE
    table: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None

    @classmethod
    def fit(
        cls,
        scores: Scores,
        *,
        model_hash: str,
        method: str = "temperature",
        reference: Scores | None = None,
        slices: Sequence[str] | str | None = None,
        resampling: Resampling | None = None,
    ) -> Recalibration:
        """Fit a map on labelled items; the identity where its gain is not shown.

        Args:
            scores: of the model to recalibrate, on items that nothing else is judged on.
            model_hash: hash of its weights.
            method: temperature, label_free, slice_temperature, platt or isotonic.
            reference: scores of the reference on the same items, for label_free.
            slices: for slice_temperature, [N] slice of each item, or the slice key to take it from.
            resampling: of the intervals.

        Raises:
            ValueError: for an unknown method, what it needs and was not given, or items without
                labels.
        """
        key = slices if isinstance(slices, str) else None
        labels = _labels(scores, key) if key is not None else slices
        gain = calibration_gain(
            scores, method=method, reference=reference, slices=labels, resampling=resampling
        )
        kept = gain.shown and gain.map is not None
        parameters = _parameters(gain.map) if kept and gain.map is not None else {}
        if kept and key is not None:
            parameters["key"] = key
        return cls(
            method=method if kept else IDENTITY,
            parameters=parameters,
            rule=scores.rule,
            model_hash=model_hash,
            items_hash=items_hash(scores),
            n=gain.n,
            table=_table(gain),
            reason=gain.reason,
        )

    @property
    def map(self) -> CalibrationMap | None:
        """The map itself; None for the identity."""
        if self.method == IDENTITY:
            return None
        given = self.parameters
        if self.method == "platt":
            return Platt(given["alpha"], given["beta"])
        if self.method == "isotonic":
            return Isotonic(tuple(given["knots"]), tuple(given["values"]))
        overall = Temperature(given["temperature"], given["clipped"])
        if self.method == "slice_temperature":
            return SliceTemperatures(overall, dict(given["slices"]))
        return overall

    @property
    def top_answer_only(self) -> bool:
        """Whether the map replaces the confidence of the top answer only (Platt, isotonic)."""
        return self.method in TOP_LABEL_METHODS

    def confidence(self, scores: Any, slices: Sequence[str] | None = None) -> np.ndarray:
        """Recalibrated confidence of the top answer, float64 [N].

        Args:
            scores: of the same model under the same rule: Scores, Distributions (from
                probabilities), or log scores or logits [N, K].
            slices: [N] slice of each item, for slice_temperature; where the map knows its slice
                key, those of a Scores are taken.

        Raises:
            ValueError: for another scoring rule, or missing slices.
        """
        found = self.map
        if isinstance(found, Platt | Isotonic):
            self._check_rule(scores)
            return found.apply(as_distributions(scores, op="recalibration"))
        return self.distributions(scores, slices).confidence

    def distributions(self, scores: Any, slices: Sequence[str] | None = None) -> Distributions:
        """Recalibrated distributions over the choices; `.p` are the probabilities.

        Args:
            scores, slices: as in `confidence`.

        Raises:
            ValueError: for another scoring rule, missing slices, or a map of the top answer only.

        Example:
            >>> warm = Recalibration("temperature", {"temperature": 2.0, "clipped": False},
            ...                      "sum", "", "", 100)
            >>> warm.distributions([[0.0, -2.0]]).p.round(4).tolist()
            [0.7311, 0.2689]
        """
        self._check_rule(scores)
        found = self.map
        if isinstance(found, Platt | Isotonic):
            raise ValueError(
                f"[recalibration] expected a map of whole distributions, got {self.method!r}, "
                "which changes the confidence of the top answer only; use confidence()"
            )
        given = as_distributions(scores, op="recalibration")
        if isinstance(found, SliceTemperatures):
            return found.apply(given, self._slices(scores, given.n, slices))
        return given if found is None else found.apply(given)

    def scores(self, scores: Scores) -> Scores:
        """The same items with the log probabilities of the map in place of their scores.

        Args:
            scores: of the same model under the same rule.

        Raises:
            ValueError: as `distributions`.
        """
        found = self.distributions(scores)
        rows = np.split(found.log_p, found.offsets[1:-1]) if found.n else []
        return replace(scores, z=tuple(rows))

    def _slices(self, scores: Any, n: int, slices: Sequence[str] | None) -> Sequence[str]:
        key = self.parameters.get("key")
        if slices is None and key is not None and isinstance(scores, Scores):
            return _labels(scores, key)
        if slices is None or len(slices) != n:
            given = "none" if slices is None else f"{len(slices)}"
            raise ValueError(f"[recalibration] expected {n} slices, got {given}")
        return slices

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON types."""
        return {"schema": SCHEMA, **plain(asdict(self))}

    @classmethod
    def from_dict(
        cls, content: Mapping[str, Any], *, model_hash: str, rule: str, source: str = FILE
    ) -> Recalibration:
        """The map from its dictionary, for one model and one scoring rule.

        Args:
            content: what `to_dict` gave.
            model_hash: hash of the weights it is to be used with.
            rule: scoring rule it is to be used with.
            source: file name for error messages.

        Raises:
            ValueError: for another schema, model or rule, or fields that are missing or unknown.
        """
        if content.get("schema") != SCHEMA:
            raise ValueError(
                f"[recalibration] expected schema {SCHEMA} in {source}, got {content.get('schema')}"
            )
        fields = {key: value for key, value in content.items() if key != "schema"}
        known = set(cls.__dataclass_fields__)
        if set(fields) != known:
            odd = ", ".join(sorted(set(fields) ^ known))
            raise ValueError(f"[recalibration] expected all fields once in {source}, check: {odd}")
        found = cls(**fields)
        if found.method not in (IDENTITY, *METHODS):
            raise ValueError(
                f"[recalibration] expected a method of {', '.join((IDENTITY, *METHODS))} in "
                f"{source}, got {found.method!r}"
            )
        try:
            _ = found.map
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"[recalibration] expected the parameters of {found.method} in {source}, "
                f"got {dict(found.parameters)}"
            ) from error
        for what, stored, wanted in (
            ("weights", found.model_hash, model_hash),
            ("scoring rule", found.rule, rule),
        ):
            if stored != wanted:
                raise ValueError(
                    f"[recalibration] expected a map for {what} {wanted!r}, got one for {stored!r} "
                    f"in {source}; fit it again for this model"
                )
        return found

    def save(self, path: str | Path) -> Path:
        """Write the map as JSON: to the file named, or `calibration.json` in the folder named.

        Returns:
            The path written.
        """
        target = Path(path)
        target = target / FILE if target.is_dir() else target
        draft = target.with_name(target.name + ".tmp")
        text = json.dumps(self.to_dict(), indent=1, ensure_ascii=False, allow_nan=False)
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(target)
        return target

    @classmethod
    def load(cls, path: str | Path, *, model_hash: str, rule: str = "sum") -> Recalibration:
        """Read a map for one model and one scoring rule.

        Args:
            path: the file, or the folder that holds `calibration.json`.
            model_hash: hash of the weights it is to be used with.
            rule: scoring rule it is to be used with.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: for a file that is no map, or one of another model or rule.
        """
        target = Path(path)
        target = target / FILE if target.is_dir() else target
        try:
            content = json.loads(target.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"[recalibration] expected JSON in {target}, got: {error}") from error
        if not isinstance(content, Mapping):
            raise ValueError(f"[recalibration] expected an object in {target}, got a list or value")
        return cls.from_dict(content, model_hash=model_hash, rule=rule, source=str(target))

    @classmethod
    def for_model(cls, path: str | Path, model: Any, *, rule: str = "sum") -> Recalibration:
        """Read the map of a model in memory.

        Args:
            path: the file, or the folder that holds `calibration.json`.
            model: whose weights are hashed and compared with those it was fitted for.
            rule: scoring rule it is to be used with.

        Raises:
            FileNotFoundError, ValueError: as `load`.
        """
        from calibit.fingerprint import weight_hash

        return cls.load(path, model_hash=weight_hash(model), rule=rule)

    def _check_rule(self, scores: Any) -> None:
        if isinstance(scores, Scores) and scores.rule != self.rule:
            raise ValueError(
                f"[recalibration] expected scores of rule {self.rule!r}, got {scores.rule!r}"
            )


def recalibrated(scores: Scores, recorded: Mapping[str, Any] | None) -> Scores:
    """Scores of a run as its recorded map leaves them.

    Args:
        scores: from the run's item lines.
        recorded: entry `recalibration` of run.json, None without one.

    Raises:
        ValueError: for another scoring rule than the map's.
    """
    if recorded is None:
        return scores
    found = Recalibration.from_dict(
        recorded, model_hash=recorded["model_hash"], rule=recorded["rule"], source="run.json"
    )
    return scores if found.top_answer_only else found.scores(scores)


def _labels(scores: Scores, key: str) -> list[str]:
    """The slice of each item under a key.

    Raises:
        ValueError: no item has the key.
    """
    if scores.n and not any(key in one for one in scores.slices):
        known = sorted({name for one in scores.slices for name in one})
        raise ValueError(
            f"[recalibration] expected a slice key of the items ({', '.join(known) or 'none'}), "
            f"got {key!r}"
        )
    return [str(one.get(key, "")) for one in scores.slices]


def items_hash(scores: Scores) -> str:
    """SHA-256 of the labelled items: tasks, ids and right choices, whatever their order."""
    lines = [
        json.dumps([task, item, int(gold)])
        for (task, item), gold in zip(scores.keys, scores.gold, strict=True)
        if gold >= 0
    ]
    return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()


def _parameters(found: CalibrationMap) -> dict[str, Any]:
    if isinstance(found, Temperature):
        return {"temperature": found.value, "clipped": found.clipped}
    if isinstance(found, SliceTemperatures):
        return {**_parameters(found.overall), "slices": dict(found.slices)}
    return {key: plain(value) for key, value in vars(found).items()}


def _table(gain: CalibrationGain) -> dict[str, Any]:
    kept = ("method", "folds", "before", "after", "change", "decides", "shown")
    return {name: plain(getattr(gain, name)) for name in kept}
