"""The estimators under scikit-learn's own estimator checks, and in bounded memory.

Both run in processes of their own. The checks need ``SCIPY_ARRAY_API=1`` before SciPy starts, and
scikit-learn's dispatch sets array_api_strict's flags for the whole process; memory is measured from outside.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import traceback
import warnings
from functools import partial
from importlib import import_module, util
from itertools import chain
from pathlib import Path
from typing import Any
from unittest import SkipTest

import numpy as np
import pytest

import mlp_xp

pytestmark = pytest.mark.installed

# In the processes started here, where matrices are small or narrow, threads cost more than they give.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

# Where there is no such hardware, and with PyTorch's own names for it: never run here.
NEVER = {
    "check_array_api_input[torch, xpu, float64]",
    "check_array_api_input[torch, xpu, float32]",
    "check_array_api_input[torch, mps, float32]",
    "check_array_api_input[dpnp, cpu, float64]",
    "check_array_api_input[dpnp, cpu, float32]",
    "check_array_api_input[dpnp, gpu, float64]",
    "check_array_api_input[dpnp, gpu, float32]",
    "check_array_api_mixed_inputs[torch mps, numpy]",
    "check_array_api_mixed_inputs[numpy, torch mps]",
}
WITHOUT = {
    "torch": {
        "check_array_api_input[torch, cpu, float64]",
        "check_array_api_input[torch, cpu, float32]",
        "check_array_api_mixed_inputs[array_api_strict device1, torch cpu]",
    },
    "torch_cuda": {
        "check_array_api_input[torch, cuda, float64]",
        "check_array_api_input[torch, cuda, float32]",
        "check_array_api_mixed_inputs[cupy, torch cuda]",
        "check_array_api_mixed_inputs[numpy, torch cuda]",
    },
    "cupy": {"check_array_api_input[cupy]", "check_array_api_mixed_inputs[cupy, torch cuda]"},
}
# scikit-learn's own classes skip it too: they have no decision_function.
NOT_APPLICABLE = {
    "MLPClassifier": {"check_classifiers_multilabel_output_format_decision_function"},
    "MLPRegressor": set(),
}
TOTAL, N_MORE = {"MLPClassifier": 88, "MLPRegressor": 81}, 6

# Every solver, and every part of `fit` that touches arrays, in every namespace, with values.
VARIANTS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"solver": "sgd", "learning_rate": "adaptive", "batch_size": 7, "early_stopping": True},
    "lbfgs": {"solver": "lbfgs", "activation": ["tanh", "gelu"], "hidden_layer_sizes": (5, 4), "max_iter": 5},
    "loss": {"early_stopping": "loss", "weight_decay": 0.1, "activation": "silu"},
}
STRICT = [("array_api_strict", "CPU_DEVICE", "float64"), ("array_api_strict", "device1", "float32")]
PLACES = {
    "torch": [("torch", "cpu", "float64"), ("torch", "cpu", "float32")],
    "torch_cuda": [("torch", "cuda", "float64"), ("torch", "cuda", "float32")],
    "cupy": [("cupy", None, "float64"), ("cupy", None, "float32")],
}


def label(check: partial[None]) -> str:
    """Name a check and what it is run with, without None."""
    values = [
        " ".join(filter(None, value)) if isinstance(value, tuple) else str(value)
        for value in check.keywords.values()
        if value is not None
    ]
    return check.func.__name__ + (f"[{', '.join(values)}]" if values else "")


def available() -> set[str]:
    """Say which libraries and devices the checks can use in this process."""
    backends = import_module("mlp_xp.backends")
    found = {"torch"} if util.find_spec("torch") else set()
    if "torch" in found and import_module("torch").cuda.is_available():
        found.add("torch_cuda")
    try:
        backends.backend("cupy")
    except backends.BackendUnavailableError:
        return found
    return {*found, "cupy"}


def run_checks(name: str) -> None:
    """Run all checks on the estimator of that name and print, for each, what came of it."""
    have, results = available(), {}
    # scikit-learn sets the version of the standard, and leaves what the standard makes optional.
    import_module("array_api_strict").set_array_api_strict_flags(
        boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
    )
    # scikit-learn asks whether CuPy is there and PyTorch built for CUDA, not whether there is a GPU.
    without_gpu = {case for name in {"cupy", "torch_cuda"} - have for case in WITHOUT[name]}
    Estimator = getattr(mlp_xp, name)
    for case, estimator, check in chain(
        all_checks(Estimator), more_checks(Estimator), value_checks(Estimator, have)
    ):
        assert case not in results, case
        if case in without_gpu:
            results[case] = "skipped: no GPU"
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", import_module("sklearn.exceptions").ConvergenceWarning)
            try:
                check(estimator)
            except SkipTest as reason:
                results[case] = f"skipped: {reason}"
            except Exception:
                results[case] = traceback.format_exc()
            else:
                results[case] = "passed"
    print(json.dumps(results))


def all_checks(Estimator: Any) -> Any:
    from sklearn.utils.estimator_checks import estimator_checks_generator

    for estimator, check in estimator_checks_generator(Estimator(max_iter=100)):
        yield label(check), estimator, check


def places(have: set[str]) -> list[tuple[str, str | None, str]]:
    """Return the places in which values are compared with NumPy's."""
    return STRICT + [place for library in sorted(have) for place in PLACES[library]]


