"""From the data to what runs: hashes, and where each thing is."""

from pipelines.clock import to_the_minute
from pipelines.report.page import Cell, Note, Section, Table
from pipelines.report.story import Story
from pipelines.report.words import Words


def lineage(story: Story, words: Words) -> Section:
    kept = story.lineage
    about = ""
    if kept.snapshot:
        ends = {"start": to_the_minute(kept.start), "end": to_the_minute(kept.end)}
        about = words("lineage.snapshot.about", rows=f"{kept.rows:,}", **ends)
    opened, mlflow = words("lineage.files"), words("lineage.in_mlflow")
    code = story.environment.git_commit or story.environment.code if story.environment else ""
    steps = (
        ("snapshot", kept.snapshot, about, kept.docs, words("lineage.docs")),
        ("policy", kept.policy, "", "", ""),
        ("code", code, "", "", ""),
        ("run", kept.run_id, "", kept.run_url, mlflow),
        ("training", kept.training_run, "", kept.training_url, mlflow),
        ("checkpoint", kept.checkpoint, "", kept.checkpoint_place, opened),
        ("verdict", kept.verdict, "", "", ""),
        ("bundle", kept.bundle, "", kept.bundle_place, opened),
    )
    rows = tuple(
        (
            Cell(words(f"lineage.{step}"), note=note),
            Cell(identity or words("lineage.none"), "hash" if identity else "text"),
            Cell(label if place else "\N{EN DASH}", href=place),
        )
        for step, identity, note, place, label in steps
    )
    head = (words("lineage.step"), words("lineage.id"), words("lineage.link"))
    data = {
        "lineage": [
            {"step": step, "identity": identity, "place": place} for step, identity, _, place, _ in steps
        ]
    }
    table = Table(words("lineage"), head, rows, is_cards=True, is_titled=False)
    return Section("lineage", words("lineage"), (Note(words("lineage.intro")), table), data)
