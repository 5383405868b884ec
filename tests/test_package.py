"""What importing the package brings, and what it does not."""

import doctest
import json
import subprocess
import sys
from pathlib import Path

import mlp_xp

PACKAGE = Path(mlp_xp.__file__).parent


def test_all_is_what_there_is():
    public = {
        name
        for name, value in vars(mlp_xp).items()
        if not name.startswith("_") and type(value).__name__ != "module"
    }
    assert set(mlp_xp.__all__) == public
    assert mlp_xp.__all__ == sorted(mlp_xp.__all__)


def test_everything_public_has_a_docstring_with_an_example():
    exempt = {"TrainingError", "TrainingInterruptedWarning", "DivergenceError", "Layer", "Loss", "Optimizer"}
    exempt.add("ModelFileError")
    for name in mlp_xp.__all__:
        documentation = getattr(mlp_xp, name).__doc__
        assert documentation, name
        if name not in exempt:
            assert ">>> " in documentation, name


def test_examples_of_public_classes_and_their_methods_run():
    # Their address is not the module that defines them, where pytest looks for examples.
    finder, flags = doctest.DocTestFinder(exclude_empty=True), doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    runner = doctest.DocTestRunner(optionflags=flags)
    found = [
        test
        for name in mlp_xp.__all__
        if isinstance(getattr(mlp_xp, name), type)
        for test in finder.find(getattr(mlp_xp, name), name, module=False, globs={})
    ]
    assert {"Network", "Network.init", "Network.predict"} <= {test.name for test in found}
    for test in found:
        assert runner.run(test).failed == 0, test.name


def test_import_brings_no_array_library_but_numpy():
    code = "import sys, json, mlp_xp; print(json.dumps(sorted(sys.modules)))"
    modules = json.loads(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout)
    loaded = {module.split(".")[0] for module in modules}
    assert "numpy" in loaded
    heavy = {"cupy", "torch", "jax", "sklearn", "scipy", "matplotlib", "polars", "pandas", "rich", "argparse"}
    assert not loaded & (heavy | {"safetensors", "hashlib", "pathlib"})
    # These come with array_api_compat.numpy, and cost more than everything else together.
    assert not {"numpy.f2py", "unittest", "numpy.testing"} & set(modules)


def test_training_imports_no_other_array_library():
    code = """
import sys, numpy as np
from mlp_xp import Network, adam, train
X = np.ones((4, 2))
network = Network((2, 3, 1), loss="squared_error")
train(network, network.init(0, like=X), X, X[:, :1], optimizer=adam(), epochs=2, batch_size=3)
print(any(name in sys.modules for name in ("cupy", "torch", "jax", "sklearn")))
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "False"


def test_estimators_are_there_when_asked_for():
    code = """
import sys, mlp_xp
assert {"MLPClassifier", "MLPRegressor"} <= set(dir(mlp_xp)) and "sklearn" not in sys.modules
from mlp_xp import MLPClassifier, MLPRegressor
assert "sklearn" in sys.modules
print(MLPClassifier(alpha=1.0), MLPRegressor.__module__)
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.split() == ["MLPClassifier(alpha=1.0)", "mlp_xp.estimators"]


def test_without_scikit_learn_estimators_say_what_to_install():
    code = """
import sys
sys.modules["sklearn"] = None
from mlp_xp import *
import mlp_xp
try:
    from mlp_xp import MLPRegressor
except ImportError as error:
    print(error)
try:
    mlp_xp.nothing
except AttributeError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    first, second = output.splitlines()
    assert first.startswith("MLPRegressor needs scikit-learn 1.9 or later (")
    assert first.endswith("): pip install 'mlp_xp[sklearn]'")
    assert second == "module 'mlp_xp' has no attribute 'nothing'"


def test_the_package_is_typed():
    assert (PACKAGE / "py.typed").exists()


def test_only_four_rooms_know_array_libraries():
    for path in PACKAGE.rglob("*.py"):
        if path.name in ("_arrays.py", "backends.py", "_devices.py") or path.parent.name == "_engines":
            continue
        for line in path.read_text().splitlines():
            words = line.split()
            assert words[:1] not in (["import"], ["from"]) or words[1].split(".")[0] not in (
                "cupy",
                "torch",
                "jax",
                "array_api_compat",
            ), f"{path.name}: {line}"
