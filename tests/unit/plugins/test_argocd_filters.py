"""What the role argocd makes of its options."""

from __future__ import annotations

import json
from typing import Any

import pytest

from filter.argocd import argocd_faults, argocd_objects, argocd_overlay, argocd_policy

OPTIONS: dict[str, Any] = {
    "provider": "embedded",
    "components": ["git", "argocd"],
    "argocd_environments": [{"name": "dev"}, {"name": "prod", "approval": True}],
    "argocd_rbac": {},
    "argocd_resources": {},
    "argocd_patches": [],
    "argocd_oidc": {},
    "argocd_dex": {},
    "argocd_platform_kinds": [],
    "argocd_sync_interval": 180,
}
OIDC = {"name": "SSO", "issuer": "https://sso.example.com", "clientID": "argocd"}
URL = "http://git.git/platform.git"


def objects(environments: Any = None, **changes: Any) -> dict[tuple[str, str], dict[str, Any]]:
    """The objects of a site, by kind and name."""
    options: dict[str, Any] = {
        "namespace": "argocd",
        "url": URL,
        "interval": 180,
        "kinds": [],
        "sources": [],
        "guarded": ["argocd", "minio"],
        "hosts": ["lab.internal", "git.lab.internal"],
        **changes,
    }
    made = argocd_objects(environments or OPTIONS["argocd_environments"], **options)
    return {(item["kind"], item["metadata"]["name"]): item for item in made}


def test_good_options_have_no_fault() -> None:
    assert argocd_faults(OPTIONS) == []
    more = {
        "argocd_oidc": {**OIDC, "clientSecret": "$sso:secret"},
        "argocd_rbac": {"admin": ["cn=ops,dc=example"], "viewer": ["all@example.com"]},
        "argocd_resources": {"repo_server": {"limits": {"memory": "2Gi"}}},
        "argocd_patches": [{"target": {"kind": "Deployment"}, "patch": "x"}],
        "argocd_platform_kinds": [{"group": "", "kind": "Namespace"}],
    }
    assert argocd_faults({**OPTIONS, **more}) == []
    assert argocd_faults({**OPTIONS, "provider": "external", "components": ["argocd"]}) == []


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        (
            "components",
            ["argocd"],
            "slipway_components: argocd takes applications from the Git service, but git is not",
        ),
        ("components", ["argocd", "git"], "slipway_components: git must come before argocd"),
        ("argocd_environments", [{"name": "Prod"}], "argocd_environments[0]: name: 'Prod' is not one word"),
        ("argocd_environments", [{"name": "eu-prod"}], "argocd_environments[0]: name: 'eu-prod' is not one word"),
        ("argocd_environments", [{"approval": True}], "argocd_environments[0]: name: None is not one word"),
        ("argocd_environments", [{"name": "base"}], "argocd_environments[0]: name: base is the folder"),
        ("argocd_environments", [{"name": "a"}, {"name": "a"}], "argocd_environments[1]: name: a is given twice"),
        ("argocd_environments", [{"name": "a", "aproval": True}], "argocd_environments[0]: aproval: unknown"),
        (
            "argocd_environments",
            [{"name": "a", "approval": "yes"}],
            "argocd_environments[0]: approval: 'yes' is neither",
        ),
        (
            "argocd_environments",
            [{"name": "a", "pod_security": "none"}],
            "argocd_environments[0]: pod_security: 'none'",
        ),
        ("argocd_environments", ["dev"], "argocd_environments[0]: 'dev' is no mapping"),
        ("argocd_rbac", {"boss": ["x"]}, "argocd_rbac: boss: unknown role; there are admin, operator, viewer"),
        ("argocd_rbac", {"admin": []}, "argocd_rbac: admin: needs a list of users or groups"),
        ("argocd_rbac", {"admin": "alice"}, "argocd_rbac: admin: needs a list of users or groups"),
        ("argocd_rbac", {"admin": ['x"\np, *']}, "argocd_rbac: admin: 'x\"\\np, *' is no name"),
        ("argocd_resources", {"reposerver": {}}, "argocd_resources: reposerver: unknown; there are applicationset"),
        ("argocd_patches", ["x"], "argocd_patches[0]: needs patch"),
        ("argocd_patches", [{"path": "x"}], "argocd_patches[0]: needs patch"),
        ("argocd_platform_kinds", [{"kind": "Namespace"}], "argocd_platform_kinds[0]: needs group and kind"),
        ("argocd_oidc", {"name": "SSO"}, "argocd_oidc: issuer is missing"),
        ("argocd_oidc", {**OIDC, "clientSecret": "hunter2"}, "argocd_oidc: clientSecret is written out"),
        ("argocd_sync_interval", 5, "argocd_sync_interval: 5 is less than 10 seconds"),
    ],
)
def test_a_fault_names_option_and_key(option: str, value: Any, fault: str) -> None:
    found = argocd_faults({**OPTIONS, option: value})
    assert any(each.startswith(fault) for each in found), found
    assert "hunter2" not in "".join(found)


def test_two_ways_to_log_in_are_one_too_many() -> None:
    assert any("only one" in each for each in argocd_faults({**OPTIONS, "argocd_oidc": OIDC, "argocd_dex": {"a": 1}}))


