"""`Network`: layer sizes, activations and loss, without parameters; forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeAlias

import numpy as np

from mlp_xp._activations import Activation, resolve_activation
from mlp_xp._arrays import Array, HostArray, Namespace, Placement, check_kind, placement
from mlp_xp._devices import MATMUL_PRECISIONS, computing
from mlp_xp._functions import HashablePartial, renamed
from mlp_xp._initializers import Initializer, resolve_initializer
from mlp_xp._losses import Loss, identity_link, resolve_loss
from mlp_xp._parameters import Layer, Pair, Parameters, named
from mlp_xp._processes import current_processes
from mlp_xp._samples import Samples
from mlp_xp._validation import (
    RandomSource,
    Seed,
    check_integer,
    check_real,
    errors_naming,
    is_iterable,
    lookup,
    random_source,
    shown,
)

Tape: TypeAlias = list[tuple[Array, Callable[[Namespace, Array, Any], Array], Any]]
"""For each hidden layer: its input, its activation's backward function, and what the activation saved."""

Objective: TypeAlias = Callable[[Parameters, Array, Array, "Array | None"], tuple[Array, list[Pair]]]
"""``(params, X, y, sample_weight) -> (objective, gradients)``."""


@renamed(hidden="activation")
@dataclass(frozen=True)
class Network:
    """A multilayer perceptron without its parameters: immutable and hashable, it holds no arrays.

    Parameters
    ----------
    layer_sizes : sequence of int
        Units in the input, in each hidden layer and in the output; two sizes make a linear model.
    activation : str, Activation or sequence of them, default="relu"
        Activation of the hidden layers: one for all, or one for each. Names are "identity",
        "logistic", "tanh", "relu", "leaky_relu", "elu", "silu" and "gelu".
    loss : str or Loss
        "binary_cross_entropy" (two classes, or several labels), "categorical_cross_entropy",
        "squared_error" or "poisson". The loss determines the link, which is the output's activation.
    alpha : float, default=0.0
        Strength of the L2 penalty on the weights.
    matmul_precision : {"highest", "tf32"}, default="highest"
        How float32 matrix products are computed on a CUDA GPU, whatever the library's own settings are:
        in float32, or by tensor cores on factors rounded to TensorFloat-32, several times as fast. A
        factor keeps 11 significant bits of 24: a relative error of at most 2**-10, about 1e-3 (6e-8 in
        float32), and twice that in a product, relative to the sum of its terms' absolute values. Sums
        stay in float32. Other dtypes and devices have no such arithmetic, and are not affected.

    Notes
    -----
    For a batch of samples with losses l_i and sample weights w_i (1 where none are given) the
    objective is ``J = (sum_i w_i l_i + alpha / 2 * sum W^2) / sum_i w_i``, W running over all weights
    but no biases. That is scikit-learn's objective, and exactly what `loss_and_gradients` returns
    and differentiates.

    Examples
    --------
    >>> import numpy as np
    >>> from mlp_xp import Network, adam, train
    >>> from mlp_xp.datasets import xor
    >>> X, y = xor().X, xor().y.reshape(-1, 1)
    >>> network = Network((2, 8, 1), activation="tanh", loss="binary_cross_entropy")
    >>> params = network.init(seed=0, like=X)
    >>> params, history = train(network, params, X, y, optimizer=adam(0.1), epochs=200)
    >>> np.round(network.predict(params, X)).ravel()
    array([0., 1., 1., 0.])
    """

    layer_sizes: Sequence[int]
    activation: str | Activation | Sequence[str | Activation] = "relu"
    loss: str | Loss = field(kw_only=True)
    alpha: float = field(default=0.0, kw_only=True)
    matmul_precision: str = field(default="highest", kw_only=True)
    _activations: tuple[Activation, ...] = field(init=False, repr=False, compare=False)
    _resolved_loss: Loss = field(init=False, repr=False, compare=False)

    def __getstate__(self) -> dict[str, Any]:
        derived = {entry.name for entry in fields(self) if not entry.init}
        return {name: value for name, value in vars(self).items() if name not in derived}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def __post_init__(self) -> None:
        sizes = _check_sizes(self.layer_sizes)
        n_hidden = len(sizes) - 2
        activation = self.activation
        if isinstance(activation, Activation) or not is_iterable(activation):
            each: Sequence[Any] = (activation,) * max(1, n_hidden)
        else:
            activation = each = tuple(activation)
            if len(each) != n_hidden:
                raise ValueError(
                    f"`activation` must be one activation or one for each of the {n_hidden} hidden layers, "
                    f"got {len(each)}"
                )
        activations = tuple(map(resolve_activation, each))
        values: dict[str, Any] = {
            "layer_sizes": sizes,
            "activation": activation,
            "alpha": check_real("alpha", self.alpha, at_least=0.0),
            "_activations": activations[:n_hidden],
            "_resolved_loss": resolve_loss(self.loss),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        lookup("matmul_precision", self.matmul_precision, dict.fromkeys(MATMUL_PRECISIONS))

    # Public methods: they check their arguments and find the namespace.

    def init(
        self,
        seed: Seed = None,
        *,
        like: Array,
        weight: str | Initializer = "glorot_uniform",
        bias: str | Initializer = "zeros",
    ) -> tuple[Layer, ...]:
        """Draw the parameters that training starts from.

        Parameters
        ----------
        seed : int, RandomState, Generator or None
            Drawn from on the host: the same seed gives the same network in every namespace.
        like : array
            The parameters live where this one does, and have its dtype (the namespace's default
            floating one if it holds integers).
        weight, bias : str or Initializer
            "normal", "glorot_uniform", "he_normal", "zeros", or `normal(scale)`.

        Returns
        -------
        tuple of Layer
            Drawn layer by layer, weight before bias.

        Examples
        --------
        >>> import numpy as np
        >>> from mlp_xp import Network
        >>> network = Network((2, 3, 1), loss="squared_error")
        >>> [layer.weight.shape for layer in network.init(seed=0, like=np.ones((5, 2)))]
        [(2, 3), (3, 1)]
        """
        place = placement(like=like)
        random = random_source(seed)
        draw_weight = resolve_initializer("weight", weight)
        draw_bias = resolve_initializer("bias", bias)
        return tuple(
            Layer(
                place.from_host(_drawn("weight", draw_weight, random, (n_in, n_out), n_in, n_out)),
                place.from_host(_drawn("bias", draw_bias, random, (n_out,), n_in, n_out)),
            )
            for n_in, n_out in self._shapes()
        )

    def loss_and_gradients(
        self, params: Parameters, X: Array, y: Array, sample_weight: Array | None = None
    ) -> tuple[Array, tuple[Layer, ...]]:
        """Compute the objective and its derivative by every parameter.

        Parameters
        ----------
        params : tuple of Layer
        X : array of shape (n_samples, n_features)
        y : array of shape (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,), optional
            At least 0, with a sum above 0.

        Returns
        -------
        loss : array of shape ()
            The objective J of the class's notes, on the device: nothing waits for it.
        gradients : tuple of Layer
            In the structure, namespace, dtype and device of `params`.

        Raises
        ------
        TypeError, ValueError
            If a shape does not fit, or arrays live in different places.

        Examples
        --------
        >>> import numpy as np
        >>> from mlp_xp import Layer, Network
        >>> network = Network((1, 1), loss="squared_error")
        >>> params = (Layer(np.array([[2.0]]), np.array([0.0])),)
        >>> loss, gradients = network.loss_and_gradients(params, np.array([[3.0]]), np.array([[5.0]]))
        >>> float(loss), gradients[0].weight, gradients[0].bias
        (0.5, array([[3.]]), array([1.]))
        """
        samples = self._check(params, X, y, sample_weight)
        with computing(samples.place, self.matmul_precision):
            loss, gradients = self._make_objective(samples.xp)(params, *samples.whole())
        return loss, named(gradients)

    def logits(self, params: Parameters, X: Array) -> Array:
        """Compute the pre-activation of the output, in blocks of rows so that memory stays bounded.

        Parameters
        ----------
        params : tuple of Layer
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_outputs)
        """
        return self._check_and_compute(params, X, identity_link)

    def predict(self, params: Parameters, X: Array) -> Array:
        """Compute the network's output: probabilities, rates or values, as the loss has it.

        Parameters
        ----------
        params : tuple of Layer
        X : array of shape (n_samples, n_features)

        Returns
        -------
        array of shape (n_samples, n_outputs)
            In the namespace, dtype and device of `params`.

        Examples
        --------
        >>> import numpy as np
        >>> from mlp_xp import Layer, Network
        >>> params = (Layer(np.array([[1.0]]), np.array([0.0])),)
        >>> Network((1, 1), loss="binary_cross_entropy").predict(params, np.array([[0.0], [-1e4]]))
        array([[0.5],
               [0. ]])
        """
        return self._check_and_compute(params, X, self._resolved_loss.link)

    # For training and engines: arguments are checked already, and the namespace is known.

    def _check_params(self, params: Parameters) -> Placement:
        """Check that these are parameters of this network; return where they live."""
        n_layers = len(self.layer_sizes) - 1
        if not isinstance(params, tuple) or not all(
            isinstance(layer, tuple) and len(layer) == 2 for layer in params
        ):
            raise TypeError(
                f"`params` must be a tuple of {n_layers} `Layer(weight, bias)`, got {type(params).__name__}"
            )
        if len(params) != n_layers:
            raise ValueError(f"`params` must have {n_layers} layers, got {len(params)}")
        arrays = {
            f"params[{index}].{name}": array
            for index, layer in enumerate(params)
            for name, array in zip(Layer._fields, layer)
        }
        shapes = [shape for n_in, n_out in self._shapes() for shape in ((n_in, n_out), (n_out,))]
        place = placement(**arrays)
        for (name, array), shape in zip(arrays.items(), shapes):
            if array.shape != shape:
                raise ValueError(f"`{name}` must have shape {shape}, got {tuple(array.shape)}")
            if array.dtype != place.dtype:
                raise ValueError(f"`{name}` must be {place.dtype} as the others are, got {array.dtype}")
        return place

    def _check(self, params: Parameters, X: Array, y: Array, sample_weight: Array | None) -> Samples:
        """Check shapes and places; return the samples, whose batches have the parameters' dtype."""
        return self._check_samples(self._check_params(params), params, X, y, sample_weight)

    def _check_samples(
        self, place: Placement, params: Parameters, X: Array, y: Array, sample_weight: Array | None
    ) -> Samples:
        """Do what `_check` does, for parameters that are checked and are at this place."""
        weights = {} if sample_weight is None else {"sample_weight": sample_weight}
        self._check_rows(params, X, y=y, **weights)
        n_samples, n_outputs = X.shape[0], self.layer_sizes[-1]
        if y.shape != (n_samples, n_outputs):
            hint = ""
            if y.shape == (n_samples,) and n_outputs == 1:
                hint = " (`y[:, None]` makes a column)"
            elif y.shape in ((n_samples,), (n_samples, 1)) and self._resolved_loss.decide is not None:
                column = "y" if y.ndim == 1 else "y[:, 0]"
                hint = f" (`mlp_xp.one_hot({column}, {n_outputs}, like=X)` encodes classes)"
            raise ValueError(
                f"`y` must have shape (n_samples, n_outputs) = {(n_samples, n_outputs)}, "
                f"got {tuple(y.shape)}{hint}"
            )
        if sample_weight is not None and sample_weight.shape != (n_samples,):
            raise ValueError(
                f"`sample_weight` must have shape (n_samples,) = {(n_samples,)}, "
                f"got {tuple(sample_weight.shape)}"
            )
        return Samples(place, X, y, sample_weight)

    def _make_objective(self, xp: Namespace) -> Objective:
        """Return the function of a step: `loss_and_gradients` for checked arguments.

        Attributes that do not change from step to step are looked up here once: on small networks looking
        them up in each step takes a fiftieth of the time.
        """
        sums, complete = self._make_sums(xp), self._make_completion(xp)

        def objective_and_gradients(
            params: Parameters, X: Array, y: Array, sample_weight: Array | None
        ) -> tuple[Array, list[Pair]]:
            scale: Any = 1.0 / X.shape[0] if sample_weight is None else _inverse_total(xp, sample_weight)
            return complete(params, *sums(params, X, y, sample_weight, scale), scale)

        return objective_and_gradients

    def _make_sums(
        self, xp: Namespace
    ) -> Callable[[Parameters, Array, Array, Array | None, Any], tuple[Array, list[Pair]]]:
        """Return the part of a step that is a sum over samples, without the penalty on the weights.

        That is ``(params, X, y, sample_weight, scale) -> (sum of losses, scale times its gradients)``; losses
        are multiplied by their weights.
        """
        evaluate, total = self._resolved_loss.evaluate, xp.sum
        forward, backward = make_forward(xp, self._activations), make_backward(xp)

        def sums(
            params: Parameters, X: Array, y: Array, sample_weight: Array | None, scale: Any
        ) -> tuple[Array, list[Pair]]:
            logits, inputs, tape = forward(params, X)
            losses, delta = evaluate(xp, logits, y)
            if len(losses.shape) != 2 or delta.shape != logits.shape:
                raise _wrong_shapes(logits, losses, delta)
            if sample_weight is not None:
                weights = xp.reshape(sample_weight, (-1, 1))
                losses, delta = losses * weights, delta * weights
            summed = total(_wide_enough(xp, losses))
            return summed, backward(params, inputs, tape, delta * scale)

        return sums

    def _make_completion(
        self, xp: Namespace
    ) -> Callable[[Parameters, Array, list[Pair], Any], tuple[Array, list[Pair]]]:
        """Return the function that adds the penalty on the weights to what `_make_sums` returns.

        That is ``(params, sum of the losses, scaled gradients, scale) -> (objective, gradients)``.
        """
        alpha = self.alpha

        def complete(
            params: Parameters, summed: Array, gradients: list[Pair], scale: Any
        ) -> tuple[Array, list[Pair]]:
            if not alpha:
                return summed * scale, gradients
            strength = alpha * scale
            objective = (summed + 0.5 * alpha * _sum_of_squares(xp, params)) * scale
            return objective, [
                (gradient + strength * weight, bias)
                for (weight, _), (gradient, bias) in zip(params, gradients)
            ]

        return complete

    def _data_loss(self, xp: Namespace, logits: Array, y: Array, sample_weight: Array | None) -> Array:
        """Return the mean loss of the samples, without the penalty on the weights."""
        losses, delta = self._resolved_loss.evaluate(xp, logits, y)
        if len(losses.shape) != 2:
            raise _wrong_shapes(logits, losses, delta)
        losses = _wide_enough(xp, losses)
        if sample_weight is None:
            return xp.sum(losses) / y.shape[0]
        sample_weight = _wide_enough(xp, sample_weight)
        return xp.sum(losses * xp.reshape(sample_weight, (-1, 1))) * _inverse_total(xp, sample_weight)

    def _check_and_compute(
        self, params: Parameters, X: Array, finish: Callable[[Namespace, Array], Array]
    ) -> Array:
        """Check parameters and samples, and compute ``finish(xp, logits)``."""
        place = self._check_params(params)
        self._check_rows(params, X)
        with computing(place, self.matmul_precision):
            return self._blockwise(Samples(place, X), params, finish)

    def _blockwise(
        self,
        samples: Samples,
        params: Parameters,
        finish: Callable[[Namespace, Array], Array],
        *,
        fetch: bool = False,
    ) -> Array:
        """Compute ``finish(xp, logits)`` in blocks of rows, so that memory stays bounded (`Samples.map`)."""
        outputs = HashablePartial(_outputs, activations=self._activations, finish=finish)
        return samples.map(outputs, params, samples.row_width(self.layer_sizes), fetch=fetch)

    def _bytes_of_block(self, samples: Samples) -> int:
        """Return about how many bytes the parameters and the arrays of a block of rows take."""
        n_rows = min(len(samples), samples.rows_per_block(samples.row_width(self.layer_sizes)))
        n_parameters = sum((n_in + 1) * n_out for n_in, n_out in self._shapes())
        place = samples.place
        n_elements = 2 * n_rows * sum(self.layer_sizes) + 4 * n_parameters
        return n_elements * int(place.xp.finfo(place.dtype).bits) // 8

    def _shapes(self) -> Iterable[tuple[int, int]]:
        return zip(self.layer_sizes[:-1], self.layer_sizes[1:])

    def _check_rows(self, params: Parameters, X: Array, **others: Array) -> None:
        placement(params=params[0][0], X=X, **others)
        if X.ndim != 2 or X.shape[1] != self.layer_sizes[0]:
            raise ValueError(f"`X` must have shape (n_samples, {self.layer_sizes[0]}), got {tuple(X.shape)}")
        if X.shape[0] == 0 and current_processes() is None:  # one of several processes may have no rows
            raise ValueError("`X` must have at least one row, got none")


def _outputs(
    xp: Namespace,
    params: Parameters,
    X: Array,
    *,
    activations: tuple[Activation, ...],
    finish: Callable[[Namespace, Array], Array],
) -> Array:
    logits, _, _ = make_forward(xp, activations)(params, X)
    return finish(xp, logits)


def make_forward(
    xp: Namespace, activations: tuple[Activation, ...]
) -> Callable[[Parameters, Array], tuple[Array, Array, Tape]]:
    """Return the forward pass: ``(params, X) -> (logits, input of the output layer, tape)``."""
    matmul = xp.matmul
    pairs = [(activation.forward, activation.backward) for activation in activations]

    def forward(params: Parameters, X: Array) -> tuple[Array, Array, Tape]:
        inputs = X
        tape: Tape = []
        for activation_forward, activation_backward in pairs:
            weight, bias = params[len(tape)]
            z = matmul(inputs, weight)
            z += bias
            outputs, saved = activation_forward(xp, z)
            tape.append((inputs, activation_backward, saved))
            inputs = outputs
        weight, bias = params[-1]
        logits = matmul(inputs, weight)
        logits += bias
        return logits, inputs, tape

    return forward


def make_backward(xp: Namespace) -> Callable[[Parameters, Array, Tape, Array], list[Pair]]:
    """Return the backward pass: ``(params, input of the output layer, tape, delta) -> gradients``.

    `delta` is the derivative of the objective by the logits. The tape is emptied on the way, so that each
    activation is freed as soon as it is not needed any more.
    """
    matmul, total = xp.matmul, xp.sum

    def backward(params: Parameters, inputs: Array, tape: Tape, delta: Array) -> list[Pair]:
        gradients = [(matmul(inputs.T, delta), total(delta, axis=0))]
        while tape:
            delta = matmul(delta, params[len(tape)][0].T)
            inputs, activation_backward, saved = tape.pop()
            delta = activation_backward(xp, delta, saved)
            gradients.append((matmul(inputs.T, delta), total(delta, axis=0)))
        gradients.reverse()
        return gradients

    return backward


def _drawn(
    name: str, draw: Initializer, random: RandomSource, shape: tuple[int, ...], fan_in: int, fan_out: int
) -> HostArray:
    """Return what an initializer draws; raise an error with its name unless these are finite numbers."""
    drawn = draw(random, shape, fan_in, fan_out)
    check_kind(name, drawn)
    with errors_naming(name):
        values: HostArray = np.asarray(drawn)
        if values.dtype.kind not in "iuf" or values.shape != shape or not np.isfinite(values).all():
            raise ValueError(f"it must draw finite numbers of shape {shape}, got {shown(drawn)}")
    return values


def _check_sizes(layer_sizes: object) -> tuple[int, ...]:
    if not is_iterable(layer_sizes):
        raise TypeError(f"`layer_sizes` must be a sequence of integers, got {shown(layer_sizes)}")
    sizes = tuple(
        check_integer(f"layer_sizes[{index}]", size, minimum=1) for index, size in enumerate(layer_sizes)
    )
    if len(sizes) < 2:
        raise ValueError(f"`layer_sizes` must have an input and an output size at least, got {sizes}")
    return sizes


def _wide_enough(xp: Namespace, values: Array) -> Array:
    """Return numbers to be summed over rows in float32 at least: in float16 a sum soon overflows."""
    return xp.astype(values, xp.float32) if xp.finfo(values.dtype).bits < 32 else values


def _wrong_shapes(logits: Array, losses: Array, delta: Array) -> ValueError:
    found = tuple(losses.shape), tuple(delta.shape)
    return ValueError(
        "`evaluate` of a Loss must return losses of shape (n_samples, n_outputs) or (n_samples, 1), and "
        f"derivatives of the logits' shape, {tuple(logits.shape)}, got shapes {found}"
    )


def _inverse_total(xp: Namespace, sample_weight: Array) -> Array:
    total, least = xp.sum(sample_weight), float(xp.finfo(sample_weight.dtype).smallest_normal)
    # A batch without any weight has the objective 0, not 0 / 0; so has one whose total has no inverse.
    return xp.where(total >= least, 1.0 / xp.where(total >= least, total, 1.0), 0.0)


def _sum_of_squares(xp: Namespace, params: Parameters) -> Array:
    flat = [xp.reshape(weight, (-1,)) for weight, _ in params]
    total = xp.matmul(flat[0], flat[0])
    for weights in flat[1:]:
        total = total + xp.matmul(weights, weights)
    return total
