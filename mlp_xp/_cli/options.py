"""The command's options: an argparse parser, and the exit codes."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple, NoReturn

import numpy as np

from mlp_xp._activations import ACTIVATIONS
from mlp_xp._devices import MATMUL_PRECISIONS
from mlp_xp._version import __version__
from mlp_xp.backends import _BACKENDS
from mlp_xp.datasets import DATASETS

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130

EXIT_CODES = """\
exit codes: 0 done, 1 the training failed, 2 bad input, 130 interrupted.
If a training fails or is interrupted, what was trained until then is scored
and saved."""


class _OneLineParser(argparse.ArgumentParser):
    """Parser that reports an error in one line, without the usage."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"formatter_class": _Formatter, "allow_abbrev": False, **settings})

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_BAD_INPUT, f"{self.prog}: {message} (see {self.prog} --help)\n")


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Help formatter with a wider column for the names of options."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, max_help_position=34, **settings)


class _PrintCompletion(argparse.Action):
    """Action that prints a shell's completion script and exits."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, shell: Any, option: Any = None
    ) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("shtab is not installed: pip install 'mlp_xp[cli]'")
        _complete_paths(parser, {"FILE": shtab.FILE, "FOLDER": shtab.DIRECTORY})
        print(shtab.complete(parser, shell=shell))
        parser.exit()


def _complete_paths(parser: argparse.ArgumentParser, completers: dict[str, Any]) -> None:
    """Mark the arguments that are paths, by their metavar, for completion by files or folders."""
    paths = {"DATA": "FILE", "TABLE": "FILE", "FILE": "FILE", "RUN": "FOLDER", "FOLDER": "FOLDER"}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                _complete_paths(command, completers)
        elif action.metavar in paths:
            vars(action)["complete"] = completers[paths[str(action.metavar)]]


def integer(minimum: int, below: int | None = None) -> Any:
    """Return an argparse type for integers >= `minimum` and < `below`."""

    def parse(text: str) -> int:
        value = int(text)
        if value < minimum or (below is not None and value >= below):
            bounds = f">= {minimum}" + (f" and < {below}" if below is not None else "")
            raise argparse.ArgumentTypeError(f"must be an integer {bounds}, got {text}")
        return value

    parse.__name__ = "integer"
    return parse


def real(low: float, high: float = np.inf, *, with_low: bool = True, with_high: bool = False) -> Any:
    """Return an argparse type for numbers between `low` and `high`; flags say whether these are included."""

    def parse(text: str) -> float:
        value = float(text)
        if not (low <= value < high or (with_high and value == high)) or (value == low and not with_low):
            bounds = f"{'>=' if with_low else '>'} {low:g}"
            bounds += f" and {'<=' if with_high else '<'} {high:g}" if high < np.inf else ""
            raise argparse.ArgumentTypeError(f"must be a number {bounds}, got {text}")
        return value

    parse.__name__ = "number"
    return parse


def _patience(text: str) -> float:
    """Parse a number of epochs, or "inf"."""
    if text == "inf":
        return np.inf
    parsed: int = integer(1)(text)
    return parsed


_patience.__name__ = "integer"


def _rate(text: str) -> float:
    """Parse a learning rate; scikit-learn's `learning_rate` is a schedule, so its names get a hint."""
    if text in SCHEDULES:
        raise argparse.ArgumentTypeError(f"must be a number, {text!r} is for --learning-rate-schedule")
    rate: float = real(0.0, with_low=False)(text)
    return rate


_rate.__name__ = "number"

SETTING_NAMES = ("tabular", "scikit-learn")
"""Names of `mlp_xp.tables._settings.SETTINGS`, which takes a second to import; the first is the default."""

SCHEDULES = ["constant", "invscaling", "adaptive"]


def hidden_sizes(text: str) -> tuple[int, ...]:
    """Parse the sizes of a network's hidden layers, such as ``64x32``."""
    return tuple(integer(1)(size) for size in text.split("x"))


hidden_sizes.__name__ = "sizes"


class Option(NamedTuple):
    """An option that sets a parameter of the estimators; without it, the estimator's default holds."""

    flags: tuple[str, ...]
    parameter: str
    settings: dict[str, Any]
    help: str


