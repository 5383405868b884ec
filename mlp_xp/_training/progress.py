"""The progress of a training: all it takes, beside samples and settings, to continue it; in files too."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlp_xp._arrays import Namespace, Placement, placement, to_host
from mlp_xp._engines import State
from mlp_xp._optimizers import Optimizer, OptimizerState
from mlp_xp._parameters import (
    Parameters,
    are_equal,
    flatten,
    is_array,
    leaves,
    map_tree,
    plain,
    unflatten_like,
    with_leaves,
)
from mlp_xp._samples import Rows
from mlp_xp._streams import StreamPosition
from mlp_xp._training.early_stopping import EarlyStopping, EarlyStoppingState
from mlp_xp._training.history import History
from mlp_xp._validation import RandomSource, check_integer, shown


@dataclass
class Progress:
    """The state of a training: all it takes, beside samples and settings, to continue it.

    Attributes
    ----------
    params : tuple of pairs
        After the last step.
    optimizer_state : OptimizerState
    random : RandomState or Generator
        The next epoch's order is drawn from it.
    order : array of int or None
        The order of the last epoch, never written in; the next order is a shuffle of it.
    early_stopping : EarlyStoppingState or None
    history : History
        The finished epochs of the last run.
    is_ended : bool
        Whether a callback has ended the training.
    position : StreamPosition or None
        Of a stream, between two batches of an epoch.
    loss : float
        Of L-BFGS, the objective at `params`.
    problem : str
        Of L-BFGS, see `Minimised`.
    data : str
        The digest of the samples, "" if it is not known; see `digest_of`.
    resume_point : Progress or None
        This progress after the last step behind which the training can go on exactly: the end of an epoch, or
        of a batch of a stream.
    """

    params: Parameters
    optimizer_state: OptimizerState
    random: RandomSource | None
    order: Rows | None = None
    early_stopping: EarlyStoppingState | None = None
    history: History = field(default_factory=History)
    is_ended: bool = False
    position: StreamPosition | None = None
    loss: float = math.nan
    problem: str = ""
    data: str = ""
    resume_point: Progress | None = None

    @property
    def state(self) -> State:
        """The state that the next step begins with."""
        return self.params, self.optimizer_state

    @property
    def best_params(self) -> Parameters:
        """The parameters of the best epoch if early stopping restores them, else the last ones."""
        best = None if self.early_stopping is None else self.early_stopping.best_params
        return self.params if best is None else best

    def to_dict(self) -> dict[str, Any]:
        """Return what continues the training, in a history of its own.

        It is in dicts, lists and tuples, so that pickles name no private class.
        """
        stopping = self.early_stopping
        return {
            "params": plain(self.params),
            "optimizer_state": leaves(self.optimizer_state),
            "random": self.random,
            "order": self.order,
            "early_stopping": None if stopping is None else stopping.to_dict(),
        }

    def to_full_dict(self) -> dict[str, Any]:
        """Return what `to_dict` does with the history, for a training that goes on as if it had not ended."""
        columns = list(self.history[0])[1:] if self.history else []
        return {
            **self.to_dict(),
            "history": {
                "n_epochs": len(self.history),
                "names": columns,
                "columns": [np.asarray(self.history[name], np.float64) for name in columns],
            },
            "engine": self.history.engine,
            "is_ended": self.is_ended,
            "position": None if self.position is None else list(self.position),
            "loss": self.loss,
            "problem": self.problem,
            "data": self.data,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any], start: Progress) -> Progress:
        """Return the progress that `to_dict` or `to_full_dict` described; `start` is that of a new training.

        The optimizer's state has the structure of the new one, and is the new one where the optimizer
        is another than before.
        """
        stopping, new = content["early_stopping"], start.optimizer_state
        old = _with_numbers(content["optimizer_state"], leaves(new))
        position, history = content.get("position"), content.get("history")
        return cls(
            content["params"],
            with_leaves(new, old) if _are_alike(old, leaves(new)) else new,
            content["random"],
            content["order"],
            None if stopping is None else EarlyStoppingState.from_dict(stopping),
            History() if history is None else _history(history, content["engine"]),
            content.get("is_ended", False),
            None if position is None else StreamPosition(*position),
            content.get("loss", math.nan),
            content.get("problem", ""),
            content.get("data", ""),
        )

    @classmethod
    def resumed(cls, content: dict[str, Any], start: Progress, place: Placement) -> Progress:
        """Return the progress that `to_full_dict` described, in a place, to go on with exactly.

        Raises
        ------
        ValueError
            If it is that of another network, dtype or optimizer. The generator of `start` gets the state of
            the one described if it is of its kind, so that one that a user shares is where it would be.
        """
        if content.get("history") is None:
            raise ValueError("`resume` must hold a training's history; this is that of a fitted model")
        here, there = (list(map(_kind_of_leaf, flatten(each))) for each in (content["params"], start.params))
        if here != there:
            raise ValueError(
                f"`resume` must hold parameters {shown(there)} as `params` has, got {shown(here)}"
            )
        if content["random"] is None and start.random is not None:
            raise ValueError("`resume` must hold the state of a generator, got None")
        content = move_progress(content, place)
        new = leaves(start.optimizer_state)
        if not _are_alike(_with_numbers(content["optimizer_state"], new), new):
            raise ValueError(
                "`optimizer` must have a state as that of the training to resume, got another one"
            )
        progress = cls.from_dict(content, start)
        if progress.random is not None:
            progress.random = _with_state_of(start.random, progress.random)
        return progress


def start_training(xp: Namespace, params: Parameters, optimizer: Optimizer, random: RandomSource) -> Progress:
    """Return the progress of a training that has not begun; its arrays are those of `params`, not copies."""
    layers = plain(params)
    return Progress(layers, optimizer.init(xp, layers), random)


def move_progress(content: dict[str, Any], place: Placement) -> dict[str, Any]:
    """Return what `Progress.to_dict` returned, with its arrays in another place."""
    if placement(params=content["params"][0][0]).same_as(place):
        return content
    return _mapped(content, place.transfer)


def has_steps(content: dict[str, Any]) -> bool:
    """Whether the training that `Progress.to_full_dict` described has done any steps."""
    position = content["position"]
    return bool(content["history"]["n_epochs"] or (position is not None and position[0]))


def progress_on_host(content: dict[str, Any]) -> dict[str, Any]:
    """Return what `Progress.to_dict` returned, with NumPy arrays, which may be views."""
    return _mapped(content, to_host)


def _mapped(content: dict[str, Any], function: Callable[[Any], Any]) -> dict[str, Any]:
    content = {**content}
    for name in ("params", "optimizer_state"):
        content[name] = map_tree(function, content[name])
    stopping = content["early_stopping"]
    if stopping is not None:
        best = map_tree(function, stopping["best_params"])
        content["early_stopping"] = {**stopping, "best_params": best}
    return content


def _with_numbers(old: list[Any], new: list[Any]) -> list[Any]:
    """Return leaves of a state with numbers where the new one has them, of which JAX makes arrays."""
    if len(old) != len(new):
        return old
    return [
        to_host(one).item() if is_array(one) and not is_array(other) and one.ndim == 0 else one
        for one, other in zip(old, new)
    ]


def _are_alike(old: list[Any], new: list[Any]) -> bool:
    """Whether the leaves of two optimizers' states are of the same shapes, dtypes and kinds."""
    return list(map(_kind_of_leaf, old)) == list(map(_kind_of_leaf, new))


