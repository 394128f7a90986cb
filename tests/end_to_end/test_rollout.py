"""A whole rollout in a process of its own, with no server running."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pipelines.data.spec import load_spec
from pipelines.edge.building import build_edge_bundle, find_checkpoint
from pipelines.edge.bundle import verify_bundle
from pipelines.release_log import ReleaseLog
from pipelines.settings import load_settings
from pipelines.signing import load_key
from tests.key_traces import traces_of
from tests.operated import ask
from tests.tiny_rollout import Ended, Preloaded, write_dataset, write_policy
from validation.errors import InputError

STAGES = ("pilot", "training", "edge", "steady")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dataset file, policy, and the home folder of the run below."""
    folder = tmp_path_factory.mktemp("rollout")
    write_dataset(folder)
    write_policy(folder)
    return folder


@pytest.fixture(scope="module")
def ended(folder: Path, preloaded: Preloaded) -> Ended:
    """The run that all tests of this file look at."""
    command = ("rollout", "run", folder / "pump.yaml", "--policy", folder / "policy-0.yaml")
    command += ("--bootstrap", "the dense model in use")
    return preloaded.dankai(*command, home=folder / "home", lengths=(1, 4, 16), alone=True)


@pytest.fixture(scope="module")
def summary(ended: Ended, folder: Path) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    return json.loads((folder / "home" / "summary.json").read_text())


def test_it_did_its_job_and_ends_with_a_table_of_every_stage(ended: Ended) -> None:
    assert ended.code == 0, ended.err
    for stage in STAGES:
        assert re.search(rf"│ {stage}\s+│ auroc|│ {stage}\s+│ parity", ended.out), ended.out
    assert "auroc vs baseline" in ended.out
    assert "Stage steady is reached" in ended.out


def test_progress_is_told_and_nothing_else(ended: Ended) -> None:
    """No log line of a library, no warning, no traceback."""
    told = re.compile(r"^[a-z][\w ():-]*: \d+/\d+ in \d+ s(, about \d+ s left)?$")
    assert [line for line in ended.err.splitlines() if not told.match(line)] == []
    assert "training sparse (seed 1): 12/12" in ended.err


def test_every_check_of_the_table_has_its_kpi_interval_threshold_verdict_and_reason(
    summary: dict[str, Any],
) -> None:
    assert [each["stage"] for each in summary["evaluations"]] == list(STAGES)
    for evaluation in summary["evaluations"]:
        verdict = evaluation["verdict"]
        assert verdict["outcome"] == "PASS"
        assert verdict["checks"]
        assert {check["blessing"] for check in verdict["checks"]} == {"quality", "serving"}
        windows = {(each["part"], each["snapshot"]) for each in evaluation["references"].values()}
        assert windows == {(evaluation["candidate"]["part"], evaluation["candidate"]["snapshot"])}
        for check in verdict["checks"]:
            assert check["reason"]
            assert check["threshold"]["kpi"]
            assert check["outcome"] in ("PASS", "HOLD", "FAIL")
            if check["measured"] is not None:
                assert {"value", "low", "high", "n", "checkpoint", "snapshot"} <= set(check["measured"])


def test_every_challenger_met_what_was_live_on_the_same_windows(
    summary: dict[str, Any], folder: Path
) -> None:
    pilot, training, edge, _ = (each["references"] for each in summary["evaluations"])
    entries = ReleaseLog.open(load_settings({"DANKAI_HOME": str(folder / "home")})).entries()
    live = [entry.decision.checkpoint for entry in entries[:2]]
    assert [each["champion"]["scored"] for each in (pilot, training)] == live
    assert "champion" not in edge  # it judges what is live, in another runtime
    for evaluation in summary["evaluations"][:2]:
        [check] = [
            each for each in evaluation["verdict"]["checks"] if each["threshold"].get("versus") == "champion"
        ]
        assert check["outcome"] == "PASS"
        assert check["measured"]["reference_checkpoint"] == evaluation["references"]["champion"]["scored"]


def test_the_summary_names_versions_and_hashes(summary: dict[str, Any], folder: Path) -> None:
    sha256 = re.compile(r"^[0-9a-f]{64}$")
    for name in ("code", "lock", "packages"):
        assert sha256.match(summary["environment"][name])
    for name in ("torch", "mlflow", "prefect", "great_expectations", "lightning", "onnxruntime", "polars"):
        assert summary["environment"][name], name
    assert summary["environment"]["python"]
    assert sha256.match(summary["policy"])
    assert sha256.match(summary["prepared"]["snapshot"]["content_hash"])
    assert sha256.match(summary["bundle"]["manifest_sha256"])
    assert summary["state"]["releases"][-1]["stage"] == "steady"
    assert [point["density"] for point in summary["calibration"]["points"]] == [0.25, 0.5]
    assert [cost["num_steps"] for cost in summary["costs"]] == [80, 320, 1280]


