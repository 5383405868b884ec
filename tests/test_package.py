"""What importing the package brings, and what it does not."""

import ast
import copy
import doctest
import importlib.util
import inspect
import json
import pickle
import pkgutil
import re
import subprocess
import sys
import typing
import warnings
import zipfile
from dataclasses import replace
from functools import partial
from importlib import import_module
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

import mlp_xp
import mlp_xp.datasets

pytestmark = pytest.mark.installed

PACKAGE = Path(mlp_xp.__file__).parent


PUBLIC = {
    "mlp_xp": [
        *("Activation", "BackendUnavailableError", "Callback", "Checkpoint"),
        *("CheckpointWarning", "DivergenceError", "EagerFallbackWarning"),
        *(
            "EarlyStopping",
            "History",
            "Initializer",
            "Layer",
            "Loss",
            "ModelFileError",
            "Network",
            "Optimizer",
        ),
        *(
            "OutOfMemoryError",
            "ProcessError",
            "Processes",
            "ProgressBar",
            "Schedule",
            "Trained",
            "TrainingError",
        ),
        *("TrainingInterruptedWarning", "adam", "backend", "cosine", "data_parallel"),
        *("decoupled_weight_decay", "elu"),
        *("evaluate", "glorot_uniform", "gradient_descent", "he_normal", "inverse_scaling", "leaky_relu"),
        *("load_model", "momentum", "normal", "one_hot", "save_model", "step_decay", "to_host", "train"),
        *("trusted_types", "zeros"),
    ],
    "mlp_xp.estimators": ["MLPClassifier", "MLPRegressor"],
    "mlp_xp.files": ["ModelFileError", "load_model", "save_model", "trusted_types"],
    "mlp_xp.plotting": ["plot_decision_boundary", "plot_learning_curve", "plot_network"],
}
"""The names that users may rely on; all other modules and names have an underscore."""


@pytest.mark.parametrize("module", PUBLIC)
def test_public_names(module):
    found = pytest.importorskip(module)
    assert found.__all__ == PUBLIC[module]
    if importlib.util.find_spec("sklearn"):
        assert set(found.__all__) <= set(dir(found))


def test_public_modules_are_those_that_help_names():
    modules = {module.name for module in pkgutil.iter_modules(mlp_xp.__path__)}
    public = {name for name in modules if not name.startswith("_")}
    assert public == {"backends", "datasets", "estimators", "files", "plotting", "tables"}
    for name in public:
        assert f"`mlp_xp.{name}`" in mlp_xp.__doc__
        package = import_module(f"mlp_xp.{name}") if name not in ("plotting", "tables") else None
        for part in pkgutil.iter_modules(getattr(package, "__path__", [])):
            assert part.name.startswith("_"), part.name
    for name in [*mlp_xp.__all__, "MLPClassifier", "MLPRegressor"]:
        assert f"`{name}`" in mlp_xp.__doc__, name


def test_tab_completion_shows_what_users_call():
    methods = {name for name in dir(mlp_xp.Network) if not name.startswith("_")}
    assert methods == {
        *("activation", "alpha", "init", "logits", "loss_and_gradients", "matmul_precision", "predict"),
    }


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
    exempt |= {"ModelFileError", "trusted_types"}
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


OPTIONAL = (
    "rich",
    "sklearn",
    "scipy",
    "matplotlib",
    "polars",
    "skops",
    "safetensors",
    "cupy",
    "torch",
    "jax",
)
"""Modules of packages that only the extras install, and array libraries."""


