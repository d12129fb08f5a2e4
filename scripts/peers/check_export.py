"""Load a folder that `jaxtrain convert` wrote with `transformers` and compare its logits with recorded ones.

    ENVIRONMENT/bin/python scripts/peers/check_export.py EXPORTED tests/golden/huggingface/llama/golden.npz

Exits 0 where every float32 logit is within the tolerance, no weight was missing or left over, and the ids of special
tokens are those of the files (transformers assumes some of its own where a file has none), 1 otherwise.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


def check_token_ids(folder: Path, model: transformers.PreTrainedModel) -> None:
    """Raise ValueError for an id that transformers takes and the files do not name."""
    taken_from = {"config.json": model.config}
    if model.can_generate():
        taken_from["generation_config.json"] = model.generation_config
    for name, taken in taken_from.items():
        written = json.loads((folder / name).read_text())
        for key in TOKEN_IDS:
            if getattr(taken, key) != written.get(key):
                raise ValueError(
                    f"{folder / name}: {key} is {written.get(key)}, transformers has {getattr(taken, key)}"
                )


def logits_of(folder: Path, tokens: np.ndarray) -> np.ndarray:
    """Return the float32 logits that `transformers` computes. Raises ValueError where names or shapes do not fit."""
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    model, info = getattr(transformers, architecture).from_pretrained(
        folder, attn_implementation="eager", dtype=torch.float32, output_loading_info=True
    )
    problems = {name: found for name, found in info.items() if found}
    if problems:
        raise ValueError(f"{folder}: {problems}")
    check_token_ids(folder, model)
    with torch.no_grad():
        return model.eval()(torch.from_numpy(tokens).long()).logits.numpy()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder with config.json and safetensors")
    parser.add_argument("golden", type=Path, help=".npz with tokens and logits")
    parser.add_argument("--tolerance", type=float, default=1e-4, help="largest absolute difference (default 1e-4)")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    golden = np.load(arguments.golden)
    try:
        logits = logits_of(arguments.folder, golden["tokens"])
    except (OSError, ValueError) as error:
        print(f"FAILED: {error}", file=sys.stderr)
        return 1
    if logits.shape != golden["logits"].shape:
        print(f"FAILED: logits {logits.shape}, recorded {golden['logits'].shape}", file=sys.stderr)
        return 1
    error = float(np.abs(logits - golden["logits"]).max())
    passed = error <= arguments.tolerance  # False for NaN
    verdict = "ok" if passed else "FAILED"
    print(f"{verdict}: {arguments.folder}: largest difference {error:.3g}, tolerance {arguments.tolerance:g}")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
