"""The benchmark suite: that all who take part do the same work. No timings here."""

import json
import math
import os
import re
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import need

pytest.importorskip("rich")
pytest.importorskip("sklearn", minversion="1.9")

from rich.console import Console

from benchmarks import __main__ as command
from benchmarks import comparison as comparing
from benchmarks import (
    evaluation,
    growth,
    machine,
    memory,
    participants,
    peers,
    precision,
    report,
    summary,
    workers,
)
from benchmarks.comparison import Comparison, Outcome, new_comparison
from benchmarks.participants import engines
from benchmarks.timing import Timings
from benchmarks.workloads import (
    DEFAULTS,
    SEED,
    WORKLOADS,
    Workload,
    default_workloads,
    make_data,
    make_start,
    quick_workloads,
    workloads_for,
)
from mlp_xp import EagerFallbackWarning

pytestmark = pytest.mark.installed

# Each kind of workload; 67 rows are no whole number of batches.
TINY = {
    "logistic": replace(WORKLOADS["xor"], epochs=5),
    "tanh": replace(WORKLOADS["planar"], epochs=5),
    "float64": replace(WORKLOADS["cancer-f64"], sizes=(30, 8, 1), rows=67, epochs=3),
    "float32": replace(WORKLOADS["cancer-f32"], sizes=(30, 8, 1), rows=67, epochs=3),
    "adam": replace(WORKLOADS["adam"], sizes=(12, 8, 6, 3), rows=67, batch_size=20, epochs=3),
    "deep": replace(WORKLOADS["deep"], sizes=(8, 9, 9, 9, 1), rows=67, batch_size=30, epochs=2),
    "predict_one": replace(WORKLOADS["predict-one"], calls=2),
    "predict_many": replace(WORKLOADS["predict-million"], sizes=(8, 9, 9, 1), rows=67, block=20),
}
# Each kind that has the estimators' defaults, with batches of two sizes.
BY_DEFAULT = {
    "classes": replace(WORKLOADS["digits"], rows=250, epochs=3),
    "float32": replace(WORKLOADS["images-f32"], sizes=(12, 100, 3), rows=467, epochs=3),
    "tol": replace(WORKLOADS["digits-regressor"], data="cancer", sizes=(30, 100, 1), rows=569),
    "accuracy": replace(WORKLOADS["table"], rows=300, epochs=100),
    "r2": replace(WORKLOADS["table-regressor"], rows=300, epochs=12),
    "stream": replace(WORKLOADS["stream"], rows=320),
    "stream_of_values": replace(WORKLOADS["stream-regressor"], rows=320),
}
FEW = {
    "mlp_xp on JAX": ["float64"],
    "JAX": ["tanh", "float32", "adam", "predict_one"],
    "JAX, scanned": ["tanh", "adam", "predict_one"],
}
"""Kinds for those who compile each of them."""
WITH_OUTCOME = [
    name
    for name, participant in participants.PARTICIPANTS.items()
    if name != participants.LIMIT and "cpu" in participant.devices
]
NEEDS = {
    "mlp_xp on JAX": "jax",
    "JAX": "jax",
    "JAX, scanned": "jax",
    "mlp_xp on PyTorch": "torch",
    "PyTorch": "torch",
}


def loss(name, workload, prepare=None, device="cpu"):
    return loss_and_curve(name, workload, prepare, device)[0]


def loss_and_curve(name, workload, prepare=None, device="cpu"):
    prepare = prepare or participants.PARTICIPANTS[name].load()
    task = participants.Task(workload, make_data(workload), make_start(workload), device)
    prepared = prepare(task)
    done = prepared.repeat()
    first = evaluation.loss_of(workload, task.data, prepared.outcome(done))
    curve = prepared.curve and prepared.curve(done)
    # The second repeat starts where the first one did, not where it ended.
    assert evaluation.loss_of(workload, task.data, prepared.outcome(prepared.repeat())) == first
    return first, curve


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in WITH_OUTCOME if name != "torch.compile" for kind in FEW.get(name, TINY)],
)
def test_all_end_at_the_same_loss(name, kind, request):
    if name in NEEDS:
        need(NEEDS[name], request)
    workload = TINY[kind]
    reference = loss("scikit-learn", workload)
    assert loss(name, workload) == pytest.approx(reference, rel=workload.tolerance, abs=0)
    if not workload.predicts:
        start = evaluation.loss_of_parameters(workload, make_data(workload), make_start(workload).layers)
        assert not math.isclose(reference, start, rel_tol=10 * workload.tolerance), "nothing was learned"


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in ("mlp_xp", "PyTorch") for kind in BY_DEFAULT]
    + [("JAX", kind) for kind in ("classes", "tol", "accuracy", "stream")]
    + [("mlp_xp on JAX", "r2")],
)
def test_peers_do_what_the_estimators_do_by_default(name, kind, request):
    if name in NEEDS:
        need(NEEDS[name], request)
    workload = BY_DEFAULT[kind]
    reference, curve = loss_and_curve("scikit-learn", workload)
    found, others_curve = loss_and_curve(name, workload)
    assert found == pytest.approx(reference, rel=workload.tolerance, abs=0)
    # Not the first: in scikit-learn the loss of a row that is far off, as at the start, is at most 36.
    assert others_curve[1:] == pytest.approx(curve[1:], rel=workload.tolerance, abs=0)
    assert len(others_curve) == len(curve)
    if workload.stream:
        assert len(curve) == workload.units
    else:
        assert (len(curve) < workload.epochs) == (kind in ("tol", "accuracy"))


