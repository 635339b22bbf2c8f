"""The whole instrument tried on data whose answer is known: kernels, measures, verdicts, and a tiny
random model from prompt to report. No network, no files outside a temporary folder, a few seconds.

Every line must pass on a sound installation. Some lines plant a fault and pass only where it is
found: an instrument that never complains is no instrument.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from calibit.measures.self_audit import Check

if TYPE_CHECKING:
    from rich.console import Group, RenderableType

    from calibit.comparison import Comparison
    from calibit.runs import Run

SCHEMES = ("nf4", "fp4", "mxfp4", "int4-g32", "int8")
ITEMS = 300
FEW = 12
RESAMPLES = 200
SEED = 20261121

_EPS = 2.0**-23


def selftest() -> list[Check]:
    """Try everything; a line that raises has failed, and the others go on.

    Returns:
        One check per line; `passed` says whether it holds.
    """
    found: list[Check] = []
    for name, part in _PARTS.items():
        try:
            found += part()
        except Exception as error:
            found.append(Check(name, False, 1, None, f"{type(error).__name__}: {error}"))
    return found


def render(checks: Sequence[Check], *, above: RenderableType = "") -> Group:
    """The lines for a terminal, and how many failed.

    Args:
        checks: what `selftest` returned.
        above: what stands before them.
    """
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table("self-test", "", "what was seen", box=None, pad_edge=False)
    for one in checks:
        style = "" if one.passed else "bold red"
        outcome = "pass" if one.passed else "FAIL"
        table.add_row(Text(one.check), outcome, Text(one.detail), style=style)
    failed = [one.check for one in checks if not one.passed]
    closing = f"All {len(checks)} lines passed."
    if failed:
        closing = f"{len(failed)} of {len(checks)} lines failed: {', '.join(failed)}."
    return Group(above, "", table, "", Text(closing, style="bold red" if failed else "bold"))


def _line(check: str, passed: bool, detail: str) -> Check:
    return Check(check, bool(passed), int(not passed), None, detail)


# Kernels ---------------------------------------------------------------------------------------


def _kernels() -> list[Check]:
    """The fused product against the dense one with the restored weight."""
    import torch

    import calibit

    generator = torch.Generator().manual_seed(SEED)
    weight = torch.randn(40, 96, generator=generator)
    x = torch.randn(3, 96, generator=generator)
    found = []
    for scheme in SCHEMES:
        packed = calibit.quantize(weight, scheme)
        dense = x.double() @ packed.dequantize().double().T
        worst = float((calibit.linear(x, packed).double() - dense).abs().max())
        # Sums of 96 products in another order: at most 96 roundings of the sum of magnitudes.
        allowed = 96 * _EPS * float((x.abs() @ packed.dequantize().abs().T).max())
        detail = f"fused against dense: off by {worst:.1e}, rounding allows {allowed:.1e}"
        found.append(_line(f"linear, {scheme}", worst <= allowed, detail))
    return found


# Measures and verdicts -------------------------------------------------------------------------


def _simulated(*, loss: float = 0.0, n: int = ITEMS) -> tuple[Run, Run]:
    """Two runs of n items with four choices: labels drawn from the reference's own probabilities;
    the candidate's right answers score `loss` nats less."""
    from calibit.runs import Run

    rng = np.random.default_rng(SEED)
    z = rng.normal(0.0, 1.5, (n, 4))
    gold = np.argmax(z + rng.gumbel(size=z.shape), axis=1)
    moved = z.copy()
    moved[np.arange(n), gold] -= loss
    return Run.of(_META, _lines(z, gold)), Run.of(_META, _lines(moved, gold))


_META: Mapping[str, Any] = {
    "tokenizer_hash": "00",
    "bos": "tokenizer",
    "text": [],
    "scheme": "none",
    "model": {"name": "simulated"},
}


def _lines(z: np.ndarray, gold: np.ndarray) -> list[dict[str, Any]]:
    ll = z - np.logaddexp.reduce(z, axis=1, keepdims=True)
    return [
        {
            "kind": "choice",
            "id": f"item-{index}",
            "task": "simulated",
            "slices": {},
            "gold": int(label),
            "ll": row.tolist(),
            "tokens": [1] * len(row),
            "is_greedy": [bool(value == row.max()) for value in row],
            "context_hash": f"{index:04x}",
            "choices_hash": "00",
        }
        for index, (row, label) in enumerate(zip(ll, gold, strict=True))
    ]


def _measures() -> list[Check]:
    """The self-audit's own lines on simulated items, whose reference is calibrated."""
    from calibit.comparison import compare

    same = compare(*_simulated(), resamples=RESAMPLES)
    found = _together("measures, self-audit", same.checks)
    null = float(same.a["ece_null"].extra["p95"])
    ece = float(same.a["ece"])
    detail = f"ECE {ece:.4f} of a calibrated model; by chance up to {null:.4f} in 95 % of cases"
    return [*found, _line("measures, calibrated model", ece <= null, detail)]


def _together(name: str, checks: Sequence[Check]) -> list[Check]:
    """The checks that failed; where none did, one line for all of them."""
    failed = [replace(one, check=f"{name}: {one.check}") for one in checks if not one.passed]
    names = ", ".join(dict.fromkeys(one.check for one in checks))
    return failed or [_line(name, bool(checks), f"{len(checks)} checks passed: {names}")]


def _verdicts() -> list[Check]:
    """`ship` for a model against itself, `hold` for a planted loss, `inconclusive` for few."""
    from calibit.comparison import compare

    cases: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("ship", "a model against itself", {}),
        ("hold", "right answers made 1 nat less likely", {"loss": 1.0}),
        ("inconclusive", f"{FEW} items", {"n": FEW}),
    )
    found = []
    for expected, what, options in cases:
        said = compare(*_simulated(**options), resamples=RESAMPLES).verdict().verdict
        found.append(_line(f"verdict, {expected}", said == expected, f"{what}: {said}"))
    return found


