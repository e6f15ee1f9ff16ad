"""Another key for a tenant of MinIO while its clients go on: both keys are valid until nobody has the former one.

What was begun is written down at the tenant's Secret, so that an interrupted rotation is ended by the next one.
"""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.drain import listed
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError, items
from ansible.module_utils.slipway.minio_access import Login, Store, other_key

# At the Secret: the `former` access key; later the `pods` (UIDs) that may have it, and `until` when files in pods may (seconds since 1970);
# at the end `runs`, when pods that end by themselves are among them.
STATE = "slipway/minio-rotation"
SECRET_KEY_LENGTH = 40
# Seconds until the kubelet has renewed what a pod has mounted: its period and the life of its cache, a minute each.
REFRESH = 120.0
INTERVAL = 0.5
# Seconds until every server of a MinIO knows a new user.
KNOWN = 30.0
# Pods of others stay or end by themselves.
_WORKLOADS = ("deployments", "statefulsets", "daemonsets")
_OWNERS = {"ReplicaSet", "StatefulSet", "DaemonSet"}


@dataclass(frozen=True)
class Holder:
    """A tenant with the namespaces where pods find its Secret, the Secret's own first."""

    tenant: str
    secret: str
    namespaces: tuple[str, ...]

    @property
    def title(self) -> str:
        return f"Secret {self.namespaces[0]}/{self.secret}"


def state(secret: Json) -> Json:
    """What was begun; empty where nothing was."""
    text = (secret["metadata"].get("annotations") or {}).get(STATE)
    found: Json = json.loads(text) if text else {}
    return found