NETWORK_OPTIONS = (
    Option(
        ("--activation",),
        "activation",
        {"choices": list(ACTIVATIONS), "nargs": "+", "metavar": "NAME"},
        f"of the hidden layers, one for all or one for each: {', '.join(ACTIVATIONS)} (relu)",
    ),
    Option(
        ("--loss",),
        "loss",
        {"choices": ["squared_error", "poisson"]},
        "of regression; poisson is for counts (squared_error)",
    ),
    Option(
        ("--alpha",),
        "alpha",
        {"type": real(0.0), "metavar": "A"},
        "strength of the L2 penalty (0; scikit-learn: 0.0001)",
    ),
)

TRAINING_OPTIONS = (
    Option(("--solver",), "solver", {"choices": ["adam", "sgd", "lbfgs"]}, "optimizer (adam)"),
    Option(
        ("--max-iter", "--epochs"),
        "max_iter",
        {"type": integer(1), "metavar": "N"},
        "the most passes over the data, or iterations of lbfgs (200)",
    ),
    Option(
        ("--batch-size",),
        "batch_size",
        {"type": integer(1), "metavar": "N"},
        "rows in a step (16 to 256, by the number of rows; scikit-learn: at most 200)",
    ),
    Option(
        ("--learning-rate", "--learning-rate-init"),
        "learning_rate_init",
        {"type": _rate, "metavar": "RATE"},
        "learning rate of sgd and adam (0.002; scikit-learn: 0.001)",
    ),
    Option(
        ("--learning-rate-schedule",),
        "learning_rate",
        {"choices": SCHEDULES},
        "how the learning rate of sgd changes (constant)",
    ),
    Option(("--power-t",), "power_t", {"type": real(0.0), "metavar": "P"}, "exponent of invscaling (0.5)"),
    Option(
        ("--momentum",), "momentum", {"type": real(0.0, 1.0, with_high=True), "metavar": "M"}, "of sgd (0.9)"
    ),
    Option(
        ("--nesterovs-momentum",),
        "nesterovs_momentum",
        {"action": argparse.BooleanOptionalAction},
        "whether momentum looks a step ahead (yes)",
    ),
    Option(("--beta-1",), "beta_1", {"type": real(0.0, 1.0), "metavar": "B"}, "of adam (0.9)"),
    Option(("--beta-2",), "beta_2", {"type": real(0.0, 1.0), "metavar": "B"}, "of adam (0.999)"),
    Option(("--epsilon",), "epsilon", {"type": real(0.0, with_low=False), "metavar": "E"}, "of adam (1e-8)"),
    Option(
        ("--weight-decay",),
        "weight_decay",
        {"type": real(0.0), "metavar": "W"},
        "decoupled decay, AdamW's (1, less if an epoch has many steps; scikit-learn: 0)",
    ),
    Option(
        ("--shuffle",),
        "shuffle",
        {"action": argparse.BooleanOptionalAction},
        "whether the rows are shuffled before each epoch (yes)",
    ),
    Option(
        ("--matmul-precision",),
        "matmul_precision",
        {"choices": list(MATMUL_PRECISIONS)},
        "of float32 on a CUDA GPU; tf32 is several times as fast, and good to three digits (highest)",
    ),
    Option(
        ("--class-weight",),
        "class_weight",
        {"choices": ["balanced"]},
        "balanced: rare classes count as much as frequent ones",
    ),
)

STOPPING_OPTIONS = (
    Option(
        ("--early-stopping",),
        "early_stopping",
        {"nargs": "?", "const": "score", "metavar": "SCORE"},
        "stop when rows not trained on (--val, or some of those to train on) show no progress, and take the "
        "best epoch: by loss, score (accuracy, R2), or a scorer of scikit-learn's; or none (loss; "
        "scikit-learn: none)",
    ),
    Option(
        ("--validation-fraction",),
        "validation_fraction",
        {"type": real(0.0, 1.0, with_low=False), "metavar": "F"},
        "of the rows to train on, for --early-stopping without --val by scikit-learn's settings (0.1)",
    ),
    Option(
        ("--n-iter-no-change",),
        "n_iter_no_change",
        {"type": _patience, "metavar": "N"},
        "epochs without progress until training stops, or inf (20; scikit-learn: 10)",
    ),
    Option(
        ("--tol",),
        "tol",
        {"type": real(0.0), "metavar": "T"},
        "by how much the loss or score must improve (1e-5; scikit-learn: 1e-4)",
    ),
    Option(
        ("--max-fun",),
        "max_fun",
        {"type": integer(1), "metavar": "N"},
        "the most evaluations by lbfgs (15000)",
    ),
)

