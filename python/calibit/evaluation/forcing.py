"""Next-token distributions of a model on given continuations (teacher forcing).

The reference's continuations are put through both models, so that every position of the candidate
is compared with the reference in the same context. Of the reference its final hidden states are
kept beside its output layer, which is smaller by the factor vocabulary / width than its logits and
gives them back; where something follows the output layer, the logits themselves are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from calibit.evaluation.scoring import tapped
from calibit.next_token import token_confidence
from calibit.runs import FORCED, SEQUENCES, Run, read_lines, sha256_of

Tokens = tuple[int, ...]

_CHUNK = 1 << 23  # logits held at once: 32 MiB of float32
HEAD = f"{FORCED}/head.safetensors"


@dataclass(frozen=True)
class Sequence_:
    """One continuation of one context.

    Attributes:
        source: `workload` or the name of a parallel text.
        id: unique inside its source.
        group: the language; empty in a workload.
        cluster: what is resampled whole: the prompt, or the document of a segment.
        slices: slice key -> value.
        context, target: token ids; each has at least one.
        more: further entries of its line in sequences.jsonl.
    """

    source: str
    id: str
    group: str
    cluster: str
    slices: Mapping[str, str]
    context: Tokens
    target: Tokens
    more: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, line: Mapping[str, Any]) -> Sequence_:
        """From its line."""
        known = {name: line[name] for name in ("source", "id", "group", "cluster", "slices")}
        more = {k: v for k, v in line.items() if k not in (*known, "context", "target")}
        return cls(**known, context=tuple(line["context"]), target=tuple(line["target"]), more=more)

    def to_line(self) -> dict[str, Any]:
        """Its line in sequences.jsonl."""
        own = {name: getattr(self, name) for name in ("source", "id", "group", "cluster")}
        ids = {"context": list(self.context), "target": list(self.target)}
        return {**own, "slices": dict(self.slices), **self.more, **ids}


class Reference:
    """The run whose continuations are forced on another model, and its distributions there.

    Args:
        run: a finished run on disk that was not itself given a reference.

    Raises:
        ValueError: a run in memory, or one without continuations of its own.
    """

    def __init__(self, run: Run | str | Path) -> None:
        loaded = Run.load(run) if isinstance(run, str | Path) else run
        described = loaded.meta.get(FORCED) or {}
        if loaded.path is None or not described or described.get("reference"):
            raise ValueError(
                "[evaluate] expected as reference a run on disk with a workload or a parallel text "
                f"of its own, got {loaded.path or 'a run in memory'}"
            )
        self.folder = loaded.path
        self.tokenizer_hash = loaded.meta["tokenizer_hash"]
        self.shards = [tuple(shard) for shard in described["shards"]]
        self.kind = str(described["states"])
        self.sha256 = sha256_of(self.folder / SEQUENCES)
        self.sequences = tuple(Sequence_.of(line) for line in read_lines(self.folder / SEQUENCES))
        self._head: dict[str, torch.Tensor] | None = None

    def states(self, shard: int) -> torch.Tensor:
        """Stored states of a shard, float32 `[P, D]` (or logits `[P, V]`)."""
        return torch.from_numpy(np.load(self.folder / states_name(shard)))

    def logits(self, states: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Logits of stored states, float32 `[P, V]` on the CPU, computed on a device: that of the
        model they are compared with, whose products are then rounded alike."""
        if self.kind == "logits":
            return states
        if self._head is None:
            from safetensors.torch import load_file

            self._head = load_file(self.folder / HEAD, device=str(device))
        weight = self._head["weight"]
        with torch.no_grad():
            given = states.to(device=device, dtype=weight.dtype)
            found = nn.functional.linear(given, weight, self._head.get("bias"))
        return found.float().cpu()


def states_name(shard: int) -> str:
    """File of a shard's states in a run folder."""
    return f"{FORCED}/{shard:04d}-states.npy"


def shard_name(shard: int) -> str:
    """File of a shard's measures in a run folder."""
    return f"{FORCED}/{shard:04d}.npz"


