"""quantize_model: a whole model in place, layer by layer.

Everything that can be refused is refused before the first layer changes. A layer is replaced as
soon as it is quantized and its float weight freed, so that memory never exceeds the float model
plus one layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import nn

from calibit import _C, kv_cache, schemes, structure, weight
from calibit.fingerprint import hash_of
from calibit.footprint import release_freed_memory
from calibit.io import native
from calibit.modules import QuantizedLinear
from calibit.quantization import calibration_text, finished, gptq, plans
from calibit.quantization.estimate import Estimate, estimate
from calibit.quantization.finished import FinishedBlocks
from calibit.quantization.layerwise import Job, quantize_layer_
from calibit.quantization.report import KeptWeight, ModuleReport, Report
from calibit.quantization.residency import Weights
from calibit.schemes import Scheme
from calibit.tasks import texts

KEPT = "kept by the plan"
"""Reason of a layer that a plan leaves in floating point."""

Progress = Callable[[int, int, str], None]
"""Called with layers done, layers in all, and the name of the layer just done; before that, while
the model writes its own calibration text, with tokens done, tokens in all and `WRITING`."""

WRITING = "calibration text"


@dataclass(frozen=True)
class Survey:
    """What will happen to a model, found without changing it.

    Attributes:
        jobs: layers to quantize with their schemes, in the model's order.
        kept: large weights that stay in floating point.
        opened: modules whose fused experts become linear layers first.
    """

    jobs: tuple[Job, ...]
    kept: tuple[KeptWeight, ...]
    opened: tuple[str, ...] = ()


_FREED = 256 * 1024**2
"""Bytes of float32 weights that are replaced before freed memory goes back to the system: a page
that is taken again costs as much as a pass over it."""


def quantize_model(
    model: nn.Module,
    scheme: str | Path | Scheme | Mapping[str, str | Scheme] | plans.Plan,
    *,
    calibration: calibration_text.Source | None = None,
    calibration_tokens: int | None = None,
    calibration_seed: int | None = None,
    tokenizer: Any | None = None,
    skip: str | Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Quantize the linear layers of a causal language model in place.

    Works on any model whose linear layers are `nn.Linear` or GPT-2's `Conv1D`; no list of
    architectures. Experts of a mixture that are slices of fused parameters become linear layers
    (`calibit.experts`), called `...experts.down_proj.3`; fused parameters of a layout that is not
    known are kept and reported. The output head stays in floating point unless the scheme has the
    option `head`; a head tied to the embedding is then untied and the embedding keeps its float
    tensor. `fp32`, `bf16` and `fp16` quantize nothing: they cast the model. With `kv8` or `kv4` the
    keys and values that attention sees are rounded (`calibit.kv_cache`) once the weights are
    quantized; GPTQ's Hessians are those of a float cache. The model's `config.quantization_config`
    records what was done.

    Args:
        model: the model, its weights in memory.
        scheme: a scheme, or a plan `{pattern: scheme or "keep"}` as a mapping or a JSON file (see
            `plans`).
        calibration: for GPTQ: `"pydoc"`, `"c4"`, `"self"` (the model writes it), a text or JSONL
            file, texts, token ids, a data set of the hub (see `calibit.quantization.documents`) or
            a `Calibration`.
        calibration_tokens: how many tokens of a calibration text are used; None takes 8,192 in
            segments of 512 (shorter where the model's context is).
        calibration_seed: draws the segments at random; None takes them at equal distances. Of
            `"self"` the seed of the sampling, 0 where omitted.
        tokenizer: the model's tokenizer, for calibration text.
        skip: pattern, or patterns, of layers to keep in floating point.
        progress: called after each layer.

    Returns:
        A report with one row per layer.

    Raises:
        ValueError: unknown scheme, a pattern that matches no layer, weights with NaN or Inf or on
            the meta device, a single layer, a model that is quantized already. The model is
            unchanged.
        TypeError: GPTQ without calibration text or tokenizer. The model is unchanged.
    """
    return quantize_weights(
        Weights(model),
        plans.load(scheme),
        calibration=calibration,
        calibration_tokens=calibration_tokens,
        calibration_seed=calibration_seed,
        tokenizer=tokenizer,
        skip=skip,
        progress=progress,
    )


