"""Exchanges are kept with their ids, once each, and never fill the disk."""

import random
from pathlib import Path

from pipelines.serving.store import Exchange, Exchanges


def exchange(identity: str, move: int = 1, share: float = 0.0, fault: str = "", size: int = 10) -> Exchange:
    body = random.Random(identity).randbytes(size)
    return Exchange(identity, move, share, False, fault, "", 0.1, 0.02, 0.01, body, body, body)


def test_what_was_kept_is_there_after_a_restart(tmp_path: Path) -> None:
    first = Exchanges(tmp_path / "kept.sqlite3")
    assert first.add(exchange("a"))
    assert first.add(exchange("b", move=2, share=0.05, fault="late"))
    first.close()
    again = Exchanges(tmp_path / "kept.sqlite3")
    assert [pair.fault for pair in again.pairs()] == ["", "late"]
    assert [pair.latency_ratio for pair in again.pairs()] == [0.5, None]
    assert [pair.fault for pair in again.pairs(move=2)] == ["late"]
    assert {share: len(pairs) for share, pairs in again.pairs_by_share().items()} == {0.0: 1, 0.05: 1}
    assert again.bodies("a") == (exchange("a").request,) * 3
    assert again.bodies("nobody") is None


def test_a_request_that_is_sent_again_counts_once_per_step(tmp_path: Path) -> None:
    kept = Exchanges(tmp_path / "kept.sqlite3")
    assert kept.add(exchange("a"))
    assert not kept.add(exchange("a", fault="late"))
    assert kept.add(exchange("a", move=2))
    assert [pair.fault for pair in kept.pairs()] == ["", ""]


def test_the_file_stays_within_its_bounds_and_the_newest_stay(tmp_path: Path) -> None:
    kept = Exchanges(tmp_path / "kept.sqlite3", max_body_bytes=1_000_000, max_rows=300)
    for number in range(500):
        kept.add(exchange(str(number), size=20_000))
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) < 8_000_000  # of 30 million
    assert 250 <= len(kept.pairs()) <= 300
    assert kept.bodies("499") is not None
    assert kept.bodies("480") is None
    assert sum(kept.bodies(str(number)) is not None for number in range(500)) < 17
