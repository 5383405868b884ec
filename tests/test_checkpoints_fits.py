"""Tests of checkpoints of fits, of streams and of L-BFGS, and of models saved with their progress."""

import copy
import signal
import warnings

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("safetensors")

from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mlp_xp import (
    Checkpoint,
    CheckpointWarning,
    MLPClassifier,
    MLPRegressor,
    ModelFileError,
    Network,
    TrainingInterruptedWarning,
    adam,
    load_model,
    save_model,
    to_host,
    train,
)
from mlp_xp._training.checkpoint_files import Checkpoints, read_checkpoint

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

RANDOM = np.random.RandomState(1)
X = RANDOM.standard_normal((90, 4))
VALUES = np.sin(X[:, 0]) + X[:, 1] * X[:, 2]
LABELS = np.where(VALUES > 0.2, "high", np.where(VALUES < -0.2, "low", "middle"))
LEARNED = (
    *("loss_curve_", "val_loss_curve_", "validation_scores_", "n_iter_", "t_", "loss_", "best_loss_"),
    *("best_validation_score_", "n_features_in_", "n_outputs_", "out_activation_", "history_"),
)


@pytest.fixture(autouse=True)
def _each_epoch_is_remembered(monkeypatch):
    monkeypatch.setattr("mlp_xp._training.loop.SECONDS_BETWEEN_BOUNDARIES", 0.0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fit.mlpx"


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    """Let trainings wait until a checkpoint is written."""
    write = Checkpoints.write

    def write_and_wait(self, progress):
        write(self, progress)
        self._writer.join()

    monkeypatch.setattr(Checkpoints, "write", write_and_wait)


def assert_same(one, other):
    """Assert that two estimators have learned the same, bit for bit."""
    assert type(one) is type(other)
    for name in LEARNED:
        assert getattr(one, name) == getattr(other, name), name
    for left, right in zip([*one.coefs_, *one.intercepts_], [*other.coefs_, *other.intercepts_], strict=True):
        assert type(left) is type(right)
        np.testing.assert_array_equal(to_host(left), to_host(right))


SETTINGS = {"hidden_layer_sizes": (6, 5), "batch_size": 20, "max_iter": 12, "random_state": 0, "tol": 1e-3}
KINDS = {
    "adam": (MLPClassifier, {}),
    "score": (MLPClassifier, {"early_stopping": True, "n_iter_no_change": 3, "learning_rate_init": 0.05}),
    "loss": (MLPRegressor, {"early_stopping": "loss", "n_iter_no_change": 3, "learning_rate_init": 0.05}),
    "adaptive": (
        MLPRegressor,
        {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.1, "n_iter_no_change": 1},
    ),
    "invscaling": (MLPClassifier, {"solver": "sgd", "learning_rate": "invscaling", "shuffle": False}),
    "whole": (MLPRegressor, {"batch_size": 90, "weight_decay": 0.01}),
    "weighted": (MLPClassifier, {"class_weight": "balanced"}),
    "poisson": (MLPRegressor, {"loss": "poisson"}),
}


def made(kind, **settings):
    maker, given = KINDS[kind]
    return maker(**copy.deepcopy({**SETTINGS, **given, **settings}))


def targets(kind):
    if KINDS[kind][0] is MLPClassifier:
        return LABELS
    return np.abs(VALUES) if kind == "poisson" else VALUES


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fit_that_goes_on_ends_where_it_would_have(library, kind, path):
    given, y = library.array(X), targets(kind)
    whole = made(kind).fit(given, y)
    made(kind, max_iter=5).fit(given, y, checkpoint=path)
    resumed = made(kind).fit(given, y, checkpoint=Checkpoint(path, every_epochs=2), resume=True)
    assert_same(resumed, whole)
    if library.xp is np:
        assert_same(load_model(path), whole)
        np.testing.assert_array_equal(load_model(path).predict(X), whole.predict(X))
    # Fitted on its host by another library's arrays, it goes on from there.
    assert_same(made(kind).fit(given, y, resume=path), whole)


def test_validation_data_of_its_own_go_on(library, path):
    given = library.array(X)
    held = {"X_val": library.array(X[:30]), "y_val": LABELS[:30]}
    whole = made("adam").fit(given, LABELS, **held)
    made("adam", max_iter=5).fit(given, LABELS, **held, checkpoint=path)
    assert_same(made("adam").fit(given, LABELS, **held, resume=path), whole)
    with pytest.raises(ValueError, match=r"must have the columns \['loss', 'val_loss', 'val_accuracy'\] as"):
        made("adam").fit(given, LABELS, resume=path)


@pytest.mark.parametrize("kind", ["adam", "score", "whole"])
def test_a_shared_generator_is_left_where_it_would_be(kind, path):
    whole, first, other = (np.random.RandomState(5) for _ in range(3))
    expected = made(kind, random_state=whole).fit(X, targets(kind))
    made(kind, random_state=first, max_iter=5).fit(X, targets(kind), checkpoint=path)
    resumed = made(kind, random_state=other).fit(X, targets(kind), resume=path)
    assert_same(resumed, expected)
    assert other.randint(2**31) == whole.randint(2**31)


def test_the_generator_of_numpy_itself_is_not_touched(path):
    made("score", random_state=None, max_iter=4).fit(X, LABELS, checkpoint=path)
    one, other = (made("score", random_state=None).fit(X, LABELS, resume=path) for _ in range(2))
    assert_same(one, other)
    assert one.loss_curve_[:4] == load_model(path).loss_curve_


@pytest.mark.sampled(4)
@pytest.mark.parametrize("kind", ["adam", "loss", "invscaling"])
def test_a_warm_start_that_is_cut_goes_on(library, kind, path):
    given, y = library.array(X), targets(kind)
    first = made(kind, warm_start=True, max_iter=3).fit(given, y)
    whole = copy.deepcopy(first).set_params(max_iter=12).fit(given, y)
    first.set_params(max_iter=4).fit(given, y, checkpoint=path)
    resumed = made(kind, warm_start=True).fit(given, y, resume=path)
    assert_same(resumed, whole)
    # And further fits go on from both alike.
    assert_same(resumed.fit(given, y), whole.fit(given, y))


def test_what_a_fit_was_before_does_not_matter(path):
    whole = made("adam").fit(X, LABELS)
    made("adam", max_iter=5).fit(X, LABELS, checkpoint=path)
    table = pytest.importorskip("pandas").DataFrame(np.ones((30, 2)), columns=["a", "b"])
    other = made("adam").fit(table, LABELS[:30])
    assert_same(other.fit(X, LABELS, resume=path), whole)
    assert not hasattr(other, "feature_names_in_")


def test_names_of_columns_are_those_of_before(path):
    table = pytest.importorskip("pandas").DataFrame(X, columns=list("abcd"))
    whole = made("adam").fit(table, LABELS)
    made("adam", max_iter=5).fit(table, LABELS, checkpoint=path)
    resumed = made("adam").fit(table, LABELS, resume=path)
    assert_same(resumed, whole)
    assert list(resumed.feature_names_in_) == list("abcd")
    with pytest.raises(ValueError, match="feature names"):
        made("adam").fit(table.rename(columns={"a": "z"}), LABELS, resume=path)


def test_pipelines_pass_them_on(path):
    whole = make_pipeline(StandardScaler(), made("adam")).fit(X, LABELS)
    pipeline = make_pipeline(StandardScaler(), made("adam", max_iter=5))
    pipeline.fit(X, LABELS, mlpclassifier__checkpoint=path)
    again = clone(pipeline).set_params(mlpclassifier__max_iter=12)
    again.fit(X, LABELS, mlpclassifier__resume=path)
    assert_same(again[-1], whole[-1])


def test_a_fit_begun_elsewhere_goes_on_here(library, path):
    """From the library to NumPy, and there is a step in between that was not written."""
    made("score", max_iter=5).fit(library.array(X), LABELS, checkpoint=path)
    here = made("score").fit(X, LABELS, resume=path)
    there = made("score").fit(library.array(X), LABELS, resume=path)
    np.testing.assert_allclose(here.loss_curve_, there.loss_curve_, rtol=1e-8)
    assert type(here.coefs_[0]) is np.ndarray
    assert type(there.coefs_[0]) is type(library.array(X))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"alpha": 0.5}, "the fit to resume had other parameters: `alpha` must be 0.0001, got 0.5"),
        ({"random_state": 1, "tol": 0.1}, "`random_state` must be 0, got 1; `tol` must be 0.001, got 0.1"),
        ({"hidden_layer_sizes": [6, 5]}, r"`hidden_layer_sizes` must be \(6, 5\), got \[6, 5\]"),
        ({"max_iter": 3}, "`max_iter` must be at least 5, the epochs done before"),
    ],
)
def test_other_parameters_are_refused(changes, words, path):
    made("adam", max_iter=5).fit(X, LABELS, checkpoint=path)
    with pytest.raises(ValueError, match=words):
        made("adam", **changes).fit(X, LABELS, resume=path)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((X[:, :3], LABELS), "3 features|n_features"),
        ((X + 1e-9, LABELS), "must be those of the training to resume"),
        ((X, np.where(LABELS == "low", "other", LABELS)), "`y`"),
        ((X, LABELS[::-1]), "must be those of the training to resume"),
        ((X[:80], LABELS[:80]), "must have 90 rows as before|those of the training to resume"),
    ],
)
def test_other_data_are_refused(given, words, path):
    made("adam", max_iter=5).fit(X, LABELS, checkpoint=path)
    before = made("adam").fit(X, LABELS)
    state = dict(vars(before))
    with pytest.raises(ValueError, match=words):
        before.fit(*given, resume=path)
    assert vars(before) == state


