"""Tasks: sources of multiple-choice items, their templates, and texts for perplexity."""

from calibit.tasks.item import Item, limit
from calibit.tasks.loading import Loaded, known, load, read
from calibit.tasks.texts import Text, load_text

__all__ = ["Item", "Loaded", "Text", "known", "limit", "load", "load_text", "read"]
