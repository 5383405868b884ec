"""Trainings on several processes against the same ones on one: ``mpiexec -n 3 python processes_equality.py``.

Arguments are the names of the checks, or none for all. Each process trains on the whole by itself first.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI
from sklearn.exceptions import ConvergenceWarning

import mlp_xp
from mlp_xp import (
    Checkpoint,
    EarlyStopping,
    Loss,
    MLPClassifier,
    MLPRegressor,
    Network,
    Optimizer,
    ProcessError,
    adam,
    data_parallel,
    decoupled_weight_decay,
    evaluate,
    gradient_descent,
    momentum,
    step_decay,
    to_host,
    train,
)

COMM = MPI.COMM_WORLD
RANDOM = np.random.default_rng(0)
N = 103
X = RANDOM.normal(size=(N, 5))
VALUES = X[:, 0] * X[:, 1] + X[:, 2]
Y = np.stack([VALUES > 0.0, X[:, 3] > 0.5], axis=1).astype(float)
WEIGHTS = RANDOM.uniform(0.0, 2.0, size=N)
WEIGHTS[:7] = 0.0  # all that the second of three processes has
LABELS = np.array(["low", "mid", "high", "rare"])[np.digitize(VALUES, [-0.5, 0.7, 3.0])]
ENDS = {1: [N], 2: [31, N], 3: [0, 7, N], 4: [0, 7, 60, N]}
"""Where the rows of each process end: their numbers differ much, and one has none."""


def own_rows(processes: Any) -> slice:
    ends = [0, *ENDS[processes.size]]
    return slice(ends[processes.rank], ends[processes.rank + 1])


def on_one_and_on_all(run: Any) -> tuple[Any, Any, slice]:
    """Return what a function of a part of the rows returns on one process and on all, and the own part."""
    whole = run(slice(0, N))
    with data_parallel(COMM) as processes:
        rows = own_rows(processes)
        return whole, run(rows), rows


def assert_close(found: Any, expected: Any, what: Any, tolerance: float = 1e-10) -> None:
    found, expected = (np.asarray(one, np.float64) for one in (found, expected))
    difference = np.abs(found - expected).max(initial=0.0)
    assert found.shape == expected.shape, f"{what}: {found.shape}, {expected.shape}"
    assert difference <= tolerance, f"{what}: they differ by {difference:.3g}"


def assert_same_everywhere(arrays: Any, what: Any) -> None:
    """Check that all processes have the same bits."""
    bits = COMM.allgather(b"".join(np.ascontiguousarray(to_host(array)).tobytes() for array in arrays))
    assert all(one == bits[0] for one in bits), f"{what}: processes have different bits"


def assert_same_training(found: Any, expected: Any, what: Any, tolerance: float = 1e-10) -> None:
    for layer, other in zip(found.params, expected.params):
        for one, another in zip(layer, other):
            assert_close(to_host(one), to_host(another), what, tolerance)
    assert len(found.history) == len(expected.history), f"{what}: {len(found.history)} epochs"
    for record, other in zip(found.history, expected.history):
        assert record.keys() == other.keys()
        for name in record:
            assert_close(record[name], other[name], (what, name), max(tolerance, 1e-12))
    assert_same_everywhere([array for layer in found.params for array in layer], what)
    histories = COMM.allgather([tuple(record.items()) for record in found.history])
    assert all(one == histories[0] for one in histories), f"{what}: processes have different histories"


# Functions.

NETWORK = Network((5, 8, 2), activation="tanh", loss="binary_cross_entropy", alpha=0.01)


def _lion_init(xp: Any, params: Any) -> Any:
    return {"velocity": [(xp.zeros_like(weight), xp.zeros_like(bias)) for weight, bias in params], "t": 0}


def _lion_update(xp: Any, params: Any, gradients: Any, state: Any, rate: float) -> Any:
    new, velocities = [], []
    for layer, gradient, velocity in zip(params, gradients, state["velocity"]):
        velocities.append(tuple(0.9 * v + 0.1 * g for v, g in zip(velocity, gradient)))
        new.append(tuple(p - rate * xp.sign(v) for p, v in zip(layer, velocities[-1])))
    return tuple(new), {"velocity": velocities, "t": state["t"] + 1}


OPTIMIZERS = [
    gradient_descent(0.1),
    momentum(0.1),
    momentum(step_decay(0.1, every=2, factor=0.5), nesterovs_momentum=True),
    adam(0.01),
    decoupled_weight_decay(adam(0.01), 0.1),
    Optimizer(_lion_init, _lion_update, 0.01),  # a user's own
]


def check_functions(library: str = "numpy", optimizers: Any = tuple(OPTIMIZERS)) -> None:
    convert = CONVERT[library]()
    for index, optimizer in enumerate(optimizers):
        for batch_size in (None, 16):
            for weighted in (False, True):

                def run(
                    rows: slice,
                    optimizer: Any = optimizer,
                    batch_size: Any = batch_size,
                    weighted: Any = weighted,
                ) -> Any:
                    data = convert(X[rows]), convert(Y[rows])
                    weights = convert(WEIGHTS[rows]) if weighted else None
                    params = NETWORK.init(3, like=data[0])
                    return train(
                        NETWORK,
                        params,
                        *data,
                        optimizer=optimizer,
                        epochs=4,
                        batch_size=batch_size,
                        seed=1,
                        sample_weight=weights,
                        validation_data=(*data, weights) if weighted else None,
                        metrics=["accuracy", "r2"] if weighted else [],
                    )

                expected, found, _ = on_one_and_on_all(run)
                assert_same_training(found, expected, (library, index, batch_size, weighted))


CONVERT: dict[str, Any] = {
    "numpy": lambda: lambda array: array,
    "strict": lambda: import_module("array_api_strict").asarray,
    "torch": lambda: import_module("torch").as_tensor,
    "jax": lambda: import_module("jax.numpy").asarray,
}


def check_strict() -> None:
    check_functions("strict")


def check_torch() -> None:
    check_functions("torch")


def check_jax() -> None:
    check_functions("jax", [adam(0.01)])  # it compiles for seconds


def check_layouts() -> None:
    """Read-only arrays, by columns, views, memory maps, other dtypes, sparse matrices."""
    network = Network((5, 8, 1), loss="squared_error")
    y = VALUES[:, None]

    def training(dtype: Any, view: Any, targets: Any = lambda y: y, tolerance: float = 1e-10) -> None:
        def run(rows: slice) -> Any:
            part = view(X[rows].astype(dtype))
            params = network.init(0, like=np.zeros(1, dtype if np.dtype(dtype).kind == "f" else None))
            given = targets(y[rows].astype(params[0].weight.dtype))
            return train(network, params, part, given, optimizer=adam(0.01), epochs=3, batch_size=20, seed=0)

        expected, found, _ = on_one_and_on_all(run)
        assert_same_training(found, expected, (dtype, view), tolerance)

    def read_only(array: Any) -> Any:
        array.flags.writeable = False
        return array

    def mapped(array: Any) -> Any:
        if not len(array):
            return array
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder, "X.npy"), array)
            return np.load(Path(folder, "X.npy"), mmap_mode="r")

    training(np.float64, read_only)
    training(np.float64, np.asfortranarray, lambda y: y[::-1][::-1])
    training(np.float64, lambda array: np.repeat(array, 2, axis=1)[:, ::2])
    training(np.float64, lambda array: array[::-1][::-1])
    training(np.float64, mapped)
    training(np.int16, lambda array: array)
    training(np.float32, lambda array: array, tolerance=1e-5)

    sparse = import_module("scipy.sparse").csr_matrix(np.where(X > 0.0, X, 0.0))

    def fit(rows: slice) -> Any:
        settings = {"hidden_layer_sizes": (4,), "batch_size": 20, "max_iter": 3, "random_state": 0}
        return MLPRegressor(**settings).fit(sparse[rows], VALUES[rows])

    expected, found, _ = on_one_and_on_all(fit)
    for one, other in zip(found.coefs_, expected.coefs_):
        assert_close(one, other, "sparse")


def check_decisions() -> None:
    """Early stopping, callbacks, metrics of a user's own, and what is seen of a training."""

    def largest_error(y: Any, predictions: Any) -> float:
        return float(np.abs(y - predictions).max())

    def run(rows: slice) -> Any:
        rule = EarlyStopping("val_largest_error", n_iter_no_change=3, greater_is_better=False)
        params = NETWORK.init(0, like=X)
        validation = X[rows] + 0.5, Y[rows]
        return train(
            *(NETWORK, params, X[rows], Y[rows]),
            optimizer=adam(0.1),
            epochs=60,
            batch_size=10,
            seed=0,
            validation_data=validation,
            metrics=[largest_error, "accuracy"],
            early_stopping=rule,
        )

    expected, found, _ = on_one_and_on_all(run)
    assert_same_training(found, expected, "early stopping", 1e-9)
    assert len(found.history) < 60

    with data_parallel(COMM) as processes:
        rows = own_rows(processes)
        last = processes.size - 1

        def stop(history: Any, params: Any) -> bool:
            return processes.rank == last and len(history) == 3

        params = NETWORK.init(0, like=X)
        _, history = train(
            *(NETWORK, params, X[rows], Y[rows]),
            optimizer=adam(0.1),
            epochs=9,
            callback=stop,
        )
        assert len(history) == 3, "a callback of one process stops all"

    def measured(rows: slice) -> Any:
        params = NETWORK.init(0, like=X)
        return evaluate(
            *(NETWORK, params, X[rows], Y[rows]), sample_weight=WEIGHTS[rows], metrics=["accuracy", "r2"]
        )

    expected, found, _ = on_one_and_on_all(measured)
    for name in expected:
        assert_close(found[name], expected[name], name)

    def predicted(rows: slice) -> Any:
        return NETWORK.predict(NETWORK.init(0, like=X), X[rows])

    expected, found, rows = on_one_and_on_all(predicted)
    assert_close(found, expected[rows], "predictions")


