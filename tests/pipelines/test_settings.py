"""Settings come from the environment alone, and the stack is told to keep quiet."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.settings import load_settings, quiet_environment
from validation.errors import InputError

EXAMPLE = Path(__file__).parents[2] / "infra" / "settings.example.env"


def test_an_empty_environment_keeps_everything_in_one_folder_here() -> None:
    settings = load_settings({})
    assert settings.home == Path.cwd() / ".dankai"
    assert settings.tracking_uri == f"sqlite:///{settings.home}/mlflow.db"
    assert settings.prefect_api_url is None
    assert settings.threads >= 1
    for path in (settings.artifacts, settings.release_log, settings.keys, settings.steps):
        assert path.is_relative_to(settings.home)


def test_the_environment_overrides_and_an_empty_variable_counts_as_unset(tmp_path: Path) -> None:
    given = {
        "DANKAI_HOME": str(tmp_path / "home"),
        "DANKAI_DATA": str(tmp_path),
        "DANKAI_THREADS": "3",
        "MLFLOW_TRACKING_URI": "http://127.0.0.1:5000",
        "PREFECT_API_URL": "",
    }
    settings = load_settings(given)
    assert (settings.home, settings.data, settings.threads) == (tmp_path / "home", tmp_path, 3)
    assert settings.tracking_uri == "http://127.0.0.1:5000"
    assert settings.prefect_api_url is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"DANKAI_THREADS": "0"},
        {"DANKAI_THREADS": "two"},
        {"DANKAI_HOME": __file__},
        {"MLFLOW_TRACKING_URI": "mlruns"},
        {"MLFLOW_TRACKING_URI": "file:///mlruns"},
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(wrong: dict[str, str]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))) as caught:
        load_settings(wrong)
    assert "\n" not in str(caught.value)


def test_quieting_fills_in_what_is_unset_and_leaves_what_is_set(tmp_path: Path) -> None:
    environ = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_HOME": "/elsewhere"}
    quiet_environment(load_settings({"DANKAI_HOME": str(tmp_path)}), environ)
    assert environ["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert environ["PREFECT_HOME"] == "/elsewhere"
    assert environ["MLFLOW_DISABLE_TELEMETRY"] == environ["DO_NOT_TRACK"] == "true"
    assert environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] == "false"
    fresh: dict[str, str] = {}
    quiet_environment(load_settings({"DANKAI_HOME": str(tmp_path)}), fresh)
    assert fresh["PREFECT_HOME"] == str(tmp_path / "prefect")


def test_reading_settings_loads_nothing_heavy() -> None:
    code = (
        "import sys, pipelines.settings;"
        "print({'pydantic', 'numpy', 'torch', 'mlflow', 'prefect', 'great_expectations'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"


def test_every_line_of_the_example_file_means_something() -> None:
    lines = re.findall(r"^#?([A-Z_]+)=(.*)$", EXAMPLE.read_text(), flags=re.M)
    load_settings(dict(lines))
    environ: dict[str, str] = {}
    quiet_environment(load_settings({}), environ)
    source = "".join(path.read_text() for path in (EXAMPLE.parents[1] / "pipelines").glob("*.py"))
    composed = EXAMPLE.with_name("compose.yaml").read_text()
    unknown = {name for name, _ in lines if f'"{name}"' not in source and f"${{{name}:" not in composed}
    assert unknown <= {"MLFLOW_ARTIFACTS_DESTINATION"}  # which MLflow's server reads itself