def test_a_month_that_drifted_was_trained_on_and_its_model_replaced_the_champion(
    summary: dict[str, Any],
) -> None:
    may, june = summary["months"]
    assert (may["month"], june["month"]) == ("2024-05", "2024-06")
    assert may["drift"]["decision"] == "retrain"
    assert may["evaluation"] is None
    met = june["evaluation"]["verdict"]
    assert met["outcome"] == "PASS"
    assert met["evidence"]["checkpoint"] == may["retrained"]
    assert met["evidence"]["references"]["champion"] == june["champion"]
    assert summary["state"]["releases"][-1]["checkpoint"] == may["retrained"]


def test_how_good_each_is_by_itself_is_shown_beside_the_differences(
    ended: Ended, summary: dict[str, Any]
) -> None:
    """What the gate compared is told again: the difference of two values of the table is the KPI."""
    values = {each["role"]: each for each in summary["how_good"]}
    assert list(values) == ["candidate", "dense", "baseline"]
    assert {(each["part"], each["num_windows"]) for each in values.values()} == {("test", 24)}
    for each in values.values():
        assert list(each["metrics"]) == ["auroc", "average_precision", "log_loss"]
        for of in each["metrics"].values():
            assert of["low"] <= of["value"] <= of["high"]
            assert f"{of['value']:.3f} [{of['low']:.3f}, {of['high']:.3f}]" in ended.out
    edge = next(each for each in summary["evaluations"] if each["stage"] == "edge")
    [beside] = [
        each
        for each in edge["kpis"]
        if (each["name"], each["versus"], each["slice"]) == ("auroc", "baseline", "")
    ]
    auroc = {role: each["metrics"]["auroc"]["value"] for role, each in values.items()}
    assert auroc["candidate"] - auroc["baseline"] == pytest.approx(beside["value"])
    assert auroc["baseline"] == beside["reference_value"]


def test_mlflow_has_the_data_docs_the_baseline_and_every_month_under_the_rollout(
    summary: dict[str, Any], folder: Path
) -> None:
    from pipelines.registry import Tracker

    tracker = Tracker.open(load_settings({"DANKAI_HOME": str(folder / "home")}))
    rollout = tracker.find_runs({"kind": "rollout"})[0]
    assert rollout.data.tags["data_docs"] == summary["prepared"]["report"]["docs_uri"]
    assert rollout.info.artifact_uri
    assert Path(rollout.info.artifact_uri.removeprefix("file://"), "data_docs", "index.html").is_file()
    [baseline] = tracker.find_runs({"kind": "baseline"})
    assert baseline.inputs
    [used] = baseline.inputs.dataset_inputs
    assert used.dataset.digest == summary["prepared"]["snapshot"]["content_hash"][:36]
    assert baseline.data.params["model.max_iter"] == "120"
    of_test = next(each for each in summary["how_good"] if each["role"] == "baseline")["metrics"]
    assert baseline.data.metrics["auroc/test"] == pytest.approx(of_test["auroc"]["value"])
    assert "average_precision/2024-06" in baseline.data.metrics
    months = tracker.find_runs({"kind": "month"})
    assert [run.data.tags["month"] for run in months] == ["2024-05", "2024-06"]
    for run, month in zip(months, summary["months"], strict=True):
        assert run.data.tags["drift"] == month["drift"]["decision"]
        assert run.data.tags["drift_reasons"] == ("; ".join(month["drift"]["reasons"]) or "nothing moved")
        assert run.data.metrics["auroc_low"] == month["value"]["low"]
    parents = {run.data.tags["mlflow.parentRunId"] for run in (baseline, *months)}
    stages = tracker.find_runs({"kind": "stage", "mlflow.parentRunId": rollout.info.run_id})
    assert parents <= {rollout.info.run_id, *(run.info.run_id for run in stages)}


def test_its_report_tells_the_whole_climb_and_lies_in_mlflow_too(
    ended: Ended, summary: dict[str, Any], folder: Path
) -> None:
    from pipelines.registry import Tracker
    from pipelines.report.story import read_story

    home = folder / "home"
    assert f"Report: {home}/report.html" in ended.out
    story = read_story(home)
    assert [each.stage for each in story.evaluations] == list(STAGES)
    assert [each.which for each in story.windows] == ["best", "typical", "worst"]
    assert story.windows[0].loss < story.windows[1].loss < story.windows[2].loss
    assert [each.event for each in story.periods] == ["trained", "promoted"]
    assert story.payback is not None
    assert story.lineage.bundle == summary["bundle"]["manifest_sha256"]
    for place in (story.lineage.docs, story.lineage.bundle_place, story.lineage.checkpoint_place):
        assert (home / place).exists(), place
    [run] = Tracker.open(load_settings({"DANKAI_HOME": str(home)})).find_runs({"kind": "rollout"})[:1]
    artifacts = Path(str(run.info.artifact_uri).removeprefix("file://"))
    assert (artifacts / "report.html").read_bytes() == (home / "report.html").read_bytes()


