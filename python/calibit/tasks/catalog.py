"""The known tasks as data: where rows come from, how they read, how the model is asked.

Adding a task is one entry of `TASKS`. The formats are those of lm-evaluation-harness (zero-shot,
no chat template), so that log-likelihoods can be compared with its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from calibit.tasks import prepare

Fields = dict[str, str]
Prepare = Callable[[Fields, tuple[str, ...]], tuple[Fields, tuple[str, ...]]]


@dataclass(frozen=True)
class Columns:
    """Which columns of a row hold what.

    Attributes:
        texts: columns that become template fields of the same name; a row that has the first
            of them is read this way.
        choices: the column that holds the list ("a.b" for a nested one), or one column per
            choice.
        answers: the choices themselves, where they are the same in every row.
        gold: column of the right answer's number; absent in a row = unlabelled.
        first: the number of the first choice.
        labels: column with the names of the choices, when `gold` holds such a name.
        slices: columns that become slices; None = every string column not used otherwise.
        suffix: added to the task's name where this layout is not the task's own text.
    """

    texts: tuple[str, ...] = ("context",)
    choices: str | tuple[str, ...] = "choices"
    answers: tuple[str, ...] = ()
    gold: str = "label"
    first: int = 0
    labels: str | None = None
    slices: tuple[str, ...] | None = None
    suffix: str = ""


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub; a configuration per language becomes slice "lang"."""

    path: str
    split: str
    configurations: tuple[str | None, ...] = (None,)


@dataclass(frozen=True)
class Wording:
    """A template over the prepared fields, and what happens to the choices."""

    context: str
    choices: Callable[[tuple[str, ...]], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: as in `--tasks`; may hold "{lang}", filled per row.
        size: items of the full evaluation split (per language); a file with another number of
            items is a sample and carries its number in the task's name.
        main: the standard wording.
        alt: a second wording of the same questions (control against wording effects).
        columns: row layouts, the first that fits is taken.
        hub: where the rows are when no file is given.
        prepare: from a row's texts to the fields of the templates.
    """

    name: str
    size: int
    main: Wording
    alt: Wording
    columns: tuple[Columns, ...]
    hub: Hub
    prepare: Prepare = prepare.nothing


LOCAL = Columns()
_ARC = Columns(("question",), "choices.text", gold="answerKey", labels="choices.label", slices=())
_STORY = tuple(f"input_sentence_{i}" for i in range(1, 5))
_QUESTION = Wording("Question: {question}\nAnswer:")
_SHORT = Wording("Q: {question}\nA:")

_ALL = (
    Task(
        name="arc_easy",
        size=2376,
        main=_QUESTION,
        alt=_SHORT,
        columns=(LOCAL, _ARC),
        hub=Hub("allenai/ai2_arc", "test", ("ARC-Easy",)),
        prepare=prepare.question,
    ),
    Task(
        name="arc_challenge",
        size=1172,
        main=_QUESTION,
        alt=_SHORT,
        columns=(LOCAL, _ARC),
        hub=Hub("allenai/ai2_arc", "test", ("ARC-Challenge",)),
        prepare=prepare.question,
    ),
    Task(
        name="boolq",
        size=3270,
        main=Wording("{passage}\nQuestion: {question}?\nAnswer:"),
        alt=Wording("{passage}\nYes or no: {question}?\nThe answer is"),
        columns=(LOCAL, Columns(("passage", "question"), answers=("no", "yes"), slices=())),
        hub=Hub("aps/super_glue", "validation", ("boolq",)),
        prepare=prepare.boolq,
    ),
    Task(
        name="hellaswag",
        size=10042,
        main=Wording("{context}"),
        alt=Wording("How does this go on?\n{context}"),
        columns=(
            Columns(suffix="_llamacpp"),
            Columns(("activity_label", "ctx_a", "ctx_b"), "endings", slices=("activity_label",)),
        ),
        hub=Hub("Rowan/hellaswag", "validation"),
        prepare=prepare.hellaswag,
    ),
    Task(
        name="mmlu",
        size=14042,
        main=Wording(
            "The following are multiple choice questions (with answers) about {about}.\n\n"
            "{question}\n{lettered}\nAnswer:",
            prepare.letters,
        ),
        alt=Wording(
            "Question: {question}\n{lettered}\nThe letter of the right answer is", prepare.letters
        ),
        columns=(
            Columns(("context", "subject"), slices=("subject",)),
            Columns(("question", "subject"), gold="answer", slices=("subject",)),
        ),
        hub=Hub("cais/mmlu", "test", ("all",)),
        prepare=prepare.mmlu,
    ),
    Task(
        name="openbookqa",
        size=500,
        main=Wording("{question}"),
        alt=_QUESTION,
        columns=(
            LOCAL,
            replace(_ARC, texts=("question_stem",)),
        ),
        hub=Hub("allenai/openbookqa", "test", ("main",)),
        prepare=prepare.question,
    ),
    Task(
        name="piqa",
        size=1838,
        main=_QUESTION,
        alt=Wording("Goal: {question}\nSolution:"),
        columns=(LOCAL, Columns(("goal",), ("sol1", "sol2"), slices=())),
        hub=Hub("baber/piqa", "validation"),
        prepare=prepare.question,
    ),
    Task(
        name="xcopa_{lang}",
        size=500,
        main=Wording("{stem} {connector}", prepare.lower_first),
        alt=Wording("{premise}"),
        columns=(
            Columns(("context", "question", "lang"), slices=("lang", "question")),
            Columns(
                ("premise", "question", "lang"),
                ("choice1", "choice2"),
                slices=("lang", "question"),
            ),
        ),
        hub=Hub("cambridgeltl/xcopa", "test", tuple(prepare.XCOPA_CONNECTORS)),
        prepare=prepare.xcopa,
    ),
    Task(
        name="xstorycloze_en",
        size=1511,
        main=Wording("{context}"),
        alt=Wording("Story: {context}\nEnding:"),
        columns=(
            LOCAL,
            Columns(
                _STORY,
                ("sentence_quiz1", "sentence_quiz2"),
                gold="answer_right_ending",
                first=1,
                slices=(),
            ),
        ),
        hub=Hub("juletxara/xstory_cloze", "eval", ("en",)),
        prepare=prepare.story,
    ),
)
TASKS: Mapping[str, Task] = {task.name.removesuffix("_{lang}"): task for task in _ALL}
