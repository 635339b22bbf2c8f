"""Ship, hold or inconclusive, with reasons."""

from calibit.verdict.gates import FAIL, OPEN, PASS, UNJUDGED, Gate
from calibit.verdict.judging import EXIT_CODES, HOLD, INCONCLUSIVE, SHIP, Verdict, judge
from calibit.verdict.policy import METRICS, Policy

__all__ = [
    "EXIT_CODES",
    "FAIL",
    "HOLD",
    "INCONCLUSIVE",
    "METRICS",
    "OPEN",
    "PASS",
    "SHIP",
    "UNJUDGED",
    "Gate",
    "Policy",
    "Verdict",
    "judge",
]
