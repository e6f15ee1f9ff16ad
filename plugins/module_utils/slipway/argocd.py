"""Whether Argo CD follows its repository, the evidence when it does not, and Applications that go without what they deployed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, Kube, KubeError, RemovingKube, items

ROOT = "/apis/argoproj.io/v1alpha1/namespaces/{}/"
# Plural, and the annotation by which each kind is asked to look again.
KINDS = {
    "ApplicationSet": ("applicationsets", "argocd.argoproj.io/application-set-refresh"),
    "Application": ("applications", "argocd.argoproj.io/refresh"),
}
# Seconds between two requests to look again: answers are remembered for minutes.
REFRESH = 5.0


@dataclass(frozen=True)
class Finding:
    """One object that is not as it should be. `accepted`: Argo CD works, it is the repository's content that is wrong."""

    what: str
    reason: str
    accepted: bool = False

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}"


def _conditions(item: Json) -> list[Json]:
    return list((item.get("status") or {}).get("conditions") or [])


def judge_set(item: Json) -> tuple[str, bool]:
    """Why an ApplicationSet does not make its Applications (empty: it does), and whether the repository's content is to blame."""
    state = {condition["type"]: condition for condition in _conditions(item)}
    error = state.get("ErrorOccurred", {})
    if error.get("status") == "True":
        reason, message = error.get("reason", ""), str(error.get("message", ""))
        content = "unable to process file" in message or reason != "ApplicationGenerationFromParamsError"
        return f"{reason}: {message}", content
    if state.get("ResourcesUpToDate", {}).get("status") != "True":
        return "Argo CD has not looked at it yet", False
    return "", False


def judge_application(item: Json) -> tuple[str, bool]:
    """Why an Application is not in step with Git (empty: it is), and whether the repository's content is to blame."""
    status = item.get("status") or {}
    wrong = [
        f"{each['type']}: {each.get('message', '')}" for each in _conditions(item) if each["type"].endswith("Error")
    ]
    operation = status.get("operationState") or {}
    sync = (status.get("sync") or {}).get("status", "")
    if sync == "Synced":
        return "", False
    if sync != "OutOfSync":
        return "; ".join(wrong) or "Argo CD has not looked at it yet", False
    if operation.get("phase") in ("Failed", "Error"):
        refused = [
            f"{each.get('kind')} {each.get('name')}: {each.get('message')}"
            for each in (operation.get("syncResult") or {}).get("resources") or []
            if each.get("status") == "SyncFailed"
        ]
        return "; ".join([*wrong, str(operation.get("message", "")), *refused]), True
    return "; ".join(wrong) or "OutOfSync, the sync has not ended", False


def look(kube: Kube, namespace: str, sets: Sequence[str], applications: Sequence[str]) -> list[Finding]:
    """Everything of what is named that is not as it should be."""
    found = []
    judges: dict[str, tuple[Sequence[str], Callable[[Json], tuple[str, bool]]]] = {
        "ApplicationSet": (sets, judge_set),
        "Application": (applications, judge_application),
    }
    for kind, (names, judge) in judges.items():
        for name in names:
            item = kube.get(f"{ROOT.format(namespace)}{KINDS[kind][0]}/{name}")
            reason, accepted = ("it does not exist", False) if item is None else judge(item)
            if reason:
                found.append(Finding(f"{kind} {namespace}/{name}", reason, accepted))
    return found


def await_accepted(
    kube: Kube,
    namespace: str,
    sets: Sequence[str],
    applications: Sequence[str],
    timeout: float,
    interval: float = 0.5,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[Finding]:
    """Wait until Argo CD follows the repository; return what is not as it should be then, which may all be `accepted`.

    What is not well is asked to look again every few seconds. `timeout` is in seconds; an API that does not answer counts as not well.
    """
    deadline = clock() + timeout
    asked = clock()
    while True:
        try:
            found = look(kube, namespace, sets, applications)
        except KubeError as error:
            found = [Finding("Kubernetes API", str(error))]
        open_ = [finding for finding in found if not finding.accepted]
        if not open_ or clock() >= deadline:
            return found
        if clock() - asked >= REFRESH:
            asked = clock()
            for finding in open_:
                _ask(kube, namespace, finding)
        sleep(interval)


def _ask(kube: Kube, namespace: str, finding: Finding) -> None:
    """Have Argo CD look at an object again; somebody else's change at the same time is as good."""
    kind, _, full = finding.what.partition(" ")
    if kind not in KINDS:
        return
    plural, annotation = KINDS[kind]
    path = f"{ROOT.format(namespace)}{plural}/{full.rpartition('/')[2]}"
    try:
        if item := kube.get(path):
            version = item["metadata"]["resourceVersion"]
            # A set that failed keeps the annotation and hears only of another value; what it is does not matter there.
            value = f"slipway-{version}" if kind == "ApplicationSet" else "normal"
            kube.merge_patch(path, {"metadata": {"resourceVersion": version, "annotations": {annotation: value}}})
    except KubeError:
        pass


def evidence(found: Sequence[Finding], namespace: str, kubectl: str) -> str:
    """A report for a person: what is not well, and what to run next."""
    lines = ["Argo CD does not follow the repository:", *(f"  {finding}" for finding in found)]
    if any("app path does not exist" in finding.reason for finding in found):
        lines.append("The repository has no folder platform/ on its branch main: make it, a README.md in it is enough.")
    # Kubeflow brings a kind of the same short name.
    lines.append(
        f"Next: {kubectl} --namespace {namespace} describe applications.argoproj.io,applicationsets.argoproj.io"
    )
    return "\n".join(lines)


def remove_all(
    kube: RemovingKube,
    namespace: str,
    timeout: float,
    check: bool = False,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> list[str]:
    """Remove every ApplicationSet and Application of a namespace and leave what they have deployed; return their names.

    An Application with a finalizer takes what it has deployed along, so it loses that first. Repeats until none is left, as a sync that is
    under way makes new ones. Raises SlipwayError when `timeout` (seconds) is over.
    """
    removed: dict[str, None] = {}
    deadline = clock() + timeout
    while True:
        left: list[str] = []
        for kind, (plural, _) in KINDS.items():
            for item in items(kube, f"{ROOT.format(namespace)}{plural}"):
                name = item["metadata"]["name"]
                left.append(f"{kind} {namespace}/{name}")
                if not check:
                    _remove(kube, f"{ROOT.format(namespace)}{plural}/{name}", item)
        removed |= dict.fromkeys(left)
        if not left or check:
            return list(removed)
        if clock() >= deadline:
            raise SlipwayError(f"still there after {timeout:.0f} s: {', '.join(left)}")
        sleep(0.5)


def _remove(kube: RemovingKube, path: str, item: dict[str, Any]) -> None:
    metadata = item["metadata"]
    try:
        if metadata.get("finalizers"):
            kube.merge_patch(path, {"metadata": {"resourceVersion": metadata["resourceVersion"], "finalizers": None}})
        kube.delete(path)
    except KubeError as error:
        # Changed or gone meanwhile: the next round sees it.
        if error.status not in (404, 409):
            raise