@pytest.mark.parametrize("kind", BY_DEFAULT)
def test_by_default_is_what_the_title_says(kind):
    from sklearn import neural_network

    import mlp_xp
    from benchmarks.participants import estimators

    workload, calls, settings = BY_DEFAULT[kind], [], []

    class Counting(getattr(neural_network, workload.estimator)):
        def __init__(self, **given):
            super().__init__(**given)
            settings.append(given)

        def fit(self, X, y):
            calls.append(("fit", len(X)))
            self.coefs_ = []
            return self

        def partial_fit(self, X, y, **classes):
            calls.append(("partial_fit", len(X)))
            assert bool(classes) == (len(calls) == 1 and not workload.regression)
            return self

    task = participants.Task(workload, make_data(workload), make_start(workload), "cpu")
    estimators.from_estimator(Counting, task).repeat()
    assert calls == ([("partial_fit", 32)] * workload.units if workload.stream else [("fit", workload.rows)])
    (given,) = settings
    assert given.pop("random_state") == SEED
    said = ", ".join(f"{name}={value}" for name, value in given.items())
    assert workload.title.startswith(f"{workload.estimator}({said})")
    for library in (neural_network, mlp_xp):
        defaults = getattr(library, workload.estimator)().get_params()
        assert {"auto", (DEFAULTS.hidden,)} <= {defaults["batch_size"], defaults["hidden_layer_sizes"]}
        assert {"activation": workload.activation, "solver": workload.solver}.items() <= defaults.items()
        assert defaults["learning_rate_init"] == workload.rate
        for name in ("alpha", "epsilon", "max_iter", "tol", "n_iter_no_change", "validation_fraction"):
            assert defaults[name] == getattr(DEFAULTS, name)
    assert workload.stream or workload.batch == min(DEFAULTS.batch_size, workload.trained)


def test_titles_of_defaults():
    titles = {name: workload.title for name, workload in WORKLOADS.items() if workload.defaults}
    assert titles["digits"] == (
        "MLPClassifier(); 64-100-10 relu, batch 200, float64, Adam; "
        "until tol ends it, at most 200 epochs of 1,797 rows"
    )
    assert titles["table-regressor"] == (
        "MLPRegressor(early_stopping=True, max_iter=25); 30-100-1 relu, batch 200, float64, Adam; "
        "until tol ends it, at most 25 epochs of 90,000 rows, each with a score of 10,000 held out"
    )
    assert titles["stream"].endswith("batch 32, float64, Adam; 1,000 calls of 32 rows")


def test_compiled_differs_from_eager_in_the_compiler_alone(request, monkeypatch):
    torch = need("torch", request)
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: compiled.append(function) or function)
    for workload in (TINY["float64"], BY_DEFAULT["classes"]):
        assert loss("torch.compile", workload) == loss("PyTorch", workload)
    assert len(compiled) == 2


def test_compiled_has_cuda_graphs_on_a_gpu_alone(request):
    need("torch", request)
    from benchmarks.participants import pytorch

    assert (pytorch.compile_mode("cpu"), pytorch.compile_mode("cuda")) == (None, "reduce-overhead")


@pytest.mark.parametrize("kind", TINY)
def test_a_step_captured_by_hand_is_the_step(kind, request, monkeypatch):
    need("torch", request)
    from benchmarks.participants import pytorch

    def capture(step, clear=lambda: None):
        def replay():  # what a graph does: gradients are written, not added to
            clear()
            step()

        for _ in range(pytorch.WARM_UPS):
            replay()
        return replay

    monkeypatch.setattr(pytorch, "capture", capture)
    workload = TINY[kind]
    found = loss("PyTorch, captured", workload)
    assert found == pytest.approx(loss("PyTorch", workload), rel=workload.tolerance)


def test_a_capture_warms_up_on_a_side_stream(request, monkeypatch):
    torch = need("torch", request)
    from benchmarks.participants import pytorch

    done = []

    class Stream:
        def __init__(self, name="side"):
            self.name = name

        def wait_stream(self, other):
            done.append(f"{self.name} waits for {other.name}")

    class Graph:
        def replay(self):
            done.append("replay")

    @contextmanager
    def within(what):
        done.append(f"begin {getattr(what, 'name', 'capture')}")
        yield
        done.append("end")

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: Stream("main"))
    monkeypatch.setattr(torch.cuda, "stream", within)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", within)
    pytorch.capture(lambda: done.append("step"), lambda: done.append("clear"))()
    warm_up = ["begin side", *["clear", "step"] * pytorch.WARM_UPS, "end"]
    assert done == [
        "side waits for main",
        *warm_up,
        "main waits for side",
        "clear",
        *("begin capture", "step", "end"),
        "replay",
    ]


