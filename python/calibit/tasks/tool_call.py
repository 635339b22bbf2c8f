"""Requests answered by one function call in JSON: whether a model still writes what a program can
read, with the right arguments.

The items are this project's own work, released under CC0. They are drawn by a hash of their number,
so every machine has the same ones. A call is right if it fits the function's JSON Schema and has
the arguments of the request.
"""

from __future__ import annotations

import functools
import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from calibit.tasks.answers import SCHEMA, Answer
from calibit.tasks.item import digest
from calibit.tasks.prompts import Prompt

NAME = "tool_call"
PER_ARGUMENTS = 75
"""Requests of each number of arguments."""

NEW_TOKENS = 72
"""A call of four arguments has some 55 tokens."""

STOP = ("\n",)

_CITIES = (
    "Oslo", "Lima", "Kyoto", "Cairo", "Berlin", "Quito", "Hanoi", "Dublin", "Perth", "Turin",
    "Accra", "Boston", "Delhi", "Dakar", "Geneva", "Havana", "Izmir", "Jakarta", "Kampala", "Leeds",
    "Madrid", "Nairobi", "Osaka", "Porto", "Riga", "Seoul", "Tunis", "Utrecht", "Vienna", "Zagreb",
)  # fmt: skip
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_PEOPLE = (
    "Anna", "Ben", "Clara", "David", "Emma", "Frank", "Greta", "Hugo", "Iris", "Jonas", "Karin",
    "Lukas", "Maria", "Nadia", "Oscar", "Paula", "Ruben", "Sofia", "Theo", "Ursula", "Victor",
    "Wanda", "Xenia", "Yusuf", "Zoe", "Amir", "Bianca", "Carlos", "Diana", "Elias",
)  # fmt: skip
_GOODS = ("milk", "bread", "rice", "tea", "salt", "soap", "paper", "apples", "coffee", "flour")
_SUBJECTS = ("budget", "travel plans", "the new office", "invoices", "the workshop", "holidays")
_MONEY = ("EUR", "USD", "JPY", "CHF", "GBP", "SEK")
_DISHES = ("Blue Door", "Old Mill", "Green Table", "Harbour House", "Two Lions")

Values = tuple[Any, ...]


@dataclass(frozen=True)
class _Function:
    """A function that can be called.

    Attributes:
        name: its name.
        arguments: argument -> the values it may have in a request; numbers are integers.
        requests: wordings in the two forms, with the arguments in braces.
    """

    name: str
    arguments: Mapping[str, Values]
    requests: tuple[str, str]


_FUNCTIONS = (
    _Function("get_weather", {"city": _CITIES},
              ("What is the weather like in {city}?", "Tell me the weather in {city}.")),
    _Function("set_timer", {"minutes": tuple(range(2, 60))},
              ("Set a timer for {minutes} minutes.", "Wake me in {minutes} minutes.")),
    _Function("call_contact", {"name": _PEOPLE},
              ("Please call {name}.", "I want to talk to {name} on the phone.")),
    _Function("add_to_list", {"item": _GOODS, "count": tuple(range(2, 12))},
              ("Put {count} {item} on the shopping list.", "We need {item}, {count} of it.")),
    _Function("set_alarm", {"hour": tuple(range(5, 12)), "day": _DAYS},
              ("Set an alarm for {hour} o'clock on {day}.", "On {day} I must get up at {hour}.")),
    _Function("send_message", {"to": _PEOPLE, "subject": _SUBJECTS},
              ("Write a message to {to} about {subject}.", "Tell {to} about {subject}.")),
    _Function("convert_money", {"amount": tuple(range(20, 400, 10)), "source": _MONEY[:3],
                                "target": _MONEY[3:]},
              ("How much is {amount} {source} in {target}?",
               "Convert {amount} {source} to {target}.")),
    _Function("create_event", {"title": _SUBJECTS, "day": _DAYS, "hour": tuple(range(8, 19))},
              ("Make an event about {title} on {day} at {hour} o'clock.",
               "On {day} at {hour} we meet about {title}: put it into my calendar.")),
    _Function("book_table", {"restaurant": _DISHES, "people": tuple(range(2, 10)), "day": _DAYS,
                             "hour": tuple(range(17, 22))},
              ("Book a table at {restaurant} for {people} people on {day} at {hour} o'clock.",
               "{people} of us want to eat at {restaurant} on {day} at {hour}.")),
    _Function("find_flight", {"origin": _CITIES[:15], "destination": _CITIES[15:], "day": _DAYS,
                              "passengers": tuple(range(1, 6))},
              ("Find a flight from {origin} to {destination} on {day} for {passengers} passengers.",
               "{passengers} passengers fly to {destination} on {day}, from {origin}.")),
)  # fmt: skip