@dataclass
class Rotation:
    """Rotates one tenant after the other. The methods raise SlipwayError; done again, they go on where they were."""

    kube: Kube
    store: Store
    check: bool = False
    changes: list[str] = field(default_factory=list)
    secret_keys: set[str] = field(default_factory=set, repr=False)

    def begin(self, holder: Holder) -> None:
        """Make a second user, then have the Secret name that one."""
        secret = self._secret(holder)
        if state(secret):
            return
        former = base64.b64decode((secret.get("data") or {}).get("accessKey") or "").decode()
        if not former or self.store.user(former) is None:
            raise SlipwayError(
                f"{holder.title} has no accessKey of a user in MinIO; run site.yml first, which mends it"
            )
        self.changes.append(f"tenant {holder.tenant}: second key made, {holder.title} has it")
        if self.check:
            return
        login = Login(other_key(former), secrets.Key("secretKey", SECRET_KEY_LENGTH).make())
        self.secret_keys.add(login.secret_key)
        self.store.set_user(login)
        self.store.attach(login.access_key, holder.tenant)
        if not _within(KNOWN, lambda: self.store.accepts(login)):
            raise SlipwayError(f"tenant {holder.tenant}: MinIO does not accept its second key; the first one is in use")
        body: Json = {"data": {"accessKey": _encoded(login.access_key), "secretKey": _encoded(login.secret_key)}}
        self._write(holder, {"former": former}, body)

    def hand_over(self, holder: Holder, owned: Iterable[str] = ()) -> None:
        """Note which workloads' pods may have the former key, and restart workloads that take it from the Secret when they start.

        Call it once copies of the Secret have the second key. Who makes the workloads in `owned` restarts these itself, afterwards: pods that
        come from now on have the second key.
        """
        begun = state(self._secret(holder))
        if not begun or "pods" in begun or self.check:
            return
        pods = list(self._pods(holder))
        held = [pod for pod in pods if not _ends(pod) and _in_environment(pod["spec"], holder.secret)]
        mounted = any(_is_mounted(pod["spec"], holder.secret) for pod in pods)
        for namespace in sorted(set(holder.namespaces) - set(owned)):
            for kind in _WORKLOADS:
                path = f"/apis/apps/v1/namespaces/{namespace}/{kind}"
                for item in items(self.kube, path):
                    if _in_environment(item["spec"]["template"]["spec"], holder.secret):
                        self._restart(f"{path}/{item['metadata']['name']}", f"{namespace}/{item['metadata']['name']}")
        noted = {"pods": sorted(pod["metadata"]["uid"] for pod in held), "until": time.time() + REFRESH * mounted}
        self._write(holder, {**begun, **noted}, {})

    def end(self, holder: Holder, timeout: float) -> None:
        """Remove the former key once nobody has it; `timeout` is in seconds.

        Call it once components run with the second key: what ends by itself may have taken the former one from a Secret of theirs.
        """
        begun = state(self._secret(holder))
        if not begun:
            return
        self.changes.append(f"tenant {holder.tenant}: former key removed")
        if self.check:
            return
        if "pods" not in begun:
            raise SlipwayError(f"{holder.title}: its second key was not handed over")
        if not begun.get("runs"):
            runs = {pod["metadata"]["uid"] for pod in self._pods(holder) if _ends(pod)}
            begun = {**begun, "pods": sorted({*begun["pods"], *runs}), "runs": True}
            self._write(holder, begun, {})
        time.sleep(max(0.0, begun["until"] - time.time()))
        left: list[str] = []

        def nobody() -> bool:
            left[:] = [
                f"{pod['metadata']['namespace']}/{pod['metadata']['name']}"
                for pod in self._pods(holder)
                if pod["metadata"]["uid"] in begun["pods"]
            ]
            return not left

        if not _within(timeout, nobody):
            raise SlipwayError(
                f"tenant {holder.tenant}: pods that may have the former key still run after {timeout:.0f} s: "
                f"{listed(left)}. Both keys are valid, nothing is broken. Run it again when they have ended, or end them"
            )
        if self.store.user(begun["former"]) is not None:
            self.store.remove_user(begun["former"])
        self._write(holder, None, {})

    def _secret(self, holder: Holder) -> Json:
        found = self.kube.get(secrets.path(holder.namespaces[0], holder.secret))
        if found is None:
            raise SlipwayError(f"there is no {holder.title}; run site.yml first, which makes it")
        return found

    def _write(self, holder: Holder, noted: Json | None, body: Json) -> None:
        version = self._secret(holder)["metadata"]["resourceVersion"]
        text = json.dumps(noted) if noted else None
        metadata = {"resourceVersion": version, "annotations": {STATE: text}}
        self.kube.merge_patch(secrets.path(holder.namespaces[0], holder.secret), {**body, "metadata": metadata})

    def _pods(self, holder: Holder) -> Iterator[Json]:
        """Those that run or are about to."""
        for namespace in holder.namespaces:
            for pod in items(self.kube, f"/api/v1/namespaces/{namespace}/pods"):
                if (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed"):
                    pod["metadata"].setdefault("namespace", namespace)
                    yield pod

    def _restart(self, path: str, title: str) -> None:
        """As `kubectl rollout restart` does."""
        annotations = {"kubectl.kubernetes.io/restartedAt": datetime.now(UTC).isoformat(timespec="seconds")}
        for attempt in range(secrets.ATTEMPTS):
            found = self.kube.get(path)
            if found is None:
                return
            version = found["metadata"]["resourceVersion"]
            body: Json = {"metadata": {"resourceVersion": version}}
            body["spec"] = {"template": {"metadata": {"annotations": annotations}}}
            try:
                self.kube.merge_patch(path, body)
            except KubeError as error:
                # Its status changes all the time.
                if error.status != 409 or attempt == secrets.ATTEMPTS - 1:
                    raise
            else:
                self.changes.append(f"{title} restarted")
                return


def _within(timeout: float, look: Callable[[], bool]) -> bool:
    end = time.monotonic() + timeout
    while not look():
        if time.monotonic() > end:
            return False
        time.sleep(INTERVAL)
    return True


def _encoded(value: str) -> str:
    return base64.b64encode(value.encode()).decode()


def _ends(pod: Json) -> bool:
    """Whether a pod is one that ends by itself, such as a run's or a Job's, which may have read the Secret by the API."""
    return not any(owner["kind"] in _OWNERS for owner in pod["metadata"].get("ownerReferences") or [])


def _in_environment(spec: Json, secret: str) -> bool:
    containers = [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]
    sources: list[Any] = [
        source
        for container in containers
        for source in (
            *((each.get("valueFrom") or {}).get("secretKeyRef") for each in container.get("env") or []),
            *(each.get("secretRef") for each in container.get("envFrom") or []),
        )
    ]
    return any(source and source.get("name") == secret for source in sources)


def _is_mounted(spec: Json, secret: str) -> bool:
    return any(
        (volume.get("secret") or {}).get("secretName") == secret
        or any(
            (source.get("secret") or {}).get("name") == secret
            for source in (volume.get("projected") or {}).get("sources") or []
        )
        for volume in spec.get("volumes") or []
    )
