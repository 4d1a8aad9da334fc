"""Text of messages."""

from collections.abc import Collection


def shorten_list(items: Collection[object], limit: int = 5, separator: str = ", ") -> str:
    """The first `limit` items, and how many more there are: 'a, b and 3 more'."""
    shown = separator.join(str(item) for item, _ in zip(items, range(limit), strict=False))
    return shown if len(items) <= limit else f"{shown} and {len(items) - limit} more"