def _kind_of_leaf(leaf: Any) -> Any:
    if not is_array(leaf):
        return "none" if leaf is None else "number"
    return tuple(leaf.shape), str(leaf.dtype).rpartition(".")[2]  # the same name in all libraries


def _history(content: dict[str, Any], engine: str) -> History:
    names = ["epoch", *content["names"]]
    epochs = range(1, content["n_epochs"] + 1)
    rows = zip(epochs, *(column.tolist() for column in content["columns"]))
    history = History(dict(zip(names, row)) for row in rows)
    history.engine, history.n_resumed = engine, len(history)
    return history


# Generators.


def state_of(random: RandomSource) -> Any:
    """Return a copy of a generator's state."""
    if isinstance(random, np.random.RandomState):
        return random.get_state(legacy=False)
    return random.bit_generator.state


def with_state(random: RandomSource, state: Any) -> RandomSource:
    """Return a new generator of the same kind, in a state."""
    new = copy.deepcopy(random)
    _set_state(new, state)
    return new


def _set_state(random: RandomSource, state: Any) -> None:
    if isinstance(random, np.random.RandomState):
        random.set_state(state)
    else:
        random.bit_generator.state = state


def _with_state_of(own: RandomSource | None, other: RandomSource) -> RandomSource:
    """Return `own` in the state of the other generator if it is of its kind, else a copy of the other."""
    state = state_of(other)
    if (
        own is not None
        and type(own) is type(other)
        and state_of(own)["bit_generator"] == state["bit_generator"]
    ):
        _set_state(own, state)
        return own
    return with_state(other, state)