def test_groups_may_hold_commas_and_strangers_get_nothing() -> None:
    lines = argocd_policy({"operator": ["cn=ops,dc=example"], "viewer": ["all"]}).splitlines()
    assert 'g, "cn=ops,dc=example", role:operator' in lines
    assert 'g, "all", role:readonly' in lines
    assert not [line for line in lines if "override" in line or "delete" in line]
    assert not [line for line in argocd_policy({}).splitlines() if '"' in line]


def test_an_environment_follows_main_or_approvals() -> None:
    made = objects()
    dev, prod = made["ApplicationSet", "dev"]["spec"], made["ApplicationSet", "prod"]["spec"]
    assert dev["generators"][0]["git"]["directories"] == [{"path": "apps/*/dev"}]
    assert dev["template"]["spec"]["source"]["targetRevision"] == "main"
    assert prod["generators"][0]["git"]["files"] == [{"path": "approvals/prod/*.yml"}]
    # Only a whole commit is followed: a branch would move without an approval.
    assert "^[0-9a-f]{40}$" in prod["template"]["spec"]["source"]["targetRevision"]
    for spec in (dev, prod):
        assert spec["goTemplateOptions"] == ["missingkey=error"]
        assert spec["syncPolicy"] == {"preserveResourcesOnDeletion": True}
        assert "finalizers" not in spec["template"]["metadata"]
        assert spec["template"]["spec"]["syncPolicy"]["automated"] == {"prune": True, "selfHeal": True}


def test_dev_cannot_reach_prod() -> None:
    """Each environment has a project of its own, as a commit on main may name any namespace."""
    made = objects()
    for name in ("dev", "prod"):
        project = made["AppProject", f"models-{name}"]["spec"]
        assert [item["namespace"] for item in project["destinations"]] == [f"*-{name}"]
        assert project["sourceRepos"] == [URL]
        assert project["clusterResourceWhitelist"] == [{"group": "", "kind": "Namespace"}]
        refused = {item["kind"] for item in project["namespaceResourceBlacklist"]}
        assert {"ResourceQuota", "LimitRange", "RoleBinding"} <= refused
        assert made["ApplicationSet", name]["spec"]["template"]["spec"]["project"] == f"models-{name}"


def test_the_platform_is_kept_off_what_is_others() -> None:
    kinds = [{"group": "", "kind": "Namespace"}]
    made = objects(kinds=kinds, sources=["https://charts.example.com"])
    project = made["AppProject", "platform"]["spec"]
    assert [item["namespace"] for item in project["destinations"]] == ["!argocd", "!minio", "!*-dev", "!*-prod", "*"]
    assert project["clusterResourceWhitelist"] == kinds
    assert project["sourceRepos"] == [URL, "https://charts.example.com"]
    root = made["AppProject", "platform-applications"]["spec"]
    assert root["namespaceResourceWhitelist"] == [{"group": "argoproj.io", "kind": "Application"}]
    assert root["clusterResourceWhitelist"] == []
    assert made["Application", "platform"]["spec"]["project"] == "platform-applications"
    # Argo CD's own project for whoever names none.
    assert made["AppProject", "default"]["spec"]["destinations"] == []


def test_the_guard_of_hosts_knows_those_of_the_platform() -> None:
    policy = objects()["ValidatingAdmissionPolicy", "slipway-argocd-hosts"]["spec"]
    assert policy["variables"] == [{"name": "hosts", "expression": '["lab.internal", "git.lab.internal"]'}]
    assert policy["matchConditions"][0]["expression"].endswith("startsWith('system:serviceaccount:argocd:')")


def test_the_guard_of_namespaces_knows_the_environments() -> None:
    made = objects([{"name": "dev", "pod_security": "baseline"}, {"name": "prod", "approval": True}])
    policy = made["ValidatingAdmissionPolicy", "slipway-argocd-namespaces"]["spec"]
    assert policy["variables"][0]["expression"] == "{'dev': 'baseline', 'prod': 'restricted'}"
    labels = made["ApplicationSet", "dev"]["spec"]["template"]["spec"]["syncPolicy"]["managedNamespaceMetadata"][
        "labels"
    ]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"


def test_images_keep_port_tag_and_digest() -> None:
    def image(reference: str) -> dict[str, Any]:
        overlay = argocd_overlay({"argocd": reference}, "argocd", {}, {}, {"all": {}}, [])
        found: dict[str, Any] = overlay["images"][0]
        return found

    assert image("quay.io/a/b:v1") == {"name": "quay.io/argoproj/argocd", "newName": "quay.io/a/b", "newTag": "v1"}
    assert image("host:5000/a/b")["newName"] == "host:5000/a/b"
    assert image("host:5000/a/b:v1@sha256:00") == {
        "name": "quay.io/argoproj/argocd", "newName": "host:5000/a/b", "newTag": "v1", "digest": "sha256:00",
    }  # fmt: skip


def test_the_users_patches_come_last() -> None:
    mine = {"target": {"kind": "Deployment"}, "patch": "mine"}
    resources = {"server": {"requests": {"cpu": "1m"}}}
    overlay = argocd_overlay({}, "argocd", {"argocd-cm": {"url": "u"}}, resources, {"all": {"a": "b"}}, [mine])
    assert overlay["patches"][-1] == mine
    server = json.loads(overlay["patches"][-2]["patch"])["spec"]["template"]
    assert server["metadata"]["annotations"] == {"a": "b"}
    assert server["spec"]["containers"][0]["imagePullPolicy"] == "IfNotPresent"