def quantize_weights(
    weights: Weights,
    plan: plans.Plan,
    *,
    calibration: calibration_text.Source | None = None,
    calibration_tokens: int | None = None,
    calibration_seed: int | None = None,
    tokenizer: Any | None = None,
    skip: str | Sequence[str] = (),
    progress: Progress | None = None,
    work: str | Path | None = None,
    estimated: Callable[[Estimate], None] | None = None,
) -> Report:
    """`quantize_model` for a model whose float weights may still lie in files.

    Args:
        weights: the model, and where its weights are.
        plan, calibration, calibration_tokens, calibration_seed, tokenizer, skip, progress: as
            there.
        work: folder that keeps the finished blocks of a GPTQ run; one that holds blocks of the same
            job is continued. The caller removes it.
        estimated: called with what the job will take before it begins.

    Raises:
        ValueError, TypeError: as there.
        RuntimeError: another process is writing `work`, or it holds another job.
    """
    started = perf_counter()
    model = weights.model
    source_hash, parameters = _check_weights(weights)
    survey_ = survey(model, plan, skip=skip)
    _rehearse(survey_.jobs)
    if plan.cache_bits is not None:
        kv_cache.check(model)
    data = _calibration(
        survey_.jobs, calibration, calibration_tokens, calibration_seed, tokenizer, model, progress
    )
    if len(plan.schemes) == 1 and plan.schemes[0].is_float:
        weights.load_all_()
        structure.cast_(model, getattr(torch, schemes.FLOATS[plan.schemes[0].format]))
    job = {
        "calibit": _C.build_info()["version"],
        "source": source_hash,
        "schemes": {layer.name: str(scheme) for layer, scheme in survey_.jobs},
        "codebooks": {str(s): list(s.codebook) for _, s in survey_.jobs if s.codebook},
        "calibration": None if data is None else data.sha256,
    }
    if estimated is not None:
        estimated(estimate(weights, survey_.jobs, data))
    with finished.opened(work, job) as blocks:
        rows, solved = _run_(weights, survey_, data, blocks, progress)
    if survey_.jobs:
        _untie_(model, survey_.jobs)
    cache = None
    if plan.cache_bits is not None:
        kv_cache.round_(model, plan.cache_bits)
        cache = kv_cache.measure(model)
    if survey_.jobs or plan.cache_bits is not None:
        native.record_(model, plan.text, source_hash)
    return Report(
        scheme=plan.text,
        modules=rows,
        kept=survey_.kept,
        parameters=parameters,
        nbytes_model=model_nbytes(model),
        source_hash=source_hash,
        seconds=perf_counter() - started,
        calibration=None if data is None else data.to_dict(),
        notes=(
            *solved.notes,
            *_wide_groups(survey_.jobs),
            *(() if cache is None else (cache.note,)),
        ),
        cache=None if cache is None else cache.to_dict(),
        held_out=solved.held_out,
    )


def survey(model: nn.Module, plan: plans.Plan, *, skip: str | Sequence[str] = ()) -> Survey:
    """Which layers a plan quantizes and which large weights stay, without touching the model.

    Raises:
        ValueError: a pattern of the plan or of `skip` matches no layer.
    """
    skip = (skip,) if isinstance(skip, str) else tuple(skip)
    for pattern in skip:
        plans.check_pattern(pattern, "skip")
    fused = structure.fused_parameters(model)
    layers = structure.layers_to_be(model, fused)
    head = structure.head_name(model)
    tied = structure.tied_to_embedding(model)
    names = tuple(layers)
    plans.check_matched({p: [n for n in names if plans.matches(p, n)] for p in skip}, names, "skip")
    assigned = plans.assign(plan, names, head)
    jobs: list[Job] = []
    reasons: dict[str, str] = {}
    for name, layer in layers.items():
        scheme = assigned[name]
        if scheme is not None and scheme.is_float:
            continue
        if any(plans.matches(pattern, name) for pattern in skip):
            reasons[name] = "skipped"
        elif scheme is None:
            reasons[name] = "output head, kept unless asked for" if name == head else KEPT
        elif name in tied and name != head:
            reasons[name] = "shares its weight with an embedding"
        else:
            jobs.append((layer, scheme.of_weight))
    quantized = {layer.experts for layer, _ in jobs}
    opened = {each.module for each in fused if each.name in quantized}
    kept = _kept(model, layers, reasons, [each for each in fused if each.module not in opened])
    return Survey(tuple(jobs), kept, tuple(sorted(opened)))


