"""Record what optimizers of other packages, most of them their authors', make of a few gradients.

    ENVIRONMENT/bin/pip install schedulefree==1.4.1 madgrad==1.3 dadaptation==3.2 prodigyopt==1.1.2 adam-mini==1.1.1 \
        pytorch-optimizer==3.8.0 torch-optimi==0.3.3
    ENVIRONMENT/bin/python scripts/peers/make_optimizer_goldens.py tests/golden

All get gradients of unit normals, whatever the parameters, in float64; those that find their rate get gradients of a
parabola, as they measure how far they have come. Weight decay is decoupled, and that of the matrix alone; Adan and
D-Adaptation, whose packages decay in another way, run without. `schedulefree` runs with and without weight decay and
warm-up. Muon is run with its rate matched to AdamW's, once with weight decay.

`torch.optim.Muon` rounds to bfloat16 for its Newton-Schulz iteration, which would hide the momentum behind 0.4%: while
it runs here, `Tensor.bfloat16` makes a copy and rounds nothing.
"""

import argparse
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from unittest.mock import patch

import numpy as np
import optimi
import pytorch_optimizer
import schedulefree
import torch
from adam_mini import Adam_mini
from dadaptation import DAdaptAdam
from madgrad import MADGRAD
from prodigyopt import Prodigy

STEPS, RATE, DECAY, WARMUP_STEPS = 8, 0.05, 0.3, 3
SMALL = {"matrix": (4, 3), "vector": (5,)}
MATRICES = {"square": (6, 6), "tall": (8, 5), "wide": (4, 9)}


def draw(shapes: dict[str, tuple[int, ...]]) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return parameters, and gradients with the steps before their axes."""
    random = np.random.default_rng(20240524)
    params = {name: random.standard_normal(shape) for name, shape in shapes.items()}
    return params, {name: random.standard_normal((STEPS, *shape)) for name, shape in shapes.items()}


def schedule_free(*, decay: float, warmup_steps: int) -> dict[str, np.ndarray]:
    """Return rates, the points gradients are taken at and the averages, behind each step."""
    params, gradients = draw(SMALL)
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


def plain(make: Callable, *, shapes: dict[str, tuple[int, ...]] = SMALL) -> dict[str, np.ndarray]:
    """Return the parameters behind each step of the optimizer that `make` makes of the tensors by name."""
    params, gradients = draw(shapes)
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    optimizer, points = make(tensors), {name: [] for name in params}
    for step in range(STEPS):
        for name, tensor in tensors.items():
            tensor.grad = torch.tensor(gradients[name][step])
        optimizer.step()
        _append(points, tensors)
    found = {f"initial/{name}": value for name, value in params.items()}
    found |= {f"gradient/{name}": value for name, value in gradients.items()}
    return found | {f"point/{name}": np.stack(values) for name, values in points.items()}


def of_parabola(make: Callable) -> dict[str, np.ndarray]:
    """Return the same of a parabola's gradients, and behind each step the distance d that the optimizer has found."""
    params, goals = draw(SMALL)
    tensors = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in params.items()}
    optimizer, distances = make(tensors), []
    gradients, points = ({name: [] for name in params} for _ in range(2))
    for _ in range(3 * STEPS):
        for name, tensor in tensors.items():
            tensor.grad = tensor.detach() - torch.tensor(goals[name][0])
            gradients[name].append(tensor.grad.numpy().copy())
        optimizer.step()
        distances.append(optimizer.param_groups[0]["d"])
        _append(points, tensors)
    found = {f"initial/{name}": value for name, value in params.items()} | {"distance": np.array(distances)}
    found |= {f"gradient/{name}": np.stack(values) for name, values in gradients.items()}
    return found | {f"point/{name}": np.stack(values) for name, values in points.items()}


def groups(tensors: dict[str, torch.Tensor]) -> list[dict]:
    """Return the groups of parameters with weight decay on the matrix alone."""
    return [
        {"params": [tensors["matrix"]], "weight_decay": DECAY},
        {"params": [tensors["vector"]], "weight_decay": 0.0},
    ]


def _append(into: dict[str, list[np.ndarray]], tensors: dict[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        into[name].append(tensor.detach().numpy().copy())


PLAIN = {
    "torch/radam": (
        "torch",
        lambda tensors: torch.optim.RAdam(groups(tensors), lr=RATE, decoupled_weight_decay=True),
    ),
    "pytorch_optimizer/adabound": (
        "pytorch_optimizer",
        lambda tensors: pytorch_optimizer.AdaBound(groups(tensors), lr=RATE, final_lr=100 * RATE),
    ),
    "pytorch_optimizer/amsbound": (
        "pytorch_optimizer",
        lambda tensors: pytorch_optimizer.AdaBound(groups(tensors), lr=RATE, final_lr=100 * RATE, ams_bound=True),
    ),
    "pytorch_optimizer/adabelief": (
        "pytorch_optimizer",
        lambda tensors: pytorch_optimizer.AdaBelief(groups(tensors), lr=RATE, eps=1e-16, rectify=False),
    ),
    "optimi/adan": (
        "torch-optimi",
        lambda tensors: optimi.Adan(list(tensors.values()), lr=RATE, eps=1e-8, weight_decay=0.0),
    ),
    "madgrad/madgrad": (
        "madgrad",
        lambda tensors: MADGRAD(groups(tensors), lr=RATE, decouple_decay=True),
    ),
}
OF_PARABOLA = {
    "prodigyopt/prodigy": ("prodigyopt", lambda tensors: Prodigy(groups(tensors), d0=1e-3, betas=(0.9, 0.99))),
    "dadaptation/adam": (
        "dadaptation",
        lambda tensors: DAdaptAdam(
            list(tensors.values()), d0=1e-3, betas=(0.9, 0.99), decouple=True, use_bias_correction=True
        ),
    ),
}


# Two heads of a width of 6, by rows as PyTorch has them; biases and norms by their names.
MINI = {"query.weight": (8, 6), "value.weight": (8, 6), "embed.weight": (3, 6), "query.bias": (8,), "norm.weight": (6,)}


def adam_mini() -> dict[str, np.ndarray]:
    """Return the points of Adam-mini. A head of a query has 24 elements, which the package computes from `dim`."""
    return plain(
        lambda tensors: Adam_mini(tensors.items(), lr=RATE, dim=12, n_heads=6, weight_decay=DECAY, verbose=False),
        shapes=MINI,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    both = "schedulefree"
    cases = {
        f"schedulefree/{name}.npz": (both, schedule_free(decay=decay, warmup_steps=warmup_steps))
        for name, decay, warmup_steps in (
            ("plain", 0.0, 0),
            ("decay", DECAY, 0),
            ("warmup", 0.0, WARMUP_STEPS),
            ("decay_and_warmup", DECAY, WARMUP_STEPS),
        )
    }
    cases |= {"torch/muon.npz": (both, muon(decay=0.0)), "torch/muon_decay.npz": (both, muon(decay=DECAY))}
    cases |= {f"{name}.npz": (peer, plain(make)) for name, (peer, make) in PLAIN.items()}
    cases |= {f"{name}.npz": (peer, of_parabola(make)) for name, (peer, make) in OF_PARABOLA.items()}
    cases |= {"adam_mini/adam_mini.npz": ("adam-mini", adam_mini())}
    for name, (peer, arrays) in cases.items():
        versions = np.array([f"{package} {metadata.version(package)}" for package in dict.fromkeys(("torch", peer))])
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / name, versions=versions, **arrays)
        print(f"{folder / name}: {(folder / name).stat().st_size} bytes")


if __name__ == "__main__":
    main()
