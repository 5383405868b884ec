"""What a bar shows of a training, and that it only listens."""

import copy
import io
import pickle
import re
import sys
import time

import numpy as np
import pytest

import mlp_xp
from mlp_xp import Network, ProgressBar, TrainingError, adam, train
from mlp_xp.datasets import planar

rich_console = pytest.importorskip("rich.console")

NETWORK = Network((2, 3, 1), loss="binary_cross_entropy")
X, Y = planar().X, planar().y[:, None]


def console(terminal=True, width=100):
    return rich_console.Console(file=io.StringIO(), force_terminal=terminal, width=width, color_system=None)


def screen(of):
    """The lines that were drawn, one over the other, without what moves the cursor."""
    text = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", of.file.getvalue())
    return [line.strip() for line in re.split(r"[\r\n]+", text) if line.strip()]


def trained(epochs=50, **settings):
    return train(NETWORK, NETWORK.init(0, like=X), X, Y, optimizer=adam(), epochs=epochs, seed=0, **settings)


def test_the_last_line_tells_how_it_ended():
    shown = console()
    with ProgressBar(50, console=shown) as bar:
        _, history = trained(on_progress=bar, validation_data=(X, Y), metrics=["accuracy"])
    last = history[-1]
    pattern = rf"epoch 50/50 ━+ loss {last['loss']:.4f} val {last['val_loss']:.4f} "
    pattern += rf"accuracy {last['val_accuracy']:.3f} [\d,.]+ epochs/s \d\d:\d\d left"
    assert re.fullmatch(pattern, screen(shown)[-1])


def test_epochs_before_a_training_was_resumed_are_none_of_its_time(monkeypatch):
    monkeypatch.setattr("mlp_xp._training.progress_bar.MIN_SECONDS_BETWEEN_UPDATES", 0.0)
    first = trained(5000)
    shown = console()
    with ProgressBar(5100, console=shown) as bar:
        trained(5003, on_progress=bar, resume=first, callback=lambda *_: time.sleep(0.05))
    assert re.search(r"5003/5100 .* ([\d.]+) epochs/s", screen(shown)[-1])
    for line in screen(shown)[2:]:
        assert float(re.search(r"([\d,.]+) epochs/s", line)[1].replace(",", "")) <= 20.0


def test_no_line_is_cut_in_a_narrow_terminal():
    shown = console(width=80)
    with ProgressBar(1000, console=shown) as bar:
        trained(1000, on_progress=bar, validation_data=(X, Y), metrics=["accuracy"])
    assert "…" not in shown.file.getvalue()
    assert re.search(r"accuracy \d\.\d{3} [\d,.]+/s \d\d:\d\d left$", screen(shown)[-1])


NUMBERS = r"loss \d\.\d{4} val \d\.\d{4} accuracy \d\.\d{3}"


@pytest.mark.sampled(4)
@pytest.mark.parametrize("description", ["epoch", "3/7 64x32     hidden epoch"])
@pytest.mark.parametrize("width", [50, 60, 65, 80, 100, 120])
def test_numbers_are_whole_in_terminals_of_any_width(width, description, monkeypatch):
    monkeypatch.setattr("mlp_xp._training.progress_bar.MIN_SECONDS_BETWEEN_UPDATES", 0.0)
    shown = console(width=width)
    with ProgressBar(110, console=shown, description=description) as bar:
        trained(110, on_progress=bar, validation_data=(X, Y), metrics=["accuracy"])
    text = shown.file.getvalue()
    assert "\n" not in text.removesuffix("\x1b[?25h").removesuffix("\n")  # no draw took two lines
    assert "…" not in text
    lines = screen(shown)
    assert max(map(len, lines)) <= width
    assert re.match(rf"{description.split()[0]} .*0/110", lines[0])
    lines = [line for line in lines if "loss" in line]
    assert len(lines) > 100
    for line in lines:
        assert re.search(rf"(^| )\d+/110 ([━╸]* )?{NUMBERS}", re.sub(" +", " ", line)), line
        assert line.startswith(description.split()[0] if width > 50 or "3/7" in description else "")
    # The narrower the terminal, the less stands beside them.
    rest = re.split(NUMBERS, lines[-1])[1]
    if description == "epoch":
        expected = {
            50: r"",
            60: r" \d\d:\d\d",
            65: r" [\d,.]+/s \d\d:\d\d",
            80: r" [\d,.]+( epochs)?/s \d\d:\d\d left",
        }
        assert re.fullmatch(expected.get(width, r" [\d,.]+ epochs/s \d\d:\d\d left"), rest)
        assert ("━" in lines[-1]) == (width >= 80)


