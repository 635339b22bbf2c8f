"""Rows of a task from the Hugging Face hub, when no file is given."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from calibit.tasks.catalog import Task
from calibit.tasks.rows import Row


def download(name: str, task: Task, *, examples: bool = False) -> list[Row]:
    """Load the evaluation split, or that of the few-shot examples, with the package `datasets`.

    Args:
        name: the task as the user wrote it.
        task: says which data set, configurations and splits.
        examples: take the split that few-shot examples come from.

    Returns:
        The rows of all configurations in order; where a task has one configuration per
        language, the column "lang" is added.

    Raises:
        RuntimeError: `datasets` is not installed, or the data set cannot be had; the message
            says how to go on with a local file.
    """
    split = task.hub.examples if examples else task.hub.split
    rows: list[Row] = []
    for configuration in task.hub.configurations:
        extra: Mapping[str, Any] = {"lang": configuration} if "{lang}" in task.name else {}
        rows += fetch(name, task.hub.path, configuration, split, extra=extra)
    return rows


def fetch(
    name: str,
    path: str,
    configuration: str | None,
    split: str,
    *,
    extra: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> list[Row]:
    """Rows of one split of one configuration; `options` go to `datasets.load_dataset`."""
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise RuntimeError(
            f"[tasks] expected the package 'datasets' to download task {name!r}: pip install "
            f"datasets, or give the rows as a file: {name}=FILE.jsonl"
        ) from error
    where = "/".join(filter(None, (path, configuration, split)))
    try:
        table = datasets.load_dataset(path, configuration, split=split, **(options or {}))
    except (OSError, ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"[tasks] expected to download {where}, got {error}; check the network, or give "
            f"the rows as a file: {name}=FILE.jsonl"
        ) from error
    return [Row({**row, **(extra or {})}, f"{where}, row {n}") for n, row in enumerate(table)]
