"""The namespaces that every test of the math runs in.

``--require torch,jax`` makes missing libraries an error instead of a skip, so that a matrix run cannot
pass by leaving them out. ``--libraries cupy,torch_cuda,jax_cuda`` runs in these alone what runs in
namespaces, and what is marked with `cuda`. ``--mutations 20000`` damages that many model files instead of
a few, ``--kills 200`` kills as many trainings. ``--slow`` adds what is marked with `slow`: commands in
processes of their own, long searches, and all cases of what is marked with `sampled`. ``--record FILE``
writes down what passes, and ``--but FILE`` leaves that out where other libraries are installed.
"""

from __future__ import annotations

import gc
import os
from collections import Counter
from collections.abc import Generator
from importlib import import_module, util
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

# Before JAX starts: float64 exists, and nothing looks for accelerators that tests do not need.
os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests run on every core already, and their matrices are small.
if "PYTEST_XDIST_WORKER" in os.environ:
    for variable in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS"):
        os.environ.setdefault(variable, "1")
# Pictures need no screen.
os.environ.setdefault("MPLBACKEND", "agg")

import numpy as np
import pytest

from mlp_xp._arrays import Placement, placement, to_host


class Library(NamedTuple):
    """An array library to test in, and how arrays of it are made from NumPy's."""

    name: str
    xp: Any
    device: Any
    read_only: bool = False

    def array(self, values: Any, dtype: str = "float64") -> Any:
        host = np.array(values, dtype=dtype)
        if self.xp is np:
            host.flags.writeable = not self.read_only
            return host
        return self.xp.asarray(host, device=self.device)

    def place(self, dtype: str = "float64") -> Placement:
        return placement(like=self.array([1.0], dtype))


def _strict() -> Library:
    xp = import_module("array_api_strict")
    xp.set_array_api_strict_flags(
        api_version="2024.12", boolean_indexing=False, data_dependent_shapes=False, enabled_extensions=()
    )
    return Library("strict", xp, xp.Device("device1"))


def _torch() -> Library:
    torch = import_module("torch")
    torch.set_num_threads(1)
    return Library("torch", import_module("array_api_compat.torch"), torch.device("cpu"))


def _torch_cuda() -> Library:
    torch = import_module("torch")
    if not torch.cuda.is_available():
        raise ModuleNotFoundError("PyTorch finds no CUDA GPU")
    return Library("torch_cuda", import_module("array_api_compat.torch"), torch.device("cuda:0"))


def _jax() -> Library:
    return _jax_on("jax", "cpu")


def _jax_cuda() -> Library:
    return _jax_on("jax_cuda", "cuda")


def _jax_on(name: str, platform: str) -> Library:
    jax = import_module("jax")
    try:
        return Library(name, jax.numpy, jax.devices(platform)[0])
    except RuntimeError as error:
        # The whole of JAX fails where one of JAX_PLATFORMS does.
        first_line = str(error).splitlines()[0]
        asked = os.environ["JAX_PLATFORMS"]
        raise ModuleNotFoundError(
            f"JAX finds no {platform} device where JAX_PLATFORMS={asked}: {first_line}"
        ) from None


def _cupy() -> Library:
    from mlp_xp.backends import BackendUnavailableError, backend

    try:
        found = backend("cupy")
    except BackendUnavailableError as error:
        raise ModuleNotFoundError(str(error)) from None
    return Library("cupy", found.xp, found.device)


LIBRARIES = {
    "numpy": lambda: Library("numpy", np, "cpu"),
    "numpy_read_only": lambda: Library("numpy_read_only", np, "cpu", read_only=True),
    "strict": _strict,
    "torch": _torch,
    "jax": _jax,
    "cupy": _cupy,
    "torch_cuda": _torch_cuda,
    "jax_cuda": _jax_cuda,
}


# On a CUDA GPU a training that looks at values cannot be captured, and a warning says that it runs call by
# call. For tests that train so.
may_run_call_by_call = pytest.mark.filterwarnings("ignore::mlp_xp.EagerFallbackWarning")


COMPILERS = ("nvrtc", "numba")
"""What single tests need beside the libraries, under the same rule."""

_made: dict[str, Library] = {}
_missing: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require", default="", help="libraries whose absence is an error, by commas")
    parser.addoption("--libraries", default="", help="the only libraries to test in, by commas")
    parser.addoption("--record", type=Path, help="file to add the names of tests to that pass")
    parser.addoption("--but", type=Path, help="file with names of tests to leave out")
    parser.addoption("--mutations", default=800, type=int, help="how many damaged model files to load")
    parser.addoption("--kills", default=20, type=int, help="how often to kill trainings with checkpoints")
    parser.addoption("--slow", action="store_true", help="also what takes seconds each")


def required(config: pytest.Config) -> list[str]:
    return _names(config, "--require")


