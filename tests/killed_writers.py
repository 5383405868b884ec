"""A script that ends a process before each of its operations on files, and looks at what it leaves behind.

``python tests/killed_writers.py KEEP [no-links]`` prints how many ends there were, or fails. Nothing here is
random: the processes end at the first operation, at the second, and so on, until there are none left.
"""

import itertools
import os
import sys
import tempfile
from pathlib import Path

from mlp_xp._disk.owned_file import OwnedFile

N_WRITTEN = 4


def content(number):
    return bytes([number]) * 5000


def number_in(path):
    """Return the number that a file was written with; fail if it is not whole."""
    found = path.read_bytes()
    assert found == content(found[0]), path
    return found[0]


def write_all(folder, keep, overwrite):
    """Own the file, as a training does that begins or goes on; yield each number that is on the disk."""
    file = OwnedFile(folder / "run.mlpx", keep)
    kept = file.all_kept()
    first = number_in(kept[0]) + 1 if kept else 1
    if overwrite or not kept:
        file.create(lambda path: path.write_bytes(content(first)), overwrite=overwrite)
        yield first
    elif file.path.exists():
        file.take_over()
    else:
        file.create(lambda path: path.write_bytes(content(first)), keeps_former=True)
        yield first
    for number in range(first + 1, first + N_WRITTEN):
        file.replace(lambda path, number=number: path.write_bytes(content(number)))
        yield number
    file.release()


def forked(folder, keep, overwrite, n_operations):
    """Write in a process that ends before an operation; return whether it got there, and its last number."""
    reader, writer = os.pipe()
    process = os.fork()
    if process == 0:
        n_seen = itertools.count(1)

        def end(event, arguments):
            if event.startswith(("os.", "open", "fcntl.", "shutil.")) and next(n_seen) == n_operations:
                os._exit(9)

        sys.addaudithook(end)
        for number in write_all(folder, keep, overwrite):
            os.write(writer, bytes([number]))
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        numbers = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert code in (0, 9), code
    return code == 9, max(numbers, default=0)


def survives(keep, n_operations, overwrite, links_are_kept):
    """End a process, and one that goes on; look at the files after each, and when a third one has ended."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = OwnedFile(folder / "run.mlpx", keep)
        known = 0
        for n_allowed, again in ((n_operations, False), (n_operations, overwrite), (None, False)):
            is_ended, last = forked(folder, keep, again, n_allowed)
            if n_allowed is not None and not is_ended and not known:
                return False
            known = max(known, last)
            numbers = [number_in(path) for path in file.all_kept()]
            assert numbers == sorted(set(numbers), reverse=True), numbers
            assert max(numbers, default=0) >= known, (numbers, known)
            if links_are_kept and not overwrite:
                assert len(numbers) >= min(2, keep, known), (numbers, known)
        assert len(numbers) == keep, numbers
        expected = {"run.mlpx", *(f"run.mlpx.{number}" for number in range(1, keep))}
        assert {path.name for path in folder.iterdir()} == expected, list(folder.iterdir())
        return True


def no_links(source, target):
    raise PermissionError(1, "this file system has no links", target)


def main(keep, links=""):
    if links == "no-links":
        os.link = no_links
    for overwrite in (False, True):
        n_ends = next(n for n in itertools.count(1) if not survives(int(keep), n, overwrite, not links)) - 1
        print(n_ends)


if __name__ == "__main__":
    main(*sys.argv[1:])