@pytest.mark.parametrize("kind", TINY)
def test_the_textbook_on_cupy_is_the_textbook(kind):
    from benchmarks.participants import textbook

    class StandIn:
        """NumPy under another name: what asks for a function of `np` itself is not found out by NumPy."""

        def __getattr__(self, name):
            used.add(name)
            return getattr(np, name)

    used, waited = set(), []
    found = loss(
        "",
        TINY[kind],
        lambda task: textbook.prepare_with(StandIn(), task, lambda: waited.append(1), np.asarray),
    )
    assert found == loss("textbook", TINY[kind])
    assert {"dot", "asarray"} <= used
    assert len(waited) == 2 * (TINY[kind].calls or 1)


@pytest.mark.parametrize("kind", ["tanh", "adam", "predict_many"])
def test_jax_on_a_gpu_does_the_same_work(kind, request):
    need("jax", request)
    workload = TINY[kind]
    # JAX's arrays live wherever JAX is told that they do: here on the CPU all the same.
    found = loss("JAX", workload, device="cuda")
    assert found == pytest.approx(loss("scikit-learn", workload), rel=workload.tolerance)


def test_a_gathering_step_is_the_step_on_gathered_rows(request):
    need("jax", request)
    import jax

    from benchmarks.participants import jax_steps

    gathered = jax.jit(jax_steps._step_on_gathered_rows(lambda state, total, X, y: (X, y)), static_argnums=6)
    X, y, order = np.arange(20.0).reshape(10, 2), np.arange(10.0)[:, None], np.arange(10)[::-1].copy()
    some, targets = gathered(None, 0.0, X, y, order, 4, 3)
    np.testing.assert_array_equal(some, X[order[4:7]])
    np.testing.assert_array_equal(targets, y[order[4:7]])


@pytest.mark.parametrize("kind", TINY)
def test_the_limit_makes_the_products_of_each_step(kind, monkeypatch):
    workload = TINY[kind]
    task = participants.Task(workload, make_data(workload), make_start(workload), "cpu")
    prepared = participants.PARTICIPANTS[participants.LIMIT].load()(task)
    shapes = []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: shapes.append((a.shape, b.shape, out.shape)))
    prepared = participants.PARTICIPANTS[participants.LIMIT].load()(task)
    prepared.repeat()
    n_layers = len(workload.sizes) - 1
    each = n_layers if workload.predicts else 3 * n_layers - 1
    assert len(shapes) == each * len(workload.batches) * (workload.calls or workload.epochs)
    assert all((a[0], b[1]) == out and a[1] == b[0] for a, b, out in shapes)
    rows = sum(b[0] for a, b, _ in shapes if a[0] == workload.sizes[0] and b[1] == workload.sizes[1])
    if not workload.predicts and workload.sizes[0] not in workload.sizes[1:]:
        assert rows == workload.rows * workload.epochs


def test_the_limit_of_defaults(monkeypatch):
    shapes = []
    monkeypatch.setattr(np, "matmul", lambda a, b, out: shapes.append(a.shape))
    limit = participants.PARTICIPANTS[participants.LIMIT]
    for kind, n_steps in (("r2", 2), ("stream", 10)):
        workload = replace(BY_DEFAULT[kind], epochs=1)
        shapes.clear()
        limit.load()(participants.Task(workload, make_data(workload), make_start(workload), "cpu")).repeat()
        assert len(shapes) == 5 * n_steps + (2 if workload.held_out else 0)
        assert limit.does(workload)
    assert not limit.does(BY_DEFAULT["tol"]), "the number of its epochs is not known before"


@pytest.mark.parametrize("kind", ["float64", "adam", "predict_many"])
def test_the_products_that_cublas_is_asked_for(kind):
    from benchmarks.participants import limit

    workload = TINY[kind]
    task = participants.Task(workload, make_data(workload), make_start(workload), "cpu")
    numbers = np.array([1.0, 0.0])
    for left, right, out in limit._all_products(np, task):
        a, b, c = (SimpleNamespace(**_flat(array)) for array in (left, right, out))
        args = limit._gemm_arguments((a, b, c), 1, 68, -1, numbers)
        turned_a, turned_b, m, n, k, _, at_a, _, lda, at_b, _, ldb, _, at_c, _, ldc, _, _ = args
        assert (at_a, at_b, at_c, ldc) == (right.ctypes.data, left.ctypes.data, out.ctypes.data, m)
        # What BLAS reads, column by column.
        first = _columns(right, *((k, m) if turned_a else (m, k)), lda)
        second = _columns(left, *((n, k) if turned_b else (k, n)), ldb)
        product = (first.T if turned_a else first) @ (second.T if turned_b else second)
        np.testing.assert_allclose(product.T, left @ right, rtol=1e-5, atol=1e-5)


def _flat(array):
    flags = SimpleNamespace(c_contiguous=array.flags.c_contiguous)
    return {"flags": flags, "shape": array.shape, "data": SimpleNamespace(ptr=array.ctypes.data)}


