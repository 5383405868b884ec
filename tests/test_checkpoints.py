"""Tests of checkpoints: trainings go on exactly, and none of their files is lost, or trusted."""

import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import LIBRARIES, need
from killed_trainings import ENVIRONMENT, SCENARIOS

from mlp_xp import (
    Checkpoint,
    CheckpointWarning,
    DivergenceError,
    EarlyStopping,
    ModelFileError,
    Network,
    Optimizer,
    TrainingInterruptedWarning,
    adam,
    cosine,
    decoupled_weight_decay,
    gradient_descent,
    load_model,
    momentum,
    save_model,
    to_host,
    train,
)
from mlp_xp._disk import folders, model_files
from mlp_xp._training import checkpoint_files

pytest.importorskip("safetensors")

RANDOM = np.random.RandomState(0)
X = RANDOM.standard_normal((60, 3))
Y = np.tanh(X[:, :1] * X[:, 1:2]) + 0.1 * RANDOM.standard_normal((60, 1))
NETWORK = Network((3, 8, 1), activation="tanh", loss="squared_error", alpha=1e-3)
EPOCHS = 12


@pytest.fixture(autouse=True)
def _each_epoch_is_remembered(monkeypatch):
    monkeypatch.setattr("mlp_xp._training.loop.SECONDS_BETWEEN_BOUNDARIES", 0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.mlpx"


def host_arrays(params):
    return [to_host(array) for layer in params for array in layer]


def assert_same(one, other):
    """Assert that two results of `train` are the same, bit for bit."""
    assert one.history == other.history
    assert one.history.engine == other.history.engine
    for left, right in zip(host_arrays(one.params), host_arrays(other.params), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


def run(library, epochs=EPOCHS, data=(X, Y), **settings):
    given, targets = (library.array(array) for array in data)
    params = NETWORK.init(seed=0, like=given)
    settings = {"optimizer": adam(0.01), "batch_size": 16, "seed": 1, **settings}
    if settings.get("validation_data"):
        settings["validation_data"] = tuple(map(library.array, settings["validation_data"]))
    return train(NETWORK, params, given, targets, epochs=epochs, **settings)


def lion(learning_rate):
    """An optimizer of a user's own, with a number and None in its state."""

    def init(xp, params):
        return {"t": 0, "nothing": None, "m": tuple((xp.zeros_like(w), xp.zeros_like(b)) for w, b in params)}

    def update(xp, params, gradients, state, rate):
        new, m = [], []
        for (w, b), (dw, db), (mw, mb) in zip(params, gradients, state["m"]):
            new.append((w - rate * xp.sign(0.9 * mw + 0.1 * dw), b - rate * xp.sign(0.9 * mb + 0.1 * db)))
            m.append((0.99 * mw + 0.01 * dw, 0.99 * mb + 0.01 * db))
        return tuple(new), {"t": state["t"] + 1, "nothing": None, "m": tuple(m)}

    return Optimizer(init, update, learning_rate)


HELD = (X[:20], Y[:20])
WAYS = {
    "adam": lambda: {},
    "full batch": lambda: {"batch_size": None, "optimizer": gradient_descent(0.1)},
    "schedule": lambda: {"optimizer": momentum(cosine(0.1, EPOCHS)), "seed": np.random.default_rng(5)},
    "decay": lambda: {"optimizer": decoupled_weight_decay(adam(cosine(0.01, 8)), 0.1), "shuffle": False},
    "own optimizer": lambda: {"optimizer": lion(0.003), "seed": np.random.RandomState(np.random.MT19937(6))},
    "best epoch": lambda: {
        **{"validation_data": HELD, "metrics": ["r2"], "optimizer": adam(0.05)},
        "early_stopping": EarlyStopping("val_r2", n_iter_no_change=2),
    },
    "stopped": lambda: {"early_stopping": EarlyStopping("loss", n_iter_no_change=2, tol=0.05)},
    "divided": lambda: {
        "early_stopping": EarlyStopping("loss", n_iter_no_change=1, tol=0.05, divide_rate=3.0)
    },
    "callback": lambda: {"callback": lambda history, params: len(history) == 9},
}


@pytest.mark.sampled(4)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("n_first", [1, 7])
def test_n_epochs_and_m_epochs_are_n_plus_m_epochs(library, way, n_first, path):
    whole = run(library, **WAYS[way]())
    assert len(whole.history) == {"stopped": 7, "callback": 9, "best epoch": 4}.get(way, EPOCHS)
    settings = WAYS[way]()
    first = run(library, n_first, **settings, checkpoint=Checkpoint(path, every_epochs=1))
    assert_same(run(library, **settings, resume=first), whole)
    again = run(library, **WAYS[way](), checkpoint=path, resume=True)
    assert_same(again, whole)
    # One that has ended is as it was.
    assert_same(run(library, **WAYS[way](), resume=path), whole)
    assert_same(run(library, **WAYS[way](), resume=again), whole)


def test_a_shared_generator_is_left_where_it_would_be(library, path):
    whole, first, other = (np.random.default_rng(3) for _ in range(3))
    run(library, seed=whole)
    run(library, 5, seed=first, checkpoint=path)
    run(library, seed=other, resume=path)
    assert whole.bit_generator.state == other.bit_generator.state


@pytest.mark.parametrize("kind", ["MT19937", "PCG64", "PCG64DXSM", "Philox", "SFC64"])
def test_generators_of_each_kind_go_on(kind, path):
    def seed():
        random = np.random.Generator(getattr(np.random, kind)(7))
        random.integers(2**31, size=3, dtype=np.uint32)  # half of 64 bits is left for the next one
        return random

    numpy = LIBRARIES["numpy"]()
    whole = run(numpy, seed=seed())
    run(numpy, 5, seed=seed(), checkpoint=path)
    assert_same(run(numpy, seed=0, resume=path), whole)


@pytest.mark.parametrize("layout", ["F", "view", "int", "map"])
def test_data_of_every_layout_go_on(library, layout, path, tmp_path):
    given = X
    if layout == "int":
        given = np.round(3.0 * X)
    first = run(library, 5, data=(given, Y), checkpoint=path)
    if library.xp is np and layout != "int":
        given = {"F": np.asfortranarray(X), "view": np.repeat(X, 2, axis=0)[::2]}.get(layout)
        if layout == "map":
            np.save(tmp_path / "X.npy", X)
            given = np.load(tmp_path / "X.npy", mmap_mode="r")
        params = NETWORK.init(seed=0, like=X)
        more = train(
            NETWORK, params, given, Y, epochs=EPOCHS, optimizer=adam(0.01), batch_size=16, seed=1, resume=path
        )
        assert_same(more, run(library, resume=first))
    else:
        assert_same(run(library, data=(given, Y), resume=path), run(library, data=(given, Y)))


def test_a_training_begun_in_one_library_goes_on_in_another(library, path):
    numpy = LIBRARIES["numpy"]()
    begun = run(library, 5, **WAYS["best epoch"](), checkpoint=path)
    here, there = (run(lib, **WAYS["best epoch"](), resume=path) for lib in (numpy, library))
    assert here.history[:5] == begun.history == there.history[:5]
    np.testing.assert_allclose(here.history["loss"], there.history["loss"], rtol=1e-9)
    for left, right in zip(host_arrays(here.params), host_arrays(there.params)):
        assert type(left) is np.ndarray
        np.testing.assert_allclose(left, right, rtol=1e-7, atol=1e-9)
    moved = run(numpy, **WAYS["best epoch"](), resume=begun)
    assert_same(moved, here)


def test_what_was_done_is_not_done_again(path):
    numpy, seen = LIBRARIES["numpy"](), []
    run(numpy, 5, checkpoint=path)
    run(numpy, callback=lambda history, params: seen.append(len(history)), resume=path)
    assert seen == list(range(6, EPOCHS + 1))

    rates = []
    optimizer = gradient_descent(lambda epoch: rates.append(epoch) or 0.1)
    half = run(numpy, 5, optimizer=optimizer)
    run(numpy, optimizer=optimizer, resume=half)
    assert sorted(set(rates)) == list(range(EPOCHS))
    assert len(rates) == EPOCHS


def test_a_checkpoint_is_a_model(library, path):
    result = run(library, **WAYS["best epoch"](), checkpoint=path)
    network, params = load_model(path)
    assert network == NETWORK
    for left, right in zip(host_arrays(params), host_arrays(result.params)):
        np.testing.assert_array_equal(left, right)


def test_what_train_returns_is_saved_with_its_progress(library, path):
    first = run(library, 5)
    save_model(path, (NETWORK, first), with_progress=True)
    assert_same(run(library, resume=path), run(library))
    save_model(path, (NETWORK, first))
    with pytest.raises(ModelFileError, match="it has no progress to resume from: it is a model alone"):
        run(library, resume=path)
    with pytest.raises(
        ValueError, match="`model` must be a tuple .network, trained.*`with_progress` is True"
    ):
        save_model(path, (NETWORK, first.params), with_progress=True)


def test_results_are_tuples_of_two_that_can_be_pickled(library):
    import pickle

    first = run(library, 5)
    params, history = first
    assert (params, history) == (first.params, first.history)
    if library.name == "strict":
        return  # its arrays cannot be pickled
    assert_same(run(library, resume=pickle.loads(pickle.dumps(first))), run(library))


@pytest.fixture
def numpy():
    return LIBRARIES["numpy"]()


# When they are written.


def stages(checkpoint, numpy, epochs=EPOCHS, **settings):
    """Return the numbers of epochs of the checkpoints that a training writes."""
    written, write = [], checkpoint_files.Checkpoints._write

    def noted(self, content, stage):
        written.append(stage[0])
        write(self, content, stage)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_files.Checkpoints, "_write", noted)
        run(numpy, epochs, checkpoint=checkpoint, callback=lambda *_: None, **settings)
    return written


@pytest.fixture
def at_once(monkeypatch):
    """Let trainings wait until a checkpoint is written, so that what others do then is done to this one."""
    write = checkpoint_files.Checkpoints.write

    def write_and_wait(self, progress):
        write(self, progress)
        self._writer.join()

    monkeypatch.setattr(checkpoint_files.Checkpoints, "write", write_and_wait)


def test_they_are_written_every_so_many_epochs(path, numpy, monkeypatch, at_once):
    assert stages(Checkpoint(path, every_epochs=5), numpy) == [5, 10, 12]
    assert stages(Checkpoint(path, every_epochs=5, overwrite=True), numpy, 10) == [5, 10]
    assert stages(Checkpoint(path, every_seconds=0.0, overwrite=True), numpy, 4) == [1, 2, 3, 4]
    assert stages(Checkpoint(path, overwrite=True), numpy) == [12]  # a minute has not passed
    now = iter(range(0, 10**6, 20))
    monkeypatch.setattr(checkpoint_files.time, "monotonic", lambda: next(now))
    assert stages(Checkpoint(path, overwrite=True), numpy, 10)[:2] == [3, 6]


def test_the_training_goes_on_while_one_is_written(path, numpy, monkeypatch):
    replace = checkpoint_files.OwnedFile.replace
    may_write, seen = threading.Event(), []

    def slow(self, write):
        if threading.current_thread() is not threading.main_thread():
            assert may_write.wait(60)
        return replace(self, write)

    def callback(history, params):
        seen.append(len(history))
        if len(history) == EPOCHS:
            may_write.set()

    monkeypatch.setattr(checkpoint_files.OwnedFile, "replace", slow)
    result = run(numpy, checkpoint=Checkpoint(path, every_epochs=1), callback=callback)
    assert seen == list(range(1, EPOCHS + 1))
    # What was written in the end is whole, and what was written then was not changed meanwhile.
    assert_same(run(numpy, resume=path), result)
    before = run(numpy, 1)
    model, _ = checkpoint_files.read_checkpoint(path.with_name("run.mlpx.1"))
    for left, right in zip(host_arrays(model.params), host_arrays(before.params), strict=True):
        np.testing.assert_array_equal(left, right)


def test_the_last_ones_are_kept(path, numpy, at_once):
    for keep, names in ((1, ["run.mlpx"]), (3, ["run.mlpx", "run.mlpx.1", "run.mlpx.2"])):
        rule = Checkpoint(path, every_epochs=3, keep=keep, overwrite=True)
        assert stages(rule, numpy)[-1] == EPOCHS
        assert sorted(each.name for each in path.parent.iterdir()) == names
    for name in names:
        assert_same(run(numpy, resume=path.with_name(name)), run(numpy))


def test_an_interrupt_leaves_the_last_whole_epoch(path, numpy):
    def callback(history, params):
        if len(history) == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(TrainingInterruptedWarning):
        result = run(numpy, checkpoint=path, callback=callback)
    assert len(result.history) >= 6
    assert_same(run(numpy, resume=path), run(numpy))
    assert_same(run(numpy, resume=result), run(numpy))


def test_an_interrupt_between_the_epochs_that_are_remembered_does_too(path, numpy, monkeypatch):
    monkeypatch.setattr("mlp_xp._training.loop.SECONDS_BETWEEN_BOUNDARIES", 1000.0)

    def callback(history, params):
        if len(history) == 6:
            signal.raise_signal(signal.SIGINT)

    with pytest.warns(TrainingInterruptedWarning):
        result = run(numpy, checkpoint=Checkpoint(path, every_epochs=4), callback=callback)
    assert len(result.history) == 6
    assert checkpoint_files.read_checkpoint(path)[1]["history"]["n_epochs"] == 4
    for resume in (path, result):
        resumed = run(numpy, resume=resume)
        assert_same(resumed, run(numpy))
        assert_same(run(numpy, resume=resumed), resumed)


def test_an_error_leaves_the_last_whole_epoch(path, numpy):
    def callback(history, params):
        if len(history) == 6:
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        run(numpy, checkpoint=path, callback=callback)
    model, progress = checkpoint_files.read_checkpoint(path)
    assert progress["history"]["n_epochs"] == 5
    assert_same(run(numpy, resume=path), run(numpy))


def test_divergence_leaves_the_last_finite_epoch(path, numpy):
    optimizer = gradient_descent(lambda epoch: 0.1 if epoch < 6 else 1e200)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DivergenceError) as caught:
            run(numpy, optimizer=optimizer, checkpoint=path)
    assert caught.value.epoch == 7
    _, progress = checkpoint_files.read_checkpoint(path)
    assert progress["history"]["n_epochs"] <= 6
    resumed = run(numpy, optimizer=gradient_descent(0.1), resume=path)
    assert_same(resumed, run(numpy, optimizer=gradient_descent(0.1)))


