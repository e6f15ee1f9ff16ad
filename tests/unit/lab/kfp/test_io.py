"""Our containers in a task's pod, on real files, with a store and a Kubernetes in memory."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from minio.error import S3Error

from tests.lab.kfp.kfp_server import io, placeholders, pods, stores

UID = "0d4b3f1e-0000-4000-8000-000000000001"


class Bucket:
    """What of MinIO's client is used, with objects in memory; `away` lets calls fail first."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = 0

    def list_objects(self, bucket: str, prefix: str, recursive: bool) -> Iterator[Any]:
        """Objects by the start of their names."""
        self._answer()
        assert recursive
        return iter([SimpleNamespace(object_name=key) for key in sorted(self.objects) if key.startswith(prefix)])

    def fget_object(self, bucket: str, key: str, file: str) -> None:
        """One object into a file."""
        self._answer()
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).write_bytes(self.objects[key])

    def fput_object(self, bucket: str, key: str, file: str) -> None:
        """A file into an object."""
        self._answer()
        self.objects[key] = Path(file).read_bytes()

    def _answer(self) -> None:
        if self.away:
            self.away -= 1
            raise OSError("connection refused")


class Kube:
    """What of the client is used."""

    def __init__(self, exit_code: int = 0) -> None:
        self.exit_code = exit_code
        self.created: list[Any] = []

    def watch(self, kind: str, selector: str = "", field: str = "") -> Iterator[Any]:
        """A pod whose component first runs, then ends."""
        assert field == "metadata.name=pod-1"
        states: list[Any] = [{"running": {}}, {"terminated": {"exitCode": self.exit_code}}]
        for state in states:
            yield {"object": {"status": {"containerStatuses": [{"name": "main", "state": state}]}}}

    def log(self, pod: str, container: str) -> Iterator[bytes]:
        """Its log."""
        yield b"one\n"
        yield b"two\n"

    def create(self, kind: str, body: Any) -> Any:
        """A new object."""
        self.created.append((kind, body))
        return body

    @property
    def report(self) -> Any:
        """What was written of the outputs."""
        ((kind, body),) = self.created
        assert kind == pods.RESULTS
        assert body["metadata"]["ownerReferences"][0]["uid"] == UID
        return pods.report(body)


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Bucket:
    """A store; paths of artifacts are below a folder of the test."""
    made = Bucket()
    monkeypatch.setenv("KFP_POD_UID", UID)
    monkeypatch.setattr(stores, "client", lambda *_: made)
    monkeypatch.setattr(placeholders, "_SCHEMES", {"minio://": f"{tmp_path}/minio/"})
    return made


def task(tmp_path: Path, **changes: Any) -> Any:
    """Orders with an input, an output artifact and two output parameters."""
    folder = f"{tmp_path}/minio/b/root/t/1"
    return {
        "inputs": [{"name": "1", "uri": "minio://b/in/data"}],
        "parameters": {
            "rows": {"file": f"{tmp_path}/out/rows", "type": "NUMBER_INTEGER"},
            "words": {"file": f"{tmp_path}/out/words", "type": "LIST"},
        },
        "artifacts": {
            "model": {"name": "model", "uri": "minio://b/root/t/1/model", "type": {"schemaTitle": "system.Model"}},
            pods.LOGS: {"name": pods.LOGS, "uri": "minio://b/root/t/1/executor-logs-0"},
        },
        "file": f"{folder}/output_metadata.json",
        "folder": "minio://b/root/t/1",
        "root": "minio://b/root",
        "session": {},
        **changes,
    }


