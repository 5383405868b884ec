"""Checks of what users pass to the estimators: samples, targets and weights, and where they live."""

from __future__ import annotations

from contextlib import suppress
from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils.validation import check_array, check_X_y, column_or_1d, validate_data

from mlp_xp._arrays import (
    Array,
    Placement,
    check_finite,
    check_kind,
    default_dtype,
    is_non_numpy_array,
    is_sparse,
    placement,
    quiet_floating_point,
    to_host,
)
from mlp_xp._devices import MemoryShortage, free_bytes
from mlp_xp._processes import current_processes
from mlp_xp._training.history import History, OutOfMemoryError
from mlp_xp._validation import errors_naming
from mlp_xp.backends import backend

NATIVE_DTYPES = [np.dtype(code) for code in "dfe?bBhHiIlLqQ"]
ACCEPTED_DTYPES = [*NATIVE_DTYPES, *(dtype.newbyteorder() for dtype in NATIVE_DTYPES)]
"""Dtypes of a NumPy X that are used as they are, in either order of bytes; others are cast to the first."""

DATES = ("date", "time", "duration")
"""How the dtypes of dates and durations begin in pandas and polars, in lower case."""

HOST = Placement(np, "cpu", np.float64)


def min_samples() -> int:
    """Return how many rows data must have: one of several processes may have none."""
    return 1 if current_processes() is None else 0


def check_samples(estimator: Any, X: Any, *, reset: bool) -> tuple[Any, Placement]:
    """Check samples; return them and where they live. `reset` makes them define the number of features."""
    if not reset and _needs_no_check(estimator, X):
        return X, placement(X=X)
    check_kind("X", X)
    if not is_non_numpy_array(X):
        with errors_naming("X"):
            X = _check_on_host(estimator, X, reset=reset)
        home = HOST._replace(dtype=np.float32 if X.dtype == np.float32 else np.float64)
        return X.tocsr() if is_sparse(X) else X, home  # CSR, because batches are rows
    home = placement(X=X)
    if home.dtype_name not in ("float32", "float64"):
        home = home._replace(dtype=default_dtype(home.xp, home.device))
    if X.ndim != 2:
        raise ValueError(
            f"Expected 2D array, got {X.ndim}D array instead: `X` must have shape "
            f"(n_samples, n_features), got {tuple(X.shape)}"
        )
    if X.shape[1] == 0 or X.shape[0] < min_samples():
        raise ValueError(f"`X` must have at least one row and one column, got shape {tuple(X.shape)}")
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    check_finite(home.xp, "X", X)
    return X, home


def _needs_no_check(estimator: Any, X: Any) -> bool:
    """Whether X certainly passes scikit-learn's checks, which take most of the time of a short prediction."""
    if type(X) is not np.ndarray or X.dtype not in (np.float64, np.float32) or X.ndim != 2:
        return False
    if (
        X.shape[1] != getattr(estimator, "n_features_in_", None)
        or X.shape[0] == 0
        or hasattr(estimator, "feature_names_in_")
    ):
        return False
    with quiet_floating_point():
        return bool(np.isfinite(X.sum()))


def _check_on_host(estimator: Any, X: Any, *, reset: bool) -> Any:
    """Check samples as scikit-learn does; an error about what is no number names the columns of a table."""
    is_table = hasattr(X, "columns") and hasattr(X, "dtypes")
    dtype: Any = ACCEPTED_DTYPES
    if is_table:
        dates = [column for column, kind in zip(X.columns, X.dtypes) if str(kind).lower().startswith(DATES)]
        if dates:
            raise TypeError(f"`X` must hold real numbers, which the columns {dates} do not")
        # scikit-learn recognises a table of float32 for pandas only.
        with suppress(Exception):  # of a type that NumPy does not have, which is told of below
            dtype = np.float32 if np.asarray(X[:0]).dtype == np.float32 else ACCEPTED_DTYPES
    _check_no_dates("X", X)
    given = getattr(X, "dtype", None)
    try:
        checked = validate_data(
            estimator,
            X,
            reset=reset,
            accept_sparse=["csr", "csc"],
            dtype=dtype,
            ensure_min_samples=min_samples(),
        )
        if getattr(given, "kind", "") in ("S", "U") or getattr(given, "names", None):
            raise TypeError(f"`X` must hold real numbers, got dtype {given}")
        return checked
    except Exception as error:  # polars has its own
        columns = [column for column in X.columns if not _holds_numbers(X[column])] if is_table else []
        if not columns:
            raise
        raise ValueError(
            f"`X` must hold real numbers, which the columns {columns} do not: encode them, with "
            "scikit-learn's OneHotEncoder say"
        ) from error


def _holds_numbers(column: Any) -> bool:
    try:
        np.asarray(column).astype(np.float64)
    except Exception:
        return False
    return True


def _check_no_dates(name: str, array: Any) -> None:
    """Raise a TypeError for dates and durations, which scikit-learn casts to floats, NaT to -9e18."""
    dtype = getattr(array, "dtype", None)
    if getattr(dtype, "kind", "") in ("m", "M") or str(dtype).lower().startswith(DATES):
        raise TypeError(f"`{name}` must hold real numbers, got dtype {dtype}")


