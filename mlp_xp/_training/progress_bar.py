"""`ProgressBar`: the progress of a training, shown in terminals and notebooks only."""

from __future__ import annotations

import math
import re
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple

from mlp_xp._messages import package_needed
from mlp_xp._training.history import History
from mlp_xp._validation import check_integer, shown
from mlp_xp._warnings import warn

MIN_SECONDS_BETWEEN_UPDATES = 0.1
"""Ten updates a second look continuous; more would only take time from the training."""


class _Layout(NamedTuple):
    """What a line shows beside the epochs done and the losses.

    Attributes
    ----------
    bar : int
        Width of the bar, 0 for none.
    rate : str
        Unit of the epochs a second, "" to leave them out.
    time, left, score : bool
        Whether the time left is shown, the word "left" after it, and the last score.
    n_words : int or None
        How many words of the description are shown, None for all.
    """

    bar: int
    rate: str
    time: bool
    left: bool
    score: bool = True
    n_words: int | None = None


LAYOUTS = (
    _Layout(bar=24, rate=" epochs/s", time=True, left=True),
    _Layout(bar=5, rate=" epochs/s", time=True, left=True),
    _Layout(bar=5, rate="/s", time=True, left=True),
    _Layout(bar=0, rate="/s", time=True, left=True),
    _Layout(bar=0, rate="/s", time=True, left=False),
    _Layout(bar=0, rate="", time=True, left=False),
    _Layout(bar=0, rate="", time=False, left=False),
)
"""Layouts from the widest to the narrowest; a training takes the first in which its line fits."""


def _layouts(description: str) -> list[_Layout]:
    """Return `LAYOUTS` and narrower ones, with less of the description and at last without the score."""
    narrowest = LAYOUTS[-1]
    shorter = [narrowest._replace(n_words=n) for n in reversed(range(len(description.split())))]
    return [*LAYOUTS, *shorter, narrowest._replace(n_words=0, score=False)]


