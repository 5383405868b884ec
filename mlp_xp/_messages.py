"""Text for messages: an error's text in one line."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    r"""Return the first line of an error's message that has words in it, or the error's type.

    CuPy puts a line of ``=`` above its own messages.

    Examples
    --------
    >>> from mlp_xp._messages import first_line
    >>> first_line(ValueError("=====\nno device.\ntry another")), first_line(ValueError())
    ('no device', 'ValueError')
    """
    lines = [line.strip() for line in str(error).splitlines() if any(map(str.isalpha, line))]
    return lines[0].rstrip(".") if lines else type(error).__name__
