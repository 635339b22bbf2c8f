"""Slow, obvious definitions in NumPy float64, from the specifications; nothing of calibit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

# QLoRA, arXiv 2305.14314, appendix E. The order of FP4 is bitsandbytes' bit pattern.
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
    -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
FP4 = [m / 12 * s for s in (1, -1) for m in (0.0, 0.0625, 8, 12, 4, 6, 2, 3)]
E2M1 = [m * s for s in (1, -1) for m in (0.0, 0.5, 1, 1.5, 2, 3, 4, 6)]

GOLDEN_CODEBOOKS = {"nf4": NF4, "fp4": FP4, "mxfp4": E2M1}


@dataclass
class Quantized:
    """Unpacked result: integer codes [N, K], scales and zeros [N, G] as real numbers."""

    codes: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


def bit_stream(codes: np.ndarray, bits: int) -> np.ndarray:
    """Rows of codes as LSB-first bit streams, uint8 [N, ceil(K*bits/8)]."""
    planes = (codes[:, :, None] >> np.arange(bits)) & 1
    flat = planes.reshape(codes.shape[0], -1).astype(np.uint8)
    return np.packbits(flat, axis=1, bitorder="little")


def unstream(stream: np.ndarray, k: int, bits: int) -> np.ndarray:
    """The inverse of `bit_stream`."""
    flat = np.unpackbits(stream, axis=1, bitorder="little")[:, : k * bits]
    return (flat.reshape(stream.shape[0], k, bits).astype(np.int64) << np.arange(bits)).sum(-1)


def column_groups(k: int, group: int) -> list[slice]:
    """Column ranges that share a scale."""
    group = k if group == 0 or group > k else group
    return [slice(a, min(a + group, k)) for a in range(0, k, group)]


def quantize(w: np.ndarray, bits: int, group: int, zero: str = "none", codebook=None) -> Quantized:
    """Nearest rounding: float32 or float16 scales as stored, codes chosen with the stored scale."""
    n, k = w.shape
    slices = column_groups(k, group)
    codes = np.zeros((n, k), np.int64)
    scales = np.zeros((n, len(slices)))
    zeros = None if zero == "none" else np.zeros((n, len(slices)))
    steps = 2**bits - 1
    for i in range(n):
        for g, s in enumerate(slices):
            x = w[i, s].astype(np.float64)
            if codebook is not None:
                scales[i, g], codes[i, s] = _codebook_group(x, np.asarray(codebook, np.float64))
                continue
            lo, hi = x.min(), x.max()
            if zero == "u8":
                lo, hi = min(lo, 0), max(hi, 0)
            width = 2 * np.abs(x).max() if zero == "none" else hi - lo
            scale = float(np.float16(np.float32(width) / np.float32(steps)))
            if zero == "f32" and scale == 0:
                scale = 1.0
            scales[i, g] = scale
            units = x / scale if scale else np.zeros_like(x)
            if zero == "none":
                codes[i, s] = np.clip(
                    np.rint(units), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
                ) + 2 ** (bits - 1)
            elif zero == "u8":
                zeros[i, g] = np.clip(np.rint(-lo / scale), 0, steps) if scale else 0
                codes[i, s] = np.clip(np.rint(units) + zeros[i, g], 0, steps)
            else:
                zeros[i, g] = np.float32(np.float32(-lo) / np.float32(scale))
                codes[i, s] = np.clip(np.rint(units + zeros[i, g]), 0, steps)
    return Quantized(codes, scales, zeros)


@dataclass
class Rule:
    """How the values of one group become codes: everything that `column_solver` is told."""

    bits: int
    zero: str = "none"
    codebook: list[float] | None = None
    clip: bool = False

    def fit(self, x: np.ndarray, importance: np.ndarray | None = None) -> tuple[float, float]:
        """Scale, as stored, and zero point of a group."""
        if not self.clip:
            return self._full_range(x.min(), x.max())
        shares = [1 - i / 100 for i in range(80)]
        found = [self._full_range(x.min() * p, x.max() * p) for p in shares]
        errors = [np.abs(self.round(x, *f)[1] - x) for f in found]
        losses = [(e**2.4).sum() if importance is None else e**2 @ importance for e in errors]
        return found[int(np.argmin(losses))]

    def _full_range(self, lo: float, hi: float) -> tuple[float, float]:
        steps = 2**self.bits - 1
        largest = max(abs(lo), abs(hi))
        if self.codebook is not None:
            return float(np.float32(largest / np.abs(self.codebook).max())), 0.0
        if self.zero == "none":
            return float(np.float16(2 * largest / steps)), 2.0 ** (self.bits - 1)
        if self.zero == "u8":
            lo, hi = min(lo, 0), max(hi, 0)
            scale = float(np.float16((hi - lo) / steps))
            return scale, float(np.clip(np.rint(-lo / scale), 0, steps)) if scale else 0.0
        scale = float(np.float16((hi - lo) / steps)) or 1.0
        return scale, float(np.float32(-lo / scale))

    def round(self, x: np.ndarray, scale: float, zero: float) -> tuple[np.ndarray, np.ndarray]:
        """Codes and the values they stand for."""
        units = x / scale if scale else np.zeros_like(x)
        if self.codebook is not None:
            book = np.asarray(self.codebook, np.float64)
            codes = np.abs(units[..., None] - book).argmin(-1)
            return codes, book[codes] * scale
        whole = units + zero if self.zero == "f32" else np.rint(units) + zero
        codes = np.rint(np.clip(whole, 0, 2**self.bits - 1))
        return codes, (codes - zero) * scale


def column_solver(
    w: np.ndarray,
    h: np.ndarray,
    rule: Rule,
    group: int,
    *,
    damping: float = 0.01,
    order: np.ndarray | None = None,
    fixed: np.ndarray | None = None,
) -> np.ndarray:
    """GPTQ, arXiv 2210.17323, algorithm 1 in float64 without blocks; returns the rounded weight.

    A group's scale comes from the updated weights when its first column is reached, or with `order`
    from the original ones. `fixed` [N, G] are scales to be used as they are. A clip search weights
    squared errors by what they cost at their turn, 1 / u_tt^2.
    """
    n, k = w.shape
    slices = column_groups(k, group)
    damped = h + damping * np.mean(np.diag(h)) * np.eye(k)
    steps = np.arange(k) if order is None else order
    u = np.linalg.cholesky(np.linalg.inv(damped[np.ix_(steps, steps)])).T
    work, out = w.astype(np.float64).copy(), np.zeros((n, k))
    cost = np.empty(k)
    cost[steps] = 1 / np.diag(u) ** 2
    fits = None
    if order is not None:
        fits = [[rule.fit(work[i, s], cost[s]) for s in slices] for i in range(n)]
    for t, c in enumerate(steps):
        g = next(i for i, s in enumerate(slices) if s.start <= c < s.stop)
        if order is None and c == slices[g].start:
            current = [rule.fit(work[i, slices[g]], cost[slices[g]]) for i in range(n)]
        for i in range(n):
            scale, zero = fits[i][g] if fits is not None else current[i]
            if fixed is not None:
                scale = fixed[i, g]
            out[i, c] = rule.round(work[i, c : c + 1], scale, zero)[1][0]
        error = (work[:, c] - out[:, c]) / u[t, t]
        later = steps[t + 1 :]
        work[:, later] -= error[:, None] * u[t, t + 1 :][None]
    return out


def proxy_loss(difference: np.ndarray, h: np.ndarray) -> float:
    """tr(D H D^T)."""
    return float(np.einsum("nk,kl,nl->", difference, h, difference))


def _codebook_group(x: np.ndarray, codebook: np.ndarray) -> tuple[float, np.ndarray]:
    scale = np.abs(x).max() / np.abs(codebook).max()
    normalised = x / scale if scale else np.zeros_like(x)
    distance = np.abs(normalised[:, None] - codebook[None])
    return float(np.float32(scale)), distance.argmin(1)


def values(q: Quantized, bits: int, group: int, codebook=None) -> np.ndarray:
    """Dequantized weight in float64."""
    k = q.codes.shape[1]
    out = np.zeros(q.codes.shape)
    for g, s in enumerate(column_groups(k, group)):
        if codebook is not None:
            v = np.asarray(codebook, np.float64)[q.codes[:, s]]
        else:
            v = q.codes[:, s] - (q.zeros[:, g : g + 1] if q.zeros is not None else 2 ** (bits - 1))
        out[:, s] = v * q.scales[:, g : g + 1]
    return out


def dynamic_map() -> np.ndarray:
    """bitsandbytes' signed 8-bit dynamic map, sorted, float32 [256]."""
    positive = []
    for e in range(7):
        edges = np.linspace(0.1, 1, 2**e + 1)
        positive += list((edges[:-1] + edges[1:]) / 2 * 10.0 ** (e - 6))
    return np.sort(np.array([*positive, *(-p for p in positive), 0, 1])).astype(np.float32)


