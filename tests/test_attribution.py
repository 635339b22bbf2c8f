"""Attribution to layers and bit plans: by hand, on tiny models, killed, refused."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tiny_models
from audit_cases import prepare
from calibit import cli
from calibit.attribution import Attributed, attribute_model, driver
from calibit.attribution.exchange import Exchange
from calibit.attribution.job import budget_bytes
from calibit.attribution.planning import Unit, measure, plan
from calibit.measures import Resampling
from calibit.measures.fidelity import kl_values
from calibit.modules import QuantizedLinear
from calibit.quantization import quantize_model
from calibit.runs import Run

FEW = Resampling(resamples=200)
ALONE = {"1": 1.0, "2": 2.0, "3": 3.0}
PAIRS = {("1", "2"): 0.5, ("1", "3"): -0.2, ("2", "3"): 0.1}


def damage_of(three: float = 0.0, n: int = 40) -> Any:
    """The damage of the specification's example on n items that scatter around it; an option n
    does 1/(n + 1) of the damage alone."""
    scatter = np.random.default_rng(1).normal(0.0, 0.05, n)
    scatter -= scatter.mean()

    def damage(levels: Mapping[str, int]) -> np.ndarray:
        value = sum(ALONE[unit] / (level + 1) for unit, level in levels.items())
        value += sum(v for (a, b), v in PAIRS.items() if a in levels and b in levels)
        value += three * (len(levels) == 3)
        return value + scatter * bool(levels)

    return damage


# By hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("three", "total", "shares", "residual"),
    [(0.0, 6.4, (1.15, 2.3, 2.95), 0.0), (0.3, 6.7, (1.3, 2.45, 3.1), -0.15)],
)
def test_shares_by_hand(
    three: float, total: float, shares: tuple[float, ...], residual: float
) -> None:
    found = measure(damage_of(three), dict.fromkeys("123", 0), list("123"), FEW)
    assert found.total == pytest.approx(total)
    assert [one.share for one in found.units] == pytest.approx(shares)
    assert found.residual == pytest.approx(residual, abs=1e-12)
    if not three:
        assert [one.solo for one in found.units] == pytest.approx([1, 2, 3])
        assert [one.restored for one in found.units] == pytest.approx([1.3, 2.6, 2.9])
    assert all(one.lower < one.share < one.upper and one.p < 0.05 for one in found.units)


def units_of(sizes: Mapping[str, tuple[int, ...]]) -> list[Unit]:
    """Units with these bytes; each option has a quarter of the squared error of the one before."""
    return [
        Unit(name, own, tuple(4.0**-level for level in range(len(own))))
        for name, own in sizes.items()
    ]


def planned(sizes: Mapping[str, tuple[int, ...]], budget: int, **options: Any) -> Any:
    """A plan for the example."""
    damage, names = damage_of(), list(sizes)
    first = measure(damage, dict.fromkeys(names, 0), names, FEW)
    return plan(damage, units_of(sizes), first, budget, FEW, **options)


def test_greedy_by_share_per_byte() -> None:
    """Shares 1.15, 2.3, 2.95 over 10, 40, 30 further bytes: .115, .0575, .0983 per byte."""
    found = planned({"1": (10, 20), "2": (10, 50), "3": (10, 40)}, 70)
    assert [step.unit for step in found.steps] == ["1", "3"]
    assert found.levels == {"1": 1, "2": 0, "3": 1} and found.bytes == 70 and found.rounds == 1
    assert "does not fit" in found.reason
    # What is too large is passed over for what fits.
    found = planned({"1": (10, 90), "2": (10, 50), "3": (10, 60)}, 70)
    assert [step.unit for step in found.steps] == ["2"]


def test_a_second_upgrade_counts_by_its_error_until_measured() -> None:
    sizes = {"1": (10, 20, 30), "2": (10, 20, 30), "3": (10, 20, 30)}
    blind = planned(sizes, 60)
    # 2.95, 2.3, 1.15, then a quarter of each: 0.7375
    assert [step.unit for step in blind.steps] == ["3", "2", "1"]
    assert planned(sizes, 70).steps[3].share == pytest.approx(2.95 / 4)
    seen = planned(sizes, 60, every=1)
    # Measured again after two: of 3 and 2 half is left alone; with the pairs 1.45 and 1.3 to 1.15.
    assert [step.unit for step in seen.steps] == ["3", "2", "3"]
    assert [step.round for step in seen.steps] == [0, 1, 2]
    assert seen.steps[2].share == pytest.approx(1.45)


def test_plans_that_end_early() -> None:
    sizes = {"1": (10, 20), "2": (10, 20), "3": (10, 20)}
    assert planned(sizes, 1000).levels == {"1": 1, "2": 1, "3": 1}
    harmless = plan(
        lambda levels: np.zeros(12) - 0.1 * len(levels),
        units_of(sizes),
        measure(
            lambda levels: np.zeros(12) - 0.1 * len(levels),
            dict.fromkeys("123", 0),
            list("123"),
            FEW,
        ),
        1000,
        FEW,
    )
    assert not harmless.steps and harmless.reason == "no unit left to upgrade has a share above 0"
    with pytest.raises(ValueError, match="budget of at least 30 bytes"):
        planned(sizes, 29)
    with pytest.raises(ValueError, match=r"schemes of rising size.*\[10, 10\] bytes in 2"):
        planned({**sizes, "2": (10, 10)}, 60)


def test_budgets() -> None:
    assert budget_bytes("4.5", 1000) == 562 and budget_bytes("90MB", 1) == 90_000_000
    assert budget_bytes("1.2 GB", 1) == 1_200_000_000 and budget_bytes("77b", 1) == 77
    for text in ("", "0", "-3", "4.5 bits", "9M", "many"):
        with pytest.raises(ValueError, match="expected a budget in bits per weight"):
            budget_bytes(text, 10)


# Exchange --------------------------------------------------------------------------------------


def test_layers_are_exchanged_and_restored() -> None:
    model = tiny_models.build("llama")
    ids = tiny_models.tokens()
    before, modules = tiny_models.logits(model, ids), dict(model.named_modules())
    exchange = Exchange(model, "blocks")
    exchange.quantize_("int4-g16")
    exchange.quantize_("int8-g16")
    assert torch.equal(tiny_models.logits(model, ids), before)
    assert not hasattr(model.config, "quantization_config")
    assert [unit.name for unit in exchange.units()] == ["model.layers.0", "model.layers.1"]
    whole = tiny_models.build("llama")
    quantize_model(whole, "int4-g16")
    exchange.set_({"model.layers.0": 0, "model.layers.1": 0})
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(whole, ids))
    mixed = tiny_models.build("llama")
    quantize_model(mixed, {"layers.1": "int8-g16"})
    exchange.set_({"model.layers.1": 1})
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(mixed, ids))
    exchange.restore_()
    assert dict(model.named_modules()) == modules
    sizes = sum(unit.bytes[0] for unit in exchange.units())
    layers = [one for one in whole.modules() if isinstance(one, QuantizedLinear)]
    assert sizes == sum(one.nbytes_codes + one.nbytes_meta for one in layers)
    assert all(unit.errors[1] < unit.errors[0] / 50 for unit in exchange.units())  # 4 bits: 1/256


def test_experts_are_exchanged() -> None:
    model, whole = (tiny_models.build("mixtral") for _ in range(2))
    ids = tiny_models.tokens()
    before = tiny_models.logits(model, ids)
    exchange = Exchange(model, "blocks")
    exchange.quantize_("int4-g16")
    assert torch.equal(tiny_models.logits(model, ids), before)
    quantize_model(whole, "int4-g16")
    exchange.set_({unit.name: 0 for unit in exchange.units()})
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(whole, ids))
    exchange.restore_()
    quantize_model(model, {unit.name: "int4-g16" for unit in exchange.units()})
    assert torch.equal(tiny_models.logits(model, ids), tiny_models.logits(whole, ids))


def test_layers_outside_of_the_blocks_are_units_of_their_own() -> None:
    exchange = Exchange(tiny_models.build("opt"), "blocks")
    exchange.quantize_("int8-g16")
    names = [unit.name for unit in exchange.units()]
    assert len(names) == 4 and sum(".layers." in name for name in names) == 2


@pytest.mark.parametrize("scheme", ["fp16", "int8-head", "int8-kv8"])
def test_schemes_that_are_no_matter_of_single_layers(scheme: str) -> None:
    with pytest.raises(ValueError, match=r"\[attribute\] expected a scheme that quantizes single"):
        Exchange(tiny_models.build("llama"), "blocks").quantize_(scheme)


# Whole -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, items and a text on disk."""
    torch.set_num_threads(1)
    return prepare(tmp_path_factory.mktemp("attribution"))


