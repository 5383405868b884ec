"""Cost of layouts: an epoch of mini-batches on views and other dtypes of X, against contiguous rows.

A small network, so that taking the rows of a mini-batch is most of what there is to do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import interleave
from mlp_xp import Network, adam, train

N_SAMPLES, N_FEATURES, BATCH_SIZE, EPOCHS = 100_000, 50, 200, 3
TARGET_RATIO = 1.3
CONTIGUOUS = "contiguous rows"

LAYOUTS: dict[str, Callable[[Any], Any]] = {
    CONTIGUOUS: np.ascontiguousarray,
    "all columns but the last": lambda x: np.column_stack([x, x[:, :1]])[:, :-1],
    "all columns but the first": lambda x: np.column_stack([x[:, :1], x])[:, 1:],
    "every second row": lambda x: np.repeat(x, 2, axis=0)[::2],
    "every second column": lambda x: np.repeat(x, 2, axis=1)[:, ::2],
    "rows reversed": lambda x: x[::-1].copy()[::-1],
    "columns reversed": lambda x: x[:, ::-1].copy()[:, ::-1],
    "one row, broadcast": lambda x: np.broadcast_to(x[:1], x.shape),
    "one column, broadcast": lambda x: np.broadcast_to(x[:, :1], x.shape),
    "Fortran order": np.asfortranarray,
    "columns in Fortran order": lambda x: np.asfortranarray(np.column_stack([x, x[:, :1]]))[:, :-1],
    "big-endian": lambda x: x.astype(">f8"),
    "float32, computed in float64": lambda x: x.astype(np.float32),
    "uint8, computed in float64": lambda x: (10.0 * x).astype(np.int8).view(np.uint8),
}
MAPPED = {
    "map": (CONTIGUOUS, "C"),
    "map, all columns but the last": ("all columns but the last", "C"),
    "map, every second row": ("every second row", "C"),
    "map in Fortran order": ("Fortran order", "F"),
}


def _mapped(array: Any, order: Any, path: Path) -> Any:
    """Return a view as that of a memory map: of a file with what the view is of."""
    base = array if array.base is None else array.base
    file: Any = np.memmap(path, base.dtype, "w+", shape=base.shape, order=order)
    file[...] = base
    offset = array.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    whole: Any = np.memmap(path, np.uint8, "r")
    return np.ndarray(array.shape, array.dtype, whole, offset, array.strides)


def measure(repeats: int) -> dict[str, Any]:
    """Return the milliseconds an epoch takes on X in each layout, and the ratio of the slowest layout."""
    x = np.random.RandomState(0).standard_normal((N_SAMPLES, N_FEATURES))
    y = np.ones((N_SAMPLES, 1))
    network = Network((N_FEATURES, 4, 1), loss="squared_error")
    params = network.init(0, like=x)

    def epoch(X: Any) -> Callable[[], Any]:
        return lambda: train(
            network, params, X, y, optimizer=adam(), epochs=EPOCHS, batch_size=BATCH_SIZE, seed=0
        )

    with tempfile.TemporaryDirectory() as folder:
        layouts = {name: make(x) for name, make in LAYOUTS.items()}
        for number, (name, (layout, order)) in enumerate(MAPPED.items()):
            layouts[name] = _mapped(layouts[layout], order, Path(folder, str(number)))
        timings = interleave({name: epoch(X) for name, X in layouts.items()}, repeats)
    ratios = {name: timings.ratio(name, CONTIGUOUS) for name in layouts}
    return {
        "name": f"layouts of X: {N_SAMPLES:,} x {N_FEATURES}, network {N_FEATURES}-4-1, batch {BATCH_SIZE}",
        "unit": "ms an epoch",
        "medians": {name: timings.median(name) / EPOCHS * 1e3 for name in layouts},
        "ratios": ratios,
        "result": max(ratios.values()),
        "result_is": f"of the slowest layout to {CONTIGUOUS}: {max(ratios, key=ratios.__getitem__)}",
        "target": TARGET_RATIO,
    }
