"""A causal model that answers step by step, in time and memory that do not grow with the stream. numpy alone.

What is exact and what is not. The last `exact_blocks` blocks are kept step by step: they are ranked, the
best are read exactly, the others as their mean key and mean value, as the batch does. Older blocks are kept
as means only and never ranked or read exactly. At most `num_summaries` means are kept: beyond, the two
neighbours with the fewest steps become one, the oldest of equals first, so that means cover ever longer
stretches. As long as nothing is older than `exact_blocks`, answers are the batch's.

A block's steps decide together what the block reads. So each append computes the open block, and no other,
anew: a step's answer is the batch's answer on the stream up to the append that brought it. Whoever appends
whole blocks computes nothing twice.

Shape suffixes: L steps of the open block, M blocks kept exactly, P means, R steps of a block, W width,
H heads, G key/value heads, S rankings, D, E channels, K blocks read, X any columns.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray

from pipelines.edge.rows import Inputs

_EPS = 1.1920929e-07  # torch.nn.RMSNorm's own, in float32
Array = NDArray[np.floating]


class _Cache:
    """What one layer remembers."""

    def __init__(self, model: Mapping[str, Any], exact_blocks: int, num_summaries: int, dtype: DTypeLike):
        groups, size, channels = (
            model["num_kv_heads"],
            model["block_size"],
            model["width"] // model["num_heads"],
        )
        self.k_GMRD = np.zeros((groups, exact_blocks, size, channels), dtype)
        self.v_GMRD = np.zeros_like(self.k_GMRD)
        self.sk_SMRE = np.zeros((model["selector_heads"], exact_blocks, size, model["selector_dim"]), dtype)
        self.mean_k_GMD, self.mean_v_GMD = self.k_GMRD[:, :, 0].copy(), self.v_GMRD[:, :, 0].copy()
        self.old_k_GPD = np.zeros((groups, num_summaries + 1, channels), dtype)
        self.old_v_GPD = np.zeros_like(self.old_k_GPD)
        self.old_steps_P = np.zeros(num_summaries + 1, np.int64)
        self.num_old = 0

    def write(self, slot: int, k_GLD: Array, v_GLD: Array, sk_SLE: Array) -> None:
        """The open block as far as it goes; its means are of use once it is full."""
        steps = k_GLD.shape[1]
        self.k_GMRD[:, slot, :steps], self.v_GMRD[:, slot, :steps] = k_GLD, v_GLD
        self.sk_SMRE[:, slot, :steps] = sk_SLE
        self.mean_k_GMD[:, slot], self.mean_v_GMD[:, slot] = k_GLD.mean(1), v_GLD.mean(1)

    def give_up(self, slot: int, num_steps: int) -> None:
        """A block leaves the exact ones: its means join the old, of which there may be one too many."""
        self.old_k_GPD[:, self.num_old] = self.mean_k_GMD[:, slot]
        self.old_v_GPD[:, self.num_old] = self.mean_v_GMD[:, slot]
        self.old_steps_P[self.num_old] = num_steps
        self.num_old += 1
        if self.num_old == len(self.old_steps_P):
            self._merge()

    def _merge(self) -> None:
        steps_P = self.old_steps_P
        first = int(np.argmin(steps_P[:-1] + steps_P[1:]))
        share = steps_P[first] / (steps_P[first] + steps_P[first + 1])
        for table_GPD in (self.old_k_GPD, self.old_v_GPD):
            table_GPD[:, first] += (1.0 - share) * (table_GPD[:, first + 1] - table_GPD[:, first])
            table_GPD[:, first + 1 : -1] = table_GPD[:, first + 2 :].copy()
        steps_P[first] += steps_P[first + 1]
        steps_P[first + 1 : -1] = steps_P[first + 2 :].copy()
        self.num_old -= 1


class _Chosen(NamedTuple):
    """What one ranking reads: slots of blocks, the open one last, and of those left to their means."""

    read_K: NDArray[np.int64]
    summarised: NDArray[np.int64]


class Stream:
    """One series, answered as it comes."""

    def __init__(
        self,
        weights: Mapping[str, NDArray[np.float32]],
        model: Mapping[str, Any],
        blocks: int,
        exact_blocks: int = 256,
        num_summaries: int = 256,
        dtype: DTypeLike = np.float32,
    ) -> None:
        """`weights` as `pipelines.edge.weights.read_weights` gives them, `model` ModelConfig as a dictionary.

        `blocks` are read exactly by each block, at most `exact_blocks`. Raises ValueError for a model that is
        not causal, whose past answers change with every step, and for bounds below 1.
        """
        if not model.get("causal"):
            raise ValueError("stream: needs a causal model; set model: {causal: true} in the dataset's file")
        if min(blocks, exact_blocks, num_summaries) < 1:
            raise ValueError("stream: blocks, exact_blocks and num_summaries must be at least 1")
        self._weights = {name: array.astype(dtype) for name, array in weights.items()}
        self._frequencies = weights["frequency"], weights["selector_frequency"]
        self._model, self._blocks, self._exact_blocks = dict(model), blocks, exact_blocks
        self._caches = [_Cache(model, exact_blocks, num_summaries, dtype) for _ in range(model["num_layers"])]
        self._open_LW = np.zeros((0, model["width"]), dtype)
        self._num_full = 0
        """Blocks before the open one."""

    @property
    def num_steps(self) -> int:
        return self._num_full * self._model["block_size"] + len(self._open_LW)

    @property
    def num_bytes(self) -> int:
        """Of everything that is remembered."""
        arrays = (array for cache in self._caches for array in vars(cache).values())
        return self._open_LW.nbytes + sum(array.nbytes for array in arrays if isinstance(array, np.ndarray))

    def append(self, inputs: Inputs) -> Array:
        """Answers [N, O] for the next N steps, before any sigmoid. Nothing given is an empty answer."""
        size, first, outputs = self._model["block_size"], 0, []
        while first < inputs.num_steps:
            last = min(inputs.num_steps, first + size - len(self._open_LW))
            outputs.append(self._extend(inputs.steps(first, last)))
            first = last
        return np.concatenate(outputs) if outputs else np.zeros((0, self._model["num_outputs"]), np.float32)

    def _extend(self, inputs: Inputs) -> Array:
        """Rows that fit into the open block."""
        self._open_LW = np.concatenate([self._open_LW, self._embed(inputs)])
        x_LW = self._open_LW.copy()
        for number, cache in enumerate(self._caches):
            self._layer(number, cache, x_LW)
        new = _norm(x_LW[-inputs.num_steps :], self._weights["norm"])
        if len(self._open_LW) == self._model["block_size"]:
            self._close()
        return new @ self._weights["head"] + self._weights["head_bias"]

    def _close(self) -> None:
        self._num_full += 1
        self._open_LW = self._open_LW[:0]
        if self._num_full >= self._exact_blocks:  # the slot of the next block is taken
            for cache in self._caches:
                cache.give_up(self._num_full % self._exact_blocks, self._model["block_size"])

    def _embed(self, inputs: Inputs) -> Array:
        columns = np.concatenate([inputs.numeric * inputs.known, inputs.known], axis=1)
        x_NW = columns.astype(self._open_LW.dtype) @ self._weights["embed"] + self._weights["embed_bias"]
        for column in range(inputs.categorical.shape[1]):
            x_NW += self._weights[f"embed_categorical.{column}"][inputs.categorical[:, column]]
        return x_NW

    def _layer(self, number: int, cache: _Cache, x_LW: Array) -> None:
        """In place."""
        own = {
            name.removeprefix(f"layers.{number}.").removeprefix("chunk."): weight
            for name, weight in self._weights.items()
            if name.startswith(f"layers.{number}.")
        }
        model, slot = self._model, self._num_full % self._exact_blocks
        h_LW = _norm(x_LW, own["attention_norm"])
        k_LX, v_LX = np.split(h_LW @ own["to_kv"], 2, axis=1)
        turn, selector_turn = (self._turns(frequency, len(x_LW)) for frequency in self._frequencies)
        k_GLD, v_GLD = (
            _rotated(_heads(k_LX, model["num_kv_heads"]), turn),
            _heads(v_LX, model["num_kv_heads"]),
        )
        sk_SLE = _rotated(_heads(h_LW @ own["to_selector_k"], model["selector_heads"]), selector_turn)
        cache.write(slot, k_GLD, v_GLD, sk_SLE)
        sq_SLE = _rotated(_heads(h_LW @ own["to_selector_q"], model["selector_heads"]), selector_turn)
        reads_all = number in model["dense_layers"]
        chosen = [self._choose(cache, ranking, sq_LE, reads_all) for ranking, sq_LE in enumerate(sq_SLE)]
        q_HLD = _rotated(_heads(h_LW @ own["to_q"], model["num_heads"]), turn)
        mixed = [self._attend(cache, head, q_LD, chosen) for head, q_LD in enumerate(q_HLD)]
        x_LW += np.concatenate(mixed, axis=1) @ own["to_out"]
        gate, value = np.split(_norm(x_LW, own["ffn_norm"]) @ own["to_hidden"], 2, axis=1)
        x_LW += (gate / (1.0 + np.exp(-gate)) * value) @ own["ffn_out"]

    def _turns(self, frequency: NDArray[np.float32], rows: int) -> tuple[Array, Array]:
        step = np.arange(rows, dtype=np.float32) + np.float32(self._num_full * self._model["block_size"])
        angle = step[:, None] * frequency  # in float32, as the model has it
        return np.cos(angle).astype(self._open_LW.dtype), np.sin(angle).astype(self._open_LW.dtype)

    def _choose(self, cache: _Cache, ranking: int, sq_LE: Array, reads_all: bool) -> _Chosen:
        """Rank the exact blocks as the batch does (sparse_model.attention.block_scores); the open one is
        read."""
        rows, kept = len(sq_LE), min(self._num_full + 1, self._exact_blocks)
        slots = np.arange(self._num_full + 1 - kept, self._num_full + 1) % self._exact_blocks
        wanted = kept if reads_all else min(self._blocks, kept)
        past, read = slots[:-1], slots[-1:]
        if wanted == kept or not len(past):
            return _Chosen(slots, past[:0])
        if wanted > 1:
            sk_XE = cache.sk_SMRE[ranking, :kept].reshape(-1, sq_LE.shape[1])  # all of them, not copied
            best_LM = (sq_LE @ sk_XE.T).reshape(rows, kept, -1).max(2)[:, past]
            own_LL = sq_LE @ cache.sk_SMRE[ranking, slots[-1], :rows].T
            own_L1 = np.where(np.tri(rows, dtype=bool), own_LL, -np.inf).max(1, keepdims=True)
            score_M = (best_LM - _log_sum_exp(np.concatenate([best_LM, own_L1], axis=1))).max(0)
            order = np.argsort(-score_M, kind="stable")
            read = np.concatenate([past[np.sort(order[: wanted - 1])], read])
        return _Chosen(read, np.setdiff1d(past, read, assume_unique=True))

    def _attend(self, cache: _Cache, head: int, q_LD: Array, chosen: list[_Chosen]) -> Array:
        """One head's answer [L, D] over steps, means of blocks not read, means of what is no longer exact."""
        model, rows = self._model, len(q_LD)
        group = head * model["num_kv_heads"] // model["num_heads"]
        mine = chosen[head * model["selector_heads"] // model["num_heads"]]
        steps = len(mine.read_K) * model["block_size"] - (model["block_size"] - rows)
        keys, values = (
            table[group, mine.read_K].reshape(-1, q_LD.shape[1])[:steps]
            for table in (cache.k_GMRD, cache.v_GMRD)
        )
        logits = q_LD @ keys.T
        logits[:, -rows:][~np.tri(rows, dtype=bool)] = -np.inf
        means_k = [cache.mean_k_GMD[group, mine.summarised], cache.old_k_GPD[group, : cache.num_old]]
        means_v = [cache.mean_v_GMD[group, mine.summarised], cache.old_v_GPD[group, : cache.num_old]]
        counts = [np.full(len(mine.summarised), model["block_size"]), cache.old_steps_P[: cache.num_old]]
        of_means = q_LD @ np.concatenate(means_k).T + np.log(np.concatenate(counts)).astype(q_LD.dtype)
        logits = np.concatenate([logits, of_means], axis=1)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        return weights @ np.concatenate([values, *means_v])


def _heads(x_LX: Array, count: int) -> Array:
    return np.ascontiguousarray(x_LX.reshape(len(x_LX), count, -1).transpose(1, 0, 2))


def _rotated(x_HLD: Array, turn: tuple[Array, Array]) -> Array:
    first, second = np.split(x_HLD, 2, axis=-1)
    cos, sin = turn
    return np.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


def _norm(x_LW: Array, gain_W: Array) -> Array:
    return x_LW / np.sqrt(np.mean(np.square(x_LW), axis=1, keepdims=True) + _EPS) * gain_W


def _log_sum_exp(x_LM: Array) -> Array:
    most = x_LM.max(1, keepdims=True)
    return most + np.log(np.exp(x_LM - most).sum(1, keepdims=True))