def settings_of(folder: Path, **changes: Any) -> dict[str, Any]:
    """A small attribution with a plan."""
    return {
        "model": folder / "model",
        "scheme": "int3-g16",
        "upgrades": ("int4-g16", "int8-g16"),
        "budget": 6.0,
        "tasks": str(folder / "items.jsonl"),
        "limit": None,
        "resamples": 120,
        **changes,
    }


@pytest.fixture(scope="module")
def finished(folder: Path) -> tuple[Attributed, str]:
    """An attribution, and what it showed on the way."""
    said = io.StringIO()
    found = attribute_model(**settings_of(folder), out=folder / "finished", progress=said)
    return found, said.getvalue()


def test_cost_is_said_first(finished: tuple[Attributed, str]) -> None:
    assert "6 evaluations of" in finished[1] and "for 2 blocks" in finished[1]
    assert "3 of" in finished[1]


def test_attribution_is_that_of_its_runs(finished: tuple[Attributed, str]) -> None:
    found, runs = finished[0], finished[0].path / "runs"
    by_scheme = {run.meta["scheme"]: run for run in map(Run.load, sorted(runs.iterdir()))}
    base = Run.load(runs / "original").scores()

    def kl(levels: dict[str, str]) -> float:
        scores = by_scheme[json.dumps(levels)].scores()
        assert scores.ids == base.ids
        return float(kl_values(base.distributions, scores.distributions).mean())

    first, second = "model.layers.0", "model.layers.1"
    low = "int3-g16"
    total = kl({first: low, second: low})
    data = found.data["attribution"]
    assert data["total"] == pytest.approx(total, rel=1e-12)
    for one, other in ((first, second), (second, first)):
        row = next(unit for unit in data["units"] if unit["name"] == one)
        assert row["solo"] == pytest.approx(kl({one: low}), rel=1e-9)
        assert row["restored"] == pytest.approx(total - kl({other: low}), rel=1e-9)
    assert data["residual"] == pytest.approx(0.0, abs=1e-12)  # two units interact in pairs only


