"""Mixtures on a fake clock: pipelines of pieces against brute force, and peers against an ordinary mixture."""

import dataclasses
import functools
import itertools
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P
from messages import refused

from jaxtrain.planning.simulators import LearningAtHome, Linear, MixtureLayer, Work, beam_search, fit, timeline
from jaxtrain.planning.simulators.learning_at_home import Network
from jaxtrain.planning.simulators.mixture_layer import MOST_PIECES


def layers(count):
    """Yield layers of random costs, from links that are nothing beside the experts to experts that are nothing."""
    random = np.random.default_rng(0)
    for _ in range(count):
        alphas, betas = 10 ** random.uniform(-5, -3, 3), 10 ** random.uniform(-9, -7, 3)
        between, within, experts = (Linear(*cost) for cost in zip(alphas, betas, strict=True))
        size = 10 ** random.uniform(4, 6)
        yield MixtureLayer(moved_bytes=size, tokens=size / 2, between=between, within=within, experts=experts)


def brute_force(layer, degree):
    """Return the end of the last work: each begins when its piece and its stream have done what comes before."""
    seconds = {work: layer.seconds(work, degree) for work in ("dispatch", "gather", "experts", "scatter", "combine")}
    piece, stream = [0.0] * degree, [0.0] * 3
    pending = {0: [("dispatch", i) for i in range(degree)] + [("combine", i) for i in range(degree)]}
    pending[1] = [("gather", i) for i in range(degree)] + [("scatter", i) for i in range(degree)]
    pending[2] = [("experts", i) for i in range(degree)]
    done = [0] * degree
    order = ["dispatch", "gather", "experts", "scatter", "combine"]
    while any(pending.values()):
        for number, queue in pending.items():
            while queue and order[done[queue[0][1]]] == queue[0][0]:
                work, i = queue.pop(0)
                piece[i] = stream[number] = max(piece[i], stream[number]) + seconds[work]
                done[i] += 1
    return max(piece)


def test_the_degree_is_that_of_brute_force_on_random_costs():
    for layer in layers(200):
        times = [brute_force(layer, degree) for degree in range(1, MOST_PIECES + 1)]
        assert layer.makespan(best := layer.best_degree()) == pytest.approx(min(times), rel=1e-9)
        assert times[best - 1] == pytest.approx(min(times), rel=1e-9)


def test_the_time_lies_between_the_longest_stream_and_all_works_one_after_another():
    for layer, degree in zip(layers(20), itertools.cycle((1, 2, 5, 16)), strict=False):
        works = layer.works(degree)
        streams = [sum(w.seconds for w in works if w.stream == name) for name in ("between", "within", "experts")]
        total = layer.makespan(degree)
        assert max(max(streams), layer.least(degree)) <= total * (1 + 1e-9)
        assert total <= sum(streams) * (1 + 1e-9)
        assert degree > 1 or total == pytest.approx(sum(streams))


def test_slices_cover_every_byte_once_and_lengthen_nothing():
    cut = 0
    for layer, share in zip(layers(60), itertools.cycle((0.0, 0.1, 1.0, 10.0)), strict=False):
        degree, size = layer.best_degree(), int(share * layer.moved_bytes)
        slices = layer.gradient_slices(degree, size)
        assert [one.start for one in slices] == [0, *(one.end for one in slices)][: len(slices)]
        assert sum(one.end - one.start for one in slices) == size
        spans = [(s.begin, s.end) for s in layer.timeline(degree) if s.work.stream == "between"]
        for one in slices:
            if one.begin is not None:
                end = one.begin + layer.between(one.end - one.start)
                assert end <= layer.makespan(degree) * (1 + 1e-9)
                assert all(end <= begin + 1e-12 or one.begin >= finish - 1e-12 for begin, finish in spans)
                cut += 1
    assert cut > 20


