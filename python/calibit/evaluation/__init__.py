"""evaluate(): log-likelihoods of answer choices and of text, from any Hugging Face causal language
model, as a Run."""

from calibit.evaluation.driver import Progress, evaluate
from calibit.evaluation.text import Text, wikitext_rows

__all__ = ["Progress", "Text", "evaluate", "wikitext_rows"]