def test_items_that_plan_and_items_that_judge(finished: tuple[Attributed, str]) -> None:
    found, runs = finished[0], finished[0].path / "runs"
    planning = {item["id"] for item in Run.load(runs / "original").items()}
    judging = {item["id"] for item in Run.load(runs / "final-original").items()}
    assert planning.isdisjoint(judging) and len(planning) + len(judging) == 80
    assert (found.data["n_measured"], found.data["n_final"]) == (len(planning), len(judging))


def test_plan_is_a_scheme(finished: tuple[Attributed, str], folder: Path) -> None:
    found = finished[0]
    assert found.plan is not None
    schemes = json.loads(found.plan.read_text(encoding="utf-8"))
    assert set(schemes) == {"model.layers.0", "model.layers.1"}
    data = found.data["plan"]
    assert data["bytes"] <= data["budget"] and data["bits_per_weight"] <= 6.0
    model = tiny_models.build("llama")
    report = quantize_model(model, found.plan)
    assert report.bits_per_weight == pytest.approx(data["bits_per_weight"], rel=1e-12)
    judged = found.data["final"]
    assert set(judged) == {"int3-g16", "plan"}
    assert judged["plan"]["kl_ab"]["value"] < judged["int3-g16"]["kl_ab"]["value"]
    assert not list(found.path.glob("layers-*"))
    text = re.sub(r"\s+", " ", str_of(found))
    assert "model.layers.1" in text and "interactions of three and more units" in text
    assert "items set apart" in text


def test_a_large_residual_is_said(finished: tuple[Attributed, str]) -> None:
    found = finished[0]
    assert "a rough guide" not in str_of(found)
    far = {**found.data["attribution"], "residual": 0.3 * found.data["attribution"]["total"]}
    text = str_of(Attributed(found.path, {**found.data, "attribution": far}))
    assert "more than 25 % of the damage" in text.replace("\u202f", " ").replace("\xa0", " ")


