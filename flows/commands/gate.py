"""What a gate decided and why, what another policy would have decided, and how sure a gate can be."""

import json
import math
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flows.commands.options import json_option, policy_option, quiet_option

if TYPE_CHECKING:
    from pipelines.backtest import Replay
    from pipelines.benchmarks.gates import Calibration
    from pipelines.evaluations import Stored
    from pipelines.planning import Plan
    from pipelines.registry import Tracker
    from validation.gates import Blessing, Check
    from validation.policy import Policy


@click.group(short_help="Why a gate decided so, and what another policy would do.")
def gate() -> None:
    """Why a gate decided as it did, and what it would take to decide otherwise.

    \b
    Examples:
      dankai gate explain 4f1c9a03d2
      dankai gate backtest --policy new.yaml
      dankai gate simulate --deviation 0.05 --margin 0.01
    """


@gate.command()
@click.argument("run")
@policy_option()
@json_option
def explain(run: str, policy: Path, as_json: bool) -> None:
    """Say every check of RUN in words and numbers: its threshold, its evidence, and the policy's hash.

    RUN is the id of an evaluation's MLflow run, or the first characters of a verdict's digest as the release
    log and summary.json name it. --policy is only compared: is today's policy the one that was applied?

    \b
    Examples:
      dankai gate explain 4f1c9a03d2
      dankai gate explain 4f1c9a03d2 --json
    """
    from pipelines.evaluations import find_evaluation

    current = _policy(policy)
    tracker = _tracker()
    stored = find_evaluation(tracker, run)
    if as_json:
        _print_json(_explained(stored, current))
    else:
        click.echo("\n".join(_explanation(stored, current, policy, _paid_back(tracker, stored))))


@gate.command()
@click.option("--policy", type=click.Path(path_type=Path), required=True, help="The policy to try.")
@click.option("--dataset", help="Only this dataset's decisions.")
@json_option
def backtest(policy: Path, dataset: str | None, as_json: bool) -> None:
    """Judge every stored evaluation again by another policy and say which decisions would change, and why.

    \b
    Margins, bounds, severities, counts and age limits are tried on the stored KPIs. Another confidence,
    other looks or other groups need other intervals: they are computed again from the stored scores, and
    where those are gone the decision is listed as not replayed. Timings keep their stored intervals.
    Nothing is written.

    \b
    Example:
      dankai gate backtest --policy new.yaml
    """
    from pipelines.backtest import backtest as replay
    from pipelines.evaluations import stored_evaluations
    from validation.errors import InputError

    new = _policy(policy)
    replays = list(replay(stored_evaluations(_tracker(), dataset), new))
    if not replays:
        whose = f"dataset {dataset}" if dataset else "this store"
        raise InputError(f"{whose} holds no evaluation yet; run a rollout first")
    if as_json:
        _print_json({"policy": new.digest(), "replays": [each.model_dump(mode="json") for each in replays]})
    else:
        click.echo("\n".join(_backtest_text(replays, new)))


@gate.command()
@click.option(
    "--run", help="Take the windows' variation, and the margins, from this evaluation (as in explain)."
)
@click.option(
    "--deviation", type=float, help="Or state the paired difference's standard deviation per window."
)
@click.option(
    "--margin", "margins", type=float, multiple=True, help="Allowed loss, in the KPI's unit. Repeatable."
)
@click.option(
    "--difference", type=float, default=0.0, help="By how much the model is truly better. Default 0."
)
@click.option("--power", "wanted", type=float, multiple=True, default=(0.8, 0.9), show_default=True)
@click.option(
    "--overlap", type=int, default=1, show_default=True, help="Consecutive windows that share a step."
)
@click.option("--look", type=int, default=1, show_default=True, help="Which time of asking.")
@policy_option()
@click.option(
    "--calibration", is_flag=True, help="Instead, measure how often the gate errs, on simulated windows."
)
@click.option(
    "--draws", type=int, default=2000, show_default=True, help="Simulations of each calibration case."
)
@click.option("--output", type=click.Path(path_type=Path), help="Where calibration results are written.")
@json_option
@quiet_option
def simulate(
    run: str | None,
    deviation: float | None,
    margins: tuple[float, ...],
    difference: float,
    wanted: tuple[float, ...],
    overlap: int,
    look: int,
    policy: Path,
    calibration: bool,
    draws: int,
    output: Path | None,
    as_json: bool,
    quiet: bool,
) -> None:
    """Say how many windows a margin needs, or measure how often the gate errs.

    \b
    Examples:
      dankai gate simulate --run 4f1c9a03d2
      dankai gate simulate --deviation 0.05 --margin 0.01 --margin 0.02
      dankai gate simulate --calibration --draws 10000 --output gates.json
    """
    rules = _policy(policy)
    if calibration:
        _calibrate(rules, draws, output, as_json, quiet)
        return
    _refuse_numbers(rules, wanted, margins, overlap, look)
    how: dict[str, Any] = {"margins": margins, "wanted": wanted, "difference": difference, "look": look}
    plans = _plans(rules, run, deviation, overlap, how)
    if as_json:
        _print_json([plan.model_dump(mode="json") for plan in plans])
        return
    from pipelines.planning import sentences

    confidence = rules.stage("training").confidence_at(look)
    click.echo(
        f"Look {look} of {len(rules.looks)}: intervals at {100 * confidence:.4g}%, one-sided error ", nl=False
    )
    click.echo(f"{50 * (1 - confidence):.3g}%.")
    click.echo("\n".join(sentences(plans, difference)))