def check_same_place(estimator: Any, place: Placement, method: str) -> Placement:
    """Check that data live where the fitted model does; return that place, with the model's dtype."""
    fitted = placement(coefs_=estimator.coefs_[0])
    if not fitted.same_as(place):
        raise ValueError(
            f"Inputs passed to {type(estimator).__name__}.{method}() must use the same namespace and the "
            f"same device as those passed to fit(): the model was fitted on {fitted}, `X` is {place}. "
            "`estimator.to(...)` moves a fitted model"
        )
    return fitted


def computing_place(name: str | None, home: Placement) -> Placement:
    """Return where to compute with data that live at `home`; `name` is the parameter `backend`."""
    if name is None or (name == "auto" and home.xp is not np):
        return home
    there = backend(name).place(home.dtype_name)
    return home if there.same_as(home) else there


def storing_place(X: Any, there: Placement) -> Placement:
    """Return where the arrays of samples are to be, with the dtype to compute in.

    That is the place to compute, or the host for samples that are there: those are moved, or streamed, when
    the need of the training is known.
    """
    on_host = is_sparse(X) or isinstance(X, np.ndarray)
    return HOST._replace(dtype=there.host_dtype) if on_host else there


def samples_at(place: Placement, X: Any) -> Any:
    """Return checked samples as `Samples` takes them, to compute in this place."""
    if is_sparse(X):
        if place.xp is not np:
            raise TypeError(f"a sparse `X` can be computed with on NumPy only, and `backend` is {place}")
        return X
    stored = storing_place(X, place)
    _check_memory(stored, X)
    return stored.transfer(X)


def _check_memory(place: Placement, X: Any) -> None:
    """Raise an OutOfMemoryError if the device has no room for samples of another one."""
    here = placement(X=X)
    # As `Placement.transfer` does: floating-point samples get the place's dtype, others keep theirs.
    floating = here.xp.isdtype(X.dtype, "real floating")
    n_bits = place.xp.finfo(place.dtype).bits if floating else _n_bits(here.xp, X.dtype)
    n_bytes = X.shape[0] * X.shape[1] * n_bits // 8
    free = None if here.same_as(place) else free_bytes(place)
    if free is not None and n_bytes > free:
        shortage = MemoryShortage(n_bytes, free, None)
        message = f"the memory of {place} does not hold `X`: {shortage}"
        raise OutOfMemoryError(message, 1, (), History(), *shortage)


def _n_bits(xp: Any, dtype: Any) -> int:
    return 8 if xp.isdtype(dtype, "bool") else int(xp.iinfo(dtype).bits)


def check_weight(name: str, weight: Any, n_samples: int, there: Placement) -> Array | None:
    """Check sample weights; return them in the place to compute, or None."""
    if weight is None:
        return None
    weight = on_host(name, weight) if isinstance(weight, np.ndarray) else weight
    check_kind(name, weight)
    if not is_non_numpy_array(weight):
        _check_no_dates(name, weight)
        with errors_naming(name):
            weight = np.full(n_samples, float(weight)) if isinstance(weight, Real) else weight
            weight = check_array(
                weight,
                ensure_2d=False,
                dtype=[np.float64, np.float32],
                input_name=name,
                ensure_min_samples=min_samples(),
            )
    placement(**{name: weight})
    if tuple(weight.shape) != (n_samples,):
        raise ValueError(f"`{name}` must have shape (n_samples,) = {(n_samples,)}, got {tuple(weight.shape)}")
    return there.cast(there.transfer(weight))


def checked_on_host(y: Any, n_samples: int, estimator: Any, *, numeric: bool) -> Any:
    """Check targets of any library as scikit-learn does; return them as a NumPy array."""
    if is_plain_vector(y, "biuf") and len(y) == n_samples and np.isfinite(y).all():
        return y  # certainly passes the checks, which take longer than a step on a small batch
    if n_samples == 0 and not min_samples():  # of one of several processes; scikit-learn refuses it
        y = on_host("y", y)
        empty = np.asarray(y.toarray() if is_sparse(y) else y)
        if empty.shape[:1] != (0,):
            raise ValueError(f"`y` must have as many rows as `X`, none, got shape {empty.shape}")
        return empty[:, 0] if empty.ndim == 2 and empty.shape[1] == 1 else empty
    rows = np.broadcast_to(np.float32(0.0), (n_samples, 1))
    with errors_naming("y"):
        _, y = check_X_y(
            rows,
            on_host("y", y),
            multi_output=True,
            y_numeric=numeric,
            estimator=estimator,
        )
    y = y.toarray() if is_sparse(y) else y
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y


def is_plain_vector(array: Any, kinds: str) -> bool:
    """Whether this is a 1-D NumPy array, in native byte order, of one of these kinds of dtypes."""
    return (
        type(array) is np.ndarray
        and array.ndim == 1
        and array.dtype.kind in kinds
        and bool(array.dtype.isnative)
    )


def on_host(name: str, values: Any) -> Any:
    """Return an array of any library as NumPy's, after a check of its kind; lists and tables as they are."""
    check_kind(name, values)
    if is_non_numpy_array(values):
        placement(**{name: values})
        return to_host(values)
    return to_host(values) if isinstance(values, np.ndarray) else values