def gptq(w: np.ndarray, h: np.ndarray, round_column, order=None, damping=0.01) -> np.ndarray:
    """GPTQ, arXiv 2210.17323, equations 2 and 3 without blocks or Cholesky tricks, float64.

    After each column the inverse Hessian of the remaining ones is found anew by elimination.
    `round_column(column values [N], column index)` returns the rounded values.
    """
    n, k = w.shape
    order = np.arange(k) if order is None else order
    w, q = w.astype(np.float64).copy(), np.zeros((n, k))
    damped = h + damping * np.mean(np.diag(h)) * np.eye(k)
    remaining = [int(c) for c in order]
    while remaining:
        inverse = np.linalg.inv(damped[np.ix_(remaining, remaining)])
        c = remaining[0]
        q[:, c] = round_column(w[:, c], c)
        error = (w[:, c] - q[:, c]) / inverse[0, 0]
        w[:, remaining] -= error[:, None] * inverse[0][None]
        remaining = remaining[1:]
    return q


def token_confidence(logits: np.ndarray, other: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Statistics of softmax(logits) per row, in float64 over the whole row at once."""
    x = logits.astype(np.float64)
    largest = x.max(axis=1, keepdims=True)
    log_sum_exp = largest + np.log(np.exp(x - largest).sum(axis=1, keepdims=True))
    lp = x - log_sum_exp
    p = np.exp(lp)
    with np.errstate(invalid="ignore"):
        entropy = -np.where(p > 0, p * lp, 0.0).sum(axis=1)
        result = {"log_sum_exp": log_sum_exp[:, 0], "log_probs": lp, "entropy": entropy}
        if other is not None:
            lq = token_confidence(other)["log_probs"]
            result["kl"] = np.where(p > 0, p * (lp - lq), 0.0).sum(axis=1)
    return result
