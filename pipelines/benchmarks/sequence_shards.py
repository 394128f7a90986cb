"""Attention and inference over sequences in shards, one a GPU (see pipelines.benchmarks.parallel).

The operation: batch 1, 8 heads of 64 channels, 2 rankings of 16, bf16, blocks of 128 steps, 1/8 of them read,
against the same kernels with all keys and values gathered first, and against one GPU. Lists are made by two
kinds of selector inputs: "spread" (random: a shard's query blocks together want every block there is) and
"shared" (a sixteenth of the blocks stands out for everybody, and the rest of a list is as random). Bytes are
what one GPU receives from the others; `traffic` counts them for lists that agree more or less.
"""

import json
import statistics
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

from sparse_model.attention import BlockSelection, attend, select, sparse_attention
from sparse_model.attention.sharded import Fetched, Shards
from sparse_model.config import Budget, ModelConfig
from sparse_model.model import SparseEncoder

HEADS, CHANNELS, RANKINGS, SELECTOR_DIM, BLOCK = 8, 64, 2, 16, 128
DENSITY = 1 / 8
LENGTHS = (65_536, 262_144, 1_048_576)
MOST_TRAINED = 262_144  # steps of which gradients are compared
INFERENCE = ((65_536, DENSITY), (1_048_576, DENSITY), (4_194_304, 1 / 32), (8_388_608, 1 / 64))
Row = dict[str, Any]


def main(part: str, result: Path) -> None:
    """Run one part on all GPUs here; the first one's findings go to `result`, anew after each row.

    What only counts bytes needs none: then two processes take their place.
    """
    from lightning.fabric.plugins.environments.lightning import find_free_network_port
    from torch.multiprocessing.spawn import spawn

    count = 2 if part == "traffic" else torch.cuda.device_count()
    address = f"tcp://127.0.0.1:{find_free_network_port()}"
    spawn(_process, (count, address, part, result), nprocs=count)


def _process(rank: int, count: int, address: str, part: str, result: Path) -> None:
    found: Row = {"processes": count, "rows": []}
    if part == "traffic":
        distributed.init_process_group("gloo", init_method=address, rank=rank, world_size=count)
        date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        found["environment"] = {
            "device": "CPU, two processes, gloo",
            "torch": torch.__version__,
            "date": date,
        }
    else:
        torch.cuda.set_device(rank)
        device = torch.device("cuda", rank)
        distributed.init_process_group(
            "nccl", init_method=address, rank=rank, world_size=count, device_id=device
        )
        from pipelines.benchmarks.timing import environment

        found["environment"] = environment()
    for row in {"shards": operations, "inference": inference, "traffic": traffic}[part]():
        found["rows"].append(row)
        if rank == 0:
            print(json.dumps(row), flush=True)
            result.write_text(json.dumps(found))
    distributed.destroy_process_group()


def operations() -> Any:
    """The operation at every length, for both kinds of lists."""
    for num_steps in LENGTHS:
        for kind in ("spread", "shared"):
            yield operation(num_steps, kind)


