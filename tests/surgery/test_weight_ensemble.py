"""A weight-ensembling mixture: task arithmetic at first, and better than that once its routers have learned."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from messages import refused
from tiny import packed_batch, random_model
from tolerances import SAME_LOGITS, SAME_SUMS, assert_close

from jaxtrain.models.decoder import DecoderConfig, abstract_model
from jaxtrain.models.generate import check_decoding
from jaxtrain.models.trees import apart, together
from jaxtrain.nn.block import BlockConfig
from jaxtrain.nn.feed_forward.fast import FastFeedForwardConfig
from jaxtrain.nn.feed_forward.gated_mlp import GatedMLPConfig
from jaxtrain.nn.feed_forward.mlp import MLPConfig
from jaxtrain.nn.feed_forward.weight_ensemble import mean_so_far
from jaxtrain.nn.mixers.attention import AttentionConfig
from jaxtrain.nn.param import merge
from jaxtrain.nn.trainable import Only
from jaxtrain.objectives.entropy import Entropy
from jaxtrain.objectives.next_token import NextToken
from jaxtrain.shapes import Batch, ModelState
from jaxtrain.surgery.merging import WeightEnsemble, merged

WORDS, LENGTH, ROWS, SEEDS = 12, 16, 16, 3
BLOCK = BlockConfig(mixer=AttentionConfig(heads=2, kv_heads=2, head_dim=8), mlp=GatedMLPConfig(hidden=32, bias=True))
MODEL = DecoderConfig(vocab_size=WORDS + 2, d_model=16, repeats=1, pattern=(BLOCK,), max_length=32)
ROUTERS = Only(names=("*.mlp.router*",))
BATCH = packed_batch([[9, 7], [16]], LENGTH, vocab_size=WORDS)


def ensemble(parents, coefficient=0.3, model=MODEL) -> tuple[DecoderConfig, ModelState]:
    by = WeightEnsemble(coefficient=coefficient)
    config = by.model(model, len(parents))
    _, shapes, axes = abstract_model(config)
    tree = merged(by, [parent.params for parent in parents], together(axes), together(shapes))
    return config, apart(jax.tree.map(lambda leaf: leaf.read(), tree), shapes)


@functools.partial(jax.jit, static_argnums=0)
def logits(graph, model: ModelState, batch: Batch):
    decoder = merge(graph, model)
    return decoder.head.logits(decoder.hidden(batch).y)


def logits_of(config, model):
    return logits(abstract_model(config).graph, model, BATCH)


def test_untrained_routers_make_task_arithmetic():
    base, *tasks = parents = [random_model(MODEL, seed) for seed in range(3)]
    sums = jax.tree.map(lambda w, *tuned: w + np.float32(0.4) * sum(each - w for each in tuned), base, *tasks)
    assert_close(logits_of(*ensemble(parents, coefficient=0.4)), logits_of(MODEL, sums), SAME_LOGITS)


def test_a_router_that_chooses_one_task_makes_the_model_of_that_task():
    """Of models that differ in their feed-forward layers alone."""
    base = flatten_dict(random_model(MODEL).params)
    parents = [
        ModelState(
            unflatten_dict(base | {path: leaf for path, leaf in flatten_dict(other.params).items() if "mlp" in path}),
            {},
            {},
        )
        for other in (random_model(MODEL, seed) for seed in range(3))
    ]
    config, model = ensemble(parents)
    model.params["stacks"]["blocks"]["blocks"][0]["mlp"]["router_bias"][:] = (0.0, 1.0)
    assert_close(logits_of(config, model), logits_of(MODEL, parents[2]), SAME_LOGITS)


def test_weights_are_mixed_by_the_mean_of_a_document_so_far():
    x = np.random.default_rng(0).normal(size=(2, LENGTH, 3)).astype(np.float32)
    expected = np.empty_like(x)
    for row, ids in enumerate(BATCH.segment_ids):
        for place in range(LENGTH):
            seen = (ids == ids[place]) & (np.arange(LENGTH) <= place)
            expected[row, place] = x[row, seen].mean(axis=0)
    assert_close(jax.jit(mean_so_far)(x, BATCH.segment_ids), expected, SAME_SUMS)


def sequences(random, task: int, rows: int = ROWS) -> Batch:
    """Return rows that begin with the mark of their task, and then count up in the first one and down in the other."""
    numbers = random.integers(0, WORDS, (rows, 1)) + (1 - 2 * task) * np.arange(LENGTH)
    tokens = np.concatenate([np.full((rows, 1), WORDS + task), numbers % WORDS], axis=1).astype(np.int32)
    weights = np.ones((rows, LENGTH), np.float32)
    weights[:, 0] = 0
    ids = np.ones((rows, LENGTH), np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, ids, np.cumsum(ids, axis=1) - 1, ids - 1)


def stacked(batches, axis=0):
    return jax.tree.map(lambda *leaves: np.stack(leaves, axis), *batches)


def of_steps(seed: int, steps: int, *tasks: int) -> Batch:
    """Return the batches of some steps, with as many rows of each task."""
    random = np.random.default_rng(seed)
    parts = [[sequences(random, task, ROWS // len(tasks)) for task in tasks] for _ in range(steps)]
    return stacked([jax.tree.map(lambda *rows: np.concatenate(rows), *part) for part in parts])


def trainer(config: DecoderConfig, objective, learning_rate: float):
    """Return a jitted function that trains several models at once, and returns their first gradients too."""
    graph, tx = abstract_model(config).graph, optax.adam(learning_rate)

    def train(model: ModelState, batches: Batch) -> tuple[ModelState, dict]:
        def loss(params, batch):
            terms, weights = objective(merge(graph, model._replace(params=params)), batch, None), batch.weights
            return sum(terms.minimised.values()) / jnp.sum(weights)

        def step(carry, batch):
            gradient = jax.grad(loss)(carry[0], batch)
            updates, state = tx.update(gradient, carry[1])
            return (optax.apply_updates(carry[0], updates), state), gradient

        (params, _), gradients = jax.lax.scan(step, (model.params, tx.init(model.params)), batches)
        return model._replace(params=params), jax.tree.map(lambda leaf: leaf[0], gradients)

    return jax.jit(jax.vmap(train))


def test_routers_that_learn_from_entropy_alone_beat_task_arithmetic():
    """Three seeds: a base that knows a little of both tasks, a model of each task, and forty steps without targets."""
    train = trainer(MODEL, NextToken(), 1e-2)
    base, _ = train(
        stacked([random_model(MODEL, seed) for seed in range(SEEDS)]),
        stacked([of_steps(seed, 10, 0, 1) for seed in range(SEEDS)]),
    )
    tuned = [train(base, stacked([of_steps(seed, 40, task) for seed in range(SEEDS)]))[0] for task in (0, 1)]
    models = [
        ensemble([jax.tree.map(lambda leaf, s=seed: np.asarray(leaf[s]), one) for one in (base, *tuned)], 0.3)
        for seed in range(SEEDS)
    ]
    config, _ = models[0]
    graph, shapes, _ = abstract_model(dataclasses.replace(config, trainable=ROUTERS))
    whole = stacked([model for _, model in models])
    before = apart(together(whole), shapes)
    after, gradient = trainer(dataclasses.replace(config, trainable=ROUTERS), Entropy(), 1e-2)(
        before, stacked([of_steps(9 + seed, 40, 0, 1) for seed in range(SEEDS)])
    )
    own = {path[-1]: leaf for path, leaf in flatten_dict(gradient).items()}
    assert own.keys() == {"router", "router_bias"}
    assert all(np.abs(leaf).max(axis=(1, 2, *range(3, leaf.ndim))).all() for leaf in own.values())

    @jax.jit
    @jax.vmap
    def accuracy(model: ModelState):
        decoder, batch = merge(graph, model), jax.tree.map(lambda leaf: leaf[0], of_steps(5, 1, 0, 1))
        right = jnp.argmax(decoder.head.logits(decoder.hidden(batch).y), axis=-1) == batch.targets
        return jnp.sum(right * batch.weights) / jnp.sum(batch.weights)

    arithmetic, learned = (np.asarray(accuracy(model)) for model in (before, after))
    assert (learned >= arithmetic).all() and learned.mean() > arithmetic.mean() + 0.05, (arithmetic, learned)


def test_what_cannot_be_mixed_is_refused():
    with refused(ValueError, "one parent", "base"):
        ensemble([random_model(MODEL)])
    fast = FastFeedForwardConfig(levels=1, leaf=MLPConfig(hidden=8), hardening=0.0)
    gated = dataclasses.replace(MODEL, pattern=(dataclasses.replace(BLOCK, mlp=fast),))
    with refused(ValueError, "base=", "gate_bias"):
        ensemble([random_model(gated)] * 2, model=gated)
    config, _ = ensemble([random_model(MODEL)] * 2)
    with refused(ValueError, "cannot generate", "no cache"):
        check_decoding(config, shortest=1, longest=4, tokens=4)
    with refused(ValueError, "model.trainable"):
        Entropy().check(config)
    Entropy().check(dataclasses.replace(config, trainable=ROUTERS))