# Files.

CONTINUED = ("params", "optimizer_state", "random", "order", "early_stopping")
"""What `Progress.to_dict` returns."""

_TYPES: dict[str, tuple[type, ...]] = {
    "params": (list, type(None)),
    "optimizer_state": (list,),
    "random": (np.random.RandomState, np.random.Generator, type(None)),
    "order": (np.ndarray, type(None)),
    "early_stopping": (dict, type(None)),
    "history": (dict, type(None)),
    "engine": (str,),
    "is_ended": (bool,),
    "position": (list, type(None)),
    "loss": (float,),
    "problem": (str,),
    "data": (str,),
}
"""What a file's progress holds, and the types of it."""

MAX_DIVISIONS = 2**20
"""The largest number of divisions of the learning rate, which take time."""

_HISTORY_TYPES = {"n_epochs": int, "names": list, "columns": list}

_STOPPING_TYPES = {
    **{"rule": dict, "sign": float, "best": float, "best_params": bool},
    **{"n_no_change": int, "n_divisions": int, "event": str},
}


def to_file_content(content: dict[str, Any], model: Parameters) -> dict[str, Any]:
    """Return what `Progress.to_full_dict` or `to_dict` returned as the progress in the file of a model.

    Parameters that are those of the model are not written twice.
    """
    content = {"history": None, "engine": "", "is_ended": False, "position": None, **content}
    content = {"loss": math.nan, "problem": "", "data": "", **progress_on_host(content)}
    if are_equal(np, content["params"], map_tree(to_host, model)):
        content["params"] = None
    stopping = content["early_stopping"]
    if stopping is not None:
        # The best parameters are those of the model, if there are any.
        content["early_stopping"] = {**stopping, "best_params": stopping["best_params"] is not None}
    return content


def from_file_content(content: dict[str, Any], model: Parameters) -> dict[str, Any]:
    """Undo `to_file_content`, after checks; `model` are the parameters in the file, on the host.

    Raises
    ------
    TypeError, ValueError
        The message names what is wrong.
    """
    content = {**content}
    _check_types("progress", content, _TYPES)
    if content["params"] is None:
        content["params"] = plain(model)
    else:
        content["params"] = _checked_params(content["params"], model)
    for index, leaf in enumerate(content["optimizer_state"]):
        if type(leaf) not in (bool, int, float, type(None), np.ndarray):
            raise TypeError(f"`optimizer_state[{index}]` must be an array or a number, got {shown(leaf)}")
        is_number = isinstance(leaf, (int, float))
        if is_number and not -(2.0**63) <= leaf < 2.0**63:
            raise ValueError(f"`optimizer_state[{index}]` must be a number of 64 bits, got {shown(leaf)}")
    if content["history"] is not None:
        _check_history(content["history"])
    if content["order"] is not None:
        _check_order(content["order"])
    stopping = content["early_stopping"]
    if stopping is not None:
        content["early_stopping"] = _checked_stopping(stopping, model)
    if content["position"] is not None:
        _check_position(content["position"])
    return content


