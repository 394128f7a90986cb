"""The answer in a sentence, and the ladder with where we stand."""

from pipelines.clock import to_the_minute
from pipelines.release_log import Stage
from pipelines.report.figures import kpi_name, kpi_value, number, percent
from pipelines.report.moved import moved
from pipelines.report.page import Rung, Verdict
from pipelines.report.reasons import reason_of
from pipelines.report.story import Story
from pipelines.report.words import Words
from pipelines.rollout import CLIMB
from validation.gates import Check, Outcome

_MOST = 4  # failing checks named at the top; the table has all
_TONES = {
    **{each.value: each.value for each in Outcome},
    **{"promoted": "PASS", "held": "HOLD", "dropped": "FAIL", "refused": "HOLD", "unfinished": "HOLD"},
    **{"none": "PASS", "watch": "HOLD", "retrain": "HOLD", "fault": "FAIL"},
}


def verdict(story: Story, words: Words) -> Verdict:
    """What happened, in a sentence; what stood in the way; and the facts that a reader asks for first."""
    return Verdict(
        label=words(f"outcome.{story.outcome}"),
        tone=_TONES.get(story.outcome, "NONE"),
        sentence=_sentence(story, words),
        lead=_lead(story, words),
        details=_details(story, words),
        facts=tuple(_facts(story, words)),
        record=story.why,
    )


def _details(story: Story, words: Words) -> tuple[str, ...]:
    if story.kind == "monitor":
        return moved(story, words)
    return tuple(_said(check, words) for check in open_checks(story)[:_MOST]) + _more(story, words)


def open_checks(story: Story) -> list[Check]:
    """Required checks of the last gate that did not pass, the worst first."""
    if not story.evaluations:
        return []
    required = [each for each in story.evaluations[-1].verdict.checks if each.severity == "required"]
    lacking = [each for each in required if each.outcome is not Outcome.PASS]
    return sorted(lacking, key=lambda check: check.outcome is not Outcome.FAIL)


def _sentence(story: Story, words: Words) -> str:
    if story.kind == "rollout":
        return _of_rollout(story, words)
    waits = story.outcome == "held" and bool(story.evaluations) and not open_checks(story)
    return words(f"verdict.{story.kind}.{'waiting' if waits else story.outcome}")


def _of_rollout(story: Story, words: Words) -> str:
    """The same cases as pipelines.summary.sentence_of tells on the terminal."""
    state, climbed = story.state, [each for each in story.evaluations if each.stage != "steady"]
    if not climbed:
        return words("verdict.rollout.none")
    last = climbed[-1].verdict
    stage = words(f"stage.{last.stage}")
    if last.outcome is not Outcome.PASS:
        outcome = words(f"outcome.{last.outcome}")
        return words("verdict.rollout.stopped", stage=stage, outcome=outcome)
    if pending := state.pending:
        given, needed = len(pending.approved_by), pending.terms.persons
        return words(
            "verdict.rollout.waiting", stage=stage, version=pending.version, given=given, needed=needed
        )
    if last.evidence.checkpoint not in [release.checkpoint for release in state.releases]:
        return words("verdict.rollout.elsewhere")
    if CLIMB.index(state.stage) <= CLIMB.index(Stage(last.stage)):
        return words("verdict.rollout.back", stage=stage, now=words(f"stage.{state.stage}"))
    return words("verdict.rollout.reached", stage=words(f"stage.{state.stage}"))


def _lead(story: Story, words: Words) -> str:
    lacking = open_checks(story)
    if not lacking:
        return ""
    checks = story.evaluations[-1].verdict.checks
    total = sum(check.severity == "required" for check in checks)
    return words("verdict.count", count=len(lacking), total=total)


def _said(check: Check, words: Words) -> str:
    reason, _ = reason_of(check, words)
    about = {"outcome": words(f"outcome.{check.outcome}"), "name": kpi_name(check, words), "reason": reason}
    if check.measured is None:
        return words("verdict.check.bare", **about)
    return words("verdict.check", value=kpi_value(check.measured, words), **about)


def _more(story: Story, words: Words) -> tuple[str, ...]:
    rest = len(open_checks(story)) - _MOST
    return (words("and_more", count=rest),) if rest > 0 else ()


def _facts(story: Story, words: Words) -> list[tuple[str, str]]:
    live = story.state.live
    stage = words(f"stage.{story.state.stage}")
    now = words("verdict.live", version=live.champion, stage=stage) if live else words("verdict.not_live")
    facts = [(words("fact.live"), now)]
    if story.reason:
        facts.append((words("fact.reason"), story.reason))
    if story.how_good:
        facts.append((words("fact.windows"), f"{story.how_good[0].num_windows:,}"))
    if story.kind == "monitor" and story.data:
        facts.append((words("fact.rows"), f"{story.data.num_rows:,}"))
    if story.lineage.start and story.kind == "monitor":
        span = words("range", low=to_the_minute(story.lineage.start), high=to_the_minute(story.lineage.end))
        facts.append((words("fact.span"), span))
    if story.density is not None:
        facts.append((words("fact.density"), percent(story.density)))
    if story.seconds is not None:
        facts.append((words("fact.duration"), words("seconds", number=number(story.seconds))))
    if story.environment:
        machine = story.environment.gpu or words(
            "cpu", name=story.environment.cpu, count=story.environment.num_cpus
        )
        facts.append((words("fact.machine"), machine))
    return facts


def ladder(story: Story, words: Words) -> tuple[Rung, ...]:
    """Every stage, bottom first, with what its gate said in this run."""
    reached = CLIMB.index(story.state.stage)
    said = {each.stage: each.verdict.outcome for each in story.evaluations}
    rungs = []
    for place, stage in enumerate(CLIMB[1:], start=1):
        state = "here" if place == reached else "done" if place < reached else "ahead"
        outcome = said.get(stage.value)  # type: ignore[call-overload]
        gate = (
            words("ladder.gate", outcome=words(f"outcome.{outcome}"))
            if outcome
            else words("ladder.not_asked")
        )
        rungs.append(Rung(words(f"stage.{stage}"), state, words(f"ladder.{state}"), outcome or "", gate))
    return tuple(rungs)
