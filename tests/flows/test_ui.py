"""`dankai ui` where there is nothing to serve; tests/end_to_end/test_servers.py keeps a rollout in one."""

from pathlib import Path

from tests.tiny_rollout import dankai


def test_where_a_server_tracks_its_address_is_told_without_the_password(tmp_path: Path) -> None:
    told = dankai(
        "ui", home=tmp_path / "home", MLFLOW_TRACKING_URI="https://ada:hidden@tracking.example:8443"
    )
    assert (told.code, told.err) == (0, "")
    assert told.out == "MLflow UI: https://ada:***@tracking.example:8443\n"
    assert not (tmp_path / "home").exists()