def _columns(array, n_rows, n_columns, leading):
    memory = array.ravel(order="K")
    assert leading >= n_rows
    return np.lib.stride_tricks.as_strided(
        memory, (n_rows, n_columns), (array.itemsize, leading * array.itemsize)
    )


class OnDevice(np.ndarray):
    """An array with an address as CuPy's have it."""

    @property
    def data(self):
        return SimpleNamespace(ptr=self.ctypes.data)


class FakeStream:
    """A stream that keeps what is launched during a capture."""

    ptr, capturing = 5, None

    def __init__(self, non_blocking):
        assert non_blocking

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def begin_capture(self):
        self.capturing = []

    def end_capture(self):
        calls, self.capturing = self.capturing, None
        return SimpleNamespace(launch=lambda stream: [call() for call in calls])

    def synchronize(self):
        assert self.capturing is None


def fake_cuda(monkeypatch):
    """Let NumPy stand in for CuPy and cuBLAS; return how often each product was computed, by its output."""
    streams, count = [], {}

    def new_stream(non_blocking):
        streams.append(FakeStream(non_blocking))
        return streams[-1]

    def on_device(array):
        return np.array(array).view(OnDevice)

    def gemm_ex(handle, *args):
        def launch():
            count[args[13]] = count.get(args[13], 0) + 1

        kept = streams[-1].capturing
        launch() if kept is None else kept.append(launch)

    cuda = SimpleNamespace(Stream=new_stream, Device=lambda: SimpleNamespace(synchronize=lambda: None))
    cupy = SimpleNamespace(
        cuda=cuda,
        asarray=on_device,
        empty=lambda shape, dtype: on_device(np.empty(shape, dtype)),
        uint8=np.uint8,
        get_default_memory_pool=lambda: SimpleNamespace(free_all_blocks=lambda: None),
    )
    cublas = SimpleNamespace(
        create=lambda: 1,
        set_stream=lambda handle, stream: None,
        set_workspace=lambda handle, pointer, size: None,
        ComputeType=SimpleNamespace(COMPUTE_32F=68, COMPUTE_64F=70, COMPUTE_32F_FAST_TF32=77),
        GemmAlgo=SimpleNamespace(DEFAULT=-1),
        gemm_ex=gemm_ex,
    )
    nvmath = SimpleNamespace(CudaDataType=SimpleNamespace(CUDA_R_32F=0, CUDA_R_64F=1))
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setitem(sys.modules, "nvmath", nvmath)
    monkeypatch.setitem(sys.modules, "nvmath.bindings", SimpleNamespace(cublas=cublas))
    return count


