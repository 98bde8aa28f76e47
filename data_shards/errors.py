"""Errors that a user can act on: one clear sentence that says what, where and what to do.

The command line prints the sentence and exits with `exit_code`; nothing here ever shows a traceback.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(Exception):
    """Bad usage, configuration or input; exit code 2.

    Names of foreign files and classes are in its sentence, which goes to terminals, logs and status.json: whatever a
    terminal would act on, or would begin another line, is spelt out.
    """

    exit_code = 2

    def __str__(self) -> str:
        return printable(super().__str__())


class DataIntegrityError(UserError):
    """Bytes on disk are not what was written; exit code 3."""

    exit_code = 3


class LoaderError(UserError):
    """The processes that load batches are gone or stuck; exit code 70, since a restart may mend it."""

    exit_code = 70


@contextmanager
def intact(what: str) -> Iterator[None]:
    """Read `what`, which may be damaged or forged: whatever its content makes Python raise becomes one sentence.

    Raises:
        DataIntegrityError: a value is missing, or of another kind.
    """
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        name = type(error).__name__
        raise DataIntegrityError(f"{what} is damaged, or was not written by this program ({name}: {error})") from error


def printable(text: str) -> str:
    """Return text on one line, with control characters and what cannot be encoded as escapes: ESC becomes \\x1b."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def nearest_of(word: str, choices: list[str]) -> str:
    """Return " (did you mean 'x'?)" for the closest of `choices`, or "" when nothing is close."""
    import difflib

    close = difflib.get_close_matches(word, choices, n=1, cutoff=0.5)
    return f" (did you mean '{close[0]}'?)" if close else ""
