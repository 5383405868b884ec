"""Checkpoints of a fit, and fits that are resumed from them.

The file of a checkpoint is that of the fitted estimator as it would be if the fit had ended there, with the
progress of the training. To resume, an estimator becomes what it was before the fit, with that progress.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlp_xp._arrays import Placement, to_host
from mlp_xp._disk.json_codec import encode
from mlp_xp._disk.model_files import ModelContent, as_model_file_error
from mlp_xp._parameters import map_tree, named
from mlp_xp._training.history import Trained
from mlp_xp._training.progress import Progress, move_progress, to_file_content
from mlp_xp._training.resuming import Source, find_source
from mlp_xp.estimators._fitted import (
    continuation_from_file,
    continuation_to_file,
    describe,
    params_at,
    restore,
    set_weights,
)
from mlp_xp.estimators._input import HOST
from mlp_xp.estimators._interface import Estimator

MAY_DIFFER = ("backend", "max_iter", "max_fun", "verbose", "warm_start")
"""Parameters that a resumed fit may have other values of."""


def find_checkpoint(estimator: Estimator, resume: Any, checkpoint: Any) -> Source | None:
    """Return what `resume` names, after a check that it is of a fit of such an estimator.

    Raises
    ------
    TypeError, ValueError
        The message names the parameters that differ.
    """
    if isinstance(resume, Trained):
        raise TypeError("`resume` must be a path or a truth value; `warm_start` goes on with a fitted model")
    source = find_source(resume, checkpoint)
    if source is None:
        return None
    assert source.model is not None
    model, kind = source.model, type(estimator).__name__
    if model.kind != kind:
        raise ValueError(f"`resume` must be the checkpoint of a fit of {kind}, got that of a {model.kind}")
    if source.progress["history"] is None:
        raise ValueError(
            "`resume` must be the checkpoint of a fit, got a saved model, with which `load_model` and "
            "`warm_start` go on"
        )
    ours = estimator.get_params(deep=False)
    differing = [
        f"`{name}` must be {value!r}, got {ours.get(name)!r}"
        for name, value in model.parameters.items()
        if name not in MAY_DIFFER and not _are_same(name, value, ours.get(name))
    ]
    if differing:
        raise ValueError(f"the fit to resume had other parameters: {'; '.join(differing)}")
    return source


def _are_same(name: str, one: Any, other: Any) -> bool:
    if isinstance(one, np.random.RandomState) and (other is None or isinstance(other, np.random.RandomState)):
        return True  # its state is another one since it was drawn from
    try:
        return bool(encode(name, one) == encode(name, other))
    except TypeError:  # what cannot be in a file
        return False


def become_resumed(estimator: Estimator, source: Source) -> None:
    """Make an estimator what it was before the fit to resume, on the host, with the progress to resume."""
    assert source.model is not None
    assert source.model.progress is not None
    estimator.__dict__.pop("feature_names_in_", None)
    with as_model_file_error(source.path or Path()):
        restore(estimator, source.model, HOST._replace(dtype=source.model.params[0][0].dtype))
    n_epochs = source.progress["history"]["n_epochs"]
    for name in ("loss_curve_", "val_loss_curve_", "validation_scores_"):
        curve = vars(estimator)[name]
        setattr(estimator, name, curve and curve[: len(curve) - n_epochs])
    estimator.t_ = source.model.progress["estimator"]["t_before"]
    continuation = continuation_from_file(source.model)
    estimator._continuation = {**continuation, "progress": source.progress}


def move_to(estimator: Estimator, place: Placement) -> None:
    """Bring a fitted estimator to a place, with what continues its training."""
    continuation = estimator._continuation
    if continuation is not None:
        progress = move_progress(continuation["progress"], place)
        estimator._continuation = {**continuation, "progress": progress}
    set_weights(estimator, params_at(estimator, place), place)
    estimator._move_labels(place)


def describe_fit(
    attributes: dict[str, Any],
    kind: type[Estimator],
    set_result: Callable[[Estimator, Progress], None],
    t_before: int,
    state: Any,
    metric: Any,
) -> Callable[[Progress], ModelContent]:
    """Return the function that says what a checkpoint holds.

    Parameters
    ----------
    attributes : dict
        Of the estimator, as they were before the fit.
    kind : type
        Of the estimator.
    set_result : callable ``(estimator, progress)``
        Sets the attributes that the fit would set if it ended now.
    t_before : int
        Samples seen before the fit.
    state, metric
        See `FittedAttributes._continuation`.
    """

    def described(progress: Progress) -> ModelContent:
        fitted = object.__new__(kind)
        fitted.__dict__.update(attributes)
        set_result(fitted, progress)
        found = describe(fitted)
        params = named(map_tree(to_host, found.params))
        content = to_file_content(progress.to_full_dict(), params)
        content["estimator"] = continuation_to_file(state, metric, t_before)
        return found._replace(params=params, progress=content)

    return described