@pytest.mark.parametrize("kind", ["tanh", "adam", "predict_many"])
def test_the_limit_on_a_gpu(kind, monkeypatch):
    for name in ("JAX_PLATFORMS", "JAX_ENABLE_X64", "XLA_PYTHON_CLIENT_PREALLOCATE", "CUPY_TF32"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    count, workload = fake_cuda(monkeypatch), TINY[kind]
    served = workers.WorkerServer(participants.LIMIT, workload, "cuda", 1)
    count.clear()
    served.prepare(make_data(workload))
    warm = sum(count.values())
    repeat = served.do("repeat")
    assert (repeat.peak_bytes, repeat.ran, served.do("outcome")) == (None, None, None)
    n_layers = len(workload.sizes) - 1
    each = n_layers if workload.predicts else 3 * n_layers - 1
    n_steps = workload.calls if workload.predicts else workload.units
    assert sum(count.values()) - warm == each * n_steps
    assert warm == each * (1 if workload.predicts else len(workload.batches))


def test_a_graph_of_products_is_a_part_of_all_epochs():
    from benchmarks.participants import limit

    assert [limit.epochs_per_graph(number) for number in (1, 7, 1_000, 10_000, 202)] == [1, 7, 100, 100, 2]


def test_the_start_is_the_estimators():
    from sklearn.neural_network import MLPClassifier

    for workload in (TINY["logistic"], TINY["float32"]):
        data, start = make_data(workload), make_start(workload)
        model = MLPClassifier(
            workload.sizes[1:-1],
            activation=workload.activation,
            solver="sgd",
            learning_rate_init=1e-300,
            max_iter=1,
            batch_size=4,
            random_state=SEED,
        )
        with pytest.warns(match="Maximum iterations"):
            model.fit(data.X, data.labels)
        for (weight, bias), coefs, intercepts in zip(start.layers, model.coefs_, model.intercepts_):
            np.testing.assert_array_equal(weight, coefs, strict=True)
            np.testing.assert_array_equal(bias, intercepts, strict=True)


# What follows from given seconds and losses.


def given(**outcomes):
    workload = Workload("given", (2, 2, 1), "tanh", 4, "float64", epochs=10)
    names = {"ours": "mlp_xp", "sklearn": "scikit-learn", "torch": "PyTorch", "limit": "limit"}
    made = {names[key]: Outcome(names[key], *values) for key, values in outcomes.items()}
    return Comparison(workload, made)


def test_ratios_of_given_seconds():
    comparison = given(
        ours=([1.0, 2.0, 4.0], [5], 0.5),
        sklearn=([3.0, 4.0, 4.0], [7], 0.5),
        torch=([0.5, 0.5, 9.0], [], 0.5),
        limit=([0.1, 0.2, 0.4], [], None),
    )
    rows = {row.name: row for row in comparison.rows()}
    assert [row.ratio for row in rows.values()] == [1.0, 2.0, 0.5, pytest.approx(0.1)]
    assert (rows["mlp_xp"].per_unit, rows["mlp_xp"].spread) == (0.2, pytest.approx(0.15))
    assert (rows["mlp_xp"].peak_bytes, rows["PyTorch"].peak_bytes) == (5, None)
    said = summary.summarise(comparison)
    assert (said.fastest_peer, said.against_fastest_peer, said.against_limit) == (
        "PyTorch",
        4.0,
        pytest.approx(10.0),
    )
    other = given(ours=([1.0], [], 0.5), sklearn=([8.0], [], 0.5))
    assert summary.speedup_over("scikit-learn", [comparison, other]) == pytest.approx(4.0)
    assert json.loads(json.dumps(comparison.as_json()))["rows"][1]["ratio"] == 2.0


def test_a_different_loss_has_no_ratio():
    comparison = given(
        ours=([1.0], [], 0.5), sklearn=([1.0], [], 0.5 * (1 + 3e-8)), torch=([1.0], [], 0.5 * (1 + 3e-9))
    )
    ours, sklearn, torch = comparison.rows()
    assert (ours.ratio, sklearn.ratio, torch.ratio) == (1.0, None, 1.0)
    assert sklearn.problem == "different loss (0.500000015)"
    assert summary.summarise(comparison).fastest_peer == "PyTorch"
    assert "different loss (0.500000015)" in shown(report.comparison_table(comparison))


def test_another_number_of_epochs_has_no_ratio():
    comparison = given(ours=([1.0], [], 0.5), sklearn=([1.0], [], 0.5), torch=([1.0], [], 0.5))
    for outcome, epochs in zip(comparison.outcomes.values(), (7, 7, 8)):
        outcome.epochs = epochs
    assert [row.ratio for row in comparison.rows()] == [1.0, 1.0, None]
    assert comparison.rows()[2].problem == "8 epochs, not 7"
    comparison.workload = BY_DEFAULT["tol"]
    assert "loss 0.5 after 7 epochs" in shown(report.comparison_table(comparison))


def test_nothing_is_compared_with_ours_if_its_loss_is_the_odd_one():
    comparison = given(ours=([1.0], [], 0.6), sklearn=([1.0], [], 0.5), torch=([1.0], [], 0.5))
    assert [row.ratio for row in comparison.rows()] == [None, None, None]
    assert summary.summarise(comparison) is None
    assert "nothing to compare" in shown(report.summary_table([comparison]))


def test_nan_is_no_loss():
    losses = {"a": 0.5, "b": 0.5, "c": math.nan}
    assert evaluation.outliers(losses, 1e-4) == {"c"}


def test_spread():
    assert Timings({"one": [1.0, 2.0, 3.0, 4.0, 5.0]}).spread("one") == 2.0
    assert Timings({"one": [1.0]}).spread("one") == 0.0


def test_what_ran_on_another_engine_has_no_figure():
    comparison = given(ours=([1.0], [5], 0.5), sklearn=([2.0], [], 0.5))
    ours = comparison.outcomes["mlp_xp"]
    ours.engine = "compiled"
    assert comparison.rows()[0].ratio == 1.0
    ours.engine, ours.why = "eager", "no compiler"
    row, sklearn = comparison.rows()
    assert row.problem == "ran on the engine 'eager', not on 'compiled': no compiler"
    assert (row.ratio, row.peak_bytes, row.engine, sklearn.ratio) == (None, None, "eager", None)
    assert math.isnan(row.per_unit)
    ours.engine = ""  # a history that does not say
    assert comparison.rows()[0].problem == "ran call by call, not on 'compiled': no compiler"
    ours.why = ""
    assert comparison.rows()[0].ratio == 1.0
    console = Console(width=200)
    ours.engine = "eager"
    with console.capture() as capture:
        report.print_comparison(console, comparison)
    assert "mlp_xp: ran on the engine 'eager', not on 'compiled': no warning says why" in capture.get()


def test_only_expected_warnings_are_swallowed():
    def train():
        warnings.warn("Maximum iterations (3) reached", UserWarning, stacklevel=1)
        warnings.warn("training runs call by call, because of this", EagerFallbackWarning, stacklevel=1)
        return 3

    assert engines.catch_fallback(train) == (3, "training runs call by call, because of this")
    with pytest.warns(RuntimeWarning, match="overflow"):
        assert (
            engines.catch_fallback(lambda: warnings.warn("overflow", RuntimeWarning, stacklevel=1)).why == ""
        )
    assert engines.engine_of(None) == engines.engine_of([]) == ""
    assert engines.engine_of(SimpleNamespace(engine="xla")) == "xla"


def test_ratios_on_a_gpu_refer_to_train():
    comparison = given(ours=([2.0], [], 0.5), torch=([1.0], [], 0.5))
    comparison.device = "cuda"
    assert [row.ratio for row in comparison.rows()] == [None, None]
    comparison.outcomes["mlp_xp.train"] = Outcome("mlp_xp.train", [4.0], [], 0.5)
    assert [row.ratio for row in comparison.rows()] == [0.5, 0.25, 1.0]
    assert "/ mlp_xp.train" in shown(report.comparison_table(comparison))
    assert summary.summarise(comparison).ours == 0.4
    assert "mlp_xp.train's time" in shown(report.summary_table([comparison]))


# Workers.


def test_missing_and_failing_participants_are_one_line_each(monkeypatch):
    missing = participants.Participant("missing", "no_such_library", "prepare", ("cpu",), "")
    failing = participants.Participant("failing", "json", "loads", ("cpu",), "")
    monkeypatch.setitem(participants.PARTICIPANTS, "missing", missing)
    monkeypatch.setitem(participants.PARTICIPANTS, "failing", failing)
    monkeypatch.setattr(comparing, "Worker", InProcess)
    comparison = new_comparison(TINY["logistic"], ["mlp_xp", "missing", "failing"])
    comparing.measure(comparison, threads=1, repeats=2)
    ours, missing, failing = comparison.rows()
    assert len(comparison.outcomes["mlp_xp"].seconds) == 2
    assert ours.ratio == 1.0
    assert (missing.ratio, missing.problem) == (None, "not installed (No module named 'no_such_library')")
    assert failing.problem.startswith("TypeError: ")
    console = Console(width=200)
    with console.capture() as capture:
        report.print_comparison(console, comparison)
    lines = capture.get().splitlines()
    assert "xor: missing: not installed (No module named 'no_such_library')" in "\n".join(lines)


class InProcess(workers.Worker):
    """A worker without a process, which answers before it is asked."""

    def __init__(self, name, workload, device, threads):
        self.answers, self.workload, self.device = [], workload, device
        commands = iter([make_data(workload), "repeat", "outcome", "repeat", "repeat", "outcome"])
        self.connection = self
        self.commands = commands
        workers._run_worker(self, name, workload, device, threads)

    def send(self, answer):
        if isinstance(answer, tuple) and len(answer) == 2:
            self.answers.append(answer)

    def recv(self):
        command = next(self.commands, None)
        if command is None:
            raise EOFError
        return command

    def _answer(self):
        answer, problem = self.answers.pop(0)
        if problem:
            raise workers.WorkerError(problem)
        return answer

    def end(self):
        pass


def test_a_worker_in_a_process():
    worker = workers.Worker("textbook", TINY["logistic"], "cpu", 1)
    try:
        data = make_data(TINY["logistic"])
        worker.wait()
        worker.prepare(data)
        assert worker.repeat().seconds > 0
        found = evaluation.loss_of(TINY["logistic"], data, worker.outcome())
        assert found == pytest.approx(loss("textbook", TINY["logistic"]))
        worker.process.kill()
        with pytest.raises(workers.WorkerError, match="ended with exit code"):
            worker.repeat()
    finally:
        worker.end()


def test_peak_memory_is_that_of_a_repeat():
    watch = memory.HostMemory()
    if not watch.resets:
        pytest.skip("peaks cannot be reset on this system")
    np.ones(4_000_000).sum()
    assert watch.peak() > 30e6
    watch.reset()
    assert watch.peak() < 30e6


def test_peak_gpu_memory_is_that_of_a_processs_turns(monkeypatch):
    taken = {"bytes": 100}
    pynvml = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 1,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetComputeRunningProcesses=lambda device: [
            SimpleNamespace(pid=7, usedGpuMemory=5),
            SimpleNamespace(pid=8, usedGpuMemory=None),
        ],
        nvmlDeviceGetMemoryInfo=lambda device: SimpleNamespace(used=taken["bytes"]),
    )
    monkeypatch.setitem(sys.modules, "pynvml", pynvml)
    watch = memory.device_memory()
    assert (watch.taken(7), watch.taken(8), watch.taken(9)) == (5, 100, 100)
    with watch.turn(9) as peak:
        taken["bytes"] = 130  # it keeps 30
    assert peak == [30]
    taken["bytes"] = 500  # another's turn
    with watch.turn(9) as peak:
        taken["bytes"] = 570
        while not wait_for_a_look(watch, 570):
            pass
        taken["bytes"] = 510
    assert peak == [100]
    assert watch.held == {9: 40}


