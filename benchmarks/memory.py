"""Peak memory of a process, above what it had before its data were made."""

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
    """Peak resident memory of this process: on Linux since the last reset, elsewhere since it started."""

    def __init__(self) -> None:
        self.resets = self.reset()
        self.before = _status("VmRSS") if self.resets else _all_time_peak()

    def reset(self) -> bool:
        """Reset the peak; return whether this system can."""
        try:
            _CLEAR.write_text("5")
            _status("VmHWM")
        except (OSError, LookupError):
            return False
        return True

    def peak(self) -> int | None:
        """Return the peak since the last reset, in bytes above the initial memory; None if unknown."""
        now = _status("VmHWM") if self.resets else _all_time_peak()
        return None if now is None or self.before is None else max(0, now - self.before)


SAMPLING_INTERVAL_SECONDS = 1e-3


class DeviceMemory:
    """Peak GPU memory of a worker process, sampled from the parent process by the driver's figures.

    Memory pools of libraries grow and shrink within a repeat, so the peak is the largest of many samples.
    Only one worker runs at a time, so it is the difference from the sample before its turn. A worker does not
    sample itself, because the calls might break its CUDA captures.
    """

    def __init__(self) -> None:
        self.nvml = _nvml()
        self._device = None if self.nvml else _device_usage_reader()
        self.about = f"by {'NVML' if self.nvml else 'cudaMemGetInfo'}, sampled each ms of a warm-up repeat"
        self.held: dict[int, int] = {}

    def taken(self, pid: int) -> int:
        """Return the bytes used by a process or, if that is unknown, by all processes."""
        return self._device() if self._device else _used_by_process(self.nvml, pid)

    @contextmanager
    def turn(self, pid: int) -> Iterator[list[int]]:
        """Sample during the turn of a process; append its peak above its initial memory to the list."""
        before, peak = self.taken(pid), list[int]()
        most, done = [before], threading.Event()

        def look() -> None:
            while not done.is_set():
                most[0] = max(most[0], self.taken(pid))
                time.sleep(SAMPLING_INTERVAL_SECONDS)

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
    """Return a sampler of the GPU's memory; None if no library here can read it."""
    try:
        watch = DeviceMemory()
        watch.taken(os.getpid())
    except Exception:
        return None
    return watch


def empty_pools() -> None:
    """Free the unused memory in the pools of CuPy and PyTorch."""
    if cupy := sys.modules.get("cupy"):
        cupy.get_default_memory_pool().free_all_blocks()
    if (torch := sys.modules.get("torch")) and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def _nvml() -> Any:
    """Return NVIDIA's binding of NVML, initialised; None if it is not available."""
    try:
        nvml = import_module("pynvml")  # from the package nvidia-ml-py
        nvml.nvmlInit()
    except Exception:
        return None
    return nvml


def _used_by_process(nvml: Any, pid: int) -> int:
    """Return the bytes used by a process, or by all if NVML lacks its id, as in some containers."""
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


def _device_usage_reader() -> Callable[[], int]:
    """Return a function that reads the device's used memory from the CUDA runtime, by CuPy or PyTorch."""
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
