"""Progress in Prefect's pages, on a real server."""

from inspect import isawaitable
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.artifacts import Artifact
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows import artifacts
from tests.tiny_rollout import wait_for_server


def test_what_lasts_is_shown_with_its_counts_and_what_is_short_is_not(
    prefect_server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, clock = [], SimpleNamespace(now=0.0)
    monkeypatch.setattr(artifacts, "time", SimpleNamespace(monotonic=lambda: clock.now))
    settings = SimpleNamespace(prefect_api_url=prefect_server)
    job: Any = SimpleNamespace(
        report=lambda *given: told.append(given), spec=SimpleNamespace(name="Pump_1"), settings=settings
    )
    wait_for_server(prefect_server)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        report = artifacts.with_progress(job)
        report("scoring", 1, 2)
        report("scoring", 2, 2)
        for done in range(1, 11):
            report("training dense (seed 0)", done, 10)
            clock.now += 0.9
        shown = Artifact.get("pump-1-training-dense-seed-0")
        assert Artifact.get("pump-1-scoring") is None
    assert len(told) == 12
    assert shown is not None
    assert not isawaitable(shown)
    assert (shown.data, shown.description) == (100, "training dense (seed 0): 10 of 10")
