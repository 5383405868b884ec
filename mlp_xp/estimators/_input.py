"""Checks of what users pass to the estimators: samples, targets and weights, and where they live."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from sklearn.utils.validation import check_array, check_X_y, column_or_1d, validate_data

from mlp_xp._arrays import (
    Array,
    Placement,
    check_finite,
    default_dtype,
    is_non_numpy_array,
    is_sparse,
    placement,
    quiet_floating_point,
    to_host,
)
from mlp_xp._devices import MemoryShortage, free_bytes
from mlp_xp._training.history import History, OutOfMemoryError
from mlp_xp.backends import backend

ACCEPTED_DTYPES = [np.float64, np.float32, np.float16, *(np.dtype(code) for code in "?bBhHiIlLqQ")]
"""Dtypes of a NumPy X that are used as they are; others are cast to the first of them."""

HOST = Placement(np, "cpu", np.float64)


def check_samples(estimator: Any, X: Any, *, reset: bool) -> tuple[Any, Placement]:
    """Check samples; return them and where they live. `reset` makes them define the number of features."""
    if not reset and _needs_no_check(estimator, X):
        return X, placement(X=X)
    if not is_non_numpy_array(X):
        dtype = np.float32 if _is_table_of_float32(X) else ACCEPTED_DTYPES
        X = validate_data(estimator, X, reset=reset, accept_sparse=["csr", "csc"], dtype=dtype)
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
    if 0 in X.shape:
        raise ValueError(f"`X` must have at least one row and one column, got shape {tuple(X.shape)}")
    validate_data(estimator, X, reset=reset, skip_check_array=True)
    check_finite(home.xp, "X", X)
    return X, home


def _needs_no_check(estimator: Any, X: Any) -> bool:
    """Whether X certainly passes scikit-learn's checks, which take most of the time of a short prediction."""
    if type(X) is not np.ndarray or X.dtype not in (np.float64, np.float32) or X.ndim != 2:
        return False
    if X.shape[1] != estimator.n_features_in_ or X.shape[0] == 0 or hasattr(estimator, "feature_names_in_"):
        return False
    with quiet_floating_point():
        return bool(np.isfinite(X.sum()))


def _is_table_of_float32(X: Any) -> bool:
    """Whether all columns of a DataFrame hold float32; scikit-learn recognises that for pandas only."""
    return hasattr(X, "columns") and hasattr(X, "schema") and np.asarray(X[:0]).dtype == np.float32


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


def samples_at(place: Placement, X: Any) -> Any:
    """Return checked samples in the place to compute."""
    if not is_sparse(X):
        _check_memory(place, X)
        return place.transfer(X)
    if place.xp is not np:
        raise TypeError(f"a sparse `X` can be computed with on NumPy only, and `backend` is {place}")
    return X


def _check_memory(place: Placement, X: Any) -> None:
    """Raise an OutOfMemoryError if the device has no room for the samples."""
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
    if not is_non_numpy_array(weight):
        weight = np.full(n_samples, float(weight)) if isinstance(weight, Real) else weight
        weight = check_array(weight, ensure_2d=False, dtype=[np.float64, np.float32], input_name=name)
    placement(**{name: weight})
    if tuple(weight.shape) != (n_samples,):
        raise ValueError(f"`{name}` must have shape (n_samples,) = {(n_samples,)}, got {tuple(weight.shape)}")
    return there.cast(there.transfer(weight))


def checked_on_host(y: Any, n_samples: int, estimator: Any, *, numeric: bool) -> Any:
    """Check targets of any library as scikit-learn does; return them as a NumPy array."""
    rows = np.broadcast_to(np.float32(0.0), (n_samples, 1))
    y = to_host(y) if is_non_numpy_array(y) else y
    _, y = check_X_y(rows, y, multi_output=True, y_numeric=numeric, estimator=estimator)
    y = y.toarray() if is_sparse(y) else y
    return column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
