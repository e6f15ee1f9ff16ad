"""Volumes whose data outlives their claim, and with it the namespace: made, found again, kept."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError, RemovingKube, items
from ansible.module_utils.slipway.needs import amount
from ansible.module_utils.slipway.objects import MANAGED_BY
from ansible.module_utils.slipway.secrets import ATTEMPTS

VOLUMES = "/api/v1/persistentvolumes"
NODES = "/api/v1/nodes"
CLASSES = "/apis/storage.k8s.io/v1/storageclasses"
DEFAULT_CLASS = "storageclass.kubernetes.io/is-default-class"
# Which claim a volume's data belongs to, as <namespace>.<claim>.
LABEL = "slipway/volume"
# The same of one that was set aside: no claim finds it any more.
ASIDE = "slipway/set-aside"
LABEL_LENGTH = 63
# The provisioner that k3s brings along.
LOCAL_PATH = "rancher.io/local-path"
INTERVAL = 0.3
T = TypeVar("T")


@dataclass(frozen=True)
class Wanted:
    """A claim as it should be. An empty `storage_class` is the cluster's default one."""

    namespace: str
    name: str
    size: str
    storage_class: str = ""
    access_modes: Sequence[str] = ("ReadWriteOnce",)
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def mark(self) -> str:
        """The value of LABEL."""
        return f"{self.namespace}.{self.name}"

    @property
    def path(self) -> str:
        """API path of the claim."""
        return f"/api/v1/namespaces/{self.namespace}/persistentvolumeclaims/{self.name}"


@dataclass
class Outcome:
    """What was done, or in check mode would be; `volume` is the volume's name, once there is one."""

    changes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    volume: str = ""
    restored: bool = False
    kept: bool = False


def place(volume: Json) -> str:
    """Where a volume's data lies, as far as the volume says."""
    spec = volume["spec"]
    names = _nodes(volume)
    node = f"on node {', '.join(sorted(names))}" if names else ""
    path = (spec.get("hostPath") or spec.get("local") or {}).get("path") or (spec.get("csi") or {}).get("volumeHandle")
    return ", ".join(part for part in (node, f"at {path}" if path else "") if part) or "where its driver keeps it"


def local_folders(volumes: Sequence[Json]) -> dict[str, list[str]]:
    """The folders on nodes' disks that are volumes of the class local-path, by the name of the node."""
    found: dict[str, list[str]] = {}
    for volume in volumes:
        if (volume["metadata"].get("annotations") or {}).get("pv.kubernetes.io/provisioned-by") == LOCAL_PATH:
            path = (volume["spec"].get("hostPath") or volume["spec"].get("local"))["path"]
            for node in _nodes(volume):
                found.setdefault(node, []).append(path)
    return found


def _nodes(volume: Json) -> set[str]:
    return {
        value
        for term in _terms(volume)
        for rule in term.get("matchExpressions") or []
        if rule["key"] == "kubernetes.io/hostname"
        for value in rule.get("values") or []
    }


def _terms(volume: Json) -> list[Json]:
    affinity = (volume["spec"].get("nodeAffinity") or {}).get("required") or {}
    terms: list[Json] = affinity.get("nodeSelectorTerms") or []
    return terms


def reaches(volume: Json, node: Json) -> bool:
    """Whether a volume can be used on a node. Only the operator In is judged: what drivers write."""
    labels = node["metadata"].get("labels") or {}
    terms = _terms(volume)
    return not terms or any(
        all(
            labels.get(rule["key"]) in (rule.get("values") or [])
            for rule in term.get("matchExpressions") or []
            if rule["operator"] == "In"
        )
        for term in terms
    )


def is_ready(node: Json) -> bool:
    """Whether a node answers."""
    conditions = (node.get("status") or {}).get("conditions") or []
    return any(item["type"] == "Ready" and item["status"] == "True" for item in conditions)


