"""Runs a command and turns its outcome into an exit code and, on failure, one sentence.

Exit codes: 0 done; 3 usage error or failure; 1 and 2 are verdicts (`gate`, `audit --gate`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from calibit import commands
from calibit.commands.options import Code

_EXPECTED = (ValueError, TypeError, RuntimeError, OSError, ImportError, NotImplementedError)
"""What the library raises with a sentence written for the user."""

_USAGE_ERROR: type[Exception] = next(
    one
    for one in typer.BadParameter.__mro__
    if issubclass(one, Exception) and one.__name__ == "ClickException"
)
"""Base of typer's usage errors, wherever this release of typer keeps it."""

_INTERRUPTED = "interrupted; the same command continues where it stopped"
_SIGNALLED = 130  # what typer makes of Ctrl-C

app = typer.Typer(
    name="calibit",
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # --allow-partial is --allow_partial: lm-evaluation-harness has had both.
        "token_normalize_func": lambda word: word.replace("-", "_"),
    },
)
for name, command in commands.COMMANDS.items():
    app.command(name)(command)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"calibit {version('calibit')}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
) -> int:
    """Quantize language models and find out, item by item, what that did to them.

    The main job is `calibit audit`; the other commands are its parts.

    Exit codes: 0 done, 3 usage error or failure. Verdicts, from `gate` and
    `audit --gate`: 0 ship, 1 hold, 2 inconclusive.
    """
    if context.invoked_subcommand is None:
        raise typer.BadParameter("A command is missing.", ctx=context)
    return Code.DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: the words after `calibit`; the process's own where omitted.

    Returns:
        The exit code.
    """
    settings: dict[str, bool] = {}
    words = None if arguments is None else list(arguments)
    try:
        with _ended_in_order():
            code = app(args=words, prog_name="calibit", standalone_mode=False, obj=settings)
        sys.stdout.flush()
    except _USAGE_ERROR as error:
        return _usage(error)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(_INTERRUPTED)
    except BrokenPipeError:  # whoever read our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Code.FAILED
    except SystemExit as end:  # typer's own way of ending, for example on a closed pipe
        return Code.DONE if end.code in (None, 0) else Code.FAILED
    except Exception as error:
        if settings.get("traceback"):
            import traceback

            traceback.print_exc()
        return _fail(_sentence(error))
    if code == _SIGNALLED:
        return _fail(_INTERRUPTED)
    if isinstance(code, Code):
        return int(code)
    return Code.DONE if code in (None, 0) else Code.FAILED


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Take a request to end (SIGTERM, of schedulers and `timeout`) as Ctrl-C: half-written folders
    are removed, finished work is kept."""
    if threading.current_thread() is not threading.main_thread():  # has no say about signals
        yield
        return

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _usage(error: Any) -> int:
    """What was wrong with the words given, and where the options are listed."""
    context = getattr(error, "ctx", None)
    name = context.command_path if context is not None else "calibit"
    message = error.format_message().removeprefix("Invalid value: ")
    return _fail(f"{message} See '{name} --help'.")


def _sentence(error: Exception) -> str:
    """One line for the user; the type is named where the library did not write the message."""
    text = " ".join(str(error).split())
    if isinstance(error, _EXPECTED) and text:
        return text
    return f"unexpected {type(error).__name__}: {text or 'no message'}; --traceback shows where"


def _fail(message: str) -> int:
    print(f"calibit: {message}", file=sys.stderr)
    return Code.FAILED


if __name__ == "__main__":
    sys.exit(main())
