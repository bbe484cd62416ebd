"""The multiple-choice knapsack problem: of every class exactly one item, the least total cost, the total weight within a capacity.

First the linear relaxation, which the lower convex hulls of the classes solve greedily (Sinha and Zoltners, Operations Research 27,
1979): it gives a selection that lacks at most one step, and with it the price of a unit of weight. Then, class by class, all partial
selections that are not dominated (Nemhauser and Ullmann, Management Science 15, 1969), less those whose Lagrangian bound shows that
they cannot end below the greedy selection. With hundreds of classes the two lie so close that few survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Indices = NDArray[np.int64]

# The total cost is at most this share above the least possible one: far below what any measured cost is exact to.
TOLERANCE = 1e-5
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Items:
    """One class.

    Attributes:
        weights, costs: [n], finite; weights not below zero.
    """

    weights: Floats
    costs: Floats

    def take(self, indices: Indices) -> Items:
        return Items(self.weights[indices], self.costs[indices])


def select(classes: Sequence[Items], capacity: float) -> list[int] | None:
    """The item of each class, as its index; None where the lightest of each are too heavy together."""
    kept = [pareto(items) for items in classes]
    fronts = [items.take(indices) for items, indices in zip(classes, kept, strict=True)]
    room = capacity + _ROUNDING * abs(capacity)
    if sum(front.weights[0] for front in fronts) > room:
        return None
    chosen, price = _greedy(fronts, room)
    if price > 0:
        cost = sum(front.costs[n] for front, n in zip(fronts, chosen, strict=True))
        chosen = _below(fronts, room, price, float(cost) * (1 - TOLERANCE)) or chosen
    return [int(indices[n]) for indices, n in zip(kept, chosen, strict=True)]


def pareto(items: Items) -> Indices:
    """Items that none surpasses in weight and cost: by rising weight and falling cost; the first of equals."""
    order = np.lexsort((items.costs, items.weights))
    costs = items.costs[order]
    is_better = np.ones(len(order), bool)
    is_better[1:] = costs[1:] < np.minimum.accumulate(costs)[:-1]
    return order[is_better]


def hull(front: Items) -> Indices:
    """The corners of the lower convex hull of a Pareto front, by rising weight."""
    corners: list[int] = []
    for n in range(len(front.weights)):
        while len(corners) > 1 and _saving(front, corners[-2], corners[-1]) <= _saving(front, corners[-1], n):
            corners.pop()
        corners.append(n)
    return np.array(corners)


def _saving(front: Items, start: int, stop: int) -> float:
    """Cost saved for each unit of weight in the step from one item to another."""
    return float((front.costs[start] - front.costs[stop]) / (front.weights[stop] - front.weights[start]))


def _greedy(fronts: Sequence[Items], room: float) -> tuple[list[int], float]:
    """From the lightest items, the steps along the hulls that save most per weight, as far as they fit; and the saving of the first
    that does not: the price of a unit of weight, or 0 where all fit."""
    steps = [
        (-_saving(front, start, stop), number, start, stop)
        for number, front in enumerate(fronts)
        for start, stop in pairwise(hull(front).tolist())
    ]
    chosen, price = [0] * len(fronts), 0.0
    left = room - sum(float(front.weights[0]) for front in fronts)
    for saving, number, start, stop in sorted(steps):
        weight = float(fronts[number].weights[stop] - fronts[number].weights[start])
        if chosen[number] == start and weight <= left:
            chosen[number] = stop
            left -= weight
        else:
            price = price or -saving
    return chosen, price


def _below(fronts: Sequence[Items], room: float, price: float, limit: float) -> list[int] | None:
    """The selection of least cost, if that is below the limit.

    A partial selection of cost c and weight w ends no lower than c + sum over the other classes of min(cost + price * weight)
    - price * (room - w), whatever is added to it.
    """
    lightest = _sums_behind([float(front.weights[0]) for front in fronts])
    least = _sums_behind([float((front.costs + price * front.weights).min()) for front in fronts])
    partial = Items(np.zeros(1), np.zeros(1))
    trail = []
    for number, front in enumerate(fronts):
        longer = Items((partial.weights[:, None] + front.weights).reshape(-1), (partial.costs[:, None] + front.costs).reshape(-1))
        bounds = longer.costs + least[number] - price * (room - longer.weights)
        hopeful = np.flatnonzero((longer.weights + lightest[number] <= room) & (bounds < limit))
        if not len(hopeful):
            return None
        kept = hopeful[pareto(longer.take(hopeful))]
        trail.append(np.divmod(kept, len(front.weights)))
        partial = longer.take(kept)
    state = int(partial.costs.argmin())
    if partial.costs[state] >= limit:
        return None
    chosen = []
    for parents, items in reversed(trail):
        chosen.append(int(items[state]))
        state = int(parents[state])
    return chosen[::-1]


def _sums_behind(values: list[float]) -> Floats:
    """For each place the sum of the values after it."""
    return np.append(np.cumsum(values[::-1])[::-1], 0.0)[1:]