class Forcer:
    """Puts continuations through one model.

    Args:
        model: causal language model in evaluation mode.
        head: how its output layer is reached, one of `scoring.HEADS`.
    """

    def __init__(self, model: Any, head: str) -> None:
        self.model = model
        layer = model.get_output_embeddings() if head == "sliced" else None
        self.layer: Any = layer if layer is not None and _is_linear(model, layer) else None

    @property
    def kind(self) -> str:
        """What `states` gives: `hidden` or `logits`."""
        return "logits" if self.layer is None else "hidden"

    def head(self) -> dict[str, torch.Tensor]:
        """Weight and bias of the output layer; empty where states are logits."""
        if self.layer is None:
            return {}
        parts = {"weight": self.layer.weight, "bias": getattr(self.layer, "bias", None)}
        return {k: v.detach().cpu().contiguous() for k, v in parts.items() if v is not None}

    def states(self, rows: Sequence[Sequence_]) -> torch.Tensor:
        """States at the positions that predict the targets, `[P, D]`, the rows one after another;
        logits `[P, V]` where something follows the output layer."""
        fed = [(row.context + row.target)[:-1] for row in rows]
        longest = max(map(len, fed))
        ids = torch.tensor([one + one[-1:] * (longest - len(one)) for one in fed])
        where = [
            (r, c)
            for r, row in enumerate(rows)
            for c in range(len(row.context) - 1, len(row.context) + len(row.target) - 1)
        ]
        lines, columns = torch.tensor(where, device=self.model.device).T
        picked: list[torch.Tensor] = []

        def pick(hidden: torch.Tensor) -> torch.Tensor:
            picked.append(hidden[lines.to(hidden.device), columns.to(hidden.device)])
            return hidden[:1, -1:]

        with torch.no_grad(), tapped(self.layer, pick):
            output = self.model(
                input_ids=ids.to(self.model.device), use_cache=False, return_dict=True
            )
        if picked:
            return picked[0]
        return output.logits[lines.to(output.logits.device), columns.to(output.logits.device)]

    def measure(
        self,
        rows: Sequence[Sequence_],
        states: torch.Tensor,
        reference: Reference | None = None,
        shard: int = 0,
    ) -> dict[str, np.ndarray]:
        """What is kept of every position.

        Args:
            rows: the continuations.
            states: of this model at their positions, in order.
            reference: where the distributions to compare with are kept.
            shard: which of its shards the rows are.

        Returns:
            token and argmax int64 [P]; log_true, log_top and entropy float64 [P], nats; with a
            reference kl float64 [P], KL(reference || model), nats.
        """
        labels = torch.tensor([token for row in rows for token in row.target])
        base = None if reference is None else reference.states(shard)
        parts: list[dict[str, np.ndarray]] = []
        for start, stop, own in self._logits(states):
            true = labels[start:stop]
            found = token_confidence(own, true)
            assert found.log_true is not None
            part = {
                "token": true.numpy(),
                "argmax": found.argmax,
                "log_true": found.log_true,
                "log_top": found.log_top,
                "entropy": found.entropy,
            }
            if reference is not None and base is not None:
                before = reference.logits(base[start:stop], self.model.device)
                if before.shape != own.shape:
                    raise ValueError(
                        f"[evaluate] expected a vocabulary of {before.shape[1]} tokens as in the "
                        f"reference, got {own.shape[1]}"
                    )
                kl = token_confidence(before, true, other=own).kl
                assert kl is not None
                part["kl"] = kl
            parts.append(part)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _logits(self, states: torch.Tensor) -> Iterator[tuple[int, int, torch.Tensor]]:
        """(first, end, logits float32 on the CPU) of consecutive positions."""
        step = max(1, _CHUNK // self.model.config.get_text_config().vocab_size)
        for start in range(0, len(states), step):
            part = states[start : start + step]
            with torch.no_grad():
                logits = part if self.layer is None else self.layer(part)
            yield start, start + len(part), logits.float().cpu()


def _is_linear(model: Any, layer: nn.Module) -> bool:
    """Whether an output layer does no more than its weight and bias say, so that they give its
    logits back; found by trying on one hidden state."""
    states: list[torch.Tensor] = []

    def pick(hidden: torch.Tensor) -> torch.Tensor:
        states.append(hidden[0, -1:])
        return hidden

    with torch.no_grad():
        with tapped(layer, pick):
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device))
        own = layer(states[0]).double()
        weight: Any = layer.weight
        plain = nn.functional.linear(states[0], weight, getattr(layer, "bias", None)).double()
    # Rounding of another kernel: a few units of the dtype per product, over the width.
    allowed = 64 * torch.finfo(states[0].dtype).eps * float(own.abs().max())
    return bool((own - plain).abs().max() <= allowed)