def str_of(found: Attributed) -> str:
    """The table as text."""
    from rich.console import Console

    console = Console(width=140, color_system=None)
    with console.capture() as captured:
        console.print(found.table())
    return captured.get()


def test_killed_attribution_reads_its_finished_runs(
    finished: tuple[Attributed, str], folder: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    out, made = tmp_path / "cut", []
    evaluate = driver._State.evaluate

    def counted(self: Any, items: Any, name: str, *, scheme: str) -> Run:
        fresh = not (self.folder / "runs" / name / "manifest.json").is_file()
        made.append(fresh)
        if sum(made) == 4:
            raise KeyboardInterrupt
        return evaluate(self, items, name, scheme=scheme)

    with monkeypatch.context() as patch:
        patch.setattr(driver._State, "evaluate", counted)
        with pytest.raises(KeyboardInterrupt):
            attribute_model(**settings_of(folder), out=out)
    assert len(list((out / "runs").iterdir())) == 3
    with pytest.raises(ValueError, match=r"\[attribution\] expected the same job as the attr"):
        attribute_model(**settings_of(folder, objective="nll"), out=out)
    again = attribute_model(**settings_of(folder), out=out)
    for key in ("attribution", "plan", "final"):
        assert again.data[key] == finished[0].data[key]
    before = (out / "attribution.json").read_bytes()
    assert attribute_model(**settings_of(folder), out=out).data == again.data
    assert (out / "attribution.json").read_bytes() == before


@pytest.mark.parametrize("objective", ["conf_true", "nll"])
def test_other_damages_of_linears(folder: Path, tmp_path: Path, objective: str) -> None:
    changes = {"budget": None, "units": "linears", "objective": objective, "limit": 12}
    found = attribute_model(**settings_of(folder, **changes), out=tmp_path / "out")
    assert len(found.data["attribution"]["units"]) == 14 and found.plan is None
    runs = found.path / "runs"
    whole = next(
        run
        for run in map(Run.load, sorted(runs.iterdir()))
        if run.meta["scheme"].count("int3-g16") == 14
    )
    base, scores = Run.load(runs / "original").scores(), whole.scores()
    sides = [one.distributions.of(base.gold)[objective == "nll"] for one in (base, scores)]
    assert found.data["attribution"]["total"] == pytest.approx(float((sides[0] - sides[1]).mean()))


def test_layers_of_a_solver(folder: Path, tmp_path: Path) -> None:
    changes = {
        "scheme": "gptq-int3-g16", "upgrades": "gptq-int4-g16", "budget": "4.6",
        "calibration": folder / "text.txt", "calibration_tokens": 128, "limit": 40,
    }  # fmt: skip
    found = attribute_model(**settings_of(folder, **changes), out=tmp_path / "out")
    schemes = set(found.data["plan"]["schemes"].values())
    assert schemes == {"gptq-int3-g16", "gptq-int4-g16"}
    assert found.data["final"]["plan"]["bits_per_weight"] <= 4.6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"units": "heads"}, "expected units to be one of blocks, linears, got 'heads'"),
        ({"objective": "ece"}, "expected objective to be one of kl, conf_true, nll"),
        ({"budget": "2.0"}, "expected a budget of at least"),
        ({"upgrades": "int2-g16"}, "schemes of rising size"),
        ({"limit": 8}, "expected at least 10 items to measure on"),
        ({"scheme": "keep"}, "keep"),
    ],
)
def test_what_is_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        attribute_model(**settings_of(folder, **changes), out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_line(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    words = ["attribute", str(folder / "model"), "int3-g16", "--tasks", str(folder / "items.jsonl")]
    words += ["--limit", "40", "--resamples", "120", "--budget", "8", "--upgrade", "int8-g16,keep"]
    assert cli.main([*words, "-o", str(out), "--json"]) == 0
    answer = capsys.readouterr()
    assert json.loads(answer.out)["plan"]["levels"] and "evaluations of" in answer.err
    made = tmp_path / "model"
    plan_file = str(out / "plan.json")
    assert cli.main(["quantize", str(folder / "model"), plan_file, "-o", str(made), "-q"]) == 0
    assert (made / "model.safetensors").is_file()