def test_a_training_that_ends_in_its_first_step_leaves_no_file(path, numpy):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DivergenceError):
            run(numpy, optimizer=gradient_descent(1e300), checkpoint=path)
    assert list(path.parent.iterdir()) == []
    with pytest.raises(ValueError, match="`batch_size`"):
        run(numpy, batch_size=0, checkpoint=path)
    assert list(path.parent.iterdir()) == []


# What does not fit.


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"epochs": 4}, "`epochs` must be at least 5, the epochs done before, and counts all, got 4"),
        ({"data": (X[:50], Y[:50])}, "`X` must have 60 rows as before, got 50|must be those of the training"),
        ({"data": (X + 1e-9, Y)}, "`X`, `y` and `sample_weight` must be those of the training to resume"),
        ({"data": (X, -Y)}, "`X`, `y` and `sample_weight` must be those of the training to resume"),
        ({"sample_weight": np.ones(60)}, "`sample_weight` must be those of the training to resume"),
        ({"optimizer": momentum(0.1)}, "`optimizer` must have a state as that of the training to resume"),
        (
            {"metrics": ["r2"]},
            r"must have the columns \['loss'\] as before, got arguments for \['loss', 'r2'\]",
        ),
    ],
)
def test_what_is_another_than_before_is_refused(changes, words, path, numpy):
    run(numpy, 5, checkpoint=path)
    with pytest.raises(ValueError, match=words):
        run(numpy, **changes, resume=path)


