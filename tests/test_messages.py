"""Text for messages."""

import pytest

from mlp_xp._messages import first_line


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("one\ntwo", "one"),
        ("=====\n  no device.\ntry another", "no device"),
        ("", "ValueError"),
        ("--", "ValueError"),
    ],
)
def test_first_line_is_the_first_with_words_in_it(message, expected):
    assert first_line(ValueError(message)) == expected
