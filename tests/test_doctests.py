"""Every example in a docstring of the package does what it says."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil

import calibit

EXTRAS = {"calibit.lm_eval": "lm_eval", "calibit._lora_layer": "peft"}
"""Modules that need a package of an optional group -> that package."""


def modules() -> list[str]:
    """Full names of the package and all Python modules below it that can be imported here."""
    found = pkgutil.walk_packages(calibit.__path__, prefix="calibit.")
    specs = (importlib.util.find_spec(info.name) for info in found)
    names = [one.name for one in specs if one and (one.origin or "").endswith(".py")]
    extras = {name: EXTRAS[name] for name in names if name in EXTRAS}
    absent = {name for name, need in extras.items() if importlib.util.find_spec(need) is None}
    return ["calibit", *(name for name in names if name not in absent)]


def test_examples_in_docstrings_hold() -> None:
    outcomes = {
        name: doctest.testmod(
            importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
        )
        for name in modules()
    }
    assert sum(outcome.attempted for outcome in outcomes.values()) > 10
    assert not {name: outcome.failed for name, outcome in outcomes.items() if outcome.failed}
