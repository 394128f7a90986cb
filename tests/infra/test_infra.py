"""Every file that an operator edits or runs is read by what will read it."""

import json
import os
import re
import tomllib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
INFRA = ROOT / "infra"


def deployments() -> list[dict[str, Any]]:
    return yaml.safe_load((INFRA / "prefect.yaml").read_text())["deployments"]


def compose() -> dict[str, Any]:
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


def example_settings() -> dict[str, str]:
    """Every variable of the example, those that are commented out too."""
    lines = (INFRA / "settings.example.env").read_text().splitlines()
    return {found[1]: found[2] for line in lines if (found := re.match(r"#?([A-Z_]+)=(.*)$", line))}


def refused_by_the_command_line(arguments: list[str]) -> str:
    """Why `dankai ARGUMENTS` would not even start, or ''."""
    import click

    from flows.cli import dankai

    try:
        name, command, rest = dankai.resolve_command(click.Context(dankai), arguments)
        assert command is not None
        command.make_context(name, list(rest))
    except click.ClickException as error:
        return error.format_message()
    return ""


# prefect.yaml


@pytest.mark.parametrize("deployment", deployments(), ids=lambda each: each["name"])
def test_a_deployment_imports_its_flow_and_fits_its_parameters(deployment: dict[str, Any]) -> None:
    from prefect.flows import load_flow_from_entrypoint

    path, _, name = deployment["entrypoint"].partition(":")
    flow = load_flow_from_entrypoint(f"{ROOT / path}:{name}")
    given = dict(deployment.get("parameters", {}))
    for trigger in deployment.get("triggers", []):
        given |= trigger["parameters"]
    required = flow.parameters.required if deployment["name"] != "approval" else []
    assert set(required) <= set(given) <= set(flow.parameters.properties)


@pytest.mark.parametrize("deployment", deployments(), ids=lambda each: each["name"])
def test_a_deployment_is_taken_whole_by_prefect(deployment: dict[str, Any]) -> None:
    """Prefect drops in silence what it does not know: `concurrency_options`, for one."""
    from prefect.cli.deploy._models import DeploymentConfig
    from prefect.cli.deploy._triggers import DeploymentTriggerAdapter

    read = DeploymentConfig.model_validate(deployment)
    assert set(deployment) <= set(DeploymentConfig.model_fields)
    if "concurrency_limit" in deployment:
        assert read.concurrency_limit.limit == 1  # type: ignore[union-attr]
    for trigger in deployment.get("triggers", []):
        assert DeploymentTriggerAdapter.validate_python(trigger).expect == {"dankai.drift"}  # type: ignore[union-attr]


