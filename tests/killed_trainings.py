"""A script that kills trainings at random moments, resumes them until they are done, and looks at the result.

``python tests/killed_trainings.py SEED KILLS LIBRARY:NAME...`` prints a JSON object for each scenario: how
often its process was killed, how often while it wrote a checkpoint, and whether what it trained in the end
is, bit for bit, what a process trained that had no checkpoints and was not killed. `ENVIRONMENT` must be set.

Each training runs in a forked process, which needs no time to import libraries. Nothing here starts a thread
before it forks.
"""

import contextlib
import json
import os
import pickle
import random
import signal
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np

import mlp_xp
from mlp_xp import Checkpoint, EarlyStopping, Network, adam, cosine, momentum, to_host, train
from mlp_xp.datasets import planar

ENVIRONMENT = {
    **dict.fromkeys(
        ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"), "1"
    ),
    **{"JAX_ENABLE_X64": "1", "JAX_PLATFORMS": "cpu"},
}
"""Environment variables of the process: one thread, for nothing may start others before it forks."""

X, Y = planar(n_samples=600, seed=1).X, planar(n_samples=600, seed=1).y[:, None]
NETWORK = Network((2, 24, 16, 1), activation="tanh", loss="binary_cross_entropy", alpha=1e-3)
LIBRARIES = {"numpy": "numpy", "torch": "torch", "jax": "jax.numpy"}


def array_of(library):
    return import_module(LIBRARIES[library]).asarray


def files(folder):
    """Return the arguments that write checkpoints all the time, or none."""
    if folder is None:
        return {}
    return {"checkpoint": Checkpoint(folder / "run.mlpx", every_seconds=0.0), "resume": True}


def trained(result):
    params, history = result
    return [to_host(array).tobytes() for layer in params for array in layer], history, history.engine


def function(library, folder, epochs, **settings):
    array = array_of(library)
    given, targets = array(X), array(Y)
    settings = {"optimizer": adam(0.01), "batch_size": 32, "seed": 3, **settings}
    if settings.pop("validates", False):
        settings |= {"validation_data": (given[:200, ...], targets[:200, ...]), "metrics": ["accuracy"]}
    params = NETWORK.init(seed=0, like=given)
    return trained(train(NETWORK, params, given, targets, epochs=epochs, **settings, **files(folder)))


def stream(library, folder, epochs, *, once=False):
    array = array_of(library)
    batches = [(array(X[i : i + 20]), array(Y[i : i + 20])) for i in range(0, 600, 20)] * (20 if once else 1)
    network, params = NETWORK, NETWORK.init(seed=0, like=array(X))
    given = iter(batches) if once else batches
    return trained(
        train(
            network, params, given, optimizer=adam(0.01), epochs=epochs, batch_size=7, seed=2, **files(folder)
        )
    )


def fit(library, folder, **settings):
    array = array_of(library)
    given = {"hidden_layer_sizes": (16, 8), "batch_size": 50, "random_state": 1, "tol": 1e-3, **settings}
    model = mlp_xp.MLPClassifier(**given)
    model.fit(array(X), np.where(Y[:, 0] > 0.5, "blue", "red"), **files(folder))
    learned = ("loss_curve_", "val_loss_curve_", "validation_scores_", "n_iter_", "t_", "loss_", "best_loss_")
    weights = [to_host(weight).tobytes() for weight in [*model.coefs_, *model.intercepts_]]
    return weights, [getattr(model, name) for name in learned], model.history_


def tabular(library, folder):
    from mlp_xp.tables import TabularClassifier

    model = TabularClassifier(n_networks=3, hidden_layer_sizes=(16,), max_iter=25, backend=library)
    model.set_params(random_state=2).fit(X, np.where(Y[:, 0] > 0.5, "blue", "red"), **files(folder))
    weights = [weight.tobytes() for weight in [*model.network_.coefs_, *model.network_.intercepts_]]
    return weights, model.histories_, model.shrinkage_


def tool(library, folder, *options):
    from mlp_xp._cli import main
    from mlp_xp._training import checkpoint_files
    from mlp_xp.tables import load_run

    checkpoint_files.SECONDS_BETWEEN = 0.0
    resume = ["--resume"] if folder else []
    os.chdir(folder or tempfile.mkdtemp(dir="."))
    words = f"train planar --hidden 16 8 --networks 3 --out run --quiet --backend {library}".split()
    is_complete = Path("run").exists() and not Path("run.partial").exists()
    code = main([*words, *options, *resume])
    assert code == (2 if is_complete else 0), code
    run = load_run("run")
    network = run.pipeline.estimator
    weights = [weight.tobytes() for weight in [*network.coefs_, *network.intercepts_]]
    return weights, *(json.loads(Path("run", name).read_text()) for name in ("history.json", "metrics.json"))


