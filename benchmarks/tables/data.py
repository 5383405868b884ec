"""Tables to learn from, and the rows that are held out of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import polars as pl

from benchmarks.tables.target_lists import Entry
from mlp_xp._arrays import HostArray
from mlp_xp.tables import DataError, Schema, learn_schema
from mlp_xp.tables._reading import read_table
from mlp_xp.tables._rows import LabelledRows, hold_out
from mlp_xp.tables._targets import find_target

HELD_OUT = 0.2
"""Fraction of the rows that is held out, as the command ``mlp-xp train`` does."""


class Rows(NamedTuple):
    """Rows of a table with their targets.

    Attributes
    ----------
    raw : polars.DataFrame
        The features as they are in the file.
    typed : polars.DataFrame
        The features that the schema of the whole table keeps: float64, text for categories, null where a
        value is missing.
    y : ndarray of shape (n_samples,)
    """

    raw: pl.DataFrame
    typed: pl.DataFrame
    y: HostArray

    def take(self, indices: HostArray) -> Rows:
        """Return the rows at these indices."""
        return Rows(self.raw[indices], self.typed[indices], self.y[indices])


@dataclass(frozen=True)
class Table:
    """A table's rows that have a target, and its task."""

    name: str
    target: str
    task: str
    rows: Rows
    schema: Schema

    def split(self, seed: int) -> tuple[Rows, Rows]:
        """Return the rows to train on and those held out, as ``mlp-xp train`` with that seed splits them."""
        y = self.rows.y
        indices = LabelledRows(pl.DataFrame({"row": np.arange(len(y))}), y)
        training, held = hold_out(indices, self.task, HELD_OUT, seed)
        assert held is not None
        return self.rows.take(training.frame["row"].to_numpy()), self.rows.take(held.frame["row"].to_numpy())


def load_table(entry: Entry) -> Table:
    """Read a table that a list names.

    Raises
    ------
    DataError
        If the file cannot be read, a column is unknown, the target does not fit the task, or there are too
        few rows.
    """
    raw = read_table(entry.path)  # names the file in its errors
    try:
        schema = learn_schema(raw, entry.target, task=entry.task, drop=entry.drop)
        values = schema.read_target(raw.frame)
        is_known = values.is_not_null()
        frame = raw.frame.filter(is_known)
        target = find_target(values.filter(is_known), entry.task)
        rows = Rows(frame.drop(entry.target, *entry.drop), schema.read(frame), target.values)
        table = Table(entry.name, entry.target, target.task, rows, schema)
        table.split(0)
    except DataError as error:
        raise DataError(f"{entry.path}: {error}") from error
    return table
