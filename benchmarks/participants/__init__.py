"""Who takes part: this library, its peers, and the limit; one module for each library they are made of.

A participant's module is imported in a process of its own, and only then its library. Its function takes
a `Task` and returns a `Prepared`.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any, NamedTuple

from benchmarks.workloads import Data, Start, Workload

OURS = "mlp_xp"
_TRAIN = "mlp_xp.train"
LIMIT = "limit"
REFERENCE_PEER = "scikit-learn"
COMPILED = "torch.compile"
"""Slow to start: it takes 10 to 20 s to compile a workload."""


def base(device: str) -> str:
    """Return the name of what ratios refer to.

    On a CPU both libraries' estimators draw their weights in `fit`. On a GPU all peers begin with theirs
    there, as `train` does, and what the estimator does on the host would be compared with nothing.
    """
    return OURS if device == "cpu" else _TRAIN


class Task(NamedTuple):
    """What a participant gets."""

    workload: Workload
    data: Data
    start: Start
    device: str
    """"cpu" or "cuda"."""


class Ran(NamedTuple):
    """How a training of ours ran."""

    engine: str
    """As its history says; "" if that does not say."""
    why: str
    """What a warning said of a slower engine; "" if nothing warned."""


class Prepared(NamedTuple):
    """What is timed, and how to see what came of it."""

    repeat: Callable[[], Any]
    """Do all the work once, from the start; it is done when this returns."""
    outcome: Callable[[Any], Any] | None
    """Turn what `repeat` returned into layers, or into probabilities of shape (n_samples, 1), on the
    host; None where there is nothing to check."""
    ran: Callable[[Any], Ran] | None = None
    """Say of what `repeat` returned which engine ran; None where there are no engines."""


class Participant(NamedTuple):
    """Someone who takes part."""

    name: str
    module: str
    function: str
    devices: tuple[str, ...]
    about: str
    ours: bool = False
    default: tuple[str, ...] | None = None
    """The devices where it takes part without being asked; all of `devices` by default."""
    predicting: str = ""
    """Its name where it predicts, if that is another."""
    libraries: tuple[str, ...] = ()
    """Modules that are imported when they are needed, and are no part of the memory a repeat takes."""
    engines: tuple[tuple[str, str], ...] = ()
    """(device, engine) that its figures are those of: a training by another engine has none."""

    def takes_part(self, device: str) -> bool:
        """Whether it takes part on a device without being asked."""
        return device in (self.devices if self.default is None else self.default)

    def engine(self, device: str) -> str:
        """Return the engine that it claims; "" if any will do."""
        return dict(self.engines).get(device, "")

    def label(self, workload: Workload) -> str:
        """Return what it is called in a workload."""
        return (workload.predicts and self.predicting) or self.name

    def load(self) -> Callable[[Task], Prepared]:
        """Import its library; return the function that prepares it."""
        for library in self.libraries:
            import_module(library)
        prepare: Callable[[Task], Prepared] = getattr(import_module(self.module), self.function)
        return prepare


_BOTH = ("cpu", "cuda")
_COMPILED_OR_CAPTURED = (("cpu", "compiled"), ("cuda", "cuda_graph"))
_HERE = "benchmarks.participants"
PARTICIPANTS = {
    participant.name: participant
    for participant in (
        Participant(
            OURS,
            f"{_HERE}.ours",
            "fit",
            _BOTH,
            "the estimator's whole fit (on a GPU: of CuPy's X; the weights are drawn on the host)",
            ours=True,
            engines=_COMPILED_OR_CAPTURED,
            libraries=("mlp_xp.estimators",),
        ),
        Participant(
            _TRAIN,
            f"{_HERE}.ours",
            "train_arrays",
            _BOTH,
            "the function train (CuPy on a GPU)",
            ours=True,
            engines=_COMPILED_OR_CAPTURED,
            predicting="Network.predict",
        ),
        Participant(
            "mlp_xp on JAX",
            f"{_HERE}.ours",
            "train_on_jax",
            _BOTH,
            "train, on JAX arrays",
            ours=True,
            engines=(("cpu", "xla"), ("cuda", "xla")),
            libraries=("jax.numpy",),
        ),
        Participant(
            "mlp_xp on PyTorch",
            f"{_HERE}.ours",
            "train_on_torch",
            _BOTH,
            "train, on PyTorch tensors",
            ours=True,
            engines=(("cuda", "cuda_graph"),),
            libraries=("torch",),
            default=("cuda",),
        ),
        Participant(
            REFERENCE_PEER, f"{_HERE}.scikit_learn", "fit", ("cpu",), "its MLPClassifier's whole fit"
        ),
        Participant(
            "PyTorch",
            f"{_HERE}.pytorch",
            "eager",
            _BOTH,
            "eager, nn.Sequential and torch.optim (Adam fused); reads the loss after each epoch",
        ),
        Participant(
            COMPILED,
            f"{_HERE}.pytorch",
            "compiled",
            _BOTH,
            'the same with the network and its loss compiled (mode="reduce-overhead" on a GPU), untimed',
        ),
        Participant(
            "PyTorch, captured",
            f"{_HERE}.pytorch",
            "captured",
            ("cuda",),
            "a whole step (Adam fused) captured by hand with torch.cuda.graph, untimed, and replayed",
        ),
        Participant(
            "JAX",
            f"{_HERE}.jax_steps",
            "prepare",
            _BOTH,
            "one jitted step, parameters donated; jitted untimed",
        ),
        Participant(
            "JAX, scanned",
            f"{_HERE}.jax_steps",
            "prepare_scanned",
            _BOTH,
            "whole epochs in one jitted call by lax.scan, parameters donated; jitted untimed",
            default=("cuda",),
        ),
        Participant("textbook", f"{_HERE}.textbook", "prepare", ("cpu",), "NumPy as a course writes it"),
        Participant(
            "CuPy",
            f"{_HERE}.textbook",
            "prepare_on_cupy",
            ("cuda",),
            "the textbook with CuPy in NumPy's place; reads the cost after each step",
        ),
        Participant(
            LIMIT,
            f"{_HERE}.limit",
            "prepare",
            _BOTH,
            "the matrix products alone, by np.matmul; on a GPU by cuBLAS in a captured CUDA graph",
        ),
    )
}