def value_checks(Estimator: Any, have: set[str]) -> Any:
    """Yield checks that values, too, are NumPy's, for what `VARIANTS` lists."""
    from sklearn.utils.estimator_checks import check_array_api_input

    for variant, parameters in VARIANTS.items():
        estimator = Estimator(**{"max_iter": 20, "hidden_layer_sizes": (5,), **parameters})
        for namespace, device, dtype in places(have):
            place = {"array_namespace": namespace, "device_name": device, "dtype_name": dtype}
            values = {**place, "check_values": True, "check_sample_weight": True}
            check = partial(check_array_api_input, Estimator.__name__, **values)
            yield " ".join([variant, namespace, str(device), dtype]), estimator, check
    for place in places(have):
        estimator = Estimator(hidden_layer_sizes=(5,), max_iter=10, batch_size=8, random_state=0)
        yield " ".join(["tools", *map(str, place)]), estimator, partial(in_tools, place=place)


def in_tools(estimator: Any, place: tuple[str, Any, str]) -> None:
    """Check three classes and scikit-learn's tools, which its own checks leave out."""
    from sklearn import config_context
    from sklearn.base import clone, is_classifier
    from sklearn.datasets import make_classification
    from sklearn.model_selection import cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    namespace, device, dtype = place
    xp = import_module(namespace)
    X, y = make_classification(60, 5, n_informative=3, n_classes=3, random_state=0)
    X, y = X.astype(dtype), (y if is_classifier(estimator) else y.astype(dtype))
    device = xp.Device(device) if namespace == "array_api_strict" else device
    # The tools need what array_api_strict's flags take away.
    alone = namespace == "array_api_strict"
    model = estimator if alone else make_pipeline(StandardScaler(), estimator)
    X_xp, y_xp = xp.asarray(X, device=device), xp.asarray(y, device=device)
    expected = clone(model).fit(X, y)
    with config_context(array_api_dispatch=True):
        fitted = clone(model).fit(X_xp, y_xp)
        predicted = fitted.predict(X_xp)
        assert type(predicted) is type(y_xp)
        difference = mlp_xp.to_host(predicted) - expected.predict(X)
        assert abs(difference).max() < {"float64": 1e-9, "float32": 1e-3}[dtype]
        assert abs(fitted.score(X_xp, y_xp) - expected.score(X, y)) < 1e-3
        if not alone:
            scores = cross_val_score(model, X_xp, y_xp, cv=2) - cross_val_score(model, X, y, cv=2)
            assert abs(scores).max() < 1e-3


