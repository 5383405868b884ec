"""What is compared on tables: mlp_xp, learners of other libraries with their defaults, and a trivial model.

Each is a function that trains on rows, and returns a function from other rows to outputs: probabilities of
the classes in sorted order, or values.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import polars as pl

from benchmarks.tables.data import Rows
from mlp_xp._arrays import HostArray

Model: TypeAlias = Callable[[Rows], HostArray]

MAX_ONE_HOT = 100
"""Maximum number of inputs of a column of categories, for scikit-learn's networks."""

MAX_CATEGORIES_OF_BOOSTING = 255
"""Maximum number of categories of a column that HistGradientBoosting takes; rarer ones count as missing."""


class Learner(NamedTuple):
    """A participant.

    Attributes
    ----------
    label : str
        Its name in tables and pictures.
    about : str
    module : str
        What must be installed; it is imported before the clock starts.
    train : callable
        Function of the task, the seed and the rows to train on, which returns a model.
    """

    label: str
    about: str
    module: str
    train: Callable[[str, int, Rows], Model]


OURS, TRIVIAL = "mlp_xp", "trivial"
SCIKIT_LEARN_MLPS = ("sklearn", "sklearn-early")


def _train_ours(task: str, seed: int, rows: Rows) -> Model:
    from mlp_xp.tables import TabularClassifier, TabularRegressor

    make: Any = TabularClassifier if task == "classification" else TabularRegressor
    model = make(random_state=seed).fit(rows.raw, rows.y)
    return lambda others: _outputs(model, others.raw, rows.y)


def _train_mlp(task: str, seed: int, rows: Rows, *, early_stopping: bool) -> Model:
    from sklearn.compose import TransformedTargetRegressor
    from sklearn.neural_network import MLPClassifier, MLPRegressor
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    settings: dict[str, Any] = {"random_state": seed, "early_stopping": early_stopping}
    if task == "classification":
        network = MLPClassifier(**settings)
    else:
        network = TransformedTargetRegressor(MLPRegressor(**settings), transformer=StandardScaler())
    model = make_pipeline(_one_hot_and_standardised(rows.typed), network).fit(rows.typed, rows.y)
    return lambda others: _outputs(model, others.typed, rows.y)


def _one_hot_and_standardised(frame: pl.DataFrame) -> Any:
    """Return scikit-learn's usual preprocessing of the columns of a table."""
    from sklearn.compose import make_column_transformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    categories = _categories(frame)
    numbers = [name for name in frame.columns if name not in categories]
    fill_numbers = SimpleImputer(strategy="median", keep_empty_features=True)
    fill_categories = SimpleImputer(
        missing_values=None, strategy="most_frequent", keep_empty_features=True, fill_value=""
    )
    one_hot = OneHotEncoder(handle_unknown="ignore", max_categories=MAX_ONE_HOT, sparse_output=False)
    return make_column_transformer(
        (make_pipeline(fill_numbers, StandardScaler()), numbers),
        (make_pipeline(fill_categories, one_hot), categories),
    )


def _train_boosting(task: str, seed: int, rows: Rows) -> Model:
    from sklearn.ensemble import HistGradientBoostingClassifier, HistGradientBoostingRegressor

    kinds = {
        name: pl.Enum(_commonest(rows.typed[name], MAX_CATEGORIES_OF_BOOSTING))
        for name in _categories(rows.typed)
    }

    def coded(those: Rows) -> HostArray:
        return those.typed.select(
            pl.col(name).cast(kinds[name], strict=False).to_physical() if name in kinds else name
            for name in those.typed.columns
        ).to_numpy()

    make = HistGradientBoostingClassifier if task == "classification" else HistGradientBoostingRegressor
    are_categories = [name in kinds for name in rows.typed.columns]
    model = make(random_state=seed, categorical_features=are_categories).fit(coded(rows), rows.y)
    return lambda others: _outputs(model, coded(others), rows.y)


def _train_realmlp(task: str, seed: int, rows: Rows) -> Model:
    pytabkit, pandas, torch = (import_module(name) for name in ("pytabkit", "pandas", "torch"))
    for name in ("lightning.pytorch", "pytorch_lightning"):  # several lines for each training
        logging.getLogger(name).setLevel(logging.ERROR)
    medians = {
        name: rows.typed[name].median() or 0.0  # it takes no missing numbers
        for name in rows.typed.columns
        if name not in _categories(rows.typed)
    }

    def typed(those: Rows) -> Any:
        columns = {
            column.name: column.fill_null(medians[column.name]).to_numpy()
            if column.name in medians
            else pandas.Categorical(column.to_list())
            for column in those.typed
        }
        return pandas.DataFrame(columns)

    make: Any = pytabkit.RealMLP_TD_Classifier if task == "classification" else pytabkit.RealMLP_TD_Regressor
    # By default it takes a thread for each core, whatever the variables for OpenMP say.
    model = make(random_state=seed, device="cpu", n_threads=torch.get_num_threads())
    model.fit(typed(rows), rows.y)
    return lambda others: _outputs(model, typed(others), rows.y)


def _train_trivial(task: str, seed: int, rows: Rows) -> Model:
    if task == "regression":
        mean = np.mean(rows.y)
        return lambda others: np.full(len(others.y), mean)
    _, counts = np.unique(rows.y, return_counts=True)
    return lambda others: np.tile(counts / counts.sum(), (len(others.y), 1))


def _outputs(model: Any, X: Any, y: HostArray) -> HostArray:
    """Return an estimator's predictions, or probabilities in the order of the classes in `y`."""
    if not hasattr(model, "predict_proba"):
        return np.asarray(model.predict(X))
    column_of = {str(label): column for column, label in enumerate(model.classes_)}
    return np.asarray(model.predict_proba(X))[:, [column_of[str(label)] for label in np.unique(y)]]


def _categories(frame: pl.DataFrame) -> list[str]:
    return [name for name, dtype in frame.schema.items() if dtype == pl.String]


def _commonest(column: pl.Series, most: int) -> list[str]:
    counts = column.drop_nulls().rename("value").value_counts(name="count")
    return sorted(counts.sort("count", "value", descending=[True, False])["value"].head(most).to_list())


LEARNERS = {
    OURS: Learner("mlp_xp", "TabularClassifier and TabularRegressor, defaults", "mlp_xp.tables", _train_ours),
    "sklearn": Learner(
        "scikit-learn MLP",
        "MLPClassifier and MLPRegressor, defaults, on one-hot and standardised columns",
        "sklearn.neural_network",
        partial(_train_mlp, early_stopping=False),
    ),
    "sklearn-early": Learner(
        "scikit-learn MLP, early stopping",
        "the same with early_stopping=True",
        "sklearn.neural_network",
        partial(_train_mlp, early_stopping=True),
    ),
    "boosting": Learner(
        "HistGradientBoosting",
        "of scikit-learn, defaults, with categories as categorical features",
        "sklearn.ensemble",
        _train_boosting,
    ),
    "realmlp": Learner(
        "RealMLP",
        "RealMLP_TD of pytabkit, defaults: its label smoothing costs log loss",
        "pytabkit",
        _train_realmlp,
    ),
    TRIVIAL: Learner(
        "trivial", "the class frequencies or the mean of the training rows", "numpy", _train_trivial
    ),
}
"""All participants, by the name that ``--participants`` takes."""


def why_missing(name: str) -> str:
    """Import what a participant needs; return why that fails, "" if it does not."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            import_module(LEARNERS[name].module)
        except ImportError as error:
            return str(error)
    return ""
