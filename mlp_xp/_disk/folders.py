"""Atomic writes: files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from tempfile import mkdtemp
from types import TracebackType
from typing import Any


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield the path of a temporary file, which replaces `path` unless an error is raised meanwhile.

    Raises
    ------
    OSError
        If the file cannot be written; the error names `path`.
    """
    target = path.resolve()  # replace the target of a symbolic link, not the link
    temporary = temporary_name(target, "new")
    try:
        if target.exists() and not target.is_file():
            raise FileExistsError(errno.EEXIST, "it must be a file, and is something else")
        yield temporary
        sync_file(temporary)
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
        sync_folder(target.parent)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_name(path: Path, ending: str = "partial") -> Path:
    """Return a new name, beside the path, for what gets that path's name when it is complete.

    Those that end with "partial" are removed by others if nobody has locked them; see `leftovers`.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.{ending}")


def final_name(temporary: Path) -> str | None:
    """Return the name of the path that a temporary name was made of; None if it is not a temporary name."""
    match = re.fullmatch(r"\.(.+)\.[0-9a-f]{16}\.(?:partial|new)", temporary.name)
    return match and match[1]


def leftovers(path: Path) -> list[Path]:
    """Return the temporary names of a path that there are: processes write them, or were killed."""
    return [
        each
        for each in path.parent.iterdir()
        if final_name(each) == path.name and each.name.endswith(".partial")
    ]


class NewFolder:
    """A folder that is filled under a temporary name and moved to its path by `finish`.

    As a context manager it adds a note to an error: before that with the path of the partial folder, after it
    that the folder is saved.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Whether an existing folder with a file called `mark` may be replaced. An empty folder always may.
    mark : str
    contents : sequence of str
        Names of the other files that such a folder has, or patterns of names. One with more is not replaced.
    within : Path, optional
        The folder to make the temporary folder in when it is needed, on the same file system. By default it
        is made at once, beside the path.

    Attributes
    ----------
    partial : Path
        The temporary folder to write to.

    Raises
    ------
    ValueError
        If the folder cannot be made, or the path exists and may not be replaced.
    """

    def __init__(
        self,
        path: Path,
        *,
        overwrite: bool,
        mark: str,
        contents: Sequence[str] = (),
        within: Path | None = None,
    ) -> None:
        self.path, self.overwrite, self.mark, self.contents = path, overwrite, mark, contents
        self._finished = False
        self._target = path.resolve()
        self._within = within or self._target.parent
        self._partial: Path | None = None
        self.check()
        if within is None:
            self._partial = self._made()
        else:  # try whether one can be made
            with self._errors_named():
                tried = temporary_name(within)
                tried.mkdir()
                with suppress(FileNotFoundError):  # another process may take it for a leftover
                    tried.rmdir()

    def _made(self) -> Path:
        with self._errors_named():
            return Path(mkdtemp(prefix=f".{self._target.name}.", dir=self._within))

    @contextmanager
    def _errors_named(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ValueError(f"{self.path}: no folder can be made there ({error.strerror})") from error

    @property
    def partial(self) -> Path:
        """The temporary folder to write to."""
        if self._partial is None:
            self._partial = self._made()
        return self._partial

    def check(self) -> None:
        """Raise a ValueError if the path cannot be created or may not be replaced."""
        path, target = self.path, self._target
        if not target.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if not target.exists():
            return
        if target in (Path.cwd(), *Path.cwd().parents):
            raise ValueError(f"{path}: the current folder cannot be replaced, nor one that it is in")
        if target.is_dir() and not any(target.iterdir()):
            return
        if not (target / self.mark).is_file():
            raise ValueError(
                f"{path}: it exists already, and only a folder that this command wrote can be replaced"
            )
        foreign = sorted(each.name for each in target.iterdir() if not self._may_be_ours(each))
        if foreign:
            raise ValueError(
                f"{path}: it cannot be replaced, for it holds what this command did not write: {foreign[:5]}"
            )
        if not self.overwrite:
            raise ValueError(f"{path}: it exists already; --overwrite replaces it")

    def _may_be_ours(self, path: Path) -> bool:
        name = final_name(path) or path.name  # a process may have been killed while it wrote
        return path.is_file() and any(fnmatch(name, pattern) for pattern in (self.mark, *self.contents))

    def __enter__(self) -> NewFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._finished:
            if error is not None:
                error.add_note(f"saved before that: {self.path}")
            return
        if self._partial is None:
            return
        with suppress(OSError):  # removes the folder if it is empty
            self._partial.rmdir()
        if error is not None and self._partial.exists():
            error.add_note(f"what was written until then is in {self._partial}")

    def finish(self) -> None:
        """Move the folder to its path, replacing the former one, once all it holds is on the disk."""
        self.check()  # again: the path may have been created during a long training
        self.partial.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        for path in self.partial.rglob("*"):
            if path.is_file():
                sync_file(path)
            else:
                sync_folder(path)
        sync_folder(self.partial)
        former = self._replace() if self._target.exists() else None
        if former is None:
            self.partial.rename(self._target)
        self._finished = True
        sync_folder(self._target.parent)
        if former is not None:
            shutil.rmtree(former, ignore_errors=True)

    def _replace(self) -> Path:
        """Put the folder in the place of the former one; return where that is now."""
        if _exchange(self.partial, self._target):
            return self.partial
        # Two renames, with a gap between them. A process that is killed there leaves a name that users see.
        former = self._target.with_name(f"{self._target.name}.former-{secrets.token_hex(4)}")
        self._target.replace(former)
        try:
            self.partial.rename(self._target)
        except BaseException:
            former.replace(self._target)
            raise
        return former


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders in one step; return False if the system or the file system cannot."""
    import ctypes

    names = os.fsencode(one), os.fsencode(other)
    swap = 2  # RENAME_EXCHANGE of Linux, RENAME_SWAP of macOS
    try:
        libc = ctypes.CDLL(None)
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*names, swap) == 0)
        here = -100  # AT_FDCWD: relative paths are those of the current folder
        return bool(libc.renameat2(here, names[0], here, names[1], swap) == 0)
    except (OSError, TypeError, AttributeError):  # no C library that is found so, or one without the function
        return False


def sync_file(path: Path) -> None:
    """Wait until a file is on the disk."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk, where the system can."""
    with suppress(OSError):  # Windows opens no folders, and some file systems sync none
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Write a JSON document, indented; the file is whole or not there."""
    with atomic_write(path) as file:
        write_json_text(file, content)


def write_json_text(path: Path, content: Any) -> None:
    """Write a JSON document, indented."""
    import json

    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
