"""Files and folders that come into their places whole, or not at all."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_xp._disk.folders import NewFolder, _exchange, atomic_write
from mlp_xp._interrupts import deferred_interrupts


def folder(path, overwrite=False):
    return NewFolder(path, overwrite=overwrite, mark="mark", contents=["*.png"])


def test_a_folder_comes_when_it_is_whole(tmp_path):
    with folder(tmp_path / "new") as new:
        (new.partial / "mark").write_text("1")
        assert not (tmp_path / "new").exists()
        new.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (tmp_path / "new" / "mark").read_text() == "1"
    assert (tmp_path / "new").stat().st_mode == tmp_path.joinpath("new", "mark").parent.stat().st_mode
    (tmp_path / "other").mkdir()
    assert (tmp_path / "new").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_folder_is_replaced_when_asked(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mark").write_text("old")
    with pytest.raises(ValueError, match="run: it exists already; --overwrite replaces it"):
        folder(tmp_path / "run")
    with folder(tmp_path / "run", overwrite=True) as new:
        (new.partial / "mark").write_text("new")
        assert (tmp_path / "run" / "mark").read_text() == "old"
        new.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "mark").read_text() == "new"


def test_a_link_to_a_folder_stays_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with folder(tmp_path / "link", overwrite=True) as new:
        (new.partial / "mark").touch()
        new.finish()
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "mark").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_nothing_of_others_is_replaced(overwrite, tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").touch()
    (tmp_path / "file").touch()
    for name in ("photos", "file"):
        with pytest.raises(
            ValueError, match=f"{name}: it exists already, and only a folder that this command"
        ):
            folder(tmp_path / name, overwrite)
    monkeypatch.chdir(tmp_path / "photos")
    for here_or_above in (tmp_path / "photos", tmp_path):
        with pytest.raises(ValueError, match="the current folder cannot be replaced"):
            folder(here_or_above, overwrite)
    with pytest.raises(ValueError, match="there is no folder"):
        folder(tmp_path / "no" / "such", overwrite)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "photos"]


def fill(new, meanwhile=lambda: None, then=None):
    """Write a network into a new folder; something happens meanwhile."""
    with new:
        (new.partial / "network").write_text("trained")
        meanwhile()
        if then is not None:
            raise then
        new.finish()


def test_what_comes_meanwhile_stays(tmp_path):
    def come():
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "thesis.txt").write_text("precious")

    new = folder(tmp_path / "run")
    with pytest.raises(ValueError, match="it exists already") as caught:
        fill(new, come)
    assert (tmp_path / "run" / "thesis.txt").read_text() == "precious"
    assert (new.partial / "network").read_text() == "trained"
    assert caught.value.__notes__ == [f"what was written until then is in {new.partial}"]


def test_what_was_written_before_a_failure_is_kept_and_named(tmp_path):
    new = folder(tmp_path / "run")
    with pytest.raises(OSError, match="no space left") as caught:
        fill(new, then=OSError("no space left on device"))
    assert str(new.partial) in caught.value.__notes__[0]
    with pytest.raises(OSError, match="bad input"), folder(tmp_path / "other"):
        raise OSError("bad input")
    # Nothing is left of a folder that nothing was written to, and another one does not touch the first.
    assert list(tmp_path.iterdir()) == [new.partial]


def old_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mark").write_text("old")


@pytest.mark.parametrize("name", ["thesis.txt", "source"])
def test_a_folder_that_holds_more_is_not_replaced(name, tmp_path):
    old_run(tmp_path)
    (tmp_path / "run" / "curve.png").touch()
    if "." in name:
        (tmp_path / "run" / name).write_text("mine")
    else:
        (tmp_path / "run" / name).mkdir()
    with pytest.raises(ValueError, match=rf"holds what this command did not write: \['{name}'\]"):
        folder(tmp_path / "run", overwrite=True)
    (tmp_path / "run" / name).rename(tmp_path / name)
    with folder(tmp_path / "run", overwrite=True) as new:
        (new.partial / "mark").write_text("new")
        new.finish()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["mark"]


def no_exchange(monkeypatch):
    monkeypatch.setattr("mlp_xp._disk.folders._exchange", lambda one, other: False)


def test_a_folder_is_replaced_without_a_gap(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    if not _exchange(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system exchanges no folders")
    for name in ("a", "b"):
        (tmp_path / name).rmdir()
    old_run(tmp_path)
    code = "import pathlib, sys, time\nmark, end = pathlib.Path('run', 'mark'), time.monotonic() + 2.0\n"
    code += "print(flush=True)\nwhile time.monotonic() < end: mark.read_text()"
    command = [sys.executable, "-c", code]
    watching = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    watching.stdout.readline()
    while watching.poll() is None:
        with folder(tmp_path / "run", overwrite=True) as new:
            (new.partial / "mark").write_text("new")
            new.finish()
    watching.stdout.close()
    assert watching.returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_where_folders_cannot_be_exchanged_a_killed_process_leaves_a_name_to_be_seen(tmp_path, monkeypatch):
    old_run(tmp_path)
    no_exchange(monkeypatch)
    seen = []
    rename = Path.rename

    def look(self, target):
        seen.extend(path.name for path in tmp_path.iterdir() if not path.name.startswith("."))
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", look)
    with folder(tmp_path / "run", overwrite=True) as new:
        (new.partial / "mark").write_text("new")
        new.finish()
    assert [name.startswith("run.former-") for name in seen] == [True]
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert (tmp_path / "run" / "mark").read_text() == "new"


@pytest.mark.parametrize("exchange", [True, False])
def test_all_is_on_the_disk_before_the_former_folder_goes(exchange, tmp_path, monkeypatch):
    old_run(tmp_path)
    synced, removed = [], []
    if not exchange:
        no_exchange(monkeypatch)
    fsync, rmtree = os.fsync, shutil.rmtree

    def sync(handle):
        synced.append(Path(f"/proc/self/fd/{handle}").readlink())
        assert (tmp_path / "run" / "mark").read_text() == ("new" if synced[-1] == tmp_path else "old")
        fsync(handle)

    def remove(path, **settings):
        removed.append(set(synced))
        rmtree(path, **settings)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(shutil, "rmtree", remove)
    with folder(tmp_path / "run", overwrite=True) as new:
        (new.partial / "mark").write_text("new")
        (new.partial / "more").mkdir()
        (new.partial / "more" / "network").write_text("trained")
        held = {new.partial, *new.partial.rglob("*"), tmp_path}
        new.finish()
    assert removed == [held]


def test_a_file_that_does_not_come_to_the_disk_leaves_the_former_folder(tmp_path, monkeypatch):
    def fail(handle):
        raise OSError(28, "No space left on device")

    old_run(tmp_path)
    monkeypatch.setattr(os, "fsync", fail)
    new = folder(tmp_path / "run", overwrite=True)
    with pytest.raises(OSError, match="No space left") as caught:
        fill(new)
    assert (tmp_path / "run" / "mark").read_text() == "old"
    assert caught.value.__notes__ == [f"what was written until then is in {new.partial}"]


def test_an_error_after_it_was_finished_says_that_it_is_saved(tmp_path):
    old_run(tmp_path)

    def fail_later(new):
        with new:
            (new.partial / "mark").write_text("new")
            new.finish()
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        fail_later(folder(tmp_path / "run", overwrite=True))
    assert caught.value.__notes__ == [f"saved before that: {tmp_path / 'run'}"]
    assert (tmp_path / "run" / "mark").read_text() == "new"


def test_a_swap_that_fails_is_undone(tmp_path, monkeypatch):
    old_run(tmp_path)
    no_exchange(monkeypatch)
    new = folder(tmp_path / "run", overwrite=True)

    def fail(self, target):
        raise OSError("broken")

    monkeypatch.setattr(type(new.partial), "rename", fail)
    with pytest.raises(OSError, match="broken"):
        fill(new)
    assert (tmp_path / "run" / "mark").read_text() == "old"
    assert (new.partial / "network").read_text() == "trained"


def test_a_place_where_nothing_can_be_written_is_known_beforehand():
    with pytest.raises(ValueError, match="no folder can be made there"):
        folder(Path("/proc/run"))


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as new:
            new.write_text("ne")
            raise RuntimeError("half")

    with pytest.raises(RuntimeError, match="half"):
        write_half()
    assert path.read_text() == "old"
    with atomic_write(path) as new:
        new.write_text("new")
    assert path.read_text() == "new"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


def test_an_interrupt_waits():
    done = []

    def work():
        with deferred_interrupts():
            os.kill(os.getpid(), signal.SIGINT)
            done.append(True)

    with pytest.raises(KeyboardInterrupt):
        work()
    assert done
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with deferred_interrupts():
        pass
