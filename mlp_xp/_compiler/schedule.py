"""The schedule: a topological order of the values, in which updates overwrite state arrays in place."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import cached_property

from mlp_xp._compiler.graph import VIEW_KINDS, NotRecordableError, Value, find_users, reachable
from mlp_xp._compiler.trace import TracedFunction


@dataclass
class Schedule:
    """The values in the order of their computation, and where the updates are written.

    Attributes
    ----------
    values : list of Value
    in_place : dict of int to int
        By the value's id, the target (see `StateLayout`) that it is computed in.
    copies : list of (int, Value)
        Targets that a value is copied to at the end, because it cannot be computed there.
    """

    values: list[Value]
    in_place: dict[int, int]
    copies: list[tuple[int, Value]]

    @cached_property
    def index_of(self) -> dict[int, int]:
        """The index of each value, by its id."""
        return {id(value): index for index, value in enumerate(self.values)}


def make_schedule(traced: TracedFunction) -> Schedule:
    """Order the reachable values, with as many updates in place as possible."""
    values = reachable(traced.roots)
    users = find_users(values)
    targets: dict[int, int] = {}
    copies = []
    for target, value in traced.updates.items():
        # Other operations cannot write to an array that they read.
        if value.kind in ("map", "accumulate") and id(value) not in targets:
            targets[id(value)] = target
        else:
            copies.append((target, value))
    if any(value.base.kind in ("state", "state_group") for _, value in copies):
        raise NotRecordableError("state arrays that are swapped")
    readers = _anti_dependencies(traced, values, targets)
    clusters = _update_clusters(values, users, targets, traced)
    # First with uninterrupted clusters; if these make a cycle, with the anti-dependencies alone.
    for dependencies in (_with_cluster_inputs(values, readers, clusters), readers):
        ordered = _topological_sort(values, dependencies, clusters)
        if ordered is not None:
            return Schedule(ordered, targets, copies)
    # A cycle: an old value is read after its update. Compute all updates elsewhere, and copy them.
    ordered = _topological_sort(values, {}, clusters)
    if ordered is None:
        raise NotRecordableError("values that depend on each other")
    return Schedule(ordered, {}, list(traced.updates.items()))


def _state_arrays(traced: TracedFunction, value: Value) -> list[int]:
    """List the state arrays whose memory a value is, or is a view of."""
    base = value.base
    if base.kind == "state":
        return [base.detail]
    return traced.layout.groups[base.detail] if base.kind == "state_group" else []


def _anti_dependencies(
    traced: TracedFunction, values: list[Value], targets: dict[int, int]
) -> dict[int, list[Value]]:
    """Map the id of each value computed in place to the values that read what it overwrites.

    These must be computed before it (write-after-read dependencies).
    """
    readers_of_array: dict[int, list[Value]] = {}
    for value in values:
        if value.kind in VIEW_KINDS:
            continue
        for operand in value.arrays:
            for array in _state_arrays(traced, operand):
                readers_of_array.setdefault(array, []).append(value)
    readers = {}
    for value in values:
        if id(value) in targets:
            distinct = {
                id(reader): reader
                for array in traced.layout.members(targets[id(value)])
                for reader in readers_of_array.get(array, [])
                if reader is not value
            }
            readers[id(value)] = list(distinct.values())
    return readers


def _update_clusters(
    values: list[Value], users: dict[int, list[Value]], targets: dict[int, int], traced: TracedFunction
) -> dict[int, int]:
    """Map the id of each elementwise value that only updates depend on to the number of its cluster.

    A cluster is a connected set of such values. It is scheduled without interruption, so that it can become
    one fused region, which needs no whole arrays for what is between.
    """
    results = set(map(id, traced.computed_results))
    cluster_of: dict[int, int] = {}
    for cluster, value in enumerate(reversed(values)):
        its_users = users.get(id(value), [])
        if value.kind != "map" or value.shape == () or id(value) in results:
            continue
        if all(id(user) in cluster_of for user in its_users) and (its_users or id(value) in targets):
            merged = {cluster_of[id(user)] for user in its_users}
            for key, other in cluster_of.items():
                if other in merged:
                    cluster_of[key] = cluster
            cluster_of[id(value)] = cluster
    return cluster_of


def _with_cluster_inputs(
    values: list[Value], readers: dict[int, list[Value]], clusters: dict[int, int]
) -> dict[int, list[Value]]:
    """Add dependencies, so that a cluster begins only when all of its inputs are computed."""
    inputs: dict[int, dict[int, Value]] = {}
    for value in values:
        if id(value) in clusters:
            cluster = clusters[id(value)]
            for earlier in (*value.arrays, *readers.get(id(value), [])):
                if clusters.get(id(earlier)) != cluster:
                    inputs.setdefault(cluster, {})[id(earlier)] = earlier
    dependencies = dict(readers)
    for value in values:
        if id(value) in clusters:
            cluster_inputs = inputs.get(clusters[id(value)], {})
            dependencies[id(value)] = [*readers.get(id(value), []), *cluster_inputs.values()]
    return dependencies


def _topological_sort(
    values: list[Value], dependencies: dict[int, list[Value]], clusters: dict[int, int]
) -> list[Value] | None:
    """Sort by priority so that values follow their operands and dependencies; None if there is a cycle."""
    n_missing: dict[int, int] = {}
    followers: dict[int, list[Value]] = {}
    for value in values:
        earlier = {id(other) for other in (*value.arrays, *dependencies.get(id(value), []))}
        n_missing[id(value)] = len(earlier)
        for key in earlier:
            followers.setdefault(key, []).append(value)
    index_of = {id(value): index for index, value in enumerate(values)}

    def priority(value: Value) -> tuple[float, ...]:
        # Updates first, so that the buffers of gradients are free for other values.
        in_cluster = (0, clusters[id(value)]) if id(value) in clusters else (1, 0)
        return (*in_cluster, value.priority, index_of[id(value)])

    heap = [(priority(value), index) for index, value in enumerate(values) if not n_missing[id(value)]]
    heapq.heapify(heap)
    ordered = []
    while heap:
        value = values[heapq.heappop(heap)[1]]
        ordered.append(value)
        for follower in followers.get(id(value), []):
            n_missing[id(follower)] -= 1
            if not n_missing[id(follower)]:
                heapq.heappush(heap, (priority(follower), index_of[id(follower)]))
    return ordered if len(ordered) == len(values) else None
