"""Rows of a task from the Hugging Face hub, when no file is given."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from calibit.tasks.catalog import Task
from calibit.tasks.rows import Row


def download(name: str, task: Task) -> list[Row]:
    """Load the evaluation split with the package `datasets`.

    Args:
        name: the task as the user wrote it.
        task: says which data set, configurations and split.

    Returns:
        The rows of all configurations in order; where a task has one configuration per
        language, the column "lang" is added.

    Raises:
        RuntimeError: `datasets` is not installed, or the data set cannot be had; the message
            says how to go on with a local file.
    """
    try:
        datasets: Any = importlib.import_module("datasets")
    except ImportError as error:
        raise RuntimeError(
            f"[tasks] expected the package 'datasets' to download task {name!r}: pip install "
            f"datasets, or give the rows as a file: {name}=FILE.jsonl"
        ) from error
    rows: list[Row] = []
    for configuration in task.hub.configurations:
        where = "/".join(filter(None, (task.hub.path, configuration, task.hub.split)))
        try:
            table = datasets.load_dataset(task.hub.path, configuration, split=task.hub.split)
        except (OSError, ValueError, RuntimeError) as error:
            raise RuntimeError(
                f"[tasks] expected to download {where}, got {error}; check the network, or give "
                f"the rows as a file: {name}=FILE.jsonl"
            ) from error
        extra: Mapping[str, Any] = {"lang": configuration} if "{lang}" in task.name else {}
        rows += [Row({**row, **extra}, f"{where}, row {n}") for n, row in enumerate(table)]
    return rows
