"""Policy: which damages are judged, and how large each may be."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from calibit.comparison.evidence import DAMAGES, SLICED

WORST = "worst_slice."
NEEDS = {
    "all_flips": "re-runs of the original: --rigor standard",
    "kl": "re-runs of the original: --rigor standard",
    "gen_acc": "answers in free text",
    "repetition": "answers in free text of 4 tokens and more",
    "token_kl": "a workload: --workload",
    "text_nll": "a text: --text",
    "coverage": "labelled items in several folds",
    "false_accepts": "labelled items in several folds",
}
"""Metric -> what the runs must hold for it, besides labelled items."""

SHARES = (
    "acc",
    "conf_true",
    "brier_top1",
    "gen_acc",
    "coverage",
    "false_accepts",
    "all_flips",
    "repetition",
)
"""Metrics whose damage is a share, at most 1; printed in points, hundredths of it."""

LABELLED = (*DAMAGES, "coverage", "false_accepts")
"""Metrics that labelled items make."""

METRICS = (*DAMAGES, *NEEDS, *(WORST + name for name in SLICED))

_REFUSED = {
    "ece": "its interval misses the truth too often where a candidate is sharper; "
    "gate nll or brier instead",
    "flips": "gate all_flips, the changed answers in excess over re-runs of the original",
    "kl_ab": "gate kl, which is judged in excess over re-runs of the original",
}
_ALIASES = {"ece_mass": "ece", "d_ece": "ece", "mce": "ece"}
_MARGINS = {"acc": 0.03, "conf_true": 0.02, "nll": 0.03}
_DEFAULT: Mapping[str, float] = {
    **_MARGINS,
    **{WORST + key: 2 * margin for key, margin in _MARGINS.items()},
    "gen_acc": 0.03,
}
_WHERE_HELD = frozenset(key for key in _DEFAULT if key not in _MARGINS)


@dataclass(frozen=True)
class Policy:
    """Largest acceptable damage per metric: conventions of the user, not findings.

    Attributes:
        margins: metric -> margin above 0. Metrics are those of METRICS; `worst_slice.acc` and the
            like judge the worst declared slice; `coverage` and `false_accepts` a threshold that
            lets the reference answer 80 % of the items; `all_flips` and `kl` the change in excess
            over re-runs of the original.
        name: printed beside the verdict.
        slices: keys of the slices that the worst one is sought among; all declared ones where
            empty.
        optional: metrics that are judged where the runs hold what it takes, and else not missed.
            Where omitted: of the default margins those of slices and of free text, of others none.

    Raises:
        ValueError: for an unknown or refused metric, or a margin that is not a number above 0, or
            not below 1 for one of SHARES.
    """

    margins: Mapping[str, float] = field(default_factory=lambda: dict(_DEFAULT))
    name: str = "default"
    slices: tuple[str, ...] = ()
    optional: frozenset[str] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not self.margins:
            raise ValueError("[policy] expected at least one margin, got none")
        for metric, margin in self.margins.items():
            problem = _problem(metric, margin)
            if problem:
                raise ValueError(f"[policy] {problem}")

    @property
    def required(self) -> tuple[str, ...]:
        """Metrics that must be judged before anything ships."""
        optional = self.optional
        if optional is None:
            optional = _WHERE_HELD if dict(self.margins) == _DEFAULT else frozenset()
        return tuple(metric for metric in self.margins if metric not in optional)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Policy:
        """Read a policy from a YAML file with a mapping `margins`, and `name` and `slices` where
        wanted.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: naming the file and the key that is wrong.
        """
        import yaml

        try:
            text = Path(path).read_text(encoding="utf-8")
            tree, content = yaml.compose(text, Loader=yaml.SafeLoader), yaml.safe_load(text)
        except UnicodeDecodeError as error:
            raise ValueError(f"[policy] expected UTF-8 text in {path}, got: {error}") from error
        except yaml.YAMLError as error:
            raise ValueError(f"[policy] expected YAML in {path}, got: {error}") from error
        twice = _repeated(tree)
        if twice:
            raise ValueError(f"[policy] expected every key once in {path}, got twice: {twice}")
        misread = _misread(tree, content)
        if misread:
            raise ValueError(f"[policy] {path}, {misread}")
        return cls.from_dict(content, source=str(path))

    @classmethod
    def from_dict(cls, content: Any, *, source: str = "policy") -> Policy:
        """A policy from a mapping with `margins`, and `name` and `slices` where wanted.

        Args:
            content: the mapping.
            source: file name for error messages.

        Raises:
            ValueError: naming the source and the key that is wrong.
        """
        if not isinstance(content, Mapping) or not isinstance(content.get("margins"), Mapping):
            raise ValueError(f"[policy] expected a mapping 'margins' in {source}, got {content!r}")
        unknown = [str(key) for key in content if key not in ("margins", "name", "slices")]
        if unknown:
            raise ValueError(
                f"[policy] expected the keys margins, name and slices in {source}, got "
                f"{', '.join(unknown)}"
            )
        name = content.get("name", Path(source).stem)
        if not isinstance(name, str):
            raise ValueError(f"[policy] expected name, a text, in {source}, got {name!r}")
        slices = content.get("slices")
        slices = [] if slices is None else slices
        if not isinstance(slices, list | tuple) or not all(isinstance(key, str) for key in slices):
            raise ValueError(
                f"[policy] expected slices, a list of slice keys, in {source}, got {slices!r}"
            )
        for metric, margin in content["margins"].items():
            problem = _problem(metric, margin)
            if problem:
                raise ValueError(f"[policy] {source}, margins.{metric}: {problem}")
        margins = {str(metric): float(margin) for metric, margin in content["margins"].items()}
        return cls(margins, name, tuple(slices), frozenset())

    def to_dict(self) -> dict[str, Any]:
        """Name, margins, and slice keys where there are some, as `from_dict` reads them."""
        chosen = {"slices": list(self.slices)} if self.slices else {}
        return {"name": self.name, "margins": dict(self.margins), **chosen}


def _problem(metric: object, margin: object) -> str | None:
    refused = _ALIASES.get(str(metric), str(metric))
    if refused in _REFUSED:
        return f"{metric} cannot be gated: {_REFUSED[refused]}"
    if metric not in METRICS:
        return f"expected a metric of {', '.join(METRICS)}, got {metric!r}"
    if isinstance(margin, bool) or not isinstance(margin, int | float):
        return f"expected a number above 0, got {margin!r}{_hint(margin)}"
    if not (math.isfinite(margin) and margin > 0):
        return f"expected a margin above 0, got {margin!r}"
    if margin >= 1 and str(metric).removeprefix(WORST) in SHARES:
        return f"expected a share below 1, got {margin!r}: margins are shares, 0.02 is 2 points"
    return None


def _hint(margin: object) -> str:
    """What to write for a text that is a number: YAML 1.1 reads 1e-3 as a text."""
    try:
        value = Decimal(margin) if isinstance(margin, str) else Decimal("nan")
    except InvalidOperation:
        return ""
    return f" as text: write {value:f}" if value.is_finite() else ""


def _misread(tree: Any, content: Any) -> str:
    """What is wrong with the first margin that YAML 1.1 reads as another number than it says: 010
    in octal as 8, 1:30 in base 60 as 90."""
    for section, node in _pairs(tree):
        for key, value in _pairs(node) if section.value == "margins" else ():
            number, text = content["margins"].get(key.value), value.value
            if isinstance(number, int | float) and not _says(text, number):
                return (
                    f"margins.{key.value}: expected a decimal number such as 0.02, got {text}, "
                    f"which YAML 1.1 reads as {number}: write the number that is meant in decimals"
                )
    return ""


def _says(text: str, number: float) -> bool:
    """Whether a text is the decimal form of a number; of no number at all `_problem` says more."""
    if isinstance(number, bool) or not math.isfinite(number):
        return True
    try:
        return float(Decimal(text)) == number
    except InvalidOperation:
        return False


def _repeated(tree: Any) -> str:
    """Keys that a YAML tree or a mapping in it holds twice; of these YAML would keep the last."""
    nodes = [tree, *(value for _, value in _pairs(tree))]
    counts = [Counter(str(key.value) for key, _ in _pairs(node)) for node in nodes]
    return ", ".join(key for count in counts for key, times in count.items() if times > 1)


def _pairs(node: Any) -> list[Any]:
    return node.value if getattr(node, "id", None) == "mapping" else []
