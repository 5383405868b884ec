import copy
import pickle
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from conftest import need

import mlp_xp
from mlp_xp import Activation, History, Layer, Network, adam, leaky_relu, one_hot, to_host, train
from mlp_xp.datasets import planar, xor

matplotlib = pytest.importorskip("matplotlib", minversion="3.9")
pyplot = pytest.importorskip("matplotlib.pyplot")
to_hex = pytest.importorskip("matplotlib.colors").to_hex
Axes, Figure = matplotlib.axes.Axes, matplotlib.figure.Figure
pytest.importorskip("sklearn", minversion="1.9")
clone = pytest.importorskip("sklearn.base").clone
KMeans = pytest.importorskip("sklearn.cluster").KMeans
TransformedTargetRegressor = pytest.importorskip("sklearn.compose").TransformedTargetRegressor
NotFittedError = pytest.importorskip("sklearn.exceptions").NotFittedError
LogisticRegression = pytest.importorskip("sklearn.linear_model").LogisticRegression
model_selection = pytest.importorskip("sklearn.model_selection")
make_pipeline = pytest.importorskip("sklearn.pipeline").make_pipeline
StandardScaler = pytest.importorskip("sklearn.preprocessing").StandardScaler
SVC = pytest.importorskip("sklearn.svm").SVC
plotting = pytest.importorskip("mlp_xp.plotting")
plot_decision_boundary, plot_learning_curve = plotting.plot_decision_boundary, plotting.plot_learning_curve
plot_network = plotting.plot_network
MLPClassifier, MLPRegressor = mlp_xp.MLPClassifier, mlp_xp.MLPRegressor

DATA = planar(100)
FAST = {"solver": "lbfgs", "tol": 0.01, "random_state": 0, "alpha": 1.0}
BINARY = MLPClassifier((6,), "tanh", **FAST).fit(DATA.X, DATA.y)
THREE = np.where(DATA.X[:, 0] > 1.0, "right", np.where(DATA.X[:, 1] > 0.0, "above", "below"))
TERNARY = MLPClassifier((6,), "tanh", **FAST).fit(DATA.X, THREE)
VALUES = DATA.X[:, 0] * DATA.X[:, 1]
REGRESSOR = MLPRegressor(hidden_layer_sizes=6, activation="tanh", **FAST).fit(DATA.X, VALUES)
STOPPED = MLPClassifier((8,), random_state=0, max_iter=500, early_stopping=True, learning_rate_init=0.03)
STOPPED.fit(DATA.X, DATA.y)


@pytest.fixture(autouse=True)
def _no_figures_left():
    yield
    pyplot.close("all")


@pytest.fixture
def ax():
    return Figure().subplots()


def curves(ax):
    """The lines of all Axes in the figure, by label."""
    return {line.get_label(): line for each in ax.figure.axes for line in each.lines}


def shown_classes(ax, n_classes):
    """The class whose colour each pixel's is nearest to, and where pixels are, from the picture."""
    image = np.asarray(ax.images[0].get_array())
    colours = np.array([points.get_facecolor()[0, :3] for points in ax.collections[-n_classes:]])
    hues = (1.0 - image) / np.linalg.norm(1.0 - image, axis=-1, keepdims=True)
    wanted = (1.0 - colours) / np.linalg.norm(1.0 - colours, axis=-1, keepdims=True)
    left, right, bottom, top = ax.images[0].get_extent()
    n = len(image)
    x = left + (np.arange(n) + 0.5) * (right - left) / n
    y = bottom + (np.arange(n) + 0.5) * (top - bottom) / n
    return np.argmax(hues @ wanted.T, axis=-1), np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)


def boundary(ax):
    """The vertices of the lines between regions."""
    vertices = [contour.get_paths()[0].vertices for contour in ax.collections if hasattr(contour, "levels")]
    return np.concatenate(vertices)


def moved(model, library, dtype="float64"):
    """A fitted estimator as it would be, had it been fitted in a library."""
    there = copy.copy(model)
    there.coefs_ = [library.array(coef, dtype) for coef in model.coefs_]
    there.intercepts_ = [library.array(intercept, dtype) for intercept in model.intercepts_]
    return there


def trained(n_outputs):
    """A small network after a few epochs."""
    data = xor()
    loss = "binary_cross_entropy" if n_outputs == 1 else "categorical_cross_entropy"
    y = data.y[:, None] if n_outputs == 1 else one_hot(data.y, n_outputs)
    network = Network((2, 4, n_outputs), activation="tanh", loss=loss)
    params = network.init(1, like=data.X)
    params, _ = train(network, params, data.X, y, optimizer=adam(0.1), epochs=60)
    return network, params, y


# What all have in common.


