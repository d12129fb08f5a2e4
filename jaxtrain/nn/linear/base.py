"""What a linear is: a linear map of every token, whose weights may be kept in any form."""

from abc import abstractmethod

from flax import nnx
from jaxtyping import Array, Float

from jaxtrain.nn.param import constant
from jaxtrain.technique import Technique

Side = tuple[tuple[int, str], ...]  # the axes of one side of a linear, each a size and a logical name


class LinearConfig(Technique):
    """A frozen dataclass that builds a linear map from the axes `inputs` to the axes `outputs`."""

    __slots__ = ()

    @abstractmethod
    def build(
        self, inputs: Side, outputs: Side, *, bias: bool = False, outputs_first: bool = False, rngs: nnx.Rngs
    ) -> "Linear":
        """Return the linear; `outputs_first` keeps its matrix as `[*outputs, *inputs]`, as a table of rows."""


class Linear(nnx.Module):
    """A linear map of every token. Its variables carry their facts (`Axes`), so a gather hands them over ready."""

    @abstractmethod
    def __call__(self, x: Float[Array, "B L ..."]) -> Float[Array, "B L ..."]:
        """Return `x` times the matrix, plus the bias where there is one, in the dtype of `x`."""

    @abstractmethod
    def dense(self) -> Float[Array, "..."]:
        """Return the matrix that this stands for: `[*inputs, *outputs]`, or outputs first where it was built so."""


def bias_of(outputs: Side) -> nnx.Param:
    """Return a bias of zeros; along the model width it is whole on every device."""
    sizes, names = zip(*outputs, strict=True)
    return constant(0.0, sizes, tuple("width" if name == "embed" else name for name in names))