def wait_for_a_look(watch, value):
    seen, taken = [], watch.taken
    watch.taken = lambda pid: seen.append(taken(pid)) or seen[-1]
    time.sleep(0.005)
    watch.taken = taken
    return value in seen


def test_no_way_to_ask_for_gpu_memory_is_no_error(monkeypatch):
    for name in ("pynvml", "cupy", "torch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert memory.device_memory() is None


def test_memory_by_the_runtime_where_nvml_is_missing(monkeypatch):
    runtime = SimpleNamespace(memGetInfo=lambda: (60, 100))
    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    watch = memory.device_memory()
    assert (watch.taken(1), "cudaMemGetInfo" in watch.about) == (40, True)


def test_a_slow_participant_has_fewer_repeats(monkeypatch):
    class Instant(workers.Worker):
        def __init__(self, name, workload, device, threads):
            self.name = name

        def wait(self):
            pass

        def prepare(self, data):
            pass

        def repeat(self):
            return workers.Repeat(2.0 if self.name == "PyTorch" else 0.5, None, None)

        def loss(self, data):
            return 0.5

        def end(self):
            pass

    monkeypatch.setattr(comparing, "Worker", Instant)
    monkeypatch.setattr(comparing, "PAUSE_SECONDS", 0.0)
    comparison = new_comparison(TINY["logistic"], ["mlp_xp", "PyTorch"])
    comparing.measure(comparison, threads=1, repeats=5, seconds=3.0)
    assert [len(one.seconds) for one in comparison.outcomes.values()] == [5, 2]
    assert comparison.rows()[1].ratio == 4.0


@pytest.mark.parametrize(
    ("asked", "cupy", "jax_", "torch_"),
    [
        ("highest", "0", "highest", "highest"),
        ("tf32", "1", "tensorfloat32", "high"),
    ],
)
def test_precision_is_set_for_all_libraries(asked, cupy, jax_, torch_, monkeypatch):
    calls = []
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(set_float32_matmul_precision=calls.append))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    for name in ("CUPY_TF32", "JAX_DEFAULT_MATMUL_PRECISION"):
        monkeypatch.setenv(name, "")
    precision.pin_before_import(asked)
    precision.pin_after_import(asked)
    environment = {name: os.environ.get(name) for name in ("CUPY_TF32", "JAX_DEFAULT_MATMUL_PRECISION")}
    assert list(environment.values()) == [cupy, jax_]
    assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    assert calls == [torch_]


