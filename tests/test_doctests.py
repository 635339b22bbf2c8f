"""Every example in a docstring of the package does what it says."""

from __future__ import annotations

import doctest
import importlib.util
import pkgutil

import calibit


def modules() -> list[str]:
    """Full names of the package and all Python modules below it."""
    found = pkgutil.walk_packages(calibit.__path__, prefix="calibit.")
    specs = (importlib.util.find_spec(info.name) for info in found)
    return ["calibit", *(one.name for one in specs if one and (one.origin or "").endswith(".py"))]


def test_examples_in_docstrings_hold() -> None:
    outcomes = {
        name: doctest.testmod(
            importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE
        )
        for name in modules()
    }
    assert sum(outcome.attempted for outcome in outcomes.values()) > 10
    assert not {name: outcome.failed for name, outcome in outcomes.items() if outcome.failed}
