"""Argo CD is judged by what it shows, asked again, and loses its Applications without what they have deployed."""

from __future__ import annotations

from typing import Any

import pytest
from ansible.module_utils.slipway.argocd import (
    Finding,
    await_accepted,
    evidence,
    judge_application,
    judge_set,
    look,
    remove_all,
)
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import Json, KubeError

from modules import argocd_applications

from .fakes import Clock, FakeKube, FakeObjects, run_module

ROOT = "/apis/argoproj.io/v1alpha1/namespaces/argocd/"
GOOD_SET = {"status": {"conditions": [{"type": "ResourcesUpToDate", "status": "True"}]}}
GOOD = {"status": {"sync": {"status": "Synced"}}}


def broken_set(reason: str, message: str) -> Json:
    condition = {"type": "ErrorOccurred", "status": "True", "reason": reason, "message": message}
    return {"status": {"conditions": [condition, {"type": "ResourcesUpToDate", "status": "True"}]}}


@pytest.mark.parametrize(
    ("item", "reason", "accepted"),
    [
        (GOOD_SET, "", False),
        ({}, "has not looked", False),
        (broken_set("ApplicationGenerationFromParamsError", "repository not found"), "repository not found", False),
        (broken_set("ApplicationGenerationFromParamsError", "unable to process file 'a.yml'"), "'a.yml'", True),
        (broken_set("ApplicationValidationError", "duplicate name"), "duplicate name", True),
    ],
)
def test_a_set_is_judged(item: Json, reason: str, accepted: bool) -> None:
    found, content = judge_set(item)
    assert (reason in found, content, bool(found)) == (True, accepted, bool(reason))


@pytest.mark.parametrize(
    ("status", "reason", "accepted"),
    [
        (GOOD["status"], "", False),
        ({}, "has not looked", False),
        (
            {"sync": {"status": "Unknown"}, "conditions": [{"type": "ComparisonError", "message": "no host"}]},
            "ComparisonError: no host",
            False,
        ),
        ({"sync": {"status": "OutOfSync"}, "operationState": {"phase": "Running"}}, "has not ended", False),
        (
            {
                "sync": {"status": "OutOfSync"},
                "operationState": {
                    "phase": "Failed",
                    "message": "not valid",
                    "syncResult": {
                        "resources": [
                            {"kind": "ClusterRole", "name": "x", "status": "SyncFailed", "message": "not permitted"},
                            {"kind": "Service", "name": "y", "status": "Synced", "message": "made"},
                        ]
                    },
                },
            },
            "not valid; ClusterRole x: not permitted",
            True,
        ),
    ],
)
def test_an_application_is_judged(status: Json, reason: str, accepted: bool) -> None:
    found, content = judge_application({"status": status})
    assert (reason in found, content, bool(found)) == (True, accepted, bool(reason))
    assert "made" not in found


def named(name: str, item: dict[str, Any]) -> Json:
    return {"metadata": {"name": name, "resourceVersion": "1"}, **item}


def wait(kube: FakeKube, timeout: float = 30) -> list[Finding]:
    clock = Clock()
    return await_accepted(kube, "argocd", ["dev"], ["platform"], timeout, 0.5, clock, clock.sleep)


def test_all_well_asks_for_nothing() -> None:
    kube = FakeKube(
        {f"{ROOT}applicationsets/dev": named("dev", GOOD_SET), f"{ROOT}applications/platform": named("platform", GOOD)}
    )
    assert wait(kube) == []
    assert not kube.writes


def test_what_is_missing_is_said_when_the_time_is_over() -> None:
    assert [str(each) for each in wait(FakeKube())] == [
        "ApplicationSet argocd/dev: it does not exist",
        "Application argocd/platform: it does not exist",
    ]


def test_what_is_not_well_is_asked_to_look_again() -> None:
    class Cured(FakeKube):
        def merge_patch(self, path: str, body: Json) -> Json:
            super().merge_patch(path, body)
            self.objects[path] |= GOOD
            return self.objects[path]

    kube = Cured(
        {f"{ROOT}applicationsets/dev": named("dev", GOOD_SET), f"{ROOT}applications/platform": named("platform", {})}
    )
    assert wait(kube) == []
    assert kube.objects[f"{ROOT}applications/platform"]["metadata"]["annotations"] == {
        "argocd.argoproj.io/refresh": "normal"
    }


def test_wrong_content_does_not_hold_the_installation_up() -> None:
    kube = FakeKube(
        {
            f"{ROOT}applicationsets/dev": named("dev", broken_set("RenderTemplateParamsError", "x")),
            f"{ROOT}applications/platform": named("platform", GOOD),
        }
    )
    found = wait(kube)
    assert [each.accepted for each in found] == [True]
    assert not kube.writes


def test_an_api_that_does_not_answer_is_not_well() -> None:
    class Gone(FakeKube):
        def get(self, path: str, **query: str) -> Json | None:
            raise KubeError("no route")

    assert [str(each) for each in wait(Gone(), 2)] == ["Kubernetes API: no route"]


