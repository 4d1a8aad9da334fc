"""Text of messages."""

from collections.abc import Collection


def shorten_list(items: Collection[object], limit: int = 5, separator: str = ", ") -> str:
    """The first `limit` items, and how many more there are: 'a, b and 3 more'."""
    shown = separator.join(str(item) for item, _ in zip(items, range(limit), strict=False))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"


def printable(text: str) -> str:
    """The text with control characters as escapes, but for line breaks: a file name cannot steer the terminal."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode("ascii") for c in text)
