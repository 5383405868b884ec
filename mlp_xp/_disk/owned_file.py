"""A file that a process owns: it replaces it again and again, and others do not."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from mlp_xp._disk.folders import leftovers, sync_file, sync_folder, temporary_name

fcntl: Any = None
"""The module that locks files; not on Windows, where files are not locked."""
with suppress(ImportError):
    fcntl = import_module("fcntl")

DAMAGED = "damaged"
"""What is known of a file that is not good."""

Write = Callable[[Path], object]
"""Writes the content of a file."""


class OwnedFile:
    """A file that is whole at any instant, and locked by its owner while that lives.

    It is written under a temporary name, forced to the disk and renamed. The lock is the system's advisory
    one (``flock``), which ends with the process, however that ends; where a file system has none, nothing is
    locked.

    Parameters
    ----------
    path : Path
    keep : int
        How many to keep: this one, and former ones with ".1", ".2", ... behind its name, the last first.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self._target = path.resolve()  # of a symbolic link the file, not the link
        self._lock: _Lock | None = None
        self._identity: Any = None

    def all_kept(self) -> list[Path]:
        """Return the files that there are, the last one first."""
        return [path for path in (self._target, *map(self._former, range(1, self.keep))) if path.exists()]

    def check_absent(self) -> None:
        """Raise a FileExistsError if there is a file."""
        if kept := self.all_kept():
            raise FileExistsError(errno.EEXIST, "it exists already", str(kept[0]))

    def create(self, write: Write, *, overwrite: bool = False, keeps_former: bool = False) -> None:
        """Write the first one.

        Parameters
        ----------
        write : callable ``(path) -> None``
        overwrite : bool
            Whether to replace those that there are.
        keeps_former : bool
            Whether there are former ones, which stay.

        Raises
        ------
        FileExistsError
            If there is one, and it must not be overwritten.
        BlockingIOError
            If another process owns it.
        OSError
            If it cannot be written.
        """
        if not (overwrite or keeps_former):
            self.check_absent()
        if overwrite and self._target.exists():
            self.take_over()
            try:
                self.replace(write)
            except BaseException:
                self.release()
                raise
        else:
            temporary, lock = self._written(write)
            try:
                _rename_to_new(temporary, self._target)
            except BaseException:
                lock.close()
                temporary.unlink(missing_ok=True)
                raise
            self._now_owned(lock)
        if not keeps_former:
            for number in range(1, self.keep):  # they are of another training
                self._former(number).unlink(missing_ok=True)
        self._remove_leftovers()

    def take_over(self, *, is_good: bool = True) -> None:
        """Own the file that is there; raise a BlockingIOError if another process does.

        One that is not good does not become a former one.
        """
        while True:
            lock = _Lock(self._target)
            if not lock.is_ours:
                lock.close()
                raise BlockingIOError(
                    errno.EAGAIN, "another process that is still running writes it", str(self.path)
                )
            try:
                if lock.is_of(self._target):
                    break
            except BaseException:
                lock.close()
                raise
            lock.close()  # it was replaced meanwhile
        self._now_owned(lock)
        if not is_good:
            self._identity = DAMAGED
        self._remove_leftovers()

    def replace(self, write: Write) -> str:
        """Write the next one; return what was unusual, "" if nothing was.

        The last one becomes the first of the former ones, unless somebody else has changed it: then these
        stay as they are, so that one of them is good.
        """
        temporary, lock = self._written(write)
        aside = None
        try:
            is_ours = bool(self._identity == self._look())
            if self._target.exists():
                shutil.copymode(self._target, temporary)
                if is_ours and self.keep > 1:
                    aside = self._set_aside()
            temporary.replace(self._target)
        except BaseException:
            lock.close()
            for path in (temporary, aside):
                if path is not None:
                    path.unlink(missing_ok=True)
            raise
        is_known = is_ours or self._identity == DAMAGED
        self._now_owned(lock)
        if aside is not None:
            try:
                self._shift_former()
                aside.replace(self._former(1))
            except OSError as error:  # the next one is in its place all the same
                return f"the one before it could not be kept ({error.strerror})"
            finally:
                aside.unlink(missing_ok=True)
        return "" if is_known else "it was not as it was written last, and is replaced"

    def remove(self) -> None:
        """Remove the file, unless somebody else has changed it."""
        if self._identity == self._look():
            self._target.unlink(missing_ok=True)

    def release(self) -> None:
        """Own it no longer."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def _former(self, number: int) -> Path:
        return self._target.with_name(f"{self._target.name}.{number}")

    def _written(self, write: Write) -> tuple[Path, _Lock]:
        """Write a temporary file; return its path, and its lock."""
        temporary, lock = temporary_name(self._target), None
        try:
            temporary.touch(exist_ok=False)
            lock = _Lock(temporary)
            write(temporary)
            sync_file(temporary)
            if not lock.is_of(temporary):  # `write` has made it anew
                lock.close()
                lock = _Lock(temporary)
        except BaseException:
            if lock is not None:
                lock.close()
            temporary.unlink(missing_ok=True)
            raise
        return temporary, lock

    def _set_aside(self) -> Path | None:
        """Give the last one a second name, and return it; where there are no links, make it a former one."""
        aside = temporary_name(self._target)
        try:
            os.link(self._target, aside)
        except OSError:
            self._shift_former()
            self._target.replace(self._former(1))
            return None
        return aside

    def _shift_former(self) -> None:
        """Make room for a first one of the former ones."""
        for number in range(self.keep - 1, 1, -1):
            with suppress(FileNotFoundError):
                self._former(number - 1).replace(self._former(number))

    def _now_owned(self, lock: _Lock) -> None:
        self.release()
        self._lock, self._identity = lock, self._look()
        sync_folder(self._target.parent)

    def _look(self) -> Any:
        """Return what changes when somebody else writes the file."""
        try:
            found = self._target.stat()
        except OSError:
            return None
        return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns

    def _remove_leftovers(self) -> None:
        """Remove temporary files of processes that were killed: nobody has locked them any more."""
        if fcntl is None:
            return
        with suppress(OSError):
            for path in leftovers(self._target):
                with suppress(OSError):
                    lock = _Lock(path)
                    try:
                        # Another name of our own file is one of a process killed between link and unlink.
                        if path.samefile(self._target) or lock.is_ours:
                            path.unlink()
                    finally:
                        lock.close()


class _Lock:
    """A file's lock; where there are none, the file is not even opened: Windows replaces no open files.

    Attributes
    ----------
    is_ours : bool
        Whether it was to be had: no other process has locked the file, or there are no locks.
    """

    def __init__(self, path: Path) -> None:
        self.is_ours = True
        self._handle: int | None = None
        if fcntl is None:
            return
        try:
            self._handle = os.open(path, os.O_RDWR)  # some network file systems lock only files for writing
        except PermissionError:
            self._handle = os.open(path, os.O_RDONLY)
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.is_ours = False
        except OSError:  # the file system has no locks
            pass
        except BaseException:
            self.close()
            raise

    def is_of(self, path: Path) -> bool:
        """Whether the path still is the file that was locked."""
        return self._handle is None or os.path.samestat(os.fstat(self._handle), path.stat())

    def close(self) -> None:
        """Unlock the file."""
        if self._handle is not None:
            with suppress(OSError):  # also for forked processes, which have the file open too
                fcntl.flock(self._handle, fcntl.LOCK_UN)
            os.close(self._handle)
            self._handle = None


def _rename_to_new(temporary: Path, target: Path) -> None:
    """Rename a file; raise a FileExistsError if the new name is taken, also at the same instant."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        if target.exists():
            raise FileExistsError(errno.EEXIST, "it exists already", str(target)) from None
        temporary.rename(target)
    else:
        temporary.unlink()
