"""Results cached by arguments, of which some may be unhashable."""

import pytest

from mlp_xp._cache import cached_by_arguments


def counted(function, **settings):
    calls = []

    def make(*arguments):
        calls.append(arguments)
        return function(*arguments)

    return cached_by_arguments(make, **settings), calls


def test_equal_arguments_are_computed_once():
    cached, calls = counted(lambda *numbers: [*numbers])
    assert cached(1, (2,)) is cached(1, (2,))
    assert cached(1, (3,)) == [1, (3,)]
    assert calls == [(1, (2,)), (1, (3,))]


def test_unhashable_arguments_are_computed_each_time():
    cached, calls = counted(sum)
    assert [cached([1, 2]), cached([1, 2])] == [3, 3]
    assert len(calls) == 2


def test_the_least_recently_used_is_dropped():
    cached, calls = counted(abs, maxsize=2)
    for number in (1, 2, 1, 3, 1, 2):
        cached(number)
    assert calls == [(1,), (2,), (3,), (2,)]


def test_errors_of_the_function_are_its_own():
    cached, calls = counted(len)
    with pytest.raises(TypeError, match="has no len"):
        cached(5)
    assert calls == [(5,)]