def more_checks(Estimator: Any) -> Any:
    """Yield what scikit-learn runs on its own estimators beside the checks of the generator."""
    from sklearn.utils import estimator_checks as checks

    for check, variants in {
        "check_dataframe_column_names_consistency": [{}, {"early_stopping": True, "n_iter_no_change": 1}],
        # Its own parameters for these two, and the default of the generator, which is adam.
        "check_sample_weight_equivalence_on_dense_data": [
            {"solver": "lbfgs"},
            {"solver": "sgd", "tol": 1e-2, "random_state": 42},
        ],
        "check_sample_weight_equivalence_on_sparse_data": [
            {"solver": "lbfgs"},
            {"solver": "sgd", "tol": 1e-2, "random_state": 42},
        ],
    }.items():
        for parameters in variants:
            yield (
                f"{check} {parameters}",
                Estimator(**{"max_iter": 100, **parameters}),
                partial(getattr(checks, check), Estimator.__name__),
            )


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["MLPClassifier", "MLPRegressor"])
def test_every_check_of_scikit_learn(name):
    sklearn = pytest.importorskip("sklearn")
    environment = {**os.environ, **ONE_THREAD, "SCIPY_ARRAY_API": "1"}
    environment.pop("PYTORCH_ENABLE_MPS_FALLBACK", None)
    child = subprocess.run([sys.executable, __file__, name], env=environment, capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    results = json.loads(child.stdout.splitlines()[-1])
    skipped = {case for case, result in results.items() if result.startswith("skipped: ")}
    failed = {case for case, result in results.items() if result != "passed"} - skipped
    assert not failed, "\n".join(f"{case}: {results[case]}" for case in failed)

    expected = NEVER | NOT_APPLICABLE[name]
    for library in WITHOUT.keys() - available():
        expected |= WITHOUT[library]
    assert skipped == expected

    # Everything that scikit-learn's own class is checked for, and what its tags do not declare.
    peer = getattr(import_module("sklearn.neural_network"), name)
    theirs = {case for case, _, _ in all_checks(peer)}
    assert not {case for case in theirs if "array_api" not in case} - set(results)
    if sklearn.__version__.startswith("1.9."):
        n_values = len(places(available())) * (len(VARIANTS) + 1)
        assert len(results) == TOTAL[name] + N_MORE + n_values


# Memory.

DATA = """
import json, sys, warnings
import numpy as np

n_samples, n_features, n_marked = 2**18, 2**10, 2**13
X = np.memmap(sys.argv[1], np.float32, mode="r", shape=(n_samples, n_features))
marked = np.arange(n_samples) < n_marked

def start():
    with open("/proc/self/status") as status:
        print(next(int(line.split()[1]) for line in status if line.startswith("RssAnon:")), flush=True)
"""
COPY = """
start()
held = np.array(X[: n_samples // 2])
print("null")
"""
FIT = """
import mlp_xp
warnings.simplefilter("ignore")  # one epoch does not converge
mlp_xp.MLPClassifier((4,), max_iter=1).fit(np.eye(4, dtype=np.float32), [0, 1, 0, 1])
start()
said = []
for Estimator, dtype in (mlp_xp.MLPClassifier, int), (mlp_xp.MLPRegressor, np.float32):
    model = Estimator(hidden_layer_sizes=(4,), activation="tanh", learning_rate_init=0.01, batch_size=2048,
                      max_iter=1, random_state=0)
    predicted = model.fit(X, marked.astype(dtype)).predict(X)
    said.append({
        "dtype": str(model.coefs_[0].dtype),
        "loss": model.loss_,
        "wrong": int(((predicted > 0.5) != marked).sum()),
        "away": float(np.abs(predicted[:999] - model.predict(np.array(X[:999]))).max()),
    })
print(json.dumps(said))
"""


def growth(code: str, path: Path) -> tuple[float, Any]:
    """Run Python code after `DATA`; return how many MB of anonymous memory it used, and its JSON."""
    command, environment = [sys.executable, "-c", DATA + code, str(path)], {**os.environ, **ONE_THREAD}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as child:
        start = int(child.stdout.readline())
        status, peak = Path(f"/proc/{child.pid}/status"), 0
        while child.poll() is None:
            for line in status.read_text().splitlines():
                if line.startswith("RssAnon:"):
                    peak = max(peak, int(line.split()[1]))
            time.sleep(0.005)
        assert child.returncode == 0
        return (peak - start) / 1024, json.loads(child.stdout.read())


@pytest.mark.slow  # `test_no_method_casts_or_copies_the_whole_of_the_samples` is its quick sister
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_stays_bounded_on_a_map_of_1_gb(tmp_path):
    path = tmp_path / "X.float32"
    with path.open("wb") as file:
        file.write(np.random.RandomState(0).uniform(size=(2**13, 2**10)).astype(np.float32).tobytes())
        file.truncate(4 * 2**28)
    try:
        # A copy of half of it is seen, so that the rest of this test says something.
        copied, _ = growth(COPY, path)
        used, models = growth(FIT, path)
        assert used < 400 < copied
        for model in models:
            assert model["dtype"] == "float32"
            assert model["loss"] < 0.25
            assert model["wrong"] < 100
            assert model["away"] < 1e-5
    finally:
        path.unlink()


if __name__ == "__main__":
    run_checks(*sys.argv[1:])
