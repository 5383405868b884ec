"""Interleaved timing: what is compared runs by turns, so that a machine's moods hit all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Timings(NamedTuple):
    """Seconds of each repeat, by the name of what was timed; repeats at one index ran side by side."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median seconds of one."""
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> float:
        """Return the interquartile range of one's seconds; 0 for a single repeat."""
        if len(self.seconds[name]) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds[name], n=4, method="inclusive")
        return third - first

    def ratio(self, name: str, base: str) -> float:
        """Return the median, over the repeats, of one's seconds divided by another's."""
        return statistics.median(one / other for one, other in self._pairs(name, base))

    def difference(self, name: str, base: str) -> float:
        """Return the median, over the repeats, of the seconds that one takes longer than another."""
        return statistics.median(one - other for one, other in self._pairs(name, base))

    def _pairs(self, name: str, base: str) -> Iterator[tuple[float, float]]:
        return zip(self.seconds[name], self.seconds[base])


def interleave(functions: dict[str, Callable[[], object]], repeats: int) -> Timings:
    """Call each function once to warm up, then all of them by turns, `repeats` times."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)
