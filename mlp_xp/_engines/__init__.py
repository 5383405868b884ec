"""Engines, which run the epochs of a training: one for each kind of array library, with the same results.

`make_engine` decides which engine runs, by the namespace and the device of the samples:

- NumPy: ``compiled``, steps as generated code with fewer NumPy calls; where Numba is installed, those of long
  trainings as compiled loops (`loops` decides which)
- JAX: ``xla``, many epochs in one call of a function that `jax.jit` compiled
- CuPy, and PyTorch on CUDA: ``cuda_graph``, many steps in one replay of a captured CUDA graph; steps of fused
  kernels (`fused_steps`), which `mlp_xp._compiler` generates
- all others, and what these engines cannot run: ``eager``, a Python loop of steps, call by call
- batches of a stream: the steps of these engines, one after the other (`streamed`)
- where several processes train together: steps in two halves (`data_parallel`), of any library, on CUDA two
  captured graphs (`graph_halves`), and between them a sum over the processes (`reductions`)

The eager engine works in every namespace. But at small sizes the overhead of each array call takes longer
than its computation, and the other engines avoid that. The eager engine also runs what they cannot run: on
NumPy a step that the compiler cannot record, and samples in SciPy's sparse matrices; on JAX a step that
`jax.jit` cannot trace; on CUDA a training too short to pay for a capture or, with an `EagerFallbackWarning`,
one for which a library is missing. A step that fails to be captured makes the ``cuda_graph`` engine itself
run call by call, with the same warning.

An engine is made for one training and owns its state: the parameters and the optimizer's state. It runs
epochs and records their losses; all decisions from these, such as to stop early, are made by
`mlp_xp._training`. At the end a compiled engine may give its memory to a later one (`Engine.release`).
"""

from __future__ import annotations

import math
import sys

import numpy as np

from mlp_xp._arrays import is_jax, is_on_cuda
from mlp_xp._engines.base import EagerFallbackWarning, Engine, EpochSettings, State, Step, make_step
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._samples import Samples
from mlp_xp._streams import Stream

__all__ = ["EagerFallbackWarning", "Engine", "EpochSettings", "State", "Step", "make_engine", "make_step"]


def make_engine(
    network: Network,
    optimizer: Optimizer,
    samples: Samples | Stream,
    batch_size: int,
    state: State,
    epochs: int = sys.maxsize,
    max_sample_bytes: float = math.inf,
) -> Engine:
    """Make the engine for the samples' namespace and device: this function decides which engine runs.

    A stream of batches gets an engine of its own. Samples of one of several processes get the engine of steps
    in two halves. Others get, as NumPy arrays, the compiled engine, as JAX arrays the XLA engine, as CuPy
    arrays and PyTorch tensors on CUDA the engine of CUDA graphs. Where that engine cannot run the training,
    and in all other namespaces, the eager engine runs it. The module's docstring tells why. Further functions
    decide on that fallback: `make_jax_engine`, `make_cuda_engine` and, during the training,
    `CudaGraphEngine._fall_back`.

    Parameters
    ----------
    network : Network
    optimizer : Optimizer
    samples : Samples or Stream
        The engine never writes in their arrays.
    batch_size : int
    state : State
        The state to start from. The engine copies it, because its steps write in their state.
    epochs : int
        Maximum number of epochs that will run. On CUDA it determines what is captured: capturing takes time
        that only many replays save; on NumPy whether steps are compiled.
    max_sample_bytes : float
        Of samples on the host that are streamed to a device: how much of them may be there at a time, unless
        a few batches take more.

    Returns
    -------
    Engine
    """
    from mlp_xp._engines.eager import EagerEngine

    if isinstance(samples, Stream):
        from mlp_xp._engines.streamed import StreamEngine

        return StreamEngine(network, optimizer, samples, batch_size, state)
    if samples.shard is not None:
        from mlp_xp._engines.data_parallel import DataParallelEngine

        return DataParallelEngine(network, optimizer, samples, batch_size, state)
    if is_jax(samples.xp):
        from mlp_xp._engines.jax import make_jax_engine

        return make_jax_engine(network, optimizer, samples, batch_size, state, max_sample_bytes)
    if is_on_cuda(samples.place):
        from mlp_xp._engines.cuda_graph import make_cuda_engine

        return make_cuda_engine(network, optimizer, samples, batch_size, state, epochs, max_sample_bytes)
    if samples.xp is np:  # not for sparse matrices, whose namespace is a wrapper
        from mlp_xp._compiler import NotRecordableError
        from mlp_xp._engines.compiled import CompiledEngine

        try:
            return CompiledEngine(network, optimizer, samples, batch_size, state, epochs)
        except NotRecordableError:
            return EagerEngine(network, optimizer, samples, batch_size, state)
    return EagerEngine(network, optimizer, samples, batch_size, state)
