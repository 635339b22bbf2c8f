"""The part of the page about thresholds, repair, noise and direction: complete, escaped, plain."""

from __future__ import annotations

import json
import re
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from calibit.comparison import ExtraRuns, compare
from calibit.reporting import controls, figures, html, wording
from calibit.reporting.document import of_comparison
from comparison_runs import MemoryRun, simulated
from report_data import audit_of
from test_comparison_controls import with_lines

SHIP = "yes: the gain is shown"
HOSTILE = '<script>alert("x")</script>&amp;'
Made = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture(scope="module")
def made() -> Made:
    """Two candidates, compared without further runs."""
    content, points = audit_of("nf4", "fp4-dq", n=240, resamples=100)
    return json.loads(json.dumps(content)), points


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    """One candidate with every further run."""
    rng = np.random.default_rng(0)
    a, b = (with_lines(run) for run in simulated(200, noise=0.5, shift=0.2))
    z, gold = np.stack(a.scores().z), a.scores().gold

    def again(base: np.ndarray, size: float) -> MemoryRun:
        return MemoryRun(base + rng.normal(0, size, z.shape), gold)

    extra = ExtraRuns(
        reruns={"half the batch size": again(z, 0.01), HOSTILE: again(z, 0.01)},
        repeat=a,
        other_form=(again(z, 0.1), again(np.stack(b.scores().z), 0.1)),
        perturbed=[again(z, 0.4) for _ in range(8)],
    )
    comparison = compare(a, b, resamples=200, extra=extra)
    return json.loads(json.dumps(of_comparison(comparison)))