def test_what_a_training_shows_does_not_come_and_go(monkeypatch):
    """Numbers of changing width would move the bar in and out of the line."""
    monkeypatch.setattr("mlp_xp._training.progress_bar.MIN_SECONDS_BETWEEN_UPDATES", 0.0)
    shown = console(width=100)
    history = [{"epoch": number, "loss": 10.0 ** (number % 20 + 10)} for number in range(1, 101)]
    with ProgressBar(100, console=shown) as bar:
        for number in range(1, 101):
            bar(history[:number])
    starts = [line.index("loss") for line in screen(shown) if "loss" in line]
    assert starts == sorted(starts, reverse=True)
    assert starts[0] > starts[-1]


def test_a_name_too_long_for_the_terminal_is_dropped():
    shown = console(width=40)
    with ProgressBar(50, console=shown, description="x" * 80) as bar:
        trained(50, on_progress=bar, validation_data=(X, Y), metrics=["accuracy"])
    assert re.fullmatch(r"50/50 loss \d\.\d{4} val \d\.\d{4}", screen(shown)[-1])


def test_nothing_is_shown_where_no_terminal_is():
    shown = console(terminal=False)
    with ProgressBar(50, console=shown) as bar:
        trained(on_progress=bar)
    assert shown.file.getvalue() == ""


def test_a_notebook_shows_it_too(monkeypatch):
    pytest.importorskip("ipywidgets")
    shown = []
    display = pytest.importorskip("IPython.display")
    monkeypatch.setattr(display, "display", lambda what, **options: shown.append(what))
    notebook = rich_console.Console(force_jupyter=True, width=100)
    with ProgressBar(50, console=notebook) as bar:
        _, history = trained(on_progress=bar)
    texts = [what._repr_mimebundle_([], [])["text/plain"] for what in shown if hasattr(what, "html")]
    last = re.sub(r"\x1b\[[\d;]*m", "", [text for text in texts if text][-1])
    assert re.match(rf"epoch 50/50 ━+ loss {history[-1]['loss']:.4f} ", last)


def test_a_notebook_without_widgets_is_told_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    notebook = rich_console.Console(force_jupyter=True, width=100)
    with (
        pytest.warns(UserWarning, match=r"needs ipywidgets .* pip install 'mlp_xp\[notebook\]'"),
        ProgressBar(50, console=notebook) as bar,
    ):
        _, history = trained(on_progress=bar)
    assert len(history) == 50


def test_listening_changes_nothing_and_splits_no_blocks():
    lengths = []
    heard, history = trained(3000, on_progress=lambda history: lengths.append(len(history)))
    alone, expected = trained(3000)
    assert history == expected
    for mine, theirs in zip(heard, alone, strict=True):
        np.testing.assert_array_equal(mine.weight, theirs.weight)
    assert lengths == sorted(set(lengths))
    assert lengths[-1] == 3000
    assert len(lengths) < 1000  # they were told of together


def test_where_epochs_are_measured_each_is_told_of():
    lengths = []
    trained(5, on_progress=lambda history: lengths.append(len(history)), metrics=["accuracy"])
    assert lengths == [1, 2, 3, 4, 5]


def test_what_a_failing_listener_loses_is_nothing():
    def fail(history):
        raise OSError("the pipe is closed")

    with pytest.raises(OSError, match="the pipe is closed") as caught:
        trained(on_progress=fail)
    assert len(caught.value.history) >= 1


def test_a_bar_opened_twice_is_one_and_leaves_the_streams_alone():
    streams, shown = (sys.stdout, sys.stderr), console()
    bar = ProgressBar(50, console=shown)
    with bar, bar:
        trained(on_progress=bar)
        assert (sys.stdout, sys.stderr) == streams
    assert (sys.stdout, sys.stderr) == streams
    assert shown.file.getvalue().count("\x1b[?25h") == shown.file.getvalue().count("\x1b[?25l") == 1


def test_a_bar_goes_to_other_processes():
    with ProgressBar(50, console=console()) as bar:
        copied = pickle.loads(pickle.dumps(copy.deepcopy(bar)))
    assert copied.epochs == 50
    with copied:
        trained(on_progress=copied)


def test_only_functions_listen():
    with pytest.raises(TypeError, match="`on_progress` must be a function of the history, got 3"):
        trained(on_progress=3)