def check_eager_steps() -> None:
    """A loss that looks at values cannot be compiled; it runs call by call."""

    def link(xp: Any, logits: Any) -> Any:
        return logits

    def loss(xp: Any, logits: Any, y: Any) -> Any:
        error = logits - y
        return (0.5 if float(xp.sum(error)) < 1e9 else 0.0) * error * error, error

    network = Network((5, 4, 2), loss=Loss(link, loss))

    def run(rows: slice) -> Any:
        params = network.init(0, like=X)
        return train(network, params, X[rows], Y[rows], optimizer=adam(0.01), epochs=3, batch_size=20, seed=0)

    expected, found, rows = on_one_and_on_all(run)
    assert_same_training(found, expected, "eager")
    assert rows.start == rows.stop or found.history.engine == "eager"


def check_seeds() -> None:
    """Without a seed all processes get the same parameters and orders, each time others."""
    with data_parallel(COMM) as processes:
        rows = own_rows(processes)
        first, second = (NETWORK.init(like=X) for _ in range(2))
        assert not np.array_equal(first[0].weight, second[0].weight)
        params, _ = train(NETWORK, first, X[rows], Y[rows], optimizer=adam(0.1), epochs=2, batch_size=9)
        model = MLPRegressor(hidden_layer_sizes=(3,), max_iter=2).fit(X[rows], VALUES[rows])
    assert_same_everywhere([array for layer in (*first, *second, *params) for array in layer], "seeds")
    assert_same_everywhere(model.coefs_, "random_state=None")


