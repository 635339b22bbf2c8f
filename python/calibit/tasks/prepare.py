"""From the texts of a row to the fields of a task's templates: the rule of each data set.

A rule takes the row's texts and choices and returns the template fields and the choices; none
strips or drops a choice. The rules are those of lm-evaluation-harness 0.4.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from calibit.tasks.rows import Row

Fields = dict[str, str]
Choices = tuple[str, ...]

# cause / effect; the language's own joining words, as in lm-evaluation-harness
XCOPA_CONNECTORS = {
    "et": ("sest", "seetõttu"),
    "ht": ("poukisa", "donk sa"),
    "id": ("karena", "maka"),
    "it": ("perché", "quindi"),
    "qu": ("imataq", "chaymi"),
    "sw": ("kwa sababu", "kwa hiyo"),
    "ta": ("காரணமாக", "எனவே"),
    "th": ("เพราะ", "ดังนั้น"),
    "tr": ("çünkü", "bu yüzden"),
    "vi": ("bởi vì", "vì vậy"),
    "zh": ("因为", "所以"),
}


def nothing(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """The texts are the fields."""
    return texts, choices


def question(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """The row's only text is `question`."""
    (text,) = texts.values()
    return {"question": text}, choices


def boolq(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """`passage` and `question`, the latter without question mark; choices "no", "yes".

    A local row holds both in one text: it is split at the *last* "\\nQuestion: ", because a
    passage may contain these words too.
    """
    if "context" in texts:
        passage, found, asked = texts["context"].rpartition("\nQuestion: ")
        if not found:
            raise ValueError("'context' to hold a passage, then a line 'Question: ...?'")
        texts = {"passage": passage, "question": asked}
    fields = {"passage": texts["passage"], "question": texts["question"].removesuffix("?")}
    return fields, choices


def hellaswag(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """`context`: local rows verbatim; published rows put together and cleaned of brackets."""
    if "context" in texts:
        return texts, choices
    start = f"{texts['activity_label']}: {texts['ctx_a']} {texts['ctx_b'].capitalize()}"
    return {"context": clean_wikihow(start)}, tuple(clean_wikihow(text) for text in choices)


def clean_wikihow(text: str) -> str:
    """HellaSwag's text rule: strip, " [title]" to ". ", drop brackets, halve blanks once.

    >>> clean_wikihow("a barbell. [title] How")
    'a barbell.. How'
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def mmlu(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """`question` stripped, `about` = subject in words, `lettered` = "A. ..." lines."""
    asked = texts.get("question", texts.get("context", "")).strip()
    lines = [f"{letter}. {text}" for letter, text in zip(letters(choices), choices, strict=True)]
    about = texts["subject"].replace("_", " ")
    return {"question": asked, "about": about, "lettered": "\n".join(lines)}, choices


def xcopa(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """`premise`, `stem` = premise without its last character (whatever it is), `connector`."""
    premise = texts.get("premise", texts.get("context", ""))
    if texts["lang"] not in XCOPA_CONNECTORS:
        raise ValueError(f"'lang' to be one of {', '.join(XCOPA_CONNECTORS)}")
    if texts["question"] not in ("cause", "effect"):
        raise ValueError("'question' to be 'cause' or 'effect'")
    connector = XCOPA_CONNECTORS[texts["lang"]][texts["question"] == "effect"]
    fields = {"premise": premise.strip(), "stem": premise.strip()[:-1], "connector": connector}
    return fields, choices


def winogrande(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """`start` before the blank "_", `ending` after it, stripped."""
    (text,) = texts.values()
    start, found, ending = text.partition("_")
    if not found or not ending.strip():
        raise ValueError("a sentence with a blank '_' and words after it")
    return {"start": start, "ending": ending.strip()}, choices


def lambada(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """`start` = the text without its last word, which is the only choice."""
    (text,) = texts.values()
    start, found, word = text.rpartition(" ")
    if not found or not word:
        raise ValueError("a text of at least two words that ends with the last one")
    return {"start": start}, (word,)


def story(texts: Fields, choices: Choices) -> tuple[Fields, Choices]:
    """`context`: the four sentences joined by one space."""
    return {"context": " ".join(v for name, v in texts.items() if name != "lang")}, choices


def letters(choices: Choices) -> Choices:
    """ "A", "B", ... in place of the choices."""
    return tuple(chr(ord("A") + i) for i in range(len(choices)))


def lower_first(choices: Choices) -> Choices:
    """The choices with their first character in lower case."""
    return tuple(text[:1].lower() + text[1:] for text in choices)


def repair_questions(rows: Sequence[Row]) -> tuple[list[Row], list[str]]:
    """Take XCOPA's cause/effect from the Estonian row of the same index.

    The published field is wrong in five languages (Thai says "effect" throughout); Estonian
    agrees with the majority of languages at every index.

    Returns:
        The rows, and notes: how many were corrected, how many have no Estonian row.
    """
    right = {_index(row): row.fields.get("question") for row in rows if _lang(row) == "et"}
    out, corrected, unchecked = [], 0, 0
    for row in rows:
        asked = right.get(_index(row))
        unchecked += asked is None
        if asked is not None and asked != row.fields.get("question"):
            corrected += 1
            row = replace(row, fields={**row.fields, "question": asked})
        out.append(row)
    notes = []
    if corrected:
        notes.append(f"xcopa: {corrected} wrong 'question' fields taken from Estonian")
    if unchecked:
        notes.append(f"xcopa: {unchecked} 'question' fields unchecked, no Estonian row")
    return out, notes


def _lang(row: Row) -> object:
    return row.fields.get("lang")


def _index(row: Row) -> str:
    """The position in the published set: `idx`, or the number at the end of `id`."""
    return str(row.fields.get("idx", str(row.fields.get("id", "")).rpartition("-")[2]))
