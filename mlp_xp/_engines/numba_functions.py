"""Functions that Numba compiles from generated source and keeps in its file cache; the cores they run on.

The source of a program is a file in a folder of its own in the user's cache folder, beside it what Numba
compiled, and a manifest with the digests of these files: machine code that was damaged is never loaded, but
compiled anew. Where no folder can be written that is the user's alone, nothing is kept.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

from mlp_xp._compiler.loops import NumbaSource

MIN_ELEMENTS_OF_A_PART = 2**17
"""What a thread computes at least: to wake one takes some ten microseconds."""

HEADER = """import numpy as np
f4, f8, u8 = np.float32, np.float64, np.uint64
zero, one, four = u8(0), u8(1), u8(4)

"""


Functions: TypeAlias = Mapping[str, Any]
"""Compiled functions, by name."""

MAX_PROGRAMS = 64
"""How many programs are kept in memory; the least recently used is dropped first."""

_in_memory: dict[NumbaSource, Functions] = {}
_lock = threading.RLock()


def _renew_lock() -> None:
    """Make a new lock in a forked process: a thread that held the old one is not there."""
    global _lock
    _lock = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def compile_functions(source: NumbaSource) -> Functions:
    """Return compiled functions by name, from memory, from the file cache, or from the compiler.

    They release the interpreter's lock.
    """
    functions = _in_memory.pop(source, None)
    if functions is None:
        with _lock:
            functions = _in_memory.pop(source, None) or _load(source)
    _in_memory[source] = functions
    for oldest in list(_in_memory)[:-MAX_PROGRAMS]:
        _in_memory.pop(oldest, None)
        sys.modules.pop(_module_name(oldest), None)
    return functions


def _load(source: NumbaSource) -> Functions:
    folder = _folder(source)
    if folder is None:
        return _compile(source, "<loops>", kept=False)
    try:
        file = folder / "loops.py"
        _write_source(file, source)
        if _is_intact(folder):
            try:
                return _compile(source, str(file), kept=True)
            except Exception:  # what is written by another version of something is not loaded
                _delete_compiled(folder)
        functions = _compile(source, str(file), kept=True)
        _write_manifest(folder, functions)
    except OSError:  # a full disk, or a folder that can no longer be written
        return _compile(source, "<loops>", kept=False)
    return functions


def _compile(source: NumbaSource, filename: str, *, kept: bool) -> Functions:
    import numba

    compiled = partial(numba.njit, nogil=True, error_model="numpy")
    # Numba finds what it loads by the module's name.
    module = ModuleType(_module_name(source))
    sys.modules[module.__name__] = module
    names: dict[str, Any] = vars(module)
    names |= {"compiled": compiled(), "inlined": compiled(forceinline=True)}
    exec(compile(HEADER + source.text, filename, "exec"), names)
    return {
        name: compiled(_types(kinds), cache=kept)(names[name].py_func) for name, kinds in source.signatures
    }


def _types(kinds: Sequence[str]) -> tuple[Any, ...]:
    from numba import types

    scalars: dict[str, Any] = {
        "f4": types.float32,
        "f8": types.float64,
        "i8": types.int64,
        "u8": types.uint64,
    }
    scalars["bool"] = types.boolean
    found = []
    for kind in kinds:
        name, is_array, rest = kind.partition("[]")
        array = types.Array(scalars[name], 1, "C", readonly=bool(rest))
        found.append(array if is_array else scalars[name])
    return tuple(found)


# Files


def _folder(source: NumbaSource) -> Path | None:
    """Return the folder of a program, which is made; None if there is none that only this user can write."""
    import platformdirs

    base = os.environ.get("NUMBA_CACHE_DIR") or platformdirs.user_cache_path("mlp_xp", appauthor=False)
    try:
        base = Path(base).absolute()
        folder = base / "mlp_xp_loops" / _digest_of(source)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for each in (folder.parent, folder, *base.glob(f"{folder.name}_*")):
            status = each.stat()
            # What others could have written is not loaded: it is machine code.
            if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
                return None
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def _digest_of(source: NumbaSource) -> str:
    return hashlib.sha256(repr((HEADER, source, sys.version)).encode()).hexdigest()[:32]


def _module_name(source: NumbaSource) -> str:
    return f"mlp_xp_loops_{_digest_of(source)}"


def _write_source(file: Path, source: NumbaSource) -> None:
    text = HEADER + source.text
    with suppress(OSError, UnicodeDecodeError):
        if file.read_text(encoding="utf-8") == text:
            return
    _write(file, text)
    os.utime(file, (0, 0))  # Numba compares the time too, which is the same for processes that write at once


def _write(file: Path, text: str) -> None:
    """Write a file so that others see all of it or nothing."""
    handle, name = tempfile.mkstemp(dir=file.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _is_intact(folder: Path) -> bool:
    """Whether all files of the manifest are as they were written; if not, they are deleted."""
    manifest = folder / "manifest.json"
    try:
        digests = json.loads(manifest.read_text(encoding="utf-8"))
        if all(_digest(Path(name)) == digest for name, digest in digests.items()):
            return True
    except (OSError, ValueError, AttributeError, TypeError):
        pass
    _delete_compiled(folder)
    return False


def _delete_compiled(folder: Path) -> None:
    (folder / "manifest.json").unlink(missing_ok=True)
    # Numba writes beside the source, or in a folder with this name and a digest of the path.
    for pattern in ("__pycache__/loops.*.nb?", f"../../{folder.name}_*/loops.*.nb?"):
        for file in folder.glob(pattern):
            shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)


def _write_manifest(folder: Path, functions: Functions) -> None:
    kept: set[Path] = set()
    for function in functions.values():
        kept |= set(Path(function.stats.cache_path).glob("loops.*.nb?"))
    _write(folder / "manifest.json", json.dumps({str(file): _digest(file) for file in kept}))


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


# Cores


class _Team(NamedTuple):
    """Threads beside the caller's, of the process that made them."""

    process: int
    n_threads: int
    executor: Any


_team = _Team(0, 1, None)


def _make_team() -> _Team:
    """Make the threads of this process: at first, and after a fork."""
    import numba

    n_threads = int(numba.config.NUMBA_NUM_THREADS)
    try:
        from concurrent.futures import ThreadPoolExecutor

        executor = ThreadPoolExecutor(n_threads - 1, "mlp_xp") if n_threads > 1 else None
    except RuntimeError:  # the main thread has ended: there are no new threads
        executor = None
    return _Team(os.getpid(), n_threads, executor)


def in_parallel(function: Callable[..., Any], length: int, rows: int, columns: int, *arguments: Any) -> None:
    """Call ``function(first, last, rows, columns, *arguments)`` for parts of a range, on all cores."""
    global _team
    team = _team
    if team.process != os.getpid():
        team = _team = _make_team()
    n_parts = min(team.n_threads, rows * columns // MIN_ELEMENTS_OF_A_PART)
    if team.executor is None or n_parts < 2:
        function(0, length, rows, columns, *arguments)
        return
    ends = [length * part // n_parts for part in range(n_parts + 1)]
    parts = []
    for first, last in pairwise(ends[1:]):
        try:
            parts.append(team.executor.submit(function, first, last, rows, columns, *arguments))
        except RuntimeError:  # the main thread has ended, and the executor takes no more
            break
    function(0, ends[1], rows, columns, *arguments)
    if len(parts) < n_parts - 1:
        function(ends[1 + len(parts)], length, rows, columns, *arguments)
    for part in parts:
        part.result()