def without(missing, code):
    """Run code in a process where packages are not installed; return its output, and its errors."""
    hide = f"import sys; sys.modules |= dict.fromkeys({missing!r})\n"
    done = subprocess.run([sys.executable, "-c", hide + code], check=True, capture_output=True, text=True)
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("code", "package", "extra"),
    [
        ("mlp_xp.MLPRegressor", "scikit-learn", "mlp_xp[sklearn]"),
        ("from mlp_xp.estimators import *", "scikit-learn", "mlp_xp[sklearn]"),
        ("mlp_xp.datasets.load('moons')", "scikit-learn", "mlp_xp[sklearn]"),
        ("mlp_xp.datasets.load('digits')", "scikit-learn", "mlp_xp[sklearn]"),
        ("import mlp_xp.plotting", "matplotlib", "mlp_xp[plot]"),
        ("import mlp_xp.tables", "polars", "mlp_xp[cli]"),
        ("from mlp_xp.tables import load_run", "polars", "mlp_xp[cli]"),
        ("mlp_xp.save_model('file', None)", "safetensors", "mlp_xp[files]"),
        ("mlp_xp.ProgressBar()", "rich", "mlp_xp[cli]"),
        ("mlp_xp.backend('cupy')", "CuPy", "mlp_xp[cuda12]"),
        ("mlp_xp.backend('cupy')", "CuPy", "mlp_xp[cuda13]"),
        ("mlp_xp.backend('torch')", "PyTorch", "torch"),
        ("mlp_xp.backend('jax')", "JAX", "jax"),
    ],
)
def test_what_is_not_installed_is_named(code, package, extra):
    code = f"""
import mlp_xp, mlp_xp.datasets
try:
    exec({code!r})
except (ImportError, mlp_xp.BackendUnavailableError) as error:
    print(error)
"""
    said, _ = without(OPTIONAL, code)
    assert package in said
    assert "pip install" in said
    assert extra in said


def test_runs_name_what_is_not_installed():
    pytest.importorskip("polars")
    pytest.importorskip("sklearn")
    code = "from mlp_xp.tables import load_run; load_run('run')"
    said, _ = without(("sklearn",), f"try: exec({code!r})\nexcept ImportError as error: print(error)")
    assert said.startswith("load_run needs scikit-learn (No module named 'sklearn")
    assert said.endswith("): pip install 'mlp_xp[cli]'\n")


def test_the_core_alone_has_help_and_all_names():
    code = """
import pydoc, mlp_xp, mlp_xp.estimators
from mlp_xp import *
print(len(pydoc.render_doc(mlp_xp)), len(pydoc.render_doc(mlp_xp.estimators)))
try:
    mlp_xp.nothing
except AttributeError as error:
    print(error)
"""
    said, _ = without(OPTIONAL, code)
    assert said.endswith("module 'mlp_xp' has no attribute 'nothing'\n")


def test_the_command_lists_devices_with_the_core_alone():
    code = """
import mlp_xp._cli as cli
for arguments in ([], ["--json"], ["--quiet"]):
    assert cli.main(["devices", *arguments]) == 0
assert cli.main(["train", "xor"]) == 2
"""
    said, errors = without(OPTIONAL, code)
    table, _, document = said.partition("{")
    assert "none: PyTorch is not installed: pip install torch\n" in table
    packages = "rich, scikit-learn, polars, matplotlib, safetensors"
    assert f"The other commands need {packages}: pip install 'mlp_xp[cli]'\n" in table
    assert json.loads("{" + document)["missing"] == packages.split(", ")
    assert errors == f"mlp-xp: {packages} not installed: pip install 'mlp_xp[cli]'\n"


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


# Rooms.

ROOMS = [
    *(
        "_version",
        "_messages",
        "_warnings",
        "_interrupts",
        "_cache",
        "_functions",
        "_processes",
        "_validation",
    ),
    *("_arrays", "_devices", "_uploads", "backends", "datasets"),
    *("_activations", "_losses", "_initializers", "_schedules", "_parameters", "_optimizers"),
    *("_compiler", "_samples", "_streams", "_network", "_disk", "_engines", "_training"),
    *("plotting", "estimators", "files", "tables", "_cli"),
]
"""From the ground floor up: a room imports only rooms before it."""


def modules():
    """Yield the name, the room and the syntax tree of each module."""
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] not in ("__init__", "__main__"):
            name = ".".join(part for part in parts if part != "__init__")
            yield name, parts[0], ast.parse(path.read_text())