_EXAMPLES = (
    (_Function("open_door", {"room": ("kitchen",)}, ("Open the kitchen door.",) * 2),
     {"room": "kitchen"}),
    (_Function("play_music", {"artist": ("Bach",), "volume": (4,)},
               ("Play Bach at volume 4.",) * 2),
     {"artist": "Bach", "volume": 4}),
    (_Function("move_file", {"file": ("a.txt",), "source": ("old",), "target": ("new",),
                             "copies": (2,)},
               ("Put 2 copies of a.txt from old into new.",) * 2),
     {"file": "a.txt", "source": "old", "target": "new", "copies": 2}),
)  # fmt: skip


def render(form: str = "main") -> list[Prompt]:
    """The requests, by number of arguments.

    Args:
        form: "main", or "alt" for the second wording; ids and answers are the same.
    """
    return list(_render(form))


@functools.cache
def _render(form: str) -> tuple[Prompt, ...]:
    wording = ("main", "alt").index(form)
    shown = "".join(
        f"{_shown(one, one.requests[wording])} {_call(one, given)}\n\n" for one, given in _EXAMPLES
    )
    found = []
    for size in sorted({len(function.arguments) for function in _FUNCTIONS}):
        pool = [function for function in _FUNCTIONS if len(function.arguments) == size]
        taken: set[tuple[Any, ...]] = set()
        for number in range(PER_ARGUMENTS):
            name = f"{NAME}-{size}-{number}"
            function = pool[number % len(pool)]
            given = _drawn(function, name, taken)
            asked = _shown(function, function.requests[wording].format_map(given))
            call = json.loads(_call(function, given))
            found.append(
                Prompt(
                    id=name,
                    task=NAME,
                    prompt=shown + asked,
                    answer=Answer(SCHEMA, call, schema=_schema(function)),
                    slices={"arguments": str(size), "function": function.name},
                    max_new_tokens=NEW_TOKENS,
                    stop=STOP,
                )
            )
    return tuple(found)


def _drawn(function: _Function, name: str, taken: set[tuple[Any, ...]]) -> dict[str, Any]:
    """Arguments that no request before has, drawn by a hash of the item's name."""
    for attempt in itertools.count():
        state, given = digest(name, attempt), {}
        for argument, values in function.arguments.items():
            state, place = divmod(state, len(values))
            given[argument] = values[place]
        key = (function.name, *given.values())
        if key not in taken:
            break
    taken.add(key)
    return given


def _shown(function: _Function, request: str) -> str:
    """Function and request as the model sees them."""
    arguments = ", ".join(f"{k}: {_type(values)}" for k, values in function.arguments.items())
    return f"Function: {function.name}({arguments})\nRequest: {request}\nCall:"


def _call(function: _Function, given: Mapping[str, Any]) -> str:
    return json.dumps({"name": function.name, "arguments": given})


def _type(values: Values) -> str:
    return "integer" if isinstance(values[0], int) else "string"


def _schema(function: _Function) -> dict[str, Any]:
    """JSON Schema of a call."""
    types = {name: {"type": _type(values)} for name, values in function.arguments.items()}
    return {
        "type": "object",
        "properties": {
            "name": {"const": function.name},
            "arguments": {
                "type": "object",
                "properties": types,
                "required": list(types),
                "additionalProperties": False,
            },
        },
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
