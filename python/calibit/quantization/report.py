"""What quantizing a model did, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

    from calibit.quantization.guard import HeldOut


@dataclass(frozen=True)
class ModuleReport:
    """One quantized layer.

    Attributes:
        name: dotted module name.
        shape: `(N, K)`.
        scheme: the scheme of the stored weight.
        solver: the solver whose codes were kept, `"nearest"` or a key of `calibit.schemes.SOLVERS`.
        error: norm of (W - Q) divided by the norm of W (Frobenius); 0 for a zero weight.
        bits_per_weight: stored bits per weight, metadata included.
        nbytes_codes: bytes of the codes.
        nbytes_meta: bytes of scales, zero points and codebooks.
        seconds: time spent on this layer, its share of calibration not included.
        tokens: solvers only: calibration tokens that reached the layer; an expert sees those that
            were routed to it.
        loss: solvers only: tr((W-Q) H (W-Q)^T) per calibration token, the mean squared error of the
        layer's output.
        loss_nearest: the same of nearest rounding.
        damping: solvers only: the relative damping used.
        clipped: share of weights that were cut off when their turn came (`calibit.ops.gptq_solve`);
        None where nearest rounding was kept.
        notes: sentences about anything out of the ordinary.
    """

    name: str
    shape: tuple[int, int]
    scheme: str
    solver: str
    error: float
    bits_per_weight: float
    nbytes_codes: int
    nbytes_meta: int
    seconds: float
    tokens: int | None = None
    loss: float | None = None
    loss_nearest: float | None = None
    damping: float | None = None
    clipped: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def nbytes(self) -> int:
        """All bytes of the stored weight."""
        return self.nbytes_codes + self.nbytes_meta

    @property
    def loss_ratio(self) -> float | None:
        """Output error relative to nearest rounding; below 1 is better."""
        if self.loss is None or not self.loss_nearest:
            return None
        return self.loss / self.loss_nearest

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "nbytes": self.nbytes, "loss_ratio": self.loss_ratio}


@dataclass(frozen=True)
class KeptWeight:
    """A weight that stays in floating point although it is large: a layer, or a fused expert
    parameter.

    Attributes:
        name: dotted name of the module, or of the parameter.
        shape: its shape.
        nbytes: its bytes.
        reason: why it was kept.
    """

    name: str
    shape: tuple[int, ...]
    nbytes: int
    reason: str


@dataclass(frozen=True)
class Report:
    """The outcome of `quantize_model`.

    Attributes:
        scheme: the scheme or plan that was asked for.
        modules: one row per quantized layer.
        kept: large weights that stayed in floating point, with the reason.
        parameters: number of weights of the whole float model, tied ones once.
        nbytes_model: bytes of the whole model afterwards.
        source_hash: SHA-256 of the float model's tensors (`calibit.fingerprint`).
        seconds: wall time of the whole call.
        calibration: what the Hessians were summed over, or None.
        notes: sentences about the whole model.
        cache: with a rounded cache: its bits, bits per value with scales, and bytes per token
            (`calibit.kv_cache.CacheSize`).
        finetuning: how the weights were trained before (`calibit.quantization.finetuning`).
        held_out: solvers only: the result beside nearest rounding on held-out text; None where it
            was not measured.
    """

    scheme: str
    modules: tuple[ModuleReport, ...]
    kept: tuple[KeptWeight, ...]
    parameters: int
    nbytes_model: int
    source_hash: str
    seconds: float
    calibration: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = field(default=())
    cache: Mapping[str, Any] | None = None
    finetuning: Mapping[str, Any] | None = None
    held_out: HeldOut | None = None

    @property
    def bits_per_weight(self) -> float | None:
        """Stored bits per weight over the quantized layers, metadata included; None when there are
        none."""
        weights = sum(row.shape[0] * row.shape[1] for row in self.modules)
        return 8 * sum(row.nbytes for row in self.modules) / weights if weights else None

    @property
    def bits_per_weight_model(self) -> float:
        """Stored bits per weight over the whole model, embeddings and head included."""
        return 8 * self.nbytes_model / self.parameters

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            **asdict(self),
            "modules": [row.to_dict() for row in self.modules],
            "bits_per_weight": self.bits_per_weight,
            "bits_per_weight_model": self.bits_per_weight_model,
        }

    def table(self) -> Table:
        """The rows as a terminal table."""
        from rich.table import Table

        table = Table(title=f"{self.scheme}: {self}")
        for heading in (
            "layer",
            "shape",
            "scheme",
            "bits",
            "error",
            "loss / nearest",
            "s",
            "notes",
        ):
            table.add_column(heading)
        for row in self.modules:
            ratio = "" if row.loss_ratio is None else f"{row.loss_ratio:.3f}"
            table.add_row(
                row.name,
                f"{row.shape[0]} x {row.shape[1]}",
                row.scheme,
                f"{row.bits_per_weight:.3f}",
                f"{row.error:.4f}",
                ratio,
                f"{row.seconds:.2f}",
                "; ".join(row.notes),
            )
        for kept in self.kept:
            size = " x ".join(map(str, kept.shape))
            table.add_row(kept.name, size, "float", "", "", "", "", kept.reason)
        return table

    def __str__(self) -> str:
        if not self.modules:
            return f"no layer quantized, {self.nbytes_model / 1e6:.1f} MB"
        worst = max(self.modules, key=lambda row: row.error)
        return (
            f"{len(self.modules)} layers at {self.bits_per_weight:.3f} bits per weight "
            f"({self.bits_per_weight_model:.3f} over the whole model, "
            f"{self.nbytes_model / 1e6:.1f} MB), largest relative error {worst.error:.4f} in "
            f"{worst.name}, {len(self.kept)} kept, {self.seconds:.1f} s"
        )
