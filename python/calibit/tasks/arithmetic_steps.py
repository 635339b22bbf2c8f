"""Word problems of one to four steps, answered in worked steps: whether a model still carries a
result from one line of its own text to the next.

The items are this project's own work, released under CC0. They are drawn by a hash of their number,
so every machine has the same ones; the examples in the prompt fix the form of an answer.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import TypeVar

from calibit.tasks.answers import REGEX, Answer
from calibit.tasks.item import digest
from calibit.tasks.prompts import Prompt

Value = TypeVar("Value")

NAME = "arithmetic_steps"
PER_STEPS = 100
"""Problems of each number of steps."""

STEPS = (1, 2, 3, 4)
NEW_TOKENS = 72
"""A worked answer of four steps has some 60 tokens in vocabularies of digits."""

STOP = ("\n",)
PATTERN = r"[Tt]he answer is (-?\d+)"

_MOST = 60  # results stay below, so that a step asks for no more than two digits
_NAMES = ("Anna", "Ben", "Clara", "David", "Emma", "Frank", "Greta", "Hugo", "Iris", "Jonas")
_THINGS = ("apples", "books", "cards", "coins", "eggs", "marbles", "pens", "shells", "stamps")
_FRAMES = {"main": ("Question: ", "Answer:"), "alt": ("Problem: ", "Solution:")}

_EXAMPLES = (
    ("Mia has 7 plums. Mia buys 5 more. How many plums does Mia have now?",
     "7 + 5 = 12. The answer is 12."),
    ("Ida has 15 nuts. Ida loses 6. How many nuts does Ida have now?",
     "15 - 6 = 9. The answer is 9."),
    ("Tom has 9 stones. Tom doubles them. Tom gives 4 away. How many stones does Tom have now?",
     "9 * 2 = 18. 18 - 4 = 14. The answer is 14."),
    ("Lea has 20 beads. Lea keeps half of them. Lea finds 6 more. Lea loses 3. How many beads does "
     "Lea have now?",
     "20 / 2 = 10. 10 + 6 = 16. 16 - 3 = 13. The answer is 13."),
)  # fmt: skip


def render(form: str = "main") -> list[Prompt]:
    """The problems, by number of steps.

    Args:
        form: "main", or "alt" for the second wording; ids and answers are the same.
    """
    return list(_render(form))


@functools.cache
def _render(form: str) -> tuple[Prompt, ...]:
    ask, reply = _FRAMES[form]
    shown = "".join(f"{ask}{text}\n{reply} {worked}\n\n" for text, worked in _EXAMPLES)
    found = []
    taken: set[str] = set()
    for steps in STEPS:
        for number in range(PER_STEPS):
            name = f"{NAME}-{steps}-{number}"
            text, result = _new_problem(name, steps, taken)
            found.append(
                Prompt(
                    id=name,
                    task=NAME,
                    prompt=f"{shown}{ask}{text}\n{reply}",
                    answer=Answer(REGEX, str(result), pattern=PATTERN),
                    slices={"steps": str(steps)},
                    max_new_tokens=NEW_TOKENS,
                    stop=STOP,
                )
            )
    return tuple(found)


def _new_problem(name: str, steps: int, taken: set[str]) -> tuple[str, int]:
    """A problem that none before is, drawn by a hash of its name."""
    for attempt in itertools.count():
        text, result = _problem(digest(name, attempt), steps)
        if text not in taken:
            break
    taken.add(text)
    return text, result


def _problem(state: int, steps: int) -> tuple[str, int]:
    """A text and its result."""
    state, who = _pick(state, _NAMES)
    state, what = _pick(state, _THINGS)
    state, have = divmod(state, 17)
    have += 4
    sentences = [f"{who} has {have} {what}."]
    before = ""
    for _ in range(steps):
        choices = [one for one in _changes(have, state >> 64) if one[0] != before]
        state, (before, words, have) = _pick(state, choices)
        sentences.append(f"{who} {words}.")
    sentences.append(f"How many {what} does {who} have now?")
    return " ".join(sentences), have


def _changes(have: int, state: int) -> list[tuple[str, str, int]]:
    """Possible next steps: kind, words, result."""
    more, less = 2 + state % 9, 1 + state // 16 % max(1, have - 2)
    found = [("buys", f"buys {more} more", have + more)]
    found += [("finds", f"finds {more} more", have + more)]
    found += [("gives", f"gives {less} away", have - less)] if have > 3 else []
    found += [("loses", f"loses {less}", have - less)] if have > 3 else []
    found += [("double", "doubles them", 2 * have)] if 2 * have <= _MOST else []
    found += [("half", "keeps half of them", have // 2)] if have % 2 == 0 and have > 6 else []
    return found


def _pick(state: int, choices: Sequence[Value]) -> tuple[int, Value]:
    rest, place = divmod(state, len(choices))
    return rest, choices[place]