@pytest.mark.parametrize(
    "draw",
    [
        lambda **ax: plot_learning_curve(STOPPED, **ax),
        lambda **ax: plot_decision_boundary(BINARY, DATA.X, DATA.y, **ax),
        lambda **ax: plot_decision_boundary(REGRESSOR, DATA.X, VALUES, **ax),
        lambda **ax: plot_network(BINARY, **ax),
    ],
    ids=["learning_curve", "boundary", "values", "network"],
)
class TestEveryPicture:
    def test_draws_where_it_is_told_and_leaves_pyplot_as_it_is(self, draw):
        figure, (first, second) = pyplot.subplots(1, 2)
        pyplot.sca(first)
        settings = dict(matplotlib.rcParams)
        assert draw(ax=second) is second
        assert pyplot.get_fignums() == [figure.number]
        assert pyplot.gca() is first
        assert not first.has_data()
        assert settings == dict(matplotlib.rcParams)

    def test_makes_a_figure_of_its_own_by_default(self, draw):
        other = pyplot.figure()
        ax = draw()
        assert isinstance(ax, Axes)
        assert ax.figure is not other
        assert pyplot.gca() is ax
        ax.figure.canvas.draw()

    def test_draws_in_a_subfigure(self, draw):
        ax = pyplot.figure().subfigures(1, 2)[0].subplots()
        assert draw(ax=ax) is ax
        ax.figure.figure.canvas.draw()

    def test_refuses_what_are_no_axes(self, draw):
        with pytest.raises(TypeError, match="`ax` must be a matplotlib Axes, got Figure"):
            draw(ax=Figure())
        assert not pyplot.get_fignums()

    def test_leaves_models_as_they_are(self, draw, ax):
        models = STOPPED, BINARY, REGRESSOR
        before = pickle.dumps(models)
        draw(ax=ax)
        assert pickle.dumps(models) == before


def test_importing_selects_no_backend():
    code = "import sys, mlp_xp.plotting; print('matplotlib.pyplot' in sys.modules, 'sklearn' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.split() == ["False", "False"]


def test_without_matplotlib_it_says_what_to_install():
    code = """
import sys
sys.modules["matplotlib"] = None
try:
    import mlp_xp.plotting
except ImportError as error:
    print(error)
"""
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.startswith("mlp_xp.plotting needs matplotlib (")
    assert output.strip().endswith("): pip install 'mlp_xp[plot]'")


# Learning curves.


def test_curves_are_those_of_the_history(ax):
    history = History(
        {"epoch": epoch, "loss": 1 / epoch, "val_loss": 2 / epoch, "accuracy": epoch / 9, "val_f1": epoch / 8}
        for epoch in range(1, 8)
    )
    plot_learning_curve(history, ax=ax)
    left, right = ax.figure.axes
    assert left is ax
    names = {
        "training loss": "loss",
        "validation loss": "val_loss",
        "training accuracy (right)": "accuracy",
        "validation f1 (right)": "val_f1",
    }
    drawn = curves(ax)
    assert list(drawn) == list(names)
    for label, name in names.items():
        np.testing.assert_array_equal(drawn[label].get_xdata(), history["epoch"])
        np.testing.assert_array_equal(drawn[label].get_ydata(), history[name])
    assert [line.axes for line in drawn.values()] == [left, left, right, right]
    assert [text.get_text() for text in ax.get_legend().texts] == list(names)
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == ("epoch", "loss", "score")
    looks = {(line.get_linestyle(), to_hex(line.get_color())) for line in drawn.values()}
    assert len(looks) == 4
    assert [line.get_linestyle() for line in drawn.values()] == ["-", "--", "-", "--"]


def test_scores_alone_are_on_the_left(ax):
    plot_learning_curve([{"epoch": 1, "val_r2": 0.1}, {"epoch": 2, "val_r2": 0.3}], ax=ax)
    assert ax.figure.axes == [ax]
    assert ax.get_ylabel() == "r2"
    assert list(curves(ax)) == ["validation r2"]


def test_the_epochs_of_a_plain_list_may_be_left_out(ax):
    plot_learning_curve([{"loss": 2.0}, {"loss": 1.0}], ax=ax)
    assert ax.lines[0].get_xdata().tolist() == [1.0, 2.0]


def test_a_training_that_diverged_can_be_drawn(ax):
    plot_learning_curve(
        [{"epoch": 1, "loss": 0.7}, {"epoch": 2, "loss": 1e190}, {"epoch": 3, "loss": 1e300}], ax=ax
    )
    ax.figure.canvas.draw()
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), [0.7, 1e190, np.nan])


@pytest.mark.parametrize(
    ("losses", "scale"),
    [([1.0, 0.02], "linear"), ([1.0, 0.005], "log"), ([1.0, -0.005], "linear"), ([1.0, 0.0], "linear"),
     ([np.inf, 1.0, 0.005], "log"), ([np.nan], "linear")],
)  # fmt: skip
def test_losses_of_several_magnitudes_are_on_a_logarithmic_axis(losses, scale, ax):
    plot_learning_curve(
        [{"loss": loss, "accuracy": 1e-9 + index} for index, loss in enumerate(losses)], ax=ax
    )
    ax.figure.canvas.draw()
    assert ax.get_yscale() == scale
    assert ax.figure.axes[1].get_yscale() == "linear"


