"""Windows of the perplexity conventions that other tools made common.

Each function cuts token ids into windows and says from which position on a window is scored. What
comes before is context. How the losses become a perplexity is in `calibit.measures.perplexity`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from calibit.measures.perplexity import rolling_windows

Window = tuple[tuple[int, ...], int]
"""Token ids of a window, and the position of the first one that is scored (1 or more)."""


def llama_cpp_windows(ids: Sequence[int], *, window: int, bos: int | None) -> list[Window]:
    """Windows of llama.cpp's `perplexity` tool: disjoint, the tail dropped, the second half scored.

    Position p of a window predicts token p + 1; the predictions from the middle on count, so 255 of
    512.

    Args:
        ids: token ids of the whole text.
        window: tokens of a window.
        bos: put in the place of every window's first token; None leaves it.
    """
    starts = range(0, len(ids) // window * window, window)
    head = [] if bos is None else [bos]
    return [
        ((*head, *ids[start + len(head) : start + window]), window // 2 + 1) for start in starts
    ]


def hf_stride_windows(ids: Sequence[int], *, window: int, stride: int) -> list[Window]:
    """Sliding windows of the perplexity guide of Hugging Face transformers: every window scores the
    tokens that the one before did not hold.

    A window that shares nothing with the one before (the first one, all of them where the stride is
    the window) cannot predict its first token, which is left out.

    Args:
        ids: token ids of the whole text.
        window: tokens of a window.
        stride: tokens between the starts of two windows.
    """
    found: list[Window] = []
    done = 0
    for start in range(0, len(ids), stride):
        row = tuple(ids[start : start + window])
        first = max(done - start, 1)
        if first < len(row):
            found.append((row, first))
        done = start + len(row)
        if done == len(ids):
            break
    return found


def lm_eval_windows(ids: Sequence[int], *, window: int, prefix: int) -> list[Window]:
    """Rolling windows of lm-evaluation-harness over one page: every token is scored once, the first
    after the prefix token.

    Args:
        ids: token ids of the page, without special tokens.
        window: tokens that the model reads at once; a row has one more, which is only predicted.
        prefix: token id in front of the page.
    """
    padded = (prefix, *ids)
    return [
        (
            tuple(padded[context.start + 1 : targets.stop + 1]),
            len(context),
        )
        for context, targets in rolling_windows(len(ids), window)
    ]


def until_scored(windows: Iterable[Window], limit: int | None) -> Iterator[Window]:
    """Windows up to the one in which `limit` scored tokens are reached; all for None."""
    done = 0
    for row, first in windows:
        if limit is not None and done >= limit:
            return
        yield row, first
        done += len(row) - first