def test_pytorchs_two_settings_of_precision_agree(request):
    torch = need("torch", request)
    if not hasattr(torch.backends.cuda.matmul, "fp32_precision"):
        pytest.skip("one setting")
    try:
        for asked, new in (("tf32", "tf32"), ("highest", "ieee")):
            precision.pin_after_import(asked)
            assert torch.backends.cuda.matmul.fp32_precision == new
            assert torch.backends.cuda.matmul.allow_tf32 == (asked == "tf32")
    finally:
        precision.pin_after_import("highest")


def test_tf32_is_said_and_asked_for(monkeypatch):
    from benchmarks.participants import ours

    workload = WORKLOADS["huge-tf32"]
    assert "float32 as TF32" in workload.title
    assert workload.tolerance == 1e-2
    asked = []
    monkeypatch.setattr(ours, "Network", lambda *_, **settings: asked.append(settings["matmul_precision"]))
    for one in (TINY["float32"], replace(TINY["float32"], matmul_precision="tf32")):
        ours.train_arrays(participants.Task(one, make_data(one), make_start(one), "cpu"))
    assert asked == ["highest", "tf32"]
    assert given(ours=([1.0], [], 0.5)).as_json()["workload"]["matmul_precision"] == "highest"


def test_of_large_networks_some_rows_are_evaluated():
    workload = TINY["float64"]
    data = make_data(workload)
    assert evaluation.rows_to_check(workload, data) is data
    some = evaluation.rows_to_check(replace(WORKLOADS["huge"], rows=67), data._replace(X=data.X[:, :1]))
    assert len(some.X) == 67
    assert WORKLOADS["huge"].rows > evaluation.MAX_PRODUCTS_EVALUATED / 5e7


def test_a_warm_up_on_a_gpu_is_small():
    little = workers.scaled_down(WORKLOADS["huge"], "cuda")
    assert (little.sizes, little.rows, little.batch) == ((64, 64, 64, 64, 1), 64, 32)
    assert workers.scaled_down(WORKLOADS["huge"], "cpu").sizes == WORKLOADS["huge"].sizes


