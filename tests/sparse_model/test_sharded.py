"""Attention over a sequence in two processes is attention over the sequence: values, gradients, and what
travels."""

from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as distributed
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from sparse_model.attention import BlockSelection, attend, select
from sparse_model.attention.sharded import Shards
from sparse_model.config import Budget, ModelConfig
from sparse_model.model import SparseEncoder

WORLD, BLOCK, STEPS = 2, 4, 64
BUDGET = Budget(0.25)
SHAPES = {  # heads, key/value heads, rankings
    "one ranking": (2, 2, 1),
    "grouped queries, finer rankings": (4, 1, 2),
    "finer keys than rankings": (4, 4, 2),
}


def _tensors(heads: int, groups: int, rankings: int) -> list[Tensor]:
    """Queries, keys, values, gradient, selector queries and keys of a whole batch, the same everywhere."""
    random = torch.Generator().manual_seed(heads * 10 + rankings)
    sizes = [(heads, 8), (groups, 8), (groups, 8), (heads, 8), (rankings, 4), (rankings, 4)]
    return [torch.randn((2, h, STEPS, d), generator=random, dtype=torch.float64) for h, d in sizes]


def _whole(heads: int, groups: int, rankings: int, summaries: bool) -> tuple[BlockSelection, list[Tensor]]:
    """The lists, the output and the gradients of q, k and v on one device, by the reference."""
    q, k, v, grad, sq, sk = _tensors(heads, groups, rankings)
    leaves = q.requires_grad_(), k.requires_grad_(), v.requires_grad_()
    chosen = select(sq, sk, BUDGET.num_selected(STEPS // BLOCK), BLOCK, implementation="reference")
    out = attend(*leaves, chosen, summaries=summaries, implementation="reference")
    return chosen, [out.detach(), *torch.autograd.grad(out, leaves, grad)]


def _mine(t: Tensor, rank: int) -> Tensor:
    return t.chunk(WORLD, dim=2)[rank]


def _in_shards(rank: int, shape: tuple[int, int, int], summaries: bool) -> list[float]:
    """Largest differences of one process's output, and gradients of its q, k and v, from the reference's."""
    shards = Shards()
    q, k, v, grad, sq, sk = (_mine(t, rank) for t in _tensors(*shape))
    q, k, v = leaves = tuple(t.clone().requires_grad_() for t in (q, k, v))
    chosen = shards.select(sq, sk, BUDGET, BLOCK)
    out = shards.attend(q, k, v, chosen, summaries=summaries)
    found = [out.detach(), *torch.autograd.grad(out, leaves, grad)]
    whole, expected = _whole(*shape, summaries)
    own = rank * STEPS // BLOCK // WORLD
    read = chosen.read_mask(STEPS // BLOCK).roll(own, dims=3)
    assert torch.equal(read, _mine(whole.read_mask(), rank))
    return [float((f - _mine(e, rank)).abs().max()) for f, e in zip(found, expected, strict=True)]


def _traffic(rank: int) -> dict[str, Any]:
    """Bytes received where every query block reads its own block alone, and where it reads all."""
    _, k, v, *_ = (_mine(t, rank) for t in _tensors(2, 2, 1))
    num_own, received = STEPS // BLOCK // WORLD, []
    for slots in (1, STEPS // BLOCK):
        shards = Shards()
        lists = (torch.arange(slots) + torch.arange(num_own)[:, None] * (slots == 1)).expand(2, 1, -1, -1)
        chosen = BlockSelection(lists, torch.full(lists.shape[:3], slots), BLOCK)
        shards.fetch(k, v, chosen)
        received.append(shards.received_bytes)
    return {"own": received[0], "all": received[1]}


def _encoder(rank: int) -> dict[str, Any]:
    config = ModelConfig(num_numeric=2, cardinalities=(), num_outputs=1, width=16, block_size=BLOCK)
    torch.manual_seed(0)
    model = SparseEncoder(config).eval()
    torch.nn.init.normal_(model.head.weight)
    numeric, nothing = torch.randn(1, STEPS, 2), torch.zeros(1, STEPS, 0, dtype=torch.int64)
    with torch.no_grad():
        whole = model(numeric, torch.ones_like(numeric), nothing, BUDGET).chunk(WORLD, dim=1)[rank]
        model.spread(Shards())
        part, none = numeric.chunk(WORLD, dim=1)[rank], nothing.chunk(WORLD, dim=1)[rank]
        found = model(part, torch.ones_like(part), none, BUDGET)
        with pytest.raises(ValueError, match="read with a budget"):
            model(part, torch.ones_like(part), none)
    return {"difference": float((found - whole).abs().max()), "size": float(whole.abs().max())}


def _process(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD)
    found = {
        "shapes": {
            f"{name}, {'with' if summaries else 'without'} summaries": _in_shards(rank, shape, summaries)
            for name, shape in SHAPES.items()
            for summaries in (True, False)
        },
        "traffic": _traffic(rank),
        "encoder": _encoder(rank),
    }
    torch.save(found, folder / f"{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two real processes over gloo found."""
    folder = tmp_path_factory.mktemp("shards")
    # not forks of this process, in which a thousand tests have left threads
    get_context("forkserver").set_forkserver_preload([__name__])
    start_processes(_process, (folder,), nprocs=WORLD, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(WORLD)]


def test_two_processes_give_what_one_gives_and_its_gradients(found: list[dict[str, Any]]) -> None:
    """In float64, where only the order of sums differs."""
    for of_rank in found:
        for name, differences in of_rank["shapes"].items():
            assert max(differences) < 1e-12, name


def test_only_blocks_that_are_read_travel(found: list[dict[str, Any]]) -> None:
    masks = 2 * 2 * STEPS // BLOCK  # who wants what: a byte a sequence, head and block
    half = 2 * 2 * 2 * (STEPS // WORLD) * 8 * 8  # keys and values of the other shard, float64
    for of_rank in found:
        assert of_rank["traffic"] == {"own": masks, "all": masks + half}


def test_the_encoder_in_shards_predicts_what_it_predicts_whole(found: list[dict[str, Any]]) -> None:
    for of_rank in found:
        assert of_rank["encoder"]["size"] > 0.1
        assert of_rank["encoder"]["difference"] < 1e-5


def test_a_shard_of_parts_of_blocks_is_refused() -> None:
    from sparse_model.attention.sharded import _check_whole

    with pytest.raises(ValueError, match="10 steps are not whole blocks of 4"):
        _check_whole(torch.zeros(1, 1, 10, 8), 4)
