"""Stored requests: what is readable is answered, what is not is named, with its place."""

import json
from pathlib import Path

import pytest

from pipelines.serving.requests import Malformed, Request, request_id, stored_requests
from validation.errors import InputError


def test_files_and_folders_are_read_in_order_and_bad_lines_do_not_stop_the_rest(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"id": "first", "inputs": {"x": 1}}\n\n{"inputs": 2}\n{no\n[1]\n')
    (tmp_path / "a.json").write_text('{"inputs": 3}')
    (tmp_path / "notes.txt").write_text("not a request")
    found = list(stored_requests(tmp_path))
    assert [each.id for each in found if isinstance(each, Request)] == ["a", "first", "b:3"]
    assert [json.loads(each.body) for each in found if isinstance(each, Request)][1] == {"inputs": {"x": 1}}
    assert [each.place for each in found if isinstance(each, Malformed)] == ["b.jsonl:4", "b.jsonl:5"]
    assert list(stored_requests(tmp_path / "a.json")) == [Request("a", b'{"inputs": 3}')]


@pytest.mark.parametrize("place", ["absent.jsonl", "empty"])
def test_no_requests_is_one_line(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no request file"):
        list(stored_requests(tmp_path / place))


@pytest.mark.parametrize("identity", ["a b", "a\nb", "x" * 129, "\x1b[31m", "../up", "<b>"])
def test_an_id_is_a_plain_word(identity: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="request id"):
        request_id(identity)
    (tmp_path / "one.json").write_text(json.dumps({"id": identity, "inputs": 1}))
    [found] = stored_requests(tmp_path)
    assert isinstance(found, Malformed)


def test_a_request_without_an_id_gets_one_of_its_own() -> None:
    assert request_id(None) != request_id("")
