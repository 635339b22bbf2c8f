"""Tasks: sources of items, their templates, prompts, and texts for perplexity."""

from calibit.tasks.item import Item, limit
from calibit.tasks.loading import Loaded, known, load, read
from calibit.tasks.parallel import ParallelText, read_parallel
from calibit.tasks.prompts import Prompt, read_prompts
from calibit.tasks.texts import Text, load_text

__all__ = [
    "Item",
    "Loaded",
    "ParallelText",
    "Prompt",
    "Text",
    "known",
    "limit",
    "load",
    "load_text",
    "read",
    "read_parallel",
    "read_prompts",
]