def test_an_epoch_without_a_value_is_skipped_and_one_not_finite_is_a_gap(ax):
    history = [{"epoch": 1, "loss": 5.0}, {"epoch": 2, "loss": np.inf, "val_loss": 2.0},
               {"epoch": 3, "loss": 4.0}, {"epoch": 4, "loss": None, "val_loss": 1.0}]  # fmt: skip
    plot_learning_curve(history, ax=ax)
    drawn = curves(ax)
    assert drawn["validation loss"].get_xydata().tolist() == [[2.0, 2.0], [4.0, 1.0]]
    np.testing.assert_array_equal(drawn["training loss"].get_ydata(), [5.0, np.nan, 4.0, np.nan])
    assert drawn["training loss"].get_markevery() == [0, 2]  # where there is no line
    assert drawn["validation loss"].get_marker() == ""


def test_a_single_epoch_is_seen(ax):
    plot_learning_curve([{"epoch": 1, "loss": 0.5, "accuracy": 0.5}], ax=ax)
    ax.figure.canvas.draw()
    assert all(line.get_marker() == "o" and line.get_markevery() == [0] for line in curves(ax).values())
    low, high = ax.get_xlim()
    assert [tick for tick in ax.get_xticks() if low <= tick <= high] == [1.0]


@pytest.mark.parametrize("size", [(6.4, 4.8), (3.2, 2.4), (12.0, 4.0)])
@pytest.mark.parametrize("slope", [-1.0, 1.0])
def test_the_legend_covers_nothing(size, slope):
    ax = Figure(figsize=size).subplots()
    names = ("loss", "val_loss", "accuracy", "val_accuracy")
    history = [dict.fromkeys(names, 10.0 ** (slope * epoch)) for epoch in range(5)]
    plot_learning_curve(history, ax=ax)
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert legend.y1 <= ax.bbox.y1
    for line in curves(ax).values():
        points = line.axes.transData.transform(line.get_xydata())
        assert points[:, 1].max() < legend.y0


@pytest.mark.parametrize("early_stopping", [True, "loss"])
def test_the_best_epoch_of_early_stopping_is_marked(early_stopping, ax):
    model = clone(STOPPED).set_params(early_stopping=early_stopping).fit(DATA.X, DATA.y)
    plot_learning_curve(model, ax=ax)
    kept = {}  # at each epoch the weights that training would end with
    for epoch in range(1, model.n_iter_ + 1):
        shorter = clone(model).set_params(max_iter=epoch)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it has not converged
            kept[epoch] = shorter.fit(DATA.X, DATA.y).coefs_[0]
    best = next(epoch for epoch, coef in kept.items() if np.array_equal(coef, model.coefs_[0]))
    assert curves(ax)[f"best epoch ({best})"].get_xdata() == [best, best]
    assert 1 < best < model.n_iter_


def test_without_early_stopping_no_epoch_is_best(ax):
    model = clone(STOPPED).set_params(early_stopping=False, max_iter=2000, tol=0.01)
    plot_learning_curve(model.fit(DATA.X, DATA.y, X_val=DATA.X, y_val=DATA.y), ax=ax)
    assert not any("best" in label for label in curves(ax))
    assert "validation accuracy (right)" in curves(ax)


def a_history(epochs):
    """Four curves that fall and rise over these epochs."""
    return [
        {"epoch": epoch, "loss": 2.0 / epoch, "val_loss": 3.0 / epoch, "accuracy": epoch / epochs,
         "val_accuracy": 0.9 * epoch / epochs} for epoch in range(1, epochs + 1)
    ]  # fmt: skip


@pytest.mark.parametrize(("epochs", "best"), [(1, 1), (40, 37), (40, np.int64(1)), (500, 500)])
def test_the_epoch_that_a_caller_kept_is_marked(epochs, best, ax):
    plot_learning_curve(a_history(epochs), ax=ax, best_epoch=best)
    mark = curves(ax)[f"best epoch ({best})"]
    assert list(mark.get_xdata()) == [best, best]
    ax.figure.canvas.draw()
    low, high = ax.get_xlim()
    assert low < best < high
    legend = ax.get_legend()
    assert {text.get_text() for text in legend.texts} == set(curves(ax))
    assert len(legend.texts) == 5
    box = legend.get_window_extent()
    assert box.x0 >= ax.bbox.x0
    assert box.x1 <= ax.bbox.x1
    for label, line in curves(ax).items():
        points = line.axes.transData.transform(line.get_xydata())
        assert "best" in label or points[:, 1].max() < box.y0


def test_the_epoch_that_a_caller_kept_goes_before_that_of_early_stopping(ax):
    plot_learning_curve(STOPPED, ax=ax, best_epoch=2)
    assert [label for label in curves(ax) if "best" in label] == ["best epoch (2)"]


