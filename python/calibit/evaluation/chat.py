"""Prompts inside a model's chat template.

The rule of lm-evaluation-harness: an instruction of the task is the system turn, all the rest
(few-shot examples and the question) one user turn, and the choices follow the opened answer without
the space that otherwise stands in front of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from calibit.evaluation.identity import text_hash

if TYPE_CHECKING:
    from calibit.tasks import Item
    from calibit.tasks.prompts import Prompt


def in_template(items: Sequence[Item], tokenizer: Any) -> list[Item]:
    """The items as the chat template of a tokenizer puts them.

    Args:
        items: items whose contexts are plain text.
        tokenizer: any Hugging Face tokenizer with a chat template.

    Returns:
        The same items with templated contexts and an empty delimiter.

    Raises:
        ValueError: if there is no template, or it refuses the turns.
    """
    template_hash(tokenizer)

    def put(item: Item, context: str) -> str:
        turns = [{"role": "user", "content": context.removeprefix(item.system)}]
        if item.system:
            turns.insert(0, {"role": "system", "content": item.system})
        return _rendered(tokenizer, turns, item.id)

    return [
        replace(
            item,
            context=item.context if item.contexts else put(item, item.context),
            contexts=tuple(put(item, context) for context in item.contexts),
            delimiter="",
            system="",
        )
        for item in items
    ]


def rendered_prompt(prompt: Prompt, tokenizer: Any, *, chat: bool) -> str:
    """What the model is shown of a prompt: its text, or its turns in the chat template.

    Args:
        prompt: text or turns.
        tokenizer: any Hugging Face tokenizer; with a chat template where one is needed.
        chat: put a plain text into the template too, as one user turn.

    Raises:
        ValueError: if there is no template, or it refuses the turns.
    """
    turns = [dict(turn) for turn in prompt.messages]
    if not turns and not chat:
        return prompt.prompt
    template_hash(tokenizer)
    return _rendered(tokenizer, turns or [{"role": "user", "content": prompt.prompt}], prompt.id)


def template_hash(tokenizer: Any) -> str:
    """SHA-256 of the chat template.

    Raises:
        ValueError: if the tokenizer has none, or several.
    """
    template = getattr(tokenizer, "chat_template", None)
    if not isinstance(template, str):
        raise ValueError(
            "[evaluate] expected a tokenizer with one chat template, got "
            f"{'several' if template else 'none'}"
        )
    return text_hash(template)


def _rendered(tokenizer: Any, turns: list[dict[str, str]], name: str) -> str:
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise ValueError(
            f"[evaluate] expected the chat template to take the turns "
            f"{', '.join(turn['role'] for turn in turns)} of item {name!r}, got: {error}"
        ) from error
