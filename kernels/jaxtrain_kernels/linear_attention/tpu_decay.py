"""The decay of a chunk inside the TPU kernels: by a scalar each step, or by a gate for every key channel.

Both classes lay out gates for the kernels (`gates`, `specs`, `gradient`). In a kernel an instance is the decay of one
chunk: `into` and `out` as in chunks.Weights, `keep` for the state, and the scores with their pullback. Vectors over
steps lie along lanes in memory. The kernel transposes them by a mask, since TPUs have no cheap transpose of one row.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jaxtyping import Array, Bool, Float, Int

from jaxtrain_kernels.chunks import running_sum, split
from jaxtrain_kernels.tpu_chunks import dot

SUB_CHUNK = 16


def index(shape: tuple[int, ...], axis: int) -> Array:
    return lax.broadcasted_iota(jnp.int32, shape, axis)


def column(row: Float[Array, "1 C"]) -> Float[Array, "C 1"]:
    C = row.shape[1]
    return jnp.sum(jnp.where(_itself(C), row, 0.0), axis=1, keepdims=True)


def row(column: Float[Array, "C 1"]) -> Float[Array, "1 C"]:
    C = column.shape[0]
    return jnp.sum(jnp.where(_itself(C), column, 0.0), axis=0, keepdims=True)


def split_runs(runs: Int[Array, "B L"], chunk: int) -> tuple[Array, Array, Array]:
    """Return the runs of chunks [N B C], which steps see the state before, and which steps the state after keeps."""
    runs_NBC = split(runs, chunk, edge=True)
    before = jnp.concatenate([runs_NBC[:1, :, :1], runs_NBC[:-1, :, -1:]])
    return runs_NBC, runs_NBC == before, runs_NBC == runs_NBC[:, :, -1:]


def _seen(runs_row: Float[Array, "1 C"]) -> Array:
    C = runs_row.shape[1]
    return (column(runs_row) == runs_row) & (index((C, C), 0) >= index((C, C), 1))


@dataclass(frozen=True, slots=True)
class ScalarDecay:
    into: Float[Array, "C 1"]
    out: Float[Array, "C 1"]
    keep: Float[Array, "1 1"]
    pairs: Float[Array, "C C"]

    @staticmethod
    def gates(log_decay: Float[Array, "B L H 1"], runs: Int[Array, "B L"], chunk: int) -> tuple[Array, ...]:
        """Return rows [B, H, N, 5, C]: both parts of the running sum, into, out, runs; XLA computes them."""
        runs_NBC, alive, lasts = split_runs(runs, chunk)
        sums = running_sum(split(log_decay[..., 0], chunk), axis=2)  # [N, B, C, H]
        into, out = sums.exp(where=alive[..., None]), sums[:, :, -1:].since(sums).exp(where=lasts[..., None])
        shared = jnp.broadcast_to(runs_NBC[..., None].astype(jnp.float32), into.shape)
        rows_NB5CH = jnp.stack([sums.coarse, sums.fine, into, out, shared], axis=2)
        return (rows_NB5CH.transpose(1, 4, 0, 2, 3),)

    @staticmethod
    def specs(gates: tuple[Array, ...], at) -> list[pl.BlockSpec]:
        C = gates[0].shape[-1]
        return [pl.BlockSpec((None, None, None, 5, C), lambda b, h, n: (b, h, at(n), 0, 0))]

    @staticmethod
    def gradient_block(gates: tuple[Array, ...], at) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        B, H, N, _, C = gates[0].shape
        spec = pl.BlockSpec((None, None, None, 1, C), lambda b, h, n: (b, h, at(n), 0, 0))
        return jax.ShapeDtypeStruct((B, H, N, 1, C), jnp.float32), spec

    @staticmethod
    def gradient(dgate: Float[Array, "B H N 1 C"]) -> Float[Array, "B H L 1"]:
        return dgate.reshape(*dgate.shape[:2], -1, 1)

    @classmethod
    def read(cls, rows_ref) -> "ScalarDecay":
        coarse, fine, into, out, runs = (rows_ref[i : i + 1, :] for i in range(5))
        C = runs.shape[1]
        exponent = (column(coarse) - coarse) + (column(fine) - fine)
        pairs = jnp.exp(jnp.where(_seen(runs), exponent, -jnp.inf))
        return cls(column(into), column(out), into[:, C - 1 :], pairs)

    def scores(self, q: Float[Array, "C K"], k: Float[Array, "C K"]) -> Float[Array, "C C"]:
        return dot(q, k, (1, 1)) * self.pairs

    def pull(self, q: Float[Array, "C K"], k: Float[Array, "C K"], scores: Array, dscores: Float[Array, "C C"]):
        """Return the gradients of queries and keys from that of the scores, and the one that `write_gradient` takes."""
        weighted = (dscores * self.pairs).astype(q.dtype)
        return dot(weighted, k, (1, 0)), dot(weighted, q, (0, 0)), dscores * scores

    def write_gradient(
        self, ref, dpairs: Float[Array, "C C"], dinto: Float[Array, "C K"], dout: Array, dkeep: Float[Array, "1 K"]
    ) -> None:
        """Write the gradient of the log-decays, from those of the logarithms of pairs, `into`, `out` and `keep`.

        A step's log-decay is part of all pairs it lies between, of `into` for it and later steps, and of `out` for
        earlier steps.
        """
        C = dpairs.shape[0]
        before = index((C, C), 0) < index((C, C), 1)  # [S T], whether step S is before T
        of_earlier = dot(dpairs, before.astype(dpairs.dtype), (1, 0))  # [S T], of pairs of S with steps before T
        dinto, dout = (jnp.sum(x, axis=1, keepdims=True) for x in (dinto, dout))
        ref[...] = jnp.sum(jnp.where(before, dout, of_earlier + dinto), axis=0, keepdims=True) + jnp.sum(dkeep)


@dataclass(frozen=True, slots=True)
class ChannelDecay:
    into: Float[Array, "C K"]
    out: Float[Array, "C K"]
    keep: Float[Array, "1 K"]
    coarse: Float[Array, "C K"]
    fine: Float[Array, "C K"]
    seen: Array

    @staticmethod
    def gates(log_decay: Float[Array, "B L H K"], runs: Int[Array, "B L"], chunk: int) -> tuple[Array, ...]:
        """Return log-decays [B, H, L', K] and rows [B, N, 3, C]: runs, and the masks of `split_runs`."""
        rows_NB3C = jnp.stack([x.astype(jnp.float32) for x in split_runs(runs, chunk)], axis=2)
        padding = ((0, 0), (0, 0), (0, -log_decay.shape[1] % chunk), (0, 0))
        return jnp.pad(log_decay.swapaxes(1, 2), padding), rows_NB3C.swapaxes(0, 1)

    @staticmethod
    def specs(gates: tuple[Array, ...], at) -> list[pl.BlockSpec]:
        (_, _, _, K), (_, _, _, C) = (x.shape for x in gates)
        rows = pl.BlockSpec((None, None, 3, C), lambda b, h, n: (b, at(n), 0, 0))
        return [pl.BlockSpec((None, None, C, K), lambda b, h, n: (b, h, at(n), 0)), rows]

    @staticmethod
    def gradient_block(gates: tuple[Array, ...], at) -> tuple[jax.ShapeDtypeStruct, pl.BlockSpec]:
        return jax.ShapeDtypeStruct(gates[0].shape, jnp.float32), ChannelDecay.specs(gates, at)[0]

    @staticmethod
    def gradient(dgate: Float[Array, "B H L K"]) -> Float[Array, "B H L K"]:
        return dgate

    @classmethod
    def read(cls, gate_ref, rows_ref) -> "ChannelDecay":
        gate, (runs, alive, lasts) = gate_ref[...], (rows_ref[i : i + 1, :] for i in range(3))
        C = gate.shape[0]
        rounded = jnp.round(gate * 256.0) / 256.0
        until = (index((C, C), 0) >= index((C, C), 1)).astype(jnp.float32)
        coarse, fine = dot(until, rounded, (1, 0)), dot(until, gate - rounded, (1, 0))
        into = column(alive) * jnp.exp(coarse) * jnp.exp(fine)
        out = column(lasts) * jnp.exp(coarse[C - 1 :] - coarse) * jnp.exp(fine[C - 1 :] - fine)
        return cls(into, out, into[C - 1 :], coarse, fine, _seen(runs))

    def _subs(self) -> range:
        return range(SUB_CHUNK, self.coarse.shape[0], SUB_CHUNK)

    def _towards(self, start: int) -> tuple[Array, Array]:
        """Return the decay from a sub-chunk's start to its steps, and to that start from all steps before it."""
        ends, own = slice(start - 1, start), slice(start, start + SUB_CHUNK)
        after = jnp.exp(self.coarse[own] - self.coarse[ends]) * jnp.exp(self.fine[own] - self.fine[ends])
        exponent = jnp.where(index(self.coarse.shape, 0) < start, self.coarse[ends] - self.coarse, -jnp.inf)
        return after, jnp.exp(exponent) * jnp.exp(self.fine[ends] - self.fine)

    def _within(self, step: int) -> Float[Array, "N c K"]:
        """Return the decay from one step of every sub-chunk to the others, 0 to earlier ones."""
        coarse, fine = (_by_sub_chunk(x) for x in (self.coarse, self.fine))
        exponent = (coarse - coarse[:, step : step + 1]) + (fine - fine[:, step : step + 1])
        return jnp.exp(jnp.where(index(exponent.shape, 1) >= step, exponent, -jnp.inf))

    def _on(self, step: int) -> Array:
        """Return the positions of the scores of each sub-chunk with one of its own steps, [C, C]."""
        C = self.coarse.shape[0]
        return index((C, C), 1) == index((C, C), 0) // SUB_CHUNK * SUB_CHUNK + step

    def scores(self, q: Float[Array, "C K"], k: Float[Array, "C K"]) -> Float[Array, "C C"]:
        C, dtype = q.shape[0], q.dtype
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
        tiles = [jnp.zeros((SUB_CHUNK, C), jnp.float32)]
        for start in self._subs():
            after, before = self._towards(start)
            own = (q[start : start + SUB_CHUNK] * after).astype(dtype)
            tiles.append(dot(own, (k * before).astype(dtype), (1, 1)))
        scores = jnp.concatenate(tiles)
        q_NcK, k_NcK = _by_sub_chunk(q), _by_sub_chunk(k)
        for step in range(SUB_CHUNK):
            near = jnp.sum(q_NcK * k_NcK[:, step : step + 1] * self._within(step), axis=2, keepdims=True)
            scores = jnp.where(self._on(step), near.reshape(C, 1), scores)
        return jnp.where(self.seen, scores, 0.0)

    def pull(self, q: Float[Array, "C K"], k: Float[Array, "C K"], scores: Array, dscores: Float[Array, "C C"]):
        """Return the gradients of queries, keys and log-decays from that of the scores.

        A log-decay is part of all pairs that its step lies between. Pairs in different sub-chunks are summed by query
        if the step is in the query's sub-chunk, else by key. (A sum by query minus a sum by key would be shorter, but
        it is a small difference of large sums.)
        """
        (C, K), dtype = q.shape, q.dtype
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
        dscores = jnp.where(self.seen, dscores, 0.0)
        tiles, dk = [], jnp.zeros((C, K), jnp.float32)
        for start in (*reversed(self._subs()), 0):
            own = slice(start, start + SUB_CHUNK)
            of_pairs = k * dk  # with queries of later sub-chunks
            of_earlier = jnp.sum(jnp.where(index((C, K), 0) < start, of_pairs, 0.0), axis=0, keepdims=True)
            dq_tile, dk_tile = self._pull_far(start, q[own], k, dscores[own].astype(dtype))
            tiles.append((dq_tile, of_pairs[own], jnp.broadcast_to(of_earlier, (SUB_CHUNK, K))))
            dk += dk_tile
        dq, of_own, of_earlier = (jnp.concatenate(x) for x in zip(*reversed(tiles), strict=True))
        by_query, by_key = self._sum_of_own(q * dq, from_step=True), self._sum_of_own(of_own)
        dq_near, dk_near, dgate_near = self._pull_near(q, k, dscores)
        return dq + dq_near, dk + dk_near, by_query + by_key + of_earlier + dgate_near

    def _sum_of_own(self, x: Float[Array, "C K"], *, from_step: bool = False) -> Float[Array, "C K"]:
        """Return for each step the sum over the steps of its sub-chunk before it or, with `from_step`, from it on."""
        rows, columns = (index((x.shape[0], x.shape[0]), axis) for axis in (0, 1))
        taken = columns >= rows if from_step else columns < rows
        return dot((taken & (rows // SUB_CHUNK == columns // SUB_CHUNK)).astype(x.dtype), x, (1, 0))

    def _pull_far(self, start: int, q: Float[Array, "c K"], k: Float[Array, "C K"], dscores: Float[Array, "c C"]):
        """Return the gradients of a sub-chunk's queries and of all keys from their scores with earlier sub-chunks."""
        if start == 0:
            return jnp.zeros_like(q), jnp.zeros_like(k)
        after, before = self._towards(start)
        dtype = dscores.dtype
        dq = dot(dscores, (k * before).astype(dtype), (1, 0)) * after
        return dq, dot(dscores, (q * after).astype(dtype), (0, 0)) * before

    def _pull_near(self, q: Float[Array, "C K"], k: Float[Array, "C K"], dscores: Float[Array, "C C"]):
        """Return the gradients of queries, keys and log-decays from the scores within sub-chunks."""
        q_NcK, k_NcK = _by_sub_chunk(q), _by_sub_chunk(k)
        dq = dk = dgate = of_keys = jnp.zeros_like(q_NcK)  # of_keys: of the pairs with keys up to a step, by query
        steps = index(q_NcK.shape, 1)
        for step in range(SUB_CHUNK):
            dnear = jnp.sum(jnp.where(self._on(step), dscores, 0.0), axis=1, keepdims=True)
            weighted = dnear.reshape(-1, SUB_CHUNK, 1) * self._within(step)
            dq_step, dk_step = weighted * k_NcK[:, step : step + 1], jnp.sum(weighted * q_NcK, axis=1, keepdims=True)
            of_keys += q_NcK * dq_step
            between = jnp.sum(jnp.where(steps > step, of_keys, 0.0), axis=1, keepdims=True)
            dq += dq_step
            dk += jnp.where(steps == step, dk_step, 0.0)
            dgate += jnp.where(steps == step + 1, between, 0.0)
        return dq.reshape(q.shape), dk.reshape(k.shape), dgate.reshape(q.shape)

    def write_gradient(
        self, ref, dgate: Float[Array, "C K"], dinto: Float[Array, "C K"], dout: Array, dkeep: Float[Array, "1 K"]
    ) -> None:
        """Write the gradient of the log-decays, from that of the scores and those of the logarithms of the others."""
        C = dgate.shape[0]
        until = (index((C, C), 0) <= index((C, C), 1)).astype(jnp.float32)  # [T S], whether step T is at most S
        ref[...] = dgate + dot(until, dinto, (1, 0)) + dot(1.0 - until, dout, (1, 0)) + dkeep


def _itself(C: int) -> Bool[Array, "C C"]:
    return index((C, C), 0) == index((C, C), 1)


def _by_sub_chunk(x: Float[Array, "C K"]) -> Float[Array, "N c K"]:
    return x.reshape(-1, SUB_CHUNK, x.shape[1])