def _names(config: pytest.Config, option: str) -> list[str]:
    names: str = config.getoption(option)
    return names.split(",") if names else []


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cuda: says whether what is assumed of a GPU is true of this one")
    config.addinivalue_line(
        "markers", "pictures: draws the pictures that other tests of the command leave empty"
    )
    config.addinivalue_line("markers", "slow: takes seconds, as a process does, and runs with --slow alone")
    config.addinivalue_line("markers", "sampled(n): takes seconds in all; one case in n runs without --slow")
    config.addinivalue_line("markers", "installed: looks at what is installed; never left out by --but")
    if config.getoption("--record") is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Record(config.getoption("--record")))
    chosen = _names(config, "--libraries")
    unknown = [name for name in (*chosen, *required(config)) if name not in (*LIBRARIES, *COMPILERS)]
    if unknown:
        raise pytest.UsageError(f"unknown library {unknown[0]!r}; there are {', '.join(LIBRARIES)}")
    for name, make in LIBRARIES.items():
        if chosen and name not in chosen:
            continue
        try:
            _made[name] = make()
        except ModuleNotFoundError as error:
            _missing[name] = str(error)
    absent = [name for name in required(config) if name in _missing]
    if absent:
        raise pytest.UsageError(f"required, but {'; '.join(_missing[name] for name in absent)}")


class _Record:
    """Writes down which tests pass."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self.names.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(f"{name}\n" for name in self.names)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    # Modules and tests stay until the end: neither this nor the tests need to search them for garbage.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before `-m slow` is looked at
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not _names(config, "--libraries"):
        _sample(items)
    kept = items if config.getoption("--slow") else [item for item in items if not _is(item, "slow")]
    if config.getoption("--but") is not None:
        passed = set(config.getoption("--but").read_text(encoding="utf-8").splitlines())
        kept = [item for item in kept if item.nodeid not in passed or _is(item, "installed")]
    if _names(config, "--libraries"):
        kept = [item for item in kept if "library" in getattr(item, "fixturenames", ()) or _is(item, "cuda")]
    chosen = set(kept)
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = kept


def _sample(items: list[pytest.Item]) -> None:
    """Mark as slow all but the first case, and one in n by chance, of tests marked with `sampled`."""
    n_cases: Counter[str] = Counter()
    for item in items:
        sampled = item.get_closest_marker("sampled")
        if sampled is not None:
            function = item.nodeid.partition("[")[0]
            if n_cases[function] and crc32(item.nodeid.encode()) % sampled.args[0]:
                item.add_marker("slow")
            n_cases[function] += 1


def _is(item: pytest.Item, marker: str) -> bool:
    return item.get_closest_marker(marker) is not None


def pytest_report_header() -> list[str]:
    missing = "; ".join(f"{name} ({why})" for name, why in _missing.items()) or "none"
    return [f"namespaces: {', '.join(_made)}", f"not tested here: {missing}"]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "library" in metafunc.fixturenames:
        metafunc.parametrize("library", [pytest.param(made, id=name) for name, made in _made.items()])


def need(name: str, request: pytest.FixtureRequest) -> Any:
    """Import a library that one test needs, under the same rule as the namespaces."""
    if util.find_spec(name) is None and name not in required(request.config):
        pytest.skip(f"{name} is not installed")
    return import_module(name)


def assert_close(actual: Any, expected: Any, like: Any, *, rtol: float, atol: float = 0.0) -> None:
    """Compare values after namespace, dtype and device, which must be those of `like`."""
    found, wanted = placement(actual=actual), placement(like=like)
    assert (found.xp, found.device, actual.dtype) == (wanted.xp, wanted.device, wanted.dtype)
    expected = np.asarray(expected)
    assert tuple(actual.shape) == expected.shape
    np.testing.assert_allclose(to_host(actual), expected, rtol=rtol, atol=atol)


@pytest.fixture(autouse=True)
def no_compiled_loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let NumPy compute what tests train, however long they seem to; tests of compiled loops undo this."""
    monkeypatch.setattr("mlp_xp._engines.loops.MIN_SECONDS", float("inf"))


@pytest.fixture
def empty_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs save empty pictures, but in tests marked with `pictures`: drawing takes most of a run."""
    if not _is(request.node, "pictures"):
        leave_pictures_empty(monkeypatch)


def leave_pictures_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the command save each of its pictures without anything in it."""
    figure = import_module("matplotlib.figure").Figure
    pictures, sweep = import_module("mlp_xp.tables._pictures"), import_module("mlp_xp._cli.sweep")
    drawers = pictures.picture_drawers
    monkeypatch.setattr(
        pictures,
        "picture_drawers",
        lambda *run: {name: lambda axes: axes.set_axis_off() for name in drawers(*run)},
    )
    monkeypatch.setattr(sweep, "draw", lambda *trials: figure())
