"""Text of messages."""

import pytest

from data_pipelines.messages import shorten_list


@pytest.mark.parametrize(
    ("items", "text"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a; b; c"), (["a", "b", "c", "d", "e"], "a; b; c and 2 more")],
)
def test_a_list_is_cut_after_its_limit_and_says_how_many_follow(items, text):
    assert shorten_list(items, 3, "; ") == text
