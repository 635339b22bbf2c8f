"""audit(): quantize or load candidates, evaluate, compare, judge, report."""

from calibit.auditing.driver import audit, run_job
from calibit.auditing.job import Job
from calibit.auditing.result import Audit

__all__ = ["Audit", "Job", "audit", "run_job"]
