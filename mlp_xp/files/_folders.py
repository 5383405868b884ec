"""Files and folders that come into their places whole, or not at all."""

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
def replacing(path: Path) -> Iterator[Path]:
    """Give a new file to write, which takes the place of `path` if all goes well; else nothing changes.

    Raises
    ------
    OSError
        That names `path`.
    """
    target = path.resolve()  # a link stays, and what it points at is replaced
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
    """A folder to fill beside its place, which it takes when it is whole.

    As a context manager it says, where something fails before that, what became of what was written.

    Parameters
    ----------
    path : Path
    overwrite : bool
        Whether a folder that has a file called `mark`, or nothing, may be replaced.
    mark : str

    Attributes
    ----------
    partial : Path
        Where to write.

    Raises
    ------
    ValueError
        If there is no place for it, or something that may not be replaced.
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
        path, target = self.path, self._target
        if not target.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
        if not target.exists():
            return
        if target == Path.cwd():
            raise ValueError(f"{path}: the folder you are in is not replaced")
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
        if not self.partial.exists():  # it is in its place
            return
        with suppress(OSError):
            self.partial.rmdir()
        if error is not None and self.partial.exists():
            error.add_note(f"what was written until then is in {self.partial}")

    def finish(self) -> None:
        """Put the folder in its place."""
        self._check()  # once more: training takes its time
        self.partial.chmod(0o777 & ~_umask())
        if not self._target.exists():
            self.partial.rename(self._target)
            return
        former = Path(mkdtemp(prefix=f".{self._target.name}.", dir=self._target.parent))
        self._target.replace(former)
        try:
            self.partial.rename(self._target)
        except BaseException:
            former.replace(self._target)
            raise
        shutil.rmtree(former, ignore_errors=True)


def _umask() -> int:
    """Return what new files are not allowed; it can be read by setting it alone."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_json(path: Path, content: Any) -> None:
    """Write what JSON can hold."""
    import json

    text = json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")
