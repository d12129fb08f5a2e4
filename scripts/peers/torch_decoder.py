"""Training throughput of a small decoder in PyTorch on CPU cores: the peer that jaxtrain's step is timed against.

    ENVIRONMENT/bin/python scripts/peers/torch_decoder.py --mode eager --mode compile

The sizes are an argument, by default those of 6.5M parameters: d_model 256, 8 layers, 8 heads, gated feed-forward 704
(SwiGLU), RMSNorm, rotary positions, 256 bytes, untied head, sequence 256, batch 16, float32, AdamW, no dropout. Written
as a careful PyTorch user would for speed: projections that share an input are one matrix, attention is
`scaled_dot_product_attention`, the loss is taken on flat logits, gradients are set to None, AdamW is fused
(`--optimizer` times the other forms). Compiled means the forward and loss in one full graph, from which the backward
follows. Gradients are clipped where the sizes say so. Left out: schedules and data loading, so that what is timed is
the step alone.

Prints one JSON line a mode and repetition; the clock runs over `--steps` steps after `--warmup` unmeasured ones.
"""

import argparse
import json
import math
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Sizes(NamedTuple):
    """The sizes of the model and of its batch; the norm to which gradients are clipped, if they are."""

    d_model: int = 256
    layers: int = 8
    heads: int = 8
    hidden: int = 704
    vocabulary: int = 256
    length: int = 256
    batch: int = 16
    clip_norm: float | None = None


class Attention(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.heads = sizes.heads
        self.qkv = nn.Linear(sizes.d_model, 3 * sizes.d_model, bias=False)
        self.out = nn.Linear(sizes.d_model, sizes.d_model, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        batch, length, width = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True)
        return self.out(y.transpose(1, 2).reshape(batch, length, width))


class FeedForward(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.gate_up = nn.Linear(sizes.d_model, 2 * sizes.hidden, bias=False)
        self.down = nn.Linear(sizes.hidden, sizes.d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.attention_norm, self.attention = nn.RMSNorm(sizes.d_model, eps=1e-6), Attention(sizes)
        self.mlp_norm, self.mlp = nn.RMSNorm(sizes.d_model, eps=1e-6), FeedForward(sizes)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Returns the mean next-token loss of a batch."""

    def __init__(self, sizes: Sizes):
        super().__init__()
        self.embed = nn.Embedding(sizes.vocabulary, sizes.d_model)
        self.blocks = nn.ModuleList(Block(sizes) for _ in range(sizes.layers))
        self.norm = nn.RMSNorm(sizes.d_model, eps=1e-6)
        self.head = nn.Linear(sizes.d_model, sizes.vocabulary, bias=False)
        cos, sin = rope_tables(sizes.d_model // sizes.heads, sizes.length)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for parameter in self.parameters():
            if parameter.ndim == 2:
                nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return F.cross_entropy(self.head(self.norm(x)).flatten(0, 1), targets.flatten())


def rope_tables(head_dim: int, length: int) -> tuple[Tensor, Tensor]:
    angles = torch.outer(torch.arange(length), 10_000.0 ** -(torch.arange(0, head_dim, 2) / head_dim))
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def make_step(mode: str, optimizer_form: str, sizes: Sizes) -> Callable[[Tensor, Tensor], Tensor]:
    """Return a function that trains on one batch and returns the loss."""
    torch.manual_seed(0)
    model = Decoder(sizes)
    forms = {"fused": {"fused": True}, "foreach": {"foreach": True}, "loop": {"foreach": False, "fused": False}}
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, betas=(0.9, 0.95), **forms[optimizer_form])
    loss_of = torch.compile(model, fullgraph=True, dynamic=False) if mode == "compile" else model

    def step(tokens: Tensor, targets: Tensor) -> Tensor:
        loss = loss_of(tokens, targets)
        loss.backward()
        if sizes.clip_norm is not None:
            nn.utils.clip_grad_norm_(model.parameters(), sizes.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return step


def measure(
    step: Callable[[Tensor, Tensor], Tensor], sizes: Sizes, *, steps: int, clock: Callable[[], float]
) -> tuple[float, float]:
    """Return tokens a second and the last loss over so many steps."""
    shape = (sizes.batch, sizes.length + 1)
    rows = torch.randint(0, sizes.vocabulary, shape, generator=torch.Generator().manual_seed(1))
    tokens, targets = rows[:, :-1].contiguous(), rows[:, 1:].contiguous()
    start = clock()
    for _ in range(steps):
        loss = step(tokens, targets)
    return steps * sizes.batch * sizes.length / (clock() - start), loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--mode", action="append", choices=("eager", "compile"), help="may be repeated; default both")
    parser.add_argument("--sizes", default="{}", help="JSON: the sizes that are not the default ones")
    parser.add_argument("--optimizer", default="fused", choices=("fused", "foreach", "loop"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3, help="measurements of each mode, one after the other")
    parser.add_argument("--processor-time", action="store_true", help="the clock of this process, for one thread")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.processor_time else time.perf_counter
    torch.set_num_threads(arguments.threads)
    modes = arguments.mode or ["eager", "compile"]
    sizes = Sizes(**json.loads(arguments.sizes))
    steps = {mode: make_step(mode, arguments.optimizer, sizes) for mode in modes}
    for step in steps.values():
        measure(step, sizes, steps=arguments.warmup, clock=clock)
    for _ in range(arguments.repeats):
        for mode, step in steps.items():
            tokens_per_second, loss = measure(step, sizes, steps=arguments.steps, clock=clock)
            row = {"peer": "torch", "version": torch.__version__, "mode": mode, "threads": arguments.threads}
            row |= {"optimizer": arguments.optimizer, "steps": arguments.steps}
            print(json.dumps(row | {"tokens_per_second": round(tokens_per_second, 1), "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
