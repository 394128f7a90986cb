"""The second blessing: a fresh process loads the model in the form that is registered, and answers rightly.

Golden requests are real windows; the golden answers are the judged checkpoint's own. What comes back has to
have their shape, be finite, agree with them, and come in time.
"""

import json
import logging
import math
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from numpy.typing import NDArray

from pipelines.checkpoint import Checkpoint, load_model
from pipelines.clock import now
from pipelines.data.windows import WindowBatch, Windows
from pipelines.fingerprint import ROOT, machine
from pipelines.job import Job, Prepared
from pipelines.servable import save_model, sign_model, verify_model
from pipelines.signing import key_id, load_key, without_secrets
from validation.errors import InputError
from validation.kpis import Kpi, kpi
from validation.record import Record
from validation.samples import quantile_interval
from validation.statistics import Interval

_REQUESTS = 60
"""Enough for the 90th percentile of latency, which takes 36 timings at 95%; the 99th would take 368. What is
timed here has to answer, not to be fast: speed is compared with dense's, in many more timings (cost.py)."""
_TIMEOUT_S = 300  # a server that has not answered a few dozen requests by then hangs
logger = logging.getLogger(__name__)
Answers = list[NDArray[np.float32]]


class ServingCheck(Record):
    """What a fresh process made of the golden requests."""

    num_requests: int
    num_windows: int
    """Different windows among them: a part that holds few is sent more than once."""
    usable: int
    """Answers of the right shape, all finite."""
    errors: tuple[float, ...]
    """Largest difference from the checkpoint's own answer, of each usable one; before any sigmoid."""
    latency_ms: tuple[float, ...]
    load_ms: float
    failure: str
    """The last word of what did not work, "" when everything did."""
    measured_at: str = ""


def serving_kpis(job: Job, prepared: Prepared, checkpoint: Checkpoint, part: str) -> list[Kpi]:
    """Errors, agreement and latency of the registered form, on windows of `part`."""
    windows, density = job.windows(prepared), job.plan.target_density
    asked = job.policy.stage("training")
    num_requests = max(_REQUESTS, asked.needed("parity_max_abs_error"), asked.needed("latency_p90_ms"))

    def compute() -> ServingCheck:
        job.report("loading as it will be served", 0, 1)
        check = check_serving(
            checkpoint,
            windows,
            part,
            density,
            key=load_key(job.settings.keys),
            num_requests=num_requests,
            threads=job.settings.threads,
        )
        job.report("loading as it will be served", 1, 1)
        return check

    inputs = {"prepared": prepared, "checkpoint": checkpoint.sha256, "part": part, "density": density}
    inputs |= {"requests": num_requests, "threads": job.settings.threads, "machine": machine()}
    check = job.once("serving", inputs, ServingCheck, compute, lambda stored: _stands(job, stored))
    return kpis_of(check, checkpoint.sha256, prepared.snapshot.content_hash, job.policy.confidence)


def _stands(job: Job, check: ServingCheck) -> bool:
    """A failure may have been the machine's: it is looked at again rather than remembered."""
    return check.usable == check.num_requests and job.is_recent(check.measured_at)


def check_serving(
    checkpoint: Checkpoint,
    windows: Windows,
    part: str,
    density: float,
    *,
    key: Ed25519PrivateKey,
    num_requests: int,
    threads: int,
) -> ServingCheck:
    """Save and sign the checkpoint as for the registry, load it in a fresh process, send it windows."""
    started, cutoffs = now(), windows.cutoffs(part)
    picked = cutoffs[np.linspace(0, len(cutoffs) - 1, num_requests).astype(int)]
    requests = [windows.batch(np.array([cutoff])) for cutoff in picked]
    golden = golden_answers(checkpoint, requests, density)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            save_model(model, checkpoint.weights, checkpoint.weights.with_name("config.json"), density)
            sign_model(model, key)
            verify_model(model, {key_id(key.public_key()): key.public_key()}, checkpoint.sha256)
            answers, report = ask_fresh_process(model, requests, threads)
    except InputError as error:  # it cannot even be saved in that form: a finding, which the gate judges
        answers, report = {}, _no_report(str(error))
    compared = _compared(golden, answers, report)
    return compared.model_copy(update={"num_windows": len(set(picked.tolist())), "measured_at": started})


