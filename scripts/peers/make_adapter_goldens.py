"""Record what `peft` computes with random adapters around the recorded Llama, and check our export of them.

    ENVIRONMENT/bin/python scripts/peers/make_adapter_goldens.py tests/golden
    ENVIRONMENT/bin/python scripts/peers/make_adapter_goldens.py tests/golden --check EXPORTED lora

Each kind gets a folder tests/golden/peft/KIND as `save_pretrained` writes it, and golden.npz with the logits for the
tokens of the base's golden. `--check` loads an exported folder in the place of a recorded one and exits 1 where a
logit differs by more than 1e-4.
"""

import argparse
import shutil
import sys
from pathlib import Path

import numpy as np
import peft
import torch
import transformers

SEED = 20240607
KINDS = {
    "lora": {"r": 3, "lora_alpha": 5, "use_rslora": True, "target_modules": ["q_proj", "v_proj", "down_proj"]},
    "dora": {
        "r": 2,
        "lora_alpha": 3,
        "use_dora": True,
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"],
    },
}


def base(goldens: Path) -> torch.nn.Module:
    return transformers.AutoModelForCausalLM.from_pretrained(
        goldens / "huggingface" / "llama", attn_implementation="eager", dtype=torch.float32
    ).eval()


def logits(model: torch.nn.Module, goldens: Path) -> np.ndarray:
    tokens = np.load(goldens / "huggingface" / "llama" / "golden.npz")["tokens"]
    with torch.no_grad():
        return model(torch.from_numpy(tokens).long(), use_cache=False).logits.numpy()


def record(kind: str, goldens: Path) -> None:
    folder, rng = goldens / "peft" / kind, np.random.default_rng(SEED)
    model = peft.get_peft_model(base(goldens), peft.LoraConfig(task_type="CAUSAL_LM", **KINDS[kind])).eval()
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if "lora_" in name:
                spread = 0.1 if "magnitude" in name else 0.3
                noise = rng.standard_normal(parameter.shape, dtype=np.float32) * spread
                parameter.copy_(torch.from_numpy(noise) + (parameter if "magnitude" in name else 0))
    found = logits(model, goldens)
    if np.abs(found - logits(base(goldens), goldens)).max() < 0.1:
        raise RuntimeError(f"{kind}: the adapters change too little to be seen")
    shutil.rmtree(folder, ignore_errors=True)
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}"
    np.savez(folder / "golden.npz", logits=found, versions=np.array(versions))
    for file in folder.iterdir():
        file.chmod(0o644)


def check(folder: Path, kind: str, goldens: Path) -> int:
    found = logits(peft.PeftModel.from_pretrained(base(goldens), folder).eval(), goldens)
    error = np.abs(found - np.load(goldens / "peft" / kind / "golden.npz")["logits"]).max()
    print(f"{folder}: the largest difference is {error:.3g}")
    return int(error > 1e-4)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("goldens", type=Path)
    parser.add_argument("--check", nargs=2, metavar=("FOLDER", "KIND"))
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    if arguments.check:
        return check(Path(arguments.check[0]), arguments.check[1], arguments.goldens)
    for kind in KINDS:
        record(kind, arguments.goldens)
    return 0


if __name__ == "__main__":
    sys.exit(main())