def imported(tree, names):
    """Return the modules of the package that a module imports: at its top, in functions, for types."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "mlp_xp":
            module = node.module.removeprefix("mlp_xp").removeprefix(".")
            found |= {f"{module}.{alias.name}".removeprefix(".") for alias in node.names} & names or {module}
        elif isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names if alias.name.split(".")[0] == "mlp_xp"]
            found |= {path.removeprefix("mlp_xp").removeprefix(".") for path in paths}
    return found


def test_rooms_import_rooms_below_them_only():
    parsed = list(modules())
    names = {name for name, _, _ in parsed}
    assert {room for _, room, _ in parsed} == set(ROOMS)
    for name, room, tree in parsed:
        for other in imported(tree, names):
            floor = other.split(".")[0]
            assert floor == room or ROOMS.index(floor) < ROOMS.index(room), (
                f"{name} imports {other or 'mlp_xp'}"
            )


def test_modules_import_in_one_direction():
    parsed = list(modules())
    names = {name for name, _, _ in parsed}
    arrows = {name: imported(tree, names) for name, _, tree in parsed}
    while arrows:
        sinks = {name for name, others in arrows.items() if not others & arrows.keys()}
        assert sinks, f"these import each other: {arrows}"
        arrows = {name: others for name, others in arrows.items() if name not in sinks}


# Pickles.


def pickled():
    """Yield objects that users make with public functions and classes."""
    yield from (mlp_xp.leaky_relu(0.1), mlp_xp.elu(0.5), mlp_xp.normal(0.1), mlp_xp.glorot_uniform(2.0))
    yield from (mlp_xp.he_normal(), mlp_xp.zeros(), mlp_xp.cosine(0.1, 5), mlp_xp.step_decay(0.1, 5))
    yield from (mlp_xp.inverse_scaling(0.1), mlp_xp.gradient_descent(0.1), mlp_xp.momentum(0.1, 0.5))
    yield from (mlp_xp.adam(mlp_xp.cosine(0.1, 5)), mlp_xp.momentum(0.1, 0.0), mlp_xp.EarlyStopping("loss"))
    yield mlp_xp.decoupled_weight_decay(mlp_xp.momentum(0.1, nesterovs_momentum=True), 0.1)
    yield mlp_xp.Network((2, 3, 1), activation=[mlp_xp.leaky_relu(0.2)], loss="poisson")
    yield mlp_xp.Network((2, 1), loss="binary_cross_entropy", alpha=0.1, matmul_precision="tf32")
    yield mlp_xp.datasets.xor()


def private_names(data):
    """Return the private names of the package in a pickle's text."""
    return [name for name in re.findall(rb"mlp_xp[.\w]*", data) if b"._" in name]


@pytest.mark.parametrize("thing", list(pickled()), ids=lambda thing: type(thing).__name__)
def test_pickles_name_public_addresses_only(thing):
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(thing, protocol)
        assert b"mlp_xp" in data
        assert not private_names(data)
        again = pickle.loads(data)
        assert type(again) is type(thing)
        if isinstance(thing, mlp_xp.datasets.Dataset):
            assert again.feature_names == thing.feature_names
        else:
            assert again == thing
            assert hash(again) == hash(thing)
            assert copy.deepcopy(thing) == thing


def test_pickles_of_results_name_public_addresses_only():
    X = np.linspace(-1.0, 1.0, 20)[:, None]
    network = mlp_xp.Network((1, 3, 1), activation="tanh", loss="squared_error")
    start = network.init(0, like=X)
    result = mlp_xp.train(network, start, X, X, optimizer=mlp_xp.adam(), epochs=2)
    with pytest.raises(mlp_xp.DivergenceError) as diverged:
        mlp_xp.train(network, start, X, 1e200 * X, optimizer=mlp_xp.gradient_descent(1e200), epochs=9)
    data = pickle.dumps((network, result, diverged.value))
    assert not private_names(data)
    _, again, error = pickle.loads(data)
    assert again.history == result.history
    assert error.history == diverged.value.history
    np.testing.assert_array_equal(again.params[0].weight, result.params[0].weight)


