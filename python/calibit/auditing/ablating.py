"""Grid against rounding in an audit: four of its schemes that form a 2 x 2 design.

Uniform integers and a codebook of as many entries, each rounded to nearest and solved by GPTQ, with
equal groups and equal scales. `--ablation g64` asks for one; where an audit's schemes hold one, its
effects are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from calibit.auditing.job import Job
from calibit.auditing.models import Entry

if TYPE_CHECKING:
    from calibit.schemes import Scheme

GRIDS = ("int4-{group}-s32", "nf4-{group}")


def schemes_of(group: str) -> tuple[str, ...]:
    """The four schemes of a group such as `g64`: uniform int4 and NF4, nearest and GPTQ.

    Raises:
        ValueError: no group.
    """
    from calibit.schemes import parse

    try:
        grids = [str(parse(grid.format(group=group))) for grid in GRIDS]
    except ValueError as error:
        raise ValueError(
            f"[ablation] expected a group such as g32, g64 or g128, got {group!r}"
        ) from error
    return tuple(f"{solver}{grid}" for grid in grids for solver in ("", "gptq-"))


def with_ablation(schemes: Sequence[str], group: str | None) -> tuple[str, ...]:
    """Schemes and those of an ablation that are not among them."""
    from calibit.auditing.models import scheme_name

    if group is None:
        return tuple(schemes)
    named = {scheme_name(scheme) for scheme in schemes}
    return (*schemes, *(one for one in schemes_of(group) if one not in named))


def designs(entries: Sequence[Entry]) -> list[dict[str, str]]:
    """Cell -> name of a candidate, for every 2 x 2 design among the entries."""
    from calibit.measures.ablation import CELLS

    known = dict(_parsed(entries))
    grids = {key: scheme for key, scheme in known.items() if not scheme.is_solved}
    solved = [(key, scheme) for key, scheme in known.items() if scheme.solver == "gptq"]
    found = []
    for (uniform, first), (codebook, second) in product(grids.items(), repeat=2):
        if not _comparable(first, second):
            continue
        for (name, one), (other, two) in product(solved, repeat=2):
            alike = one.options - {"s32"} == two.options
            if alike and (one.nearest, two.nearest) == (first, second):
                found.append(dict(zip(CELLS, (uniform, name, codebook, other), strict=True)))
    return found


def compare_all(
    job: Job,
    entries: Sequence[Entry],
    runs: Callable[[str], Any],
    base: Any,
) -> list[dict[str, Any]]:
    """Every design of an audit that was measured, JSON types.

    Args:
        job: the audit.
        entries: its models.
        runs: the run of a candidate, or of a solved one those of its calibration draws; None where
            it was not measured.
        base: the baseline's run.
    """
    from calibit.comparison import compare_ablation
    from calibit.measures.ablation import SOLVED

    found = []
    for design in designs(entries):
        cells: Mapping[str, Any] = {cell: runs(name) for cell, name in design.items()}
        if any(one is None for one in cells.values()):
            continue
        drawn = [isinstance(cells[cell], list) for cell in SOLVED]
        if len(set(drawn)) > 1:  # the draws of one of them could not be measured
            cells = {cell: one[0] if isinstance(one, list) else one for cell, one in cells.items()}
        effects = compare_ablation(
            base,
            cells,
            rule=job.rule,
            level=job.level,
            resamples=job.resamples,
            seed=job.seed,
        )
        found.append({"cells": design, **effects.to_dict()})
    return found


def _parsed(entries: Sequence[Entry]) -> Iterator[tuple[str, Scheme]]:
    """Candidates of one scheme each."""
    from calibit.quantization import plans

    for entry in entries:
        if entry.scheme is None or entry.scheme.endswith(".json"):
            continue
        scheme = plans.load(entry.scheme).schemes[0]
        if not scheme.is_float:
            yield entry.name, scheme


def _comparable(uniform: Scheme, codebook: Scheme) -> bool:
    """A uniform grid and a codebook that differ in nothing else."""
    first, second = uniform.weight_format, codebook.weight_format
    return (
        first.is_integer
        and not second.is_integer
        and uniform.bits == codebook.bits
        and uniform.group == codebook.group
        and uniform.scale_type == codebook.scale_type
        and uniform.options - {"s32"} == codebook.options
    )
