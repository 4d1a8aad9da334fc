"""Text of messages, and how it is printed."""

import re
import sys
from collections.abc import Collection

_LONGEST_WORD = 500


def shorten_list(items: Collection[object], limit: int = 5, separator: str = ", ") -> str:
    """The first `limit` items, and how many more there are: 'a, b and 3 more'."""
    shown = separator.join(str(item) for item, _ in zip(items, range(limit), strict=False))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def printable(text: str) -> str:
    """The text as it may be printed, whatever names from files it holds.

    Control characters but line breaks become escapes, so that a file name cannot steer the terminal, and so do bytes
    that are no UTF-8. A word of more than 500 characters, such as the key of a damaged file, keeps its two ends.
    """
    shortened = re.sub(rf"\S{{{_LONGEST_WORD + 1},}}", _shortened, text)
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in shortened)


def print_line(text: object, error: bool = False) -> None:
    """Prints a text that may hold names from files, see `printable`, at once.

    Args:
        error: to standard error.
    """
    print(printable(str(text)), file=sys.stderr if error else sys.stdout, flush=True)


def _shortened(word: re.Match[str]) -> str:
    left_out = len(word[0]) - _LONGEST_WORD
    return f"{word[0][: _LONGEST_WORD // 2]}...({left_out:,} characters)...{word[0][-_LONGEST_WORD // 2 :]}"


def _escaped(character: str) -> str:
    # Bytes of a file name that are no UTF-8 are surrogates in Python.
    if "\udc80" <= character <= "\udcff":
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
