"""The way that sends least, chosen for the layer and the mesh at hand, as in Tutel: Hwang et al. (2022).

arXiv:2206.03382. All ways read the same arrays, so nothing moves where the choice changes.
"""

from dataclasses import dataclass
from typing import ClassVar

import jax
from jax.sharding import AbstractMesh
from jaxtyping import Array, Float

from jaxtrain.nn.moe.dispatch.base import Dispatch
from jaxtrain.nn.moe.dispatch.dropless import Dropless
from jaxtrain.nn.moe.dispatch.exchange import Exchange
from jaxtrain.nn.moe.dispatch.region import Load, load_of
from jaxtrain.nn.moe.experts import Experts
from jaxtrain.nn.moe.routing import Routing


@dataclass(frozen=True, kw_only=True, slots=True)
class Auto(Dispatch):
    """Of several ways the one that sends the fewest bytes between devices; of equal ones the first."""

    ways: tuple[Dispatch, ...] = (Dropless(), Exchange())
    paper: ClassVar[str] = "arXiv:2206.03382"

    def __post_init__(self):
        if not self.ways:
            raise ValueError("ways=(): there must be at least one to choose")
        for way in self.ways:
            if way.drops:
                raise ValueError(f"ways: {way!r} drops tokens, so the choice would change the result; leave it out")
            if type(way).sent is Dispatch.sent:
                raise ValueError(f"ways: {way!r} does not say how many bytes it sends; leave it out")

    def check_mesh(self, mesh: AbstractMesh) -> None:
        for way in self.ways:
            way.check_mesh(mesh)

    def chosen(self, load: Load) -> Dispatch:
        """Return the way for a layer with this load."""
        return min(self.ways, key=lambda way: way.sent(load))

    def __call__(self, x: Float[Array, "B L D"], routing: Routing, experts: Experts) -> Float[Array, "B L D"]:
        rows, length, width = x.shape
        load = load_of((rows, length, width), experts.count, routing.top_k, jax.sharding.get_abstract_mesh())
        return self.chosen(load)(x, routing, experts)

    def sent(self, load: Load) -> int:
        return self.chosen(load).sent(load)

    def remark(self, load: Load, value_bytes: int) -> str:
        load_is = f"{load.tokens} tokens on a device, {load.apart} x {load.alike} devices with experts"
        sent = ", ".join(f"{way!r} sends {way.sent(load) * value_bytes / 1e6:.3f} MB" for way in self.ways)
        return f"takes {self.chosen(load)!r}. Of {load_is}: a layer's forward pass with {sent} from each device"
