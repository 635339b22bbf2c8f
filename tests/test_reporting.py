"""Reports: numbers, drawings, the terminal table at every width, the page, the time left."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from rich.console import Console

from calibit import numbers
from calibit.comparison import compare
from calibit.measures.scores import Scores
from calibit.numbers import Style
from calibit.reporting import (
    everything,
    figures,
    html,
    panels,
    svg,
    tables,
    terminal,
    view,
    wording,
    write_report,
    written,
)
from calibit.reporting.document import of_comparison
from calibit.reporting.progress import ENOUGH, Bar, JobProgress, Lines, Schedule, Stage
from report_data import SCHEMES, FakeRun, audit_of, comparison_of, run_of

Made = tuple[dict[str, Any], dict[str, Mapping[str, np.ndarray]]]

HOSTILE = '<script>alert("x")</script>&amp;'
VOID = {"meta", "br", "link", "img"}


@pytest.fixture(scope="module")
def made() -> Made:
    """Five candidates and one that failed."""
    refused = "[quantize_model] expected a weight-only scheme"
    content, points = audit_of(n=240, resamples=100, errors={"w8a8": refused})
    return json.loads(json.dumps(content)), points


def shown(audit: Mapping[str, Any], width: int, *, ascii_only: bool = False) -> str:
    """The terminal table as plain text."""
    encoding = "ascii" if ascii_only else "utf-8"
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    Console(width=width, file=stream, color_system=None).print(terminal.audit_table(audit))
    stream.seek(0)
    return stream.read()


# Numbers ---------------------------------------------------------------------------------------


def test_a_number_that_rounds_to_zero_has_no_sign() -> None:
    assert numbers.fixed(-0.004, digits=2, signed=True) == "0.00"
    assert numbers.fixed(-0.006, digits=2, signed=True) == "\u22120.01"
    assert numbers.fixed(0.006, digits=2, signed=True) == "+0.01"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (3.2e-06, "3.2e−06"),
        (3.25e-06, "3.3e−06"),
        (9.96e-05, "1.0e−04"),
        (0.00035, "3.5e−04"),
        (0.0012, "0.0012"),
        (0.00125, "0.0013"),
        (1.23456, "1.2346"),
        (-3.2e-06, "−3.2e−06"),
        (5e-324, "4.9e−324"),
    ],
)
def test_a_small_number_is_never_shown_as_zero(value: float, text: str) -> None:
    assert numbers.small(value) == text
    style = Style(4, small=True)
    assert style.value(value) == text and style.interval(0.0, value) == f"[0, {text}]"
    assert numbers.ascii_(text).isascii()


def test_a_small_divergence_is_shown_in_every_report() -> None:
    """A candidate that hardly differs: KL about 3e-7."""
    base, near = run_of("baseline", 0, 0, 16, 1, n=200), run_of("near", 1e-3, 0, 8, 1, n=200)
    made = compare(base, near, resamples=100)
    kl = float(made.kl_ab)
    assert 1e-8 < kl < 1e-5 and made.kl_ab.lower > 0.0
    shown, audit = numbers.small(kl), of_comparison(made)
    row = next(row for row in view.rows(audit) if row.key == "kl_ab")
    assert row.cells[1].value == shown and "0.0000" not in row.cells[1].interval
    assert numbers.ascii_(shown) in str(made)
    assert shown in html.render(audit, {})


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_what_is_no_number_prints_a_dash(value: float | None) -> None:
    for text in (numbers.fixed(value), numbers.significant(value), numbers.size(value)):
        assert text == numbers.MISSING
    assert numbers.interval(value, 1.0) == ""


def test_units_and_words() -> None:
    assert [numbers.size(n) for n in (999, 40_900, 134_515_008, 1.2e9)] == [
        "999 B", "40.9 kB", "135 MB", "1.20 GB",
    ]  # fmt: skip
    assert [numbers.duration(s) for s in (7.4, 370, 7500)] == ["7 s", "6 min 10 s", "2 h 05 min"]
    assert numbers.significant(0.01234) == "0.0123" and numbers.significant(1234.5) == "1,235"
    assert numbers.join(["a", "b", "c"]) == "a, b and c" and numbers.join([]) == ""
    assert numbers.percent(0.95) == "95 %" and numbers.p_value(2e-5) == "< 0.001"


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.037, 0.112), (3, 3000), (0, 1e-4)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    found = svg.ticks(low, high)
    assert 2 <= len(found) <= 11
    assert all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    assert len({numbers.fixed(tick, digits=svg.tick_digits(found)) for tick in found}) == len(found)


# Drawings --------------------------------------------------------------------------------------


def test_drawings_escape_names_and_are_well_formed(made: Made) -> None:
    content, points = made
    comparison = content["candidates"][0]["comparison"]
    bins = comparison["reliability_a"], comparison["reliability_b"]
    own = points["nf4"]
    before, after = own["conf_true_a"], own["conf_true_b"]
    mark = {"x": 1.0, "y": 2.0, "lower": 1.0, "upper": 3.0, "verdict": "ship"}
    drawings = [
        figures.reliability(*bins, name=HOSTILE, ece="3 %"),
        figures.before_after(before, after, own["correct_a"], own["correct_b"], name=HOSTILE),
        figures.change_by_initial(
            comparison["controls"]["initial"]["bins"], name=HOSTILE, reach=0.1
        ),
        figures.trade_off([{**mark, "name": HOSTILE}], x_label=HOSTILE, y_label="y"),
        figures.interval_cell((-9.0, 0.1, 9.0), low=-1, high=1, margin=0.5, tone="hold"),
    ]
    for drawing in drawings:
        ElementTree.fromstring(drawing)
        assert "<script" not in drawing and "nan" not in drawing


def test_values_beyond_the_scale_keep_a_mark() -> None:
    inside = figures.interval_cell((0.1, 0.2, 9.0), low=-1, high=1)
    beyond = figures.interval_cell((5.0, 6.0, 9.0), low=-1, high=1)
    assert 'class="cell-dot "' in inside and 'class="cell-dot off "' in beyond
    assert "arrow" in inside and "arrow" in beyond


def test_trade_off_is_drawn_for_a_phone_too(made: Made) -> None:
    wide, narrow = (ElementTree.fromstring(one) for one in panels.trade_off(made[0]))
    assert wide.get("viewBox") == "0 0 720 340"
    # A phone of 390 pixels leaves 358 for the drawing: texts keep their size.
    assert narrow.get("viewBox") == "0 0 358 340"
    for mark in narrow.iter("circle"):
        assert 0 < float(mark.get("cx", "")) < 358
    text = html.render(*made)
    assert text.count('class="for-narrow"') == 1
    assert "5 candidates: scroll the table sideways" in text


def test_before_after_marks_every_changed_answer() -> None:
    drawing = figures.before_after(
        [0.6, 0.2, 0.9], [0.3, 0.7, 0.9], [True, False, True], [False, True, True], name="x"
    )
    assert drawing.count('class="lost"') == 1 and drawing.count('class="won"') == 1
    assert "1 answers went from right to wrong, 1 from wrong to right" in drawing


def test_reliability_band_is_that_of_a_calibrated_model() -> None:
    """20 items at confidence 0.5: 95 % of calibrated models are right on 6 to 14 of them."""
    rows = [{"lo": 0.4, "hi": 0.6, "n": 20, "conf": 0.5, "acc": 0.5}]
    ((_, low, high),) = figures._consistency(rows)
    assert (low, high) == (0.3, 0.7)


# The terminal table ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 120, 160, 240])
def test_table_fits_its_width_and_shows_every_candidate(made: Made, width: int) -> None:
    text = shown(made[0], width)
    assert max(map(len, text.splitlines())) <= width
    flat = re.sub(r"\s+", "", text)
    for name in (*SCHEMES, "w8a8"):
        assert name in flat
    for word in ("accuracy", "conf_true", "ECE", "perplexity", "KL", "lossshownin", "FAILED"):
        assert word in flat
    assert "nan" not in text.lower() and "None" not in text


@pytest.mark.parametrize(("width", "blocks"), [(80, 2), (100, 1), (160, 1)])
def test_five_candidates_stand_side_by_side_from_100_columns_on(
    made: Made, width: int, blocks: int
) -> None:
    assert shown(made[0], width).count("accuracy %") == blocks


def test_no_interval_is_broken_over_lines(made: Made) -> None:
    for width in (80, 100, 160):
        table = shown(made[0], width).split("\n\nnf4 ")[0]  # reasons are prose and may wrap
        assert table.count("[") == len(re.findall(r"\[[^\[\]\n]+,[^\[\]\n]+\]", table))


def test_wide_table_shows_difference_and_interval_of_the_comparison(made: Made) -> None:
    content, _ = made
    delta = content["candidates"][1]["comparison"]["deltas"]["acc"]
    ends = [100 * delta[key] for key in ("value", "lower", "upper")]
    expected = "{} [{}, {}]".format(*(f"{end:+.1f}".replace("-", "\u2212") for end in ends))
    assert expected in shown(content, 200)


def test_table_without_unicode_is_plain_ascii(made: Made) -> None:
    text = shown(made[0], 100, ascii_only=True)
    assert text.isascii() and "accuracy" in text and "?" not in text


def test_table_prints_itself_in_a_shell_and_in_a_notebook(made: Made) -> None:
    table = terminal.audit_table(made[0])
    assert str(table) == repr(table) and "accuracy %" in str(table)
    assert str(table).splitlines() == shown(made[0], terminal.PLAIN_WIDTH).splitlines()
    assert "accuracy" in table._repr_mimebundle_([], [])["text/plain"]


def test_long_names_are_broken_not_cut() -> None:
    content, _ = audit_of("nf4", n=120, resamples=100)
    name = "some-organisation_a-very-long-checkpoint-name-without-an-end" + "x" * 30
    content["candidates"][0]["scheme"] = name
    text = shown(content, 80)
    assert name in re.sub(r"\s+", "", text.split("\u2500")[0].replace("  original", ""))


def test_rows_leave_out_what_nobody_measured() -> None:
    content, _ = audit_of("nf4", n=120, resamples=100)
    content["candidates"][0]["speed"] = content["baseline"]["speed"] = None
    content["candidates"][0]["comparison"]["texts"] = []
    keys = [row.key for row in view.rows(content)]
    assert "decode_tok_s" not in keys and not any(key.startswith("ppl") for key in keys)
    assert "acc" in keys


def test_tone_needs_an_interval_that_excludes_no_change() -> None:
    assert view.tone({"lower": -2, "upper": -1}, +1) == "worse"
    assert view.tone({"lower": -2, "upper": -1}, -1) == "better"
    assert view.tone({"lower": -2, "upper": 0.1}, +1) == ""
    assert view.tone({"lower": None, "upper": None}, +1) == ""
    assert view.tone({"lower": 1.01, "upper": 1.2}, -1, null=1.0) == "worse"


def test_a_slice_is_the_headline_only_where_its_loss_is_shown(made: Made) -> None:
    content = json.loads(json.dumps(made[0]))
    one = next(c for c in content["candidates"] if c["scheme"] == "fp4-dq")
    worst = one["comparison"]["worst_slice"]
    only = {**content, "candidates": [one]}
    worst |= {"slice": "lang=en", "lower": 0.01, "damage": 0.02, "upper": 0.03}
    row = next(row for row in view.rows(only) if row.key == "worst_slice")
    assert (row.cells[1].value, row.cells[1].tone) == ("en", "worse")
    assert tables.worst_slices([one])[0][1].startswith("en: \u22122.00 points")
    worst |= {"lower": -0.001, "riskiest": "domain=units", "largest_upper": 0.24}
    row = next(row for row in view.rows(only) if row.key == "worst_slice")
    assert row.cells[1] == view.Cell("none shown")
    said = tables.worst_slices([one])[0][1]
    assert said.startswith(
        "no slice is shown to be damaged; units may have lost up to 24.00 points"
    )


def test_slices_are_coloured_by_bounds_that_allow_for_the_search(made: Made) -> None:
    one = json.loads(json.dumps(made[0]["candidates"][1]))
    search = one["comparison"]["worst_slices"]["conf_true"]
    for row in search["slices"]:
        row |= {"lower": -0.1, "upper": 0.2}
    by_name = {row["name"]: row for row in search["slices"]}
    by_name["lang=en"] |= {"lower": 0.01}
    search["slice"] = "lang=en"
    rows = tables.slices([one])[0]["rows"]
    coloured = [row["label"] for row in rows if row["cells"][0]["tone"]]
    assert coloured == ["en"]
    assert [row["label"] for row in rows if row["cells"][0]["worst"]] == ["en"]


def test_a_slice_shows_its_shrunken_change(made: Made) -> None:
    one = json.loads(json.dumps(made[0]["candidates"][1]))
    search = one["comparison"]["worst_slices"]["conf_true"]
    search["shrunken"] = {"lang": {"slices": {"lang=en": 0.0123}}}
    cells = {row["label"]: row["cells"][0] for row in tables.slices([one])[0]["rows"]}
    assert cells["en"]["shrunken"] == "shrunken \u22121.2"
    others = [cell["shrunken"] for label, cell in cells.items() if label != "en"]
    assert others and not any(others)


def test_every_worst_slice_of_the_verdict_is_named(made: Made) -> None:
    measured = view.succeeded(made[0])
    for row in tables.gates(measured):
        for cell in row["cells"]:
            named = re.search(r"in \w+, [\d,]+ items?$", cell["about"])
            assert bool(named) == ("worst slice" in row["label"])
            failed = cell["state"] == wording.GATE_STATES["fail"]
            assert ("99.2\u00a0% interval" in cell["about"]) == failed


def test_the_rule_names_the_level_of_hold(made: Made) -> None:
    gates = made[0]["candidates"][0]["verdict"]["gates"]
    text = wording.rule(gates, 0.95)
    assert "at 99.2 % (95 % corrected for 6 measures)" in text and "right of it" in text
    assert "more are needed" not in wording.VERDICTS["inconclusive"].meaning


# Words -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEMES)
def test_decisive_reasons_are_about_the_gates_that_decide(made: Made, name: str) -> None:
    verdict = next(c for c in made[0]["candidates"] if c["scheme"] == name)["verdict"]
    lines = wording.decisive(verdict)
    states = [gate["state"] for gate in verdict["gates"]]
    expected = {
        "ship": 1,
        "hold": states.count("fail"),
        "inconclusive": states.count("open"),
    }
    assert len(lines) == expected[verdict["verdict"]]


def test_reasons_beside_the_gates_are_kept(made: Made) -> None:
    verdict = dict(made[0]["candidates"][0]["verdict"])
    verdict |= {"verdict": "inconclusive", "reasons": ["Not judged: a (b).", *verdict["reasons"]]}
    assert wording.decisive(verdict)[0] == "Not judged: a (b)."
    said = [*verdict["reasons"], "Too few items to be searched."]  # a remark, after what decides
    assert wording.decisive({**verdict, "reasons": said})[-1] == "Too few items to be searched."
    assert wording.decisive({**verdict, "reasons": said})[0] == "Not judged: a (b)."
    assert wording.deciding_sentences(verdict)[0] == "Not judged: a (b)."


def test_open_gate_says_how_many_items_it_needs() -> None:
    gate = {
        "metric": "worst_slice.acc", "margin": 0.06, "damage": 0.041, "lower": -0.002,
        "upper": 0.08, "state": "open", "n": 360, "n_needed": 3370, "unit": "", "slice": "lang=en",
        "units": "items", "level": 0.95, "method": "tango",
    }  # fmt: skip
    assert wording.gate_line(gate) == (
        "accuracy, worst slice (en): damage +4.1 points [\u22120.2, +8.0], margin 6 points; "
        "needs about 3,370 items in it, has 360"
    )


def test_texts_and_calibration_are_put_in_words(made: Made) -> None:
    text = {"name": "pydoc", "protocol": "gptq@w512@9", "tokens": 4599, "windows": 9}
    assert wording.text_words(text) == "9 disjoint windows of 512 tokens"
    whole = {**text, "protocol": "gptq", "windows": 1}
    assert wording.text_words(whole) == "1 disjoint window of 2,048 tokens"
    apart = {**text, "protocol": "documents@w128", "windows": 3}
    assert wording.text_words(apart) == "3 documents, each read alone, at most 128 tokens of each"
    said = "gptq-int4-g128 was calibrated on 8,192 tokens of pydoc, 16 sequences."
    for shows in (Page(html.render(*made)).text, shown(made[0], 120)):
        assert "gptq@" not in shows and "16 disjoint windows of 65 tokens" in shows
        assert said in shows


def test_speed_has_a_factor_with_an_interval(made: Made) -> None:
    content = json.loads(json.dumps(made[0]))
    row = next(row for row in view.rows(content) if row.key == "decode_tok_s")
    assert row.cells[1].delta == "\u00d71.84"
    assert re.fullmatch(r"\[1\.7\d, 1\.9\d\]", row.cells[1].interval)
    content["candidates"][0]["speed_change"] = {}  # an audit of runs without their repeats
    row = next(row for row in view.rows(content) if row.key == "decode_tok_s")
    assert (row.cells[1].delta, row.cells[1].interval) == ("\u00d71.84", "")
    assert "[1.7" in Page(html.render(*made)).text.split("Memory and speed")[-1]


def test_one_item_is_singular_and_without_an_interval() -> None:
    gate = {
        "metric": "conf_true", "margin": 0.02, "damage": 0.0, "lower": None, "upper": None,
        "state": "open", "n": 1, "n_needed": 30, "unit": "", "slice": None, "units": "items",
        "level": 0.95, "method": "bca",
    }  # fmt: skip
    assert wording.gate_line(gate) == (
        "confidence in the right answer: damage 0.00 points, margin 2 points; "
        "needs about 30 items, has 1"
    )


# The page --------------------------------------------------------------------------------------


class Page(HTMLParser):
    """Checks nesting; collects tags, attributes that load something, and visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [v or "" for k, v in attrs if k in ("src", "href", "xlink:href", "srcset")]
        self.ids += [v or "" for k, v in attrs if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, (tag, self.open[-3:])
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data


def test_page_is_self_contained_well_formed_and_small(made: Made, tmp_path: Path) -> None:
    path = write_report(made[0], tmp_path / "report.html", points=made[1])
    assert path.stat().st_size < 1_500_000
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert "url(" not in text and "@import" not in text
    assert list(tmp_path.iterdir()) == [path]


def test_page_has_every_part(made: Made) -> None:
    page = Page(html.render(*made))
    # This audit has none; see test_workload.py, test_draws.py and test_ablation.py.
    asked_for = {"written", "workload", "languages", "draws", "ablation"}
    expected = {anchor for anchor, _, _ in html._SECTIONS} - asked_for
    assert expected <= set(page.ids) and not asked_for & set(page.ids)
    assert page.tags.count("svg") > 5 * 5
    for text in ("naive", "regression to the mean", "smoke test", "95 % interval", *SCHEMES):
        assert text in page.text
    assert "w8a8" in page.text and "expected a weight-only scheme" in page.text
    assert "nan" not in page.text.lower().split() and "None" not in page.text


def test_page_says_verdicts_in_words_not_only_in_colour(made: Made) -> None:
    content = json.loads(json.dumps(made[0]))
    best = content["candidates"][-2]["verdict"]
    best["verdict"], best["gates"] = "ship", [{**gate, "state": "pass"} for gate in best["gates"]]
    text = Page(html.render(content, made[1])).text
    verdicts = {view.verdict(one) for one in content["candidates"]}
    assert {"ship", "hold", "inconclusive", "failed"} == verdicts
    for verdict in verdicts:
        assert wording.VERDICTS[verdict].word in text


def test_page_escapes_names_slices_errors_and_commands() -> None:
    content, points = audit_of("nf4", n=160, resamples=100, errors={"bad": HOSTILE})
    content["command"] = content["model"]["name"] = content["model"]["path"] = HOSTILE
    content["model"]["notes"] = content["warnings"] = [HOSTILE]
    one = content["candidates"][0]
    points[HOSTILE] = points[one["scheme"]]
    one["scheme"] = HOSTILE
    for row in one["comparison"]["slices"]:
        row["value"] = HOSTILE
    text = html.render(content, points)
    assert "<script" not in text and "&lt;script&gt;" in text
    Page(text)


def test_page_without_labels_text_speed_or_points() -> None:
    """A comparison of unlabelled prompts without a text: fewer sections, no error."""
    runs = [run_of(name, *values, n=60) for name, values in
            (("baseline", (0, 0, 32, 1)), ("nf4", SCHEMES["nf4"]))]  # fmt: skip
    bare = [
        FakeRun({"scheme": run.meta["scheme"]}, Scores.from_arrays(run.given.z), run.nll)
        for run in runs
    ]
    document = of_comparison(compare(*bare, resamples=100))
    page = Page(html.render(document, {}))
    assert "reliability" not in page.ids and "speed" not in page.ids and "glossary" in page.ids
    assert "No item is labelled" in page.text or "no item is labelled" in page.text
    assert "KL" in shown(document, 100)


def test_every_measure_has_its_words_and_its_place_on_the_page(made: Made) -> None:
    one = made[0]["candidates"][0]
    found = one["comparison"]
    assert set(found["a"]) == set(everything._MEASURES)
    page = Page(html.render(*made))
    assert "everything" in page.ids
    table = everything.context([one])[0]
    assert len(table["rows"]) == len(found["a"]) + 5
    for words, *_ in (*everything._MEASURES.values(), *everything._DIVERGENCES.values()):
        assert words in page.text, words
    smooth = next(row for row in table["rows"] if row[0] == "smooth ECE, points")
    assert smooth[1] == numbers.fixed(found["a"]["smece"]["value"], digits=2, scale=100)
    assert smooth[2] == numbers.fixed(found["b"]["smece"]["value"], digits=2, scale=100)
    binned = next(row for row in table["rows"] if row[0].startswith("ECE, bins of equal count"))
    assert binned[5] == f"plug-in, n {found['a']['ece']['n']}, 15 bins (mass), biased"
    hows = {row[0]: row[5] for row in table["rows"]}
    assert (
        f"a bin of {found['a']['mce']['extra']['n_bin']}"
        in hows["largest gap of a bin (MCE), points"]
    )
    assert "1 in 20 above" in hows["ECE of a calibrated model by chance, points"]
    said = " ".join(table["tests"])
    for part in (
        "Smallest damage that so many items show",
        "McNemar: exact p",
        "mid-p",
        "paired t",
        "Wilcoxon",
        "sign flips",
        "Recovery",
    ):
        assert part in said


def test_page_of_an_audit_in_which_everything_failed() -> None:
    content, points = audit_of("nf4", n=60, resamples=100, errors={"x": "no such model"})
    content["candidates"] = [one for one in content["candidates"] if one.get("error")]
    page = Page(html.render(content, points))
    assert "Failed" in page.text and "no such model" in page.text
    assert "FAILED" in shown(content, 100)


def test_a_failed_check_stands_above_the_results(made: Made) -> None:
    """In the terminal before everything else, on the page before the verdicts; without one there is
    no alarm."""
    assert "ALARM" not in shown(made[0], 100) and not view.alarms(made[0])
    assert 'role="alert"' not in html.render(*made)
    content = json.loads(json.dumps(made[0]))
    check = content["candidates"][1]["comparison"]["checks"][0]
    check |= {"passed": False, "count": 3, "first": "probe-7", "detail": f"b: {HOSTILE}"}
    name = content["candidates"][1]["scheme"]
    text = shown(content, 100)
    assert text.startswith("ALARM: the measurement failed its own checks")
    assert f"{name}: {check['check']} failed ({name}: {HOSTILE}, first probe-7)" in text
    page = html.render(content, made[1])
    assert page.index('role="alert"') < page.index('class="cards"')
    assert f"{name}: {check['check']} failed" in Page(page).text
    assert "FAIL" in Page(page).text and "3, first probe-7" in Page(page).text


def test_every_line_of_the_self_audit_is_on_the_page(made: Made) -> None:
    text = Page(html.render(*made)).text
    for check in made[0]["candidates"][0]["comparison"]["checks"]:
        assert check["check"] in text
    assert "original: choices shuffled" in text and "checks passed" in text


def test_at_chance_nothing_is_claimed_about_confidence(made: Made) -> None:
    assert wording.AT_CHANCE not in html.render(*made)
    content = json.loads(json.dumps(made[0]))
    content["candidates"][0]["comparison"]["models"]["b"]["at_chance"] = True
    assert Page(html.render(content, made[1])).text.count(wording.AT_CHANCE) == 1


def test_readers_see_one_name_for_the_original_and_the_level_of_the_audit(made: Made) -> None:
    content = json.loads(json.dumps(made[0]))
    plain = Page(html.render(content, made[1])).text
    assert "which claim more than the usual" not in plain and "95 of 100 such intervals" in plain
    content["protocol"]["level"] = 0.8
    content["model"]["notes"] = content["warnings"] = []
    text = Page(html.render(content, made[1])).text
    assert "the baseline" not in text.lower() and "the reference" not in text.lower()
    assert "80 of 100 such intervals" in text and "Vertical lines are 80 % intervals" in text
    assert "Judged with 80 % intervals, which claim more than the usual 95 %." in text
    assert "whose answer changed, with 80 % intervals" in text
    fixed = r"usual 95 %|95 % (range|point) of a (\.\.\.)?(calibrated|95)"
    assert "95 %" not in re.sub(fixed, "", text)


def test_halves_are_rounded_away_from_zero() -> None:
    """0.0125, its neighbours among the doubles, and its negative print one digit string."""
    for value in (0.0125, np.nextafter(0.0125, 0), np.nextafter(0.0125, 1)):
        assert numbers.fixed(value, scale=100, signed=True) == "+1.3"
        assert numbers.fixed(-value, scale=100) == "\u22121.3"
    assert numbers.fixed(0.0124999, scale=100) == "1.2"
    assert numbers.fixed(1.5e300, digits=0).startswith("1,500,000")


def test_only_a_rise_that_is_shown_names_a_language() -> None:
    ratio = {"value": 1.144, "lower": 1.1, "upper": 1.19}
    worst = {"lang": "fr", "ratio": ratio, "shown": True}
    found = {"comparison": {"parallel": [{"worst": worst}]}}
    unsure = {"comparison": {"parallel": [{"worst": {**worst, "shown": False}}]}}
    [row] = written._language_rows([found, unsure])
    assert row.label == "largest rise of perplexity shown (by its lower bound)"
    assert (row.cells[1].value, row.cells[1].tone) == ("fr", "worse")
    assert row.cells[2].value == "none shown" and not row.cells[2].delta


def test_comparison_writes_its_page(tmp_path: Path) -> None:
    path = comparison_of("nf4", n=160).to_html(tmp_path / "comparison.html")
    page = Page(Path(path).read_text(encoding="utf-8"))
    assert "nf4" in page.text and "reliability" in page.ids


# The time left ---------------------------------------------------------------------------------


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


STAGES = [Stage("evaluate", "a"), Stage("load", "b"), Stage("evaluate", "b"), Stage("load", "c")]
WEIGHTS = {"evaluate": 1.0, "load": 0.2}


def test_time_left_is_unknown_until_a_long_stage_is_under_way() -> None:
    clock = Clock()
    schedule = Schedule(STAGES, WEIGHTS, clock)
    assert schedule.seconds_left() is None
    schedule.enter(0)
    clock.now += 10
    schedule.advance(ENOUGH)
    assert schedule.seconds_left() is None
    schedule.advance(0.5)  # half a stage in 10 s: 10 more, then 0.2, 1 and 0.2 of 20 s
    assert schedule.seconds_left() == pytest.approx(10 + 4 + 20 + 4)


def test_finished_stages_teach_their_kind() -> None:
    clock = Clock()
    schedule = Schedule(STAGES, WEIGHTS, clock)
    for index, seconds in ((0, 20), (1, 10)):
        schedule.enter(index)
        clock.now += seconds
        schedule.leave()
    assert schedule.seconds_left() == pytest.approx(20 + 10)  # a load takes 10 s here, not 4
    assert schedule.done_share() == pytest.approx(30 / 60)


def test_share_counts_weights_until_times_are_known() -> None:
    clock = Clock()
    schedule = Schedule(STAGES, WEIGHTS, clock)
    schedule.enter(1)
    clock.now += 60  # a slow start of a short stage says nothing about the long ones
    schedule.leave()
    assert schedule.done_share() == pytest.approx(1.2 / 2.4)


def test_skipped_stages_teach_nothing() -> None:
    clock = Clock()
    schedule = Schedule(STAGES, WEIGHTS, clock)
    schedule.enter(0)
    schedule.leave(learn=False)
    assert schedule.seconds_left() is None


def test_lines_are_printed_per_stage_and_then_seldom() -> None:
    stream, clock = io.StringIO(), Clock()
    lines = Lines(stream, clock=clock)
    lines.show("first", 0.0, None, new=True)
    lines.show("first", 0.1, 60.0, new=False)
    clock.now += 20
    lines.show("first", 0.2, 125.0, new=False)
    assert stream.getvalue() == "[  0%] first\n[ 20%] first, about 2 min 05 s left\n"


def test_share_never_goes_back() -> None:
    stream = io.StringIO()
    bar = JobProgress(STAGES, WEIGHTS, stream=stream)
    for index in range(len(STAGES)):
        bar.enter(index)
        bar.leave()
    bar.close()
    shares = [int(part) for part in re.findall(r"\[ *(\d+)%\]", stream.getvalue())]
    assert shares == sorted(shares) and len(shares) == len(STAGES)


def test_bar_draws_on_a_terminal_and_cleans_up() -> None:
    stream = io.StringIO()
    bar = Bar(stream)
    bar.show("scoring", 0.5, 61.0, new=True)
    bar.close()
    bar.close()