def _plans(
    rules: "Policy", run: str | None, deviation: float | None, overlap: int, how: dict[str, Any]
) -> "list[Plan]":
    from pipelines.planning import plan_evaluation, plan_stated
    from validation.errors import InputError

    if (run is None) == (deviation is None):
        raise InputError("give either --run, to take the variation from there, or --deviation, to state it")
    if run is not None:
        from pipelines.evaluations import find_evaluation

        return plan_evaluation(find_evaluation(_tracker(), run).evaluation, rules, **how)
    assert deviation is not None
    if not how["margins"] or not 0 < deviation < math.inf:
        raise InputError("--deviation has to be above 0 and needs at least one --margin")
    return plan_stated(rules, deviation=deviation, overlap=overlap, **how)


def _refuse_numbers(
    rules: "Policy", wanted: tuple[float, ...], margins: tuple[float, ...], overlap: int, look: int
) -> None:
    from validation.errors import InputError

    if not all(0 < chance < 1 for chance in wanted):
        raise InputError("--power is a chance: give numbers between 0 and 1")
    if not all(0 <= margin < math.inf for margin in margins):
        raise InputError("--margin is how much may be lost: give numbers of at least 0")
    if overlap < 1 or not 1 <= look <= len(rules.looks):
        raise InputError(
            f"--overlap counts from 1, --look from 1 to {len(rules.looks)}, which the policy allows"
        )


def _calibrate(rules: "Policy", draws: int, output: Path | None, as_json: bool, quiet: bool) -> None:
    from flows.progress import progress
    from pipelines.benchmarks.gates import calibrate, write
    from validation.errors import InputError

    if draws < 1:
        raise InputError("--draws: at least 1 simulation is needed")
    if output and not os.access(output.absolute().parent, os.W_OK):
        raise InputError(f"--output: folder {output.absolute().parent} cannot be written to; name another")
    with progress(quiet) as report:
        measured = calibrate(rules, draws, 400, report)
    if output:
        write(measured, output)
    if as_json:
        _print_json(measured.model_dump(mode="json"))
    else:
        click.echo("\n".join(_calibration_text(measured)))


# Words --------------------------------------------------------------------------------------------


def _explained(stored: "Stored", current: "Policy") -> dict[str, Any]:
    verdict = stored.evaluation.verdict
    return {
        "run": stored.run_id,
        "dataset": stored.dataset,
        "verdict_digest": verdict.digest(),
        "policy_is_current": verdict.policy_digest == current.digest(),
        "release_log": _decided(stored),
        "blessings": {name: verdict.blessing(name) for name in _blessings(stored)},
        "evaluation": stored.evaluation.model_dump(mode="json"),
    }


