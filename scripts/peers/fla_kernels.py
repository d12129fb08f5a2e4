"""Seconds of one forward and backward of a kernel of flash-linear-attention: a peer of scripts/bench_kernels.py.

    ENVIRONMENT/bin/python scripts/peers/fla_kernels.py --kernel chunk_gla --shape 2 8192 16 128

Needs a GPU, torch and flash-linear-attention. Inputs are bfloat16 [batch, length, heads, head dim], gates and betas
float32, and there is no feature map, normaliser or initial state, as in our own contest. Prints one JSON line.
"""

import argparse
import json
import time

import torch
import torch.nn.functional as F
from fla.ops.delta_rule import chunk_delta_rule
from fla.ops.gated_delta_rule import chunk_gated_delta_rule
from fla.ops.gla import chunk_gla
from fla.ops.linear_attn import chunk_linear_attn
from fla.ops.retention import chunk_retention
from fla.ops.simple_gla import chunk_simple_gla

WARM_UP = 5


def kernel_of(name: str, shape: tuple[int, ...]):
    """Return a function of nothing that returns the output, and the tensors its gradient is taken of."""

    def leaf(x):
        return x.cuda().requires_grad_()

    q, k, v = (leaf(torch.randn(shape, dtype=torch.bfloat16)) for _ in range(3))
    gate, beta = leaf(F.logsigmoid(torch.randn(shape[:3]) + 4)), leaf(torch.rand(shape[:3]))
    of_channels = leaf(F.logsigmoid(torch.randn(shape) + 4)) if name == "chunk_gla" else None
    unit = leaf(F.normalize(torch.randn(shape), dim=-1).to(torch.bfloat16)) if "delta" in name else None
    match name:
        case "chunk_linear_attn":
            return lambda: chunk_linear_attn(q, k, v, scale=1.0, normalize=False)[0], (q, k, v)
        case "chunk_retention":
            return lambda: chunk_retention(q, k, v, scale=1.0)[0], (q, k, v)
        case "chunk_simple_gla":
            return lambda: chunk_simple_gla(q, k, v, g=gate, scale=1.0)[0], (q, k, v, gate)
        case "chunk_gla":
            return lambda: chunk_gla(q, k, v, g=of_channels, scale=1.0)[0], (q, k, v, of_channels)
        case "chunk_delta_rule":
            halved = leaf(beta.detach().to(torch.bfloat16))
            return lambda: chunk_delta_rule(q, unit, v, beta=halved, scale=1.0)[0], (q, unit, v, halved)
        case "chunk_gated_delta_rule":
            inputs = (q, unit, v, gate, beta)
            return lambda: chunk_gated_delta_rule(q, unit, v, g=gate, beta=beta, scale=1.0)[0], inputs
    raise SystemExit(f"--kernel {name}: not known")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kernel", required=True)
    parser.add_argument("--shape", type=int, nargs=4, required=True)
    parser.add_argument("--calls", type=int, default=10)
    arguments = parser.parse_args()
    run, inputs = kernel_of(arguments.kernel, tuple(arguments.shape))
    do = torch.randn_like(run())
    for call in range(WARM_UP + arguments.calls):
        if call == WARM_UP:
            torch.cuda.synchronize()
            start = time.perf_counter()
        torch.autograd.grad(run(), inputs, do)
    torch.cuda.synchronize()
    print(json.dumps({"seconds": (time.perf_counter() - start) / arguments.calls}))


if __name__ == "__main__":
    main()
