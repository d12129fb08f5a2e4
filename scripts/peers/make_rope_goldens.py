"""Record the frequencies of `transformers` for each way of scaling rotary embeddings.

    ENVIRONMENT/bin/python scripts/peers/make_rope_goldens.py tests/golden/rope.json

Each case has the settings of a config.json, the length of a row, the frequencies and the factor of sines and cosines.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

HEAD_DIM, MAX_LENGTH = 32, 4096
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0 + 0.05 * i for i in range(16)],
    "long_factor": [1.0 + 0.5 * i for i in range(16)],
    "original_max_position_embeddings": 1024,
}
YARN = {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 1024}
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "linear": ({"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0}, 100),
    "dynamic, short": ({"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}, 4096),
    "dynamic, long": ({"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0}, 10_000),
    "yarn": (YARN, 100),
    "yarn of another ramp": (YARN | {"beta_fast": 16.0, "beta_slow": 2.0, "rope_theta": 500.0}, 100),
    "yarn, not truncated": (YARN | {"truncate": False}, 100),
    "yarn with a factor of its own": (YARN | {"attention_factor": 1.5}, 100),
    "yarn of DeepSeek": (YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}, 100),
    "longrope, short": (LONG, 1024),
    "longrope, long": (LONG, 1025),
    "longrope with a factor": (LONG | {"factor": 8.0}, 1025),
    "longrope with a factor of its own": (LONG | {"attention_factor": 1.25}, 1025),
    "llama3": (
        {
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 1024,
        },
        100,
    ),
}


def record(settings: dict[str, Any], length: int) -> dict[str, Any]:
    config = transformers.LlamaConfig(
        hidden_size=2 * HEAD_DIM,
        num_attention_heads=2,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_LENGTH,
        rope_parameters=dict(settings),
    )
    frequencies, factor = ROPE_INIT_FUNCTIONS[settings["rope_type"]](config, torch.device("cpu"), seq_len=length)
    return {"settings": settings, "length": length, "frequencies": frequencies.tolist(), "factor": float(factor)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", type=Path)
    file = parser.parse_args().file
    recorded = {
        "versions": f"torch {torch.__version__}, transformers {transformers.__version__}",
        "head_dim": HEAD_DIM,
        "max_position_embeddings": MAX_LENGTH,
        "cases": {name: record(settings, length) for name, (settings, length) in CASES.items()},
    }
    file.write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
