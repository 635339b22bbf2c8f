"""From rows to items: pick the columns, prepare the fields, fill the template."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

from calibit.tasks.catalog import Columns, Prepare, Wording
from calibit.tasks.item import Item
from calibit.tasks.rows import Row

_USED = ("id", "task")  # string columns of a local row that never become slices


def build_items(
    rows: Iterable[Row],
    layouts: tuple[Columns, ...],
    wording: Wording,
    prepare: Prepare,
    name: Callable[[Row, Columns], str],
    order: tuple[int, ...] = (),
) -> list[Item]:
    """Turn rows into items.

    Args:
        rows: the source, in order.
        layouts: row layouts; a row is read by the first whose first text column it has.
        wording: template and treatment of the choices.
        prepare: from texts and choices to template fields and choices.
        name: gives an item's task.
        order: places of the choices in another order than the row's; empty keeps it.

    Returns:
        One item per row; an item without `id` gets "<task>-<number of its row>".

    Raises:
        ValueError: a row lacks a field, has a wrong one, or repeats an id.
    """
    items: list[Item] = []
    seen: dict[str, str] = {}
    for number, row in enumerate(rows):
        columns = next((c for c in layouts if c.texts[0] in row.fields), layouts[0])
        item = _item(row, columns, wording, prepare, f"{name(row, columns)}", number)
        item = _reordered(item, order) if order else item
        if item.id in seen:
            remedy = f"the same id stands in {seen[item.id]}: rename or remove one"
            raise row.wrong("an id of its own", item.id, remedy)
        seen[item.id] = row.where
        items.append(item)
    return items


def _item(
    row: Row, columns: Columns, wording: Wording, prepare: Prepare, task: str, number: int
) -> Item:
    texts = {column: row.text(column) for column in columns.texts}
    choices = _choices(row, columns)
    gold, right = _gold(row, columns, len(choices))
    try:
        fields, choices = prepare(texts, choices)
    except ValueError as error:
        raise row.wrong(str(error), texts, "correct the row") from error
    own = row.fields.get("id")
    item = Item(
        id=f"{task}-{number}" if own is None else str(own),
        task=task,
        context="",
        choices=wording.choices(choices),
        gold=gold,
        slices=_slices(row, columns),
        right=right,
        system=wording.system.format_map(fields),
    )
    if wording.ending is None:
        return replace(item, context=item.system + wording.context.format_map(fields))
    inside = [wording.context.format_map({**fields, "choice": text}) for text in item.choices]
    return replace(
        item,
        contexts=tuple(item.system + text for text in inside),
        choices=(wording.ending.format_map(fields),) * len(inside),
    )


def _reordered(item: Item, order: tuple[int, ...]) -> Item:
    if len(order) != len(item.choices):
        return item
    gold = None if item.gold is None else order.index(item.gold)
    return replace(item, choices=tuple(item.choices[k] for k in order), gold=gold)


def _choices(row: Row, columns: Columns) -> tuple[str, ...]:
    if columns.answers:
        return columns.answers
    if isinstance(columns.choices, str):
        return row.choices(columns.choices)
    return tuple(row.text(column) for column in columns.choices)


def _gold(row: Row, columns: Columns, count: int) -> tuple[int | None, tuple[int, ...]]:
    """(the right choice, all right choices where there are several)."""
    if count == 1:
        return 0, ()
    if columns.flags is not None:
        right = row.flags(columns.flags, count)
        return (right[0], ()) if len(right) == 1 else (None, right)
    if columns.labels is None:
        return row.index(columns.gold, count, first=columns.first), ()
    labels, key = row.choices(columns.labels), row.text(columns.gold).strip()
    if key not in labels:
        raise row.wrong(f"{columns.gold!r} to be one of {list(labels)}", key, "correct the row")
    return labels.index(key), ()


def _slices(row: Row, columns: Columns) -> dict[str, str]:
    if columns.slices is not None:
        return {key: row.text(key) for key in columns.slices}
    return row.slices({*_USED, *columns.texts, columns.gold})