def test_files_of_something_else_are_refused(path):
    model = made("adam").fit(X, LABELS)
    save_model(path, model, with_progress=True)
    with pytest.raises(ValueError, match="must be the checkpoint of a fit, got a saved model"):
        made("adam").fit(X, LABELS, resume=path)
    save_model(path, model)
    with pytest.raises(ModelFileError, match="it is a model alone"):
        made("adam").fit(X, LABELS, resume=path)
    made("whole").fit(X, VALUES, checkpoint=Checkpoint(path, overwrite=True))
    with pytest.raises(
        ValueError, match="the checkpoint of a fit of MLPClassifier, got that of a MLPRegressor"
    ):
        made("adam").fit(X, LABELS, resume=path)
    network = Network((4, 1), loss="squared_error")
    settings = {"optimizer": adam(), "epochs": 20}
    with pytest.raises(ValueError, match="`resume` must be the checkpoint of `train`, got that of a MLPRegr"):
        train(network, network.init(0, like=X), X, VALUES[:, None], **settings, resume=path)
    result = train(network, network.init(0, like=X), X, VALUES[:, None], **settings)
    with pytest.raises(TypeError, match="`resume` must be a path or a truth value; `warm_start` goes on"):
        made("whole").fit(X, VALUES, resume=result)


def test_an_interrupted_fit_goes_on(path, monkeypatch):
    model = made("score", verbose=True)
    seen = []

    def interrupting(text):
        seen.append(text)
        if text.startswith("Iteration 5"):
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("builtins.print", interrupting)
    with pytest.warns(TrainingInterruptedWarning):
        model.fit(X, LABELS, checkpoint=path)
    assert_same(made("score").fit(X, LABELS, resume=path), made("score").fit(X, LABELS))


