"""Small data sets as NumPy arrays: made here, or taken from scikit-learn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mlp_xp._arrays import Array, HostArray, check_kind, for_value_checks, is_non_numpy_array, placement
from mlp_xp._messages import package_needed
from mlp_xp._validation import Seed, check_integer, check_real, errors_naming, lookup, random_source

__all__ = ["DATASETS", "Dataset", "load", "one_hot", "planar", "xor"]


class Dataset(NamedTuple):
    """Samples and targets of a data set, as NumPy arrays.

    Attributes
    ----------
    name : str
    X : ndarray of shape (n_samples, n_features), float64
    y : ndarray of shape (n_samples,)
        Indices of classes (integers) for classification, values (float64) for regression.
    feature_names : tuple of str
    target_name : str
    class_names : tuple of str, or None
        The name of each class in `y`; None for regression.

    Examples
    --------
    >>> from mlp_xp.datasets import Dataset, xor
    >>> isinstance(xor(), Dataset), xor().class_names
    (True, ('false', 'true'))
    """

    name: str
    X: HostArray
    y: HostArray
    feature_names: tuple[str, ...]
    target_name: str
    class_names: tuple[str, ...] | None


def one_hot(classes: Any, n_classes: int, *, like: Array | None = None) -> Array:
    """Encode class indices as rows with a single 1.

    Parameters
    ----------
    classes : array of shape (n_samples,)
        Whole numbers in [0, n_classes), also as floating numbers or truth values; of any library, or a list.
    n_classes : int
    like : array, optional
        What is returned has its library, device and floating dtype, such as those of X. By default it lives
        where `classes` does, in the library's default floating dtype.

    Returns
    -------
    array of shape (n_samples, n_classes)

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import one_hot
    >>> one_hot(np.array([0, 2]), 3)
    array([[1., 0., 0.],
           [0., 0., 1.]])
    """
    n_classes = check_integer("n_classes", n_classes, minimum=1)
    check_kind("classes", classes)
    if not is_non_numpy_array(classes):
        with errors_naming("classes"):
            classes = np.asarray(classes)
    text = isinstance(classes, np.ndarray) and classes.dtype.kind not in "biuf"
    if classes.ndim != 1 or text:
        raise ValueError(
            f"`classes` must be whole numbers of shape (n_samples,), got {classes.dtype} of shape "
            f"{tuple(classes.shape)}"
        )
    here = placement(classes=classes)
    place = here if like is None else placement(like=like)
    if here.xp.isdtype(classes.dtype, ("bool", "unsigned integer")):  # PyTorch compares few unsigned ones
        classes = here.xp.astype(classes, here.xp.int64)
    if classes.shape[0]:
        xp, values = for_value_checks(here.xp, classes)
        if xp.isdtype(values.dtype, "real floating") and not bool(xp.all(values == xp.floor(values))):
            raise ValueError("`classes` must be whole numbers, got some that are not")
        low, high = float(xp.min(values)), float(xp.max(values))
        if low < 0 or high >= n_classes:
            raise ValueError(
                f"`classes` must lie in [0, {n_classes}), got values from {low:.15g} to {high:.15g}"
            )
    indices = place.transfer(here.xp.astype(classes, here.xp.int32))
    columns = place.xp.arange(n_classes, dtype=place.xp.int32, device=place.device)
    return place.xp.astype(indices[:, None] == columns, place.dtype)


def xor() -> Dataset:
    """Return the exclusive or: four points that no linear model can separate.

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
    """Return a flower of two classes, with alternating petals, that no linear model can separate.

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
    return Dataset("planar", np.concatenate(points), y, ("x", "y"), "petal", ("A", "B"))


def _moons() -> Dataset:
    """Return scikit-learn's two interleaving half circles."""
    from sklearn.datasets import make_moons

    X, y = make_moons(n_samples=500, noise=0.2, random_state=0)
    return Dataset("moons", X, y.astype(np.int64), ("x", "y"), "moon", ("upper", "lower"))


def _bundled(name: str, loader: str, target_name: str) -> Dataset:
    """Return a data set that comes with scikit-learn."""
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
        If the name is unknown.
    ImportError
        If the data set comes from scikit-learn, and that is not installed.

    Examples
    --------
    >>> from mlp_xp.datasets import load
    >>> load("breast-cancer").X.shape
    (569, 30)
    """
    make = lookup("name", name, DATASETS)
    with package_needed(f"the data set {name!r}", "scikit-learn", "sklearn"):
        return make()
