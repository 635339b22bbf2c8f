"""What an output says about the model and how it was asked: the meta of the imported run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from calibit.evaluation.encoding import BOS_RULES
from calibit.io.lm_eval.files import Output
from calibit.io.lm_eval.sample import Sample

SCHEMA = "lm-evaluation-harness"
_BOS_BY_TOKENIZER = (0, 4, 9, 2)
"""First version that leaves BOS to the tokenizer; those before add none to a causal model."""

_CAUSAL = ("hf", "huggingface", "gpt2")
"""Model types that run transformers; one given as an object is known by its parameters instead."""

_OF_CONFIG = ("model", "batch_size", "limit", "model_dtype")
_OF_RESULTS = (
    "lm_eval_version",
    "chat_template_sha",
    "system_instruction_sha",
    "fewshot_as_multiturn",
    "tokenizer_bos_token",
)
_THE_MODEL = ("pretrained", "revision", "peft", "delta", "gguf_file")
"""Model arguments that say which model it is, in which two compared runs differ by design."""


def describe(output: Output, samples: Sequence[Sample], notes: Sequence[str]) -> dict[str, Any]:
    """The meta of an imported run.

    Args:
        output: its files.
        samples: what was read from them.
        notes: said while reading.

    Raises:
        ValueError: if several results files lie together whose settings differ.
    """
    results = output.results[0] if output.results else {}
    every = [_settings(content) for content in output.results]
    for other in every[1:]:
        differing = [key for key in {**every[0], **other} if every[0].get(key) != other.get(key)]
        if differing:
            raise ValueError(
                f"[lm_eval] expected the evaluations in {output.folder} to have the same settings, "
                f"got different {', '.join(differing)}; name the results file of one"
            )
    arguments = model_arguments(results)
    name = arguments.get("pretrained") or results.get("model_name") or output.folder.name
    settings = every[0] if every else {}
    for content in output.results:
        settings |= {f"version of {t}": v for t, v in (content.get("versions") or {}).items()}
        settings |= {f"num_fewshot of {t}": n for t, n in _fewshots(content).items()}
    bos, doubt = bos_rule(output.layout, results, arguments)
    tasks = Counter(one.task for one in samples)
    return {
        "schema": SCHEMA,
        "model": {"name": str(name)},
        "scheme": None,
        "bos": bos,
        "dtype": arguments.get("dtype"),
        "tasks": [{"name": task, "n": n} for task, n in tasks.items()],
        "text": [],
        "settings": settings,
        "notes": [*notes, *doubt, *_doubts(results)],
    }


def model_arguments(results: Mapping[str, Any]) -> dict[str, str]:
    """`model_args` as a mapping, from either of its two forms."""
    given = (results.get("config") or {}).get("model_args") or {}
    if isinstance(given, str):
        pairs = (part.partition("=") for part in given.split(",") if part)
        return {key.strip(): value.strip() for key, _, value in pairs}
    if not isinstance(given, Mapping):
        raise ValueError(
            f"[lm_eval] expected model_args of a results file as text or object, got {given!r}"
        )
    return {str(key): str(value) for key, value in given.items()}


def bos_rule(
    layout: str, results: Mapping[str, Any], arguments: Mapping[str, str]
) -> tuple[str | None, list[str]]:
    """(`tokenizer`, `always`, `never` or None for unknown; notes).

    An explicit `add_bos_token` decides; else the version does, and Gemma always gets one since
    0.4.3.
    """
    explicit = arguments.get("add_bos_token")
    if explicit is not None:
        return ("always" if explicit.lower() == "true" else "never"), []
    if not results:
        return None, ["no results file: its settings, BOS among them, are unknown"]
    config = results.get("config") or {}
    if config.get("bos") in BOS_RULES:  # written by calibit's own adapter
        return config["bos"], []
    kind = str(config.get("model", "hf"))
    if not kind.startswith(_CAUSAL) and "model_num_parameters" not in config:
        return None, [f"the BOS rule of model type {kind!r} is not known here"]
    if layout != "write_out" and "gemma" in arguments.get("pretrained", "").lower():
        return (
            (None, ["whether Gemma got a BOS is unknown"])
            if layout == "array"
            else (
                "always",
                [],
            )
        )
    version = _version(results.get("lm_eval_version"))
    return ("tokenizer" if version >= _BOS_BY_TOKENIZER else "never"), []


def _version(text: Any) -> tuple[int, ...]:
    """A version as numbers; one that is not recorded is older than the record."""
    parts = str(text or "0").split(".")
    numbers = (
        "".join(c for c in part if c.isdigit()) if part[:1].isdigit() else "" for part in parts
    )
    return tuple(int(number) for number in numbers if number)


def _settings(results: Mapping[str, Any]) -> dict[str, Any]:
    config = results.get("config") or {}
    found = {key: config.get(key) for key in _OF_CONFIG}
    found |= {key: results.get(key) for key in _OF_RESULTS}
    own = {k: v for k, v in model_arguments(results).items() if k not in _THE_MODEL}
    found |= {f"model_args {key}": value for key, value in own.items()}
    return {key: value for key, value in found.items() if value is not None}


def _fewshots(results: Mapping[str, Any]) -> dict[str, Any]:
    shots = dict(results.get("n-shot") or {})
    both = (results.get("config") or {}).get("num_fewshot")
    return shots or {task: both for task in results.get("results", {}) if both is not None}


def _doubts(results: Mapping[str, Any]) -> list[str]:
    if (results.get("config") or {}).get("use_cache") in (None, False):
        return []
    return [
        "use_cache was set: the harness's cache does not tell models apart, so that answers may be "
        "those of another model"
    ]
