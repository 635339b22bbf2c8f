"""Few-shot prompts: answered examples in front of each question, as lm-evaluation-harness draws
them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from calibit.tasks.catalog import Examples
from calibit.tasks.item import Item

SEED = 1234
"""The harness's own seed of its examples."""


def with_examples(
    items: Sequence[Item],
    pool: Sequence[Item] | None,
    count: int,
    *,
    rule: Examples,
    seed: int = SEED,
    between: str = "\n\n",
) -> list[Item]:
    """Put answered examples in front of every item.

    One generator a task goes through the items in their order, so that item i has the examples that
    the harness gives it. Where examples come from the evaluated rows themselves, one more is drawn
    and the item taken out.

    Args:
        items: the items, in the order of their set.
        pool: where examples are drawn from; None for the items themselves.
        count: examples of each item.
        rule: how they are drawn.
        seed: of the draw.
        between: what stands behind each example.

    Returns:
        The items with longer contexts, in the same order; ids, choices and gold unchanged.

    Raises:
        ValueError: if a pool is too small or has no labels.
    """
    draws: dict[tuple[str, str | None], _Draw] = {}
    found = []
    for item in items:
        group = _group(item, rule)
        if group not in draws:
            own = [one for one in (items if pool is None else pool) if _group(one, rule) == group]
            draws[group] = _Draw(own, count, rule, seed, inside=pool is None)
        shown = "".join(_answered(one) + between for one in draws[group](item))
        found.append(_behind(item, shown))
    return found


def _group(item: Item, rule: Examples) -> tuple[str, str | None]:
    return item.task, item.slices.get(rule.per) if rule.per else None


class _Draw:
    """The examples of one task, item by item."""

    def __init__(
        self, pool: list[Item], count: int, rule: Examples, seed: int, *, inside: bool
    ) -> None:
        self.pool, self.count, self.first, self.inside = pool, count, rule.first, inside
        self.random = random.Random(seed)
        unlabelled = [one.id for one in pool if one.gold is None and not one.right]
        if len(pool) < count + inside or unlabelled:
            raise ValueError(
                f"[tasks] expected at least {count + inside} labelled rows to draw {count} "
                f"examples from, got {len(pool) - len(unlabelled)}; give more rows or fewer "
                "examples"
            )

    def __call__(self, item: Item) -> list[Item]:
        if not self.inside:
            drawn = self.pool if self.first else self.random.sample(self.pool, self.count)
            return drawn[: self.count]
        if self.first:
            return [one for one in self.pool if not _same(one, item)][: self.count]
        drawn = self.random.sample(self.pool, self.count + 1)
        kept = [one for one in drawn if not _same(one, item)][: self.count]
        if len(kept) < self.count:  # the item came twice: rows may repeat
            others = [one for one in self.pool if not _same(one, item)]
            kept = self.random.sample(others, self.count)
        return kept


def _same(a: Item, b: Item) -> bool:
    return a == b or (a.context, a.contexts, a.choices, a.gold) == (
        b.context,
        b.contexts,
        b.choices,
        b.gold,
    )


def _answered(item: Item) -> str:
    """Question and answer of an example, without the instruction."""
    gold = item.gold if item.gold is not None else item.right[0]
    context = item.contexts[gold] if item.contexts else item.context
    return context.removeprefix(item.system) + item.delimiter + item.choices[gold]


def _behind(item: Item, shown: str) -> Item:
    """The item with examples between its instruction and its question."""

    def put(context: str) -> str:
        return item.system + shown + context.removeprefix(item.system)

    return replace(
        item,
        context=item.context if item.contexts else put(item.context),
        contexts=tuple(map(put, item.contexts)),
    )
