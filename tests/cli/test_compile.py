"""`jaxtrain compile` for TPU topologies."""

import os
import re
import subprocess
import sys

import pytest

from jaxtrain.cli.main import main

TINY = ["--set", "model.repeats=1", "--set", "model.d_model=128", "--set", "phases.0.batch_size=4"]


def test_compile_says_what_it_does_then_prints_memory_and_collectives_of_an_absent_slice(capsys):
    offload = ["--set", "model.remat=@FullRemat(offload=True)"]
    odd = ["--set", "mesh.tensor=2", "--set", "model.vocab_size=333"]
    assert main(["compile", "configs/quickstart.gin", "--topology", "v5e:2x2", *TINY, *offload, *odd]) == 0
    note, out = capsys.readouterr().out.split("\n", maxsplit=1)
    assert note.startswith(
        "note: model.vocab_size=333 is not divisible by mesh.tensor=2, so devices along mesh.tensor=2"
    )
    assert out.startswith("compiling the train step of phases[0] for 4 devices of v5e:2x2; a 7B model")
    assert "on 4 devices of v5e:2x2" in out and "needed" in out and "reduce-scatter" in out
    alive, needed = (int(re.search(rf"{word} ([\d,]+)", out)[1].replace(",", "")) for word in ("at most", "needed"))
    inputs = 1 * 256 * 128 * 4  # of the one layer, a row of 256 float32 tokens a device
    assert alive <= needed and f"in host memory {inputs:,}\n" in out


@pytest.mark.parametrize("topology", ["v9:2x2", "v5e:7x7"])
def test_an_unknown_topology_is_one_line_and_exit_code_two(topology, capsys):
    assert main(["compile", "configs/quickstart.gin", "--topology", topology, *TINY]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and topology in error


def test_the_compiler_does_not_complain_that_there_is_no_tpu():
    load_topology = (
        "import jax; from jaxtrain.planning.topology import devices_of, stay_on_cpu; stay_on_cpu(); "
        "print(len(devices_of('v5e:2x2')), jax.default_backend())"
    )
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TPU_", "JAX_PLATFORMS"))}
    done = subprocess.run([sys.executable, "-c", load_topology], capture_output=True, text=True, env=environment)
    assert (done.stdout, done.stderr) == ("4 cpu\n", "")
