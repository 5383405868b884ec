"""Interleaved timing: functions run in turn, so that changes in the machine's speed affect all alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple


class Timings(NamedTuple):
    """Seconds of each repeat by function name; repeats with the same index ran directly after each other."""

    seconds: dict[str, list[float]]

    def median(self, name: str) -> float:
        """Return the median seconds of a function."""
        return statistics.median(self.seconds[name])

    def spread(self, name: str) -> float:
        """Return the interquartile range of a function's seconds; 0 for a single repeat."""
        if len(self.seconds[name]) < 2:
            return 0.0
        first, _, third = statistics.quantiles(self.seconds[name], n=4, method="inclusive")
        return third - first

    def ratio(self, name: str, base: str) -> float:
        """Return the median over the repeats of the seconds of `name` divided by those of `base`."""
        return statistics.median(one / other for one, other in self._pairs(name, base))

    def difference(self, name: str, base: str) -> float:
        """Return the median over the repeats of the seconds of `name` minus those of `base`."""
        return statistics.median(one - other for one, other in self._pairs(name, base))

    def _pairs(self, name: str, base: str) -> Iterator[tuple[float, float]]:
        return zip(self.seconds[name], self.seconds[base])


def interleave(functions: dict[str, Callable[[], object]], repeats: int) -> Timings:
    """Time functions: call each once to warm up, then `repeats` times all of them in turn."""
    for function in functions.values():
        function()
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(repeats):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - start)
    return Timings(seconds)
