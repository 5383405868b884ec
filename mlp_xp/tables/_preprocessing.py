"""From the typed columns of a table to the network's inputs, by statistics that are plain values.

Missing values are filled, numbers scaled, categories one-hot encoded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from mlp_xp._arrays import HostArray
from mlp_xp._processes import shared
from mlp_xp.tables._common import DataError
from mlp_xp.tables._learning import MAX_CATEGORIES, N_CATEGORIES_ALWAYS_ALLOWED, min_frequency
from mlp_xp.tables._parts import map_columns, total
from mlp_xp.tables._schema import Schema, WrongCells

MAX_ENCODED_BYTES = 2**29
"""Maximum size of all encoded training rows; where it would be more, fewer categories have columns."""

MIN_KNOTS = 3
"""Minimum number of ends of intervals: one interval alone is as good as the scaled number."""

MIN_CATEGORIES = 2
"""Number of categories of a column that always have columns of their own."""


class NumberInputs(NamedTuple):
    """What inputs numbers become.

    Attributes
    ----------
    limit : float or None
        As of `Scaling`.
    min_intervals, max_intervals : int
        Number of intervals with equally many training rows, each of which is an input: of few rows, and of
        many.
    rows_per_interval : int
        Number of rows of an interval between these limits.
    """

    limit: float | None = None
    min_intervals: int = 0
    max_intervals: int = 0
    rows_per_interval: int = 1

    def n_intervals(self, n_rows: int) -> int:
        """Return the number of intervals of a column of so many rows."""
        return min(self.max_intervals, max(self.min_intervals, n_rows // self.rows_per_interval))


AS_THEY_ARE = NumberInputs()
"""One input for a number: scaled to mean 0 and variance 1."""


@dataclass(frozen=True)
class Scaling:
    """How a column of numbers becomes inputs.

    Attributes
    ----------
    fill : float
        What stands for a missing number: the median.
    mean, scale : float
        The first input is ``z = (number - mean) / scale``.
    limit : float or None
        What that input stays below, smoothly: it is ``z / sqrt(1 + (z / limit)**2)``. None for no limit.
    knots : tuple of float
        The ends of intervals, each of which has an input: -0.5 below the interval, 0.5 above, in between
        linear in the number.

    References
    ----------
    Smooth limits: D. Holzmueller et al., "Better by default: strong pre-tuned MLPs and boosted trees on
    tabular data", NeurIPS 2024. Intervals: Y. Gorishniy et al., "On embeddings for numerical features in
    tabular deep learning", NeurIPS 2022, section 3.2.
    """

    fill: float
    mean: float
    scale: float
    limit: float | None = None
    knots: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        # A median is within one standard deviation of the mean, of subnormal numbers but for rounding.
        if not (self.scale > 0.0 and abs(self.fill - self.mean) / self.scale <= 2.0):
            raise ValueError(f"numbers cannot be filled and scaled by {self}")
        if self.limit is not None and not self.limit > 0.0:
            raise ValueError(f"a limit must be > 0, got {self.limit}")
        widths = [high / 2.0 - low / 2.0 for low, high in pairwise(self.knots)]
        if len(self.knots) == 1 or not all(width > 0.0 for width in widths):
            raise ValueError("the ends of intervals must be two or more, and ascend")

    @property
    def width(self) -> int:
        """Number of inputs."""
        return max(1, len(self.knots))

    def transform(self, column: pl.Series) -> HostArray:
        """Return the inputs of a column, of shape (n_samples, width), in float64."""
        values = column.fill_null(self.fill).to_numpy()
        inputs = np.empty((len(values), self.width))
        inputs[:, 0] = (values - self.mean) / self.scale
        if self.limit is not None:
            inputs[:, 0] *= self.limit / np.hypot(self.limit, inputs[:, 0])
        if self.knots:
            # Halves: the difference of two numbers may overflow.
            low, high = np.array(self.knots[:-1]) / 2.0, np.array(self.knots[1:]) / 2.0
            inside = np.clip(values[:, None] / 2.0, low, high)
            inputs[:, 1:] = (inside - low) / (high - low) - 0.5
        return inputs

    def input_names(self, name: str) -> list[str]:
        """Return the names of the inputs of the column with this name."""
        intervals = [f"{name}_{low:.6g}_to_{high:.6g}" for low, high in pairwise(self.knots)]
        return [name, *intervals]


@dataclass(frozen=True)
class Encoding:
    """How a column of categories becomes inputs: one for each category, which is 1 in its rows and else 0.

    Attributes
    ----------
    values : tuple of str
        The categories with inputs of their own.
    has_rare : bool
        Whether the next input is for all others, also those that were not in the training rows.
    has_missing : bool
        Whether the last input is for a missing value. Without it `commonest` stands for one.
    commonest : str
    """

    values: tuple[str, ...]
    has_rare: bool
    has_missing: bool
    commonest: str

    def __post_init__(self) -> None:
        if len(set(self.values)) < len(self.values) or self.commonest not in ("", *self.values):
            raise ValueError("the categories of a column must differ, and the commonest must be one of them")

    @property
    def width(self) -> int:
        """Number of inputs."""
        return len(self.values) + self.has_rare + self.has_missing

    def codes(self, column: pl.Series) -> HostArray:
        """Return the index of the input that is 1 in each row; -1 where none is."""
        n_values = len(self.values)
        known = column.cast(pl.Enum(list(self.values)), strict=False).to_physical().cast(pl.Int64)
        codes = known.fill_null(n_values if self.has_rare else -1).to_numpy(writable=True)
        if column.null_count():
            missing = n_values + self.has_rare
            if not self.has_missing:
                missing = self.values.index(self.commonest) if self.commonest else -1
            codes[column.is_null().to_numpy()] = missing
        return codes


@dataclass(frozen=True)
class Preprocessor:
    """What turns the columns of a table into the network's inputs.

    Attributes
    ----------
    numbers : dict of Scaling
        By column: numbers, dates and truth values. Their inputs come first.
    categories : dict of Encoding
    """

    numbers: Mapping[str, Scaling]
    categories: Mapping[str, Encoding]

    @classmethod
    def fit(
        cls, schema: Schema, frame: pl.DataFrame, dtype: Any, inputs: NumberInputs = AS_THEY_ARE
    ) -> Preprocessor:
        """Return the preprocessor of the typed columns of the training rows, for inputs of `dtype`.

        Of several processes each has a part of the rows; what is learnt is of all.
        """
        of_numbers = {name: frame[name] for name in schema.names("number", "date", "truth")}
        of_categories = {name: frame[name] for name in schema.names("category")}
        n_rows, most = total("the training rows", len(frame)), MAX_CATEGORIES
        counts = map_columns("categories", of_categories, _counts)
        while True:
            numbers = map_columns("the scaling of numbers", of_numbers, partial(_scaling, inputs=inputs))
            categories = {name: _encoding(counted, most) for name, counted in counts.items()}
            made = cls(numbers, categories)
            n_bytes = n_rows * made.width * np.dtype(dtype).itemsize
            if n_bytes <= MAX_ENCODED_BYTES or (most <= MIN_CATEGORIES and not inputs.max_intervals):
                return made
            most = max(MIN_CATEGORIES, most // 2)
            inputs = inputs._replace(max_intervals=inputs.max_intervals // 2)

    @cached_property
    def width(self) -> int:
        """Number of inputs."""
        columns: list[Scaling | Encoding] = [*self.numbers.values(), *self.categories.values()]
        return sum(column.width for column in columns)

    @property
    def input_names(self) -> list[str]:
        """Names of the inputs: of the column, and the category."""
        of_numbers = (scaling.input_names(name) for name, scaling in self.numbers.items())
        return list(chain(*of_numbers, *(self._names(name) for name in self.categories)))

    def _names(self, name: str) -> Iterator[str]:
        encoding = self.categories[name]
        values = (*encoding.values, *["(rare)"] * encoding.has_rare, *["(missing)"] * encoding.has_missing)
        return (f"{name}_{value}" for value in values)

    def filled(self) -> dict[str, float | str]:
        """Return what stands for a missing value in each column; "" for a category of its own."""
        of_categories = {
            name: "" if encoding.has_missing else encoding.commonest
            for name, encoding in self.categories.items()
        }
        return {**{name: scaling.fill for name, scaling in self.numbers.items()}, **of_categories}

    def check(self, frame: pl.DataFrame, dtype: Any, *, together: bool = False) -> None:
        """Raise a DataError that names the numbers which `dtype` cannot hold, before or after scaling.

        `together` is as of `Schema.read`.
        """
        limit = smallest_refused(dtype)
        too_large = {}
        for name, scaling in self.numbers.items():
            scaled = (frame[name] - scaling.mean) / scaling.scale
            too_large[name] = (frame[name].abs() >= limit) | (scaled.abs() >= limit)
        _raise_if_any(frame, too_large, dtype, together)

    def transform(self, frame: pl.DataFrame, dtype: Any) -> HostArray:
        """Return the inputs of the rows of typed columns, of shape (n_samples, width)."""
        inputs = np.zeros((len(frame), self.width), dtype=dtype)
        start, rows = 0, np.arange(len(frame))
        for name, scaling in self.numbers.items():
            inputs[:, start : start + scaling.width] = scaling.transform(frame[name])
            start += scaling.width
        for name, encoding in self.categories.items():
            codes = encoding.codes(frame[name])
            known = codes >= 0
            inputs[rows[known], start + codes[known]] = 1.0
            start += encoding.width
        return inputs


def smallest_refused(dtype: Any) -> float:
    """Return from which magnitude on numbers are refused: `dtype` or float64 cannot hold differences."""
    return min(float(np.finfo(dtype).max), float(np.finfo(np.float64).max) / 2.0)


def check_magnitudes(frame: pl.DataFrame, names: list[str], dtype: Any) -> None:
    """Raise a DataError that names the numbers of some columns which `dtype` cannot hold, in any process."""
    limit = smallest_refused(dtype)
    _raise_if_any(frame, {name: frame[name].abs() >= limit for name in names}, dtype, together=True)


def _raise_if_any(
    frame: pl.DataFrame, too_large: Mapping[str, pl.Series], dtype: Any, together: bool
) -> None:
    """Raise a DataError that names the cells which are marked as too large for a dtype, if there are any."""
    found = [
        WrongCells.of(frame[name], mask.fill_null(False), "smaller numbers") if mask.any() else None
        for name, mask in too_large.items()
    ]
    wrong = [cells for cells in found if cells is not None]
    if together:
        wrong = WrongCells.of_parts(found, len(frame))
    if wrong:
        larger = "" if np.dtype(dtype) == np.float64 else "train with --dtype float64 for larger ones; "
        message = (
            f"the column{'s' * (len(wrong) > 1)} {'; '.join(map(str, wrong))}, too large for "
            f"{np.dtype(dtype).name} ({larger}--na names numbers that mean a missing value)"
        )
        raise shared(DataError(message)) if together else DataError(message)


def mean_and_scale(values: HostArray, weight: HostArray | None = None) -> tuple[float, float]:
    """Return the mean and the standard deviation of finite values of any magnitude, and weights of any.

    For a constant, whose deviation is zero but for rounding, that is 1 instead, or for a very large one more,
    so that scaling leaves little of the rounding.
    """
    unit = magnitude(values)
    values = values / unit
    weight = None if weight is None else weight / magnitude(weight)
    mean = float(np.average(values, weights=weight))
    variance = float(np.average((values - mean) ** 2, weights=weight))
    # As scikit-learn's StandardScaler: a constant has a variance by the rounding of its mean.
    rounding = np.finfo(np.float64).eps * len(values)
    is_constant = variance <= rounding * variance + (rounding * mean) ** 2
    if is_constant:
        return mean * unit, max(1.0, math.sqrt(np.finfo(np.float64).eps) * unit)
    return mean * unit, max(math.sqrt(variance) * unit, float(np.finfo(np.float64).smallest_subnormal))


def magnitude(values: HostArray) -> float:
    """Return the largest power of two that is not above all values; 1 if there is none."""
    largest = float(np.max(np.abs(values), initial=0.0))
    return 1.0 if largest == 0.0 else max(math.ldexp(0.5, math.frexp(largest)[1]), np.finfo(np.float64).tiny)


def _scaling(_: str, column: pl.Series, inputs: NumberInputs) -> Scaling:
    """Return the scaling of a column by its known values; of one without any it is none."""
    known = column.drop_nulls().to_numpy()
    if not len(known):
        return Scaling(0.0, 0.0, 1.0)
    unit = magnitude(known)
    fill = float(np.median(known / unit)) * unit
    mean, scale = mean_and_scale(column.fill_null(fill).to_numpy())
    return Scaling(fill, mean, scale, inputs.limit, _knots(known, inputs.n_intervals(len(column))))


def _knots(values: HostArray, n_intervals: int) -> tuple[float, ...]:
    """Return the ends of intervals with equally many values; none where a line says as much."""
    quantiles = np.quantile(values, np.linspace(0.0, 1.0, n_intervals + 1), method="closest_observation")
    knots = 2.0 * np.unique(quantiles / 2.0)  # halves, as the width of an interval must not overflow
    return tuple(knots.tolist()) if len(knots) >= MIN_KNOTS else ()


class _Counted(NamedTuple):
    """The categories of a column with their numbers of rows, the most frequent first, then by name.

    There are as many as can have inputs, and one more if there are more.
    """

    counts: pl.DataFrame
    n_rows: int
    has_missing: bool


def _counts(_: str, column: pl.Series) -> _Counted:
    counted = column.drop_nulls().rename("value").value_counts(name="count")
    counts = counted.sort("count", "value", descending=[True, False]).head(MAX_CATEGORIES + 1)
    return _Counted(counts, len(column), column.null_count() > 0)


def _encoding(counted: _Counted, most: int) -> Encoding:
    """Return the encoding of a column of categories, of which `most` have inputs at most."""
    kept = counts = counted.counts
    if len(counts) > N_CATEGORIES_ALWAYS_ALLOWED:
        frequent = counts.filter(counts["count"] >= min_frequency(counted.n_rows))
        kept = frequent if len(frequent) else counts  # of a column that is used although all are rare
    kept = kept.head(most)
    return Encoding(
        values=tuple(sorted(kept["value"].to_list())),
        has_rare=len(kept) < len(counts),
        has_missing=counted.has_missing,
        commonest=kept["value"][0] if len(kept) else "",
    )
