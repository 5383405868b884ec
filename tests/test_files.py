"""Files and folders that come into their places whole, or not at all."""

import os
import signal
from pathlib import Path

import pytest

from mlp_xp._interrupts import deferred_interrupts
from mlp_xp.files._folders import NewFolder, atomic_write


def folder(path, overwrite=False):
    return NewFolder(path, overwrite=overwrite, mark="mark")


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
    with pytest.raises(ValueError, match="the current folder cannot be replaced"):
        folder(tmp_path / "photos", overwrite)
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


def test_a_swap_that_fails_is_undone(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "mark").write_text("old")
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