def test_prepare(bucket: Bucket, tmp_path: Path) -> None:
    """Inputs are there, files and folders both, and anybody may write where outputs go."""
    bucket.objects = {"in/data": b"1", "in/data2": b"other", "in/set/a": b"2", "in/set/b/c": b"3"}
    inputs = [{"uri": "minio://b/in/data"}, {"uri": "minio://b/in/set"}, {"uri": "gs://b/x"}, {"uri": "minio://b/none"}]
    io.prepare(task(tmp_path, inputs=inputs), Kube())  # type: ignore[arg-type]
    folder = tmp_path / "minio/b/in"
    assert (folder / "data").read_bytes() == b"1" and (folder / "set/b/c").read_bytes() == b"3"
    assert not (folder / "data2").exists()
    for path in (tmp_path / "minio/b/root/t/1", tmp_path / "out", folder / "set/b"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o777
    assert stat.S_IMODE((folder / "data").stat().st_mode) == 0o666


def test_objects_that_would_leave_their_folder(bucket: Bucket, tmp_path: Path) -> None:
    """Are refused."""
    bucket.objects = {"in/data/../../etc": b"1"}
    with pytest.raises(stores.StoreError, match="elsewhere"):
        io.prepare(task(tmp_path), Kube())  # type: ignore[arg-type]


def test_artifacts_in_images(bucket: Bucket, tmp_path: Path) -> None:
    """Are refused, and not left out."""
    with pytest.raises(io.TaskError, match="not part of the stand-in"):
        io.prepare(task(tmp_path, inputs=[{"uri": "oci://registry/model:1"}]), Kube())  # type: ignore[arg-type]


def run(tmp_path: Path, orders: Any, exit_code: int = 0, **files: Any) -> Kube:
    """`wait` after a component that wrote these files: rows, words, model and file (the executor output)."""
    io.prepare(orders, Kube())  # type: ignore[arg-type]
    places = {"rows": tmp_path / "out/rows", "words": tmp_path / "out/words", "file": Path(orders["file"])}
    for name, content in files.items():
        places.get(name, Path(orders["file"]).parent / name).write_text(content)
    kube = Kube(exit_code)
    io.conclude(orders, kube, "pod-1")  # type: ignore[arg-type]
    return kube


def test_conclude(bucket: Bucket, tmp_path: Path) -> None:
    """Artifact, log and executor output are in the store; the report has all the engine needs."""
    said = {
        "parameterValues": {"words": ["a"]},
        "artifacts": {"model": {"artifacts": [{"name": "model", "uri": "", "metadata": {"framework": "none"}}]}},
    }
    kube = run(tmp_path, task(tmp_path), rows="7\n", words="[]", model="weights", file=json.dumps(said))
    assert bucket.objects["root/t/1/model"] == b"weights"
    assert bucket.objects["root/t/1/executor-logs-0"] == b"one\ntwo\n"
    assert json.loads(bucket.objects["root/t/1/output_metadata.json"]) == said
    # The executor output counts more than the files.
    assert kube.report["parameters"] == {"words": ["a"], "rows": 7}
    assert kube.report["artifacts"] == {
        "model": {
            "name": "model", "uri": "minio://b/root/t/1/model", "type": {"schemaTitle": "system.Model"},
            "metadata": {"framework": "none"},
        }
    }  # fmt: skip


def test_folders_are_uploaded(bucket: Bucket, tmp_path: Path) -> None:
    """File by file."""
    orders = task(tmp_path)
    folder = Path(orders["file"]).parent / "model"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep/a").write_text("1")
    run(tmp_path, orders, rows="1", words="[]")
    assert bucket.objects["root/t/1/model/deep/a"] == b"1"


def test_an_artifact_that_was_not_written(bucket: Bucket, tmp_path: Path) -> None:
    """Is recorded all the same, as by the real launcher."""
    kube = run(tmp_path, task(tmp_path), rows="1", words="[]")
    assert kube.report["artifacts"]["model"]["uri"] == "minio://b/root/t/1/model"
    assert "root/t/1/model" not in bucket.objects


def test_a_component_that_failed(bucket: Bucket, tmp_path: Path) -> None:
    """Only its log is kept, and nothing is reported."""
    kube = run(tmp_path, task(tmp_path), exit_code=3, rows="7", words="[]", model="weights")
    assert list(bucket.objects) == ["root/t/1/executor-logs-0"] and not kube.created


ELSEWHERE = json.dumps({"artifacts": {"model": {"artifacts": [{"customPath": "/home/model"}]}}})


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"rows": "1"}, "failed to read output parameter name=words type=LIST"),
        ({"rows": "many", "words": "[]"}, "'many' is no NUMBER_INTEGER"),
        ({"rows": "1", "words": "[]", "file": "{"}, "failed to unmarshall ExecutorOutput"),
        ({"rows": "1", "words": "[]", "file": ELSEWHERE}, "output artifact model is at /home/model"),
    ],
)
def test_outputs_that_are_wrong(bucket: Bucket, tmp_path: Path, files: dict[str, Any], message: str) -> None:
    """The task fails and says which."""
    with pytest.raises(io.TaskError, match=message):
        run(tmp_path, task(tmp_path), **files)