class KeptVolume:
    """One claim and its volume. The methods raise SlipwayError."""

    def __init__(
        self, kube: RemovingKube, wanted: Wanted, check: bool = False, timeout: float = 60, kubectl: str = "kubectl"
    ) -> None:
        """Prepare; nothing is read yet.

        Args:
            timeout: seconds to wait for a claim that is being deleted or bound.
            kubectl: how commands in messages call kubectl.
        """
        if len(wanted.mark) > LABEL_LENGTH:
            raise SlipwayError(
                f"{wanted.title}: namespace and name together must not exceed {LABEL_LENGTH - 1} characters"
            )
        self.kube = kube
        self.wanted = wanted
        self.check = check
        self.timeout = timeout
        self.kubectl = kubectl
        self.size = amount(wanted.size, f"volume {wanted.title}")
        self.outcome = Outcome()

    def present(self) -> Outcome:
        """Make the claim, on the volume kept for it if there is one; keep its volume if it is bound already."""
        claim = self._claim()
        if claim is not None and claim["metadata"].get("deletionTimestamp"):
            self._await_gone()
            claim = None
        if claim is None:
            kept = self._kept_volume()
            if kept:
                self._restore(kept)
            else:
                self._note(f"claim {self.wanted.title} made")
                self._create({"storage": self.wanted.size}, self.wanted.storage_class, None)
            return self.outcome
        self._judge_claim(claim)
        self._grow(claim)
        if claim["spec"].get("volumeName") and (claim.get("status") or {}).get("phase") == "Bound":
            self._keep(claim["spec"]["volumeName"])
        return self.outcome

    def kept(self) -> Outcome:
        """See that the volume of the claim, which must be there, outlives it."""
        bound = self._poll(self._bound)
        if bound is None:
            if self.check:
                # A volume that the claim will get back is kept already.
                if not self._marked():
                    self._note(f"volume of {self.wanted.title} kept")
                return self.outcome
            raise SlipwayError(
                f"volume {self.wanted.title} is not bound after {self.timeout:.0f} s; a volume of most classes is made for the first "
                f"pod that uses it. Next: {self.kubectl} -n {self.wanted.namespace} describe pvc {self.wanted.name}"
            )
        # A volume that was found again has the size that it had.
        self._grow(bound)
        self._keep(bound["spec"]["volumeName"])
        return self.outcome

    def absent(self) -> Outcome:
        """Remove the claim and keep its volume, for the next claim of that name. For the time after its pods have gone."""
        claim = self._claim()
        if claim is None:
            for volume in self._marked():
                self.outcome.volume, self.outcome.kept = volume["metadata"]["name"], True
            return self.outcome
        if self._bound():
            self._keep(claim["spec"]["volumeName"])
        self._note(f"claim {self.wanted.title} removed")
        if not self.check:
            self.kube.delete(self.wanted.path)
            self._await_gone()
        return self.outcome

    def aside(self) -> Outcome:
        """Remove the claim and keep its volume, but for nobody: the next claim gets an empty one. For the time after its pods have gone."""
        self.absent()
        for volume in self._marked():
            name = volume["metadata"]["name"]
            self._note(f"volume {name} of {self.wanted.title} set aside")
            self.outcome.volume, self.outcome.kept = name, True
            for attempt in range(0 if self.check else ATTEMPTS):
                version = (self.kube.get(f"{VOLUMES}/{name}") or volume)["metadata"]["resourceVersion"]
                labels = {LABEL: None, ASIDE: self.wanted.mark}
                try:
                    self.kube.merge_patch(
                        f"{VOLUMES}/{name}", {"metadata": {"resourceVersion": version, "labels": labels}}
                    )
                    break
                except KubeError as error:
                    # The end of its claim arrives at it meanwhile.
                    if error.status != 409 or attempt == ATTEMPTS - 1:
                        raise
        return self.outcome

    def _claim(self) -> Json | None:
        return self.kube.get(self.wanted.path)

    def _bound(self) -> Json | None:
        claim = self._claim()
        return claim if claim and (claim.get("status") or {}).get("phase") == "Bound" else None

    def _note(self, text: str) -> None:
        self.outcome.changes.append(text)

    def _poll(self, look: Callable[[], T | None]) -> T | None:
        """What `look` finds within the timeout; in check mode at once or never."""
        end = time.monotonic() + (0 if self.check else self.timeout)
        while (found := look()) is None and time.monotonic() < end:
            time.sleep(INTERVAL)
        return found

    def _await_gone(self) -> None:
        if self.check:
            return
        if not self._poll(lambda: True if self._claim() is None else None):
            raise SlipwayError(
                f"claim {self.wanted.title} is being deleted and not gone after {self.timeout:.0f} s: a pod still uses it. "
                f"Next: {self.kubectl} -n {self.wanted.namespace} describe pvc {self.wanted.name}"
            )

    def _kept_volume(self) -> Json | None:
        """The volume that was kept for this claim, free to be bound again; None if there never was one."""

        def look() -> list[Json] | None:
            found = [item for item in self._marked() if self._is_ours(item)]
            # The end of a claim arrives at its volume a moment later.
            return None if any(self._phase(item) == "Bound" for item in found) else found

        found = self._poll(look)
        if found is None:
            raise SlipwayError(
                f"claim {self.wanted.title} is gone, but a volume is still bound to it. "
                f"Next: {self.kubectl} get pv -l {LABEL}={self.wanted.mark}"
            )
        if len(found) > 1:
            names = ", ".join(item["metadata"]["name"] for item in found)
            raise SlipwayError(
                f"{len(found)} volumes were kept for {self.wanted.title}: {names}. Take the label off those that are not meant: "
                f"{self.kubectl} label pv <name> {LABEL}-"
            )
        return found[0] if found else None

    def _marked(self) -> list[Json]:
        """Volumes with our label, whoever uses them now."""
        return items(self.kube, VOLUMES, labelSelector=f"{LABEL}={self.wanted.mark}")

    def _is_ours(self, volume: Json) -> bool:
        """Whether a volume with our label is still meant for the claim. Somebody may have bound it to another by hand."""
        claim = volume["spec"].get("claimRef")
        mine = claim is None or (claim["namespace"], claim["name"]) == (self.wanted.namespace, self.wanted.name)
        if not mine:
            self.outcome.warnings.append(
                f"volume {volume['metadata']['name']}, kept for {self.wanted.title}, now belongs to {claim['namespace']}/{claim['name']}"
            )
        return mine and not volume["metadata"].get("deletionTimestamp")

    @staticmethod
    def _phase(volume: Json) -> str:
        return str((volume.get("status") or {}).get("phase") or "")

    def _restore(self, volume: Json) -> None:
        """Free the volume for a new claim that names it, and make that claim."""
        name, spec = volume["metadata"]["name"], volume["spec"]
        capacity, volume_class = spec["capacity"]["storage"], spec.get("storageClassName") or ""
        self._judge_place(volume, "kept for it")
        self._judge_class(volume_class, name)
        self._judge_size(capacity, volume_class)
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "namespace": self.wanted.namespace,
            "name": self.wanted.name,
        }
        self._note(f"claim {self.wanted.title} made on the volume kept for it, {name}")
        self.outcome.volume, self.outcome.restored, self.outcome.kept = name, True, True
        if self.check:
            return
        # Without the old claim's uid the volume is Available again, to this claim only. The label says that it was kept: it stays so.
        body = {
            "metadata": {"resourceVersion": volume["metadata"]["resourceVersion"]},
            "spec": {
                "persistentVolumeReclaimPolicy": "Retain",
                "claimRef": {**dict.fromkeys(spec.get("claimRef") or {}), **claim},
            },
        }
        self.kube.merge_patch(f"{VOLUMES}/{name}", body)
        # A claim may not ask for more than the volume has; it grows once it is bound.
        self._create({"storage": capacity}, volume_class, name)

    def _create(self, requests: Mapping[str, str], storage_class: str, volume: str | None) -> None:
        if self.check:
            return
        spec: Json = {"accessModes": list(self.wanted.access_modes), "resources": {"requests": dict(requests)}}
        if storage_class or volume:
            # Empty beside a volume's name: no class, rather than the default one.
            spec["storageClassName"] = storage_class
        if volume:
            spec["volumeName"] = volume
        body = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {
                "name": self.wanted.name,
                "labels": {**MANAGED_BY, **self.wanted.labels},
                "annotations": dict(self.wanted.annotations),
            },
            "spec": spec,
        }
        self.kube.create(self.wanted.path.rpartition("/")[0], body)

    def _judge_claim(self, claim: Json) -> None:
        """Refuse what cannot become as wanted."""
        name, spec = claim["spec"].get("volumeName", ""), claim["spec"]
        self.outcome.volume = name
        volume_class = spec.get("storageClassName") or ""
        self._judge_class(volume_class, name)
        self._judge_size(spec["resources"]["requests"]["storage"], volume_class)
        if name and (volume := self.kube.get(f"{VOLUMES}/{name}")):
            self._judge_place(volume, "bound to it")
        elif (claim.get("status") or {}).get("phase") == "Lost":
            raise SlipwayError(
                f"volume {self.wanted.title} is lost: its claim names {name}, which does not exist. Without the claim an empty one is "
                f"made: {self.kubectl} -n {self.wanted.namespace} delete pvc {self.wanted.name}"
            )

    def _judge_class(self, found: str, volume: str) -> None:
        if self.wanted.storage_class and self.wanted.storage_class != found:
            raise SlipwayError(
                f"volume {self.wanted.title} ({volume or 'not bound yet'}) is of storage class {found or 'none'}, but "
                f"{self.wanted.storage_class} is wanted: a volume cannot change its class. Set the one that it has, or move the data"
            )

    def _judge_size(self, found: str, volume_class: str) -> None:
        size = amount(found, f"volume {self.wanted.title}")
        if self.size < size:
            raise SlipwayError(
                f"volume {self.wanted.title} is to have {self.wanted.size}, but it already has {found}. "
                "A volume cannot shrink: raise the value to at least that"
            )
        if self.size > size:
            item = self.kube.get(f"{CLASSES}/{volume_class}") if volume_class else None
            if not (item or {}).get("allowVolumeExpansion"):
                raise SlipwayError(
                    f"volume {self.wanted.title} is to grow from {found} to {self.wanted.size}, but volumes of storage class "
                    f"{volume_class or 'none'} cannot grow. Set the size to {found}"
                )

    def _judge_place(self, volume: Json, how: str) -> None:
        """Refuse where no node reaches the data; warn where it has to wait for one."""
        if not _terms(volume):
            return
        nodes = [node for node in items(self.kube, NODES) if reaches(volume, node)]
        name, where = volume["metadata"]["name"], place(volume)
        if not nodes:
            claim = (
                f" and {self.kubectl} -n {self.wanted.namespace} delete pvc {self.wanted.name}" if self._claim() else ""
            )
            raise SlipwayError(
                f"the data of {self.wanted.title} is out of reach: volume {name}, {how}, lies {where}, and no such node is in the cluster. "
                "Bring it back under its name and with its disk, and run again. To give the data up and begin with an empty volume: "
                f"{self.kubectl} label pv {name} {LABEL}-{claim}"
            )
        if not any(is_ready(node) for node in nodes):
            self.outcome.warnings.append(
                f"volume {self.wanted.title} lies {where}, and that node is not ready: its pods wait for it"
            )

    def _grow(self, claim: Json) -> None:
        """Ask for the size wanted, which was judged."""
        found = claim["spec"]["resources"]["requests"]["storage"]
        if self.size <= amount(found, f"volume {self.wanted.title}"):
            return
        self._note(f"volume {self.wanted.title} grown from {found} to {self.wanted.size}")
        if self.check:
            return
        for _ in range(ATTEMPTS):
            body = {
                "metadata": {"resourceVersion": claim["metadata"]["resourceVersion"]},
                "spec": {"resources": {"requests": {"storage": self.wanted.size}}},
            }
            try:
                self.kube.merge_patch(self.wanted.path, body)
                return
            except KubeError as error:
                if error.status != 409:
                    raise
            claim = self._claim() or claim
        raise SlipwayError(f"claim {self.wanted.title} kept changing while it was being written; who else writes it?")

    def _keep(self, name: str) -> None:
        """Have the volume outlive its claim, and mark it so that the next claim finds it."""
        labels = {**MANAGED_BY, LABEL: self.wanted.mark}
        self.outcome.volume = name
        for _ in range(ATTEMPTS):
            volume = self.kube.get(f"{VOLUMES}/{name}")
            if volume is None:
                raise SlipwayError(f"claim {self.wanted.title} names volume {name}, which does not exist")
            found = volume["metadata"].get("labels") or {}
            policy = volume["spec"].get("persistentVolumeReclaimPolicy")
            self.outcome.kept = True
            if policy == "Retain" and all(found.get(key) == value for key, value in labels.items()):
                return
            if self.check:
                self._note(f"volume {name} of {self.wanted.title} kept")
                return
            body = {
                "metadata": {"resourceVersion": volume["metadata"]["resourceVersion"], "labels": labels},
                "spec": {"persistentVolumeReclaimPolicy": "Retain"},
            }
            try:
                self.kube.merge_patch(f"{VOLUMES}/{name}", body)
            except KubeError as error:
                if error.status != 409:
                    raise
            else:
                self._note(f"volume {name} of {self.wanted.title} kept")
                return
        raise SlipwayError(f"volume {name} kept changing while it was being written; who else writes it?")