def test_the_report_is_made_again_in_japanese_and_opens_without_a_complaint(
    ended: Ended, folder: Path, preloaded: Preloaded
) -> None:
    from tests.chromium import chromium, lacking, open_page

    out = folder / "report-ja.html"
    made = preloaded.dankai(
        "report", folder / "home", "--lang", "ja", "--out", out, home=folder / "home", LC_ALL="C.UTF-8"
    )
    assert made.code == 0, made.err
    assert made.out.strip() == str(out)
    assert "「定常運用」段階に到達しました。" in out.read_text(encoding="utf-8")
    if why := lacking():
        pytest.skip(why)
    with chromium() as browser:
        opened = open_page(browser, out, 375)
        assert (opened.complaints, opened.requests) == ([], [])
        plots, drawn = opened.ask(
            "['.plot', '.plot svg'].map(each => document.querySelectorAll(each).length)"
        )
        assert drawn == plots >= 12
        assert opened.ask("document.documentElement.scrollWidth") == 375


def test_where_there_is_no_report_that_is_one_line(folder: Path, preloaded: Preloaded) -> None:
    refused = preloaded.dankai("report", folder, home=folder / "home")
    assert refused.code == 2
    assert "report.json: there is no such file; name a folder that holds report.json" in refused.err


def test_what_it_leaves_is_there(ended: Ended, summary: dict[str, Any], folder: Path) -> None:
    assert Path(summary["bundle"]["folder"], "manifest.json").is_file()
    assert Path(summary["prepared"]["report"]["docs_uri"]).is_file()
    assert (folder / "home" / "mlflow.db").is_file()
    leftovers = [
        path.name
        for path in (folder / "home").rglob("*")
        if re.search(r"\.tmp$|unfinished|building", path.name)
    ]
    assert leftovers == []


def test_the_release_log_tells_the_way_and_one_champion_is_live(ended: Ended, folder: Path) -> None:
    from pipelines.registry import Tracker

    settings = load_settings({"DANKAI_HOME": str(folder / "home")})
    entries = ReleaseLog.open(settings).entries()
    actions = [str(entry.decision.action) for entry in entries]
    assert actions == ["bootstrap", "promote", "promote", "promote", "retrain", "promote"]
    aliases = Tracker.open(settings).aliases("dankai-pump")
    assert aliases["champion"] == entries[5].decision.version
    assert aliases["last_green"] == entries[3].decision.version


@pytest.fixture(scope="module")
def first(ended: Ended, folder: Path) -> dict[str, Any]:
    """What the first run left, before it was run again."""
    home = folder / "home"
    return {
        "log": (home / "release_log.jsonl").read_bytes(),
        "summary": json.loads((home / "summary.json").read_text()),
        "steps": sorted((home / "steps").iterdir()),
    }


@pytest.fixture(scope="module")
def again(first: dict[str, Any], folder: Path, preloaded: Preloaded) -> Ended:
    command = ("rollout", "run", folder / "pump.yaml", "--policy", folder / "policy-0.yaml")
    return preloaded.dankai(*command, home=folder / "home", lengths=(1, 4, 16))


def test_running_it_again_does_no_work_twice_and_decides_nothing_again(
    ended: Ended, first: dict[str, Any], again: Ended, folder: Path
) -> None:
    from pipelines.registry import Tracker

    home = folder / "home"
    assert again.code == 0, again.err
    assert again.seconds < ended.seconds / 2
    assert "training" not in again.err
    second = json.loads((home / "summary.json").read_text())
    assert (home / "release_log.jsonl").read_bytes() == first["log"]
    assert second["state"] == first["summary"]["state"]
    assert second["sentence"] == first["summary"]["sentence"]
    for before, after in zip(first["summary"]["evaluations"], second["evaluations"], strict=True):
        assert before == after
    assert set(first["steps"]) <= set((home / "steps").iterdir())
    assert len(Tracker.open(load_settings({"DANKAI_HOME": str(home)})).find_runs({"kind": "month"})) == 2


def test_its_verdict_is_an_artifact_in_prefect(again: Ended, prefect_server: str, folder: Path) -> None:
    asked = {"artifacts": {"key": {"any_": ["pump-rollout-report"]}}}
    shown = ask(f"{prefect_server}/artifacts/filter", asked)  # other tests' rollouts are among them
    ours = [each for each in shown if f"`{folder}/home/report.html`" in each["data"]]
    assert {each["type"] for each in ours} == {"markdown"}
    assert all("Every gate that was asked passed" in each["data"] for each in ours)


