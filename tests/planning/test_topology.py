"""Compiling ahead of time for a topology: its devices, its collectives, its memory."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.experimental.compilation_cache.compilation_cache import reset_cache
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxtrain.planning.collectives import collectives
from jaxtrain.planning.memory import memory
from jaxtrain.planning.peaks import PEAKS, peak_flops
from jaxtrain.planning.topology import TPUS, compile_ahead_of_time, devices_of


@pytest.mark.parametrize("generation", TPUS)
def test_every_generation_has_devices_with_a_known_peak(generation):
    shape = "2x2" if generation in ("v5e", "v6e") else "2x2x1"
    devices = devices_of(f"{generation}:{shape}")
    assert len(devices) == (8 if generation in ("v4", "tpu7x") else 4)
    assert peak_flops(devices[0].device_kind) > 1e14


def test_gpu_servers_have_devices_with_a_known_peak():
    devices = devices_of("h100:2x8")
    assert len(devices) == 16
    assert peak_flops(devices[0].device_kind) == 989.5e12


def test_a_step_compiled_for_absent_gpus_has_their_collectives():
    mesh = Mesh(np.array(devices_of("h100:1x8")), ("fsdp",), axis_types=(AxisType.Auto,))
    x = jax.ShapeDtypeStruct((64, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    w = jax.ShapeDtypeStruct((512, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    compiled = compile_ahead_of_time(jax.jit(lambda x, w: x @ w, out_shardings=x.sharding).lower(x, w))
    assert collectives(compiled.as_text()).bytes("all-gather") == 512 * 512 * 2
    assert memory(compiled).arguments == 2 * (64 + 512) * 512 // 8


def test_a_scan_compiled_for_an_absent_tpu_is_counted_and_weighed():
    mesh = Mesh(np.array(devices_of("v5e:2x2")), ("fsdp",), axis_types=(AxisType.Auto,))
    sharded, whole = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, P())

    def step(w, x):
        def layer(x, w):
            return jnp.tanh(x @ lax.with_sharding_constraint(w, whole)), None

        return w * 2, lax.scan(layer, x, w)[0]

    w = jax.ShapeDtypeStruct((5, 512, 512), jnp.bfloat16, sharding=sharded)
    x = jax.ShapeDtypeStruct((256, 512), jnp.bfloat16, sharding=NamedSharding(mesh, P("fsdp")))
    compiled = compile_ahead_of_time(jax.jit(step, donate_argnums=0, out_shardings=(sharded, None)).lower(w, x))

    found = collectives(compiled.as_text())
    assert found.bytes("all-gather") == 5 * 512 * 512 * 2
    assert not any(item.unbounded for item in found.items)
    needed = memory(compiled)
    weights, activations = 5 * 512 * 512 * 2 // 4, 256 * 512 * 2 // 4
    assert needed.arguments == weights + activations
    assert needed.aliased == weights
    output_table = needed.outputs - weights - activations  # pointers to the outputs
    assert 0 <= output_table < 4096
    assert needed.needed_bytes == needed.arguments + needed.temporaries + activations + output_table


@pytest.fixture
def kept(tmp_path):
    """A persistent compilation cache that takes everything."""
    options = {"jax_compilation_cache_dir": str(tmp_path), "jax_persistent_cache_min_compile_time_secs": 0.0}
    before = {name: getattr(jax.config, name) for name in options}
    for values in (options, before):
        for name, value in values.items():
            jax.config.update(name, value)
        reset_cache()
        if values is options:
            yield tmp_path


def test_programs_for_absent_devices_are_not_kept_and_those_for_present_ones_still_are(kept):
    """What is kept of a topology's programs cannot be loaded again: JAX warns, which is an error here."""
    absent = NamedSharding(Mesh(np.array(devices_of("v5e:2x2")), ("all",), axis_types=(AxisType.Auto,)), P())
    for _ in range(2):
        x = jax.ShapeDtypeStruct((8,), jnp.float32, sharding=absent)
        compile_ahead_of_time(jax.jit(lambda x: 2 * x).lower(x))
    assert list(kept.iterdir()) == []
    jax.jit(lambda x: 3 * x)(jnp.zeros(8)).block_until_ready()
    assert any("lambda" in path.name for path in kept.iterdir())


@pytest.mark.parametrize("name", ["v9:2x2", "v5e", "v5e:axb", "v5e:3x3", "", "h100:8", "h100:0x8"])
def test_an_unknown_topology_is_refused_with_an_example(name):
    with pytest.raises(ValueError, match=r"topology=.*v5e:4x4"):
        devices_of(name)


@pytest.mark.parametrize(("topology", "package"), [("v5e:2x2", "libtpu"), ("h100:1x8", "jax-cuda13-plugin")])
def test_without_the_compiler_the_error_names_the_remedy(topology, package):
    program = (
        "import sys; sys.modules['libtpu'] = sys.modules['jax_plugins.xla_cuda13'] = None\n"
        "from jaxtrain.planning.topology import devices_of\n"
        f"try: devices_of('{topology}')\n"
        "except ValueError as error: print(error)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "TPU_LIBRARY_PATH"} | {"JAX_PLATFORMS": "cpu"}
    ran = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert f"pip install {package}" in ran.stdout


def test_peaks_are_dense_and_unknown_devices_have_none():
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989.5e12
    assert peak_flops("cpu") is None
    assert all(1e14 < peak < 5e15 for peak in PEAKS.values())
