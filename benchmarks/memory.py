"""The most memory a process had at once, above what it had before its data were made."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class HostMemory:
    """Watches this process. On Linux each repeat starts anew; elsewhere the peak is that of all time."""

    def __init__(self) -> None:
        self.resets = self.reset()
        self.before = _status("VmRSS") if self.resets else _all_time_peak()

    def reset(self) -> bool:
        """Forget the peak so far; return whether this system can."""
        try:
            _CLEAR.write_text("5")
            _status("VmHWM")
        except (OSError, LookupError):
            return False
        return True

    def peak(self) -> int | None:
        """Return the peak since the last reset above what was there before, in bytes; None if unknown."""
        now = _status("VmHWM") if self.resets else _all_time_peak()
        return None if now is None or self.before is None else max(0, now - self.before)


SECONDS_BETWEEN_LOOKS = 1e-3


class DeviceMemory:
    """Watches from outside how much of a GPU's memory the driver says is taken.

    Pools of libraries come and go within a repeat, and only one process has its turn while it is watched:
    so it is the difference from what was taken before the turn, and the most of many looks. No process
    looks at its own: its captures might not bear the calls.
    """

    def __init__(self) -> None:
        self.nvml = _nvml()
        self._device = None if self.nvml else _taken_on_the_device()
        self.about = (
            f"as {'NVML' if self.nvml else 'cudaMemGetInfo'} says, looked at each ms of a warm-up repeat"
        )
        self.held: dict[int, int] = {}

    def taken(self, pid: int) -> int:
        """Return the bytes that a process has taken, or if that is not known, that all have."""
        return self._device() if self._device else _taken_by_nvml(self.nvml, pid)

    @contextmanager
    def turn(self, pid: int) -> Iterator[list[int]]:
        """Watch the turn of a process; the list gets its peak, above what it had before its first turn."""
        before, peak = self.taken(pid), list[int]()
        most, done = [before], threading.Event()

        def look() -> None:
            while not done.is_set():
                most[0] = max(most[0], self.taken(pid))
                time.sleep(SECONDS_BETWEEN_LOOKS)

        watch = threading.Thread(target=look, daemon=True)
        watch.start()
        try:
            yield peak
        finally:
            done.set()
            watch.join()
            held = self.held.get(pid, 0)
            after = self.taken(pid)
            peak.append(max(0, held + max(most[0], after) - before))
            self.held[pid] = held + after - before


def device_memory() -> DeviceMemory | None:
    """Return what watches the GPU's memory; None if no library here can ask: times do not need it."""
    try:
        watch = DeviceMemory()
        watch.taken(os.getpid())
    except Exception:
        return None
    return watch


def empty_pools() -> None:
    """Let libraries that can give back what they do not use."""
    if cupy := sys.modules.get("cupy"):
        cupy.get_default_memory_pool().free_all_blocks()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _nvml() -> Any:
    """Return NVIDIA's binding of NVML, started; None where that cannot be."""
    try:
        nvml = import_module("pynvml")  # of nvidia-ml-py
        nvml.nvmlInit()
    except Exception:
        return None
    return nvml


def _taken_by_nvml(nvml: Any, pid: int) -> int:
    """Return what a process has, or all if NVML does not know it: containers may number it otherwise."""
    devices = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    of_process = [
        process.usedGpuMemory
        for device in devices
        for process in nvml.nvmlDeviceGetComputeRunningProcesses(device)
        if process.pid == pid
    ]
    if of_process and None not in of_process:
        return int(sum(of_process))
    return int(sum(nvml.nvmlDeviceGetMemoryInfo(device).used for device in devices))


def _taken_on_the_device() -> Callable[[], int]:
    """Return what asks the CUDA runtime, by the library that is installed."""
    info: Callable[[], tuple[int, int]]
    try:
        info = import_module("cupy").cuda.runtime.memGetInfo
    except ImportError:
        info = import_module("torch").cuda.mem_get_info

    def taken() -> int:
        free, total = info()
        return int(total - free)

    return taken


def _status(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return 1024 * int(value.split()[0])
    raise LookupError(field)


def _all_time_peak() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
