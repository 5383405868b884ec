"""Class labels against scikit-learn's: learnt, encoded, decoded, refused, over several calls."""

import string
import warnings

import numpy as np
import pytest

import mlp_xp
from mlp_xp._arrays import placement

preprocessing = pytest.importorskip("sklearn.preprocessing")
sparse = pytest.importorskip("scipy.sparse")
neural_network = pytest.importorskip("sklearn.neural_network")

multiclass = pytest.importorskip("sklearn.utils.multiclass")
type_of_target, unique_labels = multiclass.type_of_target, multiclass.unique_labels

weights_module = pytest.importorskip("sklearn.utils.class_weight")
compute_class_weight, compute_sample_weight = (
    weights_module.compute_class_weight,
    weights_module.compute_sample_weight,
)
labels_module = pytest.importorskip("mlp_xp.estimators._labels")
Classes, class_weights, labels_at = (
    labels_module.Classes,
    labels_module.class_weights,
    labels_module.labels_at,
)

HOST = placement(X=np.ones(1))

LABELS = {
    "text": np.array(["pear", "apple", "fig", "apple", "pear"]),
    "two texts": np.array(["yes", "no", "no", "yes"]),
    "integers": np.array([7, -1, 3, 3, 7]),
    "booleans": np.array([True, False, True]),
    "objects": np.array(["b", "a", "c"], dtype=object),
}


@pytest.mark.parametrize("dtype", ["bool", "int8", "uint16", "int64", ">i4", "float32"])
@pytest.mark.parametrize("values", [[1, 0, 1, 0, 0], [1, 1], [3, 2, 7, 2]])
def test_classes_are_scikit_learns_in_any_dtype(dtype, values):
    labels = np.array(values).astype(dtype)
    model = mlp_xp.MLPClassifier((2,), max_iter=1, random_state=0)
    classes = model.partial_fit(np.ones((len(labels), 2)), labels, classes=labels).classes_
    assert (classes.dtype, classes.tolist()) == (unique_labels(labels).dtype, np.unique(labels).tolist())
    assert Classes.of(labels, sparse=False).kind == type_of_target(labels)
    model.partial_fit(np.ones((2, 2)), labels[:2])
    with pytest.raises(ValueError, match="classes not in `self.classes_`"):
        model.partial_fit(np.ones((2, 2)), np.array([labels[0], 9]))
    with pytest.raises(ValueError, match="`y`: Found input variables with inconsistent numbers of samples"):
        model.partial_fit(np.ones((1, 2)), labels[:2])


CLASSES = [[3, 1, 1], [2**63, 1], [2**63], [2**64], [-1, 2**63], [True, False], [1, True], [2.0, 1.0], [1.5]]


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
@pytest.mark.parametrize("classes", CLASSES, ids=repr)
def test_listed_classes_are_those_of_scikit_learn(classes):
    try:
        expected = np.asarray(unique_labels(classes))
    except ValueError:
        with pytest.raises(ValueError, match="Unknown label type"):
            labels_module.check_given_classes(classes)
    else:
        found = labels_module.check_given_classes(classes)
        assert (found.dtype, found.tolist()) == (expected.dtype, expected.tolist())


@pytest.mark.parametrize("name", LABELS)
def test_labels_are_encoded_as_by_scikit_learn(name):
    labels = LABELS[name]
    labels.flags.writeable = False
    classes = Classes.of(labels, sparse=False)
    encoder = preprocessing.LabelBinarizer().fit(labels)
    np.testing.assert_array_equal(classes.labels, encoder.classes_)
    encoded = classes.encode(labels)
    assert encoded.dtype == np.bool
    np.testing.assert_array_equal(encoded, encoder.transform(labels))
    assert classes.n_outputs == encoded.shape[1]
    outputs = np.where(encoded, 0.9, 0.1)
    decoded = classes.decode(outputs, HOST, labels_at(HOST, classes.labels))
    np.testing.assert_array_equal(decoded, labels)
    restored = Classes.from_fitted(classes.labels, False, classes.out_activation, classes.n_outputs)
    assert restored.kind == classes.kind


@pytest.mark.parametrize("is_sparse", [False, True])
def test_several_labels_are_their_own_encoding(is_sparse):
    labels = np.array([[1, 0, 1], [0, 0, 1], [1, 1, 0]])
    classes = Classes.of(labels, sparse=is_sparse)
    np.testing.assert_array_equal(classes.labels, [0, 1, 2])
    assert (classes.kind, classes.n_outputs, classes.out_activation) == ("multilabel", 3, "logistic")
    decoded = classes.decode(np.where(classes.encode(labels), 0.9, 0.1), HOST, classes.labels)
    assert sparse.issparse(decoded) is is_sparse
    np.testing.assert_array_equal(decoded.toarray() if is_sparse else decoded, labels)


def test_a_single_class_is_predicted_whatever_comes_out():
    classes = Classes.of(np.array(["only", "only"]), sparse=False)
    decoded = classes.decode(np.array([[0.2], [0.9]]), HOST, classes.labels)
    np.testing.assert_array_equal(decoded, ["only", "only"])