@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "adam", "early_stopping": True, "warm_start": True},
        {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 1.0},
        {"solver": "lbfgs"},
        {"solver": "sgd", "momentum": 0.0, "random_state": np.random.RandomState(0)},
    ],
)
def test_pickles_of_estimators_name_public_addresses_only(settings):
    estimators = pytest.importorskip("mlp_xp.estimators")
    pytest.importorskip("sklearn")
    data = mlp_xp.datasets.planar()
    model = estimators.MLPClassifier(
        (4,), mlp_xp.leaky_relu(0.1), max_iter=5, **{"random_state": 0} | settings
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data.X, data.y)
        text = pickle.dumps(model)
        assert not private_names(text)
        again = pickle.loads(text)
        np.testing.assert_array_equal(again.predict_proba(data.X), model.predict_proba(data.X))
        # The copy continues as the model itself does: nothing that a training needs is lost.
        if settings["solver"] != "lbfgs":
            for each in (again, model):
                each.set_params(early_stopping=False).partial_fit(data.X, data.y)
            np.testing.assert_array_equal(again.coefs_[0], model.coefs_[0])


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer", "ignore:lbfgs failed")
@pytest.mark.parametrize(
    "settings",
    [
        {"solver": "adam", "early_stopping": True, "warm_start": True},
        {"solver": "adam", "early_stopping": "loss", "activation": mlp_xp.leaky_relu(0.1)},
        {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 1.0},
        {"solver": "sgd", "momentum": 0.0, "random_state": np.random.RandomState(0)},
        {"solver": "sgd", "nesterovs_momentum": False, "activation": ("tanh", mlp_xp.elu(0.3))},
        {"solver": "lbfgs", "activation": "gelu"},
    ],
)
@pytest.mark.parametrize("targets", ["classes", "text", "labels", "sparse labels", "numbers", "counts"])
def test_skops_files_hold_trusted_types_only(settings, targets, tmp_path):
    io, estimators = pytest.importorskip("skops.io"), pytest.importorskip("mlp_xp.estimators")
    sparse = pytest.importorskip("scipy.sparse")
    data = mlp_xp.datasets.planar(n_samples=60)
    X, classes = data.X, data.y.astype(int)
    labels = np.stack([classes, 1 - classes], axis=1)
    y = {
        "classes": classes,
        "text": np.array(["no", "yes"])[classes],
        "labels": labels,
        "sparse labels": sparse.csr_array(labels),
        "numbers": X,
        "counts": abs(X[:, 0]),
    }[targets]
    kind = estimators.MLPRegressor if targets in ("numbers", "counts") else estimators.MLPClassifier
    settings = settings | ({"loss": "poisson"} if targets == "counts" else {})
    model = kind(**{"hidden_layer_sizes": (4, 3), "max_iter": 3, "random_state": 0} | settings)
    model.set_callbacks(mlp_xp.ProgressBar()).fit(X, y)
    text = io.dumps(model)
    assert set(io.get_untrusted_types(data=text)) <= set(mlp_xp.trusted_types)
    with zipfile.ZipFile(BytesIO(text)) as archive:
        assert not private_names(archive.read("schema.json"))
    again = io.loads(text, trusted=mlp_xp.trusted_types)
    assert again.activation == model.activation
    mlp_xp.save_model(tmp_path / "model.safetensors", again)
    for each in (again, model):
        if settings["solver"] != "lbfgs":
            each.set_params(early_stopping=False).partial_fit(X, y)
    np.testing.assert_array_equal(again.coefs_[0], model.coefs_[0])


def test_functions_of_ones_own_have_to_be_trusted_by_name():
    io, estimators = pytest.importorskip("skops.io"), pytest.importorskip("mlp_xp.estimators")
    known = mlp_xp.leaky_relu(0.1)
    model = estimators.MLPRegressor(activation=mlp_xp.Activation(cubed, known.backward))
    untrusted = set(io.get_untrusted_types(data=io.dumps(model))) - set(mlp_xp.trusted_types)
    assert f"{__name__}.cubed" in untrusted
    assert pickle.loads(pickle.dumps(model.activation)) == model.activation


def cubed(xp, z):
    return z**3, z


# Reprs.


@pytest.mark.parametrize("thing", list(pickled())[:-1], ids=repr)
def test_reprs_are_the_call_that_makes_an_equal_one(thing):
    assert eval(repr(thing), vars(mlp_xp)) == thing
    assert repr(pickle.loads(pickle.dumps(thing))) == repr(thing)


class Halved:
    def __call__(self, epoch):
        return 0.5**epoch


class Numbered(Halved):
    def __repr__(self):
        return f"<numbered {hex(id(self))}>"