def golden_answers(checkpoint: Checkpoint, requests: list[WindowBatch], density: float) -> Answers:
    """What the judged weights say themselves, [1, N, O] each."""
    import torch

    from sparse_model.config import Budget

    model = load_model(checkpoint)
    with torch.inference_mode():
        return [
            model(*(torch.from_numpy(each) for each in _arrays(request).values()), Budget(density)).numpy()
            for request in requests
        ]


def ask_fresh_process(
    model: Path, requests: list[WindowBatch], threads: int
) -> tuple[dict[int, NDArray[np.float32]], dict]:
    """Answers by request, and the process's own report; without an answer where it died, hung or raised."""
    with tempfile.TemporaryDirectory() as folder:
        questions, answers = Path(folder) / "requests.npz", Path(folder) / "answers.npz"
        named = {
            f"{index}.{name}": array
            for index, request in enumerate(requests)
            for name, array in _arrays(request).items()
        }
        np.savez(questions, allow_pickle=False, **named)
        command = [sys.executable, "-m", "pipelines.serving_probe", model, questions, answers, str(threads)]
        report = _run(list(map(str, command)))
        if not answers.is_file():
            return {}, report
        with np.load(answers, allow_pickle=False) as file:
            return {int(name): file[name] for name in file.files}, report


def _run(command: list[str]) -> dict:
    try:
        done = _in_fresh_process(command)
    except subprocess.TimeoutExpired:
        return _no_report(f"no answer within {_TIMEOUT_S} s")
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
        return _no_report(last[0])
    return json.loads(done.stdout.splitlines()[-1])


def _in_fresh_process(command: list[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=without_secrets(os.environ),
        timeout=_TIMEOUT_S,
        check=False,
    )


def _no_report(failure: str) -> dict:
    return {"load_ms": math.nan, "latency_ms": [], "failure": failure}


def _compared(golden: Answers, answers: dict[int, NDArray[np.float32]], report: dict) -> ServingCheck:
    errors, failure = [], report["failure"]
    for index, expected in enumerate(golden):
        answer = answers.get(index)
        if answer is None:
            failure = failure or f"request {index} was not answered"
        elif answer.shape != expected.shape:
            failure = failure or f"request {index} was answered in shape {answer.shape}, not {expected.shape}"
        elif not np.isfinite(answer).all():
            failure = failure or f"request {index} was answered with what is no number"
        else:
            errors.append(float(np.abs(answer - expected).max()))
    if failure:
        logger.warning("the served model failed: %s", failure)
    return ServingCheck(
        num_requests=len(golden),
        num_windows=len(golden),
        usable=len(errors),
        errors=tuple(errors),
        latency_ms=tuple(report["latency_ms"]),
        load_ms=report["load_ms"],
        failure=failure,
    )


def _arrays(request: WindowBatch) -> dict[str, NDArray]:
    """Named as the served model wants them."""
    arrays = {"numeric": request.numeric, "known": request.known, "categorical": request.categorical}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def kpis_of(check: ServingCheck, checkpoint: str, snapshot: str, confidence: float) -> list[Kpi]:
    """What the gate may ask of it. Agreement and latency are not measured where nothing answered."""
    measured = partial(kpi, checkpoint=checkpoint, snapshot=snapshot, measured_at=check.measured_at)
    share = 1 - check.usable / check.num_requests if check.num_requests else 1.0
    failed = Interval(value=share, low=share, high=share, n=check.num_requests)
    kpis = [measured("error_rate", failed)]
    if check.errors:
        worst = max(check.errors)
        num_windows = min(len(check.errors), check.num_windows)
        seen = Interval(value=worst, low=min(check.errors), high=worst, n=num_windows)
        kpis.append(measured("parity_max_abs_error", seen))
    if check.latency_ms:
        latency = quantile_interval(np.array(check.latency_ms), 0.9, confidence=confidence)
        kpis.append(measured("latency_p90_ms", latency))
    return kpis