def test_another_network_is_refused(path, numpy):
    first = run(numpy, 5, checkpoint=path)
    other = Network((3, 8, 1), activation="relu", loss="squared_error", alpha=1e-3)
    settings = {"optimizer": adam(), "epochs": EPOCHS, "batch_size": 16}
    with pytest.raises(ValueError, match="`network` must be that of the checkpoint, .*tanh.* got .*relu"):
        train(other, other.init(0, like=X), X, Y, **settings, resume=path)
    wide = Network((3, 9, 1), activation="tanh", loss="squared_error", alpha=1e-3)
    with pytest.raises(ValueError, match=r"`resume` must hold parameters .*\(3, 9\).* as `params` has"):
        train(wide, wide.init(0, like=X), X, Y, **settings, resume=first)
    single = X.astype(np.float32)
    with pytest.raises(ValueError, match=r"`resume` must hold parameters .*float32.* as `params` has"):
        train(NETWORK, NETWORK.init(0, like=single), single, Y.astype(np.float32), **settings, resume=path)


@pytest.mark.parametrize(
    ("arguments", "kind", "words"),
    [
        ({"resume": True}, ValueError, "`checkpoint` must be given where `resume` is True"),
        (
            {"resume": 3},
            TypeError,
            "`resume` must be what `train` has returned, a path, or a truth value, got 3",
        ),
        ({"checkpoint": 3}, TypeError, "`checkpoint` must be a Checkpoint, or a path, got 3"),
        ({"resume": "nowhere/run.mlpx"}, FileNotFoundError, "nowhere/run.mlpx"),
        (
            {"checkpoint": "nowhere/run.mlpx"},
            FileNotFoundError,
            "`checkpoint` must be a file that can be wri",
        ),
        ({"checkpoint": Path("/proc/run.mlpx")}, OSError, "`checkpoint` must be a file that can be written"),
    ],
)
def test_wrong_arguments_are_refused_before_the_training(
    arguments, kind, words, numpy, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(kind, match=words):
        run(numpy, **arguments)


def test_both_rules_at_once_are_refused():
    with pytest.raises(ValueError, match="`every_seconds` must be None where `every_epochs` is given"):
        Checkpoint("x", every_seconds=1.0, every_epochs=1)


def test_what_no_file_can_hold_is_refused_before_the_training(path):
    from mlp_xp import Activation

    own = Activation(lambda xp, z: z, lambda xp, z, a, delta: delta)
    network, seen = Network((3, 2, 1), activation=own, loss="squared_error"), []
    with pytest.raises(TypeError, match="`activation` must be a built-in Activation to be in a file"):
        train(
            network,
            network.init(0, like=X),
            X,
            Y,
            optimizer=adam(),
            epochs=3,
            checkpoint=path,
            callback=lambda *arguments: seen.append(arguments),
        )
    assert not seen
    assert not path.exists()


# Files that others touch, and disks that fail.


def test_a_file_of_another_training_stays(path, numpy):
    first = run(numpy, 5, checkpoint=path)
    content = path.read_bytes()
    with pytest.raises(FileExistsError, match="`checkpoint` exists already: `resume=True` goes on from it"):
        run(numpy, checkpoint=path)
    assert path.read_bytes() == content
    # To resume from another file does not make this one its own.
    with pytest.raises(FileExistsError):
        run(numpy, checkpoint=path, resume=first)
    run(numpy, 2, checkpoint=Checkpoint(path, overwrite=True))
    assert checkpoint_files.read_checkpoint(path)[1]["history"]["n_epochs"] == 2
    assert [each.name for each in path.parent.iterdir() if each.name != path.name] in ([], ["run.mlpx.1"])


IN_ANOTHER_PROCESS = """
import sys, warnings
sys.path.insert(0, sys.argv[3])
from conftest import LIBRARIES
from test_checkpoints import run
from mlp_xp import Checkpoint
try:
    run(LIBRARIES["numpy"](), checkpoint=Checkpoint(sys.argv[1], overwrite=sys.argv[2] == "overwrite"),
        resume=sys.argv[2] == "resume")
except OSError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("how", ["begin", "overwrite", "resume"])
def test_two_processes_do_not_write_one_file(how, path, numpy):
    said = []

    def callback(history, params):
        if len(history) == 4:
            here = str(Path(__file__).parent)
            words = [sys.executable, "-c", IN_ANOTHER_PROCESS, str(path), how, here]
            environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST")}
            done = subprocess.run(words, capture_output=True, text=True, timeout=120, env=environment)
            said.append(done.stdout + done.stderr)

    result = run(numpy, checkpoint=Checkpoint(path, every_epochs=1), callback=callback)
    wanted = "FileExistsError" if how == "begin" else "another training writes it"
    assert wanted in said[0], said
    assert_same(result, run(numpy))
    assert_same(run(numpy, resume=path), result)
    # The lock ends with the training.
    run(numpy, checkpoint=path, resume=True)


@pytest.mark.parametrize("damage", ["replaced", "truncated", "removed"])
def test_a_file_that_somebody_changes_is_written_again(damage, path, numpy, at_once):
    def callback(history, params):
        if len(history) == 6:
            if damage == "replaced":
                path.with_name("other").write_bytes(b"other")
                path.with_name("other").replace(path)
            elif damage == "truncated":
                os.truncate(path, 100)
            else:
                path.unlink()
        if len(history) == 9:
            # At each moment one is good.
            kept = [each for each in path.parent.iterdir() if not each.name.startswith(".")]
            good = [each for each in kept if _is_good(each)]
            assert good

    rule = Checkpoint(path, every_epochs=2)
    with pytest.warns(CheckpointWarning, match="it was not as it was written last, and is replaced"):
        result = run(numpy, checkpoint=rule, callback=callback)
    assert_same(result, run(numpy))
    assert_same(run(numpy, resume=path), result)


def _is_good(path):
    try:
        checkpoint_files.read_checkpoint(path)
    except ModelFileError:
        return False
    return True


@contextlib.contextmanager
def failing_writes(monkeypatch, error, failing):
    write = checkpoint_files.write_prepared

    def failing_write(path, content):
        if failing():
            path.write_bytes(b"a part")
            raise error
        write(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files, "write_prepared", failing_write)
        yield


@pytest.mark.parametrize("end", [8, EPOCHS + 1])
def test_a_full_disk_does_not_end_the_training(end, path, numpy, monkeypatch, at_once):
    n_done = 0

    def callback(history, params):
        nonlocal n_done
        n_done = len(history)

    full = OSError(errno.ENOSPC, "No space left on device")
    rule = Checkpoint(path, every_epochs=1)
    with (
        failing_writes(monkeypatch, full, lambda: 4 <= n_done < end),
        pytest.warns(CheckpointWarning, match=r"could not be written \(No space left on device\)"),
    ):
        result = run(numpy, checkpoint=rule, callback=callback)
    assert_same(result, run(numpy))
    names = {each.name for each in path.parent.iterdir()}
    assert names == {"run.mlpx", "run.mlpx.1"}
    n_epochs = checkpoint_files.read_checkpoint(path)[1]["history"]["n_epochs"]
    assert n_epochs == EPOCHS if end == 8 else n_epochs <= 4
    assert_same(run(numpy, resume=path), result)


def test_a_disk_that_was_full_can_be_tried_again(path, numpy, monkeypatch):
    run(numpy, 2, checkpoint=path)
    rule, full = Checkpoint(path, overwrite=True), OSError(errno.ENOSPC, "No space left on device")
    with failing_writes(monkeypatch, full, lambda: True), pytest.raises(OSError, match="No space left"):
        run(numpy, checkpoint=rule)
    assert checkpoint_files.read_checkpoint(path)[1]["history"]["n_epochs"] == 2
    assert_same(run(numpy, checkpoint=rule), run(numpy))


def test_the_one_before_is_not_replaced_by_another_training(path, numpy, at_once):
    result = run(numpy, checkpoint=Checkpoint(path, every_epochs=5))
    path.unlink()
    content = path.with_name("run.mlpx.1").read_bytes()
    with pytest.raises(FileExistsError, match="exists already"):
        run(numpy, checkpoint=path)
    assert path.with_name("run.mlpx.1").read_bytes() == content
    assert_same(run(numpy, checkpoint=path, resume=True), result)
    assert _is_good(path)


def test_a_damaged_last_one_is_mended_by_a_training_that_has_ended(path, numpy, at_once):
    result = run(numpy, checkpoint=Checkpoint(path, every_epochs=12))
    former = path.with_name("run.mlpx.1")
    former.write_bytes(path.read_bytes())
    os.truncate(path, 100)
    with pytest.warns(CheckpointWarning, match="the one before it is taken"):
        run(numpy, checkpoint=path, resume=True)
    for each in (path, former):
        assert_same(run(numpy, resume=each), result)


def test_one_that_cannot_be_read_is_left_for_the_one_before(path, numpy, monkeypatch, at_once):
    result = run(numpy, checkpoint=Checkpoint(path, every_epochs=5))
    read = checkpoint_files.read_model

    def failing(file):
        if file == path:
            raise OSError(errno.EIO, "Input/output error")
        return read(file)

    monkeypatch.setattr(checkpoint_files, "read_model", failing)
    with pytest.warns(CheckpointWarning, match="Input/output error; the one before it is taken"):
        assert_same(run(numpy, checkpoint=path, resume=True), result)


def test_patience_without_end_can_be_read_again(path, numpy):
    rule = EarlyStopping("loss", n_iter_no_change=np.inf)
    run(numpy, 5, early_stopping=rule, checkpoint=path)
    rewritten(path, of_stopping(n_no_change=2**21))
    assert checkpoint_files.read_checkpoint(path)[1]["early_stopping"]["n_no_change"] == 2**21


def test_an_interrupt_while_the_last_one_is_written_loses_nothing(path, numpy, monkeypatch):
    write = checkpoint_files.write_prepared

    def interrupted(path, file):
        if json.loads(file.metadata["progress"])["history"]["n_epochs"] == EPOCHS:
            signal.raise_signal(signal.SIGINT)
        write(path, file)

    monkeypatch.setattr(checkpoint_files, "write_prepared", interrupted)
    with pytest.warns(TrainingInterruptedWarning, match="interrupted when the training had ended"):
        result = run(numpy, checkpoint=path)
    assert_same(result, run(numpy))
    assert_same(run(numpy, checkpoint=path, resume=True), result)


def test_an_interrupt_at_the_beginning_lets_others_have_the_file(path, numpy, monkeypatch):
    run(numpy, 2, checkpoint=path)

    def interrupted(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_files.OwnedFile, "_remove_leftovers", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run(numpy, checkpoint=path, resume=True)
    assert_same(run(numpy, checkpoint=path, resume=True), run(numpy))


def test_the_rights_of_a_file_stay(path, numpy, at_once):
    run(numpy, 2, checkpoint=path)
    path.chmod(0o600)
    run(numpy, checkpoint=Checkpoint(path, every_epochs=2), resume=True)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_truth_value_in_an_optimizers_state_goes_on(path, numpy):
    inner = adam(0.01)
    own = Optimizer(
        lambda xp, params: (True, inner.init(xp, params)),
        lambda xp, params, gradients, state, rate: (lambda new: (new[0], (state[0], new[1])))(
            inner.update(xp, params, gradients, state[1], rate)
        ),
        0.01,
    )
    run(numpy, 5, optimizer=own, checkpoint=path)
    assert_same(run(numpy, optimizer=own, resume=path), run(numpy, optimizer=own))


def test_a_disk_that_is_full_from_the_beginning_is_known_before_the_training(path, numpy, monkeypatch):
    full, seen = OSError(errno.ENOSPC, "No space left on device"), []
    with (
        failing_writes(monkeypatch, full, lambda: True),
        pytest.raises(OSError, match="`checkpoint` must be a file that can be written: No space left"),
    ):
        run(numpy, checkpoint=path, callback=lambda *_: seen.append(1))
    assert not seen
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_state_that_cannot_be_copied_does_not_end_the_training(error, path, numpy, monkeypatch):
    begin = checkpoint_files.Checkpoints.begin

    def begin_and_fail(self, progress, resumed):
        begin(self, progress, resumed)

        def fails(progress):
            raise error

        self.describe = fails

    monkeypatch.setattr(checkpoint_files.Checkpoints, "begin", begin_and_fail)
    words = type(error).__name__ if not str(error) else "can't start new thread"
    with pytest.warns(CheckpointWarning, match=f"could not be written .{words}.; the training goes on"):
        result = run(numpy, checkpoint=Checkpoint(path, every_epochs=3))
    assert_same(result, run(numpy))


def test_warnings_that_are_errors_carry_what_was_trained(path, numpy, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    n_written = iter(range(100))
    with failing_writes(monkeypatch, full, lambda: next(n_written) > 0), warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(CheckpointWarning, match="No space left") as caught:
            run(numpy, checkpoint=path)
    assert caught.value.history == run(numpy).history
    for left, right in zip(host_arrays(caught.value.params), host_arrays(run(numpy).params)):
        np.testing.assert_array_equal(left, right)


def test_a_file_of_somebody_else_is_not_removed(path, numpy):
    def callback(history, params):
        path.unlink()
        path.write_bytes(b"mine")
        raise LookupError

    with pytest.raises(LookupError):
        run(numpy, checkpoint=path, callback=callback)
    assert path.read_bytes() == b"mine"


def test_a_folder_that_is_removed_does_not_end_the_training(tmp_path, numpy):
    import shutil

    folder = tmp_path / "runs"
    folder.mkdir()

    def callback(history, params):
        if len(history) == 4:
            shutil.rmtree(folder)

    with pytest.warns(CheckpointWarning, match="No such file or directory"):
        result = run(numpy, checkpoint=Checkpoint(folder / "run.mlpx", every_epochs=2), callback=callback)
    assert_same(result, run(numpy))


def test_a_checkpoint_stays_though_the_one_before_cannot_be_kept(path, numpy, monkeypatch):
    replace = Path.replace

    def refused(self, target):
        if str(target).endswith(".1"):
            raise PermissionError(13, "Permission denied", str(target))
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", refused)
    with pytest.warns(CheckpointWarning, match=r"the one before it could not be kept \(Permission denied\)"):
        run(numpy, 5, checkpoint=path)
    assert [each.name for each in path.parent.iterdir()] == ["run.mlpx"]
    assert_same(run(numpy, resume=path), run(numpy))


def test_a_model_that_is_being_saved_is_no_leftover(path, numpy):
    run(numpy, 5, checkpoint=path)
    with folders.atomic_write(path) as temporary:
        temporary.write_bytes(b"of another process")
        run(numpy, 6, checkpoint=path, resume=True)
        assert temporary.read_bytes() == b"of another process"


def test_what_killed_processes_leave_is_removed(path, numpy):
    run(numpy, 5, checkpoint=path)
    names = (f".run.mlpx.{'a' * 16}.partial", f".run.mlpx.{'b' * 16}.partial", ".run.mlpx.mine.partial")
    half, link, other = map(path.with_name, names)
    half.write_bytes(b"half of it")
    link.hardlink_to(path)
    other.write_bytes(b"somebody's")
    assert_same(run(numpy, checkpoint=path, resume=True), run(numpy))
    found = sorted(each.name for each in path.parent.iterdir())
    assert found == [".run.mlpx.mine.partial", "run.mlpx", "run.mlpx.1"]


def test_a_link_to_a_file_stays_a_link(tmp_path, numpy):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run.mlpx").symlink_to(tmp_path / "disk" / "real.mlpx")
    result = run(numpy, checkpoint=tmp_path / "run.mlpx")
    assert (tmp_path / "run.mlpx").is_symlink()
    assert_same(run(numpy, resume=tmp_path / "disk" / "real.mlpx"), result)


def test_file_systems_without_links_and_locks_do(path, numpy, monkeypatch, at_once):
    def unable(*arguments):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr("os.link", unable)
    monkeypatch.setattr("fcntl.flock", unable)
    result = run(numpy, checkpoint=Checkpoint(path, every_epochs=2))
    assert sorted(each.name for each in path.parent.iterdir()) == ["run.mlpx", "run.mlpx.1"]
    for name in ("run.mlpx", "run.mlpx.1"):
        assert_same(run(numpy, resume=path.with_name(name)), result)
    with pytest.raises(FileExistsError):
        run(numpy, checkpoint=path)


def test_without_locks_files_are_not_kept_open(path, numpy, monkeypatch, at_once):
    """As on Windows."""
    monkeypatch.setattr("mlp_xp._disk.owned_file.fcntl", None)

    opened = os.open

    def only_made(path, flags, *arguments):
        assert flags & os.O_CREAT, f"{path} is opened"
        return opened(path, flags, *arguments)

    monkeypatch.setattr("mlp_xp._disk.owned_file.os.open", only_made)
    monkeypatch.setattr("mlp_xp._disk.owned_file.sync_folder", lambda path: None)
    result = run(numpy, checkpoint=Checkpoint(path, every_epochs=2))
    assert_same(run(numpy, checkpoint=path, resume=True), result)


def test_a_damaged_last_one_is_left_for_the_one_before(path, numpy, at_once):
    run(numpy, 8, checkpoint=Checkpoint(path, every_epochs=3))
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(ModelFileError, match=r"run\.mlpx is not a model"):
        run(numpy, resume=path)
    with pytest.warns(CheckpointWarning, match=r"run\.mlpx is not a model .*; the one before it is taken"):
        result = run(numpy, checkpoint=Checkpoint(path, every_epochs=100), resume=True)
    assert_same(result, run(numpy))
    # The damaged one has not taken the place of the good one.
    assert _is_good(path)
    assert _is_good(path.with_name("run.mlpx.1"))
    for each in (path, path.with_name("run.mlpx.1")):
        each.write_bytes(content[:-1])
    with pytest.warns(CheckpointWarning), pytest.raises(ModelFileError):
        run(numpy, checkpoint=path, resume=True)


# Damage.


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 0x10]) + content[position + 1 :]


def test_a_flipped_bit_is_an_error_that_names_the_part(path, numpy):
    run(numpy, 5, checkpoint=path, **WAYS["best epoch"]())
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert {"layers.0.weight", "progress.order", "progress.optimizer_state.1"} <= set(header)
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        path.write_bytes(flip(content, 8 + length + (begin + end) // 2))
        with pytest.raises(ModelFileError, match=f"altered: the checksum of '{name}' is another one"):
            run(numpy, resume=path, **WAYS["best epoch"]())
        with pytest.raises(ModelFileError, match=name):
            load_model(path)
    for name in ("model", "progress"):
        text = json.loads(content[8 : 8 + length])["__metadata__"][name]
        position = content.index(json.dumps(text)[1:40].encode()) + 30
        path.write_bytes(flip(content, position))
        with pytest.raises(ModelFileError, match=f"of its text '{name}'|not valid JSON|decode"):
            load_model(path)


def mutated(content, random):
    """Return a file with some damage."""
    kind, position = random.randint(5), random.randint(len(content))
    if kind == 0:
        return content[:position]
    if kind == 1:
        return flip(content, position)
    if kind == 2:
        return content[:position] + random.bytes(random.randint(1, 40)) + content[position:]
    if kind == 3:
        return content[:position] + content[position + random.randint(1, 40) :]
    other = random.randint(len(content))
    size = random.randint(1, 200)
    return content[:position] + content[other : other + size] + content[position + size :]


def test_a_mutated_checkpoint_is_refused_or_the_same(path, numpy, request):
    import tracemalloc

    settings = WAYS["best epoch"]() | {"optimizer": adam(0.05)}
    run(numpy, 3, checkpoint=path, **settings)
    content, random = path.read_bytes(), np.random.RandomState(0)
    model, progress = checkpoint_files.read_checkpoint(path)
    known = repr((model.params, progress["order"], progress["optimizer_state"], progress["history"]))
    n_same = 0
    tracemalloc.start()
    for number in range(request.config.getoption("--mutations")):
        # A part of them in the header, which is short beside the state.
        damaged = mutated(content, random)
        path.write_bytes(damaged)
        tracemalloc.reset_peak()
        try:
            model, progress = checkpoint_files.read_checkpoint(path)
        except ModelFileError:
            pass
        else:
            found = model.params, progress["order"], progress["optimizer_state"], progress["history"]
            assert repr(found) == known, number
            n_same += 1
        assert tracemalloc.get_traced_memory()[1] < 2**21 + 30 * len(damaged), number
    tracemalloc.stop()
    assert n_same < number / 4


def rewritten(path, change):
    """Change the progress in a file, whose checksums are right afterwards: somebody else's file."""
    model, _ = checkpoint_files.read_checkpoint(path)
    progress = dict(model.progress)
    change(progress)
    model_files.write_prepared(path, model_files.prepare(model._replace(progress=progress)))


def put(**values):
    return lambda progress: progress.update(values)


def of_stopping(**values):
    return lambda progress: progress["early_stopping"].update(values)


def of_history(**values):
    return lambda progress: progress["history"].update(values)


BAD_STATE = np.random.Generator(np.random.Philox(0))
CRAFTED = {
    "order beyond": (put(order=np.arange(1, 61)), "`progress.order` must hold the number of each row"),
    "order below": (put(order=np.arange(-1, 59)), "`progress.order` must hold the number of each row"),
    "order twice": (put(order=np.zeros(60, np.int64)), "must hold the number of each row once"),
    "order of floats": (put(order=np.zeros(60)), "`progress.order` must be a vector of integers"),
    "no order": (put(order=[1, 2]), "`progress.order` must be of another type"),
    "a key more": (put(more=1), "`progress` must have params, optimizer_state"),
    "params": (put(params=[[np.zeros((3, 8)), np.zeros(8)]]), "must be arrays of the shapes and the dtype"),
    "params of text": (put(params="x"), "`progress.params` must be of another type"),
    "leaf": (put(optimizer_state=["x"]), r"`optimizer_state\[0\]` must be an array or a number"),
    "no rule": (of_stopping(rule={"monitor": 3}), "`monitor` must be the name of a column"),
    "rule of code": (of_stopping(rule={"__class__": "os"}), "unexpected keyword argument"),
    "endless number": (put(optimizer_state=[10**400]), "must be a number of 64 bits"),
    "far position": (put(position=[10**30, 0, 0.5, 0]), "must be an integer >= 0 and < 2..63"),
    "many divisions": (
        of_stopping(n_divisions=2**40),
        "`progress.early_stopping.n_divisions` must be from 0",
    ),
    "sign": (of_stopping(sign=7.0), "must have a known sign and event"),
    "columns": (of_history(columns=[np.zeros(7)] * 4), "with a number for each epoch"),
    "many epochs": (of_history(n_epochs=2**62), "with a number for each epoch"),
    "names": (of_history(names=["loss", "loss", "a", "b"]), "must have a name for each column"),
    "epoch": (of_history(names=["loss", "epoch", "a", "b"]), "must have a name for each column"),
    "position": (put(position=[1, 2]), "`progress.position` must be n_batches"),
    "negative position": (put(position=[-1, 0, 0.5, 0]), "progress.position.n_batches"),
}


@pytest.mark.parametrize("name", CRAFTED)
def test_a_crafted_progress_is_refused(name, path, numpy):
    change, words = CRAFTED[name]
    run(numpy, 3, checkpoint=path, **WAYS["best epoch"]())
    rewritten(path, change)
    with pytest.raises(ModelFileError, match=words):
        run(numpy, resume=path, **WAYS["best epoch"]())


@pytest.mark.parametrize(
    "text", ['{"tensor": "progress.order"}', '{"$tuple": []}', "[]", "{}", "3", '{"$array": 3}']
)
def test_a_crafted_text_is_refused(text, path, numpy):
    run(numpy, 3, checkpoint=path)
    model, _ = checkpoint_files.read_checkpoint(path)
    file = model_files.prepare(model)
    kept = {name: array for name, array in file.tensors.items() if name in text or "layers" in name}
    model_files.write_prepared(path, model_files.PreparedFile({**file.metadata, "progress": text}, kept))
    with pytest.raises(ModelFileError):
        run(numpy, resume=path)


def test_a_progress_without_generator_is_refused(path, numpy):
    run(numpy, 3, checkpoint=path)
    rewritten(path, put(random=None))
    with pytest.raises(ValueError, match="`resume` must hold the state of a generator"):
        run(numpy, resume=path)


def test_a_deep_progress_is_refused(path, numpy):
    run(numpy, 3, checkpoint=path)
    model, _ = checkpoint_files.read_checkpoint(path)
    file = model_files.prepare(model)
    for depth in (100, 450, 600, 800, 980, 5000):
        text = file.metadata["progress"].replace(
            '"optimizer_state": [', '"optimizer_state": [' + "[" * depth + "]" * depth + ","
        )
        model_files.write_prepared(
            path, model_files.PreparedFile({**file.metadata, "progress": text}, file.tensors)
        )
        with pytest.raises(ModelFileError):
            run(numpy, resume=path)


def test_tensors_that_overlap_are_refused(path, numpy):
    run(numpy, 3, checkpoint=path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    header["progress.more"] = header["progress.order"]
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(ModelFileError, match="must fill the file|checksums"):
        run(numpy, resume=path)
    named = {name: entry for name, entry in header.items() if name != "progress.more"}
    named["progress.order"] = header["progress.optimizer_state.1"] | {"dtype": "F64"}
    text = json.dumps(named).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    with pytest.raises(ModelFileError, match="must fill the file"):
        run(numpy, resume=path)


def test_a_crafted_optimizer_state_is_refused(path, numpy):
    run(numpy, 3, checkpoint=path)
    rewritten(path, lambda progress: progress["optimizer_state"].__setitem__(0, np.zeros((2**8, 1))))
    with pytest.raises(ValueError, match="`optimizer` must have a state as that of the training"):
        run(numpy, resume=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.update(buffer_pos=5), "`buffer_pos` is out of its range"),
        (lambda state: state.update(buffer_pos=-1), "`buffer_pos` is out of its range"),
        (lambda state: state.update(uinteger=2**32), "`uinteger` is out of its range"),
        (lambda state: state.update(bit_generator="os.system"), "`bit_generator` must be one of"),
        (lambda state: state.update(bit_generator="PCG64"), "`state`|must have"),
        (lambda state: state.pop("buffer"), "must have"),
        (lambda state: state.update(buffer=[1, 2, 3, 4]), "`buffer` must be numpy.ndarray"),
        (lambda state: state["state"].update(key=np.zeros(3, np.uint64)), "`key` must be uint64 of shape"),
    ],
)
def test_a_crafted_generator_is_refused(change, words):
    from mlp_xp._disk.json_codec import decode, encode

    state = np.random.Philox(0).state
    change(state)
    with pytest.raises((ValueError, TypeError), match=words):
        decode({"$generator": encode("state", state)})


