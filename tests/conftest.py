"""Every test sees eight simulated CPU devices; warnings and implicit rank promotion are errors."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Little optimisation: compiling is most of the suite's time, and no claim here depends on the speed of the result.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=1200"  # 40 are too few on a busy machine
)
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")

# Many tests start processes. Where nothing may be kept, each would compile the source of all it imports anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

import functools
from pathlib import Path

import checked
import hypothesis
import jax
import messages
import numpy as np
import pytest

checked.install("jaxtrain", "jaxtrain_kernels")

jax.config.update("jax_numpy_rank_promotion", "raise")

MOST_MAPS = 20_000  # after a file of tests; Linux allows 65,530

# A busy machine is no failure, and a suite that passed passes again.
hypothesis.settings.register_profile(
    "jaxtrain", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow], derandomize=True
)
hypothesis.settings.load_profile("jaxtrain")


@pytest.fixture(autouse=True)
def _cache_in_tmp(tmp_path_factory, monkeypatch):
    """Token stores and compilations of the tests never touch the user's cache."""
    monkeypatch.setenv("JAXTRAIN_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session", autouse=True)
def _kept_compilations(tmp_path_factory):
    """One folder of compiled programs for all workers, and for the processes that have this one's cache."""
    own = tmp_path_factory.getbasetemp()
    programs = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "programs"
    programs.mkdir(exist_ok=True)
    (own / "cache").mkdir()
    (own / "cache" / "xla").symlink_to(programs)
    jax.config.update("jax_compilation_cache_dir", str(programs))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def pytest_addoption(parser):
    parser.addoption("--write-messages", action="store_true", help="record what errors say, see tests/messages.py")


@pytest.hookimpl(tryfirst=True)  # before any are deselected
def pytest_collection_modifyitems(config, items):
    if not any("::" in argument for argument in config.args):
        messages.session.collected.update(item.nodeid for item in items)


@pytest.fixture(scope="session", autouse=True)
def _messages(request, tmp_path_factory):
    messages.session.temporary = tmp_path_factory.getbasetemp()
    messages.session.writing = request.config.getoption("write_messages")
    yield
    if messages.session.writing:
        messages.write()


@pytest.fixture(scope="module", autouse=True)
def _few_memory_maps():
    """Forget compiled programs before they are too many: each maps memory, and a process that may map no more dies."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()


@functools.cache
def _xla_converts_float16() -> bool:
    try:
        jax.jit(lambda x: x.astype("float32"))(np.ones(8, np.float16))
    except jax.errors.JaxRuntimeError:
        return False
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """Skip what XLA cannot compile on processors without F16C: float16, and some of float8, which goes through it."""
    try:
        return (yield)
    except jax.errors.JaxRuntimeError as error:
        if "Failed to materialize symbols" in str(error) and not _xla_converts_float16():
            pytest.skip("XLA for this processor lacks the conversion of float16 (openxla/xla issue 6787)")
        raise
