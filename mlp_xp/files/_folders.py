"""Atomic writes: files and folders that appear under their names only when they are complete."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    try:
        if target.exists() and not target.is_file():
            raise FileExistsError(errno.EEXIST, "it must be a file, and is something else")
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        temporary.replace(target)
    except OSError as error:
        if error.errno is None:
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


class NewFolder:
    """A folder that is filled under a temporary name and moved to its path by `finish`.

    As a context manager it adds a note to an error raised before that, with the path of the partial folder.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Whether an existing folder with a file called `mark` may be replaced. An empty folder always may.
    mark : str

    Attributes
    ----------
    partial : Path
        The temporary folder to write to.

    Raises
    ------
    ValueError
        If the folder cannot be made, or the path exists and may not be replaced.
    """

    def __init__(self, path: Path, *, overwrite: bool, mark: str) -> None:
        self.path, self.overwrite, self.mark = path, overwrite, mark
        self._target = path.resolve()
        self._check()
        try:
            self.partial = Path(mkdtemp(prefix=f".{self._target.name}.", dir=self._target.parent))
        except OSError as error:
            raise ValueError(f"{path}: no folder can be made there ({error.strerror})") from error

    def _check(self) -> None:
        """Raise a ValueError if the path cannot be created or may not be replaced."""
        path, target = self.path, self._target
        if not target.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if not target.exists():
            return
        if target == Path.cwd():
            raise ValueError(f"{path}: the current folder cannot be replaced")
        if target.is_dir() and not any(target.iterdir()):
            return
        if not (target / self.mark).is_file():
            raise ValueError(
                f"{path}: it exists already, and only a folder that this command wrote can be replaced"
            )
        if not self.overwrite:
            raise ValueError(f"{path}: it exists already; --overwrite replaces it")

    def __enter__(self) -> NewFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.partial.exists():  # `finish` has moved it
            return
        with suppress(OSError):  # removes the folder if it is empty
            self.partial.rmdir()
        if error is not None and self.partial.exists():
            error.add_note(f"what was written until then is in {self.partial}")

    def finish(self) -> None:
        """Move the folder to its path, replacing the former one."""
        self._check()  # again: the path may have been created during a long training
        self.partial.chmod(0o777 & ~_umask())  # mkdtemp makes folders private
        if not self._target.exists():
            self.partial.rename(self._target)
            return
        # A rename cannot replace a folder that has files, so the former one is moved away first.
        former = Path(mkdtemp(prefix=f".{self._target.name}.", dir=self._target.parent))
        self._target.replace(former)
        try:
            self.partial.rename(self._target)
        except BaseException:
            former.replace(self._target)
            raise
        shutil.rmtree(former, ignore_errors=True)


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Write a JSON document, indented."""
    import json

    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