def test_histories_of_several_networks_have_thin_lines_and_a_thick_mean(ax):
    histories = [a_history(30), a_history(40)[:20], a_history(25)]
    plot_learning_curve(histories, ax=ax, best_epoch=[29, None, 3])
    named = {label: line for label, line in curves(ax).items() if not label.startswith("_")}
    assert set(named) == {
        *("training loss", "validation loss", "training accuracy (right)", "validation accuracy (right)"),
        "best epochs (29, 3)",
    }
    # The mean goes as far as all do.
    mean = named["validation accuracy (right)"]
    expected = np.mean([[record["val_accuracy"] for record in each[:20]] for each in histories], axis=0)
    np.testing.assert_array_equal(mean.get_xdata(), np.arange(1, 21))
    np.testing.assert_allclose(mean.get_ydata(), expected)
    every = [line for axes in ax.figure.axes for line in axes.lines]
    thin = [line for line in every if line.get_alpha() is not None]
    assert sorted(len(line.get_xdata()) for line in thin) == [20] * 4 + [25] * 4 + [30] * 4
    assert max(line.get_linewidth() for line in thin) < mean.get_linewidth()
    marks = [line.get_xdata()[0] for line in every if line.get_linestyle() == ":"]
    assert marks == [29, 3]


@pytest.mark.parametrize(
    ("best", "error", "message"),
    [
        (3, TypeError, "`best_epoch` must be a list with an epoch or None for each of 2 histories, got 3"),
        ([3], TypeError, "for each of 2 histories"),
        ([3, 41], ValueError, "`best_epoch` must be <= 40"),
    ],
)
def test_epochs_of_several_networks_must_be_theirs(best, error, message):
    with pytest.raises(error, match=message):
        plot_learning_curve([a_history(50), a_history(40)], best_epoch=best)


def test_the_iterations_of_lbfgs_are_called_so(ax):
    plot_learning_curve(BINARY, ax=ax, best_epoch=2)
    assert "best iteration (2)" in curves(ax)


@pytest.mark.parametrize(
    ("best", "error", "message"),
    [
        (0, ValueError, "`best_epoch` must be an integer >= 1, got 0"),
        (41, ValueError, "`best_epoch` must be <= 40, the last epoch of `history`, got 41"),
        (3.0, TypeError, "`best_epoch` must be an integer >= 1, got 3.0"),
        (True, TypeError, "`best_epoch` must be an integer >= 1, got True"),
        ("3", TypeError, "`best_epoch` must be an integer >= 1, got '3'"),
    ],
)
def test_an_epoch_outside_of_the_history_cannot_be_marked(best, error, message):
    with pytest.raises(error, match=message):
        plot_learning_curve(a_history(40), best_epoch=best)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    "model",
    [
        BINARY,
        make_pipeline(StandardScaler(), clone(BINARY)),
        model_selection.GridSearchCV(make_pipeline(StandardScaler(), clone(BINARY)), {}, cv=2),
        TransformedTargetRegressor(clone(REGRESSOR), transformer=StandardScaler()),
    ],
    ids=["estimator", "pipeline", "search", "transformed_target"],
)
def test_fitted_estimators_are_found_where_they_are(model, ax):
    model = clone(model).fit(DATA.X, DATA.y)
    plot_learning_curve(model, ax=ax)
    inner = {"regressor_": lambda: model.regressor_, "best_estimator_": lambda: model.best_estimator_[-1]}
    inner = next((get() for name, get in inner.items() if hasattr(model, name)), model)
    inner = inner[-1] if hasattr(inner, "steps") else inner
    np.testing.assert_array_equal(ax.lines[0].get_ydata(), inner.loss_curve_)
    assert ax.get_xlabel() == "iteration"


@pytest.mark.parametrize("history", ["loss", 3, [1.0, 0.5], {"loss": [1.0]}, SVC(), MLPClassifier])
def test_what_is_no_history_is_refused(history):
    with pytest.raises(
        TypeError, match="`history` must be a History, a list of dicts, or a fitted MLP.*got "
    ):
        plot_learning_curve(history)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("history", "error", "message"),
    [
        (History(), ValueError, "`history` must have at least one epoch, got none"),
        ([{"epoch": 1}], ValueError, "`history` must have a loss or a score, got nothing but epochs"),
        ([{"loss": "low"}], TypeError, "`history` must hold numbers, got 'low' as 'loss'"),
        (MLPClassifier(), NotFittedError, "not fitted"),
    ],
)
def test_histories_without_anything_to_draw_are_refused(history, error, message):
    with pytest.raises(error, match=message):
        plot_learning_curve(history)
    assert not pyplot.get_fignums()


