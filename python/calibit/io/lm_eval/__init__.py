"""Results of lm-evaluation-harness as runs: what its `--log_samples` wrote, of every version.

Read are the `write_out` arrays of 2023 (version 0.3), the arrays of 0.4.0 to 0.4.2, and the JSON
Lines since 0.4.3. Only multiple choice is taken; what else an output holds is named in the notes
of the run. The harness itself is not needed.
"""

from __future__ import annotations

from pathlib import Path

from calibit.io.lm_eval import samples, write_out
from calibit.io.lm_eval.files import is_output, locate
from calibit.io.lm_eval.lines import doc_line, item_line
from calibit.io.lm_eval.sample import Sample
from calibit.io.lm_eval.settings import describe
from calibit.runs import Run

__all__ = ["is_output", "read_lm_eval"]


def read_lm_eval(path: str | Path) -> Run:
    """Read an output of lm-evaluation-harness as a run.

    Args:
        path: the output folder (or the one above it, where it holds a single model), or the results
            file of one evaluation in it.

    Returns:
        A run without texts. Token counts are unknown, so rule `token` is refused; `meta["notes"]`
        says what was left out or is doubtful, `meta["settings"]` what decides whether two outputs
        may be compared.

    Raises:
        FileNotFoundError: if nothing at the path is such an output.
        ValueError: if it holds no per-item results, several evaluations of one task, repeated
            documents, or a line that cannot be read; the message names file and line.
    """
    output = locate(Path(path))
    found: list[Sample] = []
    notes: list[str] = []
    for task, file in output.samples:
        read = write_out.read if output.layout == "write_out" else samples.read
        own, note = read(file, task, output.config(task))
        found += own
        stated = output.documents(task)
        if not note and stated is not None and stated != len(own):
            note = f"{task}: {file.name} holds {len(own)} documents, its results state {stated}"
        notes += [note] if note else []
    if not found:
        raise ValueError(
            f"[lm_eval] expected a multiple-choice task in {output.folder}, got none: "
            f"{'; '.join(notes)}"
        )
    meta = describe(output, found, notes)
    return Run.of(meta, [item_line(one) for one in found], [doc_line(one) for one in found])
