"""Pictures of runs: names of any length and any number of classes stay within them, and apart."""

import math

import numpy as np
import pytest

pl = pytest.importorskip("polars")
matplotlib = pytest.importorskip("matplotlib", minversion="3.9")
confusion_matrix = pytest.importorskip("sklearn.metrics").confusion_matrix
for module in ("rich", "safetensors", "shtab"):
    pytest.importorskip(module)
cli = pytest.importorskip("mlp_xp._cli")
plotting = pytest.importorskip("mlp_xp.plotting")
matrices = pytest.importorskip("mlp_xp.plotting._confusion_matrix")
texts = pytest.importorskip("mlp_xp.plotting._texts")
Figure = pytest.importorskip("matplotlib.figure").Figure
Text = pytest.importorskip("matplotlib.text").Text

SENTENCE = "The quick brown fox jumps over the lazy dog while the cat dreams of mice and cheese, and of "
STRANGE = [
    *(
        "$a_1$ and_under",
        "_hidden$",
        "tab\there",
        "tab here",
        "new\nline",
        "\u53d8\u8272\u9e22",
        "\u5c71\u9e22\u5c3e",
    ),
    *(
        "\u00e9" * 90,
        "Donaudampfschiff" * 5 + "a" + "x" * 60,
        "Donaudampfschiff" * 5 + "b" + "x" * 60,
        "x" * 500,
    ),
]
NAMES = {
    "short": ["no", "yes"],
    "60 characters": [f"{SENTENCE[:58]}{index}" for index in range(3)],
    "200 characters": [f"{(2 * SENTENCE)[:100]}{index}{(2 * SENTENCE)[:100]}" for index in range(3)],
    "one word": [f"{'w' * 100}{index}{'w' * 100}" for index in range(12)],
    "strange": STRANGE,
    "many": [f"class number {index}" for index in range(40)],
}


QUICK = ("200 characters",)
EACH_NAME = [
    pytest.param(names, id=key, marks=[] if key in QUICK else pytest.mark.slow)
    for key, names in NAMES.items()
]