@pytest.mark.parametrize(
    ("thing", "expected"),
    [
        (mlp_xp.gradient_descent(Numbered()), "gradient_descent(learning_rate=<numbered>)"),
        (mlp_xp.adam(cubed), "adam(learning_rate=<function cubed>, beta_1=0.9, beta_2=0.999, epsilon=1e-08)"),
        (mlp_xp.gradient_descent(Halved()), f"gradient_descent(learning_rate=<{__name__}.Halved object>)"),
        (
            mlp_xp.gradient_descent(partial(cubed, 2)),
            "gradient_descent(learning_rate=functools.partial(<function cubed>, 2))",
        ),
        (mlp_xp.Activation(cubed, cubed), "Activation(forward=<function cubed>, backward=<function cubed>)"),
        (
            mlp_xp.Loss(cubed, cubed),
            "Loss(link=<function cubed>, evaluate=<function cubed>, decide=None, problem=None)",
        ),
        (mlp_xp.leaky_relu(0.1).backward, "leaky_relu(slope=0.1).backward"),
        (
            mlp_xp.Activation(mlp_xp.elu().forward, cubed),
            "Activation(forward=elu(alpha=1.0).forward, backward=<function cubed>)",
        ),
        (
            replace(mlp_xp.gradient_descent(0.1), learning_rate=0.2),
            r"Optimizer\(init=.*, learning_rate=0.2\)",
        ),
        (mlp_xp.Network((2, 1), loss=mlp_xp.Loss(cubed, cubed)), r"Network\(.*loss=Loss\(link=.*\).*\)"),
    ],
)
def test_reprs_have_no_memory_addresses(thing, expected):
    assert repr(thing) == expected or re.fullmatch(expected, repr(thing))
    assert "0x" not in repr(thing)


@pytest.mark.parametrize("wrong", [cubed, Numbered(), object()])
def test_errors_show_values_without_memory_addresses(wrong):
    with pytest.raises(TypeError, match="^`beta_1` must be ") as caught:
        mlp_xp.adam(beta_1=wrong)
    assert "0x" not in str(caught.value)


def test_estimators_show_parameters_without_memory_addresses():
    estimators, selection = (
        pytest.importorskip("mlp_xp.estimators"),
        pytest.importorskip("sklearn.model_selection"),
    )
    model = estimators.MLPRegressor(activation=mlp_xp.leaky_relu(0.1), solver="lbfgs")
    assert repr(model) == "MLPRegressor(activation=leaky_relu(slope=0.1), solver='lbfgs')"
    assert "leaky_relu(slope=0.1)" in model._repr_html_()
    grid = {"activation": ["tanh", mlp_xp.elu(0.5), [mlp_xp.elu(1)], mlp_xp.Activation(cubed, cubed)]}
    search = selection.GridSearchCV(model, grid, cv=2, error_score=0.0)
    X = np.linspace(-1.0, 1.0, 20)[:, None]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(X, X[:, 0])
    for text in (repr(search), search._repr_html_(), repr(search.cv_results_), str(search.best_params_)):
        assert " at 0x" not in text
    assert "elu(alpha=0.5)" in repr(search.cv_results_)


def test_former_names_of_arguments_say_the_new_ones():
    with pytest.raises(TypeError, match="^`hidden` is now called `activation`$"):
        mlp_xp.Network((2, 3, 1), hidden="tanh", loss="squared_error")
    # The signature that tab completion and help show is that of the class itself.
    names = list(inspect.signature(mlp_xp.Network).parameters)
    assert names == ["layer_sizes", "activation", "loss", "alpha", "matmul_precision"]


def test_a_typed_users_script_runs():
    """The type check of the package includes it; here it is run."""
    script = Path(__file__).with_name("typed_user.py")
    output = subprocess.run([sys.executable, script], check=True, capture_output=True, text=True).stdout
    assert output == "True\n"


@pytest.mark.parametrize("name", [*mlp_xp.__all__, "MLPClassifier", "MLPRegressor"])
def test_annotations_of_public_names_can_be_resolved(name):
    thing = getattr(mlp_xp, name)
    if inspect.isfunction(thing) or inspect.isclass(thing):
        hints = typing.get_type_hints(thing)
        assert all(not isinstance(hint, str) for hint in hints.values())


def test_subclasses_of_a_network_are_pickled_and_copied():
    network = Wide(5, loss="squared_error")
    network.__dict__["note"] = "kept"
    for again in (pickle.loads(pickle.dumps(network)), copy.copy(network), copy.deepcopy(network)):
        assert again == network
        assert type(again) is Wide
        assert again.note == "kept"
    changed = replace(mlp_xp.adam(0.1), learning_rate=0.5)
    assert not private_names(pickle.dumps(changed))
    assert pickle.loads(pickle.dumps(changed)) == changed
    loss = mlp_xp.Loss(abs, divmod)
    assert not private_names(pickle.dumps(loss))
    assert pickle.loads(pickle.dumps(loss)) == loss


class Wide(mlp_xp.Network):
    """A network with an argument of its own."""

    def __init__(self, width, **settings):
        super().__init__((2, width, 1), **settings)