EARLY = EarlyStopping("val_loss", n_iter_no_change=8)
SCENARIOS = {
    "adam": (function, 150),
    "schedule": (function, 120, {"optimizer": momentum(cosine(0.3, 120)), "seed": np.random.default_rng(4)}),
    "early stopping": (function, 400, {"validates": True, "early_stopping": EARLY}),
    "stream": (stream, 12),
    "score": (fit, {"max_iter": 90, "early_stopping": True, "n_iter_no_change": 12}),
    "full batch": (function, 1500, {"batch_size": None, "optimizer": momentum(0.5)}),
    "divided rate": (
        function,
        150,
        {"early_stopping": EarlyStopping("loss", n_iter_no_change=2, tol=1e-3, divide_rate=2.0)},
    ),
    "iterator": (stream, 1, {"once": True}),
    "fit": (fit, {"max_iter": 80, "n_iter_no_change": 100}),
    "adaptive": (
        fit,
        {"max_iter": 90, "solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.2},
    ),
    "scaling": (fit, {"max_iter": 60, "solver": "sgd", "learning_rate": "invscaling", "warm_start": True}),
    "tabular": (tabular,),
    "tool": (tool, "--epochs", "60"),
    "lone tool": (tool, "--epochs", "40", "--networks", "1", "--early-stopping", "loss", "--solver", "sgd"),
}


def run_scenario(name, library, folder):
    kind, *arguments = SCENARIOS[name]
    keywords = arguments.pop() if arguments and isinstance(arguments[-1], dict) else {}
    return kind(library, folder, *arguments, **keywords)


def forked(name, library, folder, result):
    """Start a process that trains and pickles what it has trained; return its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        warnings.simplefilter("ignore")
        if library == "torch":
            import_module("torch").set_num_threads(1)
        content = pickle.dumps(run_scenario(name, library, folder))
        result.write_bytes(content)
        code = 0
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(code)


def wait(process):
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def killed_until_done(name, library, source, n_kills):
    """Kill the scenario's process so often, then let it end; return what happened."""
    with tempfile.TemporaryDirectory() as temporary:
        os.chdir(temporary)
        start = time.monotonic()
        assert wait(forked(name, library, None, Path(temporary, "expected"))) == 0
        seconds = time.monotonic() - start
        expected = pickle.loads(Path(temporary, "expected").read_bytes())
        n_done = n_writing = 0
        result = Path(temporary, "found")
        folder = Path(temporary, "killed")
        folder.mkdir()
        equal = True
        while n_done < n_kills or not result.exists():
            if result.exists():  # begin anew: it has ended before it was killed often enough
                equal &= pickle.loads(result.read_bytes()) == expected
                result.unlink()
                folder = Path(tempfile.mkdtemp(dir=temporary))
            process = forked(name, library, folder, result)
            if n_done < n_kills:
                time.sleep(source.uniform(SCENARIOS[name][0] is tool, 2.2) / 2.0 * seconds)
            else:
                wait(process)
                break
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            code = wait(process)
            if code == -signal.SIGKILL:
                result.unlink(missing_ok=True)
                n_done += 1
                n_writing += any(folder.rglob("*.partial/.*")) or any(folder.glob(".*.partial"))
            elif code:
                return {"name": name, "library": library, "problem": f"exit code {code}"}
        os.chdir("/")
        equal &= pickle.loads(result.read_bytes()) == expected
        leftovers = [str(path) for path in folder.rglob(".*")]
        return {
            **{"name": name, "library": library, "kills": n_done, "while_writing": n_writing},
            **{"equal": bool(equal), "leftovers": leftovers, "seconds": round(seconds, 2)},
        }


def main(seed, n_kills, *cases):
    source = random.Random(int(seed))
    for case in cases:
        library, name = case.split(":")
        import_module(LIBRARIES[library])
        for module in (
            "sklearn.neural_network",
            "mlp_xp.estimators",
            "mlp_xp._training.loop",
            "mlp_xp._compiler",
        ):
            import_module(module)
        print(json.dumps(killed_until_done(name, library, source, int(n_kills))), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