def place(names, columns=("a", "b"), target="kind"):
    """A table with two columns of numbers and a target that takes each of these names."""
    codes = np.arange(max(60, 10 * len(names))) % len(names)
    noise = np.random.default_rng(0).standard_normal((2, len(codes)))
    X = noise + 3.0 * np.array([np.cos(codes), np.sin(codes)])
    return pl.DataFrame({columns[0]: X[0], columns[1]: X[1], target: [names[code] for code in codes]})


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw the pictures that a command saves of a table; return their figures by file name."""
    monkeypatch.chdir(tmp_path)
    figures = {}

    def keep(figure, path, **settings):
        figure.draw_without_rendering()  # within the fonts that the picture is saved with
        figures[path.name] = figure

    def draw(command, frame, name, *options):
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", keep)
        frame.write_csv(name)
        words = [command, name, "--target", frame.columns[-1], "--epochs", 2, "--out", "out", *options]
        assert cli.main([*map(str, words), "--quiet"]) == 0
        return figures

    return draw


def all_texts(figure):
    """The texts of a figure that are drawn."""
    ticks = {}  # of all axes; those outside of the limits are not drawn
    for ax in figure.axes:
        for axis in (ax.xaxis, ax.yaxis):
            low, high = sorted(axis.get_view_interval())
            ticks |= {
                id(label): ax.axison and low <= place <= high
                for place, label in zip(axis.get_ticklocs(), axis.get_ticklabels())
            }
    found = figure.findobj(Text)
    return [text for text in found if text.get_text() and text.get_visible() and ticks.get(id(text), True)]


def check_inside(figure):
    """Check that each text, and everything else, is within the figure, and legends within their Axes."""
    for text in all_texts(figure):
        box = text.get_window_extent()
        assert box.x0 >= -1.0, text
        assert box.y0 >= -1.0, text
        assert box.x1 <= figure.bbox.x1 + 1.0, text
        assert box.y1 <= figure.bbox.y1 + 1.0, text
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert min(box.x0, box.y0) >= -0.01
    assert box.x1 <= width + 0.01
    assert box.y1 <= height + 0.01
    for ax in figure.axes:
        if ax.get_legend() is not None:
            legend = ax.get_legend().get_window_extent()
            assert ax.bbox.padded(1.0).containsx(legend.x0)
            assert ax.bbox.padded(1.0).containsx(legend.x1)
            assert legend.height < 0.4 * ax.bbox.height


# Pictures of commands.


@pytest.mark.parametrize("names", EACH_NAME)
def test_names_of_any_length_stay_within_the_pictures_of_a_run(names, drawn):
    long = len(names[0]) > 100
    columns = (f"{2 * SENTENCE}x", "y" * 150) if long else ("a", "b")
    frame = place(names, columns, f"{2 * SENTENCE}target" if long else "kind")
    name = f"{(3 * SENTENCE)[:240]}.csv" if long else "table.csv"
    figures = drawn("train", frame, name, "--task", "classification")
    assert set(figures) == {"confusion_matrix.png", "decision_boundary.png", "learning_curve.png"}
    for figure in figures.values():
        check_inside(figure)
    matrix = figures["confusion_matrix.png"].axes[0]
    n_shown = min(len(names), 21)
    for axis in (matrix.xaxis, matrix.yaxis):
        labels = [label.get_text() for label in axis.get_ticklabels()]
        assert len(set(labels)) == n_shown
    extent = matrix.get_window_extent()
    assert extent.height > 0.4 * figure.bbox.height
    assert extent.width == pytest.approx(extent.height)
    assert len(matrix.texts) == n_shown**2
    counts = [int(text.get_text()) for text in matrix.texts]
    assert sum(counts) == round(0.2 * len(frame))
    for text in matrix.texts:
        assert text.get_window_extent().width < extent.width / n_shown


def test_a_long_target_stays_within_the_pictures_of_a_regression(drawn):
    frame = place(["no", "yes"], ("x" * 150, f"{2 * SENTENCE}y"))
    values = (1e9 * frame.to_series(0) + 5e9).round(2).alias(f"{2 * SENTENCE}target")
    figures = drawn("train", frame.drop("kind").with_columns(values), "table.csv")
    assert set(figures) == {"predicted_vs_true.png", "decision_boundary.png", "learning_curve.png"}
    for figure in figures.values():
        check_inside(figure)
    axes = figures["predicted_vs_true.png"].axes[0]
    assert axes.get_xlabel().startswith("predicted The quick")
    assert axes.get_ylabel().endswith("target")
    assert axes.get_ylabel().count("\n") == 1


@pytest.mark.parametrize(
    "key",
    [pytest.param("200 characters", marks=pytest.mark.slow), pytest.param("strange", marks=pytest.mark.slow)],
)
def test_names_of_any_length_stay_within_the_picture_of_a_sweep(key, drawn):
    frame = place(NAMES[key], (f"{2 * SENTENCE}x", "y" * 150), f"{SENTENCE}target")
    options = "--task", "classification", "--hidden", 1, "8x8x8x8x8x8x8x8x8", 3
    (figure,) = drawn("sweep", frame, "table.csv", *options).values()
    check_inside(figure)
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.texts]
    assert len(set(labels)) == len(labels)
    assert len(labels) == len(NAMES[key])


# Confusion matrices.


@pytest.mark.parametrize(("n_classes", "n_shown"), [(2, 2), (20, 20), (21, 21), (22, 21), (200, 21)])
def test_the_merged_matrix_counts_what_that_of_scikit_learn_counts(n_classes, n_shown):
    random = np.random.default_rng(n_classes)
    classes = np.array([f"class {index:03d}" for index in range(n_classes)])
    true = np.minimum(random.geometric(2.0 / n_classes, 3000), n_classes) - 1
    true = random.permutation(n_classes)[true]  # so that the most frequent ones are not the first
    predicted = np.where(random.random(3000) < 0.5, true, random.integers(n_classes, size=3000))
    names, counts, merged = matrices.merged_confusion(classes, classes[true], classes[predicted])
    whole = confusion_matrix(classes[true], classes[predicted], labels=classes)
    assert merged == (n_classes > 21)
    assert counts.shape == (n_shown, n_shown)
    if not merged:
        assert names == classes.tolist()
        np.testing.assert_array_equal(counts, whole)
        return
    kept = [classes.tolist().index(name) for name in names[:-1]]
    assert names[-1] == f"other ({n_classes - 20} classes)"
    assert kept == sorted(kept)
    frequencies = whole.sum(axis=1)
    others = np.delete(np.arange(n_classes), kept)
    assert frequencies[kept].min() >= frequencies[others].max()
    np.testing.assert_array_equal(counts[:-1, :-1], whole[np.ix_(kept, kept)])
    np.testing.assert_array_equal(counts[:-1, -1], whole[np.ix_(kept, others)].sum(axis=1))
    np.testing.assert_array_equal(counts[-1, :-1], whole[np.ix_(others, kept)].sum(axis=0))
    assert counts[-1, -1] == whole[np.ix_(others, others)].sum()


def test_labels_that_are_no_class_do_not_count():
    names, counts, _ = matrices.merged_confusion(np.array([1, 2]), [1, 2, 3], [2, 2, 1])
    assert names == ["1", "2"]
    assert counts.tolist() == [[0, 1], [0, 1]]


def test_merged_classes_do_not_set_the_colours_of_the_others():
    ax = Figure(layout="constrained").subplots()
    counts = np.array([[3, 0, 9], [1, 2, 0], [8, 0, 5000]])
    matrices.draw_confusion_matrix(ax, ["a", "b", "other (9 classes)"], counts, merged=True)
    assert ax.images[0].get_clim() == (0.0, 3.0)
    matrices.write_counts(ax, counts)
    assert [text.get_text() for text in ax.texts] == ["3", "0", "9", "1", "2", "0", "8", "0", "5,000"]
    brightness = {text.get_text(): sum(text.get_color()[:3]) for text in ax.texts}
    assert brightness["5,000"] == brightness["3"] > brightness["0"] == brightness["1"]


def test_counts_that_would_be_too_small_are_left_out():
    ax = Figure(figsize=(2.0, 2.0), layout="constrained").subplots()
    counts = np.full((21, 21), 10_000)
    matrices.draw_confusion_matrix(ax, [str(index) for index in range(21)], counts)
    matrices.write_counts(ax, counts)
    assert not ax.texts


# Names that are fitted.


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
@pytest.mark.parametrize(("width", "n_lines"), [(30.0, 1), (60.0, 3), (90.0, 1), (300.0, 2)])
def test_fitted_names_fit_and_differ(names, width, n_lines):
    fitted = texts.fit_names(names, width, 8.0, n_lines)
    assert len(set(fitted)) == len(names)
    for name in fitted:
        lines = name.replace(r"\$", "$").split("\n")
        assert len(lines) <= n_lines
        assert max(texts.text_width(line, 8.0) for line in lines) <= width
        assert name.isprintable() or n_lines > 1


@pytest.mark.parametrize(
    ("text", "fitted"),
    [
        ("short", "short"),
        ("", ""),
        ("a $1\n\tto\x1b $2", r"a \$1 to \$2"),
        ("with space inside", "with space inside"),
    ],
)
def test_what_fits_is_shown_whole_in_one_line(text, fitted):
    assert texts.fit_text(text, 200.0, 10.0) == fitted


def test_a_cut_keeps_the_beginning_and_the_end():
    text = texts.fit_text(f"begins here {SENTENCE} ends here", 150.0, 10.0)
    before, after = text.split(texts.ELLIPSIS)
    assert before.startswith("begins he")
    assert after.endswith("nds here")
    assert texts.text_width(text, 10.0) > 135.0


def test_lines_end_between_words_and_long_words_are_broken():
    assert texts.fit_text("sepal length in centimetres", 80.0, 10.0, 3) == "sepal length in\ncentimetres"
    assert texts.fit_text("sepal_length_in_centimetres", 90.0, 10.0, 3) == "sepal_length_in_\ncentimetres"
    lines = texts.fit_text("m" * 30, 100.0, 10.0, 4).split("\n")
    assert len(lines) > 1
    assert "".join(lines) == "m" * 30


def test_names_that_differ_in_the_middle_are_cut_around_the_difference():
    names = [f"{SENTENCE}{part} has been bought {SENTENCE}" for part in ("north", "south")]
    fitted = texts.fit_names(names, 150.0, 10.0)
    assert ["north" in fitted[0], "south" in fitted[1]] == [True, True]
    assert all(name.startswith("The q") for name in fitted)


def test_names_without_a_visible_difference_have_their_position():
    names = ["a\tb", "other", "a b", "a b #3"]
    assert texts.fit_names(names, math.inf, 10.0) == ["a b #1", "other #2", "a b #3", "a b #3 #4"]
    assert texts.fit_names(names[:3], math.inf, 10.0) == ["a b #1", "other", "a b #3"]


def test_characters_come_from_a_font_that_has_them():
    with matplotlib.rc_context({"font.family": ["cmr10"]}):  # has Latin letters only
        assert texts.fit_text("ж", 100.0, 10.0) == "?"
        with texts.fallback_fonts("жы", "abc"):
            assert texts.fit_text("ж", 100.0, 10.0) == "ж"
            assert matplotlib.rcParams["font.family"][0] == "cmr10"
            assert len(matplotlib.rcParams["font.family"]) == 2
        with texts.fallback_fonts("abc"):
            assert matplotlib.rcParams["font.family"] == ["cmr10"]


@pytest.mark.parametrize("names", EACH_NAME)
def test_legends_and_labels_of_decision_boundaries_fit(names):
    X = np.random.default_rng(0).standard_normal((max(30, len(names)), 2))
    y = np.arange(len(X)) % len(names)

    class Nearest:
        classes_ = np.arange(len(names))

        def predict(self, points):
            return np.argmin(np.linalg.norm(points[:, None] - X[: len(names)], axis=-1), axis=1)

    for ax in (Figure().subplots(), Figure(layout="constrained").subplots(2, 2)[1, 1]):
        columns = [names[0], names[-1]]
        settings = {"feature_names": columns, "class_names": names, "grid_resolution": 20}
        plotting.plot_decision_boundary(Nearest(), X, y, ax=ax, **settings)
        ax.figure.draw_without_rendering()
        check_inside(ax.figure)
        labels = [text.get_text() for text in ax.get_legend().texts]
        assert len(set(labels)) == len(labels)
        assert (
            len(labels) == len(names) or labels[-1] == f"{texts.ELLIPSIS} {len(names) - len(labels) + 1} more"
        )