def test_long_histories_are_drawn_at_once(ax):
    random = np.random.default_rng(0)
    history = [
        {"epoch": epoch, "loss": random.random(), "val_loss": random.random()} for epoch in range(150_000)
    ]
    start = time.perf_counter()
    plot_learning_curve(history, ax=ax)
    ax.figure.canvas.draw()
    assert time.perf_counter() - start < 10.0
    assert len(ax.lines[0].get_xdata()) == 150_000


# Decision boundaries.


@pytest.mark.parametrize("n_outputs", [1, 2])
def test_a_network_is_asked_where_it_lives(library, n_outputs, ax):
    network, params, y = trained(n_outputs)
    there = tuple(Layer(library.array(layer.weight), library.array(layer.bias)) for layer in params)
    plot_decision_boundary((network, there), library.array(xor().X), library.array(y), ax=ax)
    classes, places = shown_classes(ax, 2)
    predicted = network.predict(params, places)
    predicted = (predicted[:, 0] > 0.5) if n_outputs == 1 else np.argmax(predicted, axis=1)
    np.testing.assert_array_equal(classes.ravel(), predicted)
    np.testing.assert_allclose(network.predict(params, boundary(ax))[:, 0], 0.5, atol=0.01)
    drawn = [points.get_offsets().tolist() for points in ax.collections[-2:]]
    assert drawn == [xor().X[xor().y == code].tolist() for code in (0, 1)]


@pytest.mark.parametrize("samples", ["there", "on the host"])
def test_an_estimator_is_asked_where_it_lives(library, samples, ax):
    X, y = DATA.X, DATA.y
    if samples == "there":
        X, y = library.array(X), library.array(y, "int64")
    plot_decision_boundary(moved(BINARY, library), X, y, ax=ax)
    classes, places = shown_classes(ax, 2)
    np.testing.assert_array_equal(classes.ravel(), BINARY.predict(places))
    np.testing.assert_allclose(BINARY.predict_proba(boundary(ax))[:, 1], 0.5, atol=0.05)
    for code, points in enumerate(ax.collections[-2:]):
        np.testing.assert_array_equal(points.get_offsets(), DATA.X[DATA.y == code])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_regressor_is_asked_where_it_lives(library, dtype, ax):
    plot_decision_boundary(moved(REGRESSOR, library, dtype), library.array(DATA.X, dtype), VALUES, ax=ax)
    surface, points = ax.collections
    np.testing.assert_array_equal(points.get_array(), VALUES)
    assert points.norm.vmin == surface.levels[0] <= VALUES.min()
    assert points.norm.vmax == surface.levels[-1] >= VALUES.max()
    for low, high, path in zip(surface.levels, surface.levels[1:], surface.get_paths()):
        predicted = REGRESSOR.predict(path.vertices)
        assert np.all((predicted > low - 0.1) & (predicted < high + 0.1))
    assert ax.figure.axes[1].get_ylabel() == "predicted value"


def test_regions_are_deeper_the_more_probable_the_class_is(ax):
    model = LogisticRegression().fit(DATA.X, THREE)
    plot_decision_boundary(model, DATA.X, THREE, ax=ax)
    classes, places = shown_classes(ax, 3)
    np.testing.assert_array_equal(model.classes_[classes.ravel()], model.predict(places))
    depth = np.linalg.norm(1.0 - ax.images[0].get_array(), axis=-1).ravel()
    probability = model.predict_proba(places).max(axis=1)
    for code in range(3):
        own = classes.ravel() == code
        assert np.corrcoef(depth[own], probability[own])[0, 1] > 0.999


def test_several_classes_differ_in_more_than_colour(ax):
    plot_decision_boundary(TERNARY, DATA.X, THREE, ax=ax, feature_names=["east", "north"])
    points = ax.collections[-3:]
    assert [each.get_label() for each in points] == ["above", "below", "right"]
    assert [text.get_text() for text in ax.get_legend().texts] == ["above", "below", "right"]
    assert len({to_hex(each.get_facecolor()[0]) for each in points}) == 3
    assert len({each.get_paths()[0].vertices.tobytes() for each in points}) == 3
    for each in points:
        np.testing.assert_array_equal(each.get_offsets(), DATA.X[each.get_label() == THREE])
    top_two = np.sort(TERNARY.predict_proba(boundary(ax)), axis=1)[:, 1:]
    assert np.quantile(top_two[:, 1] - top_two[:, 0], 0.9) < 0.05
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("east", "north")


def test_twenty_classes_still_differ(ax):
    X = np.random.default_rng(0).standard_normal((200, 2))
    y = np.arange(200) % 20
    plot_decision_boundary(LogisticRegression().fit(X, y), X, y, ax=ax)
    points = ax.collections[-20:]
    looks = [(to_hex(each.get_facecolor()[0]), each.get_paths()[0].vertices.tobytes()) for each in points]
    assert len(set(looks)) == 20