def remove_command(kubectl: str, volume: str) -> str:
    """The command that deletes a volume that no claim uses, with its data, by the provisioner that made it."""
    # No single quotes: Ansible shows messages as YAML, which would double them.
    return f'{kubectl} patch pv {volume} -p "spec: {{persistentVolumeReclaimPolicy: Delete}}"'


def of_namespace(kube: Kube, namespace: str) -> list[Json]:
    """The volumes that belong to claims of a namespace or were kept or set aside for them, whether claims and namespace are there or not."""

    def is_theirs(volume: Json) -> bool:
        if claim := volume["spec"].get("claimRef"):
            return bool(claim["namespace"] == namespace)
        labels = volume["metadata"].get("labels") or {}
        return any(str(labels.get(key, "")).startswith(f"{namespace}.") for key in (LABEL, ASIDE))

    return [volume for volume in items(kube, VOLUMES) if is_theirs(volume)]


def describe(volume: Json) -> str:
    """A volume for a person who is to decide about it."""
    claim, labels = volume["spec"].get("claimRef") or {}, volume["metadata"].get("labels") or {}
    of = f" of claim {claim['namespace']}/{claim['name']}" if claim else ""
    aside = ", set aside" if ASIDE in labels else ""
    return f"volume {volume['metadata']['name']}{of} ({volume['spec']['capacity']['storage']}, {place(volume)}{aside})"