# Models saved with their progress.


@pytest.mark.parametrize("kind", ["adam", "score", "loss", "adaptive", "whole"])
def test_a_loaded_model_goes_on_as_the_saved_one(library, kind, path):
    given, y = library.array(X), targets(kind)
    model = made(kind, warm_start=True, max_iter=4).fit(given, y)
    save_model(path, model, with_progress=True)
    backend = None if library.name in ("numpy", "numpy_read_only", "strict") else library.name
    loaded = load_model(path, backend)
    if library.name == "strict":
        given, model = X, load_model(path)
    assert_same(loaded.fit(given, y), model.fit(given, y))
    if not model.early_stopping and kind != "whole":
        save_model(path, model, with_progress=True)
        loaded = load_model(path, backend)
        for each in (loaded, model):
            for part in (slice(0, 40), slice(40, 90)):
                each.partial_fit(given[part], y[part])
        assert_same(loaded, model)


def test_it_goes_on_in_another_library(library, path):
    model = made("adam", warm_start=True, max_iter=4).fit(library.array(X), LABELS)
    save_model(path, model, with_progress=True)
    here = load_model(path).fit(X, LABELS)
    moved = load_model(path).to(library.array(X[:1]).device if library.xp is np else "numpy").fit(X, LABELS)
    assert_same(here, moved)
    np.testing.assert_allclose(here.loss_curve_, model.fit(library.array(X), LABELS).loss_curve_, rtol=1e-8)