class TestEstimators:
    pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

    @pytest.fixture(autouse=True)
    def _scikit_learn(self):
        pytest.importorskip("sklearn", minversion="1.9")

    @staticmethod
    def model(**settings):
        return mlp_xp.MLPClassifier((3,), max_iter=20, random_state=0, **settings)

    @pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
    def test_a_fit_shows_its_epochs(self, solver):
        shown = console()
        model = self.model(solver=solver).set_callbacks(ProgressBar(console=shown)).fit(X, Y[:, 0])
        assert f"epoch {model.n_iter_}/20 " in screen(shown)[-1]
        assert f"loss {model.loss_curve_[-1]:.4f}" in screen(shown)[-1]
        np.testing.assert_array_equal(model.coefs_[0], self.model(solver=solver).fit(X, Y[:, 0]).coefs_[0])

    def test_beside_a_callback_of_scikit_learns(self):
        callback = pytest.importorskip("sklearn.callback")
        shown = console()
        monitor = callback.ScoringMonitor(scoring="accuracy")
        model = self.model().set_callbacks(monitor, ProgressBar(console=shown)).fit(X, Y[:, 0])
        assert f"epoch {model.n_iter_}/20 " in screen(shown)[-1]

    def test_a_failed_fit_closes_the_bar(self):
        shown = console()
        model = self.model(solver="sgd", learning_rate_init=1e30).set_callbacks(ProgressBar(console=shown))
        with pytest.raises(TrainingError):
            model.fit(X, Y[:, 0])
        assert shown.file.getvalue().endswith("\x1b[?25h")  # the cursor is back
        assert model.set_params(learning_rate_init=0.01).fit(X, Y[:, 0]).n_iter_ > 0

    def test_partial_fit_shows_nothing(self):
        shown = console()
        model = self.model().set_callbacks(ProgressBar(console=shown))
        model.partial_fit(X, Y[:, 0], classes=[0, 1])
        assert shown.file.getvalue() == ""

    def make(self, kind):
        """An estimator that has none, one or several of ours in it."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import GridSearchCV
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        pipeline = make_pipeline(StandardScaler(), self.model())
        return {
            "pipeline": pipeline,
            "pipeline in it": make_pipeline(StandardScaler(), pipeline),
            "search": GridSearchCV(self.model(), {"alpha": [0.1, 1.0]}, cv=2),
            "search of pipelines": GridSearchCV(pipeline, {"mlpclassifier__alpha": [0.1, 1.0]}, cv=2),
            "threads": GridSearchCV(pipeline, {"mlpclassifier__alpha": [0.1, 1.0]}, cv=2, n_jobs=2),
            "scaler": StandardScaler(),
            "logistic regression": LogisticRegression(),
        }[kind]

    @pytest.mark.parametrize(
        ("kind", "fits"),
        [
            ("pipeline", 1),
            ("pipeline in it", 1),
            ("search", 5),
            ("search of pipelines", 5),
            ("threads", 5),
            ("scaler", 0),
            ("logistic regression", 0),
        ],
    )
    def test_it_shows_the_fits_inside_of_other_estimators(self, kind, fits):
        joblib = pytest.importorskip("joblib")
        shown = console()
        model, bar = self.make(kind), ProgressBar(console=shown)
        with joblib.parallel_backend("threading"):
            model.set_callbacks(bar).fit(X, Y[:, 0])
        text = "\n".join(screen(shown))
        assert ("epoch 20/20 " in text) == (fits > 0)
        assert max(map(int, re.findall(r"fit (\d+) epoch", text)), default=1) == max(fits, 1)
        assert shown.file.getvalue().count("\x1b[?25h") == (fits > 0)
        # The next fit counts from one, and the bar may be set on a step again.
        first = copy.deepcopy(self.make("pipeline").set_params(mlpclassifier__max_iter=2))
        first[-1].set_callbacks(bar)
        first.fit(X, Y[:, 0])
        assert screen(shown)[-1].startswith("epoch 2/2 ")

    def test_a_search_in_processes_shows_the_last_fit(self):
        shown = console()
        self.make("threads").set_callbacks(ProgressBar(console=shown)).fit(X, Y[:, 0])
        assert screen(shown)[-1].startswith("epoch 20/20 ")  # that of `refit`, which is here

    def test_it_shows_a_step_on_which_it_is_set_beside_one_that_was_passed_on(self):
        outer, inner = console(), console()
        pipeline = self.make("pipeline").set_callbacks(ProgressBar(console=outer))
        pipeline[-1].set_callbacks(ProgressBar(console=inner))
        pipeline.fit(X, Y[:, 0])
        assert screen(outer)[-1].startswith("epoch 20/20 ")
        assert screen(inner)[-1].startswith("epoch 20/20 ")