# Killed processes.


needs_forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="the script forks")


@needs_forks
@pytest.mark.sampled(4)
@pytest.mark.parametrize("options", [["3"], ["3", "no-links"], ["2"], ["1"]], ids=" ".join)
def test_a_process_may_end_before_any_operation_on_files(options):
    script = Path(__file__).with_name("killed_writers.py")
    done = subprocess.run([sys.executable, str(script), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert min(map(int, done.stdout.split())) > 30  # so many operations there were


CASES = {
    "numpy": tuple(SCENARIOS),
    "torch": ("adam", "early stopping", "iterator", "score", "lone tool"),
    "jax": ("schedule", "score"),
}
"""Libraries, and names of scenarios; the first third stands for all in the quick suite."""


@needs_forks
@pytest.mark.parametrize("library_name", CASES)
@pytest.mark.parametrize("part", ["first", pytest.param("others", marks=pytest.mark.slow)])
def test_killed_trainings_end_where_others_do(library_name, part, request):
    pytest.importorskip("polars")
    need(library_name, request)
    n_kills = request.config.getoption("--kills")
    n_first = -(-len(CASES[library_name]) // 3)
    is_first = part == "first"
    if not is_first and library_name != "numpy" and n_kills < 200:
        pytest.skip("NumPy's stand for all; --kills 200 kills them")
    names = CASES[library_name][:n_first] if is_first else CASES[library_name][n_first:]
    n_each = -(-n_kills // (5 if is_first and n_kills < 200 else 20))
    cases = [f"{library_name}:{name}" for name in names]
    script = Path(__file__).with_name("killed_trainings.py")
    words = [sys.executable, str(script), "7", str(n_each), *cases]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(cases)
    for report in reports:
        assert report.get("kills") == n_each, report
        assert report["equal"], report
        assert report["leftovers"] == [], report