@pytest.mark.parametrize("frames", ["pandas", "polars"])
def test_pipelines_on_columns_of_a_table(frames, request, ax):
    frame = need(frames, request).DataFrame({"length": DATA.X[:, 0], "width": DATA.X[:, 1], "kind": THREE})
    X, y = frame[["length", "width"]], frame["kind"]
    model = make_pipeline(StandardScaler(), clone(TERNARY)).fit(X, y)
    plot_decision_boundary(model, X, y, ax=ax)
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("length", "width")
    assert [each.get_label() for each in ax.collections[-3:]] == ["above", "below", "right"]
    plain = make_pipeline(StandardScaler(), clone(TERNARY)).fit(DATA.X, THREE)
    other = plot_decision_boundary(plain, DATA.X, THREE, ax=Figure().subplots())
    np.testing.assert_allclose(other.images[0].get_array(), ax.images[0].get_array())
    # An estimator of ours that knows the columns is asked about columns.
    plot_decision_boundary(clone(TERNARY).fit(X, y), X, y, ax=Figure().subplots())


@pytest.mark.parametrize(
    "model",
    [SVC(), model_selection.FixedThresholdClassifier(LogisticRegression(), threshold=0.8)],
    ids=["no probabilities", "a threshold of its own"],
)
def test_regions_are_what_a_model_predicts(model, ax):
    model.fit(DATA.X, DATA.y)
    plot_decision_boundary(model, DATA.X, DATA.y, ax=ax)
    classes, places = shown_classes(ax, 2)
    np.testing.assert_array_equal(classes.ravel(), model.predict(places))
    assert len(np.unique(ax.images[0].get_array().reshape(-1, 3), axis=0)) == 2


def test_clusters_are_regions_too(ax):
    model = KMeans(3, n_init=1, random_state=0).fit(DATA.X)
    plot_decision_boundary(model, DATA.X, model.labels_, ax=ax)
    classes, places = shown_classes(ax, 3)
    np.testing.assert_array_equal(classes.ravel(), model.predict(places))


def test_values_are_those_before_a_target_was_transformed(ax):
    model = TransformedTargetRegressor(clone(REGRESSOR), transformer=StandardScaler())
    plot_decision_boundary(model.fit(DATA.X, 1e3 + VALUES), DATA.X, ax=ax)
    assert ax.collections[0].levels[0] > 900.0


def test_without_labels_there_are_regions_and_their_names(ax):
    plot_decision_boundary(TERNARY, DATA.X, ax=ax)
    assert not any(len(each.get_offsets()) for each in ax.collections[-3:])
    assert [text.get_text() for text in ax.get_legend().texts] == ["above", "below", "right"]


def test_a_class_that_wins_nowhere_has_a_name_and_no_line(ax):
    X = np.array([[0.0, 0.0], [1.0, 1.0]])
    network = Network((2, 3), loss="categorical_cross_entropy")
    params = (Layer(np.zeros((2, 3)), np.array([0.0, 2.0, 1.0])),)
    plot_decision_boundary((network, params), X, [1, 2], ax=ax)
    assert not any(hasattr(each, "levels") for each in ax.collections)
    assert np.ptp(ax.images[0].get_array(), axis=(0, 1)).max() == 0.0


def test_a_single_sample_has_room_around_it(ax):
    plot_decision_boundary(BINARY, [[1.0, 2.0]], [1], ax=ax, legend=False)
    assert (*ax.get_xlim(), *ax.get_ylim()) == (0.0, 2.0, 1.0, 3.0)


def test_samples_that_are_missing_something_are_not_in_the_way(ax):
    X = np.concatenate([DATA.X, [[np.nan, 0.0]]])
    plot_decision_boundary(BINARY, X, [*DATA.y, 0], ax=ax)
    assert np.isfinite(ax.get_xlim()).all()


def test_the_legend_can_be_left_to_the_figure(ax):
    plot_decision_boundary(BINARY, DATA.X, DATA.y, ax=ax, legend=False, class_names=["red", "blue"])
    assert ax.get_legend() is None
    assert ax.get_legend_handles_labels()[1] == ["red", "blue"]
    plot_decision_boundary(REGRESSOR, DATA.X, ax=Figure().subplots(), legend=False)


def test_the_legend_covers_no_sample(ax):
    plot_decision_boundary(TERNARY, DATA.X, THREE, ax=ax)
    ax.figure.canvas.draw()
    legend = ax.get_legend().get_window_extent()
    assert ax.transData.transform(DATA.X)[:, 1].max() < legend.y0
    assert ax.transData.transform((0.0, ax.images[0].get_extent()[-1]))[1] <= legend.y0 + 2.0


