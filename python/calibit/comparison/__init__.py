"""compare(): two runs on the same items -> Comparison."""

from calibit.comparison.ablation import GridAndRounding, compare_ablation
from calibit.comparison.controls import Controls, ExtraRuns
from calibit.comparison.draws import Draws, compare_draws
from calibit.comparison.driver import compare
from calibit.comparison.pairing import RunLike
from calibit.comparison.result import Comparison, Flips
from calibit.comparison.speeds import speed_changes
from calibit.comparison.texts import TextComparison

__all__ = [
    "Comparison",
    "Controls",
    "Draws",
    "ExtraRuns",
    "Flips",
    "GridAndRounding",
    "RunLike",
    "TextComparison",
    "compare",
    "compare_ablation",
    "compare_draws",
    "speed_changes",
]