def test_the_signing_key_stays_in_its_file(ended: Ended, folder: Path) -> None:
    """Database, artifacts, bundle, log, summary, Data Docs, what was printed: nothing else holds the key."""
    home = folder / "home"
    key = load_key(home / "keys", {})
    everything = list(home.rglob("*"))
    assert traces_of(key, everything, (ended.out, ended.err)) == [str(home / "keys" / "signing.key")]
    assert (home / "keys" / "signing.key").stat().st_mode & 0o777 == 0o600


def test_nothing_it_leaves_is_a_pickle_but_what_only_torch_reads_without_running_it(
    ended: Ended, folder: Path
) -> None:
    import zipfile

    found = {path.suffix for path in (folder / "home").rglob("*") if path.is_file()}
    assert found & {".pkl", ".pickle", ".pt", ".pth", ".bin", ".joblib"} == set()
    for path in (folder / "home").rglob("*.npz"):
        with zipfile.ZipFile(path) as arrays:
            headers = [arrays.read(name)[:128] for name in arrays.namelist()]
        assert not any(b"'|O'" in header for header in headers), path


def test_what_is_live_tells_its_budgets_and_where_it_looked(
    ended: Ended, folder: Path, preloaded: Preloaded
) -> None:
    home, dataset = folder / "home", folder / "pump.yaml"
    table = preloaded.dankai("budget", dataset, "--latency-ms", 1e6, home=home)
    assert table.code == 0, table.err
    assert "80 steps on 1 thread" in table.out
    assert table.out.splitlines()[-1] == "density 0.5"
    refused = preloaded.dankai("budget", dataset, "--latency-ms", 1e-6, home=home)
    assert refused.code == 2
    assert "latency 1e-06 ms cannot be kept: density" in refused.err
    asked = ("explain", dataset, "--window", "2024-04-20T12:00", "--audit", "--json")
    told = preloaded.dankai(*asked, home=home)
    assert told.code == 0, told.err
    answer = json.loads(told.out)
    assert answer["window"]["cutoff"] == "2024-04-20 12:00:00"
    assert {each["slice"] for each in answer["audit"]} == {"", "site=north", "site=south"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("explain", "--window", "soon"), "'soon' is no time: write it as 2013-09-12T18:00"),
        (("explain", "--window", "2030-01-01"), "no window ends at 2030-01-01 00:00:00: possible are from"),
        (("explain", "--audit", "--part", "tset"), "unknown part 'tset': did you mean 'test'?"),
        (("explain", "--audit", "--density", "2"), "density must lie in (0, 1]"),
        (("explain",), "give --window TIME, --audit or both"),
        (("budget", "--max-loss", "-1"), "loss must be a number of at least 0"),
    ],
)
def test_what_cannot_be_explained_is_one_line(
    arguments: tuple[str, ...], words: str, ended: Ended, folder: Path, preloaded: Preloaded
) -> None:
    command, *options = arguments
    refused = preloaded.dankai(command, folder / "pump.yaml", *options, home=folder / "home")
    assert refused.code == 2
    assert words in refused.err
    assert "Traceback" not in refused.err


def test_where_nothing_is_live_there_is_nothing_to_explain(folder: Path, preloaded: Preloaded) -> None:
    for command in (("budget",), ("explain", "--audit")):
        name, *options = command
        refused = preloaded.dankai(name, folder / "pump.yaml", *options, home=folder / "nowhere")
        assert refused.code == 2
        assert "nothing is live" in refused.err
        assert not (folder / "nowhere").exists()


def test_the_live_model_can_be_built_for_devices_again(
    ended: Ended, summary: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    settings = load_settings({"DANKAI_HOME": str(folder / "home"), "DANKAI_THREADS": "1"})
    spec, live = load_spec(folder / "pump.yaml"), summary["state"]["releases"][-1]
    champion = find_checkpoint(settings, spec.name)
    assert champion.sha256 == live["checkpoint"]
    assert find_checkpoint(settings, spec.name, folder=Path(champion.folder)) == champion
    assert find_checkpoint(settings, spec.name, version=live["champion"]) == champion
    with pytest.raises(InputError, match="holds no model"):
        find_checkpoint(settings, spec.name, folder=tmp_path)
    first = find_checkpoint(settings, spec.name, version=1)
    with pytest.raises(InputError, match="there is no version 99"):
        find_checkpoint(settings, spec.name, version=99)
    bundle = build_edge_bundle(settings, spec, first, tmp_path)
    manifest = verify_bundle(Path(bundle.folder), load_key(settings.keys).public_key())
    assert Path(bundle.folder).parent == tmp_path
    assert manifest["made_from"]["checkpoint"] == first.sha256
    assert bundle.parity.passed