def traffic(num_steps: int = 65_536) -> Any:
    """MiB that one of two processes receives, by how far the query blocks agree on what they read.

    Every query block reads 1/8 of the blocks, drawn from the share of them that is in question at all.
    """
    shards, num_blocks = Shards(), num_steps // BLOCK
    num_own = num_blocks // shards.count
    k, v = torch.zeros(2, 1, HEADS, num_steps // shards.count, CHANNELS, dtype=torch.bfloat16).unbind()
    sk = torch.zeros(1, RANKINGS, num_steps // shards.count, SELECTOR_DIM, dtype=torch.bfloat16)
    random = torch.Generator().manual_seed(0)
    for share in (1.0, 0.5, 0.25, 0.125):
        in_question = torch.randperm(num_blocks, generator=random)[: round(share * num_blocks)]
        size = 1, RANKINGS, num_own, len(in_question)
        drawn = torch.rand(size, generator=random).argsort(-1)
        lists = in_question[drawn[..., : num_blocks // 8]]
        shards.received_bytes = 0
        shards.gather(sk, dim=2)
        shards.summaries(k, v, BLOCK)
        shards.fetch(k, v, BlockSelection(lists, torch.full(lists.shape[:3], num_blocks // 8), BLOCK))
        row = {"steps": num_steps, "share_in_question": share, "ours_mib": shards.received_bytes / 2**20}
        shards.received_bytes = 0
        for t in (sk, k, v):
            shards.gather(t, dim=2)
        row["gathered_mib"] = shards.received_bytes / 2**20
        yield row | {"bytes_of_gathered": row["ours_mib"] / row["gathered_mib"]}


def operation(num_steps: int, kind: str) -> Row:
    """Differences are those for one GPU's lists: of blocks that score alike, two makers may take different
    ones."""
    shards = Shards()
    whole = _inputs(num_steps, kind)
    q, k, v, sq, sk = (t.chunk(shards.count, dim=2)[shards.rank] for t in whole)
    budget = Budget(DENSITY)
    row: Row = {"steps": num_steps, "lists": kind}
    with torch.no_grad():

        def ours() -> Tensor:
            return shards.attend(q, k, v, shards.select(sq, sk, budget, BLOCK))

        def gathered() -> Tensor:
            return _gathered(shards, q, k, v, shards.select(sq, sk, budget, BLOCK))

        def alone() -> Tensor:
            all_q, all_k, all_v, all_sq, all_sk = whole
            return sparse_attention(
                all_q, all_k, all_v, all_sq, all_sk, budget, block_size=BLOCK, implementation="triton"
            )

        row |= _compared(shards, whole, budget)
        for name, work in (("ours", ours), ("gathered", gathered)):
            shards.received_bytes = 0
            work()
            row[f"{name}_mib"] = shards.received_bytes / 2**20
            row[f"{name}_ms"] = _median_ms(work)
        row["one_gpu_ms"] = _median_ms(alone)
    if num_steps <= MOST_TRAINED:
        row |= _gradients(shards, whole, budget)
    row["bytes_of_gathered"] = row["ours_mib"] / row["gathered_mib"] if row["gathered_mib"] else None
    row["speed_of_one_gpu"] = row["one_gpu_ms"] / row["ours_ms"]
    row["speed_of_gathered"] = row["gathered_ms"] / row["ours_ms"]
    return row


def _compared(shards: Shards, whole: list[Tensor], budget: Budget) -> Row:
    """Lists and, for equal lists, outputs against one GPU's."""
    num_blocks = whole[0].shape[2] // BLOCK
    theirs, same = _one_gpus_lists(shards, whole, budget)
    q, k, v, sq, sk = (t.chunk(shards.count, dim=2)[shards.rank] for t in whole)
    found = shards.attend(q, k, v, same).float()
    expected = attend(whole[0], whole[1], whole[2], theirs).chunk(shards.count, dim=2)[shards.rank].float()
    ours = shards.select(sq, sk, budget, BLOCK)
    alike = (ours.read_mask(num_blocks) & same.read_mask(num_blocks)).sum() / same.counts_BSQ.sum()
    return {
        "lists_alike": float(alike),
        "largest_difference": float((found - expected).abs().max()),
        "largest_value": float(expected.abs().max()),
    }


def _one_gpus_lists(
    shards: Shards, whole: list[Tensor], budget: Budget
) -> tuple[BlockSelection, BlockSelection]:
    """The lists that one GPU makes, and those of this shard among them, in its own numbers."""
    num_blocks = whole[0].shape[2] // BLOCK
    theirs = select(whole[3], whole[4], budget.num_selected(num_blocks), BLOCK)
    num_own = num_blocks // shards.count
    own = slice(shards.rank * num_own, (shards.rank + 1) * num_own)
    rolled = (theirs.indices_BSQK[:, :, own] - own.start) % num_blocks
    return theirs, BlockSelection(rolled, theirs.counts_BSQ[:, :, own], BLOCK)


def _gradients(shards: Shards, whole: list[Tensor], budget: Budget) -> Row:
    """Gradients of queries, keys and values against one GPU's, for its lists: norm of the difference as a
    share, the largest of all GPUs; and milliseconds of both, forward and backward."""
    theirs, same = _one_gpus_lists(shards, whole, budget)
    q, k, v = (t.detach().requires_grad_() for t in whole[:3])
    my_q, my_k, my_v = (t.chunk(shards.count, dim=2)[shards.rank].clone().requires_grad_() for t in whole[:3])
    grad = torch.randn_like(whole[0], dtype=torch.float32).to(whole[0].dtype)
    distributed.broadcast(grad, 0)
    part = grad.chunk(shards.count, dim=2)[shards.rank].contiguous()

    def ours() -> tuple[Tensor, ...]:
        return torch.autograd.grad(shards.attend(my_q, my_k, my_v, same), (my_q, my_k, my_v), part)

    def alone() -> tuple[Tensor, ...]:
        return torch.autograd.grad(attend(q, k, v, theirs), (q, k, v), grad)

    with torch.enable_grad():
        again, found = ours(), ours()
        expected = [t.chunk(shards.count, dim=2)[shards.rank].float() for t in alone()]
        differences = torch.stack(
            [(f.float() - e).norm() / e.norm() for f, e in zip(found, expected, strict=True)]
        )
        distributed.all_reduce(differences, distributed.ReduceOp.MAX)
        return {
            "gradient_difference_q_k_v": differences.tolist(),
            "gradients_repeat": all(torch.equal(a, f) for a, f in zip(again, found, strict=True)),
            "both_ways_ms": _median_ms(ours),
            "one_gpu_both_ways_ms": _median_ms(alone),
        }


def _inputs(num_steps: int, kind: str) -> list[Tensor]:
    """Queries, keys, values, selector queries and keys of the whole sequence, the same on every GPU."""
    random = torch.Generator("cuda").manual_seed(num_steps)
    options: Row = {"generator": random, "device": "cuda", "dtype": torch.bfloat16}
    q, k, v = (torch.randn((1, HEADS, num_steps, CHANNELS), **options) for _ in range(3))
    sq, sk = (torch.randn((1, RANKINGS, num_steps, SELECTOR_DIM), **options) for _ in range(2))
    if kind == "shared":  # one channel says which blocks matter, and every query asks for it
        blocks = torch.rand((num_steps // BLOCK,), generator=random, device="cuda") < 1 / 16
        sk[..., 0] = blocks.repeat_interleave(BLOCK).to(sk.dtype) * 8
        sq[..., 0] = 8
    return [q, k, v, sq, sk]


def _gathered(shards: Shards, q: Tensor, k: Tensor, v: Tensor, chosen: BlockSelection) -> Tensor:
    """The same, but every GPU gets all keys and values before it reads."""
    from sparse_model.attention import triton_sharded

    all_k, all_v = shards.gather(k, dim=2), shards.gather(v, dim=2)
    num_blocks = all_k.shape[2] // BLOCK
    place = torch.arange(HEADS * num_blocks, device=k.device).view(1, HEADS, num_blocks)
    tables = (t.reshape(HEADS * num_blocks, -1) for t in (all_k, all_v))
    means = tuple(t.unflatten(2, (-1, BLOCK)).mean(3) for t in (all_k, all_v))
    return triton_sharded.attend(q, Fetched(*tables, place), means, chosen)  # pyright: ignore


def _median_ms(work: Callable[[], object], repeats: int = 5) -> float:
    """Wall-clock of all GPUs together, after one run to warm up."""
    work()
    times = []
    for _ in range(repeats):
        distributed.barrier()
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        distributed.barrier()
        torch.cuda.synchronize()
        times.append(1e3 * (time.perf_counter() - started))
    return statistics.median(times)


def inference() -> Any:
    """The encoder over long sequences in shards; where one GPU is quick enough, against it."""
    config = ModelConfig(
        num_numeric=16, cardinalities=(), num_outputs=1, width=512, num_layers=8, num_heads=8, num_kv_heads=8,
        ffn_width=1408, block_size=BLOCK,
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = SparseEncoder(config).bfloat16().eval()
    torch.nn.init.normal_(model.head.weight, std=0.02)
    for parameter in model.parameters():
        distributed.broadcast(parameter.data, 0)
    for num_steps, density in INFERENCE:
        yield inferred(model, num_steps, Budget(density), compare=num_steps <= 1_048_576)


def inferred(model: SparseEncoder, num_steps: int, budget: Budget, compare: bool) -> Row:
    """Seconds and peak memory a GPU of one pass (the second, where there are two) over one sequence."""
    shards = Shards()
    row: Row = {"steps": num_steps, "density": budget.density}
    random = torch.Generator("cuda").manual_seed(1)
    numeric = torch.randn(1, num_steps, 16, device="cuda", dtype=torch.bfloat16, generator=random)
    mine = numeric.chunk(shards.count, dim=1)[shards.rank].contiguous()
    expected = None
    with torch.no_grad():
        passes = 2 if num_steps <= 65_536 else 1  # the first length warms up
        if compare:
            row["one_gpu_s"], expected = _timed(model, numeric, budget, passes)
        del numeric
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        model.spread(shards)
        row["seconds"], outputs = _timed(model, mine, budget, passes)
        model.spread(None)
    row["peak_gib_per_gpu"] = torch.cuda.max_memory_allocated() / 2**30
    row["received_gib"] = shards.received_bytes / 2**30 / passes
    row["is_finite"] = bool(outputs.isfinite().all())
    if expected is not None:
        part = expected.chunk(shards.count, dim=1)[shards.rank].float()
        difference = outputs.float() - part
        row["rms_difference_share"] = float(difference.square().mean().sqrt() / part.square().mean().sqrt())
    return row


def _timed(model: SparseEncoder, numeric: Tensor, budget: Budget, passes: int) -> tuple[float, Tensor]:
    nothing = torch.zeros(*numeric.shape[:2], 0, dtype=torch.int64, device="cuda")
    known = torch.ones_like(numeric)
    seconds, outputs = 0.0, numeric
    for _ in range(passes):
        distributed.barrier()
        torch.cuda.synchronize()
        started = time.perf_counter()
        outputs = model(numeric, known, nothing, budget)
        torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds, outputs
