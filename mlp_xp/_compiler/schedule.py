"""In which order values are computed: updates in place as early as nobody needs what they overwrite."""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass

from mlp_xp._compiler.graph import NotRecordableError, Value
from mlp_xp._compiler.passes import Record, live, users

VIEWS = ("transpose", "reshape", "part")
SOURCES = ("owned", "arena", "given", "host")


def base(value: Value) -> Value:
    """Return the value whose memory this one looks at."""
    while value.kind in VIEWS:
        value = value.operands[0]
    return value


@dataclass
class Schedule:
    """The values in the order they are computed, and which of them overwrite owned arrays.

    Attributes
    ----------
    values : list of Value
    in_place : dict of int to int
        By the value's id, the owned array it is written into, or -1 - group.
    copies : list of (int, Value)
        Owned arrays that a value is copied into at the end.
    """

    values: list[Value]
    in_place: dict[int, int]
    copies: list[tuple[int, Value]]


def schedule(record: Record) -> Schedule:
    """Order the values that a record asks for."""
    values = live(record.roots)
    of = users(values)
    targets: dict[int, int] = {}
    copies = []
    for target, value in record.updates.items():
        if value.kind in ("map", "accumulate") and id(value) not in targets:
            targets[id(value)] = target
        else:
            copies.append((target, value))
    if copies and any(base(value).kind in ("owned", "arena") for _, value in copies):
        raise NotRecordableError("owned arrays that change places")
    after = _overwriting(record, values, of, targets)
    clusters = _clusters(values, of, targets, record)
    for edges in (_gathered(values, after, clusters), after):
        ordered = _sorted(values, edges, clusters)
        if ordered is not None:
            return Schedule(ordered, targets, copies)
    # What is overwritten is needed afterwards: write elsewhere, and copy.
    ordered = _sorted(values, {}, clusters)
    if ordered is None:
        raise NotRecordableError("values that need each other")
    return Schedule(ordered, {}, list(record.updates.items()))


def _storage(record: Record, value: Value) -> set[int]:
    """Return the owned arrays that a value is, or looks at."""
    value = base(value)
    if value.kind == "owned":
        return {value.detail}
    return set(record.layout.groups[value.detail]) if value.kind == "arena" else set()


def _overwriting(
    record: Record, values: list[Value], of: dict[int, list[Value]], targets: dict[int, int]
) -> dict[int, list[Value]]:
    """List, by the id of each value written in place, who has to read first."""
    readers: dict[int, list[Value]] = {}
    for value in values:
        if value.kind in VIEWS:
            continue
        for operand in value.arrays:
            for array in _storage(record, operand):
                readers.setdefault(array, []).append(value)
    groups = record.layout.groups
    after = {}
    for value in values:
        if id(value) in targets:
            target = targets[id(value)]
            arrays: Iterable[int] = [target] if target >= 0 else groups[-1 - target]
            first = {
                id(reader): reader
                for array in arrays
                for reader in readers.get(array, [])
                if reader is not value
            }
            after[id(value)] = list(first.values())
    return after


def _clusters(
    values: list[Value], of: dict[int, list[Value]], targets: dict[int, int], record: Record
) -> dict[int, int]:
    """Tell apart, by the values' ids, the sets of elementwise work that end in owned arrays alone."""
    asked = {id(value) for value in record.results if isinstance(value, Value)}
    member: dict[int, int] = {}
    for number, value in enumerate(reversed(values)):
        mine = of.get(id(value), [])
        if value.kind != "map" or value.shape == () or id(value) in asked:
            continue
        if all(id(user) in member for user in mine) and (mine or id(value) in targets):
            joined = {member[id(user)] for user in mine}
            for key, cluster in member.items():
                if cluster in joined:
                    member[key] = number
            member[id(value)] = number
    return member


def _gathered(
    values: list[Value], after: dict[int, list[Value]], clusters: dict[int, int]
) -> dict[int, list[Value]]:
    """Let a cluster begin when all of it can go on to its end."""
    needed: dict[int, dict[int, Value]] = {}
    for value in values:
        if id(value) in clusters:
            cluster = clusters[id(value)]
            for first in (*value.arrays, *after.get(id(value), [])):
                if clusters.get(id(first)) != cluster:
                    needed.setdefault(cluster, {})[id(first)] = first
    edges = dict(after)
    for value in values:
        if id(value) in clusters:
            outside = needed.get(clusters[id(value)], {})
            edges[id(value)] = [*after.get(id(value), []), *outside.values()]
    return edges


def _sorted(
    values: list[Value], after: dict[int, list[Value]], clusters: dict[int, int]
) -> list[Value] | None:
    """Sort so that each value comes after its operands and after `after`; None where that cannot be."""
    waiting: dict[int, int] = {}
    followers: dict[int, list[Value]] = {}
    for value in values:
        before = {id(first): first for first in (*value.arrays, *after.get(id(value), []))}
        waiting[id(value)] = len(before)
        for first in before:
            followers.setdefault(first, []).append(value)
    number = {id(value): index for index, value in enumerate(values)}

    def rank(value: Value) -> tuple[float, ...]:
        urgent = (0, clusters[id(value)]) if id(value) in clusters else (1, 0)
        return (*urgent, value.order, number[id(value)])

    heap = [(rank(value), index) for index, value in enumerate(values) if not waiting[id(value)]]
    heapq.heapify(heap)
    ordered = []
    while heap:
        value = values[heapq.heappop(heap)[1]]
        ordered.append(value)
        for follower in followers.get(id(value), []):
            waiting[id(follower)] -= 1
            if not waiting[id(follower)]:
                heapq.heappush(heap, (rank(follower), number[id(follower)]))
    return ordered if len(ordered) == len(values) else None