def test_weights_that_a_user_has_changed_are_those_that_are_saved(path):
    model = made("loss", warm_start=True, max_iter=4).fit(X, VALUES)
    model.coefs_[0] = model.coefs_[0] + 0.5
    other = copy.deepcopy(model)
    save_model(path, model, with_progress=True)
    assert_same(load_model(path).fit(X, VALUES), other.fit(X, VALUES))


def test_a_model_without_progress_has_none_to_save(path):
    words = '`model` must have been trained by epochs, "sgd" or "adam", where `with_progress` is True'
    with pytest.raises(ValueError, match=words):
        save_model(path, MLPRegressor(solver="lbfgs").fit(X, VALUES), with_progress=True)
    save_model(path, made("whole").fit(X, VALUES))
    with pytest.raises(ValueError, match=words):
        save_model(path, load_model(path), with_progress=True)


# Streams.


class Batches:
    """Batches that can be passed over again; one of them fails, or interrupts, once."""

    def __init__(self, arrays, end=None, by=None):
        self.arrays, self.end, self.by = arrays, end, by
        self.n_read = 0

    def __iter__(self):
        for start in range(0, 90, 10):
            self.n_read += 1
            if self.n_read == self.end:
                self.by()
            yield tuple(array[start : start + 10, ...] for array in self.arrays)


def fail():
    raise ConnectionError("the other side is gone")


NETWORK = Network((4, 6, 1), activation="tanh", loss="squared_error")


def train_on(library, batches, epochs=3, **settings):
    params = NETWORK.init(seed=0, like=library.array(X))
    given = {"optimizer": adam(0.01), "batch_size": 4, "seed": 3, "epochs": epochs}
    return train(NETWORK, params, batches, **given, **settings)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("end", [2, 6, 9, 10, 15, 27])
def test_a_stream_that_fails_goes_on_at_its_batch(library, end, path):
    arrays = library.array(X), library.array(VALUES[:, None])
    whole = train_on(library, Batches(arrays))
    with pytest.raises(ConnectionError):
        train_on(library, Batches(arrays, end, fail), checkpoint=path)
    _, progress = read_checkpoint(path)
    assert progress["position"][0] == (end - 1) % 9
    assert progress["history"]["n_epochs"] == (end - 1) // 9
    for settings in ({"checkpoint": path, "resume": True}, {"resume": path}):
        resumed = train_on(library, Batches(arrays), **settings)
        assert resumed.history == whole.history
        for one, other in zip(resumed.params, whole.params):
            np.testing.assert_array_equal(to_host(one.weight), to_host(other.weight))


def test_a_stream_is_written_between_batches(library, path, monkeypatch):
    arrays, stages = (library.array(X), library.array(VALUES[:, None])), []
    write = Checkpoints._write

    def noted(self, content, stage):
        stages.append(stage[:2])
        write(self, content, stage)

    monkeypatch.setattr(Checkpoints, "_write", noted)
    train_on(library, iter(Batches(arrays)), epochs=1, checkpoint=Checkpoint(path, every_seconds=0.0))
    assert stages == [*((0, number) for number in range(1, 10)), (1, 0)]
    stages.clear()
    train_on(library, Batches(arrays), checkpoint=Checkpoint(path, every_epochs=2, overwrite=True))
    assert stages == [(2, 0), (3, 0)]


@pytest.mark.parametrize("schedule", ["constant", "invscaling"])
def test_a_fit_on_a_stream_goes_on(library, schedule, path):
    arrays = library.array(X), LABELS
    settings = {"max_iter": 3, "solver": "sgd", "learning_rate": schedule, "batch_size": 4}

    def interrupt():
        signal.raise_signal(signal.SIGINT)

    def fitted(batches, **files):
        return made("adam", **settings).fit(batches, classes=["high", "low", "middle"], **files)

    def batches(*end):
        class Labelled(Batches):
            def __iter__(self):
                for start in range(0, 90, 10):
                    self.n_read += 1
                    if self.n_read == self.end:
                        self.by()
                    yield arrays[0][start : start + 10, ...], LABELS[start : start + 10]

        return Labelled(arrays, *end)

    whole = fitted(batches())
    with pytest.warns(TrainingInterruptedWarning):
        cut = fitted(batches(14, interrupt), checkpoint=path)
    assert (cut.n_iter_, cut.t_) == (1, 140)
    resumed = fitted(batches(), resume=path)
    assert_same(resumed, whole)
    done = fitted(batches(), checkpoint=path, resume=True)
    assert_same(fitted(batches(), checkpoint=path, resume=True), done)


