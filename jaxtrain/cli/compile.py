"""`jaxtrain compile CONFIG --topology v5e:4x4`: ahead-of-time compilation of the train step, without the devices."""

import argparse

from jaxtrain.cli.config_file import load
from jaxtrain.config import TrainConfig
from jaxtrain.planning.collectives import collectives
from jaxtrain.planning.memory import memory
from jaxtrain.planning.topology import devices_of, stay_on_cpu
from jaxtrain.train.needs import most_room


def run(arguments: argparse.Namespace) -> int:
    stay_on_cpu()
    config: TrainConfig = load(arguments.config, arguments.set, import_from=arguments.import_from).config
    devices = devices_of(arguments.topology)
    config.check_memory(most_room(len(devices)))  # with larger sizes the compiler aborts or does not end
    config.check_devices(len(devices))
    for remark in config.remarks(len(devices)):
        print(f"note: {remark}")
    recipe = config.recipe
    for span in recipe.spans:
        index, phase = span.number, span.phase
        print(
            f"compiling the train step of phases[{index}] for {len(devices)} devices of {arguments.topology}; "
            f"a 7B model takes about a minute",
            flush=True,
        )
        compiled = recipe.program(span, (phase.mesh or config.mesh).build(devices)).compile()
        need = memory(compiled)
        print(f"phases[{index}] on {len(devices)} devices of {arguments.topology}, bytes a device:")
        print(f"  arguments {need.arguments:,}  temporaries {need.temporaries:,}  needed {need.needed_bytes:,}")
        print(f"  alive at once at most {need.peak:,}" + (f"  in host memory {need.on_host:,}" * (need.on_host > 0)))
        if (text := compiled.as_text()) is None:
            raise NotImplementedError(f"{arguments.topology}: its compiler gives no text to count collectives in")
        print(collectives(text).table(arguments.rows))
    return 0
