"""Tiles of attention on a Hopper GPU: registers, products of the tensor cores, copies ahead of them, the call."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxtrain_kernels.varying import vary, varying

WARPGROUPS = 2  # that compute
ROWS = 64  # of one of them: what one wgmma takes
BLOCK = WARPGROUPS * ROWS
STAGES = 2  # blocks in shared memory at once


def vector(value: float):
    return plgpu.layout_cast(jnp.full((ROWS,), value, jnp.float32), plgpu.Layout.WGMMA.reduce(1))


def zeros(columns: int):
    return plgpu.layout_cast(jnp.zeros((ROWS, columns), jnp.float32), plgpu.Layout.WGMMA)


def load(ref, reduced: int):
    """Return a vector in the layout of scores that are reduced along an axis."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(reduced), optimized=False)


def arrived(refs: Sequence) -> list:
    """Return the vectors along the columns of a tile that a pipeline brought into shared memory."""
    found = [load(ref, 0) for ref in refs]
    if found:
        plgpu.commit_smem()  # before the copy that overwrites them
    return found


def spread(y, shape: tuple[int, int], axis: int):
    return jax.lax.broadcast_in_dim(y, shape, [axis])


def product(a, b, columns: int):
    """Return the product of ROWS rows of `a` with `b`, both in shared memory."""

    def multiply(acc):
        plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(multiply, plgpu.ACC((ROWS, columns), jnp.float32))


def add_product(acc, a, b):
    """Return acc + a b, with `a` in registers and `b` in shared memory."""

    def multiply(ref):
        plgpu.wgmma(ref, a, b)

    return pl.run_state(multiply)(plgpu.ACC.init(acc))


def pipeline(step: Callable, compute: Callable, steps, specs: Sequence[plgpu.BlockSpec]) -> Callable:
    return plgpu.emit_pipeline_warp_specialized(
        step,
        grid=(steps,),
        memory_registers=40,
        in_specs=specs,
        max_concurrent_steps=STAGES,
        wg_axis="warpgroup",
        num_compute_wgs=WARPGROUPS,
        compute_context=compute,
    )


def call(body: Callable, name: str, *, grid, operands: dict[str, Array], outputs: list, scratch: list) -> list[Array]:
    """Run `body` with the references of operands by name, then outputs, scratch, and a barrier a warpgroup."""

    def kernel(*refs):
        body(dict(zip(operands, refs, strict=False)), *refs[len(operands) :])

    run = plgpu.kernel(
        kernel,
        out_type=outputs,
        scratch_types=[*scratch, plgpu.Barrier(num_barriers=WARPGROUPS)],
        grid=grid,
        grid_names=("block", "head", "row"),
        num_threads=WARPGROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        kernel_name=name,
    )
    of_mesh = varying(next(iter(operands.values())))
    return list(vary(of_mesh, *run(*operands.values())))  # inside a shard_map, results come without its varying axes