# The command.


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "nonsense"], "argument --only: invalid choice: 'nonsense'"),
        (["--peers", "nobody"], "argument --peers: invalid choice: 'nobody'"),
        (["--repeats", "0"], "argument --repeats: must be a whole number >= 1, got '0'"),
        (["--threads", "0"], "argument --threads: must be 1 to"),
        (["--device", "cuda", "--peers", "textbook"], "--peers: textbook does not run on cuda"),
        (["--only", "huge-tf32"], "--only: huge-tf32 does not run on cpu: TF32 is a precision of GPUs"),
        (
            ["--device", "cuda", "--only", "stream"],
            "--only: stream does not run on cuda: mlp_xp.train has no",
        ),
        (["--out", __file__], "--out: cannot write to"),
        (["costs", "--repeats", "few"], "argument --repeats: must be a whole number >= 1, got 'few'"),
        (["growth", "--only", "sideways"], "argument --only: invalid choice: 'sideways'"),
    ],
)
def test_bad_arguments_are_one_line(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["benchmarks", *arguments])
    monkeypatch.setattr(peers, "measure", None)
    with pytest.raises(SystemExit) as exit_:
        command.main()
    assert exit_.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_no_gpu_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(peers, "gpu", lambda: None)
    with pytest.raises(SystemExit):
        peers.main(["--device", "cuda"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "the CUDA driver finds no GPU" in line


def test_a_run_writes_what_was_measured_also_when_interrupted(monkeypatch, capsys, tmp_path):
    def measure(comparison, **_):
        if comparison.workload.name == "cancer-f32":
            raise KeyboardInterrupt
        for number, outcome in enumerate(comparison.outcomes.values(), start=1):
            outcome.seconds, outcome.loss, outcome.peak_bytes = [float(number)] * 3, 0.5, [1_000_000]
        comparison.outcomes["PyTorch"] = Outcome("PyTorch", error="not installed")

    monkeypatch.setattr(peers, "measure", measure)
    monkeypatch.setattr(peers, "limit_threads", lambda threads: None)
    peers.main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "interrupted" in printed
    (written,) = tmp_path.glob("*-cpu-quick.json")
    content = json.loads(written.read_text())
    assert [result["workload"]["name"] for result in content["results"]] == ["xor"]
    assert content["results"][0]["outcomes"][0]["seconds"] == [1.0, 1.0, 1.0]
    assert content["results"][0]["rows"][4]["per_unit"] is None
    assert content["summary"]["workloads"][0]["workload"] == "xor"
    assert {"versions", "machine", "blas", "threads", "python", "date"} <= content.keys()
    assert re.search("torch.compile", printed), "what is left out must be said"
    assert bool(list(tmp_path.glob("*-cpu-quick.png"))) == bool(find_spec("matplotlib"))


def test_the_list_names_all(capsys):
    peers.main(["--list"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in [*WORKLOADS, *participants.PARTICIPANTS])
    assert quick_workloads("cpu").keys() < WORKLOADS.keys()


def test_a_quick_run_on_a_gpu_has_all_workloads_and_participants(monkeypatch, capsys, tmp_path):
    found = machine.Gpu("NVIDIA H100 80GB HBM3", 80 * 2**30, "580.1", "13.0")
    took_part = {}

    def measure(comparison, *, repeats, seconds, **_):
        assert (repeats, seconds, comparison.device) == (3, peers.MAX_SECONDS_OF_REPEATS["quick"], "cuda")
        took_part[comparison.workload.name] = list(comparison.outcomes)
        for number, outcome in enumerate(comparison.outcomes.values(), start=1):
            outcome.seconds, outcome.loss, outcome.engine = [float(number)] * 3, 0.5, ""

    monkeypatch.setattr(peers, "gpu", lambda: found)
    monkeypatch.setattr(peers, "measure", measure)
    monkeypatch.setattr(peers, "limit_threads", lambda threads: None)
    peers.main(["--device", "cuda", "--quick", "--out", str(tmp_path)])
    printed = " ".join(capsys.readouterr().out.split())
    assert took_part.keys() == default_workloads("cuda").keys() == quick_workloads("cuda").keys()
    everyone = [name for name, one in participants.PARTICIPANTS.items() if one.takes_part("cuda")]
    for name, names in took_part.items():
        left_out = set() if name == "adam-f32" else {participants.TORCH_COMPILE}
        assert set(names) == set(everyone) - left_out
    assert "without torch.compile except in adam-f32" in printed
    assert "80 GiB; driver 580.1, CUDA up to 13.0" in printed
    assert peers.PRECISION in printed
    (written,) = tmp_path.glob("*.json")
    assert written.name.endswith("-nvidia-h100-80gb-hbm3-quick.json")
    content = json.loads(written.read_text())
    assert content["cuda"]["driver"] == "580.1"
    assert {one["workload"]["matmul_precision"] for one in content["results"]} == {"highest", "tf32"}
    assert {one["ratios_refer_to"] for one in content["results"]} == {"mlp_xp.train"}


def test_a_gpu_has_more_of_the_same_work():
    assert workloads_for("cuda")["deep"].epochs > workloads_for("cpu")["deep"].epochs
    assert all("cpu" in workload.devices for workload in default_workloads("cpu").values())
    for workload in default_workloads("cuda").values():
        assert workload.predicts or workload.rows % workload.batch == 0, "two sizes compile twice"


def test_a_picture_of_growth(tmp_path):
    pytest.importorskip("matplotlib")
    points = [growth.Point("mlp_xp.train", 10, 0.1, 1000), growth.Point("scikit-learn", 10, 0.2, None)]
    about = {"around": "this", "machine": "a machine", "threads": 1}
    growth.draw("rows", points, about, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", growth.AXES)
def test_growth_changes_one_thing(name):
    axis = growth.AXES[name]
    assert growth.BASE in [axis.at(value) for value in (*axis.values, 2, 256, 8000)]
    assert len({axis.at(value) for value in axis.values}) == len(axis.values)


def shown(table):
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
