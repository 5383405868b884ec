"""Arithmetic of a projection: time of a step on more processes than were measured.

The time of a step of k processes is the sum of three:

- of the process that has most rows of the batch: `expected_max`, then what so many rows take a process by
  itself, measured
- of the Allreduce: `Link.allreduce`
- of the order of the rows, which each process draws for all of them: rows times measured seconds a row
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from mlp_xp._engines.step_halves import CompiledHalves

ARITHMETIC = (
    "T(k) = local(rows) + 2 (k - 1)/k bytes/bandwidth + log2(k) latency + order; rows: the expected maximum "
    "of k binomials (batch, 1/k), as if independent, and the mean padding; local(rows): a step without order "
    "and messages, measured in processes at the same time, each by itself, and linear between the measured "
    "numbers of rows; bytes: those of the parameters; order: rows of the whole in a step, times the measured "
    "seconds a row"
)


class Link(NamedTuple):
    """How processes are connected.

    Attributes
    ----------
    about : str
    latency : float
        In seconds.
    bandwidth : float
        In bytes a second.
    """

    about: str
    latency: float
    bandwidth: float

    def allreduce(self, n_bytes: int, n_processes: int) -> float:
        """Return the seconds of an Allreduce: a ring's bytes, a tree's latencies.

        Each process sends and receives ``2 (k - 1) / k`` times its bytes, which is the least possible, after
        ``log2(k)`` latencies. The additions are not counted.
        """
        k = n_processes
        return 2.0 * (k - 1) / k * n_bytes / self.bandwidth + math.log2(k) * self.latency


ASSUMED_LINK = Link("2 µs and 25 GB/s between any two processes, an assumption", 2e-6, 25e9)


def fit_link(about: str, seconds: Mapping[int, float], n_processes: int) -> Link:
    """Return the link whose `allreduce` is nearest to measured seconds, by bytes, in relative terms."""
    k = n_processes
    n_bytes, times = np.array(list(seconds), float), np.array(list(seconds.values()))
    columns = np.column_stack([np.full(len(times), math.log2(k)), 2.0 * (k - 1) / k * n_bytes])
    (latency, per_byte), *_ = np.linalg.lstsq(columns / times[:, None], np.ones(len(times)), rcond=None)
    return Link(about, max(0.0, float(latency)), 1.0 / max(1e-15, float(per_byte)))


def expected_max(n: int, k: int) -> float:
    """Return the expected maximum of k binomials (n, 1/k), as if they were independent.

    The rows of a batch that each of k processes has add up to n, which matters little for the maximum of
    many: E[max] is the sum over m >= 0 of P(max > m) = 1 - P(one <= m)^k.
    """
    if k == 1:
        return float(n)
    p = 1.0 / k
    deviation = math.sqrt(n * p * (1.0 - p))
    # Beyond these, probabilities are below 1e-20, also of small means.
    low, high = max(0, math.floor(n * p - 12 * deviation)), min(n, math.ceil(n * p + 12 * deviation + 40))
    counts = range(low, high + 1)
    below = np.minimum(1.0, np.cumsum([math.exp(_log_probability(n, p, m)) for m in counts]))
    return low + float(np.sum(1.0 - below**k))


def _log_probability(n: int, p: float, m: int) -> float:
    ways = math.lgamma(n + 1) - math.lgamma(m + 1) - math.lgamma(n - m + 1)
    return ways + m * math.log(p) + (n - m) * math.log1p(-p)


def length_multiple(n: int, k: int) -> int:
    """Return what the lengths of a process's batches are multiples of, in the engine of several processes."""
    deviation = math.sqrt(n / k * (1.0 - 1.0 / k))
    return 1 << math.floor(math.log2(max(1.0, CompiledHalves.pads * deviation)))


class Measured(NamedTuple):
    """What was measured of a network.

    Attributes
    ----------
    batch_size : int
    n_bytes : int
        Of the parameters.
    step : float
        Seconds of a step of one process with one thread.
    local : mapping of int to float
        Seconds of a step of so many rows, of a process by itself: without order and messages.
    order : mapping of int to float
        Seconds a row that drawing and dividing the order of so many rows takes.
    rows : int
        Of the data.
    """

    batch_size: int
    n_bytes: int
    step: float
    local: Mapping[int, float]
    order: Mapping[int, float]
    rows: int


class Projected(NamedTuple):
    """A step as it is projected.

    Attributes
    ----------
    processes : int
    rows : float
        Of the process that has most.
    local, communication, order, step : float
        Seconds.
    speedup : float
        Rows a second, divided by those of one process.
    efficiency : float
        The speedup divided by the number of processes.
    """

    processes: int
    rows: float
    local: float
    communication: float
    order: float
    step: float
    speedup: float
    efficiency: float


def project(measured: Measured, link: Link, n_processes: int, *, weak: bool) -> Projected:
    """Project a step; if `weak`, rows and batch are as many times larger as there are processes."""
    times = n_processes if weak else 1
    batch_size = measured.batch_size * times
    padding = (length_multiple(batch_size, n_processes) - 1) / 2 if n_processes > 1 else 0.0
    rows = expected_max(batch_size, n_processes) + padding
    local = _interpolated(measured.local, rows)
    communication = link.allreduce(measured.n_bytes, n_processes)
    order = batch_size * _on_logarithm(measured.order, measured.rows * times)
    step = local + communication + order
    speedup = times * measured.step / step
    return Projected(n_processes, rows, local, communication, order, step, speedup, speedup / n_processes)


def _interpolated(seconds: Mapping[int, float], rows: float) -> float:
    """Return the seconds of so many rows: linear between two that were measured, and beyond the last two."""
    known = sorted(seconds)
    right = min(max(1, sum(one < rows for one in known)), len(known) - 1)
    first, last = known[right - 1], known[right]
    slope = (seconds[last] - seconds[first]) / (last - first)
    return seconds[first] + slope * (max(rows, known[0]) - first)


def _on_logarithm(values: Mapping[int, float], rows: int) -> float:
    """Return the value at so many rows: linear in their logarithm, beyond the ends that of the nearest."""
    known = sorted(values)
    return float(np.interp(math.log(rows), np.log(known), [values[one] for one in known]))
