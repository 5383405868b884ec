"""What goes wrong in one of several processes: ``mpiexec -n 2 python processes_faults.py FAULT [FOLDER]``."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from mlp_xp import Loss, Network, Optimizer, adam, data_parallel, evaluate, train

FAULT = sys.argv[1] if __name__ == "__main__" else ""
RANK = MPI.COMM_WORLD.Get_rank()
RANDOM = np.random.default_rng(0)
N = 400
X = RANDOM.normal(size=(N, 5))
Y = (X[:, :1] * X[:, 1:2] > 0.0).astype(float)
IS_BAD = RANK == 1
n_steps = 0


def link(xp: Any, logits: Any) -> Any:
    return logits


def loss(xp: Any, logits: Any, y: Any) -> Any:
    global n_steps
    n_steps += 1
    if IS_BAD and FAULT == "batch" and n_steps > 30:
        raise RuntimeError("from a step")
    error = logits - y
    return (0.5 if float(xp.sum(error)) < 1e9 else 0.0) * error * error, error  # cannot be compiled


def update(xp: Any, params: Any, gradients: Any, state: Any, rate: float) -> Any:
    if IS_BAD and FAULT == "update" and state["t"] == 40:
        raise RuntimeError("from an update")
    float(xp.sum(gradients[0][0]))  # cannot be compiled
    new = tuple(tuple(p - rate * g for p, g in zip(*layers)) for layers in zip(params, gradients))
    return new, {"t": state["t"] + 1}


def callback(history: Any, params: Any) -> None:
    if FAULT == "slow" and IS_BAD and len(history) < 4:
        time.sleep(0.5)
    if len(history) != 20:
        return
    if FAULT == "terminated":
        os.kill(os.getpid(), signal.SIGTERM)
    elif IS_BAD and FAULT == "callback":
        raise KeyError("from a callback")
    elif IS_BAD and FAULT == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    elif IS_BAD and FAULT == "interrupted":
        os.kill(os.getpid(), signal.SIGINT)


def stream(own_X: Any, own_y: Any) -> Any:
    """Yield batches; one process fails before its third."""
    for start in range(0, len(own_X), 8):
        if IS_BAD and start == 16:
            raise OSError("from a stream")
        yield own_X[start : start + 8], own_y[start : start + 8]


def run(rows: slice) -> None:
    own_X, own_y, epochs = X[rows], Y[rows], 50
    if IS_BAD and FAULT == "absent":
        return
    if IS_BAD and FAULT == "outside":
        raise OSError("no such file")
    if IS_BAD and FAULT == "width":
        own_X = own_X[:, :4]
    if IS_BAD and FAULT == "nan":
        own_X = own_X.copy()
        own_X[3, 2] = np.nan
    if IS_BAD and FAULT == "dtype":
        own_X, own_y = own_X.astype(np.float32), own_y.astype(np.float32)
    if IS_BAD and FAULT == "epochs":
        epochs = 3
    if FAULT == "long":
        epochs = 10**8
    custom = FAULT in ("batch", "update")
    network = Network(
        (5, 8, 1), activation="tanh", loss=Loss(link, loss) if custom else "binary_cross_entropy"
    )
    params = network.init(int(IS_BAD and FAULT == "params"), like=own_X)
    if FAULT in ("labels", "columns", "scipy"):
        labels = np.full(len(own_X), 0.5) if IS_BAD and FAULT == "labels" else own_y[:, 0].astype(int)
        columns = own_X[:, :3] if IS_BAD and FAULT == "columns" else own_X
        from mlp_xp import MLPClassifier  # scikit-learn takes a second to import

        model = MLPClassifier(
            (4,), max_iter=9, random_state=0, solver="lbfgs" if FAULT == "scipy" else "adam"
        )
        if FAULT == "scipy":
            model.set_callbacks(Failing())
        model.fit(columns, labels)
    if IS_BAD and FAULT == "elsewhere":
        evaluate(network, params, own_X, own_y)
    optimizer = adam(0.01)
    if FAULT == "update":
        optimizer = Optimizer(lambda xp, params: {"t": 0}, update, 0.01)
    if FAULT == "stream":
        train(network, params, stream(own_X, own_y), optimizer=optimizer, epochs=1)
    needs_callback = FAULT in ("slow", "terminated", "callback", "killed", "interrupted")
    _, history = train(
        *(network, params, own_X, own_y),
        optimizer=optimizer,
        epochs=epochs,
        batch_size=32,
        seed=0,
        callback=callback if needs_callback else None,
        on_progress=tell_once if FAULT == "long" and RANK == 0 else None,
    )
    if FAULT == "long":
        Path(sys.argv[2], f"epochs-{RANK}").write_text(str(len(history)))
    print(f"trained {len(history)} epochs", flush=True)


SAID: list[str] = []


def tell_once(history: Any) -> None:
    if not SAID:
        SAID.append("training")
        print(*SAID, flush=True)


class Failing:
    """A callback of scikit-learn's kind that only listens."""

    def setup(self, *arguments: Any, **named: Any) -> None: ...

    def teardown(self, *arguments: Any, **named: Any) -> None: ...

    def on_fit_task_begin(self, *arguments: Any, **named: Any) -> None: ...

    def on_fit_task_end(self, *arguments: Any, **named: Any) -> bool:
        return False

    def on_progress(self, history: Any) -> None:
        if IS_BAD and len(history) == 3:
            raise ZeroDivisionError("from a callback of L-BFGS")


def main() -> None:
    with data_parallel() as processes:
        try:
            run(processes.rows(N))
        except Exception as error:
            notes = " ".join(getattr(error, "__notes__", ()))
            trained = f"history of {len(getattr(error, 'history', ()))}"
            print(f"caught {type(error).__name__}: {error} ({notes}), {trained}", flush=True)
            raise


if __name__ == "__main__":
    main()