def test_more_than_kubernetes_keeps(bucket: Bucket, tmp_path: Path) -> None:
    """Is said before the API refuses it."""
    with pytest.raises(io.TaskError, match="use artifacts"):
        run(tmp_path, task(tmp_path), rows="1", words=json.dumps(["x" * 300_000]))


def test_a_store_that_is_away() -> None:
    """Is asked again, with longer and longer pauses, until it answers or patience ends; a refusal counts at once."""
    pauses: list[float] = []
    bucket = Bucket()
    bucket.away = 3
    assert list(stores.patiently(lambda: bucket.list_objects("b", "", True), 100.0, pauses.append)) == []
    assert pauses == [1.0, 2.0, 4.0]
    bucket.away = 1000
    with pytest.raises(stores.StoreError, match="connection refused"):
        stores.patiently(lambda: bucket.list_objects("b", "", True), 100.0, pauses.append)

    def refuse() -> None:
        raise S3Error(SimpleNamespace(status=403), "AccessDenied", "no", "r", "q", "h")  # type: ignore[arg-type]

    with pytest.raises(stores.StoreError, match="AccessDenied"):
        stores.patiently(refuse, 100.0, lambda _: pytest.fail("waited"))


PROVIDERS = """
minio:
  default:
    endpoint: minio.minio.svc:9000
    disableSSL: true
    credentials: {fromEnv: false, secretRef: {secretName: keys, accessKeyKey: a, secretKeyKey: s}}
  overrides:
    - {bucketName: other, keyPrefix: x/, endpoint: elsewhere:9000, credentials: {fromEnv: true}}
"""


def test_sessions() -> None:
    """By ConfigMap kfp-launcher; without it what the real launcher uses."""
    assert stores.session({}, "minio://b/x")["endpoint"] == "seaweedfs.kubeflow:9000"
    assert stores.session({}, "s3://b/x") == {}
    config = {"providers": PROVIDERS}
    found = stores.session(config, "minio://b/x")
    assert (
        found["endpoint"] == "minio.minio.svc:9000" and found["secretName"] == "keys" and found["secretKeyKey"] == "s"
    )
    assert stores.session(config, "minio://other/x/y") == {"endpoint": "elsewhere:9000", "disableSSL": True}
    with pytest.raises(stores.StoreError, match="minio: credentials are missing"):
        stores.session({"providers": "minio: {default: {endpoint: e}}"}, "minio://b/x")
    with pytest.raises(stores.StoreError, match="gs://b"):
        stores.session({}, "gs://b/x")


def test_a_secret_without_the_key() -> None:
    """Names Secret, keys and where they come from."""
    settings = {"secretName": "keys", "accessKeyKey": "a", "secretKeyKey": "s", "endpoint": "e:9000"}
    with pytest.raises(stores.StoreError, match="Secret keys has no value under a, s"):
        stores.client(settings, lambda _: {"a": "x"})


def test_orders_by_environment(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Anything but init and wait is refused."""
    monkeypatch.setenv("KFP_TASK", "{}")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    assert io.main(["other"]) == 2
    assert "init or wait" in capsys.readouterr().err