class ProgressBar:
    """Show a training's loss, score, epochs a second and the time left, on stderr.

    Without a terminal or notebook, as in a pipe, it shows nothing.

    Parameters
    ----------
    epochs : int, optional
        The largest number of epochs. For estimators it is `max_iter`.
    console : rich.console.Console, optional
        Where to draw, stderr by default.
    description : str, default="epoch"
        Text in front of the bar.

    Raises
    ------
    ImportError
        If rich is not installed.

    Warns
    -----
    UserWarning
        In a notebook without ipywidgets, where nothing is shown.

    Notes
    -----
    It is a context manager to pass as `on_progress` to `train`, and a callback for an estimator's
    `set_callbacks`. It does not slow the training down: short epochs still run several at once.

    Set on a `Pipeline` or a search, it shows the fits of this library's estimators in it, one after the
    other, except those in other processes.

    Examples
    --------
    >>> from mlp_xp import MLPClassifier, Network, ProgressBar, adam, train
    >>> from mlp_xp.datasets import xor
    >>> X, y = xor().X, xor().y
    >>> network = Network((2, 8, 1), activation="tanh", loss="binary_cross_entropy")
    >>> with ProgressBar(epochs=200) as bar:
    ...     result = train(
    ...         network, network.init(0, like=X), X, y[:, None], optimizer=adam(0.1), epochs=200,
    ...         on_progress=bar)
    >>> model = MLPClassifier((8,), max_iter=300, learning_rate_init=0.1, random_state=0)
    >>> model.set_callbacks(ProgressBar()).fit(X, y).score(X, y)
    1.0
    """

    max_propagation_depth: None
    """scikit-learn's: it passes a callback that has it on to estimators inside, here at any depth.

    An attribute only while the fit of an outermost estimator runs, because a callback that has it may not be
    set on a step of a pipeline.
    """

    def __init__(self, epochs: int | None = None, *, console: Any = None, description: str = "epoch") -> None:
        with package_needed("ProgressBar", "rich", "cli"):
            rich = import_module("rich.console")
        if not (console is None or isinstance(console, rich.Console)):
            raise TypeError(f"`console` must be a rich Console or None, got {shown(console)}")
        if not isinstance(description, str):
            raise TypeError(f"`description` must be text, got {shown(description)}")
        self.epochs = None if epochs is None else check_integer("epochs", epochs, minimum=0)
        self.console = console
        self.description = description
        self._display: Any = None
        self._n_open = self._n_fits = self._n_resumed = 0
        self._last_look = self._began = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Drop the console, which cannot be pickled, and the training shown."""
        state = {**self.__dict__, "console": None, "_display": None, "_n_open": 0}
        for name in ("_history", "_n_resumed", "_time_left"):
            state.pop(name, None)
        return state

    def __repr__(self) -> str:
        return f"ProgressBar({self.epochs}, description={self.description!r})"

    def __enter__(self) -> ProgressBar:
        self._open()
        self._begin(self.epochs)
        return self

    def __exit__(self, *error: object) -> None:
        self._close()

    def __call__(self, history: History) -> None:
        """Show the last epoch of a history."""
        n_resumed = getattr(history, "n_resumed", 0)
        if self._display is not None and n_resumed != self._n_resumed:
            # Those are no epochs of the time since the bar was begun.
            self._display.reset(self._task, completed=n_resumed)
        self._history, self._n_resumed = history, n_resumed
        now = time.monotonic()
        if self._display is not None and now - self._last_look >= MIN_SECONDS_BETWEEN_UPDATES:
            self._last_look = now
            self._draw(self._display)

    on_progress = __call__

    # scikit-learn's callback protocol.

    def setup(self, estimator: Any, context: Any) -> None:
        """Open the bar when a fit begins."""
        if context.parent is None:
            self.max_propagation_depth = None
        self._open()

    def teardown(self, estimator: Any, context: Any) -> None:
        """Close the bar when a fit ends."""
        self._close()

    def on_fit_task_begin(self, estimator: Any, context: Any) -> None:
        """Begin to show a fit: `on_progress` gets its history."""
        # Only this library's estimators have a history; the task of an epoch has no subtasks.
        if hasattr(type(estimator), "history_") and context.max_subtasks:
            self._n_fits += 1
            self._begin(estimator.max_iter)

    def on_fit_task_end(self, estimator: Any, context: Any) -> None:
        """Do nothing: `on_progress` gets the history."""

    def _open(self) -> None:
        self._n_open += 1
        if self._n_open == 1:
            self._n_fits = 0

    def _begin(self, epochs: int | None) -> None:
        """Show a training that begins; of several at once the one that began last."""
        self._history, self._n_resumed = History(), 0
        self._began = time.monotonic()
        if self._n_open == 0:  # in another process than that which shows it
            return
        description = self.description if self._n_fits < 2 else f"fit {self._n_fits} {self.description}"
        if self._display is None:
            self._make_display(epochs)
        if self._display is not None:
            self._text, self._layouts = description, _layouts(description)
            self._fit(self._display)
            self._display.reset(self._task, total=epochs)  # draws it, if it was started before
            self._display.start()

    def _make_display(self, epochs: int | None) -> None:
        """Make the display, unless the console is neither a terminal nor a notebook."""
        from rich.console import Console
        from rich.progress import Progress, TimeRemainingColumn

        console = Console(stderr=True) if self.console is None else self.console
        if not (console.is_terminal or console.is_jupyter):
            return
        if console.is_jupyter and find_spec("ipywidgets") is None:
            warn("ProgressBar needs ipywidgets in a notebook: pip install 'mlp_xp[notebook]'")
            return
        # Drawn when epochs are reported, not by a thread, which would take time from the training.
        self._display = Progress(
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        # One for all layouts, because it keeps what it shows for half a second.
        self._time_left = TimeRemainingColumn(compact=True)
        self._task = self._display.add_task("", total=epochs)

    def _close(self) -> None:
        self._n_open -= 1
        if self._n_open > 0:
            return
        self.__dict__.pop("max_propagation_depth", None)
        if self._display is not None:
            display, self._display = self._display, None
            self._draw(display)
            display.stop()

    def _draw(self, display: Any) -> None:
        """Draw the last epoch of the history."""
        display.update(self._task, completed=len(self._history))
        self._fit(display)
        display.refresh()

    def _fit(self, display: Any) -> None:
        """Set the first layout in which the line fits the terminal.

        Wider layouts are not tried again in a training: they would come and go as numbers change width.
        """
        layouts = self._layouts  # local, because fits in other threads draw too
        self._show(display, layouts[0])
        while len(layouts) > 1 and not _fits(display):
            layouts = layouts[1:]
            self._show(display, layouts[0])
        self._layouts = layouts

    def _show(self, display: Any, layout: _Layout) -> None:
        """Set the columns and texts of a layout."""
        words = re.findall(r"\S+\s*", self._text)[: layout.n_words]
        description = self._text if layout.n_words is None else "".join(words).rstrip()
        display.columns = _columns(layout, self._time_left)
        display.update(self._task, description=description, measured=self._measured(layout))

    def _measured(self, layout: _Layout) -> str:
        """Return the losses of the last epoch, and its score and the epochs a second if they are shown."""
        if not self._history:
            return ""
        texts = [_losses(self._history[-1])]
        if layout.score:
            texts += _last_score(self._history[-1])
        if layout.rate:
            n_epochs = len(self._history) - self._n_resumed
            rate = n_epochs / max(time.monotonic() - self._began, 1e-9)
            texts.append((f"{rate:,.0f}" if rate >= 10.0 else f"{rate:.2g}") + layout.rate)
        return " ".join(texts)


def _columns(layout: _Layout, time_left: Any) -> tuple[Any, ...]:
    """Return a layout's columns of rich."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn

    columns = {
        TextColumn("{task.description}", markup=False): layout.n_words != 0,
        MofNCompleteColumn(): True,
        BarColumn(bar_width=layout.bar): layout.bar > 0,
        TextColumn("{task.fields[measured]}", markup=False): True,
        time_left: layout.time,
        TextColumn("left"): layout.left,
    }
    return tuple(column for column, shown in columns.items() if shown)


def _fits(display: Any) -> bool:
    """Return whether the line is no wider than the terminal."""
    console, line = display.console, display.make_tasks_table(display.tasks)
    fits: bool = (
        console.measure(line, options=console.options.update(max_width=10_000)).maximum <= console.width
    )
    return fits


def _losses(record: dict[str, Any]) -> str:
    """Format an epoch's losses."""
    return f"loss {record['loss']:.4f}" + (f" val {record['val_loss']:.4f}" if "val_loss" in record else "")


def _last_score(record: dict[str, Any]) -> list[str]:
    """Format an epoch's last score, if it has one: that of validation data if there are any."""
    scores = [name for name in record if name not in ("epoch", "loss", "val_loss")]
    return [f"{name.removeprefix('val_')} {record[name]:.3f}" for name in scores[-1:]]
