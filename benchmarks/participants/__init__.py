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
"""What ratios refer to."""
LIMIT = "limit"
REFERENCE_PEER = "scikit-learn"


class Task(NamedTuple):
    """What a participant gets."""

    workload: Workload
    data: Data
    start: Start
    device: str
    """"cpu" or "cuda"."""


class Prepared(NamedTuple):
    """What is timed, and how to see what came of it."""

    repeat: Callable[[], Any]
    """Do all the work once, from the start; it is done when this returns."""
    outcome: Callable[[Any], Any] | None
    """Turn what `repeat` returned into layers, or into probabilities of shape (n_samples, 1), on the
    host; None where there is nothing to check."""


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

    def takes_part(self, device: str) -> bool:
        """Whether it takes part on a device without being asked."""
        return device in (self.devices if self.default is None else self.default)

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
_HERE = "benchmarks.participants"
PARTICIPANTS = {
    participant.name: participant
    for participant in (
        Participant(
            OURS,
            f"{_HERE}.ours",
            "fit",
            _BOTH,
            "the estimator's whole fit (CuPy on a GPU)",
            ours=True,
            libraries=("mlp_xp.estimators",),
        ),
        Participant(
            "mlp_xp.train",
            f"{_HERE}.ours",
            "train_arrays",
            _BOTH,
            "the function train (CuPy on a GPU)",
            ours=True,
            predicting="Network.predict",
        ),
        Participant(
            "mlp_xp on JAX",
            f"{_HERE}.ours",
            "train_on_jax",
            _BOTH,
            "train, on JAX arrays",
            ours=True,
            libraries=("jax.numpy",),
        ),
        Participant(
            "mlp_xp on PyTorch",
            f"{_HERE}.ours",
            "train_on_torch",
            _BOTH,
            "train, on PyTorch tensors",
            ours=True,
            libraries=("torch",),
            default=("cuda",),
        ),
        Participant(
            REFERENCE_PEER, f"{_HERE}.scikit_learn", "fit", ("cpu",), "its MLPClassifier's whole fit"
        ),
        Participant("PyTorch", f"{_HERE}.pytorch", "eager", _BOTH, "eager, nn.Sequential and torch.optim"),
        Participant(
            "torch.compile",
            f"{_HERE}.pytorch",
            "compiled",
            _BOTH,
            "the same with the network and its loss compiled",
        ),
        Participant("JAX", f"{_HERE}.jax_steps", "prepare", _BOTH, "one jitted step, parameters donated"),
        Participant("textbook", f"{_HERE}.textbook", "prepare", ("cpu",), "NumPy as a course writes it"),
        Participant(LIMIT, f"{_HERE}.limit", "prepare", _BOTH, "the matrix products alone, by np.matmul"),
    )
}
