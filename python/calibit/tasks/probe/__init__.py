"""The probe set: small fact tables rendered as multiple choice, so that an audit runs offline.

It is a smoke test with known domains and languages, not a benchmark. Tables and templates are
this project's own work, released under CC0 (LICENSE in this folder).

A table is `<domain>.tsv` with the columns `slug`, `kind`, `group` and, per language, `<lang>`
(what is asked about), `<lang>_answer` ("right|also right|..."; the first one is asked for, the
others never serve as distractors) and optionally `<lang>_wrong` ("wrong|wrong|..."). An empty
cell leaves the row out of that language. Without `<lang>_wrong` the distractors are answers of
other rows of the same domain, kind, group and language. `templates.tsv` holds, per domain, kind
and language, the wording (`main`) and a second one (`alt`); `{q}` stands for the cell, `{Q}` for
the cell with its first letter capitalised, `\\n` for a line break.
"""

from __future__ import annotations

import functools
import importlib.resources
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from calibit.tasks.item import Item, digest

NAME = "probe"
LANGUAGES = ("en", "de", "es")
CHOICES = 4
_LENGTH_SLACK = 4  # characters by which a distractor may differ in length without losing rank


@dataclass(frozen=True)
class Fact:
    """One cell of a table: a question in one language, its right answers, its distractors.

    Attributes:
        right: the asked-for answer first, then others that would also be right.
        wrong: distractors named by the table; empty = taken from the other rows.
    """

    slug: str
    domain: str
    kind: str
    group: str
    lang: str
    question: str
    right: tuple[str, ...]
    wrong: tuple[str, ...]

    @property
    def id(self) -> str:
        """The item id; it stays when other rows come or go."""
        return f"{NAME}-{self.lang}-{self.domain}-{self.slug}"


def render(form: str = "main") -> list[Item]:
    """Render every fact as a multiple-choice item with four choices.

    Distractors and the order of choices follow from a hash of the item's id, and the right
    answer stands equally often (give or take one) in each place of each domain and language.

    Args:
        form: "main", or "alt" for the second wording; ids, choices and gold are the same.

    Returns:
        The items by language, domain and table row; slices "lang" and "domain".

    Raises:
        ValueError: a table has fewer than three distractors for a question.
    """
    return list(_render(form))


def facts() -> list[Fact]:
    """Read all tables, in the order in which `render` yields their items."""
    return list(_facts())


@functools.cache
def _render(form: str) -> tuple[Item, ...]:
    wordings = templates(form)
    answers = _answers()
    items = []
    for fact in _facts():
        choices, gold = answers[fact.id]
        question = fact.question
        wording = wordings[fact.domain, fact.kind, fact.lang]
        context = wording.format(q=question, Q=question[:1].upper() + question[1:])
        slices = {"lang": fact.lang, "domain": fact.domain}
        items.append(Item(fact.id, NAME, context, choices, gold, slices))
    return tuple(items)


@functools.cache
def _answers() -> dict[str, tuple[tuple[str, ...], int]]:
    """Fact id -> (choices, gold), the same for every wording."""
    table = _facts()
    distractors, places = _distractors(table), _gold_places(table)
    answers = {}
    for fact in table:
        choices, gold = list(distractors[fact.id]), places[fact.id]
        choices.insert(gold, fact.right[0])
        answers[fact.id] = (tuple(choices), gold)
    return answers


@functools.cache
def _facts() -> tuple[Fact, ...]:
    domains = dict.fromkeys(row["domain"] for row in _read("templates"))
    rows = {domain: _read(domain) for domain in domains}
    return tuple(
        fact
        for lang in LANGUAGES
        for domain in domains
        for row in rows[domain]
        if (fact := _fact(domain, lang, row)) is not None
    )


def _fact(domain: str, lang: str, row: Mapping[str, str]) -> Fact | None:
    question = row.get(lang, "")
    if not question:
        return None
    right, wrong = row[f"{lang}_answer"], row.get(f"{lang}_wrong", "")
    return Fact(
        slug=row["slug"],
        domain=domain,
        kind=row["kind"],
        group=row["group"],
        lang=lang,
        question=question,
        right=tuple(right.split("|")),
        wrong=tuple(wrong.split("|")) if wrong else (),
    )


def _distractors(table: Iterable[Fact]) -> dict[str, tuple[str, ...]]:
    """Three wrong answers per fact, in a seeded order; of similar length where there is choice."""
    table = tuple(table)
    pools: dict[tuple[str, ...], dict[str, None]] = defaultdict(dict)
    right: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for fact in table:
        pools[_pool_key(fact)][fact.right[0]] = None
        right[_question_key(fact)].update(fact.right)
    return {
        fact.id: _draw(fact, fact.wrong or pools[_pool_key(fact)], right[_question_key(fact)])
        for fact in table
    }


def _draw(fact: Fact, pool: Iterable[str], right: set[str]) -> tuple[str, ...]:
    length, wanted = len(fact.right[0]), CHOICES - 1
    wrong = [text for text in pool if text not in right]
    if len(wrong) < wanted:
        raise ValueError(
            f"[probe] expected at least {wanted} distractors for {fact.id}, got {wrong}: add "
            f"wrong answers to {fact.domain}.tsv or rows to its group"
        )
    alike = [text for text in wrong if abs(len(text) - length) <= _LENGTH_SLACK]
    if len(alike) < wanted:
        alike = sorted(wrong, key=lambda text: abs(len(text) - length))[:wanted]
    state, drawn = digest(fact.id), []
    for _ in range(wanted):
        state, place = divmod(state, len(alike))
        drawn.append(alike.pop(place))
    return tuple(drawn)


def _pool_key(fact: Fact) -> tuple[str, ...]:
    return (fact.domain, fact.kind, fact.group, fact.lang)


def _question_key(fact: Fact) -> tuple[str, ...]:
    return (fact.domain, fact.kind, fact.lang, fact.question)


def _gold_places(table: Iterable[Fact]) -> dict[str, int]:
    """Deal the places 0..3 in turn to the facts of a domain and language, in seeded order."""
    cells: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in table:
        cells[fact.lang, fact.domain].append(fact)
    places = {}
    for cell in cells.values():
        dealt = sorted(cell, key=lambda fact: digest("place", fact.id))
        places.update({fact.id: rank % CHOICES for rank, fact in enumerate(dealt)})
    return places


def templates(form: str) -> dict[tuple[str, str, str], str]:
    """Return (domain, kind, language) -> wording with `{q}` or `{Q}`, for form "main" or "alt"."""
    return {
        (row["domain"], row["kind"], row["lang"]): row[form].replace("\\n", "\n")
        for row in _read("templates")
    }


@functools.cache
def _read(name: str) -> tuple[dict[str, str], ...]:
    source = importlib.resources.files(__name__) / f"{name}.tsv"
    head, *lines = source.read_text(encoding="utf-8").splitlines()
    columns = head.split("\t")
    return tuple(
        dict(zip(columns, line.split("\t") + [""] * len(columns), strict=False)) for line in lines
    )
