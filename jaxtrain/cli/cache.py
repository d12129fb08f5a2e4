"""JAX's persistent compilation cache, in a folder beside the token stores."""

import jax

from jaxtrain.data.cache import cache_folder


def keep_compilations() -> None:
    """Turn the persistent compilation cache on."""
    jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
