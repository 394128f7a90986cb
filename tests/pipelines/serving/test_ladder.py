"""The candidate's share moves by signed verdicts and by nothing else."""

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from pipelines.serving.ladder import Ladder, read_moves
from pipelines.signing import key_id
from validation.canary import CanaryPolicy, Pair
from validation.errors import InputError

KEY = Ed25519PrivateKey.generate()
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}
SUBJECTS = ("incumbent", "candidate")
POLICY = CanaryPolicy(min_requests=5, max_error_rate=0.2)
FINE = Pair(assigned=True, fault="", disagreement=0.01, latency_ratio=0.9)
FAILED = Pair(assigned=True, fault="died: its process ended", disagreement=None, latency_ratio=None)


def ladder(folder: Path, key: Ed25519PrivateKey = KEY, subjects: tuple[str, str] = SUBJECTS) -> Ladder:
    return Ladder(folder / "ladder.jsonl", subjects, POLICY, key, TRUSTED, "ada")


def feed(ladder: Ladder, pair: Pair, count: int) -> None:
    for _ in range(count):
        ladder.add(pair, ladder.last.sequence)


def shares(ladder: Ladder) -> list[float]:
    return [move.share for move in ladder.moves]


def test_it_starts_in_shadow_and_climbs_one_step_per_pass_never_further(tmp_path: Path) -> None:
    climbing = ladder(tmp_path)
    assert shares(climbing) == [0.0]
    feed(climbing, FINE, 400)
    assert shares(climbing) == [0.0, 0.05, 0.25, 1.0, 1.0]
    assert [move.action for move in climbing.moves] == ["start", "climb", "climb", "climb", "complete"]
    assert all(move.verdict and move.verdict.outcome == "PASS" for move in climbing.moves[1:])
    assert min(move.verdict.num_requests for move in climbing.moves[1:] if move.verdict) >= 5


def test_a_breach_sets_the_share_to_0_at_once_and_ends_the_ladder(tmp_path: Path) -> None:
    falling = ladder(tmp_path)
    feed(falling, FINE, 60)
    assert falling.share > 0
    feed(falling, FAILED, 2)
    assert falling.share > 0
    feed(falling, FAILED, 1)
    assert (falling.share, falling.is_breached) == (0.0, True)
    assert "3 requests in a row" in falling.last.reason
    feed(falling, FINE, 400)
    assert (falling.share, falling.is_breached) == (0.0, True)


def test_after_the_last_step_it_is_watched_all_the_same(tmp_path: Path) -> None:
    done = ladder(tmp_path)
    feed(done, FINE, 400)
    feed(done, FAILED, 3)
    assert (done.share, done.is_breached) == (0.0, True)


def test_only_a_persons_word_starts_it_anew(tmp_path: Path) -> None:
    fallen = ladder(tmp_path)
    with pytest.raises(InputError, match="no breach"):
        fallen.again("why not")
    feed(fallen, FAILED, 3)
    fallen.again("the machine was out of memory")
    assert (fallen.share, fallen.is_breached) == (0.0, False)
    assert fallen.last.reason == "the machine was out of memory"
    feed(fallen, FINE, 60)
    assert fallen.share > 0


def test_requests_of_an_earlier_step_say_nothing_of_this_one(tmp_path: Path) -> None:
    climbing = ladder(tmp_path)
    feed(climbing, FINE, 60)
    assert len(climbing.moves) > 1
    assert climbing.add(FAILED, 1) is None
    assert FAILED not in climbing.pairs


def test_after_a_restart_it_stands_where_it_stood(tmp_path: Path) -> None:
    before = ladder(tmp_path)
    feed(before, FINE, 60)
    after = ladder(tmp_path)
    assert after.moves == before.moves
    assert after.share == before.share > 0
    with pytest.raises(InputError, match="other models"):
        ladder(tmp_path, subjects=("incumbent", "another"))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda lines: [lines[0].replace('"share": 0.0', '"share": 1.0'), *lines[1:]],
            "line 1 is not as signed",
        ),
        (lambda lines: [lines[0], *lines[2:]], "line 2 does not follow"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], "line 1 does not follow"),
        (lambda lines: [*lines, lines[-1]], "does not follow"),
        (lambda lines: ["{}", *lines[1:]], "line 1 is not as signed"),
    ],
)
def test_an_edited_ladder_is_refused_and_nobody_is_served_by_it(tmp_path: Path, damage, said: str) -> None:
    feed(ladder(tmp_path), FINE, 400)
    path = tmp_path / "ladder.jsonl"
    lines = damage(path.read_text().splitlines())
    path.write_text("".join(f"{line}\n" for line in lines))
    with pytest.raises(InputError, match=said):
        ladder(tmp_path)


def test_a_move_signed_by_another_key_is_refused(tmp_path: Path) -> None:
    ladder(tmp_path, Ed25519PrivateKey.generate())
    with pytest.raises(InputError, match="not as signed"):
        ladder(tmp_path)


def test_a_line_that_a_power_cut_left_unfinished_is_no_move(tmp_path: Path) -> None:
    feed(ladder(tmp_path), FINE, 60)
    path = tmp_path / "ladder.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    shortened = ladder(tmp_path)
    assert len(shortened.moves) == whole.count(b"\n") - 1
    feed(shortened, FINE, 60)
    assert len(read_moves(path, TRUSTED)) == len(shortened.moves)
    assert all(json.loads(line) for line in path.read_text().splitlines())
