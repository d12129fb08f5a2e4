"""Record what the authors' `schedulefree` and `torch.optim.Muon` make of a few gradients.

    ENVIRONMENT/bin/pip install schedulefree==1.4.1
    ENVIRONMENT/bin/python scripts/peers/make_optimizer_goldens.py tests/golden

Both get the same gradients of unit normals, whatever the parameters, in float64. `schedulefree` runs with and without
weight decay (on the matrix alone) and warm-up. Muon is run with its rate matched to AdamW's, once with weight decay.

`torch.optim.Muon` rounds to bfloat16 for its Newton-Schulz iteration, which would hide the momentum behind 0.4%: while
it runs here, `Tensor.bfloat16` makes a copy and rounds nothing.
"""

import argparse
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import numpy as np
import schedulefree
import torch

STEPS, RATE, DECAY, WARMUP_STEPS = 8, 0.05, 0.3, 3
MATRICES = {"square": (6, 6), "tall": (8, 5), "wide": (4, 9)}


def draw(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return parameters, and gradients with the steps before their axes."""
    random = np.random.default_rng(20240524)
    params = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    return params, {name: random.standard_normal((STEPS, *shape)) for name, shape in shapes.items()}


def schedule_free(*, decay: float, warmup_steps: int) -> dict[str, np.ndarray]:
    """Return rates, the points gradients are taken at and the averages, behind each step."""
    params, gradients = draw({"matrix": (4, 3), "vector": (5,)})
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    groups = [{"params": [tensors["matrix"]], "weight_decay": decay}, {"params": [tensors["vector"]]}]
    optimizer = schedulefree.AdamWScheduleFree(groups, lr=RATE, betas=(0.9, 0.95), warmup_steps=warmup_steps)
    found = {f"initial/{name}": value for name, value in params.items()}
    found |= {f"gradient/{name}": value for name, value in gradients.items()}
    rates, points, averages = [], {name: [] for name in params}, {name: [] for name in params}
    for step in range(STEPS):
        optimizer.train()
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name][step])
        optimizer.step()
        rates.append(optimizer.param_groups[0]["scheduled_lr"])
        _append(points, tensors)
        optimizer.eval()
        _append(averages, tensors)
    found |= {f"point/{name}": np.stack(values) for name, values in points.items()}
    found |= {f"average/{name}": np.stack(values) for name, values in averages.items()}
    return found | {"rate": np.array(rates)}


def muon(*, decay: float) -> dict[str, np.ndarray]:
    """Return the parameters behind each step."""
    params, gradients = draw(MATRICES)
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    optimizer = torch.optim.Muon(
        tensors.values(), lr=RATE, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    points = {name: [] for name in params}
    for step in range(STEPS):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name][step])
        with patch.object(torch.Tensor, "bfloat16", torch.Tensor.clone):
            optimizer.step()
        _append(points, tensors)
    found = {f"initial/{name}": value for name, value in params.items()}
    found |= {f"gradient/{name}": value for name, value in gradients.items()}
    return found | {f"point/{name}": np.stack(values) for name, values in points.items()}


def _append(into: dict[str, list[np.ndarray]], tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        into[name].append(tensor.detach().numpy().copy())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    versions = np.array([f"{peer} {metadata.version(peer)}" for peer in ("torch", "schedulefree")])
    cases = {
        f"schedulefree/{name}.npz": schedule_free(decay=decay, warmup_steps=warmup_steps)
        for name, decay, warmup_steps in (
            ("plain", 0.0, 0),
            ("decay", DECAY, 0),
            ("warmup", 0.0, WARMUP_STEPS),
            ("decay_and_warmup", DECAY, WARMUP_STEPS),
        )
    } | {"torch/muon.npz": muon(decay=0.0), "torch/muon_decay.npz": muon(decay=DECAY)}
    for name, arrays in cases.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / name, versions=versions, **arrays)
        print(f"{folder / name}: {(folder / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