def test_what_does_not_fit_the_classes_is_refused():
    classes = Classes.of(np.array([3, 1, 2]), sparse=False)
    classes.check(np.array([1, 1]))
    with pytest.raises(ValueError, match="classes not in `self.classes_`"):
        classes.check(np.array([1, 4]))
    with pytest.raises(ValueError, match=r"`y` must have 1 dimension\(s\), got 2"):
        classes.check(np.array([[1, 0], [0, 1]]))
    classes.check_complete(np.array([1, 2, 3]))
    with pytest.raises(ValueError, match="same classes as in the previous call to fit"):
        classes.check_complete(np.array([1, 2]))


# Several calls.

random = np.random.RandomState(0)
X = random.standard_normal((60, 3))
TARGETS = {
    "binary": np.arange(60) % 2,
    "multi-class": np.arange(60) % 3,
    "two labels": random.randint(0, 2, (60, 2)),
    "three labels": random.randint(0, 2, (60, 3)),
}
SEQUENCES = {
    "fit": ({}, ["fit"]),
    "fit, fit": ({}, ["fit", "fit"]),
    "fit, fit that goes on": ({"warm_start": True}, ["fit", "fit"]),
    "fit, partial_fit": ({}, ["fit", "partial_fit"]),
    "partial_fit": ({}, ["partial_fit"]),
    "partial_fit, partial_fit": ({}, ["partial_fit", "partial_fit"]),
    "partial_fit with warm_start": ({"warm_start": True}, ["partial_fit", "partial_fit"]),
    "partial_fit, fit that goes on": ({"warm_start": True}, ["partial_fit", "fit"]),
}
KEPT = np.array([0, 1, 1, 0])
CHANGES = {
    "same": lambda y: y,
    "the last missing": lambda y: np.where(y == y.max(), 0, y) if y.ndim == 1 else y * KEPT[-y.shape[1] :],
    "the first missing": lambda y: np.maximum(y, 1) if y.ndim == 1 else y * KEPT[: y.shape[1]],
    "one left": lambda y: 0 * y,
    "unseen": lambda y: np.where(np.arange(60) == 5, 7, y.T).T,
    "reordered": lambda y: y[::-1] if y.ndim == 1 else y[:, ::-1],
    "more columns": lambda y: np.column_stack([y, y]) % 2,
    "first column": lambda y: y.reshape(60, -1)[:, :1],
    "one dimension": lambda y: y.reshape(60, -1)[:, 0],
    "indicator": lambda y: (y.reshape(60, -1)[:, :1] == np.arange(3)).astype(int),
    "sparse": sparse.csr_matrix,
    "halves": lambda y: y + 0.5,
    "text": lambda y: np.array(["c", "a", "b"])[y],
    "digits": lambda y: y.astype(str),
    "a list": lambda y: y.tolist(),
    **{
        kind: lambda y, kind=kind: y.astype(kind)
        for kind in ("bool", "uint8", "float32", ">i4", "object", "S1")
    },
}


def outcomes(module, settings, calls):
    """Return, for each call of a small model, the classes and predictions after it, or "refused"."""
    model = module.MLPClassifier((4,), solver="sgd", momentum=0.0, shuffle=False, random_state=0, max_iter=1)
    model.set_params(**settings)
    found = []
    for method, y, given in calls:
        try:
            predicted = getattr(model, method)(X, y, **given).predict(X)
        except (TypeError, ValueError):
            found.append("refused")
            continue
        values = predicted.toarray() if sparse.issparse(predicted) else predicted
        found.append((model.classes_.tolist(), values.tolist(), predicted.dtype, type(predicted)))
    return found


@pytest.mark.sampled(7)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.DataConversionWarning")
@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("targets", TARGETS)
@pytest.mark.parametrize("sequence", SEQUENCES)
def test_outcomes_of_several_calls_are_scikit_learns(sequence, targets, change):
    y = TARGETS[targets]
    settings, methods = SEQUENCES[sequence]
    classes = np.unique(y) if y.ndim == 1 else np.arange(y.shape[1])
    first = {"classes": classes} if methods[0] == "partial_fit" else {}
    labels = [y, CHANGES[change](y)][-len(methods) :]
    calls = list(zip(methods, labels, [first, {}]))
    if sequence == "partial_fit with warm_start":
        settings = {}  # with `warm_start` scikit-learn asks each batch for every class
    found = outcomes(mlp_xp, SEQUENCES[sequence][0], calls)
    one_label = y.ndim == 2 and change in ("first column", "one dimension")
    if one_label and len(calls) == 2 and sequence != "fit, fit":
        # scikit-learn repeats it for each label, or fails in `predict`.
        assert found[1] == "refused"
    elif (sequence, targets, change) == ("partial_fit", "multi-class", "more columns"):
        assert found == ["refused"]  # scikit-learn makes two outputs for three classes
    else:
        assert found == outcomes(neural_network, settings, calls)


