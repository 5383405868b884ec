"""Data on the host: made here, taken from scikit-learn, or read from a user's file."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from mlp_xp.validation import Seed, check_integer, check_real, lookup, random_source

if TYPE_CHECKING:  # pathlib takes a sixth of the import, and only tables need it
    from pathlib import Path

HostArray: TypeAlias = "np.ndarray[Any, Any]"


class Dataset(NamedTuple):
    """Samples and targets on the host.

    Attributes
    ----------
    name : str
    X : ndarray of shape (n_samples, n_features), float64
    y : ndarray of shape (n_samples,)
        Indices of classes (integers) for classification, values (float64) for regression.
    feature_names : tuple of str
    target_name : str
    class_names : tuple of str, or None
        What each index in `y` means; None for regression.
    """

    name: str
    X: HostArray
    y: HostArray
    feature_names: tuple[str, ...]
    target_name: str
    class_names: tuple[str, ...] | None


class DataError(ValueError):
    """Data that cannot be trained on; the message is one line that says why."""

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.splitlines()))


def one_hot(classes: HostArray, n_classes: int) -> HostArray:
    """Encode class indices as rows with a single 1.

    Parameters
    ----------
    classes : ndarray of shape (n_samples,), integers in [0, n_classes)
    n_classes : int

    Returns
    -------
    ndarray of shape (n_samples, n_classes), float64

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import one_hot
    >>> one_hot(np.array([0, 2]), 3)
    array([[1., 0., 0.],
           [0., 0., 1.]])
    """
    classes = np.asarray(classes)
    if classes.ndim != 1 or not np.isdtype(classes.dtype, "integral"):
        raise ValueError(
            f"`classes` must be integers of shape (n_samples,), got {classes.dtype} of shape {classes.shape}"
        )
    if classes.size and (classes.min() < 0 or classes.max() >= n_classes):
        raise ValueError(
            f"`classes` must lie in [0, {n_classes}), got values from {classes.min()} to {classes.max()}"
        )
    encoded = np.zeros((classes.shape[0], n_classes))
    encoded[np.arange(classes.shape[0]), classes] = 1.0
    return encoded


def xor() -> Dataset:
    """Exclusive or: the four points that no linear model can separate.

    Returns
    -------
    Dataset
        X of shape (4, 2).

    Examples
    --------
    >>> from mlp_xp.datasets import xor
    >>> xor().y
    array([0, 1, 1, 0])
    """
    X = np.array([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    return Dataset("xor", X, np.array([0, 1, 1, 0]), ("a", "b"), "a xor b", ("false", "true"))


def planar(n_samples: int = 400, noise: float = 0.2, seed: Seed = 1) -> Dataset:
    """Make a flower of two classes, petals by turns, that needs a hidden layer.

    For class j, angles ``t`` run evenly over ``[3.12 j, 3.12 (j + 1)]`` and radii are ``4 sin(4 t)``,
    each with normal noise; the points are ``(r sin t, r cos t)``.

    Parameters
    ----------
    n_samples : int, default=400
        Points in both classes together, an even number.
    noise : float, default=0.2
        Standard deviation of the noise.
    seed : int, RandomState, Generator or None, default=1

    Returns
    -------
    Dataset
        X of shape (n_samples, 2).

    Examples
    --------
    >>> from mlp_xp.datasets import planar
    >>> planar().X.shape
    (400, 2)
    """
    n_samples = check_integer("n_samples", n_samples, minimum=2)
    if n_samples % 2:
        raise ValueError(f"`n_samples` must be even, got {n_samples}")
    noise = check_real("noise", noise, at_least=0.0)
    random, n_each = random_source(seed), n_samples // 2
    points = []
    for j in (0, 1):
        t = np.linspace(3.12 * j, 3.12 * (j + 1), n_each) + noise * random.standard_normal(n_each)
        radius = 4.0 * np.sin(4.0 * t) + noise * random.standard_normal(n_each)
        points.append(np.column_stack([radius * np.sin(t), radius * np.cos(t)]))
    y = np.repeat([0, 1], n_each)
    return Dataset("planar", np.concatenate(points), y, ("x", "y"), "petal", ("red", "blue"))


def _moons() -> Dataset:
    from sklearn.datasets import make_moons

    X, y = make_moons(n_samples=500, noise=0.2, random_state=0)
    return Dataset("moons", X, y.astype(np.int64), ("x", "y"), "moon", ("upper", "lower"))


def _bundled(name: str, loader: str, target_name: str) -> Dataset:
    import sklearn.datasets

    bunch = getattr(sklearn.datasets, loader)()
    return Dataset(
        name,
        np.asarray(bunch.data, dtype=np.float64),
        bunch.target.astype(np.int64),
        tuple(map(str, bunch.feature_names)),
        target_name,
        tuple(map(str, bunch.target_names)),
    )


DATASETS: dict[str, Callable[[], Dataset]] = {
    "xor": xor,
    "planar": planar,
    "moons": _moons,
    "breast-cancer": lambda: _bundled("breast-cancer", "load_breast_cancer", "diagnosis"),
    "digits": lambda: _bundled("digits", "load_digits", "digit"),
}
"""Data sets by name; "moons", "breast-cancer" and "digits" need scikit-learn. Nothing is downloaded."""


def load(name: str) -> Dataset:
    """Return the data set called `name`.

    Parameters
    ----------
    name : {"xor", "planar", "moons", "breast-cancer", "digits"}

    Returns
    -------
    Dataset

    Raises
    ------
    ValueError
        If there is none of that name.
    ImportError
        If it is one of scikit-learn's, and that is not installed.

    Examples
    --------
    >>> from mlp_xp.datasets import load
    >>> load("breast-cancer").X.shape
    (569, 30)
    """
    make = lookup("name", name, DATASETS)
    try:
        return make()
    except ModuleNotFoundError as error:
        raise ImportError(
            f"the data set {name!r} comes from scikit-learn: pip install 'mlp_xp[cli]'"
        ) from error


def read_table(path: str | Path, target: str | None = None, task: str = "auto") -> Dataset:
    r"""Read a table of numbers from a ``.csv`` or ``.npz`` file.

    Parameters
    ----------
    path : str or Path
        A CSV file with a header, or an npz file with arrays ``X`` (n_samples, n_features) and ``y``.
    target : str, optional
        The column of a CSV file to predict, the last one by default; the name of the targets' array
        in an npz file, "y" by default.
    task : {"auto", "classification", "regression"}, default="auto"
        "auto" is regression for numbers with fractions and for more than 20 different numbers of
        which most come only once; classification for everything else.

    Returns
    -------
    Dataset

    Raises
    ------
    DataError
        If the file cannot be read, or is not a table of finite numbers with two classes at least.

    Examples
    --------
    >>> import tempfile, pathlib
    >>> from mlp_xp.datasets import read_table
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = pathlib.Path(folder) / "fruit.csv"
    ...     _ = path.write_text("mass,width,kind\n150,7.0,apple\n120,6.1,lemon\n")
    ...     read_table(path, target="kind").class_names
    ('apple', 'lemon')
    """
    from pathlib import Path

    path = Path(path)
    readers = {".csv": _read_csv, ".npz": _read_npz}
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: a table must be a .csv or .npz file, got {path.suffix or 'no suffix'!r}")
    if not path.is_file():
        raise DataError(f"{path}: {'a folder, not a file' if path.is_dir() else 'no such file'}")
    lookup("task", task, dict.fromkeys(("auto", "classification", "regression")))
    X, raw_target, feature_names, target_name = readers[path.suffix.lower()](path, target)
    if X.shape[0] < 2:
        raise DataError(f"{path}: at least 2 rows are needed, got {X.shape[0]}")
    bad = np.argwhere(~np.isfinite(X))
    if bad.size:
        row, column = bad[0]
        raise DataError(
            f"{path}: {len(bad)} missing or infinite values; the first is in column "
            f"{feature_names[column]!r}, data row {row + 1}"
        )
    y, class_names = _encode_target(f"{path}: the target {target_name!r}", raw_target, task)
    return Dataset(path.name, X, y, feature_names, target_name, class_names)


_Table: TypeAlias = tuple[HostArray, HostArray, tuple[str, ...], str]


def _read_csv(path: Path, target: str | None) -> _Table:
    try:
        import polars as pl
    except ModuleNotFoundError as error:
        raise ImportError("CSV files are read by polars: pip install 'mlp_xp[cli]'") from error
    try:
        table = pl.read_csv(path, infer_schema_length=None)
        table = table.rename({name: name.strip() for name in table.columns})
    except (pl.exceptions.PolarsError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a readable CSV file ({str(error).splitlines()[0]})") from error
    if all(map(_is_number, table.columns)):
        raise DataError(f"{path}: the first line must name the columns, got {', '.join(table.columns)}")
    if table.width < 2:
        raise DataError(f"{path}: at least one feature and the target are needed, got {table.width} column")
    target = table.columns[-1] if target is None else target
    if target not in table.columns:
        raise DataError(f"{path}: no column {target!r}; the columns are {', '.join(table.columns)}")
    features = table.drop(target)
    for name, column in zip(features.columns, features.iter_columns()):
        if not (column.dtype.is_numeric() or column.dtype in (pl.Boolean, pl.Null)):
            text = column.cast(pl.String).str.strip_chars()
            numbers = text.cast(pl.Float64, strict=False)
            wrong = text.filter(text.is_not_null() & numbers.is_null())
            if len(wrong):
                raise DataError(f"{path}: the column {name!r} must hold numbers, got {wrong[0]!r}")
            features = features.with_columns(numbers)
    X = features.cast(pl.Float64).to_numpy()
    y = table[target]
    if not (y.dtype.is_numeric() or y.dtype == pl.Boolean):
        y = y.cast(pl.String).str.strip_chars()
    try:
        values = y.to_numpy()
    except pl.exceptions.InvalidOperationError:  # integers beyond 64 bits
        values = y.cast(pl.Float64).to_numpy()
    return X, values, tuple(features.columns), target


def _read_npz(path: Path, target: str | None) -> _Table:
    target = "y" if target is None else target
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            missing = [name for name in ("X", target) if name not in archive]
            if missing:
                raise DataError(f"{path}: no array {missing[0]!r}; the arrays are {', '.join(archive)}")
            X, y = np.asarray(archive["X"]), np.asarray(archive[target])
    except DataError:
        raise
    except Exception as error:  # a damaged archive fails in zipfile, zlib or NumPy
        raise DataError(f"{path}: not a readable npz file ({error})") from error
    if X.ndim != 2 or X.shape[1] == 0 or not np.isdtype(X.dtype, ("bool", "integral", "real floating")):
        raise DataError(f"{path}: X must be a table of numbers, got {X.dtype} of shape {X.shape}")
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    if y.shape != X.shape[:1]:
        raise DataError(f"{path}: {target} must have shape {X.shape[:1]} as X has rows, got {y.shape}")
    names = tuple(f"x{index}" for index in range(X.shape[1]))
    return X.astype(np.float64), y, names, target


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _encode_target(what: str, target: HostArray, task: str) -> tuple[HostArray, tuple[str, ...] | None]:
    """Make class indices and names, or values, of a target column."""
    if np.isdtype(target.dtype, ("bool", "integral", "real floating")):
        return _encode_numbers(what, target, task)
    if target.dtype.kind not in "USO":
        raise DataError(f"{what} must hold numbers or names of classes, got {target.dtype}")
    _refuse_missing(what, np.array([value is None for value in target], dtype=bool))
    if task == "regression":
        raise DataError(f"{what} must hold numbers for regression, got {target[0]!r}")
    try:
        names = np.char.decode(target, "utf-8") if target.dtype.kind == "S" else target.astype(str)
    except UnicodeDecodeError as error:
        raise DataError(f"{what} must hold text in UTF-8 ({error})") from error
    return _encode_classes(what, names)


def _encode_numbers(what: str, target: HostArray, task: str) -> tuple[HostArray, tuple[str, ...] | None]:
    values = target.astype(np.float64)
    _refuse_missing(what, ~np.isfinite(values))
    whole = bool((values == np.round(values)).all())
    # Whole numbers that hardly ever come twice are amounts, not the names of classes.
    amounts = len(np.unique(values)) > max(20, len(values) // 2)
    if task == "regression" or (task == "auto" and (amounts or not whole)):
        return values, None
    if np.isdtype(target.dtype, "real floating") and whole and np.abs(values).max() < 2**53:
        target = values.astype(np.int64)
    return _encode_classes(what, target)


def _encode_classes(what: str, labels: HostArray) -> tuple[HostArray, tuple[str, ...]]:
    classes, y = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        raise DataError(f"{what} must have at least two classes, got only {classes[0]!s}")
    return y.astype(np.int64), tuple(map(str, classes))


def _refuse_missing(what: str, missing: HostArray) -> None:
    if missing.any():
        raise DataError(
            f"{what} is missing or infinite in {missing.sum()} rows; the first is {missing.argmax() + 1}"
        )
