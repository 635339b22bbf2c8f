"""Evaluations in processes of their own that are killed at a given moment.

The model is made on import, so that a fork server which has imported this module hands it to every
child at once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import torch

import tiny_models
import tiny_tokenizers
from calibit.evaluation import Text, evaluate
from calibit.runs import Run
from toy_tasks import toy_items

TEXT = Text("story", "the cat sat on a mat. the dog did not: why? no one knows.", window=9)
MODEL = tiny_models.build("llama")


def run_into(folder: Path, **options: Any) -> Run:
    """A small run of many batches and shards, written into a folder.

    Args:
        folder: of the run.
        options: replace arguments of `evaluate`; `model` and `items` its first and third.
    """
    settings = {"text": TEXT, "batch_tokens": 24, "command": "test", **options}
    model, items = settings.pop("model", MODEL), settings.pop("items", toy_items(16))
    return evaluate(model, tiny_tokenizers.build(), items, out=folder, **settings)


def start_server(patch: Any) -> None:
    """Start the fork server with this module imported; `patch` is pytest's, for the search path,
    which the server takes from the environment alone."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    paths = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    forkserver.ensure_running()


def start(folder: Path, *, rename: int | None = None, batch: int | None = None) -> Any:
    """Start the run in a process of its own; it kills itself before its n-th rename of a file, or
    after its n-th batch."""
    process = multiprocessing.get_context("forkserver").Process(
        target=_child, args=(folder, rename, batch)
    )
    process.start()
    return process


def _child(folder: Path, rename: int | None, batch: int | None) -> None:
    torch.set_num_threads(1)
    done = {"rename": 0, "batch": 0}
    replace = Path.replace

    def count(event: str, last: int | None) -> None:
        done[event] += 1
        if done[event] == last:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(self: Path, target: Path) -> Path:
        count("rename", rename)
        return replace(self, target)

    def paced(_: Any) -> None:
        time.sleep(0.01)  # so that a kill from outside meets a run at work
        count("batch", batch)

    Path.replace = counted  # type: ignore[assignment]
    run_into(folder, progress=paced)
