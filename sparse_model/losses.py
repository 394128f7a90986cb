"""What the model is trained on: the task, and a selector taught by the attention it replaces.

Shape suffixes: B batch, H heads, G key/value heads, S selector heads, N steps, P probe steps, J key blocks,
R steps of a block, D channels, E selector channels, O outputs.

The selector's teacher is what reading a block as its summary would miss. A block's mean key stands for its
steps by `R exp(mean logit)`, which by Jensen's inequality never exceeds their true `sum exp(logit)`: the
difference, as a share of the row's softmax, is the mass that only exact reading finds. A diffuse head misses
nothing and asks for nothing, so it cannot drown a peaked one that shares its ranking.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, pad

from sparse_model.attention.selection import num_blocks_of
from sparse_model.config import Task

_SCANNED_ROWS = 256  # rows whose logits are held at once while peaked rows are looked for


class SelectorTerms(NamedTuple):
    """Loss terms of one layer's selector, both scalars."""

    divergence: Tensor
    """KL from what summaries would miss to the selector's block masses, in nats, mean over probe steps."""
    entropy: Tensor
    """Entropy of the selector's block masses in nats: low means that few blocks carry the mass."""


class Probes(NamedTuple):
    """On which steps a selector is compared with the attention that it stands for."""

    steps_BP: Tensor
    """int64; one row serves all sequences of a batch, or each has its own."""
    num_peaked: int = 0
    """Further steps per sequence and layer, drawn where summaries miss most. Finding them reads every row
    against every key: meant for a frozen model, whose links nothing else points out."""


def task_loss(
    outputs_BNO: Tensor, target_BNO: Tensor, mask_BNO: Tensor, task: Task, divisor: Tensor | None = None
) -> Tensor:
    """Mean loss over the scored steps (mask 1): cross-entropy for events, squared error otherwise.

    `divisor` takes the place of the number of scored steps: a part of a batch is told the whole batch's.
    """
    if task == "event":
        loss = binary_cross_entropy_with_logits(outputs_BNO, target_BNO, reduction="none")
    else:
        loss = (outputs_BNO - target_BNO).square()
    return (loss * mask_BNO).sum() / (mask_BNO.sum().clamp_min(1.0) if divisor is None else divisor)


