"""What a subject says about a set of windows, kept as one file of arrays."""

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from pipelines.checkpoint import Checkpoint, load_model
from pipelines.clock import now
from pipelines.data.windows import WindowBatch, Windows
from pipelines.files import replace_file, sha256_of
from validation.errors import InputError
from validation.record import Record
from validation.statistics import Scored

if TYPE_CHECKING:
    import torch

    from sparse_model.config import Budget
    from sparse_model.model import SparseEncoder

Array = NDArray[np.float32]
Report = Callable[[str, int, int], None]
_TOKENS = 16_384  # steps scored at once


class Scores(Record):
    """One subject's scores of the windows of one part, with what came true."""

    path: str
    sha256: str
    subject: str
    scored: str
    """What was scored: the checkpoint's SHA-256, or the digest of a baseline's recipe and data."""
    part: str
    snapshot: str
    num_windows: int
    density: float | None = None
    scored_at: str = ""
    """When (ISO 8601, UTC); "" where nobody wrote it down, and then the scores are as good as stale."""

    def artifact_paths(self) -> tuple[str, ...]:
        return (self.path,)


def load_scored(scores: Scores) -> Scored:
    """Scores, targets and mask, [W, S, O] each. Refuses a file that changed since."""
    arrays = _arrays(scores)
    return Scored(arrays["scores"], arrays["targets"], arrays["mask"])


def load_slices(scores: Scores) -> dict[str, NDArray[np.str_]]:
    """Group of every scored step, [W, S], for each slice column."""
    return {
        name.removeprefix("slice."): values
        for name, values in _arrays(scores).items()
        if name.startswith("slice.")
    }


def _arrays(scores: Scores) -> dict[str, NDArray]:
    path = Path(scores.path)
    if not path.is_file() or sha256_of(path) != scores.sha256:
        raise InputError(f"{path}: not the scores that were recorded; remove it and run the command again")
    return _read_arrays(path)


def _read_arrays(path: Path) -> dict[str, NDArray]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def score_model(
    checkpoint: Checkpoint,
    windows: Windows,
    part: str,
    density: float | None,
    subject: str,
    folder: Path,
    report: Report,
    max_windows: int | None = None,
) -> Scores:
    """Score the evaluation windows of `part` with a checkpoint; `density` None is the dense model.

    All windows, or at most `max_windows` evenly spread over the part.
    """
    score, digest = model_scorer(checkpoint, density), checkpoint.sha256
    return collect_scores(windows, part, score, subject, digest, folder, report, density, max_windows)


def model_scorer(checkpoint: Checkpoint, density: float | None) -> Callable[[WindowBatch], Array]:
    """A checkpoint's scores of a batch, on this machine's GPU where it has one."""
    import torch

    from sparse_model.config import Budget
    from sparse_model.memory import keep_freed_memory

    keep_freed_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(checkpoint).to(device)
    budget = Budget(density) if density is not None else None

    def score(batch: WindowBatch) -> Array:
        with torch.inference_mode():
            return _model_scores(model, batch, budget, device)

    return score


def _model_scores(
    model: "SparseEncoder", batch: WindowBatch, budget: "Budget | None", device: "torch.device"
) -> Array:
    """[W, N, O]: probabilities, predicted values, or reconstruction errors per step."""
    import torch

    from sparse_model.detection import NUM_FOLDS, fold_of

    numeric, known, categorical = (
        torch.from_numpy(np.ascontiguousarray(array)).to(device)
        for array in (batch.numeric, batch.known, batch.categorical)
    )
    task = model.config.task
    if task == "event":
        return model(numeric, known, categorical, budget).sigmoid().cpu().numpy()
    if task == "forecast":
        return model(numeric, known, categorical, budget).cpu().numpy()
    target = torch.from_numpy(np.ascontiguousarray(batch.target)).to(device)
    error = torch.zeros(*target.shape[:2], 1, device=device)
    for fold in range(NUM_FOLDS):
        hidden = fold_of(target.shape[1], fold).to(device)[None, :, None]
        filled = model(numeric, known * ~hidden, categorical, budget)
        error = error + ((filled - target).square().mean(-1, keepdim=True)) * hidden
    return error.cpu().numpy()


def collect_scores(
    windows: Windows,
    part: str,
    score: Callable[[WindowBatch], Array],
    subject: str,
    digest: str,
    folder: Path,
    report: Report,
    density: float | None = None,
    max_windows: int | None = None,
) -> Scores:
    """Run `score` over the evaluation windows of `part` and keep the scored steps in one file."""
    cutoffs = windows.some_cutoffs(part, max_windows) if max_windows else windows.cutoffs(part)

    def told(done: int) -> None:
        report(f"scoring {part} with {subject}", done, len(cutoffs))

    arrays = scored_arrays(windows, cutoffs, score, told)
    return keep_scores(arrays, windows, part, subject, digest, folder, density)


def scored_arrays(
    windows: Windows,
    cutoffs: NDArray[np.int64],
    score: Callable[[WindowBatch], Array],
    told: Callable[[int], None],
) -> dict[str, NDArray]:
    """The scored steps of the windows at `cutoffs`."""
    columns: dict[str, list[NDArray]] = {}
    done = 0
    for group in _groups(cutoffs, windows.lookback + windows.horizon):
        batch = windows.batch(group, None)
        for name, values in _scored_steps(windows, batch, score(batch)).items():
            columns.setdefault(name, []).append(values)
        done += len(group)
        told(done)
    return {name: np.concatenate(parts) for name, parts in columns.items()}


def load_pieces(paths: Sequence[Path]) -> dict[str, NDArray]:
    """The arrays of several files, one under the other."""
    pieces = [_read_arrays(path) for path in paths]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def keep_scores(
    arrays: Mapping[str, NDArray],
    windows: Windows,
    part: str,
    subject: str,
    digest: str,
    folder: Path,
    density: float | None,
) -> Scores:
    """One file of the scored steps of evaluation windows of a part."""
    file = file_of(arrays)
    content = hashlib.sha256(file).hexdigest()
    # Named by its content, so that scores of another stride or lookback never take its place.
    path = folder / f"{subject}-{part}-{content[:16]}.npz"
    replace_file(path, file)
    return Scores(
        path=str(path),
        sha256=content,
        subject=subject,
        scored=digest,
        part=part,
        snapshot=windows.snapshot.content_hash,
        num_windows=len(arrays["scores"]),
        density=density,
        scored_at=now(),
    )


def file_of(arrays: Mapping[str, NDArray]) -> bytes:
    """The content of a file of arrays."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **cast(Any, arrays))
    return buffer.getvalue()


def _groups(cutoffs: NDArray[np.int64], steps: int) -> Iterator[NDArray[np.int64]]:
    size = max(1, _TOKENS // steps)
    return (cutoffs[first : first + size] for first in range(0, len(cutoffs), size))


def _scored_steps(windows: Windows, batch: WindowBatch, scores: Array) -> dict[str, NDArray]:
    """Only the steps that are judged: the horizon, or every step of a detection window."""
    first = windows.lookback if windows.horizon else 0
    targets, mask = batch.target, batch.target_mask
    if windows.spec.label:  # detection is trained without labels and judged by them
        targets = windows.column(windows.spec.label)[batch.rows][..., None].astype(np.float32)
        mask = mask.max(-1, keepdims=True)
    arrays = {"scores": scores, "targets": targets, "mask": mask, "rows": batch.rows}
    for name in windows.spec.slices:
        arrays[f"slice.{name}"] = windows.column(name)[batch.rows].astype(str)
    return {name: values[:, first:] for name, values in arrays.items()}
