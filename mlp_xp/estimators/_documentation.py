"""What the documentation of the two estimators has in common."""

from __future__ import annotations

from typing import Any

PARAMETERS = """
    hidden_layer_sizes : int or sequence of int, default=(100,)
        Units of each hidden layer; ``()`` makes a linear model.
    activation : str, Activation or sequence of them, default="relu"
        "identity", "logistic", "tanh", "relu", "leaky_relu", "elu", "silu", "gelu", or an
        `mlp_xp.Activation`: one for all hidden layers, or one for each.
    solver : {"lbfgs", "sgd", "adam"}, default="adam"
        "sgd" is gradient descent with momentum, "lbfgs" SciPy's quasi-Newton method on all rows at
        once, which suits small data.
    alpha : float, default=0.0001
        Strength of the L2 penalty on the weights, divided by the number of samples in the objective.
    batch_size : int or "auto", default="auto"
        Rows in a step of "sgd" and "adam"; "auto" is ``min(200, n_samples)``.
    learning_rate : {"constant", "invscaling", "adaptive"}, default="constant"
        With "sgd": the rate stays, falls as ``learning_rate_init / (t_ + 1) ** power_t``, or is divided
        by 5 each time the loss, or the validation score, stops improving, until it is at most 1e-6.
    learning_rate_init : float, default=0.001
        The rate of the first epoch, with "sgd" and "adam".
    power_t : float, default=0.5
        Exponent of "invscaling".
    max_iter : int, default=200
        The most epochs, or iterations of "lbfgs".
    shuffle : bool, default=True
        Take the rows in a new order in each epoch.
    random_state : int, RandomState or None, default=None
        Draws the first weights, the validation part and the orders, on the host: the same in every
        array library, and the same as in scikit-learn.
    tol : float, default=1e-4
        By how much the loss, or the validation score, must improve to count as progress.
    verbose : bool, default=False
        Print the loss of each epoch.
    warm_start : bool, default=False
        Let `fit` continue the last one, with its weights, optimizer state, row orders, learning rate,
        validation part and early-stopping state. n fits of 1 epoch are then one fit of n epochs, until early
        stopping stops. After that the count of epochs without improvement is kept: each further fit stops
        after its first epoch unless that epoch improves. (scikit-learn keeps the weights only.) With "lbfgs"
        the weights only.
    momentum : float, default=0.9
        Of "sgd", from 0 to 1.
    nesterovs_momentum : bool, default=True
        Let the momentum of "sgd" look one step ahead; see `mlp_xp.momentum`.
    early_stopping : bool or str, default=False
        Split a validation part off, stop when it shows no progress, and take the best epoch's
        weights. True or "score" watch the score (accuracy, or R2), "loss" the loss, any other name of a
        scikit-learn scorer ("f1_macro", "neg_median_absolute_error") that score. Ignored by "lbfgs".
    validation_fraction : float, default=0.1
        The validation part; stratified by class if there are two classes.
    beta_1, beta_2, epsilon : float, default=0.9, 0.999, 1e-8
        Of "adam"; see `mlp_xp.adam`.
    n_iter_no_change : int or inf, default=10
        Training stops when more than so many epochs in a row made no progress.
    max_fun : int, default=15000
        The most evaluations of the objective by "lbfgs".
    weight_decay : float, default=0.0
        Decoupled decay of the weights before each step of "sgd" or "adam" (AdamW), beside `alpha`.
    backend : {None, "auto", "numpy", "cupy", "torch", "jax"}, default=None
        Where to compute. None: where X lives. "auto": on a CUDA GPU with CuPy if there is one, for an X
        on the host. X is copied there; weights and predictions come back to where X lives. NumPy arrays
        and memory maps that do not fit there are streamed, batch by batch, with the same results. "jax"
        with float64 data switches `jax_enable_x64` on for the whole process.
    matmul_precision : {"highest", "tf32"}, default="highest"
        How float32 matrix products are computed on a CUDA GPU: "tf32" rounds their factors to 11
        significant bits, which is several times as fast; see `mlp_xp.Network`.
"""

ATTRIBUTES = """
    coefs_, intercepts_ : list of array
        Weights ``(n_in, n_out)`` and biases ``(n_out,)`` of each layer, in X's library, dtype and device.
    loss_curve_ : list of float
        The objective of each epoch or iteration; `loss_` is the last one, `best_loss_` the smallest (None
        with early stopping).
    history_ : History
        The same as a list of dicts: "epoch", "loss", and with validation data "val_loss" and the score, as
        "val_accuracy", "val_r2", or "val_" with the name that `early_stopping` has.
    validation_scores_, val_loss_curve_ : list of float or None
        Score and loss (without the penalty) on validation data after each epoch;
        `best_validation_score_` is the highest score.
    n_iter_, t_ : int
        Epochs of the last fit, and samples seen in training.
    n_features_in_, n_layers_, n_outputs_ : int
    out_activation_ : str
        "logistic", "softmax", "identity" or "exp".
    feature_names_in_ : array of str
        Where X was a DataFrame.
"""

