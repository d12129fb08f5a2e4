"""Tokens sent to their experts by all-to-alls over the devices that hold them: Rajbhandari et al. (2022).

arXiv:2201.05596. Each device sorts its tokens by the expert they ask for and sends each device those for its
experts, as many at a time as there is room for. What a pair of devices has no room for goes in further rounds of the
same size, as many as the fullest pair needs: none where loads are near the mean. So no token is dropped, and memory
does not grow with the loads.

Devices along mesh axes over which experts are split and tokens are not (`tensor`, where it does not divide the length)
have the same tokens. Each sends those whose experts are at its own place of these axes, so none is sent twice (the
duplicate token dropping of Singh et al., 2023, arXiv:2303.06318), and the sums are added up over the axes.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import AbstractMesh
from jaxtrain_kernels.varying import vary, varying
from jaxtyping import Array, Float, Int

from jaxtrain.axes import EXPERTS
from jaxtrain.nn.moe.dispatch.all_to_all import all_to_all, check_near
from jaxtrain.nn.moe.dispatch.base import Dispatch
from jaxtrain.nn.moe.dispatch.dropless import Dropless, sum_over_devices
from jaxtrain.nn.moe.dispatch.region import Load, Split, in_region_of_tokens
from jaxtrain.nn.moe.dispatch.rounds import further_rounds, zeros
from jaxtrain.nn.moe.dispatch.rows import computed, moved, places_of
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing
from jaxtrain.ranges import check_at_least_one
from jaxtrain.shapes import ModelState
from jaxtrain.sharding import RULES


@dataclass(frozen=True, kw_only=True, slots=True)
class Exchange(Dispatch):
    """Tokens are sent to the devices of their experts, and the results back, by an all-to-all each way. It drops none.

    In a round a pair of devices has room for `factor` times the rows of balanced experts. Tokens go in `pieces`, of
    which one is computed while another is sent. `near` devices along `mesh.expert` have fast links: tokens are
    exchanged between those first.
    """

    factor: float = 1.25
    pieces: int = 1
    near: int = 1
    paper: ClassVar[str] = "arXiv:2201.05596"

    def __post_init__(self):
        check_at_least_one(self, "pieces", "near")
        if not 1.0 <= self.factor < float("inf"):
            raise ValueError(f"factor={self.factor}: must be at least 1, room for the tokens of balanced experts")

    def __call__(self, x: Float[Array, "B L D"], routing: Routing, experts: Experts) -> Float[Array, "B L D"]:
        function = functools.partial(of_device, self, experts, routing.top_k)
        return in_region_of_tokens(function, x, routing, experts)

    def check_mesh(self, mesh: AbstractMesh) -> None:
        last = RULES[EXPERTS][-1]
        check_near(self.near, last, mesh.shape[last])

    def room(self, tokens: int, top_k: int, devices: int) -> int:
        """Return how many rows a device can send another in a round."""
        return math.ceil(tokens * top_k / devices * self.factor)

    def sent(self, load: Load) -> int:
        if load.apart == 1:
            return Dropless().sent(load)
        pieces = math.gcd(self.pieces, load.tokens)
        room = pieces * self.room(load.tokens // pieces, load.top_k, load.apart * load.alike)
        return 2 * (load.apart - 1) * room * load.width + 2 * load.tokens * load.width * (load.alike - 1) // load.alike

    def remark(self, load: Load, value_bytes: int) -> str | None:
        idle = [f"{name}={getattr(self, name)}" for name in ("pieces", "near") if getattr(self, name) > 1]
        if load.apart > 1 or not idle:
            return None
        return f"exchanges nothing on this mesh, where tokens have their experts beside them: {', '.join(idle)} unused"


EXCHANGED = "exchanged"  # the name of what came from other devices, for remat policies


class Plan(NamedTuple):
    """The rows of a piece, sorted by the device and the expert they go to. Row `n` is of token `n // K`."""

    target: Int[Array, "*P N"]  # the device it goes to; one above the last for those that go nowhere
    order: Int[Array, "*P N"]
    place: Int[Array, "*P N"]  # the inverse
    start: Int[Array, "*P X"]  # the place of the first row for each device
    counts: Int[Array, "*P X E"]  # of this device's rows, for each expert of each device
    theirs: Int[Array, "*P X E"]  # of each device's rows, for each expert of this one


def of_device(
    way: Exchange,
    experts: Experts,
    top_k: int,
    arrays: ModelState,
    split: Split,
    x: Float[Array, "T D"],
    numbers: Int[Array, "T K"],
    weights: Float[Array, "T K"],
    *,
    always: bool = True,
) -> Float[Array, "T D"]:
    """Return the sums of a device's tokens over all devices that have experts.

    The first round runs in any case, so that the compiler may run other work beside it; not so without `always`.
    """
    count, devices, tokens = len(jax.tree.leaves(arrays)[0]), size_of(split.apart), len(x)
    if devices == 1:
        return sum_over_devices(experts, arrays, split, x, numbers, weights)
    pieces = math.gcd(way.pieces, tokens)
    most = tokens // pieces * min(numbers.shape[-1], count)  # rows that a pair of devices can have at all
    room = min(way.room(tokens // pieces, top_k, size_of(split.experts)), most)
    swap = functools.partial(all_to_all, axes=split.apart, near=way.near)
    x_PTD, numbers_PTK, weights_PTK = (part.reshape(pieces, tokens // pieces, -1) for part in (x, numbers, weights))
    plans = [_plan(split, swap, piece, count, devices) for piece in numbers_PTK]
    # All vary over the same axes, so that the gradients of what devices share are summed over them once.
    over = frozenset().union(*map(varying, jax.tree.leaves((arrays, x, plans))))
    arrays, x_PTD, weights_PTK, plans = _vary(over, (arrays, x_PTD, weights_PTK, plans))
    one_round = functools.partial(_round, experts, swap, room)
    if always:
        # The pieces do not depend on each other: the compiler may compute one while it sends another.
        parts = zip(x_PTD, weights_PTK, plans, strict=True)
        y_PTD = jnp.stack([one_round(arrays, x_TD, weights_TK, plan, 0) for x_TD, weights_TK, plan in parts])
    else:
        y_PTD = zeros(x_PTD)
    if room < most or not always:
        stacked = jax.tree.map(lambda *of_pieces: jnp.stack(of_pieces), *plans)
        fullest = jax.lax.pmax(jnp.max(jnp.sum(stacked.counts, axis=-1)), tuple(sorted(over)))
        rounds = checkpoint_name(-(-fullest // room), EXCHANGED)
        run = functools.partial(further_rounds, one_round, room, int(always), rounds)
        y_PTD = y_PTD + run(stacked, arrays, x_PTD, weights_PTK)
    y_PTD = jax.lax.psum(y_PTD, split.alike) if split.alike else y_PTD
    return y_PTD.reshape(x.shape)


def _plan(split: Split, swap: Callable, numbers: Int[Array, "T K"], count: int, devices: int) -> Plan:
    """Return where the rows go that ask for experts with these numbers. Each device has `count` experts."""
    numbers_N = numbers.reshape(-1)
    target_N = _target(split, numbers_N // count, devices)
    group_N = jnp.where(target_N < devices, target_N * count + numbers_N % count, devices * count)
    order_N = jnp.argsort(group_N, stable=True)
    groups = jnp.arange(devices * count)
    counts_XE = jnp.sum(group_N[:, None] == groups[None], axis=0, dtype=jnp.int32).reshape(devices, count)
    rows_X = jnp.sum(counts_XE, axis=1)
    theirs_XE = checkpoint_name(swap(counts_XE), EXCHANGED)
    return Plan(target_N, order_N, places_of(order_N), jnp.cumsum(rows_X) - rows_X, counts_XE, theirs_XE)


def _target(split: Split, owner: Int[Array, " N"], devices: int) -> Int[Array, " N"]:
    """Return the index over the axes `apart` of the devices that have the experts.

    It is `devices` for rows that another device sends, at another place of the axes `alike`, and for rows of no expert.
    """
    sends, target, stride, rest = owner < size_of(split.experts), jnp.zeros_like(owner), 1, owner
    for axis in reversed(split.experts):
        rest, at = jnp.divmod(rest, jax.lax.axis_size(axis))
        if axis in split.apart:
            target, stride = target + at * stride, stride * jax.lax.axis_size(axis)
        else:
            sends = sends & (at == jax.lax.axis_index(axis))
    return jnp.where(sends, target, devices)


def _round(
    experts: Experts,
    swap: Callable,
    room: int,
    arrays: ModelState,
    x: Float[Array, "T D"],
    weights: Float[Array, "T K"],
    plan: Plan,
    first: Int[Array, ""] | int,
) -> Float[Array, "T D"]:
    """Return what tokens get from the rows `first` to `first + room` of each pair of devices."""
    devices, count = plan.counts.shape
    index_C = first + jnp.arange(room)
    there_XC = index_C[None] < jnp.sum(plan.counts, axis=1)[:, None]
    order_XC = plan.order.at[plan.start[:, None] + index_C[None]].get(mode="clip")
    row_S = jnp.where(there_XC, order_XC, len(plan.order)).reshape(-1)
    at_N = plan.place - plan.start.at[plan.target].get(mode="clip") - first
    goes_N = (plan.target < devices) & (at_N >= 0) & (at_N < room)
    place_N = jnp.where(goes_N, plan.target * room + at_N, devices * room)
    sent_XCD = moved(x, row_S, place_N).reshape(devices, room, -1)
    received_XCD = checkpoint_name(swap(sent_XCD), EXCHANGED)
    ends_XE = jnp.cumsum(plan.theirs, axis=1)
    group_XC = jnp.sum(index_C[None, :, None] >= ends_XE[:, None], axis=-1)  # `count`: none of them
    y_SD = computed(experts, arrays, received_XCD.reshape(devices * room, -1), group_XC.reshape(-1), count)
    returned_XCD = checkpoint_name(swap(y_SD.reshape(devices, room, -1)), EXCHANGED)
    y_ND = moved(returned_XCD.reshape(devices * room, -1), place_N, row_S)
    return jnp.einsum("TKD,TK->TD", y_ND.reshape(*weights.shape, -1), weights)


def _vary(over: frozenset[str], tree):
    leaves, structure = jax.tree.flatten(tree)
    return jax.tree.unflatten(structure, vary(over, *leaves))


def size_of(axes: tuple[str, ...]) -> int:
    return math.prod(map(jax.lax.axis_size, axes))
