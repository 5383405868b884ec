"""Caches of functions by their arguments, also where an argument may be unhashable.

What the library caches with `cached_by_arguments`, each in the module that makes it:

- programs of training steps (`_engines.recordable.compile_step`), by the writer that made them, the network,
  the optimizer without its learning rate, shapes and dtypes of a batch and the structure of the state; the
  functions that Numba made of loops are kept by their source (`_engines.numba_functions`), and so are kernels
  by the libraries, CuPy itself or `_engines.torch_kernels`
- whether loops are faster (`_engines.compiled_loops`), by the same
- compiled functions of rows (`_compiler.rows`), by the function and the shapes and dtypes of its arrays
- compiled functions of JAX (`_engines.jax`), by the network, the optimizer without its learning rate, the
  batch size and the number of samples
- networks of fitted estimators (`estimators._fitted`), by layer sizes, activations, loss and precision

They are shared by all threads and engines, and live until the process ends or `MAX_ENTRIES` others were used
since. They hold code, but no arrays. Arrays of short trainings on NumPy are kept too, but for one training at
a time (`_engines.compiled.Memory`). Captured CUDA graphs are not among them: each engine has its own
(`_engines.cuda_graph`), because they contain the addresses of its arrays. Nor are the weights of an estimator
that were copied to a device (`estimators._fitted`), which live as long as the estimator.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from typing import TypeVar

Result = TypeVar("Result")

MAX_ENTRIES = 64
"""Default maximum number of cached results of one function; the least recently used is dropped first."""


def cached_by_arguments(make: Callable[..., Result], maxsize: int = MAX_ENTRIES) -> Callable[..., Result]:
    """Cache results by the positional arguments (LRU); call the function again if one is unhashable.

    Examples
    --------
    >>> from mlp_xp._cache import cached_by_arguments
    >>> make = cached_by_arguments(lambda numbers: [*numbers])
    >>> make((1, 2)) is make((1, 2)), make([1, 2]) is make([1, 2])
    (True, False)
    """
    cached = lru_cache(maxsize)(make)

    @wraps(make)
    def find_or_make(*arguments: object) -> Result:
        try:
            return cached(*arguments)
        except TypeError:
            try:
                hash(arguments)
            except TypeError:  # such as a user's activation without a hash
                return make(*arguments)
            raise  # an error of the function itself

    return find_or_make
