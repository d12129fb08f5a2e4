"""What a compiled program needs of a device's memory, by the compiler's own account."""

from dataclasses import dataclass

import jax


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Bytes a device. `aliased` is the part of the outputs that takes over the memory of donated arguments.

    `peak` is the most that lives at once. TPU compilers report more as temporaries: they count what lives only inside
    loops that carry stacks, such as a backward pass, a second time as fragmentation (docs/log.md).
    """

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    peak: int
    on_host: int

    @property
    def needed_bytes(self) -> int:
        """Bytes that must fit at once: arguments, temporaries, and outputs with memory of their own."""
        return self.arguments + self.temporaries + self.outputs - self.aliased


def memory(compiled: jax.stages.Compiled) -> Memory:
    """Return the memory of a compiled program. `compiled` is what `jax.jit(f).lower(...).compile()` gives.

    Raises:
        NotImplementedError: the compiler does not report it.
    """
    found = compiled.memory_analysis()
    if found is None:
        raise NotImplementedError("the compiler of this platform does not report the memory of a program")
    return Memory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        aliased=found.alias_size_in_bytes,
        peak=found.peak_memory_in_bytes,
        on_host=found.host_temp_size_in_bytes + found.host_argument_size_in_bytes,
    )
