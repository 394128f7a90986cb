"""What devices leave in a store, by folder, HTTP and S3; and that the monitor sees there what drifted."""

import http.server
import json
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from edge_cases import KEY, SPEC, built_bundle
from test_agent import answered, plant_rows, write

from pipelines.edge import collecting
from pipelines.edge.collecting import collect
from pipelines.edge.offers import Offer, follow, make_offer, publish
from pipelines.edge.rings import fault_of
from pipelines.edge.runtime import EdgeModel
from pipelines.edge.stores import FolderStore, HttpStore, Store, StoreError, open_store, read
from pipelines.edge.sync import report, sync
from pipelines.edge.updates import install
from tests.faults.edge_faults import quick, small_steps
from validation.errors import InputError

PUBLIC = KEY.public_key()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(built_bundle(tmp_path_factory.mktemp("edge")).folder)


@pytest.fixture(scope="module")
def model(bundle: Path) -> EdgeModel:
    return EdgeModel.load(bundle, PUBLIC)


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """Address of a web server over a folder, that takes files too."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "web"))

        def do_PUT(self) -> None:
            path = Path(self.translate_path(self.path))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(201)
            self.end_headers()

        def log_message(self, format: str, *_: object) -> None: ...

    (tmp_path / "web").mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of a real S3-compatible server on this machine."""
    boto3, server = pytest.importorskip("boto3"), pytest.importorskip("moto.server")
    with pytest.MonkeyPatch.context() as patch:
        running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        running.start()
        address = "http://{}:{}".format(*running.get_host_and_port())
        for name, value in (
            ("AWS_ENDPOINT_URL", address),
            ("AWS_ACCESS_KEY_ID", "test"),
            ("AWS_SECRET_ACCESS_KEY", "test"),
            ("AWS_DEFAULT_REGION", "us-east-1"),
        ):
            patch.setenv(name, value)
        boto3.client("s3").create_bucket(Bucket="plant")
        yield "s3://plant/edge"
        running.stop()