def test_a_gradient_reduced_in_slices_is_that_reduced_whole_bit_for_bit():
    layer = MixtureLayer(
        moved_bytes=1e4, tokens=1e4, between=Linear(0.0, 1.0), within=Linear(0.0, 0.4), experts=Linear(0.0, 2.0)
    )
    cuts = [(one.start, one.end) for one in layer.gradient_slices(2, 20_000)]
    assert len(cuts) > 1
    mesh = jax.make_mesh((8,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
    gradient = np.random.default_rng(0).normal(size=(8, 20_000)).astype(np.float32)

    def reduced(cuts, x):
        return jnp.concatenate([jax.lax.psum(x[:, a:b], "d") for a, b in cuts], axis=1)

    sums = []
    for own in (cuts, [(0, 20_000)]):
        region = jax.shard_map(functools.partial(reduced, own), mesh=mesh, in_specs=P("d"), out_specs=P())
        sums.append(np.asarray(jax.jit(region)(gradient)))
    np.testing.assert_array_equal(*sums)


def test_costs_are_fitted_and_a_layer_is_that_of_a_device():
    sizes = np.array([1e3, 1e4, 1e5, 1e6])
    found = fit(sizes, 1e-4 + 2e-9 * sizes)
    assert (found.alpha, found.beta) == pytest.approx((1e-4, 2e-9))
    assert fit(sizes, 3e-9 * sizes - 1e-7).alpha == 0 and fit(sizes, [1.0] * 4).beta == pytest.approx(0, abs=1e-12)
    layer = MixtureLayer.on(
        "NVIDIA H200", tokens=4096, d_model=1024, expert_parameters=8 << 20, top_k=2, between=Linear(1e-5, 1e-10)
    )
    assert layer.seconds("experts", 1) == pytest.approx(2 * 4096 * 2 * (8 << 20) / (0.4 * 989.5e12))
    assert layer.best_degree() > 1 and layer.moved_bytes == 4096 * 2 * 1024 * 2
    with refused(ValueError, "device_kind='abacus'"):
        MixtureLayer.on("abacus", tokens=1, d_model=1, expert_parameters=1, top_k=1, between=Linear(0.0, 0.0))
    with refused(ValueError, "'a'"):
        timeline([Work("a", 0, 1.0, ("b",)), Work("b", 0, 1.0)])


@pytest.mark.parametrize("holes", [0.0, 0.7])
def test_the_search_finds_the_best_living_experts(holes):
    random = np.random.default_rng(1)
    for _ in range(20):
        scores = [random.normal(size=8) for _ in range(3)]
        alive = random.random((8, 8, 8)) >= holes
        total = scores[0][:, None, None] + scores[1][None, :, None] + scores[2]
        found = beam_search(scores, alive, top_k=4, beam=4 if not holes else 64)
        assert all(alive[one.place] for one in found)
        best = np.sort(total[alive])[::-1][:4]
        np.testing.assert_allclose([one.score for one in found], best)
    assert beam_search(scores, np.zeros((8, 8, 8), bool), top_k=4, beam=4) == []


CENTRES = np.random.default_rng(5).normal(size=(6, 8))


def batch(number, rows=16):
    """Return inputs around six centres, of three classes."""
    random = np.random.default_rng(100 + number)
    centre = random.integers(6, size=rows)
    return CENTRES[centre] + 0.5 * random.normal(size=(rows, 8)), centre % 3


NETWORK = LearningAtHome(grid=(4, 4), batch=batch, width=8, hidden=8, classes=3, waits=True)


def ordinary(start, steps, network=NETWORK):
    """Train an ordinary mixture: the best of all experts, autodiff, all updates of a step before the next."""
    params = {"keys": start.router.keys, "output": start.router.output, "experts": dict(start.experts)}
    places = list(start.experts)
    params["experts"] = [np.stack([getattr(start.experts[p], name) for p in places]) for name in ("up", "down")]
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)

    def loss(params, x, labels):
        a, b = (x @ keys for keys in params["keys"])
        scores, which = jax.lax.top_k((a[:, :, None] + b[:, None]).reshape(len(x), -1), network.top_k)
        up, down = params["experts"]
        y = jnp.einsum("bkh,bkhd->bkd", jax.nn.relu(jnp.einsum("bd,bkdh->bkh", x, up[which])), down[which])
        z = (x + jnp.einsum("bk,bkd->bd", jax.nn.softmax(scores), y)) @ params["output"]
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(z), labels[:, None], 1))

    losses, step = [], jax.jit(jax.value_and_grad(loss))
    for number in range(steps):
        x, labels = batch(number)
        value, gradient = step(params, jnp.asarray(x, jnp.float32), jnp.asarray(labels))
        params = jax.tree.map(lambda p, g: p - network.rate * g, params, gradient)
        losses.append(float(value))
    return losses


