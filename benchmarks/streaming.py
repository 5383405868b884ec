"""Cost of streaming: epochs and predictions on a memory map twice as large as what the device may hold of it.

Against the same data moved to the device before. In each library found here but NumPy, on its GPU if it has
one. The map is in the page cache: how fast a disk is says nothing about streaming.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.timing import interleave
from mlp_xp import Network, adam
from mlp_xp._arrays import Placement, without_autodiff
from mlp_xp._devices import computing, free_bytes
from mlp_xp._parameters import plain
from mlp_xp._samples import Samples, moved_if_they_fit
from mlp_xp._training.loop import Settings, run_training
from mlp_xp._training.progress import start_training
from mlp_xp.backends import BackendUnavailableError, backend

LIBRARIES = ("cupy", "torch", "jax")
SIZES, BATCH_SIZE = (784, 256, 10), 128
N_SAMPLES, N_SAMPLES_ON_GPU = 12_800, 256_000
TARGET_RATIO = 1 / 0.7


def measure(repeats: int) -> dict[str, Any]:
    """Return the milliseconds of two epochs and of predictions, and the largest ratio of the epochs."""
    network = Network(SIZES, activation="relu", loss="categorical_cross_entropy")
    functions: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in LIBRARIES:
            try:
                found = backend(name)
            except BackendUnavailableError:
                continue
            place = found.place("float32")
            X, y = _data(N_SAMPLES if free_bytes(place) is None else N_SAMPLES_ON_GPU, Path(folder))
            streamed = Samples(place, X, y)
            limit = streamed.moved_bytes() // 2
            moved, _ = moved_if_they_fit(np.inf, streamed)
            for kind, samples in (("on the device", moved), ("streamed", streamed)):
                functions[f"{name}: 2 epochs, {kind}"] = _epoch(network, samples, limit)
                functions[f"{name}: predictions, {kind}"] = _predictions(network, samples)
        timings = interleave(functions, min(repeats, 9))
    ratios = {label: timings.ratio(label, label.replace("streamed", "on the device")) for label in functions}
    return {
        "name": f"streaming a map, twice what may be on the device: network {SIZES}, batch {BATCH_SIZE}",
        "unit": "ms",
        "medians": {label: timings.median(label) * 1e3 for label in functions},
        "ratios": ratios,
        "result": max((ratio for label, ratio in ratios.items() if "epoch" in label), default=np.nan),
        "result_is": "of epochs on streamed samples to those on the device",
        "target": TARGET_RATIO,
    }


def _data(n_samples: int, folder: Path) -> tuple[Any, Any]:
    path = folder / f"{n_samples}.npy"
    if not path.exists():
        X: Any = np.lib.format.open_memmap(path, "w+", np.dtype("float32"), (n_samples, SIZES[0]))
        source = np.random.default_rng(0)
        for start in range(0, n_samples, 10_000):
            source.standard_normal(out=X[start : start + 10_000], dtype=np.float32)
    classes = np.arange(n_samples) % SIZES[-1]
    return np.load(path, mmap_mode="r"), np.eye(SIZES[-1], dtype=np.float32)[classes]


def _epoch(network: Network, samples: Samples, limit: int) -> Callable[[], object]:
    place, optimizer = samples.place, adam(1e-4)
    settings = Settings(optimizer=optimizer, epochs=2, batch_size=BATCH_SIZE, max_resident_bytes=limit)

    def run() -> object:
        progress = start_training(place.xp, _params(network, place), optimizer, np.random.RandomState(0))
        return run_training(network, progress, samples, settings)

    return run


def _predictions(network: Network, samples: Samples) -> Callable[[], object]:
    place, link = samples.place, network._resolved_loss.link
    params = _params(network, place)

    def run() -> object:
        with computing(place), without_autodiff(place.xp):
            return network._blockwise(samples, params, link, fetch=True)

    return run


def _params(network: Network, place: Placement) -> Any:
    return plain(network.init(0, like=place.from_host([0.0])))