def labels_of(n):
    return (DATA.X[:, :1] > np.arange(n)).astype(int)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (MLPClassifier((3,), **FAST).fit(DATA.X, labels_of(3)), "got 3"),
        (MLPRegressor(hidden_layer_sizes=3, **FAST).fit(DATA.X, DATA.X), "got 2"),
        ((Network((2, 2), loss="binary_cross_entropy"), (Layer(np.eye(2), np.zeros(2)),)), "got 2"),
        ((Network((2, 2), loss="squared_error"), (Layer(np.eye(2), np.zeros(2)),)), "got 2"),
    ],
    ids=["labels", "values", "labels of a network", "values of a network"],
)
def test_several_labels_or_values_are_refused(model, message):
    with pytest.raises(
        ValueError, match="`model` must predict one label or value for each sample.*" + message
    ):
        plot_decision_boundary(model, DATA.X)
    assert not pyplot.get_fignums()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"X": DATA.X[:, :1]},
            ValueError,
            r"`X` must have two features, shape \(n_samples, 2\), got \(100, 1\)",
        ),
        ({"X": DATA.X[0]}, ValueError, r"`X` must have two features, shape \(n_samples, 2\), got \(2,\)"),
        ({"X": [["a", "b"]]}, TypeError, "`X` must hold numbers"),
        ({"X": DATA.X[:0]}, ValueError, "`X` must have finite values in each column, got none"),
        ({"y": DATA.y[:3]}, ValueError, r"`y` must have shape \(n_samples,\) = \(100,\), got \(3,\)"),
        ({"y": DATA.y + 1}, ValueError, r"`y` must hold classes of the model, \[0, 1\], got 2"),
        ({"y": THREE}, ValueError, r"`y` must hold classes of the model, \[0, 1\], got '"),
        ({"model": REGRESSOR, "y": THREE}, TypeError, "`y` must hold numbers"),
        ({"model": MLPClassifier()}, NotFittedError, "not fitted"),
        (
            {"model": "svm"},
            TypeError,
            r"`model` must be a fitted estimator or a pair \(network, params\), got str",
        ),
        ({"model": (1, 2)}, TypeError, r"`model` must be a fitted estimator or a pair .*, got tuple"),
        ({"model": (Network((2, 1), loss="squared_error"), ())}, TypeError, "`params` must be an array"),
        ({"feature_names": ["a"]}, ValueError, r"`feature_names` must have 2 names, got 1: \['a'\]"),
        ({"class_names": "ab"}, ValueError, r"`class_names` must have 2 names, got 1: \['ab'\]"),
        ({"grid_resolution": 1}, ValueError, "`grid_resolution` must be an integer >= 2, got 1"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_drawn(arguments, error, message):
    with pytest.raises(error, match=message):
        plot_decision_boundary(**{"model": BINARY, "X": DATA.X, "y": DATA.y, **arguments})
    assert not pyplot.get_fignums()


# Networks.


def lines_into(ax, index):
    """The lines into a layer: where from and to, width, whether solid, colour."""
    lines = [each for each in ax.collections if hasattr(each, "get_segments")][index - 1]
    solid = [dashes is None for _, dashes in lines.get_linestyle()]
    return np.array(lines.get_segments()), np.array(lines.get_linewidths()), solid, lines.get_colors()


def written(ax):
    return [text.get_text() for text in ax.texts]


def test_lines_are_as_wide_as_weights_are_large(library, ax):
    weight = np.array([[0.5, -2.0, 0.0], [1.0, 0.25, -0.5]])
    params = (
        Layer(library.array(weight), library.array([1.0, -1.0, 0.0])),
        Layer(library.array([[4.0], [-1.0], [2.0]]), library.array([0.5])),
    )
    network = Network((2, 3, 1), activation="tanh", loss="binary_cross_entropy")
    plot_network((network, params), ax=ax, feature_names=["a", "b"], class_names=["no", "yes"])
    for index, layer in enumerate(params, 1):
        segments, widths, solid, colours = lines_into(ax, index)
        wanted = to_host(layer.weight)
        heights = [0.5 * (n - 1) - np.arange(n) for n in wanted.shape]
        rows, columns = (np.argmin(abs(segments[:, end, 1, None] - heights[end]), axis=1) for end in (0, 1))
        assert segments[:, :, 0].tolist() == [[index - 1, index]] * wanted.size
        np.testing.assert_allclose(widths, 4.0 * abs(wanted[rows, columns]) / 4.0)
        assert solid == (wanted[rows, columns] >= 0.0).tolist()
        assert len({tuple(colour) for colour in colours}) == 2
        assert np.all(np.diff(widths) >= 0.0)
    rims = [each.get_linewidths().tolist() for each in ax.collections if each.get_zorder() == 3]
    assert rims == [[0.0, 0.0], [1.0, 1.0, 0.0], [0.5]]
    assert [text.get_text() for text in ax.get_legend().texts] == [
        "+4",
        "+1",
        "\N{MINUS SIGN}1",
        "\N{MINUS SIGN}4",
    ]
    assert [line.get_linewidth() for line in ax.get_legend().get_lines()] == [4.0, 1.0, 1.0, 4.0]
    assert written(ax) == ["\n2 inputs", "tanh\n3 units", "logistic\n1 output", "a", "b", "yes"]


def test_an_estimator_and_its_network_look_the_same(ax):
    frame = pytest.importorskip("pandas").DataFrame(DATA.X, columns=["length", "width"])
    model = MLPClassifier((6, 3), ("tanh", leaky_relu(0.2)), **FAST).fit(frame, THREE)
    plot_network(make_pipeline(model), ax=ax)
    assert written(ax)[:4] == ["\n2 inputs", "tanh\n6 units", "leaky_relu\n3 units", "softmax\n3 outputs"]
    assert written(ax)[4:] == ["length", "width", "above", "below", "right"]
    network = Network((2, 6, 3, 3), activation=("tanh", leaky_relu(0.2)), loss="categorical_cross_entropy")
    params = tuple(Layer(*layer) for layer in zip(model.coefs_, model.intercepts_))
    other = plot_network((network, params), ax=Figure().subplots())
    assert written(other) == written(ax)[:4]
    for index in (1, 2, 3):
        np.testing.assert_array_equal(lines_into(other, index)[1], lines_into(ax, index)[1])


def test_a_wide_layer_is_drawn_by_its_ends(ax):
    network = Network((13, 12, 200), loss="categorical_cross_entropy")
    params = network.init(0, like=DATA.X)
    names = [f"f{index}" for index in range(13)]
    plot_network((network, params), ax=ax, feature_names=names, class_names=range(200))
    assert [text for text in written(ax) if text.startswith("f")] == [*names[:5], *names[-5:]]
    assert [text for text in written(ax) if text.isdigit()] == [*"01234", "195", "196", "197", "198", "199"]
    assert written(ax).count("\N{VERTICAL ELLIPSIS}") == 2
    assert {"\n13 inputs", "relu\n12 units", "softmax\n200 outputs"} <= set(written(ax))
    ends = [0, 1, 2, 3, 4, -5, -4, -3, -2, -1]
    drawn = params[1].weight[:, ends], params[0].weight[ends]
    largest = max(abs(weight).max() for weight in drawn)
    for index, weight in zip((2, 1), drawn):
        widths = lines_into(ax, index)[1]
        np.testing.assert_allclose(widths / widths.max(), np.sort(abs(weight), axis=None) / abs(weight).max())
    assert ax.get_legend().texts[0].get_text() == f"+{largest:.2g}"


def _softsign_forward(xp, z):
    return z / (1.0 + xp.abs(z)), z


def test_activations_of_ones_own_have_the_name_of_their_function(ax):
    network = Network((1, 1, 1), activation=Activation(_softsign_forward, _softsign_forward), loss="poisson")
    plot_network((network, network.init(0, like=DATA.X)), ax=ax)
    assert written(ax)[1:] == ["softsign\n1 unit", "exp\n1 output"]


@pytest.mark.parametrize(("size", "name"), [((6.4, 4.8), "a quite long name of a column"), ((2.5, 2.0), "x")])
def test_all_that_is_written_is_inside_and_apart(size, name):
    ax = Figure(figsize=size).subplots()
    plot_network(MLPClassifier(4, "tanh", **FAST).fit(DATA.X, THREE), ax=ax, feature_names=[name, "y"])
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in ax.texts]
    assert all(ax.bbox.x0 - 30 <= box.x0 and box.x1 <= ax.bbox.x1 + 30 for box in boxes)
    assert all(ax.bbox.y0 - 1 <= box.y0 and box.y1 <= ax.bbox.y1 for box in boxes)
    legend = ax.get_legend().get_window_extent()
    assert ax.transData.transform((0.0, 1.5))[1] < legend.y0