def delete_volumes(
    kube: Kube, namespace: str, check: bool = False, timeout: float = 60, kubectl: str = "kubectl"
) -> list[str]:
    """Delete the volumes of a namespace with their data, by the provisioners that made them, once their claims are gone.

    Return what was deleted. Raises SlipwayError where something is left after `timeout` seconds; the next call goes on.
    """
    found = of_namespace(kube, namespace)
    changes = [f"{describe(volume)} deleted" for volume in found]
    if check:
        return changes
    for volume in found:
        body = {"metadata": {}, "spec": {"persistentVolumeReclaimPolicy": "Delete"}}
        try:
            kube.merge_patch(f"{VOLUMES}/{volume['metadata']['name']}", body)
        except KubeError as error:
            # Gone since.
            if error.status != 404:
                raise
    end = time.monotonic() + timeout
    while left := of_namespace(kube, namespace):
        failed = [volume for volume in left if (volume.get("status") or {}).get("phase") == "Failed"]
        if failed or time.monotonic() >= end:
            volume = (failed or left)[0]
            status, name = volume.get("status") or {}, volume["metadata"]["name"]
            why = " ".join(filter(None, [status.get("phase"), status.get("message")]))
            raise SlipwayError(
                f"{describe(volume)} is not deleted: {why}. The provisioner that made it deletes it where it lies. Next: {kubectl} describe "
                f"pv {name}; then the same command again. What no provisioner made is deleted by hand, first the data, then: {kubectl} "
                f"delete pv {name}"
            )
        time.sleep(INTERVAL)
    return changes