def _kept(
    model: nn.Module,
    layers: Mapping[str, structure.LinearLayer],
    reasons: Mapping[str, str],
    closed: Sequence[structure.FusedParameter],
) -> tuple[KeptWeight, ...]:
    """Rows for the layers that are kept, and for fused parameters whose module stays closed."""
    inside = {layer.name for each in closed for layer in each.layers}
    rows = [
        KeptWeight(name, layers[name].shape, layers[name].nbytes(model), reason)
        for name, reason in reasons.items()
        if name not in inside
    ]
    for each in closed:
        found = {reasons.get(layer.name) for layer in each.layers} | {each.refusal}
        reason = ", ".join(sorted(one for one in found if one))
        if reason:  # none where the whole model is cast
            rows.append(KeptWeight(each.name, each.shape, each.nbytes, reason))
    return tuple(rows)


def model_nbytes(model: nn.Module) -> int:
    """Bytes of a model's state, tied tensors once, quantized layers as they are stored."""
    return sum(tensor.nbytes for _, tensor in structure.tensors(model))


def _run_(
    weights: Weights,
    survey_: Survey,
    data: calibration_text.Calibration | None,
    blocks: FinishedBlocks,
    progress: Progress | None,
) -> tuple[tuple[ModuleReport, ...], gptq.Solved]:
    """Quantize the layers: nearest rounding first, then GPTQ, which sees the others' errors."""
    rows: dict[str, ModuleReport] = {}
    jobs = survey_.jobs
    fused = structure.open_experts_(weights.model, survey_.opened)
    freed = 0

    def done(row: ModuleReport) -> None:
        nonlocal freed
        rows[row.name] = row
        fused.clear()
        freed += 4 * math.prod(row.shape)
        if freed >= _FREED or len(rows) == len(jobs):
            release_freed_memory()
            freed = 0
        if progress is not None:
            progress(len(rows), len(jobs), row.name)

    model = weights.model
    training = model.training
    model.eval()
    found = gptq.Solved()
    try:
        for layer, scheme in jobs:
            if not scheme.is_solved:
                with weights.loaded(layer.name):
                    try:
                        row = quantize_layer_(model, layer, scheme)
                    except ValueError as error:
                        raise ValueError(f"{error}, in {layer.name}") from error
                    done(row)
        solved = [job for job in jobs if job[1].is_solved]
        if solved and data is not None:
            found = gptq.solve_model_(weights, solved, data, done, blocks)
            judged = () if found.held_out is None else (found.held_out.note,)
            said = (*found.notes, *_expert_notes(jobs, rows), *judged)
            notes = (*data.notes, *(note for note in said if note))
            found = replace(found, notes=notes)
    except (ValueError, RuntimeError) as error:
        if not rows:
            for names, module in fused.items():
                structure.replace_(model, names, module)
            raise
        kind = ValueError if isinstance(error, ValueError) else RuntimeError
        raise kind(
            f"{error}; {len(rows)} of {len(jobs)} layers were already quantized in place: load the "
            "model again before using it"
        ) from error
    finally:
        model.train(training)
    return tuple(rows[layer.name] for layer, _ in jobs), found


def _wide_groups(jobs: Sequence[Job]) -> Iterator[str]:
    """Notes on layers that have fewer inputs than their scheme's group."""
    for group in sorted({scheme.group for _, scheme in jobs}):
        found = [job for job, scheme in jobs if scheme.group == group > job.shape[1]]
        if found:
            yield (
                f"groups of {group} exceed the inputs of {len(found)} of {len(jobs)} layers, such "
                f"as {found[0].name} with {found[0].shape[1]}: one group per row there"
            )


def _expert_notes(jobs: Sequence[Job], rows: Mapping[str, ModuleReport]) -> Iterator[str]:
    """Notes on experts that saw few calibration tokens."""
    found = [(layer, rows[layer.name]) for layer, scheme in jobs if scheme.is_solved]
    experts = [(layer, row) for layer, row in found if layer.experts is not None]
    starved = [row for _, row in experts if row.loss is None]
    thin = [row for layer, row in experts if row.loss and (row.tokens or 0) < layer.shape[1]]
    if starved:
        yield (
            f"{len(starved)} of {len(experts)} weights of experts are rounded to nearest, such as "
            f"{starved[0].name}: fewer than {gptq.STARVED:.1%} of the calibration tokens reached "
            "them; give more text"
        )
    if thin:
        yield (
            f"{len(thin)} of {len(experts)} weights of experts were reached by fewer calibration "
            f"tokens than they have inputs, such as {thin[0].name}: the result rests on the "
            "damping; give more text"
        )