def _check_types(name: str, found: dict[str, Any], kinds: Any) -> None:
    if found.keys() != kinds.keys():
        raise ValueError(f"`{name}` must have {', '.join(kinds)}, got {', '.join(found)}")
    for key, kind in kinds.items():
        if type(found[key]) not in (kind if isinstance(kind, tuple) else (kind,)):
            raise TypeError(f"`{name}.{key}` must be of another type, got {shown(found[key])}")


def _checked_params(found: list[Any], model: Parameters) -> Parameters:
    wanted = [(array.shape, array.dtype) for array in flatten(model)]
    pairs = [pair for pair in found if isinstance(pair, list) and len(pair) == 2]
    arrays = [array for pair in pairs for array in pair if isinstance(array, np.ndarray)]
    if len(pairs) != len(found) or [(array.shape, array.dtype) for array in arrays] != wanted:
        raise ValueError("`progress.params` must be arrays of the shapes and the dtype of the model's")
    return plain(unflatten_like(model, arrays))


def _check_history(history: dict[str, Any]) -> None:
    _check_types("progress.history", history, _HISTORY_TYPES)
    names, columns, n_epochs = history["names"], history["columns"], history["n_epochs"]
    of_floats = all(isinstance(each, np.ndarray) and each.dtype == np.float64 for each in columns)
    if not of_floats or any(each.shape != (n_epochs,) for each in columns) or bool(n_epochs) != bool(columns):
        raise ValueError("`progress.history` must be columns of float64, with a number for each epoch")
    of_texts = all(type(name) is str for name in names)
    if not of_texts or len({*names, "epoch"}) != len(columns) + 1 or (names and names[0] != "loss"):
        raise ValueError("`progress.history` must have a name for each column, the first `loss`")


def _check_order(order: Any) -> None:
    """Check that these are the numbers of all rows: compiled loops would read elsewhere."""
    if order.dtype not in (np.int32, np.int64) or order.ndim != 1:
        raise ValueError("`progress.order` must be a vector of integers")
    found = np.zeros(len(order), dtype=bool)
    if len(order) and (order.min() < 0 or order.max() >= len(order)):
        raise ValueError("`progress.order` must hold the number of each row")
    found[order] = True
    if not found.all():
        raise ValueError("`progress.order` must hold the number of each row once")


def _checked_stopping(found: dict[str, Any], model: Parameters) -> dict[str, Any]:
    _check_types("progress.early_stopping", found, _STOPPING_TYPES)
    for name, largest in (("n_no_change", 2**63 - 1), ("n_divisions", MAX_DIVISIONS)):
        if not 0 <= found[name] <= largest:
            raise ValueError(f"`progress.early_stopping.{name}` must be from 0 to {largest}")
    if found["sign"] not in (1.0, -1.0) or found["event"] not in ("", "stopped", "divided"):
        raise ValueError("`progress.early_stopping` must have a known sign and event")
    EarlyStopping(**found["rule"])
    return {**found, "best_params": plain(model) if found["best_params"] else None}


def _check_position(position: list[Any]) -> None:
    if len(position) != len(StreamPosition._fields) or type(position[2]) is not float:
        raise ValueError(f"`progress.position` must be {', '.join(StreamPosition._fields)}")
    for name, value in zip(StreamPosition._fields, position):
        if name != "mean_loss":
            check_integer(f"progress.position.{name}", value, minimum=0)