@pytest.fixture(params=["folder", "web", "bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        (tmp_path / "store").mkdir()
        return open_store(str(tmp_path / "store"))
    return open_store(request.getfixturevalue(request.param))


def test_every_store_hands_out_bundles_and_takes_reports(
    store: Store, bundle: Path, model: EdgeModel, tmp_path: Path
) -> None:
    from pipelines.edge.metrics import Limits

    device = tmp_path / "device"
    make_offer(store, Offer(1, publish(store, bundle, PUBLIC), None, None, Limits()), KEY)
    assert follow(device, "line-3", store, PUBLIC, quick).current.startswith("1-")
    answered(model, device, write(tmp_path / "rows.jsonl", plant_rows(300)), audit_every=1)
    sent = sync(device, "line-3", store)
    assert sent.rows >= 1  # a slow machine commits more often
    assert sent.sums == 1
    assert not list((device / "spool" / "rows").iterdir())
    left = json.loads(read(store, "devices/line-3/report.json", 1 << 20) or b"")
    assert (left["device"], left["sequence"], left["scored"]) == ("line-3", 1, 0)  # bundle of another name
    if not isinstance(store, HttpStore):
        assert len(store.names("devices/line-3/")) == sent.rows + 2
    assert read(store, "nothing", 10) is None
    with pytest.raises(StoreError, match="larger than 10 bytes"):
        read(store, "offer.json", 10)


def test_stores_that_cannot_be_reached_are_told_in_one_line(tmp_path: Path) -> None:
    for place, words in (
        (str(tmp_path / "absent"), "is it mounted"),
        ("http://127.0.0.1:9", "no answer"),
    ):
        with pytest.raises(StoreError, match=words) as caught:
            read(open_store(place), "offer.json", 10)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="give a folder"):
        open_store("ftp://plant")
    with pytest.raises(InputError, match="device name"):
        sync(tmp_path, "../line", FolderStore(tmp_path))


def test_a_sync_that_breaks_off_is_gone_on_with(model: EdgeModel, tmp_path: Path) -> None:
    with small_steps():
        answered(model, tmp_path / "device", write(tmp_path / "rows.jsonl", plant_rows(300)), audit_every=1)
        whole = sorted(path.name for path in (tmp_path / "device" / "spool" / "rows").iterdir())

        class Flaky(FolderStore):
            left = 5

            def put(self, name: str, content: bytes) -> None:
                self.left -= 1
                if self.left < 0:
                    raise StoreError("no answer")
                super().put(name, content)

        store = Flaky(tmp_path / "store")
        (tmp_path / "store").mkdir()
        for _ in range(20):
            try:
                sync(tmp_path / "device", "line-3", store)
                break
            except StoreError:
                store.left = 5
    names = [name.rpartition("/rows-")[2] for name in store.names("devices/") if "/rows-" in name]
    assert names == whole


def test_a_report_of_a_device_that_works_can_be_true(bundle: Path, model: EdgeModel, tmp_path: Path) -> None:
    from pipelines.edge.agent import Agent, Loaded
    from pipelines.edge.intake import read_lines

    state = install(tmp_path, bundle, PUBLIC, measure=quick)
    source = write(tmp_path / "rows.jsonl", plant_rows(300))
    agent = Agent(tmp_path, Loaded(state.current, model), source)
    for _ in agent.take(read_lines(str(source), {}, False)):
        pass
    agent.close()
    said = report(tmp_path, "line-3")
    assert (said["windows"], said["failed"], said["scored"]) == (32, 0, 256)
    assert fault_of(said, "line-3") == ""
    for change, words in (
        ({"device": "line-4"}, "another device"),
        ({"failed": 40}, "40 of 32 windows failed"),
        ({"latency_ms": [1.0]}, "1 latencies of 32 answers"),
        ({"latency_ms": [float("nan")] * 32}, "no time"),
        ({"windows": -1}, "not a report"),
        ({"memory_bytes": [5]}, "cannot be"),
        ({"refused": {state.current: "bad"}}, "runs what it refused"),
    ):
        assert words in fault_of(said | change, "line-3")


def test_what_devices_left_becomes_the_batch_that_the_source_would_have_been(
    model: EdgeModel, tmp_path: Path
) -> None:
    rows = plant_rows(400)
    with small_steps(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "PERIOD", 4)
        answered(model, tmp_path / "d", write(tmp_path / "rows.jsonl", rows), audit_every=1)
        store = FolderStore(tmp_path / "store")
        (tmp_path / "store").mkdir()
        sync(tmp_path / "d", "line-3", store)
        damaged = next(name for name in store.names("devices/") if "/rows-" in name)
        found = collect(store, SPEC, tmp_path / "out")
        content = (tmp_path / "store" / damaged).read_bytes()
        (tmp_path / "store" / damaged).write_bytes(content.replace(b"1", b"2", 1))
        assert collect(store, SPEC, tmp_path / "other").damaged == (damaged,)
    [batch] = found.batches
    table = pl.read_csv(batch)
    assert table.columns == ["time", "load", "wind", "late", "site"]  # no entity: the dataset has one
    expected = pl.DataFrame(rows).drop("entity")[: len(table)]
    assert table.equals(expected.select(table.columns))
    assert len(table) == 40 + 8 * ((400 - 40) // 8)
    [sums] = found.devices
    assert (sums.device, sums.lines, sums.scored) == ("line-3", 400, 360)


def test_a_device_sees_its_own_scores_move_and_says_so_when_it_syncs(
    model: EdgeModel, tmp_path: Path
) -> None:
    moved = [row | {"load": row["load"] + 12.0} for row in plant_rows(1000, first=1500)]
    source = write(tmp_path / "rows.jsonl", [*plant_rows(1500), *moved])
    with small_steps(lines=128, period=4), pytest.MonkeyPatch.context() as patch:
        patch.setattr(collecting, "PERIOD", 4)
        answered(model, tmp_path / "d", source, audit_every=1)
        (tmp_path / "store").mkdir()
        store = FolderStore(tmp_path / "store")
        sync(tmp_path / "d", "line-3", store)
        found = collect(store, SPEC, tmp_path / "out")
    [sums] = found.devices
    assert sums.has_shifted
    [batch] = found.batches
    loads = pl.read_csv(batch)["load"]
    assert loads[-500:].mean() - loads[:500].mean() > 10  # type: ignore[operator]