ESTIMATOR_OPTIONS = (*NETWORK_OPTIONS, *TRAINING_OPTIONS, *STOPPING_OPTIONS)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the parsed arguments; on an error, print one line to stderr and exit."""
    parser = make_parser()
    options, unknown = parser.parse_known_args(argv)
    if unknown:
        command = f"mlp-xp {options.command}"
        flags = re.findall(r"--[a-z0-9-]+", _command_parser(parser, options.command).format_help())
        close = get_close_matches(unknown[0], flags, 1)
        advice = f"did you mean {close[0]}? " if close else ""
        parser.exit(
            EXIT_BAD_INPUT,
            f"{command}: unrecognized arguments: {' '.join(unknown)} ({advice}see {command} --help)\n",
        )
    return options


def _command_parser(parser: argparse.ArgumentParser, command: str) -> argparse.ArgumentParser:
    """Return the parser of one command's arguments."""
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    chosen: argparse.ArgumentParser = commands.choices[command]
    return chosen


NOT_REPEATED = ("json", "quiet", "overwrite", "resume")
"""Options that `command_words` leaves out: how results are shown, and what becomes of an earlier run."""


def command_words(options: argparse.Namespace) -> list[str]:
    """Return the words of the command that parses to `options`, for the shell to be quoted by `shlex.join`.

    They are made from the parsed options, not from the arguments, whose order and spelling vary. Positional
    arguments come first, because options that take lists would swallow them. Options with their default
    value are left out, and those in `NOT_REPEATED`.
    """
    positionals, words = [], []
    for action in _command_parser(make_parser(), options.command)._actions:
        value = getattr(options, action.dest, action.default)
        if not action.option_strings:
            positionals.append(path_word(value))
        elif value != action.default and action.dest not in NOT_REPEATED:
            words += _option_words(action, value)
    return ["mlp-xp", options.command, *positionals, *words]


def option_name(name: str, command: str = "train") -> str:
    """Return the option that sets an attribute of the parsed options."""
    for action in _command_parser(make_parser(), command)._actions:
        if action.dest == name and action.option_strings:
            return action.option_strings[0]
    return name


def path_word(path: str) -> str:
    """Return a path as a positional argument: after ``./`` if it would look like an option, as - does not."""
    return f"./{path}" if path.startswith("-") and path != "-" else path


def _option_words(action: argparse.Action, value: Any) -> list[str]:
    """Return the words that set an option to a value."""
    name = action.option_strings[0]
    if isinstance(action, argparse.BooleanOptionalAction):
        return [name if value else action.option_strings[1]]
    if action.nargs == 0 or (action.nargs == "?" and value == action.const):
        return [name]
    texts = [_value_text(each) for each in (value if isinstance(value, list) else [value])]
    if any(text.startswith("-") for text in texts):  # alone they would be taken for options
        return [f"{name}={text}" for text in texts]
    return [name, *texts]


