"""Class labels: learnt on the host, encoded as targets of the network, decoded from its outputs.

A fitted classifier has `classes_`, the labels where X lives, and `_labels`, a plain tuple of the labels on
the host and whether targets were sparse; `Classes` is made of these when labels are encoded or decoded.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from scipy.sparse import csr_matrix, issparse
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import type_of_target, unique_labels

from mlp_xp._arrays import Array, HostArray, Placement, quiet_floating_point, to_host
from mlp_xp._network import Network
from mlp_xp._processes import Processes, current_processes
from mlp_xp._validation import check_real, errors_naming, lookup, shown
from mlp_xp.estimators._input import is_plain_vector

KINDS = {"binary": "binary", "multiclass": "multiclass", "multilabel-indicator": "multilabel"}
"""Kinds of classification, by scikit-learn's name of the targets' type."""


class Classes(NamedTuple):
    """The classes of a classifier.

    Attributes
    ----------
    labels : ndarray of shape (n_classes,)
        In rising order, of the type that was given; 0, 1, ... in multi-label problems.
    kind : {"binary", "multiclass", "multilabel"}
    sparse : bool
        Whether multi-label targets were a sparse matrix; predictions are sparse then too.
    """

    labels: HostArray
    kind: str
    sparse: bool

    @classmethod
    def of(cls, labels: Any, *, sparse: bool) -> Classes:
        """Return the classes that checked labels have."""
        if is_plain_vector(labels, "biu"):
            each = np.unique(labels)
            return cls(each, "binary" if len(each) <= 2 else "multiclass", sparse)
        found = type_of_target(labels, input_name="y")
        if found == "multiclass-multioutput":
            raise ValueError(
                "Multioutput target data is not supported: `y` must be 1-D, or hold 0 and 1 only"
            )
        if found not in KINDS:
            raise ValueError(f"Unknown label type: {found}. `y` must hold labels of classes")
        return cls(unique_labels(labels), KINDS[found], sparse)

    @classmethod
    def of_all(cls, labels: Any, processes: Processes, *, sparse: bool) -> Classes:
        """Return the classes that the labels of all processes have; each passes its own, checked."""
        own = cls.of(labels, sparse=sparse) if labels.shape[0] else None
        several = labels.shape[1] if labels.ndim == 2 else None
        processes.check_same("labels", {"y.shape[1:]": labels.shape[1:]})
        found = [one for one in processes.exchange("labels", own) if one is not None]
        sparse = processes.any("labels", sparse)
        if several is not None:
            return cls(np.arange(several), "multilabel", sparse)
        with errors_naming("y"):
            merged = unique_labels(*(one.labels for one in found)) if found else np.arange(1)
        return cls(merged, "binary" if len(merged) <= 2 else "multiclass", sparse)

    @classmethod
    def from_fitted(cls, labels: Any, sparse: Any, out_activation: str, n_outputs: int) -> Classes:
        """Return the classes that fitted attributes describe."""
        kind = "multiclass" if out_activation == "softmax" else "multilabel" if n_outputs > 1 else "binary"
        return cls(labels, kind, sparse)

    @property
    def out_activation(self) -> str:
        """scikit-learn's name for the output's activation."""
        return "softmax" if self.kind == "multiclass" else "logistic"

    @property
    def n_outputs(self) -> int:
        """The number of the network's outputs."""
        return 1 if self.kind == "binary" else len(self.labels)

    def check_complete(self, labels: Any) -> None:
        """Raise a ValueError unless labels have all of the classes, and no others: for a warm start."""
        given, processes = _unique(labels), current_processes()
        if processes is not None:
            given = _unique(np.concatenate(processes.exchange("labels", given)))
        if set(given) != set(self.labels):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.labels}, `y` has {given}"
            )

    def check(self, labels: Any) -> None:
        """Raise a ValueError if labels have another dimension, or a class that is unknown."""
        n_dimensions = 2 if self.kind == "multilabel" else 1
        if labels.ndim != n_dimensions:
            raise ValueError(f"`y` must have {n_dimensions} dimension(s), got {labels.ndim}")
        given = _unique(labels)
        if not set(given) <= set(self.labels):
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.labels}. `y` has {given}."
            )

    def encode(self, labels: Any) -> HostArray:
        """Return the targets of the network, bool of shape (n_samples, n_outputs)."""
        if labels.ndim == 2:
            return np.asarray(labels != 0)
        codes = np.searchsorted(self.labels, labels)[:, None]
        return np.asarray(codes == np.arange(self.n_outputs) if self.kind == "multiclass" else codes == 1)

    def decode(self, outputs: Array, place: Placement, labels: Array) -> Any:
        """Return the predicted labels; `labels` are the classes where they are to be."""
        xp = place.xp
        integer = xp.arange(1, device=place.device).dtype
        if self.kind == "multilabel":
            predicted = xp.astype(outputs > 0.5, integer)
            return csr_matrix(predicted) if self.sparse and xp is np else predicted
        if self.kind == "multiclass":
            codes = xp.argmax(outputs, axis=1)
        else:
            codes = xp.astype(outputs[:, 0] > 0.5, integer)
        if len(self.labels) == 1:
            codes = xp.zeros_like(codes)
        return labels[to_host(codes)] if isinstance(labels, np.ndarray) else xp.take(labels, codes, axis=0)


def classes_of(labels: Any, *, sparse: bool = False) -> Classes:
    """Return the classes that labels have, of all processes if there are several."""
    processes = current_processes()
    if processes is None:
        return Classes.of(labels, sparse=sparse)
    return Classes.of_all(labels, processes, sparse=sparse)


