"""The most memory a process had at once, above what it had before its data were made."""

from __future__ import annotations

import sys
from pathlib import Path

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


class DeviceMemory:
    """Watches what the libraries that are loaded hold on a GPU."""

    def reset(self) -> bool:
        """Forget the peak so far, where the library can."""
        if torch := sys.modules.get("torch"):
            torch.cuda.reset_peak_memory_stats()
        return True

    def peak(self) -> int | None:
        """Return the peak in bytes. CuPy's is what its pool holds, JAX's that of all time."""
        peak = 0
        if cupy := sys.modules.get("cupy"):
            peak += int(cupy.get_default_memory_pool().total_bytes())
        if torch := sys.modules.get("torch"):
            peak += int(torch.cuda.max_memory_allocated())
        if jax := sys.modules.get("jax"):
            peak += int((jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0))
        return peak


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
