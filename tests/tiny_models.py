"""Tiny random language models of many architectures, built in memory from their configuration.

Every model has two decoder blocks, a vocabulary of 96 and hidden sizes that are no multiple of the
usual group sizes (48 and 80), so that each weight ends in a short group. Weights are drawn from a
fixed seed with a spread large enough that the logits depend visibly on every layer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

VOCABULARY = 96
HIDDEN = 48
INNER = 80
HEADS = 4
BLOCKS = 2
POSITIONS = 64

_LLAMA_LIKE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": POSITIONS,
}
_GPT_LIKE: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_embd": HIDDEN,
    "n_layer": BLOCKS,
    "n_head": HEADS,
    "n_positions": POSITIONS,
}

# name -> (transformers model type, configuration)
CONFIGURATIONS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "llama": ("llama", {**_LLAMA_LIKE, "tie_word_embeddings": True}),
    "gpt2": ("gpt2", {**_GPT_LIKE, "n_inner": INNER}),
    "gpt_neox": (
        "gpt_neox",
        {**_LLAMA_LIKE, "tie_word_embeddings": False, "rotary_pct": 0.5},
    ),
    "opt": (
        "opt",
        {
            **_LLAMA_LIKE,
            "ffn_dim": INNER,
            "word_embed_proj_dim": 32,  # as OPT-350m: linear layers before and after the blocks
            "do_layer_norm_before": False,
        },
    ),
    "bloom": ("bloom", {**_LLAMA_LIKE, "n_layer": BLOCKS, "n_head": HEADS}),
    "falcon": (
        "falcon",
        {**_LLAMA_LIKE, "multi_query": True, "parallel_attn": True, "bias": False},
    ),
    "mistral": ("mistral", {**_LLAMA_LIKE, "sliding_window": 16}),
    "qwen2": (
        "qwen2",
        {**_LLAMA_LIKE, "layer_types": ["full_attention", "sliding_attention"],
         "use_sliding_window": True, "sliding_window": 8},
    ),
    "stablelm": ("stablelm", {**_LLAMA_LIKE, "use_qkv_bias": True, "partial_rotary_factor": 0.5}),
    "phi": ("phi", dict(_LLAMA_LIKE)),
    "gemma": ("gemma", {**_LLAMA_LIKE, "head_dim": 12}),
    "gemma3": (
        "gemma3_text",
        {**_LLAMA_LIKE, "head_dim": 12, "sliding_window": 8,
         "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "mixtral": (
        "mixtral",
        {**_LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2},
    ),
    "qwen3_moe": (  # one dense block, one of experts
        "qwen3_moe",
        {**_LLAMA_LIKE, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 12,
         "moe_intermediate_size": 40, "mlp_only_layers": [0]},
    ),
    "olmoe": (
        "olmoe",
        {**_LLAMA_LIKE, "num_experts": 5, "num_experts_per_tok": 3, "intermediate_size": 40},
    ),
    "gpt_oss": (  # transposed experts with biases, gate and up interleaved
        "gpt_oss",
        {**_LLAMA_LIKE, "num_local_experts": 3, "num_experts_per_tok": 2, "head_dim": 12,
         "intermediate_size": 40, "sliding_window": 8},
    ),
}  # fmt: skip

MIXTURE = ("mixtral", "qwen3_moe", "olmoe", "gpt_oss")
"""Architectures that keep the experts of a layer in one 3-D parameter."""

DENSE = tuple(name for name in CONFIGURATIONS if name not in MIXTURE)
"""Architectures whose every large weight is a linear layer."""


def build(name: str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A tiny random causal language model in evaluation mode.

    Args:
        name: a key of `CONFIGURATIONS`.
        dtype: dtype of all its parameters.
        seed: seed of its random weights; the caller's generator is left alone.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, options = CONFIGURATIONS[name]
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(model_type, **{**special, **options})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Not model.to(dtype): that would round the rotary frequencies too.
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
        _spread_(model)
    return model.eval()


def _spread_(model: nn.Module) -> None:
    """Widen the initial weights in place: matrices to a deviation of 0.15, biases to 0.02."""
    for _, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            nn.init.normal_(parameter, std=0.15)
        elif bool((parameter == 0).all()):
            nn.init.normal_(parameter, std=0.02)


def tokens(rows: int = 2, length: int = 24, *, seed: int = 1) -> torch.Tensor:
    """Random token ids, int64 `[rows, length]`, without the special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCABULARY, (rows, length), generator=generator)


def logits(model: nn.Module, ids: torch.Tensor) -> torch.Tensor:
    """Logits of `ids` without a cache, `[rows, length, vocabulary]`."""
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits
