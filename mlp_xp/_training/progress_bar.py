"""`ProgressBar`: the progress of a training, shown in terminals and notebooks only."""

from __future__ import annotations

import math
import time
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from mlp_xp._messages import package_needed
from mlp_xp._training.history import History
from mlp_xp._validation import check_integer, shown
from mlp_xp._warnings import warn

MIN_SECONDS_BETWEEN_UPDATES = 0.1
"""Ten updates a second look continuous; more would only take time from the training."""

MAX_NARROW_COLUMNS = 90
"""In terminals of up to so many columns the bar is short and units are abbreviated."""


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
        self._n_open = self._n_fits = 0
        self._last_look = self._began = -math.inf

    def __getstate__(self) -> dict[str, Any]:
        """Drop the console, which cannot be pickled, and the training shown."""
        state = {**self.__dict__, "console": None, "_display": None, "_n_open": 0}
        state.pop("_history", None)
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
        self._history = history
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
        self._history = History()
        self._began = time.monotonic()
        if self._n_open == 0:  # in another process than that which shows it
            return
        description = self.description if self._n_fits < 2 else f"fit {self._n_fits} {self.description}"
        if self._display is None:
            self._start()
        if self._display is not None:
            self._display.reset(self._task, description=description, total=epochs, measured="")

    def _start(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True) if self.console is None else self.console
        if not (console.is_terminal or console.is_jupyter):
            return
        if console.is_jupyter and find_spec("ipywidgets") is None:
            warn("ProgressBar needs ipywidgets in a notebook: pip install 'mlp_xp[notebook]'")
            return
        # Drawn when epochs are reported, not by a thread, which would take time from the training.
        self._display = Progress(
            TextColumn("{task.description}", markup=False),
            MofNCompleteColumn(),
            BarColumn(bar_width=5 if console.width <= MAX_NARROW_COLUMNS else 24),
            TextColumn("{task.fields[measured]}", markup=False),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=console,
            auto_refresh=False,
            redirect_stdout=False,
            redirect_stderr=False,
        )
        self._task = self._display.add_task(self.description, total=None, measured="")
        self._display.start()

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
        measured = ""
        if self._history:
            rate = len(self._history) / max(time.monotonic() - self._began, 1e-9)
            shown = f"{rate:,.0f}" if rate >= 10.0 else f"{rate:.2g}"
            unit = " epochs/s" if display.console.width > MAX_NARROW_COLUMNS else "/s"
            measured = f"{_measured(self._history[-1])} {shown}{unit}"
        display.update(self._task, completed=len(self._history), measured=measured, refresh=True)


def _measured(record: dict[str, Any]) -> str:
    """Format an epoch's losses and its last score, which is that of validation data if there are any."""
    text = f"loss {record['loss']:.4f}"
    if "val_loss" in record:
        text += f" val {record['val_loss']:.4f}"
    scores = [name for name in record if name not in ("epoch", "loss", "val_loss")]
    return text + (f" {scores[-1].removeprefix('val_')} {record[scores[-1]]:.3f}" if scores else "")