def test_weights_of_zero_are_no_problem(ax):
    network = Network((2, 2), loss="squared_error")
    plot_network((network, network.init(0, like=DATA.X, weight="zeros")), ax=ax)
    ax.figure.canvas.draw()
    assert not lines_into(ax, 1)[1].any()
    assert written(ax) == ["\n2 inputs", "identity\n2 outputs"]


@pytest.mark.parametrize(
    ("model", "names", "error", "message"),
    [
        (
            SVC(),
            {},
            TypeError,
            "`model` must be a fitted MLPClassifier or MLPRegressor, or a pair .* got SVC",
        ),
        (MLPClassifier(), {}, TypeError, "`model` must be a fitted MLPClassifier .* got MLPClassifier"),
        (
            (Network((2, 1), loss="poisson"), (np.ones((2, 1)),)),
            {},
            TypeError,
            "`params` must be a tuple of 1",
        ),
        (BINARY, {"feature_names": ["a"]}, ValueError, "`feature_names` must have 2 names, got 1"),
        (BINARY, {"class_names": ["a", "b", "c"]}, ValueError, "`class_names` must have 1 or 2 names, got 3"),
    ],
)
def test_what_is_no_network_is_refused(model, names, error, message):
    with pytest.raises(error, match=message):
        plot_network(model, **names)
    assert not pyplot.get_fignums()