# Estimators.


def check_estimators() -> None:
    multilabel = Y.astype(int)
    several = np.stack([VALUES, X[:, 0]], axis=1)
    weights = {"sample_weight": WEIGHTS}
    classifier = {"hidden_layer_sizes": (6,), "random_state": 0, "max_iter": 5, "batch_size": 20}
    cases: list[tuple[Any, Any, dict[str, Any], dict[str, Any]]] = [
        (MLPClassifier, LABELS, {}, {}),
        (MLPClassifier, LABELS, {"class_weight": "balanced", "batch_size": "auto"}, weights),
        (MLPClassifier, LABELS, {"class_weight": {"low": 2.0, "rare": 9.0}}, {}),
        (MLPClassifier, VALUES > 0.0, {"early_stopping": True, "max_iter": 15}, weights),
        (MLPClassifier, VALUES > 0.0, {"early_stopping": "roc_auc", "max_iter": 15}, {}),
        (MLPClassifier, multilabel, {"class_weight": "balanced", "shuffle": False}, {}),
        (
            MLPClassifier,
            LABELS,
            {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.5},
            {},
        ),
        (MLPClassifier, LABELS, {"solver": "lbfgs"}, weights),
        (MLPRegressor, VALUES, {"solver": "lbfgs"}, {}),
        (MLPRegressor, VALUES, {"early_stopping": "loss", "max_iter": 9}, {"X_val": X, "y_val": VALUES}),
        (MLPRegressor, several, {}, weights),
        (MLPRegressor, np.abs(np.round(VALUES)), {"loss": "poisson"}, {}),
    ]
    for kind, y, settings, data in cases:
        what = kind.__name__, settings, list(data)

        def run(rows: slice, kind: Any = kind, y: Any = y, settings: Any = settings, data: Any = data) -> Any:
            model = kind(**{**classifier, **settings})
            model.fit(X[rows], y[rows], **{name: values[rows] for name, values in data.items()})
            return model, model.score(X[rows], y[rows]), model.predict(X[rows])

        (expected, score, predictions), (found, own_score, own_predictions), rows = on_one_and_on_all(run)
        assert_same_estimator(found, expected, what)
        assert_close(own_score, score, what)
        if kind is MLPClassifier:
            assert np.array_equal(own_predictions, predictions[rows]), what
        else:
            assert_close(own_predictions, predictions[rows], what)


