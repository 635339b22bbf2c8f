"""Where a model's tensors lie in files that name them otherwise.

transformers renames tensors while it loads them, and stacks the experts of a mixture, which most
files hold one by one. Its own tables say how (transformers/conversion_mapping.py); two of the
things that they can say are followed here: another name, and a stack of experts, each of them the
rows of one or more stored matrices one after the other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from calibit import structure
from calibit.io import shards

_STACK, _ROWS = ("MergeModulelist", 0), ("Concatenate", 1)
"""Steps of transformers, with the dimension they work on: experts stacked, rows joined."""


@dataclass(frozen=True)
class Stack:
    """A fused parameter whose experts are stored one by one.

    Attributes:
        experts: for each expert the names of the stored matrices whose rows it consists of.
    """

    experts: tuple[tuple[str, ...], ...]


class Renamed:
    """A reader of files under the names of the model; as `shards.Reader`.

    Args:
        files: an open reader.
        places: from the model's names to a stored name or a stack.
    """

    def __init__(self, files: shards.Reader, places: Mapping[str, str | Stack]) -> None:
        self._files, self._places = files, places

    def names(self) -> list[str]:
        """The model's names of all tensors."""
        return list(self._places)

    def file_of(self, name: str) -> str:
        """File of a tensor, of its first expert's where there are several, for messages."""
        place = self._places.get(name, name)
        return self._files.file_of(place if isinstance(place, str) else place.experts[0][0])

    def kind(self, name: str) -> tuple[tuple[int, ...], torch.dtype | None]:
        """Shape and dtype of a tensor; no dtype where experts differ in it or in their shape."""
        place = self._places[name]
        if isinstance(place, str):
            return self._files.kind(place)
        kinds = {tuple(self._files.kind(part) for part in parts) for parts in place.experts}
        shapes = [shape for shape, _ in next(iter(kinds))]
        dtypes = {dtype for _, dtype in next(iter(kinds))}
        widths = {shape[1:] for shape in shapes}
        if len(kinds) > 1 or len(dtypes) > 1 or len(widths) > 1:
            return (), None
        rows = sum(shape[0] for shape in shapes)
        return (len(place.experts), rows, *next(iter(widths))), next(iter(dtypes))

    def read(self, name: str, index: int | None = None) -> torch.Tensor:
        """One tensor, or its part at an index of the first dimension, in memory of its own."""
        place = self._places.get(name, name)
        if isinstance(place, str):
            return self._files.read(place, index)
        if index is None:
            return torch.stack([self.read(name, each) for each in range(len(place.experts))])
        return torch.cat([self._files.read(part) for part in place.experts[index]])


Files = shards.Reader | Renamed
"""A reader under the model's names."""


def under_names_of(model: Any, files: shards.Reader) -> Files | None:
    """The files under the model's names; None where transformers does more than renaming and
    stacking, or does not say what it does.

    Args:
        model: the model; its parameters may be on the meta device.
        files: an open reader.
    """
    names = {name for name, _ in structure.tensors(model)}
    if names == set(files.names()):
        return files
    try:
        places = _places(model, files.names(), names)
    except (ImportError, AttributeError, TypeError):  # another release keeps its tables elsewhere
        return None
    return None if places is None else Renamed(files, places)


def _places(model: Any, stored: list[str], names: set[str]) -> dict[str, str | Stack] | None:
    """From the model's names to the stored ones, by the tables of transformers."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import apply_renamings, rename_source_key

    steps = get_model_conversion_mapping(model)
    joins = [step for step in steps if hasattr(step, "operations")]
    renamings = [step for step in steps if not hasattr(step, "operations")]
    known = dict.fromkeys(names, True)
    places: dict[str, str | Stack] = {}
    parts: dict[str, dict[tuple[int, int], str]] = {}
    for name in stored:
        target, pattern = rename_source_key(name, renamings, joins, model.base_model_prefix, known)
        if pattern is None:
            places[target] = name
            continue
        join = next(step for step in joins if pattern in step.source_patterns)
        found = re.search(pattern.replace("*.", r"(\d+)\."), apply_renamings(name, renamings))
        if found is None or not found.groups() or not _stacks_rows(join):
            return None
        place = int(found[1]), join.source_patterns.index(pattern)
        parts.setdefault(target, {})[place] = name
    for target, named in parts.items():
        experts = 1 + max(expert for expert, _ in named)
        width = 1 + max(part for _, part in named)
        grid = [[named.get((expert, part)) for part in range(width)] for expert in range(experts)]
        if any(None in row for row in grid) or target in places:
            return None
        places[target] = Stack(tuple(tuple(map(str, row)) for row in grid))
    return places


def _stacks_rows(join: Any) -> bool:
    """Whether a step of transformers stacks experts, and joins the rows of each at most."""
    made = [(type(each).__name__, getattr(each, "dim", None)) for each in join.operations]
    several = len(join.source_patterns) > 1
    return made == ([_STACK, _ROWS] if several else [_STACK])
