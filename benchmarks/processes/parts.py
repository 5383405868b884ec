"""Time of the parts of a step in the engine of several processes, measured from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from mlp_xp._engines.data_parallel import DataParallelEngine, ShardBatches
from mlp_xp._engines.step_halves import CompiledHalves
from mlp_xp._processes import Processes
from mlp_xp._training import loop

PARTS = ("order", "division", "rows", "gradients", "waiting", "Allreduce", "update", "rest")
"""Drawing the order of all rows; finding the process's own in it; gathering these for a batch; the first half
of a step; waiting for the slowest process; adding up; the second half; all else, with a training's start."""

_RUN = "run"


class Parts:
    """Seconds by the names of parts."""

    def __init__(self) -> None:
        self.seconds = dict.fromkeys((*PARTS, _RUN), 0.0)

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function whose time counts as a part."""

        def timed(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.seconds[part] += time.perf_counter() - start

        return timed

    def timed_iterator(self, part: str, function: Callable[..., Iterator[Any]]) -> Callable[..., Any]:
        """Return a function of an iterator whose steps count as a part."""

        def timed(*arguments: Any) -> Iterator[Any]:
            advance, end = self.timed(part, next), object()
            iterator = function(*arguments)
            while (value := advance(iterator, end)) is not end:
                yield value

        return timed

    def finish(self, total: float) -> dict[str, float]:
        """Return the seconds of all parts, whose sum is the total."""
        measured = {part: self.seconds[part] for part in PARTS}
        return {**measured, "rest": total - sum(measured.values())}

    def of_steps(self) -> float:
        """Return the seconds of steps without order and messages, and without the start of a training."""
        return self.seconds[_RUN] - sum(self.seconds[part] for part in ("division", "waiting", "Allreduce"))


@contextmanager
def timed_parts() -> Iterator[Parts]:
    """Context in which the parts of steps are timed.

    Processes meet before they add up, so that waiting is told from adding up: that takes a few microseconds.
    """
    parts = Parts()
    add_up = parts.timed("Allreduce", Processes.add_up)
    meet = parts.timed("waiting", lambda processes: processes._messages.Barrier())

    def meet_and_add_up(processes: Processes, *arguments: Any) -> None:
        meet(processes)
        add_up(processes, *arguments)

    replaced: list[tuple[Any, str, Any]] = [
        (loop, "_orders", parts.timed_iterator("order", loop._orders)),
        (ShardBatches, "_divided", parts.timed_iterator("division", ShardBatches._divided)),
        (ShardBatches, "batch", parts.timed("rows", ShardBatches.batch)),
        (CompiledHalves, "add_gradients", parts.timed("gradients", CompiledHalves.add_gradients)),
        (CompiledHalves, "update", parts.timed("update", CompiledHalves.update)),
        (Processes, "add_up", meet_and_add_up),
        (DataParallelEngine, "run", parts.timed(_RUN, DataParallelEngine.run)),
    ]
    with ExitStack() as stack:
        for owner, name, function in replaced:
            stack.enter_context(patch.object(owner, name, function))
        yield parts