def assert_same_estimator(found: Any, expected: Any, what: Any) -> None:
    for one, other in zip(found.coefs_ + found.intercepts_, expected.coefs_ + expected.intercepts_):
        assert_close(one, other, what)
    assert_close(found.loss_curve_, expected.loss_curve_, what)
    if expected.validation_scores_ is not None:
        assert_close(found.validation_scores_, expected.validation_scores_, what)
    assert (found.n_iter_, found.t_) == (expected.n_iter_, expected.t_), what
    if hasattr(expected, "classes_"):
        assert np.array_equal(found.classes_, expected.classes_), what
    assert_same_everywhere(found.coefs_ + found.intercepts_, what)


def check_continued_fits() -> None:
    def partial(rows: slice) -> Any:
        model = MLPClassifier((4,), random_state=0)
        for part in (slice(0, 60), slice(60, N), slice(0, N)):
            chosen = np.arange(N)[rows]
            chosen = chosen[(chosen >= part.start) & (chosen < part.stop)]
            model.partial_fit(X[chosen], LABELS[chosen], classes=np.unique(LABELS))
        return model

    def warm(rows: slice) -> Any:
        model = MLPClassifier((4,), random_state=0, warm_start=True, max_iter=2, batch_size=30)
        return model.fit(X[rows], LABELS[rows]).fit(X[rows], LABELS[rows])

    for run in (partial, warm):
        expected, found, _ = on_one_and_on_all(run)
        assert_same_estimator(found, expected, run.__name__)


STREAM_LENGTHS = {1: [5], 2: [5, 3], 3: [2, 5, 4], 4: [3, 1, 5, 4]}
"""How many batches the stream of each process has: that of some ends before that of others."""


def check_streams() -> None:
    lengths = STREAM_LENGTHS[COMM.Get_size()]
    n_each = len(lengths)
    chosen = [
        [np.arange(N)[7 * number + 3 * rank :][: 3 + rank + number % 2] for rank in range(n_each)]
        for number in range(max(lengths))
    ]

    def rounds(rank: int | None) -> Any:
        """Return the rows of one process's batches, or those of all that come at a time."""
        if rank is not None:
            return [rows[rank] for rows in chosen[: lengths[rank]]]
        each = enumerate(chosen)
        return [np.concatenate([rows[k] for k in range(n_each) if i < lengths[k]]) for i, rows in each]

    def compared(run: Any) -> tuple[Any, Any]:
        expected = run(rounds(None), slice(0, N))
        with data_parallel(COMM) as processes:
            return expected, run(rounds(processes.rank), own_rows(processes))

    for batch_size, weighted in ((None, True), (5, False)):

        def run(batches: Any, validated: slice) -> Any:
            arrays = (X, Y, WEIGHTS + 0.1)[: 3 if weighted else 2]  # noqa: B023
            return train(
                *(NETWORK, NETWORK.init(0, like=X)),
                [tuple(array[rows] for array in arrays) for rows in batches],
                optimizer=adam(0.05),
                epochs=3,
                batch_size=batch_size,  # noqa: B023
                seed=1,
                validation_data=(X[validated], Y[validated]),
            )

        expected, found = compared(run)
        assert_same_training(found, expected, ("stream", batch_size, weighted))

    def fit(batches: Any, _: slice) -> Any:
        model = MLPClassifier((4,), random_state=0, max_iter=2, batch_size=9)
        return model.fit([(X[rows], LABELS[rows]) for rows in batches], classes=np.unique(LABELS))

    expected, found = compared(fit)
    assert_same_estimator(found, expected, "a stream")


