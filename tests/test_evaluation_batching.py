"""The trie of a batch, where it is cut, and the plan of a run."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from calibit.evaluation.batching import (
    Tokens,
    best_cuts,
    cut,
    plan,
    tokens_of,
)
from calibit.evaluation.encoding import EncodedChoices

tries = st.lists(
    st.lists(st.integers(0, 2), min_size=1, max_size=7).map(tuple), min_size=1, max_size=8
)


def item(context: str, *choices: str) -> EncodedChoices:
    """An item whose tokens are the characters' code points."""
    fed = tuple(tuple(map(ord, context + choice))[:-1] for choice in choices)
    return EncodedChoices(fed, tuple(tuple(map(ord, choice)) for choice in choices))


def cost(inputs: Sequence[Tokens], cuts: Sequence[int]) -> float:
    return sum(level.cost for level in cut(inputs, cuts).levels)


def paths(inputs: Sequence[Tokens], cuts: Sequence[int]) -> list[Tokens]:
    """Each input as its chain of rows spells it."""
    trie = cut(inputs, cuts)
    spelled = []
    for row_of in trie.row_of:
        row, tokens = row_of[-1], ()
        for level in reversed(trie.levels[: len(row_of)]):
            tokens = level.rows[row] + tokens
            row = level.parents[row] if level.parents else row
        spelled.append(tokens)
    return spelled


@given(tries, st.sets(st.integers(1, 7)))
def test_rows_spell_every_input(inputs: list[Tokens], cuts: set[int]) -> None:
    ends = sorted({end for end in cuts if end < max(map(len, inputs))} | {max(map(len, inputs))})
    for tokens, spelled in zip(inputs, paths(inputs, ends), strict=True):
        assert spelled[: len(tokens)] == tokens


@given(tries, st.sets(st.integers(1, 7)))
def test_rows_that_continue_are_full(inputs: list[Tokens], cuts: set[int]) -> None:
    ends = sorted({end for end in cuts if end < max(map(len, inputs))} | {max(map(len, inputs))})
    levels = cut(inputs, ends).levels
    for level, below in pairwise(levels):
        assert all(len(level.rows[row]) == level.end - level.start for row in below.parents)


@settings(max_examples=60)
@given(tries)
def test_best_cuts_are_the_cheapest_of_all(inputs: list[Tokens]) -> None:
    longest = max(map(len, inputs))
    every = [
        (*chosen, longest)
        for count in range(longest)
        for chosen in combinations(range(1, longest), count)
    ]
    assert cost(inputs, best_cuts(inputs)) == pytest.approx(
        min(cost(inputs, cuts) for cuts in every)
    )


def test_long_context_is_one_row_for_all_choices() -> None:
    one = item("c" * 100, "ab", "ac", "bb")
    assert best_cuts(one.inputs) == (100, 101)
    assert tokens_of(plan([one], batch_tokens=500)[0], [one]) == 100 + 2  # "a" is shared


def test_one_token_choices_need_one_pass() -> None:
    one = item("c" * 20, "a", "b")
    [batch] = plan([one], batch_tokens=500)
    assert batch.cuts == (20,)
    assert tokens_of(batch, [one]) == 20


def test_template_common_to_items_is_one_row() -> None:
    items = [item("t" * 200 + name * 3, "a", "b") for name in "xyz"]
    [batch] = plan(items, batch_tokens=1000)
    assert batch.cuts == (200, 203)
    assert tokens_of(batch, items) == 200 + 9


def random_items(count: int, seed: int = 0) -> list[EncodedChoices]:
    draw = random.Random(seed)

    def text(low: int, high: int) -> str:
        return "".join(draw.choice("abcdef") for _ in range(draw.randint(low, high)))

    return [
        item("t" * draw.randint(1, 9) + text(1, 40), *(text(1, 6) for _ in range(4)))
        for _ in range(count)
    ]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("batch_tokens", [1, 64, 1024])
def test_plan_holds_every_scorable_item_once(share: bool, batch_tokens: int) -> None:
    items = random_items(60)
    items[7] = EncodedChoices((), (), reason="the item has no choices")
    batches = plan(items, batch_tokens=batch_tokens, share=share)
    planned = sorted(index for batch in batches for index in batch.items)
    assert planned == [index for index in range(60) if index != 7]


def test_plan_is_deterministic() -> None:
    assert plan(random_items(80), batch_tokens=256) == plan(random_items(80), batch_tokens=256)


def test_plan_respects_the_limit_but_for_single_items() -> None:
    items = random_items(80)
    for batch in plan(items, batch_tokens=128):
        inputs = {tokens for index in batch.items for tokens in items[index].inputs}
        ends = [a for a in inputs if not any(a != b and b[: len(a)] == a for b in inputs)]
        assert len(batch.items) == 1 or len(ends) * batch.cuts[-1] <= 4 * 128


def test_plan_sends_fewer_tokens_than_one_row_per_choice() -> None:
    items = random_items(200)
    planned = sum(tokens_of(batch, items) for batch in plan(items, batch_tokens=1024))
    separate = sum(len(tokens) for each in items for tokens in each.inputs)
    assert planned < 0.6 * separate


def test_plan_of_nothing_is_empty() -> None:
    assert plan([], batch_tokens=10) == []
