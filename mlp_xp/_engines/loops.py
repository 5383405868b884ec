"""Whether steps on NumPy arrays are compiled loops: where Numba is installed and a training is long enough.

Which trainings are is decided from sizes alone, never by a clock or by what is cached already: the results of
a training must not depend on these. To compile takes two to four seconds, once on a machine, and to load what
an earlier process compiled half a second; `MIN_SECONDS` is about the former.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from typing import TYPE_CHECKING

from mlp_xp._engines.recordable import StepSpec
from mlp_xp._network import Network

if TYPE_CHECKING:
    from mlp_xp._engines.compiled_loops import Loops

MIN_SECONDS = 2.0
"""Estimated time of all steps from which on they are compiled."""


def can_compile() -> bool:
    """Whether what compiling takes is installed, and not switched off; nothing is imported."""
    if "numba" in sys.modules:
        return _is_installed() and not getattr(sys.modules["numba"].config, "DISABLE_JIT", 0)
    return _is_installed() and os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")


@cache
def _is_installed() -> bool:
    return all(map(find_spec, ("numba", "platformdirs")))


def seconds_by_numpy(network: Network, n_samples: int) -> float:
    """Estimate the time of a step by NumPy's calls: of 25 of them, of products, and of elements of arrays."""
    sizes = network.layer_sizes
    n_params = sum((n_in + 1) * n_out for n_in, n_out in pairwise(sizes))
    return 2e-5 + 1.2e-10 * n_samples * n_params + 4e-9 * (n_params + n_samples * sum(sizes[1:]))


def choose_loops(steps: Mapping[int, StepSpec], n_steps: int, bytes_to_copy: int) -> Loops | None:
    """Return compiled loops for a training; None where NumPy's calls are better, or Numba is missing.

    Parameters
    ----------
    steps : mapping of int to StepSpec
        By the length of the batch; the first is that of most batches.
    n_steps : int
    bytes_to_copy : int
        The size of the samples' arrays that a program of whole epochs cannot take as they are.
    """
    length, step = next(iter(steps.items()))
    if n_steps * seconds_by_numpy(step.network, length) < MIN_SECONDS or not can_compile():
        return None
    from mlp_xp._engines.compiled_loops import make_loops  # only now: few trainings need all of it

    return make_loops(steps, bytes_to_copy)