def _value_text(value: Any) -> str:
    """Return the text that an option's value is parsed from; `hidden_sizes` makes the tuples."""
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the command."""
    parser = _OneLineParser(
        prog="mlp-xp",
        description="Train a multilayer perceptron on a table, on the CPU or, where CuPy finds one, on a\n"
        "CUDA GPU; look at what it learnt; use it on new rows.",
        epilog="examples:\n"
        "  mlp-xp train breast-cancer\n"
        "  mlp-xp train table.csv --target label --out run/\n"
        "  mlp-xp predict run/ new.csv --out predictions.csv\n"
        "  mlp-xp evaluate run/ test.csv\n"
        "  mlp-xp sweep planar --hidden 1 2 3 4 5 20 50\n\n" + EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"mlp_xp {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        choices=["bash", "zsh", "tcsh", "fish", "powershell"],
        help="print a completion script for that shell",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_train(commands)
    _add_predict(commands)
    _add_evaluate(commands)
    _add_sweep(commands)
    devices = commands.add_parser(
        "devices",
        help="list the array libraries and devices found here",
        description="List the array libraries that can compute here, with their versions and devices, and\n"
        "why the others cannot.",
    )
    _add_output_format(devices)
    return parser


def _add_train(commands: Any) -> None:
    command = commands.add_parser(
        "train",
        usage="%(prog)s DATA [--target COLUMN] [--out FOLDER] [more of the options below]",
        help="train a network on a table, and test it",
        description="Train a network on DATA, and score it on the rows trained on and on rows held out.",
        epilog="DATA comes first: an option such as --hidden takes all the numbers that follow it.\n\n"
        "examples:\n"
        "  mlp-xp train breast-cancer\n"
        "  mlp-xp train table.csv --target label --hidden 64 32 --out run/\n"
        "  mlp-xp train houses.parquet --target price --drop address --early-stopping loss\n"
        "  mpiexec -n 4 mlp-xp train big.parquet --target y   # needs mlp_xp[mpi]\n\n" + EXIT_CODES,
    )
    _add_data(command)
    network = command.add_argument_group("network")
    network.add_argument(
        "--hidden",
        type=integer(1),
        nargs="*",
        metavar="N",
        help="units of each hidden layer (128 128; scikit-learn: 100)",
    )
    _add_estimator(command, network)
    output = command.add_argument_group("output")
    _add_out(
        output, "FOLDER", "save pipeline, network, scores and pictures there", "the folder of an earlier run"
    )
    output.add_argument(
        "--resume",
        action="store_true",
        help="go on with a training that did not end, from FOLDER.partial, if there is one",
    )
    _add_output_format(output)


def _add_sweep(commands: Any) -> None:
    command = commands.add_parser(
        "sweep",
        usage="%(prog)s DATA --hidden N [N ...] [--target COLUMN] [more of the options below]",
        help="train networks of several sizes, and compare them",
        description="Train a network of each size on DATA: one figure with a panel for each, its decision "
        "boundary where there are\ntwo features, its learning curve else, and one table.",
        epilog="examples:\n"
        "  mlp-xp sweep planar --hidden 1 2 3 4 5 20 50\n"
        "  mlp-xp sweep table.csv --target label --hidden 16 64 64x32 --out sizes/\n\n" + EXIT_CODES,
    )
    _add_data(command)
    network = command.add_argument_group("network")
    network.add_argument(
        "--hidden",
        type=hidden_sizes,
        nargs="+",
        required=True,
        metavar="N",
        help="units of the hidden layer, a network for each; 64x32 has two layers",
    )
    _add_estimator(command, network)
    output = command.add_argument_group("output")
    _add_out(output, "FOLDER", "where figure and table go (sweep-DATA)", "the folder of an earlier sweep")
    _add_output_format(output)


COLUMN_NAMES: dict[str, Any] = {"action": "extend", "metavar": "COLUMN", "nargs": "+", "default": []}
"""Settings of options that name columns; given several times, they name all of them."""


def _add_data(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "data",
        metavar="DATA",
        help=f"{', '.join(DATASETS)}, or a table: .csv, .tsv, .parquet, .arrow, .feather, .npy, .npz with X "
        "and y, a folder of these, or - for standard input",
    )
    data = command.add_argument_group("data")
    data.add_argument("--target", metavar="COLUMN", help="column to predict (the last one; y of an npz file)")
    data.add_argument(
        "--task",
        choices=["auto", "classification", "regression"],
        default="auto",
        help="auto: regression for fractions and more than 10 different whole numbers, else classification",
    )
    data.add_argument("--categorical", **COLUMN_NAMES, help="numbers that are codes of categories")
    data.add_argument("--drop", **COLUMN_NAMES, help="columns to leave out")
    data.add_argument("--sample-weight", metavar="COLUMN", help="how much a row counts in training")
    data.add_argument(
        "--keep-column",
        **COLUMN_NAMES,
        help="columns to use although they number the rows, or are text of many values",
    )
    data.add_argument(
        "--na",
        metavar="WORD",
        action="extend",
        nargs="*",
        help="words that mean a missing value, as an empty cell does, instead of NA, N/A, NULL, None, NaN, ?",
    )
    data.add_argument(
        "--decimal", choices=[".", ","], help="the decimal mark, of columns that could have either"
    )
    data.add_argument(
        "--dates",
        choices=["day-first", "month-first"],
        help="what comes first, in columns of dates that could be read either way",
    )
    _add_encoding(data)
    data.add_argument(
        "--test-fraction",
        type=real(0.0, 1.0),
        metavar="F",
        help="of the rows, held out for the test (0.2; 0 with fewer than 20 rows)",
    )
    data.add_argument(
        "--val", metavar="FILE", help="another table, measured after each epoch, not trained on"
    )


def _add_encoding(group: Any) -> None:
    group.add_argument(
        "--encoding", metavar="NAME", help="of a text file, such as cp1252 (UTF-8, or as its first bytes say)"
    )


def _add_estimator(command: argparse.ArgumentParser, network: Any) -> None:
    network.add_argument(
        "--settings",
        choices=list(SETTING_NAMES),
        default=SETTING_NAMES[0],
        help="defaults of the options below, and how numbers become inputs: tabular, which does well on most "
        "tables, or scikit-learn's MLP (tabular)",
    )
    network.add_argument(
        "--networks",
        type=integer(1),
        metavar="N",
        help="how many to train; the result is their average, itself one network (5; 1 with scikit-learn)",
    )
    training, stopping = map(command.add_argument_group, ("training", "stopping"))
    groups = {network: NETWORK_OPTIONS, training: TRAINING_OPTIONS, stopping: STOPPING_OPTIONS}
    for group, options in groups.items():
        for option in options:
            group.add_argument(
                *option.flags, dest=option.parameter, default=None, help=option.help, **option.settings
            )
    machine = command.add_argument_group("machine")
    machine.add_argument(
        "--random-state",
        "--seed",
        type=integer(0, below=2**32),
        default=0,
        metavar="N",
        help="of the split, the initial weights and the batches (0)",
    )
    _add_backend(machine)
    machine.add_argument(
        "--dtype", choices=["float32", "float64"], default="float32", help="to compute in (float32)"
    )


def _add_backend(group: Any) -> None:
    group.add_argument(
        "--backend",
        choices=list(_BACKENDS),
        default="auto",
        help="array library (auto: CuPy where a CUDA GPU answers, else NumPy)",
    )


def _add_predict(commands: Any) -> None:
    command = commands.add_parser(
        "predict",
        help="predict new rows with a trained network",
        description="Predict for each row of TABLE its class, with the probability of each, or its value.",
        epilog="examples:\n"
        "  mlp-xp predict run/ new.csv\n"
        "  mlp-xp predict run/ new.csv --keep id --out predictions.csv",
    )
    _add_run(command, "to predict: the columns trained on, in any order; others are not used")
    out = ".csv, .tsv, .parquet, .arrow or .feather (as CSV on standard output)"
    _add_out(command, "FILE", out, "an existing file")
    command.add_argument("--keep", **COLUMN_NAMES, help="columns to copy beside the predictions")
    _add_backend(command)
    _add_output_format(command)


def _add_evaluate(commands: Any) -> None:
    command = commands.add_parser(
        "evaluate",
        help="score a trained network on a table with the target",
        description="Score a trained network on TABLE, and a baseline that always predicts the class\n"
        "frequencies or the mean of the training rows.",
        epilog="example:\n  mlp-xp evaluate run/ test.csv",
    )
    _add_run(command, "with the columns trained on and the target")
    _add_backend(command)
    _add_output_format(command)


def _add_run(command: argparse.ArgumentParser, table: str) -> None:
    """Add the arguments RUN and TABLE; `table` is the help of the latter."""
    command.add_argument("run", metavar="RUN", help="the folder that `mlp-xp train --out` wrote")
    command.add_argument("table", metavar="TABLE", help=f"{table}; - is standard input")
    _add_encoding(command)


def _add_out(group: Any, metavar: str, help: str, replaced: str) -> None:
    """Add ``--out`` and ``--overwrite``; `replaced` is what the latter replaces."""
    group.add_argument("--out", metavar=metavar, help=help)
    group.add_argument("--overwrite", action="store_true", help=f"replace {replaced}")


def _add_output_format(group: Any) -> None:
    """Add ``--json`` and ``--quiet``."""
    exclusive = group.add_mutually_exclusive_group()
    exclusive.add_argument("--json", action="store_true", help="print one JSON document instead of text")
    exclusive.add_argument("--quiet", action="store_true", help="print nothing but errors")
