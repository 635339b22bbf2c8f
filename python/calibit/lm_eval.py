"""Any task of lm-evaluation-harness on calibit's models: its model type `calibit`.

Registered when this module is imported; the harness looks for no plug-ins, so its command starts
through this one:

    python -m calibit.lm_eval --model calibit --model_args pretrained=FOLDER --tasks arc_easy

Log-likelihoods are those of `calibit.evaluate`: contexts shared among choices, batches planned by
tokens, float32 log-softmax summed in float64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch

try:
    import lm_eval.models  # noqa: F401  (fills the registry, which is else taken for complete)
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise ImportError(
        "[calibit.lm_eval] expected lm-evaluation-harness; pip install 'calibit[lm-eval]'"
    ) from error

from calibit.evaluation.batching import plan
from calibit.evaluation.chat import template_hash
from calibit.evaluation.checking import Method, choose_method
from calibit.evaluation.driver import BATCH_TOKENS
from calibit.evaluation.encoding import EncodedChoices, Encoder, context_length, encode_items
from calibit.evaluation.generation import continue_greedily, plan_prompts
from calibit.evaluation.scoring import Scorer
from calibit.fingerprint import weight_hash
from calibit.footprint import kernels_of

Answer = tuple[float, bool]

_NEW_TOKENS = 256  # the harness's default
_HARNESS_DEVICE = "cuda:0"  # what it asks for unless told otherwise


@register_model("calibit")
class CalibitLM(TemplateLM):
    """A model as the harness asks it, scored by calibit.

    Args:
        pretrained: folder or hub name, quantized or not, or a loaded model.
        tokenizer: tokenizer of a loaded model.
        dtype: name of a torch dtype, or `auto` for the stored one.
        device: where it runs; the harness asks for `cuda:0` unless told otherwise, which is the CPU
            where there is no such device.
        bos: one of `calibit.evaluation.encoding.BOS_RULES`.
        batch_tokens: tokens of a batch; batches are planned by tokens.
        max_length: longest input in tokens; default the model's context.
        trust_remote_code: let the model bring code of its own.
        batch_size, max_batch_size: given by the harness, without effect.

    Raises:
        ValueError: a loaded model without a tokenizer, or nothing that can be loaded.
    """

    def __init__(
        self,
        pretrained: Any,
        tokenizer: Any = None,
        dtype: str = "auto",
        device: str | None = None,
        bos: str = "tokenizer",
        batch_tokens: int = BATCH_TOKENS,
        max_length: int | None = None,
        trust_remote_code: bool = False,
        batch_size: object = None,
        max_batch_size: object = None,
    ) -> None:
        super().__init__()
        self.name = str(getattr(pretrained, "name_or_path", pretrained))
        self.scheme: str | None = None
        if isinstance(pretrained, str):
            from calibit.auditing.models import open_model

            loaded = open_model(
                pretrained,
                device=_available(device),
                dtype=dtype,
                trust_remote_code=trust_remote_code,
            )
            self.model, self.tokenizer = loaded.model, loaded.tokenizer
            self.scheme = loaded.record["scheme"]
        elif tokenizer is None:
            raise ValueError("[calibit.lm_eval] expected a tokenizer with a loaded model, got none")
        else:
            self.model, self.tokenizer = pretrained.eval(), tokenizer
        self.encoder = Encoder(self.tokenizer, bos=bos)
        self.batch_tokens = batch_tokens
        self.max_length = max_length or context_length(self.model, self.tokenizer)
        self._method: Method | None = None

    # what the harness asks

    @property
    def device(self) -> Any:
        """Where the model runs."""
        return self.model.device

    @property
    def eot_token_id(self) -> int:
        """EOS, else BOS."""
        eos = self.tokenizer.eos_token_id
        return self.prefix_token_id if eos is None else int(eos)

    @property
    def prefix_token_id(self) -> int:
        """The id that stands for an empty context."""
        return self.encoder.prefix_token

    @property
    def tokenizer_name(self) -> str:
        """What keys the harness's cache of requests."""
        return self.name.replace("/", "__")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        """Token ids by the BOS rule; without special tokens where the harness says so."""
        encode = self.encoder.bare if add_special_tokens is False else self.encoder
        return encode([string])[string]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The turns as the tokenizer's chat template puts them."""
        template_hash(self.tokenizer)
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def get_model_info(self) -> dict[str, Any]:
        """What becomes part of the results' `config`."""
        return {
            "model_num_parameters": sum(p.numel() for p in self.model.parameters()),
            "model_dtype": str(self.model.dtype),
            "scheme": self.scheme,
            "weight_hash": self._weight_hash,
            "kernels": kernels_of(self.model),
            "bos": self.encoder.bos,
        }

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[Answer]:
        """(log-likelihood in nats, is greedy) of each (context, continuation), in their order."""
        places: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            places.setdefault(request.args[0], []).append(place)
        pairs = [
            (context, [requests[place].args[1] for place in own]) for context, own in places.items()
        ]
        items = encode_items(self.encoder, pairs, max_length=self.max_length)
        return self._in_order(items, list(places.values()))

    def _loglikelihood_tokens(
        self, requests: Sequence[Any], disable_tqdm: bool = False, **_: object
    ) -> list[Answer]:
        """The same for requests that are encoded: (texts, context ids, continuation ids)."""
        places: dict[tuple[int, ...], list[int]] = {}
        for place, (_texts, context, _) in enumerate(requests):
            places.setdefault(tuple(context), []).append(place)
        items = []
        for context, own in places.items():
            targets = tuple(tuple(requests[place][2]) for place in own)
            fed = tuple((*context, *ids)[-(self.max_length + 1) :][:-1] for ids in targets)
            items.append(EncodedChoices(fed, targets))
        return self._in_order(items, list(places.values()))

    def loglikelihood_rolling(
        self, requests: Sequence[Any], disable_tqdm: bool = False
    ) -> list[float]:
        """Log-likelihood of each whole text, nats, in the harness's disjoint windows."""
        windows = [
            [
                (None, *make_disjoint_window(pair))
                for pair in get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                )
            ]
            for request in requests
        ]
        answers = iter(self._loglikelihood_tokens([window for own in windows for window in own]))
        return [sum(next(answers)[0] for _ in own) for own in windows]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before the first of the stop texts."""
        wanted = [_wanted(request.args[1]) for request in requests]
        ids = [
            tuple(self._context(request.args[0], new))
            for request, (new, _) in zip(requests, wanted, strict=True)
        ]
        limits = [new for new, _ in wanted]
        found: dict[int, str] = {}
        for batch in plan_prompts([*map(len, ids)], limits, batch_tokens=self.batch_tokens):
            rows = continue_greedily(
                self.model,
                self.tokenizer,
                [ids[index] for index in batch],
                max_new_tokens=limits[batch[0]],
                stops=[wanted[index][1] for index in batch],
            )
            found.update(zip(batch, (row.text for row in rows), strict=True))
        return [found[index] for index in range(len(requests))]

    # how it is done

    @cached_property
    def _weight_hash(self) -> str:
        return weight_hash(self.model)

    def _in_order(
        self, items: Sequence[EncodedChoices], places: Sequence[Sequence[int]]
    ) -> list[Answer]:
        """Score items and put each answer into the place of its request."""
        reasons = [item.reason for item in items if item.reason]
        if reasons:
            raise ValueError(f"[calibit.lm_eval] expected scorable requests, got: {reasons[0]}")
        if self._method is None:
            self._method = choose_method(self.model, items)
        share = self._method.shared_context
        scorer = Scorer(self.model, head=self._method.head)
        answers: dict[int, Answer] = {}
        for batch in plan(items, batch_tokens=self.batch_tokens, share=share):
            for index, score in zip(batch.items, scorer.choices(items, batch), strict=True):
                found = zip(score.ll, score.greedy, strict=True)
                answers.update(zip(places[index], found, strict=True))
        return [answers[place] for place in range(len(answers))]

    def _context(self, text: str, new: int) -> list[int]:
        """Token ids of a context, cut on the left to leave room for a continuation."""
        return self.tok_encode(text)[-max(1, self.max_length - new) :] or [self.prefix_token_id]


def _wanted(options: Mapping[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Longest continuation and stop texts of a request."""
    if options.get("do_sample") or options.get("temperature"):
        raise ValueError(
            f"[calibit.lm_eval] expected greedy generation, got {dict(options)}; sampled answers "
            "of two models cannot be compared"
        )
    until = options.get("until") or []
    stops = (until,) if isinstance(until, str) else tuple(text for text in until if text)
    return int(options.get("max_gen_toks") or options.get("max_new_tokens") or _NEW_TOKENS), stops


def _available(device: str | None) -> str:
    """The device asked for; the CPU where that is the harness's own default and is missing."""
    wanted = device or _HARNESS_DEVICE
    return "cpu" if wanted == _HARNESS_DEVICE and not torch.cuda.is_available() else wanted


def main() -> None:
    """The harness's own command, with this model type known."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
