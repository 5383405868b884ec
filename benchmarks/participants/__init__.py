"""The participants: this library, its peers, and the limit; one module for each library that they use.

A participant's module, and with it its library, is imported in the worker process only. Its function takes a
`Task` and returns a `Prepared`.
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
TORCH_COMPILE = "torch.compile"
"""Slow to start: it takes 10 to 20 s to compile a workload."""
_GIVEN = ("training", "prediction")
"""The kinds of workloads whose settings are given, not an estimator's defaults: see `Workload.kind`."""


def base(device: str) -> str:
    """Return the name of the participant that ratios refer to.

    On a CPU it is our estimator: like scikit-learn's, it draws its weights in `fit`. On a GPU it is `train`:
    like all peers there, it starts from weights on the device.
    """
    return OURS if device == "cpu" else _TRAIN


class Task(NamedTuple):
    """The input of a participant."""

    workload: Workload
    data: Data
    start: Start
    device: str
    """"cpu" or "cuda"."""


class EngineReport(NamedTuple):
    """The engine that a training of ours ran on."""

    engine: str
    """The engine that its history names; "" if it names none."""
    why: str
    """The warning about a fallback to a slower engine; "" if there was none."""


class Prepared(NamedTuple):
    """The function that is timed, and functions that read its result."""

    repeat: Callable[[], Any]
    """Do all the work once, from the start weights, and wait for the device."""
    outcome: Callable[[Any], Any] | None
    """Convert the result of `repeat` to layers, or to probabilities of shape (n_samples, 1), on the host;
    None if there is no loss to check."""
    ran: Callable[[Any], EngineReport] | None = None
    """Return the engine that the result of `repeat` was computed by; None if there are no engines."""
    curve: Callable[[Any], list[float]] | None = None
    """Return the loss of each epoch, from the result of `repeat`; None if it does not keep them."""


class Participant(NamedTuple):
    """An implementation that is compared."""

    name: str
    module: str
    function: str
    devices: tuple[str, ...]
    about: str
    ours: bool = False
    default: tuple[str, ...] | None = None
    """The devices on which it takes part by default; None for all of `devices`."""
    predicting: str = ""
    """Its name in workloads that predict, if it differs."""
    libraries: tuple[str, ...] = ()
    """Modules that it imports lazily; they are imported before, so that a repeat's memory excludes them."""
    engines: tuple[tuple[str, str], ...] = ()
    """Pairs (device, engine) that its figures are for; those of another engine are not shown."""
    kinds: tuple[str, ...] = _GIVEN
    """The kinds of workloads that it can do: see `Workload.kind`."""

    def takes_part(self, device: str) -> bool:
        """Whether it takes part on a device by default."""
        return device in (self.devices if self.default is None else self.default)

    def does(self, workload: Workload) -> bool:
        """Whether it can do a workload; the limit needs to know the number of epochs before."""
        return workload.kind in self.kinds and not (self.name == LIMIT and workload.may_end_early)

    def engine(self, device: str) -> str:
        """Return the engine that its figures are for; "" for any."""
        return dict(self.engines).get(device, "")

    def label(self, workload: Workload) -> str:
        """Return its name in a workload."""
        return (workload.predicts and self.predicting) or self.name

    def load(self) -> Callable[[Task], Prepared]:
        """Import its libraries and return the function that prepares it."""
        for library in self.libraries:
            import_module(library)
        prepare: Callable[[Task], Prepared] = getattr(import_module(self.module), self.function)
        return prepare


_BOTH = ("cpu", "cuda")
_ALL_KINDS = (*_GIVEN, "fit", "stream")
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
            kinds=_ALL_KINDS,
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
            "train, on JAX arrays; the estimators' fit where their defaults apply",
            ours=True,
            engines=(("cpu", "xla"), ("cuda", "xla")),
            libraries=("jax.numpy",),
            kinds=(*_GIVEN, "fit"),
        ),
        Participant(
            "mlp_xp on PyTorch",
            f"{_HERE}.ours",
            "train_on_torch",
            _BOTH,
            "train, on PyTorch tensors; the estimators' fit where their defaults apply",
            ours=True,
            engines=(("cuda", "cuda_graph"),),
            libraries=("torch",),
            kinds=(*_GIVEN, "fit"),
            default=("cuda",),
        ),
        Participant(
            REFERENCE_PEER,
            f"{_HERE}.scikit_learn",
            "fit",
            ("cpu",),
            "its estimator's whole fit",
            kinds=_ALL_KINDS,
        ),
        Participant(
            "PyTorch",
            f"{_HERE}.pytorch",
            "eager",
            _BOTH,
            "eager, nn.Sequential and torch.optim (Adam fused); reads the loss after each epoch",
            kinds=_ALL_KINDS,
        ),
        Participant(
            TORCH_COMPILE,
            f"{_HERE}.pytorch",
            "compiled",
            _BOTH,
            'the same with the network and its loss compiled (mode="reduce-overhead" on a GPU), untimed',
            kinds=_ALL_KINDS,
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
            kinds=_ALL_KINDS,
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
            kinds=_ALL_KINDS,
        ),
    )
}