def selector_terms(
    q_BHND: Tensor,
    k_BGND: Tensor,
    sq_BSNE: Tensor,
    sk_BSNE: Tensor,
    probes: Probes,
    block_size: int,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> SelectorTerms:
    """Compare attention and selector on a few probe rows, so that the cost stays linear in N.

    No gradient flows into the teacher. The gradient of the divergence does reach the layers below
    through the selector's input (measured: .97 against .84 accuracy without it).
    """
    with torch.autocast(q_BHND.device.type, enabled=False):
        k, sk = _at_least_float32(k_BGND), _at_least_float32(sk_BSNE)
        steps_BP = probes.steps_BP.expand(len(k), -1)
        if probes.num_peaked:
            peaked_BP = peaked_rows(q_BHND, k, probes.num_peaked, block_size, lengths_B, causal)
            steps_BP = torch.cat([steps_BP, peaked_BP], dim=1)
        at_BP = steps_BP if causal else None
        q_BHPD, sq_BSPE = (_at_least_float32(rows_at(t, steps_BP)) for t in (q_BHND, sq_BSNE))
        with torch.no_grad():
            missed_BHPJ = missed_mass(q_BHPD, k, block_size, lengths_B, at_BP)
            teacher = selector_target(missed_BHPJ, sk.shape[1], at_BP, block_size)
        student = log_block_mass(sq_BSPE, sk, block_size, valid_steps(sk, lengths_B), at_BP)
    divergence_BSP = (torch.xlogy(teacher, teacher) - teacher * student).sum(-1)
    entropy_BSP = -(student.exp() * student).sum(-1)
    if lengths_B is None:
        return SelectorTerms(divergence_BSP.mean(), entropy_BSP.mean())
    real = (steps_BP < lengths_B[:, None])[:, None].to(divergence_BSP.dtype).expand_as(divergence_BSP)
    total = real.sum().clamp_min(1.0)
    return SelectorTerms((divergence_BSP * real).sum() / total, (entropy_BSP * real).sum() / total)


def selector_target(
    missed_BHPJ: Tensor, rankings: int, at_BP: Tensor | None = None, block_size: int = 1
) -> Tensor:
    """Block masses that a selector should have, [B, S, P, J].

    A block is worth what it is worth to the neediest head that the ranking serves. What summaries carry
    well is spread evenly: a row with nothing to find shall not compete, within its query block, with one
    that has.
    """
    worth = missed_BHPJ.unflatten(1, (rankings, -1)).amax(2)
    total = worth.sum(-1, keepdim=True)
    spread = (1.0 - total).clamp_min(0.0)
    if at_BP is None:
        return worth / total.clamp_min(1.0) + spread / worth.shape[-1]
    block = (at_BP // block_size)[:, None, :, None]  # over the blocks that the rows may see
    may_see = torch.arange(worth.shape[-1], device=worth.device) <= block
    return worth / total.clamp_min(1.0) + spread * may_see / (block + 1)


@torch.no_grad()
def missed_mass(
    q_BHPD: Tensor,
    k_BGND: Tensor,
    block_size: int,
    lengths_B: Tensor | None = None,
    at_BP: Tensor | None = None,
) -> Tensor:
    """Softmax mass of every key block that its summary would not carry, in [0, 1], [B, H, P, J].

    `at_BP` are the rows' steps where a row sees no later ones; a row's own block has no summary then.
    """
    keys = k_BGND.repeat_interleave(q_BHPD.shape[1] // k_BGND.shape[1], dim=1)
    valid_BN = valid_steps(keys, lengths_B)
    mass_BHPJ = block_logsumexp(q_BHPD, keys, block_size, valid_BN, at_BP)
    mean_k, count_BJ = _mean_keys(keys, block_size, valid_BN)
    summary_BHPJ = q_BHPD @ mean_k.transpose(-1, -2) * q_BHPD.shape[-1] ** -0.5
    summary_BHPJ = summary_BHPJ + count_BJ.log()[:, None, None, :]  # -inf for a block of padding
    if at_BP is not None:
        block_J = torch.arange(count_BJ.shape[1], device=q_BHPD.device)
        is_past_BPJ = block_J < (at_BP // block_size).unsqueeze(-1)
        summary_BHPJ = summary_BHPJ.masked_fill(~is_past_BPJ[:, None], -torch.inf)
    norm = mass_BHPJ.logsumexp(-1, keepdim=True)
    return ((mass_BHPJ - norm).exp() - (summary_BHPJ - norm).exp()).clamp_min(0.0)


def _mean_keys(k_BHND: Tensor, block_size: int, valid_BN: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean key of every block over its existing steps [B, H, J, D], and their number [B or 1, J]."""
    extra = num_blocks_of(k_BHND.shape[2], block_size) * block_size - k_BHND.shape[2]
    exists_BN = valid_BN if valid_BN is not None else k_BHND.new_ones(1, k_BHND.shape[2], dtype=torch.bool)
    count_BJ = pad(exists_BN, (0, extra)).unflatten(1, (-1, block_size)).sum(-1).to(k_BHND.dtype)
    existing = k_BHND if valid_BN is None else k_BHND * valid_BN[:, None, :, None]
    total = pad(existing, (0, 0, 0, extra)).unflatten(2, (-1, block_size)).sum(3)
    return total / count_BJ.clamp_min(1.0)[:, None, :, None], count_BJ


@torch.no_grad()
def peaked_rows(
    q_BHND: Tensor,
    k_BGND: Tensor,
    count: int,
    block_size: int,
    lengths_B: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """`count` steps per sequence that decide what their query blocks should read, [B, P].

    Of every query block the row that would lose most by summaries; among these drawn in proportion to the
    square of that loss, an error of the output.
    """
    steps_BN = torch.arange(q_BHND.shape[2], device=q_BHND.device).expand(q_BHND.shape[0], -1)
    parts = zip(q_BHND.split(_SCANNED_ROWS, dim=2), steps_BN.split(_SCANNED_ROWS, dim=1), strict=True)
    worst_BN = torch.cat(
        [
            missed_mass(_at_least_float32(rows), k_BGND, block_size, lengths_B, at if causal else None).amax(
                (1, 3)
            )
            for rows, at in parts
        ],
        dim=-1,
    )
    valid_BN = valid_steps(k_BGND, lengths_B)
    if valid_BN is not None:
        worst_BN = worst_BN * valid_BN
    extra = num_blocks_of(worst_BN.shape[1], block_size) * block_size - worst_BN.shape[1]
    worst = pad(worst_BN, (0, extra)).unflatten(1, (-1, block_size)).max(-1)
    weight_BQ = worst.values.square() + torch.finfo(worst_BN.dtype).tiny
    block_BP = torch.multinomial(weight_BQ, count, replacement=True)
    return block_BP * block_size + worst.indices.gather(1, block_BP)


def _at_least_float32(t: Tensor) -> Tensor:
    return t.float() if t.dtype.itemsize < 4 else t


def rows_at(t_BHND: Tensor, steps_BP: Tensor) -> Tensor:
    """Rows of every sequence at its own steps, [B, H, P, D]."""
    return t_BHND.take_along_dim(steps_BP[:, None, :, None], dim=2)


def valid_steps(t_BHND: Tensor, lengths_B: Tensor | None) -> Tensor | None:
    """bool [B, N]: steps that exist; None when all do."""
    if lengths_B is None:
        return None
    return torch.arange(t_BHND.shape[2], device=t_BHND.device) < lengths_B[:, None]


def log_block_mass(
    q: Tensor, k: Tensor, block_size: int, valid_BN: Tensor | None, at_BP: Tensor | None = None
) -> Tensor:
    """Log of the softmax mass of every key block for the given rows, [B, heads, P, J]."""
    return block_logsumexp(q, k, block_size, valid_BN, at_BP).log_softmax(-1).clamp_min(-60.0)


def block_logsumexp(
    q: Tensor, k: Tensor, block_size: int, valid_BN: Tensor | None, at_BP: Tensor | None = None
) -> Tensor:
    """Log-sum-exp of the given rows' logits over every key block, [B, heads, P, J]; `at_BP` as in
    `missed_mass`."""
    logits = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    floor = torch.finfo(logits.dtype).min / 2  # finite: keeps 0 * log(0) out of the gradient
    if valid_BN is not None:
        logits = logits.masked_fill(~valid_BN[:, None, None, :], floor)
    if at_BP is not None:
        steps_N = torch.arange(k.shape[2], device=k.device)
        logits = logits.masked_fill((steps_N > at_BP.unsqueeze(-1))[:, None], floor)
    extra = num_blocks_of(k.shape[2], block_size) * block_size - k.shape[2]
    return pad(logits, (0, extra), value=floor).unflatten(-1, (-1, block_size)).logsumexp(-1)