def test_what_trains_runs_one_at_a_time_in_the_queue_of_the_accelerator() -> None:
    training = [each for each in deployments() if re.search("retrain|evaluation", each["entrypoint"])]
    assert len(training) == 3
    for each in training:
        assert each["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
        assert each["work_pool"]["work_queue_name"] == "gpu"


def test_the_schedules_are_daily_weekly_and_monthly() -> None:
    from prefect.server.schemas.schedules import CronSchedule

    start, days = datetime(2026, 3, 1, tzinfo=UTC), {}
    for deployment in deployments():
        for schedule in deployment.get("schedules", []):
            times = CronSchedule(**schedule)._get_dates_generator(n=3, start=start)
            first, second, third = times
            days[deployment["name"]] = ((second - first).days, (third - second).days)
    assert days == {"flights-daily": (1, 1), "flights-weekly": (7, 7), "flights-monthly": (31, 30)}


def test_the_files_that_deployments_name_are_there() -> None:
    from pipelines.data.spec import load_spec
    from validation.policy import load_policy

    for parameters in (each["parameters"] for each in deployments() if "parameters" in each):
        load_spec(ROOT / parameters["dataset"])
        load_policy(ROOT / parameters["policy"])


# compose.yaml


def test_compose_is_what_its_specification_allows() -> None:
    """The schema is the Compose Specification's (Apache-2.0), of June 2026."""
    from jsonschema import Draft7Validator

    schema = json.loads(Path(__file__).with_name("compose-spec.json").read_text())
    found = [
        f"{'/'.join(map(str, error.path))}: {error.message}"
        for error in Draft7Validator(schema).iter_errors(compose())
    ]
    assert found == []
    assert list(Draft7Validator(schema).iter_errors({"services": {"worker": {"imagge": "dankai"}}}))


def test_what_compose_runs_starts() -> None:
    ours = {name: each for name, each in compose()["services"].items() if each["image"] == "dankai"}
    assert set(ours) == {"prefect", "mlflow", "worker", "gpu-worker"}
    for service in ours.values():
        command = service["command"]
        words = (
            re.sub(r"\$\{[^}]*\}", "--queue default", command).split()
            if isinstance(command, str)
            else command
        )
        assert refused_by_the_command_line(words) == ""
    assert "No such option" in refused_by_the_command_line(["up", "--hots", "0.0.0.0"])


def test_what_compose_expects_from_outside_is_in_the_example() -> None:
    wanted = set(re.findall(r"(?<!\$)\$\{([A-Z_]+)", (INFRA / "compose.yaml").read_text()))
    assert wanted <= set(example_settings())


def test_every_service_waits_for_what_it_needs() -> None:
    services = compose()["services"]
    for name, service in services.items():
        for needed, how in service.get("depends_on", {}).items():
            assert how["condition"] != "service_healthy" or "healthcheck" in services[needed], name


# Dockerfile, Kubernetes, settings


def instructions() -> list[tuple[str, str]]:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    return [(line.split()[0], line.partition(" ")[2]) for line in lines if line and not line.startswith("#")]


def test_the_image_copies_what_there_is_and_starts_the_command() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    by_name = instructions()
    sources = [source for name, words in by_name if name == "COPY" for source in words.split()[:-1]]
    assert [source for source in sources if not (ROOT / source).exists()] == []
    packages = {
        pattern.rstrip("*") for pattern in project["tool"]["setuptools"]["packages"]["find"]["include"]
    }
    assert packages <= set(sources)
    [base] = [words for name, words in by_name if name == "FROM"]
    assert base == "python:3.12-slim"
    [entry] = [json.loads(words) for name, words in by_name if name == "ENTRYPOINT"]
    [command] = [json.loads(words) for name, words in by_name if name == "CMD"]
    assert entry == list(project["project"]["scripts"])
    assert refused_by_the_command_line(command) == ""


def test_the_image_installs_the_torch_that_the_makefile_does() -> None:
    import subprocess

    [install] = [words for name, words in instructions() if name == "RUN" and "sed" in words]
    found = re.search(r'\$\((sed .*)\)"', install)
    assert found is not None
    told = subprocess.run(found[1], shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    pins = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["train"]
    assert told.stdout.strip() in pins


def test_what_the_kubernetes_notes_run_starts() -> None:
    commands = re.findall(r"`dankai ([^`]+)`", (INFRA / "kubernetes.md").read_text())
    assert len(commands) >= 4
    assert [line for line in commands if refused_by_the_command_line(line.split())] == []


def test_the_example_settings_are_settings_and_can_be_sourced(tmp_path: Path) -> None:
    import subprocess

    from pipelines.settings import load_settings

    settings = load_settings(example_settings() | {"DANKAI_HOME": str(tmp_path)})
    assert (settings.prefect_api_url, settings.threads) == ("http://127.0.0.1:4200/api", 2)
    sourced = subprocess.run(
        ["bash", "-euc", f"set -a; . {INFRA}/settings.example.env; env"],
        capture_output=True,
        text=True,
        check=True,
        env={"PATH": os.environ["PATH"]},
    )
    assert "DANKAI_HOME=.dankai" in sourced.stdout
