"""Counts of collectives in compiled text equal the counts known from the program."""

import functools

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.planning.collectives import Collectives, collectives
from jaxtrain.planning.hlo import parse

N = 8 * 1024  # elements of the float32 arrays below


def on_eight(body) -> Collectives:
    """Compile a per-device function over eight devices and count what it moves."""
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))
    mapped = jax.shard_map(body, mesh=mesh, in_specs=P("d"), out_specs=P("d"))
    argument = jax.ShapeDtypeStruct((N,), jnp.float32, sharding=NamedSharding(mesh, P("d")))
    return collectives(jax.jit(mapped).lower(argument).compile().as_text())


def summed(x):
    """A psum whose result is different in every round, so that no loop can be left out."""
    return lax.pcast(lax.psum(jnp.sin(x), "d"), "d", to="varying")


def test_a_psum_in_a_scan_of_five_is_five_all_reduces_of_twice_its_bytes():
    found = on_eight(lambda x: lax.scan(lambda x, _: (summed(x), None), x, length=5)[0])
    assert found.count("all-reduce") == 5
    assert found.total_bytes == 5 * 2 * (N // 8) * 4


def test_nested_loops_multiply():
    def inner(x, _):
        return lax.fori_loop(0, 4, lambda _, x: summed(x), x), None

    found = on_eight(lambda x: lax.scan(inner, x, length=3)[0])
    assert found.count("all-reduce") == 12


def test_a_gather_counts_its_result():
    found = on_eight(lambda x: jnp.sin(lax.all_gather(x, "d", tiled=True))[:8])
    assert (found.count("all-gather"), found.total_bytes) == (1, N * 4)


def test_a_reduce_scatter_counts_its_whole_input():
    found = on_eight(lambda x: lax.psum_scatter(jnp.sin(x), "d", tiled=True))
    assert (found.count("reduce-scatter"), found.total_bytes) == (1, N // 8 * 4)


def test_permutes_and_exchanges_count_what_a_device_holds():
    shift = functools.partial(lax.ppermute, axis_name="d", perm=[(i, (i + 1) % 8) for i in range(8)])
    found = on_eight(lambda x: shift(jnp.sin(x)))
    assert (found.count("collective-permute"), found.total_bytes) == (1, N // 8 * 4)
    found = on_eight(lambda x: lax.all_to_all(jnp.sin(x), "d", 0, 0, tiled=True))
    assert (found.count("all-to-all"), found.total_bytes) == (1, N // 8 * 4)


def test_a_loop_that_ends_on_data_counts_once_and_says_so():
    def body(x):
        return lax.while_loop(lambda x: jnp.max(lax.pmax(x, "d")) < 10, lambda x: summed(x) + 1, x)

    found = on_eight(body)
    inside = [item for item in found.items if item.unbounded]
    assert inside and all(item.times == 1 for item in inside)
    assert "?" in found.table()


def test_groups_of_a_smaller_axis_are_seen():
    mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(lambda x: lax.psum(x, "b"), mesh=mesh, in_specs=P(("a", "b")), out_specs=P("a"))
    argument = jax.ShapeDtypeStruct((N,), jnp.float32, sharding=NamedSharding(mesh, P(("a", "b"))))
    found = collectives(jax.jit(mapped).lower(argument).compile().as_text())
    assert [item.group for item in found.items] == [4]


def test_a_sharded_product_gathers_its_weights():
    mesh = jax.make_mesh((8,), ("d",), axis_types=(AxisType.Auto,))

    def product(x, w):
        return x @ lax.with_sharding_constraint(w, NamedSharding(mesh, P()))

    sharded = NamedSharding(mesh, P("d"))
    x, w = (jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharded) for shape in ((64, 32), (32, 16)))
    found = collectives(jax.jit(product).lower(x, w).compile().as_text())
    assert (found.count("all-gather"), found.bytes("all-gather")) == (1, 32 * 16 * 4)
    assert "all-gather         f32[32,16]" in found.table()


# What the TPU compiler makes of a reduce-scatter and of an asynchronous gather, and a loop without a noted trip count
# that steps by two up to a limit carried along.
TPU_FORMS = """HloModule step

%reduced (a: f32[16,8]) -> f32[4,8] {
  %a = f32[16,8]{1,0:T(8,128)} parameter(0)
  %start = s32[] constant(4)
  %zero = s32[] constant(0)
  %all-reduce.1 = f32[16,8]{1,0} all-reduce(%a), channel_id=1, replica_groups=[1,4]<=[4], to_apply=%add
  ROOT %slice = f32[4,8]{1,0} dynamic-slice(%all-reduce.1, %start, %zero), dynamic_slice_sizes={4,8}
}

%begun (b: bf16[4,8]) -> (bf16[4,8], bf16[16,8], u32[]) {
  %b = bf16[4,8]{1,0} parameter(0)
  %all-gather.1 = bf16[16,8]{1,0} all-gather(%b), channel_id=2, replica_groups=mesh['x'=2,'y'=4] {'y'}
  ROOT %custom-call = (bf16[4,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) custom-call(%all-gather.1), custom_call_target="S"
}

%ended (c: bf16[4,8]) -> bf16[16,8] {
  %c = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0} all-gather(%c), channel_id=2, replica_groups=mesh['x'=2,'y'=4] {'y'}
}

%body (p: (s32[], s32[], f32[4,8])) -> (s32[], s32[], f32[4,8]) {
  %p = (s32[]{:T(128)}, s32[], /*index=2*/f32[4,8]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %limit = s32[] get-tuple-element(%p), index=1
  %x = f32[4,8]{1,0} get-tuple-element(%p), index=2
  %two = s32[] constant(2)
  %next = s32[] add(%i, %two)
  %send = (f32[4,8]{1,0}, f32[4,8]{1,0}, u32[], u32[]) collective-permute-start(%x), source_target_pairs={{0,1},{1,0}}
  %sent = f32[4,8]{1,0} collective-permute-done(%send)
  ROOT %out = (s32[], s32[], f32[4,8]{1,0}) tuple(%next, %limit, %sent)
}

%condition (q: (s32[], s32[], f32[4,8])) -> pred[] {
  %q = (s32[], s32[], f32[4,8]{1,0}) parameter(0)
  %j = s32[] get-tuple-element(%q), index=0
  %end = s32[] get-tuple-element(%q), index=1
  ROOT %less = pred[] compare(%j, %end), direction=LT
}

ENTRY %main (a: f32[16,8], b: bf16[4,8]) -> f32[4,8] {
  %a = f32[16,8]{1,0} parameter(0)
  %b = bf16[4,8]{1,0} parameter(1)
  %all-reduce-scatter = f32[4,8]{1,0} fusion(%a), kind=kCustom, calls=%reduced, metadata={op_name="loss/dot"}
  %gather-start = (bf16[4,8]{1,0}, bf16[16,8]{1,0}, u32[]{:S(2)}) fusion(%b), kind=kCustom, calls=%begun
  %gather-done = bf16[16,8]{1,0} fusion(%b), kind=kCustom, calls=%ended
  %one = s32[] constant(1)
  %eight = s32[] constant(8)
  %carried = (s32[], s32[], f32[4,8]{1,0}) tuple(%one, %eight, %all-reduce-scatter)
  %loop = (s32[], s32[], f32[4,8]{1,0}) while(%carried), condition=%condition, body=%body
  ROOT %result = f32[4,8]{1,0} get-tuple-element(%loop), index=2
}
"""


def test_collectives_that_the_tpu_compiler_disguises_are_seen_for_what_they_are():
    found = {item.kind: item for item in collectives(TPU_FORMS).items}
    assert set(found) == {"reduce-scatter", "all-gather", "collective-permute"}
    assert (found["reduce-scatter"].bytes, found["reduce-scatter"].group) == (16 * 8 * 4, 4)
    assert found["reduce-scatter"].source == "loss/dot"
    assert (found["all-gather"].bytes, found["all-gather"].times, found["all-gather"].group) == (16 * 8 * 2, 1, 4)


# As XLA writes them for GPUs: operands in a tuple of their own, then the results.
GPU_FORMS = """HloModule step

ENTRY %main (a: f32[8,4], b: f32[4], c: bf16[32]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = f32[4]{0} parameter(1)
  %c = bf16[32]{0} parameter(2)
  %swap = ((f32[8,4]{1,0}), f32[8,4]{1,0}) all-to-all-start(%a), channel_id=1, replica_groups={{0,1}}, dimensions={0}
  %swapped = f32[8,4]{1,0} all-to-all-done(%swap)
  %sum = ((f32[8,4]{1,0}, f32[4]{0}), (f32[8,4]{1,0}, f32[4]{0})) all-reduce-start(%swapped, %b), channel_id=2, \
replica_groups={{0,1}}, to_apply=%add
  %part = ((bf16[32]{0}), bf16[16]{0}) reduce-scatter-start(%c), channel_id=3, replica_groups={{0,1}}, dimensions={0}
  %plain = (f32[8,4]{1,0}, f32[4]{0}) all-reduce-start(%swapped, %b), channel_id=4, replica_groups={{0,1}}
  ROOT %summed = f32[8,4]{1,0} all-reduce-done(%sum)
}
"""


def test_operands_of_what_the_gpu_compiler_begins_are_not_counted_beside_results():
    swap, sum_, part, plain = collectives(GPU_FORMS).items
    assert (swap.kind, swap.bytes) == ("all-to-all", 8 * 4 * 4)
    assert sum_.bytes == plain.bytes == 2 * (8 * 4 + 4) * 4
    assert (part.kind, part.bytes) == ("reduce-scatter", 32 * 2)


def test_a_loop_by_twos_to_a_carried_limit_is_multiplied_out():
    permute = [item for item in collectives(TPU_FORMS).items if item.kind == "collective-permute"][0]
    assert (permute.times, permute.bytes, permute.unbounded) == (4, 4 * 8 * 4, False)  # counters 1, 3, 5, 7


def test_text_that_is_not_a_compiled_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse("module @jit_f {}")