def _faults() -> list[Check]:
    """Faults planted in one run of a pair: each must be refused or raise the alarm."""
    return [*(_refused(*case) for case in _REFUSED), *(_alarmed(*case) for case in _ALARMS)]


_REFUSED: tuple[tuple[str, str, Mapping[str, Any], Callable[[list[Any]], Any]], ...] = (
    ("a lost item", "same items", {}, lambda lines: lines.pop()),
    ("an item twice", "once", {}, lambda lines: lines.append(lines[0])),
    ("another label", "right answer", {}, lambda lines: lines[5].update(gold=-1)),
    ("another prompt", "same prompt", {}, lambda lines: lines[5].update(context_hash="ff")),
    ("another tokenizer", "same tokenizer", {"tokenizer_hash": "11"}, lambda lines: None),
    ("another BOS rule", "same BOS rule", {"bos": "never"}, lambda lines: None),
    ("a NaN", "finite", {}, lambda lines: lines[5]["ll"].__setitem__(0, float("nan"))),
)
"""Fault -> words of the refusal, changes of run.json, changes of the lines."""

_ALARMS: tuple[tuple[str, Callable[[list[Any]], Any]], ...] = (
    ("log-probabilities", lambda lines: lines[5]["ll"].__setitem__(0, 0.5)),
    ("greedy consistency", lambda lines: lines[5]["is_greedy"].reverse()),
    ("exact ties", lambda lines: [line.update(ll=[-1.0, -1.0, -2.0, -3.0]) for line in lines[:9]]),
    ("constant confidence", lambda lines: [line.update(ll=[-1.4] * 4) for line in lines[:40]]),
)
"""Check that must fail -> changes of the lines."""


def _damaged(change: Callable[[list[Any]], Any], meta: Mapping[str, Any]) -> tuple[Run, Run]:
    from calibit.runs import Run

    a, b = _simulated()
    lines = b.items()
    change(lines)
    return a, Run.of({**b.meta, **meta}, lines)


def _refused(
    fault: str, words: str, meta: Mapping[str, Any], change: Callable[[list[Any]], Any]
) -> Check:
    from calibit.comparison import compare

    try:
        compare(*_damaged(change, meta), resamples=RESAMPLES)
    except ValueError as error:
        return _line(f"refused, {fault}", words in str(error), str(error))
    return _line(f"refused, {fault}", False, "was compared as if nothing were wrong")


def _alarmed(check: str, change: Callable[[list[Any]], Any]) -> Check:
    from calibit.comparison import compare

    found = compare(*_damaged(change, {}), resamples=RESAMPLES)
    failed = list(dict.fromkeys(one.check for one in found.checks if not one.passed))
    verdict = found.verdict().verdict
    passed = check in failed and verdict == "inconclusive"
    return _line(f"alarm, {check}", passed, f"failed: {', '.join(failed) or 'none'}; {verdict}")


# A model from prompt to report -----------------------------------------------------------------


def _model() -> list[Check]:
    """A tiny random model: scored twice, quantized, compared, judged, reported."""
    import torch

    from calibit.comparison import compare
    from calibit.evaluation import evaluate
    from calibit.measures.run_checks import identical_run
    from calibit.quantization import quantize_model
    from calibit.tasks import limit, load

    with torch.random.fork_rng(devices=[]), tempfile.TemporaryDirectory() as place:
        torch.manual_seed(SEED)
        tokenizer, model = _tiny()
        items = limit(load("probe:en"), 24, seed=0)
        folders = [Path(place) / name for name in ("once", "again", "nf4")]
        once, again = (
            evaluate(model, tokenizer, items, out=folder, command="selftest")
            for folder in folders[:2]
        )
        quantize_model(model, "nf4")
        evaluate(model, tokenizer, items, out=folders[2], scheme="nf4", command="selftest")
        own = compare(*folders[:2], resamples=RESAMPLES)
        moved = compare(folders[0], folders[2], resamples=RESAMPLES)
    kl, flips = float(own.kl_ab), own.flips.all_flips
    return [
        identical_run(once.items(), again.items()),
        _line("model, against itself", kl == 0.0 and flips == 0, f"KL {kl:g}, {flips} flips"),
        _line("model, nf4", float(moved.kl_ab) > 0.0, f"KL {float(moved.kl_ab):.3g}, above 0"),
        *_together("model, self-audit", moved.checks),
        _report(moved),
    ]


def _tiny() -> tuple[Any, Any]:
    """A tokenizer of bytes and a random model of two layers for its vocabulary."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    names = ["<bos>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    core = Tokenizer(models.BPE(vocab={name: at for at, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<bos>")
    config = AutoConfig.for_model(
        "llama",
        vocab_size=len(names),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=0,
        initializer_range=0.15,
    )
    return tokenizer, AutoModelForCausalLM.from_config(config).eval()


def _report(comparison: Comparison) -> Check:
    from calibit.reporting.document import of_comparison
    from calibit.reporting.html import render as page

    document = of_comparison(comparison)
    text = page(document, {document["candidates"][0]["scheme"]: comparison.points})
    whole = text.rstrip().endswith("</html>") and "nf4" in text and str(comparison)
    return _line("model, report", bool(whole), f"{len(text):,} characters of HTML")


_PARTS: Mapping[str, Callable[[], list[Check]]] = {
    "kernels": _kernels,
    "measures": _measures,
    "verdicts": _verdicts,
    "faults": _faults,
    "model": _model,
}