def _check_weights(weights: Weights) -> tuple[str, int]:
    """Hash of the float weights and number of parameters.

    Refuses a single layer, and a model that is quantized already, is not in memory, or holds NaN or
    Inf.
    """
    model = weights.model
    if "" in structure.linear_layers(model):
        raise ValueError(
            f"[quantize_model] expected a model with linear layers inside, got a "
            f"{type(model).__name__}: for one layer use QuantizedLinear.from_linear"
        )
    if kv_cache.bits_of(model) is not None:
        raise ValueError(
            "[quantize_model] expected a floating-point model, got one whose cache is rounded: "
            "load the original and give both in one scheme, such as nf4-kv8"
        )
    quantized = sum(isinstance(module, QuantizedLinear) for module in model.modules())
    if quantized:
        raise ValueError(
            f"[quantize_model] expected a floating-point model, got one with {quantized} quantized "
            "layers: load the original"
        )
    parameters = dict(model.named_parameters())
    digest = hash_of(_finite(weights.tensors(), parameters.keys()))
    return digest, sum(parameter.numel() for parameter in parameters.values())


def _finite(
    tensors: Iterable[tuple[str, torch.Tensor]], parameters: Collection[str]
) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors, each checked as it passes."""
    for name, tensor in tensors:
        owner, _, kind = name.rpartition(".")
        if tensor.is_meta:
            raise ValueError(
                f"[quantize_model] expected weights in memory, got {name} on the meta device: load "
                "the model without offloading (no device_map that leaves layers on disk)"
            )
        if name in parameters and tensor.is_floating_point() and tensor.numel():
            low, high = torch.aminmax(tensor)  # either is NaN when any entry is
            if not bool(torch.isfinite(low) & torch.isfinite(high)):
                raise ValueError(
                    f"[quantize_model] expected finite weights, got NaN or Inf in the {kind} of "
                    f"{owner or 'the model'}: the model is unchanged"
                )
        yield name, tensor


def _rehearse(jobs: Sequence[Job]) -> None:
    """Let each scheme quantize a tiny weight: one that fails is refused before anything changes."""
    tiny = torch.linspace(-1, 1, 16).reshape(2, 8)
    for scheme in dict.fromkeys(scheme for _, scheme in jobs):
        weight.quantize(tiny, scheme.nearest)


def _calibration(
    jobs: Sequence[Job],
    source: calibration_text.Source | None,
    tokens: int | None,
    seed: int | None,
    tokenizer: Any | None,
    model: nn.Module,
    progress: Progress | None,
) -> calibration_text.Calibration | None:
    """The calibration sequences when a scheme needs them."""
    solved = [str(scheme) for _, scheme in jobs if scheme.is_solved]
    if not solved:
        return None
    if source is None:
        raise TypeError(
            f"[quantize_model] expected calibration= for {solved[0]}, got none: give texts, the "
            f"path of a text file, or {texts.PYDOC!r} for the built-in one"
        )
    config = getattr(model, "config", None)
    return calibration_text.for_model(
        source,
        tokenizer,
        config,
        tokens=tokens,
        seed=seed,
        model=model,
        progress=writing(progress),
    )


def writing(progress: Progress | None) -> Callable[[int, int], None] | None:
    """The progress of a model that writes its calibration text."""
    return None if progress is None else lambda done, total: progress(done, total, WRITING)


def _untie_(model: nn.Module, jobs: Sequence[Job]) -> None:
    """After the head was quantized, tell transformers not to tie it to the embedding again."""
    replaced = {name for layer, _ in jobs for name in layer.names}
    keys = getattr(model, "all_tied_weights_keys", None)
    if isinstance(keys, dict):
        for target in [key for key in keys if key.rpartition(".")[0] in replaced]:
            del keys[target]
    config: Any = getattr(model, "config", None)
    if structure.head_name(model) in replaced and config is not None:
        config.tie_word_embeddings = False