def test_an_array_does_not_go_on_as_a_stream(path, library):
    arrays = library.array(X), library.array(VALUES[:, None])
    train_on(library, Batches(arrays), checkpoint=path)
    params = NETWORK.init(seed=0, like=arrays[0])
    with pytest.raises(ValueError, match="`X` must be a stream if it was one before, else arrays"):
        train(NETWORK, params, *arrays, optimizer=adam(0.01), epochs=4, batch_size=4, resume=path)


# L-BFGS.


def test_lbfgs_goes_on_from_its_last_iterate_and_says_what_is_lost(library, path):
    given = library.array(X)
    settings = {"hidden_layer_sizes": (), "solver": "lbfgs", "random_state": 0, "alpha": 0.1, "tol": 1e-8}
    whole = MLPRegressor(max_iter=300, **settings).fit(given, VALUES, checkpoint=path)
    assert_same(MLPRegressor(max_iter=300, **settings).fit(given, VALUES, resume=path), whole)
    rule = Checkpoint(path, every_epochs=1, overwrite=True)
    cut = MLPRegressor(max_iter=3, **settings).fit(given, VALUES, checkpoint=rule)
    with pytest.warns(CheckpointWarning, match="resumed after 3 iterations of L-BFGS.* curvature is lost"):
        resumed = MLPRegressor(max_iter=300, **settings).fit(given, VALUES, checkpoint=path, resume=True)
    assert resumed.loss_curve_[:3] == cut.loss_curve_
    assert 3 < resumed.n_iter_ == len(resumed.loss_curve_)
    assert resumed.loss_ == pytest.approx(whole.loss_, rel=1e-9)  # there is one minimum
    np.testing.assert_array_equal(load_model(path).coefs_[0], to_host(resumed.coefs_[0]))


def test_an_error_in_lbfgs_leaves_its_last_iterate(path):
    settings = {"hidden_layer_sizes": (5,), "solver": "lbfgs", "random_state": 0}
    model = MLPRegressor(**settings, verbose=True)

    def failing(text):
        if text.startswith("Iteration 7,"):
            raise LookupError("mine")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", failing)
        with pytest.raises(LookupError):
            model.fit(X, VALUES, checkpoint=path)
    assert load_model(path).n_iter_ == 7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CheckpointWarning)
        resumed = MLPRegressor(**settings).fit(X, VALUES, resume=path)
    assert resumed.loss_curve_[:7] == load_model(path).loss_curve_


def test_lbfgs_goes_on_with_a_generator_and_its_file_begins_other_solvers(path):
    settings = {"hidden_layer_sizes": (), "solver": "lbfgs", "alpha": 0.1}
    model = MLPRegressor(random_state=np.random.RandomState(0), **settings).fit(X, VALUES, checkpoint=path)
    again = MLPRegressor(random_state=np.random.RandomState(0), **settings).fit(X, VALUES, resume=path)
    assert_same(again, model)
    loaded = load_model(path).set_params(solver="adam", warm_start=True, batch_size=20, max_iter=3)
    model.set_params(solver="adam", warm_start=True, batch_size=20, max_iter=3, random_state=None)
    assert loaded._continuation is None
    assert len(loaded.fit(X, VALUES).loss_curve_) == len(model.fit(X, VALUES).loss_curve_)


def test_weights_written_in_after_loading_are_those_that_go_on(path):
    model = made("loss", warm_start=True, max_iter=4).fit(X, VALUES)
    save_model(path, model, with_progress=True)
    loaded = load_model(path)
    for each in (model, loaded):
        each.coefs_[0][:] = 0.1
    assert_same(loaded.fit(X, VALUES), model.fit(X, VALUES))


def test_a_stream_goes_on_with_the_generator_of_before(path):
    arrays = X, VALUES[:, None]
    whole = train_on_numpy(Batches(arrays), seed=np.random.default_rng(0))
    with pytest.raises(ConnectionError):
        train_on_numpy(Batches(arrays, 14, fail), seed=np.random.default_rng(0), checkpoint=path)
    resumed = train_on_numpy(Batches(arrays), seed=0, resume=path)
    assert resumed.history == whole.history


def train_on_numpy(batches, **settings):
    params = NETWORK.init(seed=0, like=X)
    return train(NETWORK, params, batches, optimizer=adam(0.01), epochs=3, batch_size=4, **settings)