def text_of(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", page))


def test_candidates_of_several_bits_are_a_ladder() -> None:
    content, points = audit_of("fp4-dq", "int8-g128", "nf4", n=240, resamples=100)
    found = content["ladder"]
    bits = [row["bits_per_weight"] for row in found["steps"][1:]]
    assert found["steps"][0]["name"] == "baseline" and bits == sorted(bits, reverse=True)
    for row in found["steps"][1:]:
        (one,) = (c for c in content["candidates"] if c["scheme"] == row["name"])
        transfer = one["comparison"]["controls"]["conformal"]["transfer"]
        assert {key: row[key] for key in transfer} == transfer
    losses = {row["name"]: row["loss"] for row in found["steps"][1:]}
    assert losses[found["largest"]] == max(losses.values())
    page = html.render(content, points)
    section = text_of(page[page.index('<section id="ladder">') :].partition("</section>")[0])
    assert "bits per weight, whole model" in section and " original " in section
    alone, points = audit_of("nf4", n=240, resamples=100)
    assert "fewer than two candidates" in alone["ladder"]["reason"]
    assert '<section id="ladder">' not in html.render(alone, points)


def test_a_temperature_at_its_bound_is_not_worth_shipping(full: dict[str, Any]) -> None:
    content = json.loads(json.dumps(full))
    gain = content["candidates"][0]["comparison"]["controls"]["recalibration"]
    assert gain["map"]["clipped"] is False  # as `compare` writes it
    gain["shown"] = True
    assert SHIP in text_of(html.render(content, {}))
    gain["map"]["clipped"] = True
    text = text_of(html.render(content, {}))
    assert SHIP not in text and "no: at the end of the range" in text


def test_page_has_the_sections_of_the_controls(made: Made) -> None:
    page = html.render(*made)
    for anchor, words in (
        ("anatomy", "Where answers changed"),
        ("system", "If a system was built on the original"),
        ("real", "Is the change real"),
    ):
        assert f'<section id="{anchor}">' in page and f'href="#{anchor}"' in page
        assert words in page
    for words in ("A threshold of confidence", "Sets of answers", "What recalibration would give"):
        assert words in page
    plain = text_of(page)
    assert "nan" not in plain.lower().split() and "None" not in plain.split()
    assert plain.count("Perturbation size") == 2  # one a candidate


def test_numbers_of_the_page_are_those_of_the_comparison(made: Made) -> None:
    content, _ = made
    plain = text_of(html.render(*made))
    found = content["candidates"][0]["comparison"]["controls"]
    threshold = found["threshold"]
    shown = [100 * threshold["change"]["coverage"][key] for key in ("value", "lower", "upper")]
    expected = "{} points [{}, {}]".format(*(f"{x:+.1f}".replace("-", "\u2212") for x in shown))
    assert expected.replace("+0.0", "0.0").replace("\u22120.0", "0.0") in plain
    assert f"{found['recalibration']['map']['value']:.2f}" in plain
    assert f"{found['conformal']['transfer']['size']:.2f}" in plain
    assert f"{threshold['tau']:.3f}" in plain


def test_noise_rules_and_claim_are_shown_where_there_are_runs(full: dict[str, Any]) -> None:
    page = html.render(full, {})
    plain = text_of(page)
    for words in (
        "Against the noise of the original",
        "a repetition without any change was bit-identical",
        "above the floor",
        "Another way of scoring",
        "Across two wordings",
        "In excess of 8 noisy copies of the original",
        "laim that unsure items lose more" if "No claim" in plain else "Unsure items lose more",
    ):
        assert words in plain, words
    for rule in ("sum", "token", "char", "byte"):
        assert f'<th scope="col">{rule}</th>' in page
    assert "<script" not in page and "alert(&#34;x&#34;)" in page
    assert not any("evaluated once" in line for line in wording.caveats(full))


def test_without_further_runs_the_limits_say_so(made: Made) -> None:
    content, _ = made
    assert any("evaluated once" in line for line in wording.caveats(content))
    assert "Against the noise" not in html.render(*made)


def test_an_audit_made_before_the_controls_still_prints(made: Made) -> None:
    content, points = json.loads(json.dumps(made[0])), made[1]
    for one in content["candidates"]:
        del one["comparison"]["controls"]
    page = html.render(content, points)
    for anchor in ("anatomy", "system", "real", "initial"):
        assert f'<section id="{anchor}">' not in page


def test_unlabelled_and_tiny_comparisons_have_a_page() -> None:
    z = np.random.default_rng(0).normal(size=(30, 3))
    for runs in ((MemoryRun(z), MemoryRun(z + 0.1 * z**2)), simulated(2)):
        document = json.loads(json.dumps(of_comparison(compare(*runs, resamples=100))))
        assert "<html" in html.render(document, {})


def test_flip_curve_is_well_formed_and_marks_every_group() -> None:
    rows = [
        {
            "margin": 0.2 * i, "n": 10, "flips": 5 - i, "rate": (5 - i) / 10, "lower": 0.0,
            "upper": 0.8, "expected": 4.0 - i,
        }
        for i in range(4)
    ]  # fmt: skip
    drawing = figures.flip_curve(rows, [rows], name=HOSTILE)
    ElementTree.fromstring(drawing)
    assert drawing.count("<circle") == 4 and "<script" not in drawing
    assert "14 of 40 items" in drawing
    ElementTree.fromstring(figures.flip_curve([], [], name="x"))


def test_changes_have_unit_and_interval() -> None:
    estimate = {"value": -0.021, "lower": -0.04, "upper": -0.003}
    assert controls.change(estimate) == "\u22122.1 points [\u22124.0, \u22120.3]"
    assert controls.change({"value": 0.5, "lower": None, "upper": None}, scale=1) == "+0.5 points"
    assert controls.change({"value": None, "lower": None, "upper": None}) == "\u2013"


def test_every_name_of_a_control_has_words() -> None:
    from calibit.measures import anatomy, length_rules

    assert set(controls.CELLS) == set(anatomy.CELLS)
    assert set(controls.CLAIMS) == set(length_rules.CLAIMS)
    states = {length_rules.ROBUST, length_rules.DEPENDENT, length_rules.MIXED}
    assert set(controls.STATES) == states | {length_rules.UNDECIDED}


def test_scores_of_the_fixture_differ_between_rules(full: dict[str, Any]) -> None:
    rules = full["candidates"][0]["comparison"]["controls"]["rules"]["acc"]["changes"]
    assert len({one["value"] for one in rules.values()}) > 1
