"""A short quantization-aware fine-tune: training on the rounded weights, then rounding them.

Every layer that the scheme quantizes computes with its weight rounded anew in each step, while the
gradient goes to the float weight behind it as if nothing had been rounded (the straight-through
estimator: Bengio et al., arXiv 1308.3432). Trained are those weights, or, with a rank, factors B A
that are added to them before the rounding (as in L4Q, arXiv 2402.04902, and LR-QAT, arXiv
2406.06385). What comes out is an ordinary quantized model; how it was made stands in its
configuration, so that no comparison takes its changes for those of precision alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from calibit import activations, kv_cache, loading, weight
from calibit.fingerprint import weight_hash
from calibit.io import native, shards
from calibit.quantization import calibration_text, plans
from calibit.quantization.layerwise import Job
from calibit.quantization.model import quantize_model, survey
from calibit.quantization.report import Report
from calibit.schemes import Scheme

Tensor = torch.Tensor

RATE, RATE_OF_FACTORS = 2e-5, 5e-4
"""Learning rates of AdamW where none is given: of weights, and of factors added to them."""

_LARGEST_GRADIENT = 1.0


@dataclass(frozen=True)
class FineTuning:
    """How a model was fine-tuned; stored with its checkpoint.

    Attributes:
        method: what was done, in words.
        base_hash: SHA-256 of the weights before (`calibit.fingerprint`).
        text: what was trained on (`Calibration.to_dict`).
        steps: updates.
        batch: sequences per update.
        learning_rate: of AdamW, constant.
        rank: of the trained factors; None where the weights themselves were trained.
        seed: of the order of the sequences and of the factors.
        loss_first, loss_last: mean negative log-likelihood per token with rounded weights over the
            whole text, nats, before the first and after the last update.
    """

    method: str
    base_hash: str
    text: Mapping[str, Any]
    steps: int
    batch: int
    learning_rate: float
    rank: int | None
    seed: int
    loss_first: float
    loss_last: float

    @property
    def note(self) -> str:
        """A sentence for reports, without its full stop."""
        return describe(asdict(self))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def describe(record: Mapping[str, Any]) -> str:
    """What `FineTuning.to_dict` says, as one sentence without its full stop."""
    text = record.get("text") or {}
    return (
        f"fine-tuned with rounded weights: {record.get('steps')} steps of {record.get('batch')} "
        f"sequences on {text.get('tokens')} tokens of {text.get('source')}, learning rate "
        f"{record.get('learning_rate'):g}, seed {record.get('seed')}, loss "
        f"{record.get('loss_first'):.3f} to {record.get('loss_last'):.3f} nats per token"
    )


class FakeQuantized(nn.Module):
    """Parametrization of a weight: its values after quantization, its gradient that of the weight.

    Args:
        layer: the module whose weight it is.
        shape: (N, K).
        scheme: with nearest rounding.
        transposed: the weight is stored as ``[K, N]``.
        rank: of factors B ``[N, rank]`` and A ``[rank, K]`` added to the weight; 0 for none.
        generator: draws A; B starts at 0.
    """

    def __init__(
        self,
        layer: nn.Module,
        shape: tuple[int, int],
        scheme: Scheme,
        *,
        transposed: bool,
        rank: int,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.scheme, self.transposed = scheme, transposed
        self.a: nn.Parameter | None = None
        self.b: nn.Parameter | None = None
        if rank:
            device = layer.get_parameter("weight").device
            a = torch.randn(rank, shape[1], generator=generator) / shape[1] ** 0.5
            self.a = nn.Parameter(a.to(device))
            self.b = nn.Parameter(torch.zeros(shape[0], rank, device=device))

    def sum(self, stored: Tensor) -> Tensor:
        """The weight as it is stored, its factors added."""
        if self.a is None or self.b is None:
            return stored
        added = self.b @ self.a
        return stored + (added.t() if self.transposed else added)

    def forward(self, stored: Tensor) -> Tensor:
        whole = self.sum(stored)
        matrix = whole.detach().t() if self.transposed else whole.detach()
        values = weight.quantize(matrix.contiguous(), self.scheme).dequantize()
        return activations.straight_through(whole, values.t() if self.transposed else values)


def finetune_model(
    model: nn.Module,
    scheme: str | Path | Scheme | Mapping[str, str | Scheme] | plans.Plan,
    text: calibration_text.Source,
    *,
    tokenizer: Any | None = None,
    tokens: int | None = None,
    steps: int = 100,
    batch: int = 4,
    learning_rate: float | None = None,
    rank: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Report:
    """Fine-tune a float model with the rounding of a scheme in place, then quantize it, in place.

    The loss is the mean negative log-likelihood of the next token. Dropout stays off; everything
    but the quantized layers' weights stays as it is. The same arguments give the same model on one
    machine and number of threads.

    Args:
        model: the float model, float32, its weights in memory.
        scheme: a scheme or plan with nearest rounding; inputs (`a8`) and cache (`kv8`) are rounded
            while training too.
        text: what to train on, as `calibration` of `quantize_model`; not the text of an evaluation.
        tokenizer: the model's, for text.
        tokens: how many tokens of the text are used; None takes 8,192 in segments of 512.
        steps: updates of AdamW, at a constant rate, gradients clipped to a norm of 1.
        batch: sequences per update.
        learning_rate: None takes `RATE`, with a rank `RATE_OF_FACTORS`.
        rank: train factors of this rank that are added to the weights, instead of the weights.
        seed: of the order of the sequences and of the factors.
        progress: called with steps done, steps in all and the loss of the step in words.

    Returns:
        The report of `quantize_model`, its rows about the trained weights, with `finetuning`.

    Raises:
        ValueError: as `quantize_model`; a scheme with a solver or without quantized layers, another
            dtype, fused experts, numbers out of range. The model is unchanged.
        RuntimeError: training diverged; load the model again.
    """
    plan = plans.load(scheme)
    rate = (RATE_OF_FACTORS if rank else RATE) if learning_rate is None else learning_rate
    _check_numbers(steps, batch, rate, rank)
    jobs = _jobs(model, plan)
    base_hash = weight_hash(model)
    data = calibration_text.for_model(
        text, tokenizer, getattr(model, "config", None), tokens=tokens, model=model
    )
    generator = torch.Generator().manual_seed(seed)
    with _fake_quantized(model, jobs, plan.cache_bits, rank or 0, generator):
        first = _loss(model, data.sequences)
        try:
            _train_(model, data.sequences, steps, batch, rate, generator, progress)
            last = _loss(model, data.sequences)
        except ValueError as error:  # NaN, or weights too large to be rounded
            raise RuntimeError(
                f"[finetune] expected training to converge, got: {error}; the model has changed: "
                f"load it again and take a learning rate below {rate:g}"
            ) from error
    report = quantize_model(model, plan)
    made = FineTuning(
        method="quantization-aware fine-tuning, straight-through",
        base_hash=base_hash,
        text=data.to_dict(),
        steps=steps,
        batch=batch,
        learning_rate=rate,
        rank=rank,
        seed=seed,
        loss_first=first,
        loss_last=last,
    )
    native.record_(model, plan.text, base_hash, finetuning=made.to_dict())
    notes = (*report.notes, made.note)
    return replace(report, source_hash=base_hash, notes=notes, finetuning=made.to_dict())


def finetune_checkpoint(
    model_path: str | Path,
    scheme: str | Path | Scheme | Mapping[str, str | Scheme],
    out: str | Path,
    text: calibration_text.Source,
    *,
    trust_remote_code: bool = False,
    **settings: Any,
) -> Report:
    """Fine-tune and quantize a model on disk, and write a checkpoint to a new folder.

    Args:
        model_path: a Hugging Face folder, or the name of a model on the hub; read in float32.
        scheme, text: as for `finetune_model`.
        out: the folder to create.
        trust_remote_code: let the model bring code of its own.
        settings: the other arguments of `finetune_model`, but for the tokenizer.

    Returns:
        Its report.

    Raises:
        FileExistsError: `out` exists.
        ValueError, RuntimeError: as `finetune_model`; nothing is written.
    """
    shards.check_new(Path(out), "finetune")
    tokenizer = loading.read_tokenizer(model_path, trust_remote_code=trust_remote_code)
    model = loading.read_model(
        model_path, dtype="float32", trust_remote_code=trust_remote_code
    ).eval()
    report = finetune_model(model, scheme, text, tokenizer=tokenizer, **settings)
    native.save(model, out, tokenizer=tokenizer)
    return report


def _check_numbers(steps: int, batch: int, rate: float, rank: int | None) -> None:
    for name, value in (("steps", steps), ("batch", batch), ("rank", 1 if rank is None else rank)):
        if value < 1:
            raise ValueError(f"[finetune] expected {name} of 1 or more, got {value}")
    if not 0 < rate < math.inf:
        raise ValueError(f"[finetune] expected a learning rate above 0, got {rate}")


def _jobs(model: nn.Module, plan: plans.Plan) -> tuple[Job, ...]:
    """The layers to train with their schemes; what cannot be trained is refused."""
    for scheme in plan.schemes:
        if scheme.is_solved:
            raise ValueError(
                f"[finetune] expected nearest rounding, which training goes through in each step, "
                f"got '{scheme}': use '{scheme.nearest}'"
            )
    found = survey(model, plan)
    if found.opened:
        raise ValueError(
            f"[finetune] expected layers of their own, got fused experts in {found.opened[0]}: "
            "keep them in a plan"
        )
    if not found.jobs:
        raise ValueError(f"[finetune] expected a scheme that quantizes, got {plan.text!r}")
    if plan.cache_bits is not None:
        kv_cache.check(model)
    for layer, _ in found.jobs:
        dtype = model.get_submodule(layer.name).get_parameter("weight").dtype
        if dtype != torch.float32:
            raise ValueError(
                f"[finetune] expected float32 weights, in which small updates count, got {dtype} "
                f"in {layer.name}: load the model with dtype float32"
            )
    return found.jobs


@contextmanager
def _fake_quantized(
    model: nn.Module,
    jobs: tuple[Job, ...],
    cache_bits: int | None,
    rank: int,
    generator: torch.Generator,
) -> Iterator[None]:
    """Inside, the layers compute as if quantized and only what is trained has a gradient;
    afterwards they hold the trained float weights."""
    training = model.training
    flags = {name: p.requires_grad for name, p in model.named_parameters()}
    model.requires_grad_(False)
    handles: list[Any] = []
    parts: list[tuple[nn.Module, FakeQuantized]] = []
    for layer, scheme in jobs:
        module = model.get_submodule(layer.name)
        part = FakeQuantized(
            module,
            layer.shape,
            scheme,
            transposed=layer.transposed,
            rank=rank,
            generator=generator,
        )
        module.get_parameter("weight").requires_grad_(rank == 0)
        parametrize.register_parametrization(module, "weight", part, unsafe=True)
        handles.append(module.register_forward_pre_hook(_Rounding(scheme)))
        parts.append((module, part))
    if cache_bits is not None:
        handles += kv_cache.round_(model, cache_bits)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for module, part in parts:
            with torch.no_grad():
                stored = module.get_parameter("parametrizations.weight.original")
                stored.copy_(part.sum(stored))
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None
        model.train(training)


@dataclass(frozen=True)
class _Rounding:
    """Pre-hook that rounds the input of a layer as its scheme says."""

    scheme: Scheme

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (activations.prepare(inputs[0], self.scheme), *inputs[1:])


def _train_(
    model: nn.Module,
    sequences: tuple[Tensor, ...],
    steps: int,
    batch: int,
    rate: float,
    generator: torch.Generator,
    progress: Callable[[int, int, str], None] | None,
) -> None:
    model.eval()  # no dropout; gradients are the same otherwise
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate, weight_decay=0.0)
    order: list[int] = []
    for step in range(steps):
        total = 0.0
        for _ in range(batch):
            order = order or torch.randperm(len(sequences), generator=generator).tolist()
            loss = _nll(model, sequences[order.pop()]) / batch
            loss.backward()
            total += loss.item()
        if not math.isfinite(total):
            raise ValueError(f"a loss of {total} in step {step + 1}")
        nn.utils.clip_grad_norm_(trained, _LARGEST_GRADIENT)
        optimizer.step()
        optimizer.zero_grad()
        if progress is not None:
            progress(step + 1, steps, f"loss {total:.3f}")


def _loss(model: nn.Module, sequences: tuple[Tensor, ...]) -> float:
    """Mean negative log-likelihood of a token, nats, over all sequences."""
    with torch.no_grad():
        sums = [float(_nll(model, one)) * (len(one) - 1) for one in sequences]
    return sum(sums) / sum(len(one) - 1 for one in sequences)


def _nll(model: nn.Module, sequence: Tensor) -> Tensor:
    """Mean negative log-likelihood of the tokens of one sequence after its first, nats."""
    ids = sequence[None].to(next(model.parameters()).device)
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return nn.functional.cross_entropy(logits, ids[0, 1:])
