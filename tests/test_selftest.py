"""`calibit doctor --selftest`: every line passes here, and fails where something is broken."""

from __future__ import annotations

import json

import pytest

import calibit
from calibit import selftest
from calibit.cli import main
from calibit.commands.options import Code
from calibit.measures.self_audit import Check


@pytest.fixture(scope="module")
def lines() -> list[Check]:
    return selftest.selftest()


def test_every_line_passes(lines: list[Check]) -> None:
    assert [one for one in lines if not one.passed] == []
    names = [one.check for one in lines]
    assert len(set(names)) == len(names) >= 26
    for part in ("linear, nf4", "verdict, hold", "refused, an item twice", "model, self-audit"):
        assert part in names


def test_a_wrong_kernel_fails_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    right = calibit.linear
    monkeypatch.setattr(calibit, "linear", lambda x, q: right(x, q) * (1 + 1e-4))
    failed = [one.check for one in selftest._kernels() if not one.passed]
    assert failed == [f"linear, {scheme}" for scheme in selftest.SCHEMES]


def test_a_verdict_that_never_holds_fails_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    from calibit.verdict import gates

    monkeypatch.setattr(gates, "FAIL", "never")
    failed = [one.check for one in selftest._verdicts() if not one.passed]
    assert failed == ["verdict, hold"]


def test_a_fault_that_is_not_found_fails_its_line() -> None:
    """Nothing was damaged, so nothing is refused and no alarm is raised."""
    refused = selftest._refused("nothing", "same items", {}, lambda lines: None)
    alarmed = selftest._alarmed("exact ties", lambda lines: None)
    assert not refused.passed and "as if nothing were wrong" in refused.detail
    assert not alarmed.passed and "failed: none" in alarmed.detail


def test_exit_code_and_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = Check("good", True, 0, None, "as expected")

    def broken() -> list[Check]:
        raise RuntimeError("the part broke")

    monkeypatch.setattr(selftest, "_PARTS", {"good": lambda: [good]})
    assert main(["doctor", "--selftest"]) == Code.DONE
    assert "All 1 lines passed." in capsys.readouterr().out
    monkeypatch.setattr(selftest, "_PARTS", {"good": lambda: [good], "bad": broken})
    assert main(["doctor", "--selftest"]) == Code.FAILED
    text = capsys.readouterr().out
    assert "RuntimeError: the part broke" in text and "1 of 2 lines failed: bad." in text
    assert main(["doctor", "--selftest", "--json"]) == Code.FAILED
    found = json.loads(capsys.readouterr().out)["selftest"]
    assert [(one["check"], one["passed"]) for one in found] == [("good", True), ("bad", False)]
