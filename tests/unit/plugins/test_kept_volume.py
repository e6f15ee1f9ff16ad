"""Volumes outlive their claims and are found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from ansible.module_utils.slipway import volumes
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, KubeError
from ansible.module_utils.slipway.volumes import (
    CLASSES,
    LABEL,
    NODES,
    VOLUMES,
    KeptVolume,
    Outcome,
    Wanted,
    delete_volumes,
    describe,
    of_namespace,
    place,
)

from modules import component_volumes, kept_volume

from .fakes import FakeKube, run_module

CLAIMS = "/api/v1/namespaces/git/persistentvolumeclaims"
CLAIM = f"{CLAIMS}/git-data"
WANTED = Wanted("git", "git-data", "10Gi", labels={"app": "git"})
MARKS = {"app.kubernetes.io/managed-by": "slipway", LABEL: "git.git-data"}


class Cluster(FakeKube):
    """A FakeKube with what binds volumes and removes claims in a real one; lists are made of objects."""

    def __init__(self, *nodes: str, growing: bool = False) -> None:
        super().__init__()
        self.conflicts = 0
        for node in nodes or ("agent-1",):
            self.objects[f"{NODES}/{node}"] = {
                "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}},
                "status": {"conditions": [{"type": "Ready", "status": "True"}]},
            }
        self.objects[f"{CLASSES}/local-path"] = {"metadata": {"name": "local-path"}, "allowVolumeExpansion": growing}

    def get(self, path: str, **query: str) -> Json | None:
        if path not in (VOLUMES, NODES):
            return super().get(path)
        label, _, value = query.get("labelSelector", "").partition("=")
        items = [super(Cluster, self).get(key) for key in self.objects if key.startswith(f"{path}/")]
        return {"items": [item for item in items if item and (not label or _labels(item).get(label) == value)]}

    def merge_patch(self, path: str, body: Json) -> Json:
        if self.conflicts:
            self.conflicts -= 1
            raise KubeError("changed", 409)
        return super().merge_patch(path, body)

    def delete(self, path: str) -> None:
        self.writes.append(path)
        claim = self.objects.pop(path)
        if name := claim["spec"].get("volumeName"):
            volume = self.volume(name)
            if volume["spec"]["persistentVolumeReclaimPolicy"] == "Retain":
                volume["status"]["phase"] = "Released"
            else:
                del self.objects[f"{VOLUMES}/{name}"]

    def volume(self, name: str = "pvc-1") -> Json:
        return self.objects[f"{VOLUMES}/{name}"]

    def bind(self, name: str = "pvc-1", node: str = "agent-1") -> None:
        """What happens once a pod uses the claim, or the claim names a volume that is free."""
        claim = self.objects[CLAIM]
        reference = {"kind": "PersistentVolumeClaim", "namespace": "git", "name": "git-data"}
        if name in (claim["spec"].get("volumeName"),):
            reference_found = self.volume(name)["spec"]["claimRef"]
            assert reference_found == {"apiVersion": "v1", **reference}
        else:
            self.objects[f"{VOLUMES}/{name}"] = {
                "metadata": {"name": name, "resourceVersion": "1"},
                "spec": {
                    "capacity": {"storage": claim["spec"]["resources"]["requests"]["storage"]},
                    "storageClassName": claim["spec"].get("storageClassName", "local-path"),
                    "persistentVolumeReclaimPolicy": "Delete",
                    "hostPath": {"path": f"/data/{name}"},
                    "nodeAffinity": affinity(node),
                },
                "status": {},
            }
        claim["spec"].setdefault("storageClassName", "local-path")
        claim["spec"]["volumeName"] = name
        claim["status"] = {"phase": "Bound"}
        self.volume(name)["spec"]["claimRef"] = {**reference, "apiVersion": "v1", "uid": "old", "resourceVersion": "7"}
        self.volume(name)["status"]["phase"] = "Bound"


def _labels(item: Json) -> dict[str, str]:
    found: dict[str, str] = item["metadata"].get("labels") or {}
    return found


def affinity(*nodes: str) -> Json:
    rule = {"key": "kubernetes.io/hostname", "operator": "In", "values": list(nodes)}
    return {"required": {"nodeSelectorTerms": [{"matchExpressions": [rule]}]}}


def present(cluster: Cluster, check: bool = False, **different: Any) -> Outcome:
    wanted = Wanted(**{**WANTED.__dict__, **different})
    return KeptVolume(cluster, wanted, check, timeout=0, kubectl="kubectl").present()


def installed() -> Cluster:
    """A cluster with the claim, its volume bound and kept."""
    cluster = Cluster()
    present(cluster)
    cluster.bind()
    assert KeptVolume(cluster, WANTED, timeout=0).kept().changes == ["volume pvc-1 of git/git-data kept"]
    cluster.writes.clear()
    return cluster


def test_made_then_kept_then_left_alone() -> None:
    cluster = Cluster()
    assert present(cluster, check=True).changes == ["claim git/git-data made"]
    assert not cluster.writes
    outcome = present(cluster)
    assert (outcome.changes, outcome.volume, outcome.kept) == (["claim git/git-data made"], "", False)
    spec = cluster.objects[CLAIM]["spec"]
    assert spec == {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "10Gi"}}}
    assert _labels(cluster.objects[CLAIM]) == {"app.kubernetes.io/managed-by": "slipway", "app": "git"}
    # No pod has used it yet.
    assert present(cluster).changes == []
    assert KeptVolume(cluster, WANTED, check=True).kept().changes == ["volume of git/git-data kept"]
    with pytest.raises(SlipwayError, match="git/git-data is not bound after 0 s"):
        KeptVolume(cluster, WANTED, timeout=0).kept()
    cluster.bind()
    assert KeptVolume(cluster, WANTED, check=True).kept().changes == ["volume pvc-1 of git/git-data kept"]
    assert cluster.volume()["spec"]["persistentVolumeReclaimPolicy"] == "Delete"
    outcome = KeptVolume(cluster, WANTED, timeout=0).kept()
    assert (outcome.changes, outcome.volume, outcome.kept) == (["volume pvc-1 of git/git-data kept"], "pvc-1", True)
    assert cluster.volume()["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    assert _labels(cluster.volume()) == MARKS
    cluster.writes.clear()
    for again in (KeptVolume(cluster, WANTED, timeout=0).kept(), present(cluster)):
        assert (again.changes, again.volume, again.kept) == ([], "pvc-1", True)
    assert not cluster.writes


def test_what_was_changed_by_hand_is_kept_again() -> None:
    cluster = installed()
    cluster.volume()["spec"]["persistentVolumeReclaimPolicy"] = "Delete"
    cluster.conflicts = 1
    assert present(cluster).changes == ["volume pvc-1 of git/git-data kept"]
    assert cluster.volume()["spec"]["persistentVolumeReclaimPolicy"] == "Retain"
    cluster.volume()["spec"]["persistentVolumeReclaimPolicy"] = "Delete"
    cluster.conflicts = 99
    with pytest.raises(SlipwayError, match="kept changing"):
        present(cluster)


def test_a_new_claim_gets_the_old_volume() -> None:
    cluster = installed()
    cluster.delete(CLAIM)
    assert KeptVolume(cluster, WANTED, check=True).kept().changes == []
    check = present(cluster, check=True)
    assert (check.changes, check.restored) == (["claim git/git-data made on the volume kept for it, pvc-1"], True)
    assert CLAIM not in cluster.objects and cluster.volume()["spec"]["claimRef"]["uid"] == "old"
    outcome = present(cluster)
    assert (outcome.changes, outcome.restored, outcome.volume) == (check.changes, True, "pvc-1")
    assert cluster.volume()["spec"]["claimRef"] == {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "namespace": "git",
        "name": "git-data",
    }
    spec = cluster.objects[CLAIM]["spec"]
    assert (spec["volumeName"], spec["storageClassName"]) == ("pvc-1", "local-path")
    cluster.bind()
    assert KeptVolume(cluster, WANTED, timeout=0).kept().changes == []


def test_a_restored_volume_grows_once_it_is_bound() -> None:
    cluster = installed()
    cluster.delete(CLAIM)
    cluster.objects[f"{CLASSES}/local-path"]["allowVolumeExpansion"] = True
    present(cluster, size="20Gi")
    assert cluster.objects[CLAIM]["spec"]["resources"]["requests"]["storage"] == "10Gi"
    cluster.bind()
    wanted = Wanted("git", "git-data", "20Gi")
    changes = ["volume git/git-data grown from 10Gi to 20Gi"]
    assert KeptVolume(cluster, wanted, check=True).kept().changes == changes
    assert KeptVolume(cluster, wanted, timeout=0).kept().changes == changes
    assert cluster.objects[CLAIM]["spec"]["resources"]["requests"]["storage"] == "20Gi"
    assert KeptVolume(cluster, wanted, timeout=0).kept().changes == []


@pytest.mark.parametrize("gone", [False, True])
def test_sizes_and_classes_are_judged(gone: bool) -> None:
    """Of a claim that is there, and of a volume that was kept."""
    cluster = installed()
    if gone:
        cluster.delete(CLAIM)
    cluster.writes.clear()
    for size in ("1Gi", "10G"):
        with pytest.raises(SlipwayError, match=f"to have {size}, but it already has 10Gi. A volume cannot shrink"):
            present(cluster, size=size, check=True)
    with pytest.raises(SlipwayError, match=r"storage class local-path cannot grow\. Set the size to 10Gi"):
        present(cluster, size="20Gi", check=True)
    with pytest.raises(SlipwayError, match="is of storage class local-path, but fast is wanted"):
        present(cluster, storage_class="fast", check=True)
    with pytest.raises(SlipwayError, match="'ten' is not a Kubernetes quantity"):
        present(cluster, size="ten", check=True)
    assert present(cluster, size="10240Mi", storage_class="local-path", check=True).changes == (
        ["claim git/git-data made on the volume kept for it, pvc-1"] if gone else []
    )
    assert not cluster.writes


def test_a_claim_grows_where_its_class_allows_it() -> None:
    cluster = installed()
    cluster.objects[f"{CLASSES}/local-path"]["allowVolumeExpansion"] = True
    cluster.conflicts = 1
    assert present(cluster, size="11Gi").changes == ["volume git/git-data grown from 10Gi to 11Gi"]
    assert present(cluster, size="11Gi").changes == []


@pytest.mark.parametrize("gone", [False, True])
def test_a_node_that_is_gone_is_named(gone: bool) -> None:
    cluster = installed()
    if gone:
        cluster.delete(CLAIM)
    cluster.objects[f"{NODES}/server-1"] = cluster.objects.pop(f"{NODES}/agent-1")
    cluster.objects[f"{NODES}/server-1"]["metadata"] = {"name": "server-1", "labels": {}}
    with pytest.raises(SlipwayError) as refusal:
        present(cluster, check=True)
    text = str(refusal.value)
    assert "volume pvc-1, " + ("kept for it" if gone else "bound to it") in text
    assert "lies on node agent-1, at /data/pvc-1, and no such node is in the cluster" in text
    assert "kubectl label pv pvc-1 slipway/volume-" in text
    assert ("kubectl -n git delete pvc git-data" in text) is not gone


def test_a_node_that_is_not_ready_is_a_warning() -> None:
    cluster = installed()
    cluster.objects[f"{NODES}/agent-1"]["status"]["conditions"][0]["status"] = "Unknown"
    outcome = present(cluster)
    assert outcome.warnings == [
        "volume git/git-data lies on node agent-1, at /data/pvc-1, and that node is not ready: its pods wait for it"
    ]


def test_two_volumes_are_not_guessed_at() -> None:
    cluster = installed()
    cluster.delete(CLAIM)
    other = json.loads(json.dumps(cluster.volume()))
    other["metadata"]["name"] = "pvc-2"
    cluster.objects[f"{VOLUMES}/pvc-2"] = other
    with pytest.raises(SlipwayError, match="2 volumes were kept for git/git-data: pvc-1, pvc-2"):
        present(cluster)
    # One that somebody has bound elsewhere does not count.
    other["spec"]["claimRef"]["namespace"] = "rescue"
    outcome = present(cluster)
    assert outcome.volume == "pvc-1"
    assert outcome.warnings == ["volume pvc-2, kept for git/git-data, now belongs to rescue/git-data"]


def test_a_volume_that_is_not_released_yet() -> None:
    cluster = installed()
    cluster.delete(CLAIM)
    cluster.volume()["status"]["phase"] = "Bound"
    with pytest.raises(SlipwayError, match=r"a volume is still bound to it\. Next: kubectl get pv -l slipway"):
        present(cluster)


def test_a_claim_that_is_going() -> None:
    cluster = installed()
    cluster.objects[CLAIM]["metadata"]["deletionTimestamp"] = "now"
    with pytest.raises(SlipwayError, match="is being deleted and not gone after 0 s: a pod still uses it"):
        present(cluster)

    class Going(Cluster):
        looks = 0

        def get(self, path: str, **query: str) -> Json | None:
            self.looks += path == CLAIM
            if self.looks == 3 and CLAIM in self.objects and "deletionTimestamp" in self.objects[CLAIM]["metadata"]:
                self.delete(CLAIM)
            return super().get(path, **query)

    going = Going()
    going.objects = cluster.objects
    assert KeptVolume(going, WANTED, timeout=5).present().restored


def test_a_volume_that_does_not_exist() -> None:
    cluster = installed()
    del cluster.objects[f"{VOLUMES}/pvc-1"]
    cluster.objects[CLAIM]["status"]["phase"] = "Lost"
    with pytest.raises(SlipwayError, match="volume git/git-data is lost: its claim names pvc-1"):
        present(cluster)


def test_absent_keeps_the_volume() -> None:
    cluster = installed()
    cluster.volume()["spec"]["persistentVolumeReclaimPolicy"] = "Delete"
    changes = ["volume pvc-1 of git/git-data kept", "claim git/git-data removed"]
    assert KeptVolume(cluster, WANTED, check=True).absent().changes == changes
    assert CLAIM in cluster.objects
    outcome = KeptVolume(cluster, WANTED, timeout=0).absent()
    assert (outcome.changes, outcome.volume) == (changes, "pvc-1")
    assert cluster.volume()["status"]["phase"] == "Released"
    again = KeptVolume(cluster, WANTED, timeout=0).absent()
    assert (again.changes, again.volume, again.kept) == ([], "pvc-1", True)
    assert KeptVolume(Cluster(), WANTED).absent() == Outcome()


def test_aside_is_for_nobody() -> None:
    cluster = installed()
    cluster.conflicts = 1
    assert KeptVolume(cluster, WANTED, check=True).aside().changes[0] == "claim git/git-data removed"
    outcome = KeptVolume(cluster, WANTED, timeout=0).aside()
    assert (outcome.changes[-1], outcome.volume) == ("volume pvc-1 of git/git-data set aside", "pvc-1")
    labels = cluster.volume()["metadata"]["labels"]
    assert (LABEL in labels, labels[volumes.ASIDE]) == (False, "git.git-data")
    assert KeptVolume(cluster, WANTED, timeout=0).present().changes == ["claim git/git-data made"]
    assert KeptVolume(Cluster(), WANTED).aside() == Outcome()


class Provisioner(Cluster):
    """A cluster that deletes a volume once it may be deleted and has no claim, or fails to."""

    failing = False

    def get(self, path: str, **query: str) -> Json | None:
        for key in [key for key in self.objects if path == VOLUMES and key.startswith(f"{VOLUMES}/")]:
            volume = self.objects[key]
            free = volume["status"]["phase"] == "Released"
            if free and volume["spec"]["persistentVolumeReclaimPolicy"] == "Delete":
                volume["status"] = {"phase": "Failed", "message": "no plugin"} if self.failing else {}
                if not self.failing:
                    del self.objects[key]
        return super().get(path, **query)

    def merge_patch(self, path: str, body: Json) -> Json:
        # Without one it is not conditional.
        version = self.objects[path]["metadata"]["resourceVersion"]
        body["metadata"].setdefault("resourceVersion", version)
        return super().merge_patch(path, body)


def uninstalled() -> Provisioner:
    """One volume that was kept, one that was set aside, one of another namespace; none has its claim any more."""
    cluster = Provisioner()
    cluster.objects |= installed().objects
    cluster.delete(CLAIM)
    for name, namespace in (("pvc-2", "git"), ("pvc-3", "git-mirror")):
        other = json.loads(json.dumps(cluster.volume()))
        other["metadata"] = {"name": name, "resourceVersion": "1", "labels": {volumes.ASIDE: f"{namespace}.git-data"}}
        other["spec"]["claimRef"]["namespace"] = namespace
        cluster.objects[f"{VOLUMES}/{name}"] = other
    return cluster


KEPT = "volume pvc-1 of claim git/git-data (10Gi, on node agent-1, at /data/pvc-1)"
SET_ASIDE = "volume pvc-2 of claim git/git-data (10Gi, on node agent-1, at /data/pvc-1, set aside)"


def test_the_volumes_of_a_namespace() -> None:
    cluster = uninstalled()
    assert [describe(volume) for volume in of_namespace(cluster, "git")] == [KEPT, SET_ASIDE]
    # Somebody has freed it by hand, or for a claim of theirs.
    del cluster.volume()["spec"]["claimRef"]
    assert describe(of_namespace(cluster, "git")[0]) == "volume pvc-1 (10Gi, on node agent-1, at /data/pvc-1)"
    cluster.volume()["spec"]["claimRef"] = {"namespace": "rescue", "name": "git"}
    assert [volume["metadata"]["name"] for volume in of_namespace(cluster, "git")] == ["pvc-2"]


def test_they_are_deleted_with_their_data() -> None:
    cluster = uninstalled()
    changes = [f"{KEPT} deleted", f"{SET_ASIDE} deleted"]
    assert delete_volumes(cluster, "git", check=True) == changes
    assert not cluster.writes[1:]
    assert delete_volumes(cluster, "git", timeout=0) == changes
    assert [key for key in cluster.objects if key.startswith(f"{VOLUMES}/")] == [f"{VOLUMES}/pvc-3"]
    assert delete_volumes(cluster, "git", timeout=0) == []


@pytest.mark.parametrize("failing", [True, False])
def test_what_is_not_deleted_is_named(failing: bool) -> None:
    """Nobody deletes it, or it is still in use."""
    cluster = uninstalled()
    cluster.failing = failing
    if not failing:
        cluster.volume()["status"]["phase"] = "Bound"
    with pytest.raises(SlipwayError) as refusal:
        delete_volumes(cluster, "git", timeout=0)
    said = "Failed no plugin" if failing else "Bound"
    assert str(refusal.value).startswith(f"{KEPT} is not deleted: {said}. The provisioner that made it deletes it")
    assert "Next: kubectl describe pv pvc-1; then the same command again" in str(refusal.value)


def test_the_module_of_a_component(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = uninstalled()
    monkeypatch.setattr(component_volumes, "KubeClient", lambda _: cluster)
    arguments: dict[str, Any] = {"kubeconfig": "kc", "namespace": "git"}
    found = run_module(component_volumes, arguments)
    assert (found["changed"], found["volumes"]) == (False, [KEPT, SET_ASIDE])
    arguments |= {"state": "absent", "timeout": 0}
    check = run_module(component_volumes, arguments, check=True)
    done = run_module(component_volumes, arguments)
    assert check["changes"] == done["changes"] == [f"{KEPT} deleted", f"{SET_ASIDE} deleted"]
    assert run_module(component_volumes, arguments)["changed"] is False


def test_a_claim_that_others_take_over() -> None:
    marks = {"meta.helm.sh/release-name": "git"}
    cluster = Cluster()
    present(cluster, labels={"app.kubernetes.io/managed-by": "Helm"}, annotations=marks)
    assert cluster.objects[CLAIM]["metadata"]["annotations"] == marks
    assert _labels(cluster.objects[CLAIM]) == {"app.kubernetes.io/managed-by": "Helm"}


def test_folders_of_the_class_local_path_are_listed_by_node() -> None:
    made_by = {"annotations": {"pv.kubernetes.io/provisioned-by": volumes.LOCAL_PATH}}
    on_disks = [
        {"metadata": made_by, "spec": {"hostPath": {"path": "/storage/a"}, "nodeAffinity": affinity("server-1")}},
        {"metadata": made_by, "spec": {"local": {"path": "/storage/b"}, "nodeAffinity": affinity("agent-1")}},
        {"metadata": made_by, "spec": {"hostPath": {"path": "/storage/c"}, "nodeAffinity": affinity("server-1")}},
        # Somebody's own folder, and a driver's.
        {"metadata": {}, "spec": {"hostPath": {"path": "/data"}, "nodeAffinity": affinity("server-1")}},
        {"metadata": {}, "spec": {"csi": {"volumeHandle": "x"}}},
    ]
    assert volumes.local_folders(on_disks) == {"server-1": ["/storage/a", "/storage/c"], "agent-1": ["/storage/b"]}


def test_places() -> None:
    volume = {"spec": {"local": {"path": "/x"}, "nodeAffinity": affinity("b", "a")}}
    assert place(volume) == "on node a, b, at /x"
    assert place({"spec": {"csi": {"volumeHandle": "vol-1"}}}) == "at vol-1"
    assert place({"spec": {}}) == "where its driver keeps it"


def test_long_names_are_refused() -> None:
    with pytest.raises(SlipwayError, match="must not exceed 62 characters"):
        KeptVolume(Cluster(), Wanted("n" * 40, "v" * 30, "1Gi"))


def test_the_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cluster = Cluster()
    monkeypatch.setattr(kept_volume, "KubeClient", lambda _: cluster)
    arguments = {
        "kubeconfig": str(tmp_path / "kc"),
        "namespace": "git",
        "name": "git-data",
        "size": "1Gi",
        "timeout": 0,
    }
    check = run_module(kept_volume, arguments, check=True)
    first = run_module(kept_volume, arguments)
    assert check["changes"] == first["changes"] == ["claim git/git-data made"]
    assert (first["changed"], first["volume"], first["remove"]) == (True, "", "")
    assert run_module(kept_volume, arguments)["changed"] is False
    cluster.bind()
    kept = run_module(kept_volume, {**arguments, "state": "kept"})
    assert (kept["changed"], kept["kept"], kept["volume"]) == (True, True, "pvc-1")
    assert kept["remove"] == (
        f'kubectl --kubeconfig {tmp_path}/kc patch pv pvc-1 -p "spec: {{persistentVolumeReclaimPolicy: Delete}}"'
    )
    assert "cannot shrink" in run_module(kept_volume, {**arguments, "size": "1Mi"})["msg"]
    del arguments["size"]
    assert "missing" in run_module(kept_volume, arguments)["msg"]
    assert run_module(kept_volume, {**arguments, "state": "absent"})["changed"] is True
    assert volumes.LABEL in cluster.volume()["metadata"]["labels"]
