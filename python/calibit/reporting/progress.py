"""Progress of a long job made of unlike stages, with the time left over the whole of it.

How long a stage takes is unknown at first: relative weights stand in. Every finished stage teaches
the seconds its kind takes on this machine, and scales the weights of the kinds not yet seen.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TextIO

from calibit import numbers

PLAIN_EVERY = 15.0
"""Seconds between lines where there is no terminal."""

ENOUGH = 0.1
"""Share of a stage after which its own pace says more than what was expected of it."""

LONG = 0.5
"""Weight of the stages whose time says how fast the machine is; short ones say little."""


@dataclass(frozen=True)
class Stage:
    """One step of a job.

    Attributes:
        kind: what it is; stages of a kind take similar time.
        label: what the reader sees.
    """

    kind: str
    label: str


@dataclass
class Schedule:
    """Estimates the time left from the stages that are finished.

    Attributes:
        stages: all steps of the job in order.
        weights: kind -> relative duration, used until the kind has been timed once.
        clock: returns seconds; replaced in tests.
    """

    stages: Sequence[Stage]
    weights: Mapping[str, float]
    clock: Callable[[], float] = time.monotonic
    _timed: dict[str, list[float]] = field(default_factory=dict)
    _index: int = -1
    _share: float = 0.0
    _started: float = 0.0

    def enter(self, index: int) -> None:
        """Begin stage `index`; what came before it is over."""
        self._index, self._share, self._started = index, 0.0, self.clock()

    @property
    def label(self) -> str:
        """Label of the current stage."""
        return self.stages[self._index].label

    def advance(self, share: float) -> None:
        """The current stage is done to this share (0..1)."""
        self._share = min(max(share, 0.0), 1.0)

    def leave(self, *, learn: bool = True) -> None:
        """End the current stage; `learn` says whether its time stands for its kind."""
        if learn:
            kind = self.stages[self._index].kind
            self._timed.setdefault(kind, []).append(self.clock() - self._started)
        self._share = 1.0

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end of the last stage, or None before anything is known."""
        unit = self._unit()
        if unit is None:
            return None
        ahead = sum(self._expected(stage, unit) for stage in self.stages[self._index + 1 :])
        return ahead + self._current_left(unit)

    def _current_left(self, unit: float) -> float:
        if self._index < 0 or self._share >= 1:
            return 0.0
        if self._share > ENOUGH:
            return (self.clock() - self._started) * (1 - self._share) / self._share
        return self._expected(self.stages[self._index], unit) * (1 - self._share)

    def done_share(self) -> float:
        """Share of the whole job that is done, by expected time."""
        unit = self._unit()
        times = [
            self.weights[stage.kind] if unit is None else self._expected(stage, unit)
            for stage in self.stages
        ]
        passed = sum(times[: max(self._index, 0)])
        if self._index >= 0:
            passed += self._share * times[self._index]
        return passed / (sum(times) or 1.0)

    def _unit(self) -> float | None:
        """Seconds per unit of weight, from finished stages, else from the running one."""
        spent = [
            (sum(times), len(times) * self.weights[kind])
            for kind, times in self._timed.items()
            if self.weights[kind] >= LONG
        ]
        if spent:
            return sum(time for time, _ in spent) / sum(weight for _, weight in spent)
        running = self._index >= 0 and ENOUGH < self._share < 1
        if not running or self.weights[self._kind()] < LONG:
            return None
        return (self.clock() - self._started) / self._share / self.weights[self._kind()]

    def _kind(self) -> str:
        return self.stages[self._index].kind

    def _expected(self, stage: Stage, unit: float) -> float:
        known = self._timed.get(stage.kind)
        return sum(known) / len(known) if known else unit * self.weights[stage.kind]


class Display(Protocol):
    """Shows where a job stands; the two below draw a bar or print lines."""

    def show(self, label: str, share: float, left: float | None, *, new: bool) -> None:
        """The current stage, the share of the whole job done and the seconds left."""

    def close(self) -> None:
        """The job is over."""


class Lines:
    """Plain lines for logs: one per stage and, inside long ones, one every few seconds."""

    def __init__(self, stream: TextIO, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock, self._last = stream, clock, float("-inf")

    def show(self, label: str, share: float, left: float | None, *, new: bool) -> None:
        """Print a line, unless the last one is recent and the stage is the same."""
        if not new and self._clock() - self._last < PLAIN_EVERY:
            return
        self._last = self._clock()
        rest = "" if left is None else f", about {numbers.duration(left)} left"
        print(f"[{share:4.0%}] {label}{rest}", file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to tidy up."""


class Bar:
    """A bar on a terminal, redrawn in place."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=28),
            TaskProgressColumn(),
            TextColumn("{task.fields[left]}"),
            console=Console(file=stream),
            transient=True,
        )
        self._task = self._bar.add_task("", total=1.0, left="")
        self._bar.start()

    def show(self, label: str, share: float, left: float | None, *, new: bool) -> None:
        """Redraw the bar."""
        rest = "" if left is None else f"about {numbers.duration(left)} left"
        self._bar.update(self._task, description=label, completed=share, left=rest)

    def close(self) -> None:
        """Take the bar off the screen."""
        self._bar.stop()


class JobProgress:
    """Ties a schedule to a display; the auditing code calls it and knows neither.

    Args:
        stages: all steps of the job in order.
        weights: kind -> relative duration.
        stream: where to show it, as a rule standard error; None shows nothing.
    """

    def __init__(
        self, stages: Sequence[Stage], weights: Mapping[str, float], *, stream: TextIO | None
    ) -> None:
        self._schedule = Schedule(stages, weights)
        self._display: Display | None = None
        self._furthest = 0.0
        if stream is not None:
            self._display = Bar(stream) if stream.isatty() else Lines(stream)

    def enter(self, index: int) -> None:
        """Begin stage `index`."""
        self._schedule.enter(index)
        self._show(new=True)

    def advance(self, done: float, total: float) -> None:
        """`done` of `total` pieces of the current stage are finished."""
        self._schedule.advance(done / total if total else 1.0)
        self._show(new=False)

    def leave(self, *, learn: bool = True) -> None:
        """End the current stage."""
        self._schedule.leave(learn=learn)

    def close(self) -> None:
        """End the display."""
        if self._display:
            self._display.close()
            self._display = None

    def _show(self, *, new: bool) -> None:
        if self._display:
            schedule = self._schedule
            # A stage slower than expected makes the earlier ones weigh less: do not go back.
            self._furthest = max(self._furthest, schedule.done_share())
            self._display.show(schedule.label, self._furthest, schedule.seconds_left(), new=new)
