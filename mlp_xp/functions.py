"""Functions that stand for what they compute: two of the same kind are equal."""

from __future__ import annotations

from functools import partial
from typing import Any


class With(partial[Any]):
    """A function with its parameters, equal to another by value, also when it was pickled.

    What holds one stays hashable, and what was made for one, a compiled training, serves its equals.

    Examples
    --------
    >>> from mlp_xp.functions import With
    >>> With(round, ndigits=2) == With(round, ndigits=2)
    True
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, With) and (self.func, self.keywords) == (other.func, other.keywords)

    def __hash__(self) -> int:
        return hash((self.func, *sorted(self.keywords.items())))
