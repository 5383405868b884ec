"""Text for messages: an error's text in one line, and what to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


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


@contextmanager
def package_needed(by: str, package: str, extra: str) -> Iterator[None]:
    """Name the extra of this library to install in the error of an import that fails.

    Examples
    --------
    >>> from mlp_xp._messages import package_needed
    >>> with package_needed("a picture", "matplotlib", "plot"):
    ...     import matplotlip
    Traceback (most recent call last):
        ...
    ImportError: a picture needs matplotlib (No module named 'matplotlip'): pip install 'mlp_xp[plot]'
    """
    try:
        yield
    except ImportError as error:
        raise ImportError(f"{by} needs {package} ({error}): pip install 'mlp_xp[{extra}]'") from None
