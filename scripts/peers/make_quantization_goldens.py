"""Record what `bitsandbytes` stores for a few blocks, with its dynamic map and with NormalFloat.

    ENVIRONMENT/bin/pip install bitsandbytes==0.50.2
    ENVIRONMENT/bin/python scripts/peers/make_quantization_goldens.py tests/golden/bitsandbytes

One row a block of 256: a normal, a uniform, a heavy tail, tiny values, zeros, the values of the signed and of the
unsigned map themselves, and the midpoints between neighbours of each with one ulp to either side, where a rule for ties
or a rounding of the last bit would show.
"""

import argparse
from pathlib import Path

import bitsandbytes
import numpy as np
import torch
from bitsandbytes.functional import create_dynamic_map, quantize_4bit

BLOCK = 256


def blocks(signed: np.ndarray, unsigned: np.ndarray) -> np.ndarray:
    """Return the inputs, one block a row."""
    random = np.random.default_rng(20240607)
    rows = [
        random.standard_normal(BLOCK),
        random.random(BLOCK),
        random.standard_t(1.5, BLOCK),
        1e-30 * random.standard_normal(BLOCK),
        np.zeros(BLOCK),
        signed,
        unsigned,
    ]
    for values in (signed, unsigned):
        middles = (values[:-1] + values[1:]) / np.float32(2)
        for towards in (-2, 0, 2):
            moved = middles if towards == 0 else np.nextafter(middles, np.float32(towards))
            rows.append(np.append(moved, 1.0))
    return np.stack(rows).astype(np.float32)


def codes_by_map(x: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # In float64, which bitsandbytes narrows and searches exactly. Its CPU kernel for float32 looks codes up by the
    # first 16 bits of the value and is off by one now and then, and by many among the smallest values.
    codes, scales = torch.ops.bitsandbytes.quantize_blockwise(
        torch.from_numpy(x).double(), torch.from_numpy(values), BLOCK
    )
    return codes.numpy(), scales.numpy()


def nf4_codes(x: np.ndarray) -> np.ndarray:
    packed, _ = quantize_4bit(torch.from_numpy(x), blocksize=BLOCK, quant_type="nf4")
    bytes_ = packed.numpy().reshape(-1)
    return np.stack([bytes_ >> 4, bytes_ & 15], axis=-1).reshape(x.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    signed, unsigned = (create_dynamic_map(signed=signed).numpy() for signed in (True, False))
    x = blocks(signed, unsigned)
    signed_codes, scales = codes_by_map(x, signed)
    unsigned_codes, _ = codes_by_map(np.abs(x), unsigned)
    np.savez_compressed(
        folder / "blocks.npz",
        x=x,
        scales=scales,
        signed_map=signed,
        unsigned_map=unsigned,
        signed_codes=signed_codes,
        unsigned_codes=unsigned_codes,
        nf4_codes=nf4_codes(x),
        versions=np.array(f"torch {torch.__version__}, bitsandbytes {bitsandbytes.__version__}"),
    )
    print(f"{folder}: {x.shape[0]} blocks, {(folder / 'blocks.npz').stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