def _unique(labels: Any) -> HostArray:
    """Return the labels in rising order, each once, as scikit-learn does, but quickly for plain integers."""
    return np.asarray(np.unique(labels) if is_plain_vector(labels, "biu") else unique_labels(labels))


def check_classes(labels: Any, sparse: Any, network: Network) -> None:
    """Check classes from a file: a network with these outputs can predict them."""
    if not isinstance(labels, np.ndarray) or type(sparse) is not bool:
        raise TypeError("`classes` must be an array and `sparse` True or False")
    values, n_outputs = labels.tolist(), network.layer_sizes[-1]
    counts = (1, 2) if n_outputs == 1 else (n_outputs,)
    if len(values) not in counts or not all(low < high for low, high in pairwise(values)):
        raise ValueError(f"`classes` must be {counts[-1]} in rising order, got {len(values)}")
    if n_outputs > 1 and network.loss == "binary_cross_entropy" and values != list(range(n_outputs)):
        raise ValueError("`classes` of several labels must be their numbers")


def labels_at(place: Placement, labels: HostArray) -> Array:
    """Bring class labels to a place; labels that it cannot represent, such as text, stay on the host."""
    if place.xp is np or labels.dtype.kind not in "biuf":
        return labels
    cast = {"f": place.dtype_name, "u": "int64"}.get(labels.dtype.kind, labels.dtype)
    there = place.xp.asarray(labels.astype(cast), device=place.device)
    return there if np.array_equal(to_host(there), labels) else labels


def storable(y: Any) -> Any:
    """Return several labels in a dtype that sparse matrices have, as scikit-learn makes such matrices."""
    if not isinstance(y, np.ndarray) or y.ndim != 2:
        return y
    native = y.dtype.newbyteorder("=")
    return y.astype(np.float32 if native == np.float16 else native, copy=False)


def check_given_classes(classes: Any) -> HostArray:
    """Return the `classes` of `partial_fit`: in rising order, each once."""
    with errors_naming("classes"), quiet_floating_point():
        if issparse(classes) or np.ndim(classes) != 1 or not len(classes):
            raise ValueError(f"it must be a list of labels, got {shown(classes)}")
        if isinstance(classes, list) and set(map(type, classes)) == {int}:
            integers = np.asarray(classes)
            classes = integers if integers.dtype.kind == "i" else classes  # scikit-learn refuses larger ones
        return _unique(classes)


def check_class_weight(class_weight: Any) -> None:
    """Check the type of `class_weight`, and the weights in it."""
    for one in class_weight if isinstance(class_weight, list) else [class_weight]:
        if isinstance(one, str):
            lookup("class_weight", one, dict.fromkeys(["balanced"]))
        elif not isinstance(one, (dict, type(None))):
            raise TypeError(
                "`class_weight` must be a dict, 'balanced', a list of dicts, one for each label, or None, "
                f"got {shown(class_weight)}"
            )
        for label, weight in one.items() if isinstance(one, dict) else ():
            check_real(f"class_weight[{label!r}]", weight, at_least=0.0)


def class_weights(
    class_weight: Any, classes: Classes, labels: HostArray, sample_weight: Array | None
) -> HostArray:
    """Return the factor of each sample's weight that class weights make.

    Parameters
    ----------
    class_weight : dict, list or "balanced"
    classes : Classes
        `labels` may lack some of them.
    labels : ndarray of shape (n_samples,) or (n_samples, n_outputs)
    sample_weight : array of shape (n_samples,) or None
        "balanced" counts the samples of each class by these weights.
    """
    weight = np.ones(len(labels)) if sample_weight is None else to_host(sample_weight)
    if classes.kind != "multilabel":
        if isinstance(class_weight, list):
            raise TypeError(
                f"`class_weight` must be a dict or 'balanced' where `y` is 1-D, got {shown(class_weight)}"
            )
        return _factors(class_weight, classes.labels, labels, weight)
    n_labels = labels.shape[1]
    each = [class_weight] * n_labels if isinstance(class_weight, str) else class_weight
    if not isinstance(each, list) or len(each) != n_labels:
        raise ValueError(
            f"`class_weight` must be 'balanced' or a list of {n_labels} dicts, one for each column of `y`, "
            f"got {shown(class_weight)}"
        )
    columns = zip(each, (labels != 0).T)
    return np.asarray(
        np.prod([_factors(one, np.arange(2), column, weight) for one, column in columns], axis=0)
    )


def _factors(class_weight: Any, classes: HostArray, labels: HostArray, sample_weight: HostArray) -> HostArray:
    """Return the factors that the weights of one label's classes make."""
    processes = current_processes()
    if isinstance(class_weight, str) and processes is not None:
        counts = np.bincount(np.searchsorted(classes, labels), weights=sample_weight, minlength=len(classes))
        counts = processes.sum("class weights", counts.astype(np.float64))
        present = classes[counts > 0.0]
        each = np.zeros(len(classes))
        each[counts > 0.0] = compute_class_weight(
            class_weight, classes=present, y=present, sample_weight=counts[counts > 0.0]
        )
    elif isinstance(class_weight, str):
        # All classes weigh the same in sum; rows without weight do not count.
        counted = sample_weight > 0.0
        y = labels[counted]
        classes = np.unique(y)
        each = compute_class_weight(class_weight, classes=classes, y=y, sample_weight=sample_weight[counted])
    else:
        # Not scikit-learn's function, which does not find "1" among the labels "0", "1".
        given, known = class_weight or {}, classes.tolist()
        missing = [label for label in known if label not in given]
        if missing and not all(label in known for label in given):
            raise ValueError(f"The classes, {np.array(missing)}, are not in class_weight")
        each = np.array([given.get(label, 1.0) for label in known])
    return np.asarray(each[np.minimum(np.searchsorted(classes, labels), len(classes) - 1)])