def _explanation(stored: "Stored", current: "Policy", path: Path, paid_back: str) -> Iterator[str]:
    verdict = stored.evaluation.verdict
    evidence = verdict.evidence
    same = "as in" if verdict.policy_digest == current.digest() else "another than in"
    yield f"{stored.dataset} {verdict.stage} gate: {verdict.outcome}"
    yield f"  run {stored.run_id}, verdict {verdict.digest()}"
    decided = "; ".join(_decided(stored)) or "holds no decision on this verdict"
    yield f"  release log: {decided}"
    yield f"  policy {verdict.policy_digest}, {same} {path} now"
    yield f"  judged {evidence.judged_at or 'at no stated time'}"
    yield f"  oldest scores {evidence.measured_at or 'of no stated time'}"
    yield f"  candidate {stored.evaluation.subject}, checkpoint {evidence.checkpoint}"
    yield f"  snapshot {evidence.snapshot}"
    for name, digest in evidence.references.items():
        yield f"  {name} {digest}" + (f": {reason}" if (reason := evidence.not_comparable.get(name)) else "")
    asked = ", then ".join(f"{look.num_windows} windows" for look in evidence.looks) or "not recorded"
    yield f"  time of asking: {evidence.look} ({asked})"
    for name in _blessings(stored):
        yield f"\n{name}: {verdict.blessing(name)}"
        yield from (_check_line(check) for check in verdict.checks if check.blessing == name)
    if paid_back:
        yield f"\npayback: {paid_back}"


def _decided(stored: "Stored") -> list[str]:
    from pipelines.escaping import printable
    from pipelines.history import decisions_on
    from pipelines.release_log import ReleaseLog
    from pipelines.settings import load_settings

    entries = ReleaseLog.of(load_settings()).entries()
    return [printable(said) for said in decisions_on(entries, stored.evaluation.verdict.digest())]


def _blessings(stored: "Stored") -> "list[Blessing]":
    return list(dict.fromkeys(check.blessing for check in stored.evaluation.verdict.checks))


def _check_line(check: "Check") -> str:
    asked = check.threshold.model_dump(exclude_none=True, exclude={"kpi", "severity", "slice"})
    asked = {key: value for key, value in asked.items() if key != "min_group" or check.slice}
    terms = ", ".join(
        f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in asked.items()
    )
    n = f"; n = {check.measured.n}" if check.measured else ""
    return f"  {check.outcome:4} {check.severity:8}  {check.reason}  [{terms}{n}]"


def _paid_back(tracker: "Tracker", stored: "Stored") -> str:
    from pipelines.payback import KIND

    checkpoint = stored.evaluation.verdict.evidence.checkpoint
    runs = tracker.find_runs({"kind": KIND, "dataset": stored.dataset, "checkpoint": checkpoint})
    return f"{runs[-1].data.tags.get('answer', '')} (plot in run {runs[-1].info.run_id})" if runs else ""


def _backtest_text(replays: "list[Replay]", policy: "Policy") -> Iterator[str]:
    others = [each for each in replays if each.is_other]
    lost = [each for each in replays if each.would_be is None]
    again = sum(each.recomputed for each in replays)
    yield (
        f"{len(replays)} decisions under policy {policy.digest()[:12]}: {len(others)} would change, "
        f"{len(lost)} could not be replayed, {again} were computed again from scores"
    )
    for each in (*others, *lost):
        became = each.would_be or "not replayed"
        yield f"\n{each.dataset} {each.stage}, {each.judged_at}, run {each.run_id}: {each.was} -> {became}"
        yield from ([f"  {each.problem}"] if each.problem else [])
        for change in each.changes:
            was, would_be = (outcome or "not asked" for outcome in (change.was, change.would_be))
            yield f"  {change.check}: {was} -> {would_be}: {change.reason}"


def _calibration_text(measured: "Calibration") -> Iterable[str]:
    yield f"{'case':44} {'draws':>6} {'PASS':>7} {'FAIL':>7}   at most, on the bound"
    for rates in measured.rates:
        stated = f"{rates.stated:.2%} +- {rates.standard_error:.2%}" if rates.case.num_at_bound else "(power)"
        yield f"{rates.case.name:44} {rates.num_draws:6} {rates.passed:7.2%} {rates.failed:7.2%}   {stated}"


# Reading ------------------------------------------------------------------------------------------


def _policy(path: Path) -> "Policy":
    from validation.policy import load_policy

    return load_policy(path)


def _tracker() -> "Tracker":
    """The store of this installation, which has to exist: a question makes no database."""
    from pipelines.settings import load_settings, quiet_environment
    from validation.errors import InputError

    settings = load_settings()
    quiet_environment(settings)
    place = settings.tracking_uri.removeprefix("sqlite:///")
    if place != settings.tracking_uri and not Path(place).is_file():
        raise InputError(f"{place}: nothing was judged here yet; run a rollout first or set DANKAI_HOME")
    from pipelines.registry import Tracker

    return Tracker.open(settings)


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1))