SAMPLES = """
        X : array of shape (n_samples, n_features)
        y : array of shape (n_samples,) or (n_samples, n_outputs)
        sample_weight : array of shape (n_samples,), optional
"""


SCORE = (
    SAMPLES
    + """
        Returns
        -------
        float
"""
)


FIT_PARAMETERS = """
        X : array of shape (n_samples, n_features)
            An array of NumPy, CuPy, PyTorch, JAX or any library of the Array API standard: training
            happens where it lives. On the host also a list, a DataFrame, or a CSR or CSC matrix. Or a stream,
            whose batches train one after the other, see Notes.
        y : array of shape (n_samples,) or (n_samples, n_outputs), or str
            Labels, which may be text, or values; in X's library or on the host. They are moved to the device
            of X. None for a stream of batches (X, y), a column's name for one of tables.
        sample_weight : array of shape (n_samples,), optional
            At least 0. A weight of 2 counts as the row repeated, a weight of 0 as the row left out. They are
            moved to the device of X.
        X_val : array of shape (n_validation, n_features), optional
            Validation data, in X's library. Then no part of X is split off for `early_stopping`.
            Without `early_stopping` they are measured after each epoch, and nothing more.
        y_val, sample_weight_val : array, optional
            Targets and weights of `X_val`.
        checkpoint : Checkpoint or path, optional
            A file that the progress is written to every minute, or as a `mlp_xp.Checkpoint` says.
        resume : path or bool, default=False
            Go on with a fit whose process has died, from the file of its checkpoint; True is the file of
            `checkpoint`, if there is one. The fit ends as if it had never ended, to the bit.
"""

FIT_RESULTS = """
        Returns
        -------
        self
            Fitted.

        Raises
        ------
        ValueError, TypeError
            Before any training, if a parameter or an argument does not fit. A model fitted before
            stays as it was.
        DivergenceError
            At the epoch in which the loss or a weight stops being finite. The estimator keeps the
            last finite weights; if that is the first epoch, a model fitted before stays as it was.
        ModelFileError
            If the checkpoint to resume from is damaged.
        OSError
            If `checkpoint` cannot be written, exists already, or is written by another training.
        OutOfMemoryError
            If the training does not fit into the device's memory; raised before the training if the need can
            be computed. Unless an epoch was finished the model is unchanged.
        Exception
            Whatever a callback or an activation raises is raised as it is; what was trained is kept.

        Warns
        -----
        CheckpointWarning
            If a later checkpoint cannot be written.
        ConvergenceWarning
            If `max_iter` ends the training.
        EagerFallbackWarning
            If it cannot run as captured CUDA graphs where it should; it says why.
        TrainingInterruptedWarning
            If Ctrl-C does; what was trained is kept. In the first epoch of a new training, a model fitted
            before stays as it was.

        Notes
        -----
        A stream is an iterable of batches (X, y) or (X, y, sample_weight), such as a generator or a PyTorch
        DataLoader, or of tables of polars, pandas or pyarrow; then `y`, and maybe `sample_weight`, name their
        columns. Each epoch iterates over it; an iterator, such as a generator, can be iterated over once, so
        that `max_iter` must be 1. Each batch is one step or, if `batch_size` is a number, is divided into
        steps as `partial_fit` divides its rows; `shuffle` shuffles them there, and batches stay apart.

        With ``max_iter=1`` a stream trains as calls of `partial_fit` do, batch after batch, to the bit (with
        JAX to rounding), where "auto" would not divide a batch: weights, optimizer and `t_` are the same. But
        `loss_curve_` has the mean over the epoch's rows, an epoch that diverges is undone as a whole, and
        ``learning_rate="adaptive"`` looks at epochs. `early_stopping` needs `X_val`; "lbfgs" takes no stream.
        A batch that does not fit, or an error of the iterable, ends the training; what was trained until then
        is kept as after any error.
"""


def fill_docstring(target: Any) -> Any:
    """Fill the common parts in the docstring of an estimator, or of one of its methods."""
    text = target.__doc__.replace("    {parameters}\n", PARAMETERS[1:])
    text = text.replace("    {attributes}\n", ATTRIBUTES[1:])
    text = text.replace("        {score}\n", SCORE[1:])
    text = text.replace("        {fit_parameters}\n", FIT_PARAMETERS[1:])
    text = text.replace("        {fit_results}\n", FIT_RESULTS[1:])
    target.__doc__ = text.replace("        {samples}\n", SAMPLES[1:])
    return target
