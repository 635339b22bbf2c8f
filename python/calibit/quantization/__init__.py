"""Quantizing whole models: plans, calibration, the GPTQ driver, and the report."""

from calibit.fingerprint import weight_hash
from calibit.quantization.calibration_text import Calibration
from calibit.quantization.checkpoint import quantize_checkpoint
from calibit.quantization.model import quantize_model
from calibit.quantization.plans import Plan
from calibit.quantization.report import KeptWeight, ModuleReport, Report

__all__ = [
    "Calibration",
    "KeptWeight",
    "ModuleReport",
    "Plan",
    "Report",
    "quantize_checkpoint",
    "quantize_model",
    "weight_hash",
]
