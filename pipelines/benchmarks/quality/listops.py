"""ListOps as the Long Range Arena specifies it (Tay et al. 2020): nested MIN, MAX, MED and SUM mod 10.

Trees of depth up to 10 with 2 to 10 arguments, an argument being an operation with probability 1/4;
expressions of more than 500 and fewer than 2,000 tokens are kept, where an operator opens and "]" closes.
96,000 training and 2,000 test expressions, 10 classes. Token 0 of a sequence is where the answer is asked.
"""

import random
import statistics
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor

from pipelines.benchmarks.quality.fitting import Batch, MakeBatch
from pipelines.files import exclusive_lock
from sparse_model.config import ModelConfig

MIN_LENGTH, MAX_LENGTH, MAX_DEPTH, MAX_ARGS, OPERATION_SHARE = 500, 2000, 10, 10, 0.25
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
TOKENS = ("<pad>", "<answer>", "]", *OPERATORS, *(str(digit) for digit in range(10)))
_CODE = {token: code for code, token in enumerate(TOKENS)}
_CHUNK = 500  # expressions made by one call of a worker


class _TooLongError(Exception):
    """The expression has outgrown MAX_LENGTH: it would be thrown away."""


def expression(source: random.Random) -> tuple[list[str], int]:
    """Tokens of one expression within the lengths asked for, and its value."""
    while True:
        tokens: list[str] = []
        try:
            value = _grow(source, 1, tokens)
        except _TooLongError:
            continue
        if MIN_LENGTH < len(tokens) < MAX_LENGTH:
            return tokens, value


def _grow(source: random.Random, depth: int, tokens: list[str]) -> int:
    """Append a subtree to `tokens`; its value."""
    if depth >= MAX_DEPTH or source.random() > OPERATION_SHARE:
        digit = source.randrange(10)
        tokens.append(str(digit))
        return digit
    operator = source.choice(OPERATORS)
    tokens.append(operator)
    values = [_grow(source, depth + 1, tokens) for _ in range(source.randint(2, MAX_ARGS))]
    tokens.append("]")
    if len(tokens) >= MAX_LENGTH:
        raise _TooLongError
    return apply(operator, values)


def apply(operator: str, values: list[int]) -> int:
    """The value of an operation; the median of an even number of values is rounded down."""
    if operator == "[SM":
        return sum(values) % 10
    return {"[MIN": min, "[MAX": max, "[MED": lambda v: int(statistics.median(v))}[operator](values)


def evaluate(tokens: list[str]) -> int:
    """Value of a whole expression, read from left to right with a stack."""
    stack: list[tuple[str, list[int]]] = [("", [])]
    for token in tokens:
        if token in OPERATORS:
            stack.append((token, []))
        elif token == "]":
            operator, values = stack.pop()
            stack[-1][1].append(apply(operator, values))
        else:
            stack[-1][1].append(int(token))
    return stack[0][1][0]


def make(seed: int, count: int) -> tuple[Tensor, Tensor]:
    """`count` expressions as codes, uint8 [count, MAX_LENGTH] with 0 behind the end, and values [count]."""
    source = random.Random(seed)
    codes, values = torch.zeros(count, MAX_LENGTH, dtype=torch.uint8), torch.zeros(count, dtype=torch.int64)
    for row in range(count):
        tokens, value = expression(source)
        line = [_CODE["<answer>"], *(_CODE[token] for token in tokens)]
        codes[row, : len(line)] = torch.tensor(line, dtype=torch.uint8)
        values[row] = value
    return codes, values


def dataset(folder: Path, seed: int, num_train: int, num_test: int, workers: int) -> tuple[Tensor, ...]:
    """Training codes and values, then test codes and values; made once per folder."""
    path = folder / f"listops-{seed}-{num_train}-{num_test}.pt"
    with exclusive_lock(path.with_suffix(".lock")):  # others wait for it instead of making it too
        if not path.exists():
            parts = list(_parts(seed, num_train + num_test, workers))
            codes, values = (torch.cat(column)[: num_train + num_test] for column in zip(*parts, strict=True))
            torch.save((codes, values), path)
    codes, values = torch.load(path, weights_only=True)
    return codes[:num_train], values[:num_train], codes[num_train:], values[num_train:]


def _parts(seed: int, count: int, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    chunks = -(-count // _CHUNK)
    seeds = [seed * 1_000_003 + chunk for chunk in range(chunks)]
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(make, seeds, [min(_CHUNK, count)] * chunks)


def sampler(codes: Tensor, values: Tensor) -> MakeBatch:
    """Batches of expressions of nearly one length each, so that little is padding; the length varies."""
    order = (codes > 0).sum(1).argsort()

    def make_batch(num_sequences: int, _num_steps: int, random: torch.Generator) -> Batch:
        last = max(1, len(order) - num_sequences + 1)
        first = int(torch.randint(last, (), generator=random, device=random.device))
        rows = order[first : first + num_sequences]
        return batch(codes[rows], values[rows])

    return make_batch


def batch(codes_BN: Tensor, values_B: Tensor) -> Batch:
    """Sequences cut to the longest of them."""
    lengths_B = (codes_BN > 0).sum(1)
    codes_BN = codes_BN[:, : int(lengths_B.max())].long()
    asked_BA = torch.zeros(len(codes_BN), 1, dtype=torch.int64, device=codes_BN.device)
    numeric = torch.zeros(*codes_BN.shape, 1, device=codes_BN.device)
    return Batch(numeric, codes_BN.unsqueeze(-1), asked_BA, values_B.unsqueeze(-1), lengths_B)


def config(**changes: object) -> ModelConfig:
    """Four layers, width 128, 8 heads, blocks of 32 steps."""
    values: dict[str, object] = {
        "num_numeric": 1, "cardinalities": (len(TOKENS),), "num_outputs": 10, "width": 128, "num_layers": 4,
        "num_heads": 4, "num_kv_heads": 4, "ffn_width": 256, "block_size": 32, "selector_heads": 1,
    }  # fmt: skip
    return ModelConfig(**{**values, **changes})  # pyright: ignore[reportArgumentType]
