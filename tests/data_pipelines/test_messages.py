"""Text of messages."""

import pytest

from data_pipelines.messages import print_line, printable, shorten_list


@pytest.mark.parametrize(
    ("items", "text"),
    [([], ""), (["a"], "a"), (["a", "b", "c"], "a; b; c"), (["a", "b", "c", "d", "e"], "a; b; c and 2 more")],
)
def test_a_list_is_cut_after_its_limit_and_says_how_many_follow(items, text):
    assert shorten_list(items, 3, "; ") == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text\nin two lines, é", "plain text\nin two lines, é"),
        ("\x1b[2Jgone.png\r", "\\x1b[2Jgone.png\\r"),
        ("right\u202eto left", "right\\u202eto left"),
        ("bytes \udcff\udc80", "bytes \\xff\\x80"),
    ],
)
def test_control_characters_and_bytes_are_printed_as_escapes(text, shown):
    assert printable(text) == shown


def test_a_word_of_a_damaged_file_keeps_its_two_ends():
    text = printable(f"no tensor is named {'a' * 150_000}{'b' * 150_000} here")
    assert len(text) < 600
    assert text.startswith("no tensor is named aaa") and text.endswith("bbb here")
    assert "(299,500 characters)" in text


def test_a_line_goes_to_the_chosen_stream_at_once(capsys):
    print_line("\x07 result")
    print_line("\x07 error", error=True)
    assert capsys.readouterr() == ("\\x07 result\n", "\\x07 error\n")
