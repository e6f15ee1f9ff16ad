"""The doctor's report: the API by any way that is open, the bundle, what lies on the controller, the file for machines."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Kube, KubeError
from ansible.module_utils.slipway.preflight import Problem, in_order, table
from ansible.module_utils.slipway.workloads import await_ready

from modules import doctor_report

from .authorities import Made, make
from .conftest import PLUGINS
from .fakes import FakeKube, run_module
from .test_doctor import VERSION, node

NODE_PATH = "/api/v1/nodes"


def kubeconfig(folder: Path, leaf: Made) -> Path:
    path = folder / "kubeconfig"
    user = {"client-certificate-data": base64.b64encode(leaf.pem.encode()).decode()}
    path.write_text(yaml.safe_dump({"users": [{"name": "x", "user": user}]}))
    return path


def bundle(folder: Path, **artifact: Any) -> Path:
    """A bundle's manifest with one archive of images."""
    (folder / "bundle/images").mkdir(parents=True, exist_ok=True)
    head = {"schema": 1, "release": "r", "origin": "lab", "arch": "amd64", "versions": {"k3s": VERSION}}
    images = {"path": "images/k3s.tar", "kind": "images", "name": "k3s", "sha256": "", "size": 0, **artifact}
    manifest = {**head, "images": {"minio": "minio:1"}, "artifacts": [images]}
    (folder / "bundle/bundle.yml").write_text(yaml.safe_dump(manifest))
    return folder / "bundle"


@pytest.fixture
def params(tmp_path: Path) -> dict[str, Any]:
    """Parameters of a site with one good server."""
    server = node()
    fields = ("name", "role", "address", "probe", "failure", "unreachable", "asked", "absent", "offset", "error")
    nodes = [{**{name: getattr(server, name) for name in fields}, "kubelet_args": [], "backend": "vxlan", "gpus": {}}]
    (tmp_path / "ca.crt").write_text(make("authority", authority=True, days=(-1, 3000)).pem)
    return {
        "nodes": nodes,
        "limits": {},
        "kubeconfig": str(kubeconfig(tmp_path, make("admin", days=(-1, 365)))),
        "kubectl": "kubectl",
        "playbook": "ansible-playbook playbooks/",
        "bundle": str(bundle(tmp_path, images=["coredns:1"])),
        "unpinned": ["nfd:1"],
        "namespaces": ["kube-system"],
        "expect": [],
        "domain": "ml.example",
        "authority": str(tmp_path / "ca.crt"),
        "settle": 0,
        "report": str(tmp_path / "doctor.json"),
    }