def test_the_evidence_names_the_next_step() -> None:
    text = evidence([Finding("Application argocd/platform", "platform: app path does not exist")], "argocd", "kubectl")
    assert "make it" in text
    assert "describe applications.argoproj.io,applicationsets.argoproj.io" in text


class Cluster(FakeObjects):
    """Knows lists; an object with a finalizer stays."""

    def __init__(self, objects: dict[str, Json]) -> None:
        super().__init__()
        self.objects = objects

    def get(self, path: str, **query: str) -> Json | None:
        if path in (f"{ROOT}applications", f"{ROOT}applicationsets"):
            return {"items": [item for key, item in self.objects.items() if key.startswith(path + "/")]}
        return super().get(path, **query)

    def delete(self, path: str) -> None:
        self.writes.append(f"delete {path}")
        if not self.objects[path]["metadata"].get("finalizers"):
            del self.objects[path]


def test_all_go_and_finalizers_first() -> None:
    mine = named("mine", {})
    mine["metadata"]["finalizers"] = ["resources-finalizer.argocd.argoproj.io"]
    kube = Cluster({f"{ROOT}applicationsets/dev": named("dev", {}), f"{ROOT}applications/mine": mine})
    clock = Clock()
    assert remove_all(kube, "argocd", 10, clock=clock, sleep=clock.sleep) == [
        "ApplicationSet argocd/dev",
        "Application argocd/mine",
    ]
    assert not kube.objects
    assert kube.writes.index(f"{ROOT}applications/mine") < kube.writes.index(f"delete {ROOT}applications/mine")
    assert remove_all(kube, "argocd", 10, clock=clock, sleep=clock.sleep) == []


def test_check_mode_names_and_keeps() -> None:
    kube = Cluster({f"{ROOT}applications/mine": named("mine", {})})
    assert remove_all(kube, "argocd", 10, check=True) == ["Application argocd/mine"]
    assert not kube.writes


def test_what_does_not_go_is_an_error() -> None:
    class Stuck(Cluster):
        def delete(self, path: str) -> None:
            raise KubeError("changed", 409)

    clock = Clock()
    kube = Stuck({f"{ROOT}applications/mine": named("mine", {})})
    with pytest.raises(SlipwayError, match="still there after 3 s: Application argocd/mine"):
        remove_all(kube, "argocd", 3, clock=clock, sleep=clock.sleep)


def test_look_names_everything() -> None:
    assert len(look(FakeKube(), "argocd", ["dev", "prod"], ["platform"])) == 3


def test_a_set_that_failed_is_asked_with_another_value_each_time() -> None:
    """Argo CD leaves the annotation where it is then, and the same value again would be no change."""
    failed = broken_set("ApplicationGenerationFromParamsError", "repository not found")
    kube = FakeKube(
        {f"{ROOT}applicationsets/dev": named("dev", failed), f"{ROOT}applications/platform": named("platform", GOOD)}
    )
    wait(kube)
    assert len(kube.writes) > 1
    version = int(kube.objects[f"{ROOT}applicationsets/dev"]["metadata"]["resourceVersion"])
    annotations = kube.objects[f"{ROOT}applicationsets/dev"]["metadata"]["annotations"]
    assert annotations == {"argocd.argoproj.io/application-set-refresh": f"slipway-{version - 1}"}


def test_the_module_waits_warns_and_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = FakeKube({f"{ROOT}applications/platform": named("platform", GOOD)})
    monkeypatch.setattr(argocd_applications, "KubeClient", lambda *_: kube)
    options: Json = {"kubeconfig": "/k", "namespace": "argocd", "applications": ["platform"], "timeout": 0}
    assert run_module(argocd_applications, options)["waiting"] == []
    kube.objects[f"{ROOT}applications/platform"]["status"] = {
        "sync": {"status": "OutOfSync"}, "operationState": {"phase": "Failed", "message": "not valid"},
    }  # fmt: skip
    result = run_module(argocd_applications, options)
    assert (result["changed"], result["waiting"]) == (False, ["Application argocd/platform: not valid"])
    missing = {**options, "applications": ["other"]}
    assert "Application argocd/other: it does not exist" in run_module(argocd_applications, missing)["msg"]
    assert run_module(argocd_applications, missing, check=True)["waiting"]


def test_the_module_takes_all_away(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = Cluster({f"{ROOT}applications/mine": named("mine", {})})
    monkeypatch.setattr(argocd_applications, "KubeClient", lambda *_: kube)
    options: Json = {"kubeconfig": "/k", "namespace": "argocd", "state": "absent"}
    assert run_module(argocd_applications, options, check=True)["removed"] == ["Application argocd/mine"]
    assert run_module(argocd_applications, options)["changed"] is True
    assert run_module(argocd_applications, options)["changed"] is False