@pytest.fixture(scope="module")
def faultless():
    return NETWORK.start().run(500)


def test_without_faults_and_staleness_it_is_an_ordinary_mixture(faultless):
    np.testing.assert_allclose(faultless.losses[:60], ordinary(NETWORK.start(), 60), atol=2e-4)
    assert (faultless.answered == 1).all()


def test_a_tenth_of_the_requests_may_fail(faultless):
    failing = dataclasses.replace(NETWORK, failure_rate=0.1).start().run(500)
    assert 0.85 < failing.answered.mean() < 0.95
    assert abs(failing.losses[-100:].mean() - faultless.losses[-100:].mean()) < 0.05
    assert faultless.losses[-100:].mean() < faultless.losses[:5].mean() - 0.3
    assert failing.seconds > faultless.seconds  # trainers wait for answers that never come


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_weights_are_those_of_the_experts_that_answered(lost):
    """A peer that dies behind the choice does not answer. Without answers the residual alone is classified."""
    config = dataclasses.replace(NETWORK, grid=(1, 2), top_k=2)
    start = config.start()
    router = start.router._replace(output=np.random.default_rng(2).normal(size=(8, 3)))
    network = Network(config, router, start.experts)
    for place in list(start.experts)[:lost]:
        network.clock.after(0.01, functools.partial(network.kill, place))
    found = network.run(1)
    x, labels = batch(0)
    scores = (x @ router.keys[1])[:, lost:]
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True) if lost < 2 else scores
    h = x + sum(weights[:, [i]] * start.experts[0, lost + i](x) for i in range(2 - lost))
    z = h @ router.output
    nll = np.log(np.exp(z).sum(1)) - z[np.arange(16), labels]
    assert found.losses[0] == pytest.approx(nll.mean(), rel=1e-6)
    assert found.answered[0] == 1 - lost / 2


def test_an_expert_comes_back_as_it_was_last_stored():
    network = NETWORK.start()
    network.run(25)
    place = next(place for place, count in network.updates.items() if count > 10 and count % 10)
    lost, stored = network.experts[place], network.stored[place]
    assert (lost.up != stored.up).any()
    network.kill(place)
    assert not network.alive[place]
    network.clock.run()
    assert network.alive[place] and network.experts[place] is stored
    again = network.run(40)
    assert (again.experts[place].up != stored.up).any(), "it goes on learning"


def test_stale_updates_of_several_trainers_take_less_time_and_learn(faultless):
    stale = dataclasses.replace(NETWORK, waits=False, trainers=4, kill_rate=0.02).start().run(500)
    assert len(stale.losses) == 500 and stale.seconds < faultless.seconds / 3
    assert stale.losses[-100:].mean() < faultless.losses[-100:].mean() + 0.1


def test_the_examples_of_the_page_run(capsys):
    page = (Path(__file__).parents[2] / "docs/experts.md").read_text()
    examples = [code for code in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "simulators" in code]
    for code in examples:
        exec(code, {})
    assert len(examples) == 2 and len(capsys.readouterr().out.split()) == 6
