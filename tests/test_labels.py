"""Class labels against scikit-learn's encoders: learnt, encoded, decoded, refused."""

import numpy as np
import pytest

from mlp_xp._arrays import placement

preprocessing = pytest.importorskip("sklearn.preprocessing")
sparse = pytest.importorskip("scipy.sparse")

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


def test_balanced_weights_are_scikit_learns():
    class_weight = pytest.importorskip("sklearn.utils.class_weight")
    labels = np.array([0, 0, 0, 1, 2, 2])
    expected = class_weight.compute_sample_weight("balanced", labels)
    np.testing.assert_allclose(class_weights("balanced", labels, None), expected, rtol=1e-12)
    weighted = class_weights({0: 2.0, 1: 1.0, 2: 0.5}, labels, None)
    np.testing.assert_array_equal(weighted, [2.0, 2.0, 2.0, 1.0, 0.5, 0.5])