def api() -> FakeKube:
    """A cluster of that server with one workload."""
    ready = {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": VERSION}}
    deployment = {
        "metadata": {"name": "coredns", "generation": 1},
        "spec": {"replicas": 1},
        "status": {"observedGeneration": 1, "updatedReplicas": 1, "availableReplicas": 1, "replicas": 1},
    }
    return FakeKube(
        {
            "/version": {},
            NODE_PATH: {"items": [{"metadata": {"name": "server-1"}, "status": ready}]},
            "/apis/apps/v1/namespaces/kube-system/deployments": {"items": [deployment]},
        }
    )


class Gone(FakeKube):
    """An API that does not answer, or refuses."""

    def __init__(self, status: int = 0) -> None:
        super().__init__()
        self.status = status

    def get(self, path: str, **query: str) -> Any:
        raise KubeError("cannot be reached" if not self.status else "GET /version: 401 Unauthorized", self.status)


def run(
    params: dict[str, Any], kube: Kube | None = None, others: Kube | None = None
) -> tuple[list[Problem], dict[str, Any]]:
    """Run the module with an API, and another one at every other address; the faults, and the report for machines."""

    def client(_: str, __: float, host: str = "") -> Kube:
        return (others or Gone()) if host else (kube or api())

    result = doctor_report.run(params, client)
    report = json.loads(Path(params["report"]).read_text())
    assert result["problems"] == report["problems"] and result["changed"] is False
    return [Problem(**each) for each in report["problems"] if each["severity"] != "ok"], report


def test_a_good_site(params: dict[str, Any]) -> None:
    found, report = run(params)
    assert found == []
    assert report["ok"] and (report["errors"], report["warnings"]) == (0, 0)
    assert report["well"] == len(report["problems"]) > 10
    checks = {each["check"] for each in report["problems"]}
    assert checks >= {
        "kubeconfig",
        "authority",
        "certificates",
        "etcd",
        "snapshots",
        "version",
        "workloads",
        "images",
        "front door",
    }
    shown = doctor_report.run(params, lambda *_, **__: api())["table"]
    assert "server-1  server  k3s v1.35.8+k3s1 active for 5 d" in shown
    assert "cluster   1 nodes, 0 pods, 0 claims" in shown
    assert shown.endswith(f"doctor: 0 errors, 0 warnings, {report['well']} ok")


def test_a_machine_that_is_declared_absent_is_no_fault(params: dict[str, Any]) -> None:
    gone = {"name": "server-2", "probe": None, "failure": "timed out", "unreachable": True, "asked": False}
    params["nodes"].append({**params["nodes"][0], **gone, "absent": True})
    found, _ = run(params)
    assert found == []
    params["nodes"][1].update(asked=True, absent=False)
    found, _ = run(params)
    assert "server-2" in {each.node for each in found}


def test_an_api_that_is_away(params: dict[str, Any]) -> None:
    """The nodes are judged all the same; what was not looked at is said."""
    params["nodes"][0]["probe"]["available_mb"] = 10
    found, report = run(params, Gone())
    assert [(each.severity, each.node, each.check) for each in found] == [
        ("error", "controller", "API"),
        ("error", "server-1", "memory"),
    ]
    assert "nodes, workloads, claims and images were not looked at" in found[0].found
    assert "server-1 answer on their own machines" in found[0].remedy
    assert not report["ok"]
    params["nodes"][0]["probe"] = None
    params["nodes"][0]["failure"] = "timed out"
    found, _ = run(params, Gone())
    assert "start k3s on the servers" in next(each for each in found if each.check == "API").remedy


def test_another_server_is_asked(params: dict[str, Any]) -> None:
    found, report = run(params, Gone(), api())
    assert [(each.severity, each.check) for each in found] == [("error", "API")]
    assert "asked server-1 instead" in found[0].found
    assert "workloads" in {each["check"] for each in report["problems"]}


def test_a_kubeconfig_that_is_refused_missing_or_ends(params: dict[str, Any], tmp_path: Path) -> None:
    (fault,) = run(params, Gone(401))[0]
    assert "401 Unauthorized" in fault.found and "playbooks/cluster.yml" in fault.remedy
    kubeconfig(tmp_path, make("admin", days=(-400, 5)))
    (fault,) = run(params)[0]
    assert (fault.severity, fault.check) == ("error", "kubeconfig") and "ends in 5 days" in fault.found
    Path(params["kubeconfig"]).write_text("users: [{user: {token: x}}]")
    assert run(params)[0] == []
    Path(params["kubeconfig"]).unlink()
    (fault,) = run(params)[0]
    assert "there is no" in fault.found and fault.check == "API"


def test_an_api_that_goes_away_meanwhile(params: dict[str, Any]) -> None:
    class Going(FakeKube):
        def get(self, path: str, **query: str) -> Any:
            if path == NODE_PATH:
                raise KubeError("GET: 500 no leader", 500)
            return super().get(path, **query)

    (fault,) = run(params, Going(api().objects))[0]
    assert "it stopped answering: GET: 500 no leader" in fault.found


def test_nodes_are_given_time_where_k3s_runs(params: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A node that is not ready is one line; one that is down is not waited for."""
    asked = []

    def seen(kube: Kube, wanted: Any, timeout: float) -> Any:
        asked.append((wanted.nodes, timeout))
        return await_ready(kube, wanted, 0)

    monkeypatch.setattr(doctor_report, "await_ready", seen)
    params["settle"] = 60
    kube = api()
    kube.objects[NODE_PATH]["items"][0]["status"]["conditions"][0]["status"] = "False"
    (fault,) = run(params, kube)[0]
    assert (fault.node, fault.check) == ("server-1", "node")
    params["nodes"][0]["probe"]["service"]["active"] = "failed"
    run(params, kube)
    assert asked == [(("server-1",), 60), ((), 60)]


def test_workloads_that_must_be_there(params: dict[str, Any]) -> None:
    params["expect"] = ["kube-system/Deployment/metrics-server"]
    (fault,) = run(params)[0]
    assert fault.found == "Deployment kube-system/metrics-server: it does not exist yet"
    params["expect"] = ["nonsense"]
    with pytest.raises(SlipwayError, match="nonsense"):
        run(params)


def test_the_sites_own_authority_ends(params: dict[str, Any]) -> None:
    Path(params["authority"]).write_text(make("authority", authority=True, days=(-1, 100)).pem)
    (fault,) = run(params)[0]
    assert (fault.severity, fault.check) == ("warning", "authority")
    params["authority"] = None
    assert run(params)[0] == []


def archive(path: Path, tags: list[str] | None) -> None:
    with tarfile.open(path, "w") as made:
        content = json.dumps([{"RepoTags": tags}]).encode()
        entry = tarfile.TarInfo("manifest.json")
        entry.size = len(content)
        made.addfile(entry, io.BytesIO(content))


def test_images_of_the_bundle(params: dict[str, Any], tmp_path: Path) -> None:
    """By its manifest, else by what is in the archive; and those that the release has besides."""
    kube = api()
    images = ["minio:1", "coredns:1", "nfd:1", "else:1"]
    owner = [{"kind": "DaemonSet", "name": "x", "controller": True}]
    metadata = {"name": "x", "namespace": "kube-system", "ownerReferences": owner}
    containers = [{"name": "x", "image": image} for image in images]
    kube.objects["/api/v1/pods"] = {"items": [{"metadata": metadata, "spec": {"containers": containers}}]}
    (fault,) = run(params, kube)[0]
    assert "runs else:1" in fault.found
    bundle(tmp_path)
    archive(tmp_path / "bundle/images/k3s.tar", ["coredns:1", "else:1"])
    assert run(params, kube)[0] == []
    archive(tmp_path / "bundle/images/k3s.tar", None)
    assert len(run(params, kube)[0]) == 2


@pytest.mark.parametrize("what", ["manifest", "archive"])
def test_a_bundle_that_cannot_be_read(params: dict[str, Any], tmp_path: Path, what: str) -> None:
    """Nothing is called a drift then."""
    if what == "manifest":
        (tmp_path / "bundle/bundle.yml").unlink()
    else:
        bundle(tmp_path)
    params["nodes"][0]["probe"]["k3s"]["version"] = "v1.35.4+k3s1"
    found, _ = run(params)
    assert [(each.severity, each.check) for each in found] == [("warning", "bundle"), ("warning", "version")]
    assert "bundle" in found[0].found and "runs k3s" in found[1].found


def test_limits_are_the_roles(params: dict[str, Any]) -> None:
    params["limits"] = {"certificate_days": 400}
    assert {each.check for each in run(params)[0]} == {"certificates", "kubeconfig", "front door"}
    result = run_module(doctor_report, {**params, "limits": {"nonsense": 1}})
    assert result["failed"] and "nonsense" in result["msg"]
    # As from a command line; there is no API.
    Path(params["kubeconfig"]).unlink()
    result = run_module(doctor_report, {**params, "limits": {"snapshot_hours": "5.5", "restarts": "3"}})
    assert {each["check"] for each in result["problems"] if each["severity"] != "ok"} == {"API", "snapshots"}


def test_the_roles_defaults_are_the_modules() -> None:
    defaults = yaml.safe_load((PLUGINS / "../roles/doctor/defaults/main.yml").read_text())
    limits = {f"doctor_{name}": option["default"] for name, option in doctor_report.LIMITS.items()}
    assert limits == {name: value for name, value in defaults.items() if name != "doctor_settle_seconds"}


def test_the_table_has_faults_only_and_counts_the_rest() -> None:
    problems = [
        Problem(severity, "a", "x", f"{severity} found", "w", "r") for severity in ("ok", "warning", "error", "ok")
    ]
    shown = table(in_order(problems), {"a": "agent"}, title="doctor")
    assert [line.split()[0] for line in shown.splitlines() if " found" in line] == ["ERROR", "WARNING"]
    assert shown.endswith("doctor: 1 error, 1 warning, 2 ok")
    assert [each.severity for each in in_order(problems)] == ["error", "warning", "ok", "ok"]
