"""The interface between the engine of CUDA graphs and the libraries that capture them."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, TypeAlias

from mlp_xp._arrays import Array, HostArray, Namespace
from mlp_xp._engines.base import State, Step
from mlp_xp._network import Network
from mlp_xp._optimizers import Optimizer
from mlp_xp._samples import Batch
from mlp_xp._uploads import PinnedBuffer

StepInto: TypeAlias = Callable[[State, Batch, float, Array], State]
"""``(state, batch, learning_rate, loss) -> state``

A step (see `mlp_xp._engines.base.Step`) that writes its loss into an array of shape ().
"""


def step_into(step: Step) -> StepInto:
    """Return a step that writes its loss into an array."""

    def run(state: State, batch: Batch, learning_rate: float, loss: Array) -> State:
        params, optimizer_state, loss[...] = step(*state, *batch, learning_rate)
        return params, optimizer_state

    return run


class GraphLibrary(Protocol):
    """Streams, memory and captures of a library whose arrays are on a CUDA device."""

    def namespace(self, matmul_precision: str) -> Namespace:
        """Return a namespace whose functions can be captured."""

    def make_step(self, network: Network, optimizer: Optimizer, n_steps: int) -> StepInto:
        """Return a step that can be captured; so many are planned."""

    def own_stream(self) -> AbstractContextManager[None]:
        """Context that makes the engine's stream current: the default stream cannot be captured.

        Its work runs after what the caller's stream has been given before, and before what it is given after.
        """

    def graph_pool(self) -> AbstractContextManager[None]:
        """Context in which memory is allocated from the pool of the captures, so that both share it.

        Arrays allocated in it are valid until the next replay of any graph of this thread.
        """

    def capture(self, function: Callable[[], None]) -> Callable[[], None]:
        """Capture the kernels that a function launches as a graph; return the function that replays it.

        The graph works on memory that is allocated to nothing else. If the capture fails, it is ended, and
        the stream can be used as before.
        """

    def upload(self, values: HostArray, out: Array) -> None:
        """Copy values from the host into an array, without waiting for the stream."""

    def gather(self, array: Array, indices: Array, out: Array) -> None:
        """Write the rows of an array that have these indices into another one of its dtype."""

    def new_staging(self) -> PinnedBuffer:
        """Return pinned memory on the host for `download` and `send_back`."""

    def download(self, array: Array, staging: PinnedBuffer) -> HostArray:
        """Copy an array to pinned memory; return it there, when the copy is done."""

    def send_back(self, values: HostArray, staging: PinnedBuffer, out: Array) -> None:
        """Copy what `download` returned into an array, without waiting for the stream."""

    def synchronize(self) -> None:
        """Wait for the engine's stream."""

    def addresses(self, array: Array) -> tuple[int, int]:
        """Return the addresses of an array's memory and of the engine's stream, for libraries in C."""

    def device_id(self) -> str:
        """Return what tells the device from all others of the machine, in every process."""

    def retain(self) -> None:
        """Increment the number of engines that use the graphs' memory: it is kept until `release`."""

    def release(self) -> None:
        """Decrement the number of engines; memory that no graph needs any more is freed."""


CAPTURE_LOCK = threading.Lock()
"""Lock for captures of all libraries and threads of the process, and for calls that wait for the device.

Such a call invalidates every capture in progress on the device.
"""


@contextmanager
def exclusive_capture() -> Iterator[None]:
    """Context for a capture: it holds `CAPTURE_LOCK` and turns off the garbage collector.

    A collection could free memory, and a capture in progress does not permit that.
    """
    with CAPTURE_LOCK:
        enabled = gc.isenabled()
        gc.disable()
        try:
            yield
        finally:
            if enabled:
                gc.enable()
