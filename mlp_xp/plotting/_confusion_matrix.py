"""Confusion matrices: the number of samples of each true and each predicted class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from mlp_xp._arrays import HostArray
from mlp_xp.plotting._common import pixels_per_point
from mlp_xp.plotting._texts import fit_names, one_line, text_width

MAX_CLASSES_SHOWN = 20
"""Number of classes shown of more than 21; the names of more rows would be unreadable."""

MIN_POINTS_OF_COUNTS = 4.5
"""Minimum font size of the counts, in points: 9 pixels in a file of 150 dots per inch."""

MAX_CLASSES_WITH_WRAPPED_NAMES = 3
"""Maximum number of classes below whose columns long names are wrapped; with more they are turned."""

MAX_PART_OF_NAMES = 0.28
"""Maximum length of turned names, as a part of the figure's height, so that the matrix stays larger."""


def merged_confusion(
    classes: HostArray, true: Iterable[Any], predicted: Iterable[Any]
) -> tuple[list[str], HostArray, bool]:
    """Return names, counts by true and predicted class, and whether the last name stands for several classes.

    Of more than 21 classes, the 20 most frequent true ones are kept, in their order, and the others merged.
    Samples of classes that are not in `classes` do not count, as in scikit-learn's `confusion_matrix`.
    """
    labels = classes.tolist()
    positions = {label: index for index, label in enumerate(labels)}
    pairs = Counter(zip(map(positions.get, true), map(positions.get, predicted)))
    merged = len(labels) > MAX_CLASSES_SHOWN + 1
    kept = list(range(len(labels)))
    if merged:
        frequencies: Counter[int | None] = Counter()
        for (index, _), count in pairs.items():
            frequencies[index] += count
        kept = sorted(sorted(kept, key=lambda index: -frequencies[index])[:MAX_CLASSES_SHOWN])
    names = [str(labels[index]) for index in kept]
    if merged:
        names.append(f"other ({len(labels) - len(kept):,} classes)")
    rows = {index: row for row, index in enumerate(kept)}
    counts = np.zeros((len(names), len(names)), dtype=np.int64)
    for (index, other), count in pairs.items():
        if index is not None and other is not None:
            counts[rows.get(index, len(kept)), rows.get(other, len(kept))] += count
    return names, counts, merged


def draw_confusion_matrix(ax: Axes, names: Sequence[str], counts: HostArray, *, merged: bool = False) -> None:
    """Draw a confusion matrix with a colour bar; counts are written into the cells where they are readable.

    If the last class is `merged` of several, its counts do not determine the colours of the others.
    """
    largest = max(1, int((counts[:-1, :-1] if merged else counts).max()))
    image = ax.imshow(counts, cmap="Blues", vmin=0, vmax=largest)
    extend = "max" if counts.max() > largest else "neither"
    ax.figure.colorbar(image, ax=ax, extend=extend, ticks=MaxNLocator("auto", integer=True))
    _write_names(ax, names)


def _write_names(ax: Axes, names: Sequence[str]) -> None:
    """Write the names of the classes beside and below the matrix, the same text at both."""
    height = ax.figure.bbox.height / pixels_per_point(ax)
    pitch = 0.55 * height / len(names)  # about what the layout will give to a row
    size = float(np.clip(0.8 * pitch, 5.0, 10.0))
    width, n_lines, rotation = 0.9 * pitch, 1, "horizontal"
    if max(text_width(one_line(name), size) for name in names) > width:
        if len(names) <= MAX_CLASSES_WITH_WRAPPED_NAMES:
            n_lines = 3
        else:
            width, rotation = MAX_PART_OF_NAMES * height, "vertical"
            n_lines = int(np.clip(pitch / (1.3 * size), 1, 2))
    labels = fit_names(names, width, size, n_lines)
    places = np.arange(len(names))
    ax.set_xticks(places, labels, rotation=rotation, fontsize=size)
    ax.set_yticks(places, labels, fontsize=size)


def write_counts(ax: Axes, counts: HostArray) -> None:
    """Write the counts into the cells of a confusion matrix, as large as fits its size now."""
    pitch = ax.get_window_extent().height / pixels_per_point(ax) / len(counts)
    texts = [f"{count:,}" for count in counts.ravel()]
    widest = max(text_width(text, 10.0) for text in texts) / 10.0
    size = min(10.0, 0.55 * pitch, 0.88 * pitch / widest)
    if size < MIN_POINTS_OF_COUNTS:
        return
    (image,) = ax.images
    assert image.norm.vmax is not None
    for (row, column), text in zip(np.ndindex(counts.shape), texts):
        is_dark = 2 * counts[row, column] > image.norm.vmax
        colour = image.cmap(0.0 if is_dark else 1.0)
        ax.text(column, row, text, color=colour, fontsize=size, ha="center", va="center")
