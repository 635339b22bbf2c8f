"""compare(): two runs on the same items -> Comparison."""

from calibit.comparison.driver import compare
from calibit.comparison.pairing import RunLike
from calibit.comparison.result import Comparison, Flips
from calibit.comparison.speeds import speed_changes
from calibit.comparison.texts import TextComparison

__all__ = ["Comparison", "Flips", "RunLike", "TextComparison", "compare", "speed_changes"]