@pytest.mark.parametrize(
    "classes",
    [[2, 0, 1], (0.0, 1.0, 2.0), range(3), ["0", "1", "2"], [0, 1], [0, 1, 2, 9], [], 3, "012", None],
)
@pytest.mark.parametrize("targets", ["multi-class", "three labels"])
def test_classes_are_given_as_to_scikit_learn_and_the_same_again(targets, classes):
    calls = [("partial_fit", TARGETS[targets], {"classes": classes})] * 2
    found = outcomes(mlp_xp, {}, calls)
    assert (found[0] == "refused") is (found[1] == "refused")
    if (targets, classes) == ("three labels", [0, 1, 2, 9]):
        assert found[0] == "refused"  # scikit-learn has three outputs for four classes
    else:
        assert found == outcomes(neural_network, {}, calls)
    with pytest.raises(ValueError, match="`classes`"):
        mlp_xp.MLPClassifier().partial_fit(X, TARGETS[targets], classes=[[[0]]])


@pytest.mark.parametrize("n_samples", [30, 2600])
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_many_classes_are_no_reason_to_warn(method, n_samples):
    letters = np.array(list(string.ascii_lowercase))
    given = {"classes": letters} if method == "partial_fit" else {}
    model = mlp_xp.MLPClassifier((2,), max_iter=1, random_state=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        getattr(model, method)(np.ones((n_samples, 1)), letters[np.arange(n_samples) % 26], **given)
    assert not [one for one in caught if "classes" in str(one.message)]


# Class weights.


WEIGHTS = {
    "binary": {1: 5.0},
    "multi-class": {0: 2.0, 1: 5.0},
    "two labels": [{1: 2.0}, {0: 3.0, 1: 0.5}],
    "three labels": [{0: 0.5}, None, {0: 0, 1: 4}],
}


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("change", ["same", "the last missing", "the first missing", "one left"])
@pytest.mark.parametrize("targets", WEIGHTS)
def test_class_weights_are_sample_weights_where_classes_are_missing_from_a_batch(targets, change, text):
    y, given = TARGETS[targets], WEIGHTS[targets]
    batch = CHANGES[change](y)
    columns, each = (batch.T, given) if y.ndim == 2 else ([batch], [given])
    weight = np.prod(
        [[(one or {}).get(label, 1.0) for label in column] for one, column in zip(each, columns)], axis=0
    )
    if not weight.any():
        pytest.skip("nothing is left")
    classes = np.unique(y) if y.ndim == 1 else np.arange(y.shape[1])
    peer = mlp_xp.MLPClassifier((4,), random_state=0).partial_fit(X, y, classes=classes)
    peer.partial_fit(X, batch, weight)
    if text and y.ndim == 1:
        y, batch, classes = y.astype(str), batch.astype(str), classes.astype(str)
        given = {str(label): one for label, one in given.items()}
    model = mlp_xp.MLPClassifier((4,), random_state=0).partial_fit(X, y, classes=classes)
    model.set_params(class_weight=given).partial_fit(X, batch)
    for ours, equivalent in zip(model.coefs_, peer.coefs_):
        np.testing.assert_array_equal(ours, equivalent)


def test_what_the_advice_for_balanced_weights_makes_is_taken():
    y = TARGETS["multi-class"]
    model = mlp_xp.MLPClassifier((4,), random_state=0, class_weight="balanced")
    with pytest.raises(ValueError, match="`class_weight` must be a dict") as caught:
        model.partial_fit(X, y, classes=[0, 1, 2])
    names = {"classes": np.unique(y), "y": y, "compute_class_weight": compute_class_weight}
    advice = str(caught.value).partition("If you know it, ")[2].partition(" makes")[0]
    made = eval(advice, names)
    assert type(made) is dict
    model.set_params(class_weight=made).partial_fit(X, y, classes=[0, 1, 2])


@pytest.mark.parametrize(
    ("targets", "weights"),
    [
        *[
            (targets, wrong)
            for targets in ("binary", "two labels")
            for wrong in (2.0, "even", np.ones(2), [3.0])
        ],
        *[("binary", wrong) for wrong in ([{0: 1.0}], {7: 1.0}, {0: "2"}, {0: -1.0})],
        *[("two labels", wrong) for wrong in ({0: 1.0}, [{0: 1.0}], [{2: 1.0}, {}], [{0: -1.0}, {}])],
    ],
)
@pytest.mark.parametrize("method", ["fit", "partial_fit"])
def test_class_weights_that_do_not_fit_are_named(method, targets, weights):
    model = mlp_xp.MLPClassifier((4,), class_weight=weights)
    given = {"classes": [0, 1]} if method == "partial_fit" else {}
    with pytest.raises((TypeError, ValueError), match=r"^`class_weight(\[\d\])?` must |^The classes, \["):
        getattr(model, method)(X, TARGETS[targets], **given)
    assert not hasattr(model, "classes_")


def test_balanced_weights_are_scikit_learns():
    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = compute_sample_weight("balanced", labels)
    classes = Classes.of(labels, sparse=False)
    np.testing.assert_allclose(class_weights("balanced", classes, labels, None), expected, rtol=1e-12)