def check_checkpoints() -> None:
    """Trainings that go on, on as many processes bit for bit, and on others."""
    folder = Path(COMM.bcast(tempfile.mkdtemp() if COMM.Get_rank() == 0 else None))
    settings = {"optimizer": adam(0.01), "batch_size": 16, "seed": 2}
    settings |= {"early_stopping": EarlyStopping("loss", n_iter_no_change=40)}

    def run(rows: slice, epochs: int, **files: Any) -> Any:
        params = NETWORK.init(0, like=X)
        return train(NETWORK, params, X[rows], Y[rows], epochs=epochs, **settings, **files)

    def run_batches(rows: slice, epochs: int, **files: Any) -> Any:
        params = NETWORK.init(0, like=X)
        parts = [slice(start, min(start + 10, rows.stop)) for start in range(rows.start, rows.stop, 10)]
        batches = [(X[part], Y[part]) for part in parts]
        return train(NETWORK, params, batches, epochs=epochs, **settings, **files)

    def fit(rows: slice, epochs: int, **files: Any) -> Any:
        model = MLPClassifier((6,), batch_size=20, random_state=1, max_iter=epochs, early_stopping=True)
        return model.fit(X[rows], LABELS[rows], **files)

    whole = run(slice(0, N), 12)
    with data_parallel(COMM) as processes:
        for number, each in enumerate([run, run_batches, fit]):
            path = folder / f"{number}"
            rows = processes.rows(N) if each is run_batches else own_rows(processes)
            expected = each(rows, 12)
            first = each(rows, 5, checkpoint=Checkpoint(path, every_epochs=1))
            resumed = [each(rows, 12, checkpoint=path, resume=True), each(rows, 12, resume=path)]
            if each is not fit:
                resumed.append(each(rows, 12, resume=first))
            for one in resumed:
                if each is fit:
                    assert_same_estimator(one, expected, path)
                    assert one.loss_curve_ == expected.loss_curve_
                else:
                    assert_same_training(one, expected, path, tolerance=0.0)
        COMM.Barrier()
        assert sorted(path.name for path in folder.iterdir()) == ["0", "0.1", "1", "1.1", "2", "2.1"]
        error: Any = None
        try:
            run(own_rows(processes), 4, checkpoint=folder / "0")
        except (FileExistsError, ProcessError) as caught:
            error = caught
        assert "exists already" in str(error), error
    # What several have begun one goes on with, and the other way round.
    COMM.Barrier()
    assert_same_training(run(slice(0, N), 12, resume=folder / "0.1"), whole, "on one process")
    if COMM.Get_rank() == 0:
        run(slice(0, N), 5, checkpoint=folder / "alone")
    COMM.Barrier()
    with data_parallel(COMM) as processes:
        resumed_here = run(own_rows(processes), 12, resume=folder / "alone")
        assert_same_training(resumed_here, whole, "begun on one process")
    COMM.Barrier()
    if COMM.Get_rank() == 0:
        shutil.rmtree(folder)


def main(names: list[str]) -> None:
    warnings.simplefilter("error")
    warnings.simplefilter("ignore", ConvergenceWarning)
    checks = {
        name.removeprefix("check_"): one for name, one in globals().items() if name.startswith("check_")
    }
    del checks["functions"]
    for name in names:
        (check_functions if name == "functions" else checks[name])()
        if COMM.Get_rank() == 0:
            print(f"{name} is equal on {COMM.Get_size()} processes of {mlp_xp.__name__}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
