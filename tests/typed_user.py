"""What a user of types writes: ``mypy --strict`` accepts it, and it runs (see `test_package.py`)."""

from typing import Any

import numpy as np

from mlp_xp import (
    Activation,
    Callback,
    EarlyStopping,
    History,
    Initializer,
    Layer,
    Loss,
    Network,
    Optimizer,
    Schedule,
    Trained,
    adam,
    backend,
    cosine,
    evaluate,
    gradient_descent,
    he_normal,
    leaky_relu,
    momentum,
    train,
)
from mlp_xp.datasets import planar


def softsign(xp: Any, z: Any) -> tuple[Any, Any]:
    scale = 1.0 / (1.0 + xp.abs(z))
    return z * scale, scale


def softsign_backward(xp: Any, delta: Any, scale: Any) -> Any:
    return delta * scale * scale


def identity(xp: Any, logits: Any) -> Any:
    return logits


def absolute_error(xp: Any, logits: Any, y: Any) -> tuple[Any, Any]:
    error = logits - y
    return xp.abs(error), xp.sign(error)


def lecun_normal(random: Any, shape: tuple[int, ...], fan_in: int, fan_out: int) -> Any:
    return random.standard_normal(shape) / np.sqrt(fan_in)


def halved(epoch: int) -> float:
    return 0.1 * 0.5**epoch


def stop_at(loss: float) -> Callback:
    def callback(history: History, params: tuple[Layer, ...]) -> bool:
        return bool(history[-1]["loss"] < loss and params[0].weight.ndim == 2)

    return callback


def mean_error(y: Any, predictions: Any) -> float:
    return float(np.mean(np.abs(y - predictions)))


def optimizers() -> dict[str, Optimizer]:
    schedule: Schedule = halved
    return {"sgd": gradient_descent(schedule), "momentum": momentum(cosine(0.1, 5)), "adam": adam()}


def main() -> float:
    data = planar()
    X, y = data.X, data.y[:, None]
    own = Activation(softsign, softsign_backward)
    network = Network([2, 3, 1], activation=[own], loss=Loss(identity, absolute_error))
    start: Initializer = lecun_normal
    params = network.init(0, like=backend("numpy").xp.asarray(X), weight=start, bias="zeros")
    first: Any = params[0].weight
    loss, gradients = network.loss_and_gradients(params, X, y)
    result: Trained = train(
        network,
        params,
        X,
        y,
        optimizer=optimizers()["adam"],
        epochs=3,
        batch_size=100,
        validation_data=(X, y),
        metrics=["r2", mean_error],
        early_stopping=EarlyStopping("val_loss"),
        callback=stop_at(0.01),
    )
    deep = Network((2, 4, 4, 1), activation=("tanh", leaky_relu(0.1)), loss="binary_cross_entropy")
    deep_params, history = train(
        deep, deep.init(0, like=X, weight=he_normal()), X, y, optimizer=adam(halved), epochs=1
    )
    assert first.shape == gradients[0].weight.shape == result.params[0].weight.shape
    assert deep_params[-1].bias.shape == (1,)
    assert len(history["loss"]) == 1
    return evaluate(network, result.params, X, y)["loss"] - float(loss)


if __name__ == "__main__":
    print(main() < 0.0)
