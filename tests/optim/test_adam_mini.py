"""Adam-mini against the package of its authors, and which blocks it sees in a decoder."""

import jax
import numpy as np
from optimizer_cases import RATES, as_float32, build, follow, read_golden, steps_of
from tiny import matrix, variant, vector
from tolerances import CLOSED_FORM_LAYER, assert_close

from jaxtrain.models.decoder import abstract_model
from jaxtrain.optim.adam_mini import AdamMini, within_block

FACTS = {
    "query": {"kernel": matrix("embed", "heads", "head_dim"), "bias": vector("heads", "head_dim")},
    "value": {"kernel": matrix("embed", "kv_heads", "head_dim")},
    "embedding": {"table": matrix("vocab", "embed")},
    "norm": {"scale": vector("width")},
}


def _from_torch(arrays: dict[str, np.ndarray]) -> dict:
    """Return the parameters of the recorded names, with heads of 4 and inputs before outputs."""
    query, value = (arrays[f"{name}.weight"].T.reshape(6, 2, 4) for name in ("query", "value"))
    return {
        "query": {"kernel": query, "bias": arrays["query.bias"].reshape(2, 4)},
        "value": {"kernel": value},
        "embedding": {"table": arrays["embed.weight"]},
        "norm": {"scale": arrays["norm.weight"]},
    }


def test_points_are_those_of_the_authors_package():
    golden = read_golden("adam_mini/adam_mini.npz")
    params, gradients = as_float32(_from_torch(golden["initial"])), map(_from_torch, steps_of(golden["gradient"]))
    tx = build(AdamMini(learning_rate=RATES, b2=0.999, weight_decay=0.3), rate=0.05, axes=FACTS)
    seen = follow(tx, params, [as_float32(gradient) for gradient in gradients], lambda _, params: params)
    for step, desired in enumerate(steps_of(golden["point"])):
        assert_close(seen[step], _from_torch(desired), CLOSED_FORM_LAYER, f"step {step}")


def test_the_blocks_of_a_decoder():
    _, (shapes, *_), (axes, *_) = abstract_model(variant(d_model=64))
    blocks = {
        "/".join(str(key.key) for key in path if isinstance(getattr(key, "key", None), str)): tuple(
            name for axis, name in enumerate(facts.names) if axis not in within_block(path, facts)
        )
        for path, facts in jax.tree_util.tree_leaves_with_path(axes)
    }
    layer = "stacks/blocks/blocks/"
    assert blocks == {
        "embedding/table": ("vocab",),
        "output/kernel": ("vocab",),
        "final_norm/scale": (),
        f"{layer}mixer/query/kernel": ("repeats", "heads"),
        f"{layer}mixer/key/kernel": ("repeats", "kv_heads"),
        f"{layer}mixer/value/kernel": ("repeats", "kv_heads", "head_dim"),
        f"{layer}mixer/output/kernel": ("repeats", "embed"),
        f"{layer}mlp/gate/kernel": ("repeats", "mlp"),
        f"{layer}mlp/up/kernel": ("repeats", "mlp"),
        f"{layer}mlp/down/kernel": ("repeats", "embed"),
        f"{layer}mixer_norm/scale": ("repeats",),
        f"{layer}mlp_norm/scale": ("repeats",),
    }
    state = jax.eval_shape(build(AdamMini(learning_rate=RATES), axes=axes).init, shapes)
    size = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert size < sum(leaf.size for leaf in jax.tree.leaves(state)) < 1.05 * size
