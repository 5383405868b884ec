"""The command ``mlp-xp``: train a network on a data set or a table, from a terminal."""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.util import find_spec
from typing import Any, NamedTuple, NoReturn

import numpy as np

from mlp_xp import __version__
from mlp_xp.activations import ACTIVATIONS
from mlp_xp.arrays import Array, Placement, library_name
from mlp_xp.backends import BACKENDS, Backend, BackendUnavailableError, backend
from mlp_xp.datasets import DATASETS, DataError, Dataset, load, one_hot, read_table
from mlp_xp.early_stopping import EarlyStopping
from mlp_xp.network import Network
from mlp_xp.optimizers import adam, gradient_descent, momentum
from mlp_xp.parameters import Parameters
from mlp_xp.training import (
    Callback,
    History,
    TrainingError,
    TrainingInterruptedWarning,
    evaluate,
    train,
)

EXIT_BAD_INPUT = 2
EXIT_FAILED = 1
EXIT_INTERRUPTED = 130

FEWEST_ROWS_TO_HOLD_OUT = 20

SOLVERS = {
    "adam": (adam, 0.001),
    "sgd": (gradient_descent, 0.1),
    "momentum": (momentum, 0.05),
    "nesterov": (lambda rate: momentum(rate, nesterovs_momentum=True), 0.05),
}
"""Optimizers by name, each with the learning rate it has unless one is given."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code."""
    for module in ("rich", "sklearn"):
        # Found, not imported: --help and a mistyped option should not wait for scikit-learn.
        if find_spec(module) is None:
            print(f"mlp-xp: {module} is not installed: pip install 'mlp_xp[cli]'", file=sys.stderr)
            return EXIT_BAD_INPUT
    try:
        options = _parser().parse_args(arguments)
        return _train(options)
    except (ImportError, ValueError, BackendUnavailableError) as error:
        return _fail(error, EXIT_BAD_INPUT)
    except (TrainingError, MemoryError) as error:
        return _fail(error, EXIT_FAILED)
    except KeyboardInterrupt:
        print("mlp-xp: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


def _fail(error: Exception, code: int) -> int:
    message = " ".join(str(error).split())
    if isinstance(error, TrainingError):
        message = message.partition("; `.params`")[0]
    print(f"mlp-xp: {message}", file=sys.stderr)
    return code


class _OneLineParser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _integer(minimum: int, below: int | None = None) -> Any:
    def parse(text: str) -> int:
        value = int(text)
        if value < minimum or (below is not None and value >= below):
            bounds = f">= {minimum}" + (f" and < {below}" if below is not None else "")
            raise argparse.ArgumentTypeError(f"must be an integer {bounds}, got {text}")
        return value

    parse.__name__ = "integer"
    return parse


def _real(low: float, high: float = np.inf, *, with_low: bool = True) -> Any:
    def parse(text: str) -> float:
        value = float(text)
        if not (low <= value < high) or (value == low and not with_low):
            bounds = f"{'>=' if with_low else '>'} {low:g}" + (f" and < {high:g}" if high < np.inf else "")
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, got {text}")
        return value

    parse.__name__ = "number"
    return parse


def _parser() -> argparse.ArgumentParser:
    parser = _OneLineParser(
        prog="mlp-xp",
        description="Train a multilayer perceptron on the CPU or, where CuPy finds one, on a CUDA GPU.",
    )
    parser.add_argument("--version", action="version", version=f"mlp_xp {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    command = commands.add_parser(
        "train",
        help="train a network and report its loss and score",
        description="Train a network on DATA, and report its loss and score on the rows trained on and on "
        "rows held out.",
        epilog="DATA comes first: an option such as --hidden takes all the numbers that follow it.\n\n"
        "examples:  mlp-xp train breast-cancer\n"
        "           mlp-xp train table.csv --target label --hidden 64 32 --epochs 500",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    command.add_argument(
        "data",
        metavar="DATA",
        help=f"{', '.join(DATASETS)}, or a table: .csv with a header, or .npz with X and y",
    )
    data = command.add_argument_group("data")
    data.add_argument("--target", metavar="COLUMN", help="column of a table to predict (its last one)")
    data.add_argument(
        "--task",
        choices=["auto", "classification", "regression"],
        default="auto",
        help="of a table (regression where the target has fractions, else classification)",
    )
    data.add_argument(
        "--test-fraction",
        type=_real(0.0, 1.0),
        metavar="F",
        help=f"of the rows, held out for the test (0.2; 0 with fewer than {FEWEST_ROWS_TO_HOLD_OUT} rows)",
    )
    data.add_argument(
        "--validation-fraction",
        type=_real(0.0, 1.0),
        default=0.0,
        metavar="F",
        help="of the other rows, not trained on: training stops when the loss on them no longer falls (0)",
    )
    network = command.add_argument_group("network")
    network.add_argument(
        "--hidden", type=_integer(1), nargs="*", default=[64], metavar="N", help="units of hidden layers (64)"
    )
    network.add_argument(
        "--activation", choices=list(ACTIVATIONS), default="relu", help="of the hidden layers (relu)"
    )
    network.add_argument(
        "--alpha", type=_real(0.0), default=0.0, metavar="A", help="strength of the L2 penalty (0)"
    )
    training = command.add_argument_group("training")
    training.add_argument("--solver", choices=list(SOLVERS), default="adam", help="optimizer (adam)")
    rates = ", ".join(f"{name} {rate:g}" for name, (_, rate) in SOLVERS.items())
    training.add_argument(
        "--learning-rate",
        type=_real(0.0, with_low=False),
        metavar="RATE",
        help=f"size of the steps ({rates})",
    )
    training.add_argument(
        "--epochs", type=_integer(1), default=200, metavar="N", help="passes over the data (200)"
    )
    training.add_argument(
        "--batch-size", type=_integer(1), default=32, metavar="N", help="rows in a step (32)"
    )
    training.add_argument(
        "--seed",
        type=_integer(0, below=2**32),
        default=0,
        metavar="N",
        help="of the split, the initial weights and the batches (0)",
    )
    machine = command.add_argument_group("machine")
    machine.add_argument(
        "--backend",
        choices=list(BACKENDS),
        default="auto",
        help="array library (auto: CuPy where a CUDA GPU answers, else NumPy)",
    )
    machine.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="(float32)")
    return parser


def _train(options: argparse.Namespace) -> int:
    from rich.console import Console

    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal  # a file gets its lines whole
    data = _load(options)
    chosen = backend(options.backend)
    place = chosen.place(options.dtype)
    console.print(
        f"Training on {library_name(chosen.xp)} ({_device(chosen)}) in {options.dtype} ({chosen.reason})",
        markup=False,
    )
    console.print(_describe_data(data), markup=False)
    parts = _split(data, options)
    console.print("  " + ", ".join(f"{len(rows)} rows to {use}" for use, rows in parts.items() if len(rows)))

    problem = _Problem.of(data, parts["train"])
    network = Network(
        (data.X.shape[1], *options.hidden, problem.n_outputs),
        hidden=options.activation,
        loss=problem.loss,
        alpha=options.alpha,
    )
    arrays = {
        use: (place.from_host(problem.features(rows)), place.from_host(problem.targets(rows)))
        for use, rows in parts.items()
        if len(rows)
    }
    sizes = "-".join(map(str, network.layer_sizes))
    console.print(f"  network {sizes}, {options.activation}, {options.solver}, {options.epochs} epochs\n")

    params, history, interrupted = _run(console, network, place, arrays, options)
    _report(console, network, params, arrays, problem)
    if interrupted:
        print(f"mlp-xp: interrupted after {len(history)} of {options.epochs} epochs", file=sys.stderr)
    elif len(history) < options.epochs:
        console.print(f"Stopped after {len(history)} epochs: the validation loss no longer fell.")
    return EXIT_INTERRUPTED if interrupted else 0


def _load(options: argparse.Namespace) -> Dataset:
    if options.data in DATASETS:
        if options.target is not None:
            raise DataError(f"--target is for tables; {options.data} has its own")
        return load(options.data)
    if "." not in options.data:
        raise DataError(
            f"unknown data {options.data!r}: it is none of {', '.join(DATASETS)}, nor a .csv or .npz file"
        )
    return read_table(options.data, options.target, options.task)


def _device(chosen: Backend) -> str:
    return "CPU" if "cpu" in str(chosen.device).lower() else str(chosen.device)


def _describe_data(data: Dataset) -> str:
    shape = f"{data.name}: {data.X.shape[0]} rows, {data.X.shape[1]} features"
    if data.class_names is None:
        return (
            f"{shape}; {data.target_name} is a number: mean {data.y.mean():.4g}, "
            f"from {data.y.min():.4g} to {data.y.max():.4g}"
        )
    counts = np.bincount(data.y, minlength=len(data.class_names))
    shown = [
        f"{name} {count} ({count / len(data.y):.0%})"
        for name, count in zip(data.class_names[:12], counts, strict=False)
    ]
    if len(counts) > len(shown):
        shown.append("...")
    return f"{shape}, {len(counts)} classes of {data.target_name}: {', '.join(shown)}"


def _split(data: Dataset, options: argparse.Namespace) -> dict[str, np.ndarray[Any, Any]]:
    """Choose the rows to train on, to validate with and to test with."""
    n_rows = data.X.shape[0]
    test_fraction = options.test_fraction
    if test_fraction is None:
        test_fraction = 0.2 if n_rows >= FEWEST_ROWS_TO_HOLD_OUT else 0.0
    rest, test = _hold_out(data, np.arange(n_rows), test_fraction, "--test-fraction", options.seed)
    kept, validation = _hold_out(
        data, rest, options.validation_fraction, "--validation-fraction", options.seed
    )
    return {"train": kept, "validate": validation, "test": test}


def _hold_out(
    data: Dataset, rows: np.ndarray[Any, Any], fraction: float, option: str, seed: int
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    from sklearn.model_selection import train_test_split

    if fraction == 0.0:
        return rows, rows[:0]
    n_held = round(fraction * len(rows))
    if not 1 <= n_held < len(rows):
        raise DataError(f"{option} {fraction:g} of {len(rows)} rows leaves nothing on one side")
    # Each class in both parts in its share, where there are rows enough for that.
    labels = data.y[rows] if data.class_names is not None else np.zeros(len(rows), dtype=np.int64)
    present, counts = np.unique(labels, return_counts=True)
    possible = counts.min() >= 2 and min(n_held, len(rows) - n_held) >= len(present)
    kept, held = train_test_split(
        rows, test_size=n_held, stratify=labels if possible else None, random_state=seed
    )
    return kept, held


class _Problem(NamedTuple):
    """How rows of a data set become numbers for a network, by what the training rows are like."""

    data: Dataset
    loss: str
    n_outputs: int
    feature_scaler: Any
    target_scaler: Any

    @classmethod
    def of(cls, data: Dataset, rows: np.ndarray[Any, Any]) -> _Problem:
        from sklearn.preprocessing import StandardScaler

        features = StandardScaler().fit(data.X[rows])
        if data.class_names is None:
            return cls(data, "squared_error", 1, features, StandardScaler().fit(data.y[rows, None]))
        if len(data.class_names) == 2:
            return cls(data, "binary_cross_entropy", 1, features, None)
        return cls(data, "categorical_cross_entropy", len(data.class_names), features, None)

    def features(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        scaled: np.ndarray[Any, Any] = self.feature_scaler.transform(self.data.X[rows])
        return scaled

    def targets(self, rows: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        y = self.data.y[rows]
        if self.target_scaler is not None:
            scaled: np.ndarray[Any, Any] = self.target_scaler.transform(y[:, None])
            return scaled
        return y[:, None] if self.n_outputs == 1 else one_hot(y, self.n_outputs)


def _run(
    console: Any,
    network: Network,
    place: Placement,
    arrays: dict[str, tuple[Array, Array]],
    options: argparse.Namespace,
) -> tuple[Parameters, History, bool]:
    """Train, with a progress bar where somebody looks; return whether Ctrl-C ended it."""
    make_optimizer, usual_rate = SOLVERS[options.solver]
    rate = usual_rate if options.learning_rate is None else options.learning_rate
    X, y = arrays["train"]
    with ExitStack() as stack:
        callback = _progress(console, options.epochs, stack) if console.is_terminal else None
        caught = stack.enter_context(warnings.catch_warnings(record=True))
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TrainingInterruptedWarning)
        params, history = train(
            network,
            network.init(options.seed, like=X),
            X,
            y,
            optimizer=make_optimizer(rate),
            epochs=options.epochs,
            batch_size=options.batch_size,
            seed=options.seed,
            validation_data=arrays.get("validate"),
            early_stopping=EarlyStopping() if "validate" in arrays else None,
            callback=callback,
        )
    return params, history, bool(caught)


def _progress(console: Any, epochs: int, stack: ExitStack) -> Callback:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    progress = stack.enter_context(
        Progress(
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
        )
    )
    task = progress.add_task("train", total=epochs, loss="")

    def show(history: History, params: Parameters) -> None:
        last = history[-1]
        loss = f"loss {last['loss']:.4f}"
        if "val_loss" in last:
            loss += f", validation {last['val_loss']:.4f}"
        progress.update(task, completed=len(history), loss=loss)

    return show


def _report(
    console: Any,
    network: Network,
    params: Parameters,
    arrays: dict[str, tuple[Array, Array]],
    problem: _Problem,
) -> None:
    from rich.table import Table

    metric, show = ("r2", "{:.4f}") if problem.data.class_names is None else ("accuracy", "{:.2%}")
    table = Table("", "rows", "loss", metric.replace("r2", "R2"))
    for column in table.columns[1:]:
        column.justify = "right"
    for use, (X, y) in arrays.items():
        measured = evaluate(network, params, X, y, metrics=[metric])
        name = {"train": "training", "validate": "validation", "test": "test"}[use]
        table.add_row(name, str(X.shape[0]), f"{measured['loss']:.4f}", show.format(measured[metric]))
    console.print(table)
