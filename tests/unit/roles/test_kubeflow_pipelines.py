"""What the kubeflow_pipelines role makes of upstream's manifests: their recorded list, and the real ones wherever a bundle has them."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
import yaml

PROJECT = Path(__file__).parents[3]
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))
from ansible.module_utils.slipway.flows import Addresses, policies  # noqa: E402
from ansible.module_utils.slipway.kustomize import render  # noqa: E402

from .needs import assert_same  # noqa: E402

_spec = importlib.util.spec_from_file_location(
    "kubeflow_pipelines_filter", PROJECT / "plugins/filter/kubeflow_pipelines.py"
)
assert _spec and _spec.loader
overlay = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(overlay)

Json = dict[str, Any]
CACHE = Path(os.environ.get("SLIPWAY_CACHE", Path.home() / ".cache/slipway"))
# Names, kinds, containers and variables of what upstream's manifests hold.
RECORDED = [json.loads(line) for line in (Path(__file__).parent / "data/kfp-objects.jsonl").read_text().splitlines()]
IMAGES = {
    name: f"registry.example.com:5000/{name.replace('_', '-')}:v1" for name in (*overlay.IMAGES, *overlay.RUN_IMAGES)
}
PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    slipway_site: site
    slipway_domain: site.example.com
    slipway_bundle: {images: IMAGES}
    slipway_components: [front_door, minio, git, kubeflow_pipelines]
    slipway_kubeconfig: /kubeconfig
    slipway_kubectl: /kubectl
    _kubeflow_pipelines_generated: {results: [{fingerprint: a}, {fingerprint: b}]}
    _kubeflow_pipelines_mirrored: {results: [{fingerprint: c}]}
  tasks:
    # For the role's variables only.
    - import_role: {name: kubeflow_pipelines, tasks_from: precheck}
      when: false
    - copy:
        content: >-
          {{ {'kustomization': _kubeflow_pipelines_kustomization, 'flows': _kubeflow_pipelines_flows, 'kinds': _kubeflow_pipelines_kinds,
              'objects': _kubeflow_pipelines_objects, 'mirrors': _kubeflow_pipelines_mirrors, 'needs': _kubeflow_pipelines_needs,
              'claim': _kubeflow_pipelines_claim} | to_json }}
        dest: DEST
        mode: "0600"
"""
SITES: dict[str, Json] = {
    "plain": {},
    "rich": {
        "kubeflow_pipelines_pod_security": "restricted",
        "kubeflow_pipelines_keep_pods": 120,
        "kubeflow_pipelines_outside": True,
        "kubeflow_pipelines_resources": {"mysql": {"limits": {"memory": "9Gi"}}},
        "kubeflow_pipelines_targets": [{"namespace": "a", "ports": [1]}, {"namespace": "b", "ports": [2]}],
        "kubeflow_pipelines_patches": [
            {
                "target": {"kind": "ConfigMap", "name": "pipeline-install-config"},
                "patch": '[{"op": "replace", "path": "/data/LOG_LEVEL", "value": "debug"}]',
            }
        ],
    },
    "external": {"git_provider": "external", "git_url": "https://git.example.com/us/platform.git"},
    "keys": {"git_provider": "external", "git_url": "git@git.example.com:us/platform.git"},
    "readers": {"git_users": [{"name": "argocd", "right": "read"}]},
    "without git": {"slipway_components": ["minio", "kubeflow_pipelines"]},
}
Variables = Callable[[str], Json]
Rendered = dict[str, dict[str, Json]]
DEPLOYMENTS = {
    "metadata-envoy-deployment",
    "metadata-grpc-deployment",
    "ml-pipeline",
    "ml-pipeline-persistenceagent",
    "ml-pipeline-scheduledworkflow",
    "ml-pipeline-ui",
    "mysql",
    "workflow-controller",
}


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Variables:
    """The role's own variables, by the name of a site."""
    known: dict[str, Json] = {}

    def find(site: str) -> Json:
        if site not in known:
            folder = tmp_path_factory.mktemp(site.replace(" ", "-"))
            out, play = folder / "out.json", folder / "play.yml"
            play.write_text(PLAY.replace("DEST", str(out)).replace("IMAGES", json.dumps(IMAGES)))
            command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", str(play)]
            answer = subprocess.run(
                [*command, "-e", json.dumps(SITES[site])],
                env={**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg")},
                capture_output=True,
                text=True,
                check=False,
            )
            assert answer.returncode == 0, answer.stdout + answer.stderr
            known[site] = json.loads(out.read_text())
        return known[site]

    return find


def bundles() -> list[Path]:
    """Every bundle on this machine: a named one, those of sites, those in the cache."""
    named = [Path(os.environ["BUNDLE"])] if os.environ.get("BUNDLE") else []
    found = [*named, *(PROJECT / ".slipway").glob("*/bundle"), CACHE / "upstream", *CACHE.glob("bundle/*")]
    return [path for path in found if (path / "bundle.yml").is_file()]


def bases() -> list[tuple[Path, Path]]:
    """kubectl and upstream's manifests, or a stand-in for them, of every bundle that has both."""
    found = []
    for bundle in bundles():
        artifacts = yaml.safe_load((bundle / "bundle.yml").read_text())["artifacts"]
        named = [item for item in artifacts if (item["kind"], item["name"]) == ("manifest", "kubeflow-pipelines")]
        found += [(bundle / "bin/kubectl", bundle / item["path"]) for item in named]
    return [(kubectl, base) for kubectl, base in found if kubectl.is_file() and base.is_file()]


@pytest.fixture(scope="module")
def rendered(variables: Variables) -> Callable[[str], Rendered]:
    """The objects of a site, by kind and by name, from the manifests of a bundle."""
    if not (found := bases()):
        pytest.skip(
            "no bundle on this machine has the manifests of Kubeflow Pipelines: make bundle, or BUNDLE=<directory>"
        )
    kubectl, base = found[0]
    known: dict[str, Rendered] = {}

    def find(site: str) -> Rendered:
        if site not in known:
            known[site] = {}
            for item in render(str(kubectl), str(base), variables(site)["kustomization"]):
                known[site].setdefault(item["kind"], {})[item["metadata"]["name"]] = item
        return known[site]

    return find


def recorded(kind: str) -> dict[str, Json]:
    """Recorded objects of a kind by their names."""
    return {item["name"]: item for item in RECORDED if item["kind"] == kind}


def patches(variables: Variables) -> list[Json]:
    """Patches of the overlay that name their target themselves."""
    return [
        json.loads(item["patch"]) for item in variables("plain")["kustomization"]["patches"] if "target" not in item
    ]


def test_every_patch_meets_an_object_of_upstream(variables: Variables) -> None:
    for patch in patches(variables):
        kind, metadata = patch["kind"], patch["metadata"]
        target = recorded(kind).get(metadata["name"])
        assert target, f"{kind} {metadata['name']}"
        assert (target["apiVersion"], target["namespace"]) == (patch["apiVersion"], metadata["namespace"])
        if kind == "ConfigMap":
            # Of the launcher's two keys upstream sets one.
            assert set(patch["data"]) - {"providers"} <= set(target["keys"]), metadata["name"]


@pytest.mark.parametrize("site", ["plain", "rich"])
def test_its_needs_are_what_the_manifests_ask_for(
    variables: Variables, rendered: Callable[[str], Rendered], site: str
) -> None:
    needs = variables(site)["needs"]
    assert_same(needs, [item for items in rendered(site).values() for item in items.values()])
    assert [each["name"] for each in needs["volumes"]] == [variables(site)["claim"]]


def test_every_removal_meets_an_object_of_upstream() -> None:
    missing = {(kind, name) for kind, names in overlay.REMOVED.items() for name in names if name not in recorded(kind)}
    assert not missing


def test_every_container_and_variable_is_upstreams(variables: Variables) -> None:
    """But for variables that upstream's programs know and its manifests do not set."""
    ours = {
        "ml-pipeline": {
            "OBJECTSTORECONFIG_REGION", "ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_HOST", "ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_PORT",
        },
        "ml-pipeline-ui": {
            "MINIO_HOST", "MINIO_PORT", "MINIO_SSL", "ARGO_ARCHIVE_BUCKETNAME", "ARGO_KEYFORMAT", "ML_PIPELINE_SERVICE_HOST",
            "ML_PIPELINE_SERVICE_PORT", "METADATA_ENVOY_SERVICE_SERVICE_HOST", "METADATA_ENVOY_SERVICE_SERVICE_PORT",
            "TENSORBOARD_PROXY_SIGNING_SECRET",
        },
        "workflow-controller": {"DEFAULT_REQUEUE_TIME"},
        "mysql": {"MYSQL_ROOT_PASSWORD"},
    }  # fmt: skip
    for patch in patches(variables):
        if patch["kind"] != "Deployment":
            continue
        name = patch["metadata"]["name"]
        containers = {item["name"]: item for item in recorded("Deployment")[name]["containers"]}
        for container in patch["spec"]["template"]["spec"].get("containers", []):
            named = {variable["name"] for variable in container.get("env", [])}
            assert named - ours.get(name, set()) <= set(containers[container["name"]]["env"]), name


def test_the_api_server_has_the_addresses_without_which_it_ends(variables: Variables) -> None:
    """Upstream's server (2.17.0, backend/src/apiserver/main.go) ends at once where these are missing, though it never calls the one of
    the visualization server, whose Service is removed."""
    named = {
        variable["name"]
        for patch in patches(variables)
        if (patch["kind"], patch["metadata"]["name"]) == ("Deployment", "ml-pipeline")
        for container in patch["spec"]["template"]["spec"]["containers"]
        for variable in container.get("env", [])
    }
    assert {f"ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_{part}" for part in ("HOST", "PORT")} <= named


def test_every_waiting_container_is_upstreams() -> None:
    """An init container that upstream does not have would be one without an image."""
    for workload, (deployment, _) in overlay.WORKLOADS.items():
        assert set(overlay.WAITS.get(workload, ())) == set(recorded("Deployment")[deployment]["initContainers"])


def test_what_is_left_is_what_runs() -> None:
    """Whatever upstream adds must be looked at: it is ours, or it is removed."""
    kept = {kind: set(recorded(kind)) - set(overlay.REMOVED[kind]) for kind in overlay.REMOVED}
    assert kept["Deployment"] == DEPLOYMENTS == {deployment for deployment, _ in overlay.WORKLOADS.values()}
    assert kept["Service"] == {
        "metadata-envoy-service", "metadata-grpc-service", "ml-pipeline", "ml-pipeline-ui", "mysql",
    }  # fmt: skip
    assert kept["ConfigMap"] == {
        "kfp-launcher", "kubeflow-pipelines-public", "metadata-envoy-configmap", "metadata-grpc-configmap",
        "ml-pipeline-ui-configmap", "pipeline-install-config", "workflow-controller-configmap",
    }  # fmt: skip
    assert not kept["Secret"] | kept["PersistentVolumeClaim"] | kept["NetworkPolicy"] | kept["ClusterRole"]
    accounts = {item["serviceAccount"] for name, item in recorded("Deployment").items() if name in DEPLOYMENTS}
    assert kept["ServiceAccount"] == accounts - {None} | {"pipeline-runner"}


def test_the_kinds_that_stay_are_named(variables: Variables) -> None:
    kinds = set(recorded("CustomResourceDefinition")) - set(overlay.REMOVED["CustomResourceDefinition"])
    assert set(variables("plain")["kinds"]) == kinds


def test_every_image_of_upstream_has_ours() -> None:
    """The waiting ones, alpine, are in no line of the list."""
    used = {
        re.sub(r":[^:/]+$", "", container["image"])
        for name, item in recorded("Deployment").items()
        if name in DEPLOYMENTS
        for container in item["containers"]
    }
    assert used == set(overlay.IMAGES.values()) - {"docker.io/alpine"}


def config(variables: Variables, site: str, name: str) -> dict[str, str]:
    """What the overlay sets in a ConfigMap."""
    found = [json.loads(item["patch"]) for item in variables(site)["kustomization"]["patches"] if "target" not in item]
    data: dict[str, str] = next(item["data"] for item in found if item["metadata"]["name"] == name)
    return data


def test_minio_is_the_store_at_every_place(variables: Variables) -> None:
    launcher = config(variables, "plain", "kfp-launcher")
    assert launcher["defaultPipelineRoot"] == "minio://kubeflow-pipelines/v2/artifacts"
    providers = yaml.safe_load(launcher["providers"])
    for scheme in ("minio", "s3"):
        default = providers[scheme]["default"]
        assert (default["endpoint"], default["disableSSL"]) == ("minio.minio.svc:9000", True)
        assert default["credentials"]["secretRef"]["secretName"] == "mlpipeline-minio-artifact"
    controller = config(variables, "plain", "workflow-controller-configmap")
    store = yaml.safe_load(controller["artifactRepository"])["s3"]
    assert (store["endpoint"], store["bucket"], store["insecure"]) == (
        "minio.minio.svc:9000", "kubeflow-pipelines", True,
    )  # fmt: skip
    text = json.dumps(variables("plain")["kustomization"])
    ui = next(item for item in patches(variables) if "ARGO_KEYFORMAT" in json.dumps(item))
    env = {item["name"]: item.get("value") for item in ui["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["ARGO_KEYFORMAT"] == store["keyFormat"]
    assert (env["MINIO_HOST"], env["MINIO_NAMESPACE"], env["ARGO_ARCHIVE_BUCKETNAME"]) == (
        "minio", "minio.svc", "kubeflow-pipelines",
    )  # fmt: skip
    assert "minio123" not in text


def test_retries_are_those_that_somebody_asked_for(variables: Variables) -> None:
    defaults = yaml.safe_load(config(variables, "rich", "workflow-controller-configmap")["workflowDefaults"])["spec"]
    assert set(defaults["ttlStrategy"].values()) == {120}
    strategy = defaults["templateDefaults"]["retryStrategy"]
    assert (strategy["limit"], strategy["retryPolicy"]) == ("2", "Always")

    def words(**given: str) -> str:
        """The part of the expression that inputs decide, as Argo leaves it: it fills in those that a template has."""
        text = re.search(r"'([^']*)' matches '([^']*)'", strategy["expression"])
        assert text
        filled = text[1]
        for name, value in given.items():
            filled = filled.replace("{{inputs.parameters." + name.replace("_", "-") + "}}", value)
        return "yes" if re.search(text[2], filled) else "no"

    assert words(retry_max_count="3", pod_spec_patch="{}") == "yes"
    assert words(retry_max_count="3", cached_decision="false") == "no"
    assert words(cached_decision="false") == words(task="{}") == "no"
    assert "lastRetry.status == 'Error' ||" in strategy["expression"]


@pytest.mark.parametrize("site", SITES)
def test_the_flows_are_flows(variables: Variables, site: str) -> None:
    addresses = Addresses(("10.0.0.1/32",), 6443, ("10.0.0.1/32",), ("10.42.0.0/24",))
    made = {
        item["metadata"]["name"]: item for item in policies(variables(site)["flows"], "kubeflow-pipelines", addresses)
    }
    assert {"slipway-default-deny", "slipway-people", "slipway-mysql", "slipway-runs-store"} <= set(made)
    assert ("slipway-outside" in made) == (site in ("rich", "external"))
    assert ("slipway-git" in made) == (site in ("plain", "rich"))
    assert [name for name in made if name.startswith("slipway-target-")] == [
        f"slipway-target-{number}" for number in range(2 if site == "rich" else 1)
    ]
    # Nobody but these two speaks to the database.
    ingress = made["slipway-mysql"]["spec"]["ingress"]
    assert [rule["from"][0]["podSelector"]["matchLabels"] for rule in ingress] == [
        {"app": "ml-pipeline"},
        {"component": "metadata-grpc-server"},
    ]


def test_flows_name_labels_that_upstream_has() -> None:
    labels = [service["selector"] for service in recorded("Service").values()]
    assert {"app": "ml-pipeline", "application-crd-id": "kubeflow-pipelines"} in labels
    assert {"component": "metadata-grpc-server", "application-crd-id": "kubeflow-pipelines"} in labels
    ports = {name: [port["port"] for port in item["ports"]] for name, item in recorded("Service").items()}
    assert (ports["ml-pipeline"], ports["mysql"], ports["metadata-grpc-service"]) == ([8888, 8887], [3306], [8080])


def test_whose_credential_runs_commit_with(variables: Variables) -> None:
    sources = {
        site: [(item["name"], item["source"]["name"]) for item in variables(site)["mirrors"]][1:] for site in SITES
    }
    assert sources["plain"] == [("git-pipeline", "git-users")]
    assert sources["external"] == [("git-pipeline", "git-external")]
    assert variables("external")["mirrors"][1]["taken"] == {"username": "username", "password": "password"}
    assert sources["keys"] == sources["readers"] == sources["without git"] == []


def test_the_pages_are_behind_the_login(variables: Variables) -> None:
    ingress = variables("plain")["objects"][0]
    assert ingress["metadata"]["annotations"] == {
        "traefik.ingress.kubernetes.io/router.middlewares": "front-door-auth@kubernetescrd"
    }
    assert ingress["spec"]["rules"][0]["host"] == "kubeflow-pipelines.site.example.com"


# What is given.

GIVEN: Json = {
    "components": ["minio", "git", "kubeflow_pipelines"],
    "kubeflow_pipelines_resources": {},
    "kubeflow_pipelines_patches": [],
    "kubeflow_pipelines_keep_pods": 3600,
    "kubeflow_pipelines_lost_pod_retries": 2,
}


def test_good_options_have_no_fault() -> None:
    assert overlay.kubeflow_pipelines_faults(GIVEN) == []


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("components", ["kubeflow_pipelines"], "minio is not listed"),
        ("components", ["kubeflow_pipelines", "minio"], "minio must come before"),
        ("components", ["minio", "kubeflow_pipelines", "git"], "git must come before"),
        ("kubeflow_pipelines_resources", {"sql": {}}, "sql: unknown; there are api_server"),
        ("kubeflow_pipelines_patches", [{"target": {}}], "patches[0]: needs patch"),
        ("kubeflow_pipelines_keep_pods", 3, "3 is less than 60"),
        ("kubeflow_pipelines_lost_pod_retries", -1, "-1 is less than 0"),
    ],
)
def test_faults_name_option_and_remedy(option: str, value: Any, fault: str) -> None:
    found = overlay.kubeflow_pipelines_faults({**GIVEN, option: value})
    assert len(found) == 1
    assert fault in found[0]
    assert option in found[0] or option == "components"


def test_a_bundle_without_the_images_is_named() -> None:
    with pytest.raises(overlay.AnsibleFilterError, match="names no image for kfp_mysql; is it one of this release"):
        overlay.kubeflow_pipelines_overlay(
            {name: image for name, image in IMAGES.items() if name != "kfp_mysql"}, "n", {}, {}, {}, {}, []
        )


# The real manifests, or the lab's stand-in for them.


def containers(deployment: Json) -> list[Json]:
    """All containers of a Deployment, those of preparation too."""
    spec = deployment["spec"]["template"]["spec"]
    return [*spec["containers"], *spec.get("initContainers", [])]


@pytest.mark.parametrize("site", ["plain", "rich"])
def test_only_what_runs_pipelines_is_there(rendered: Callable[[str], Rendered], site: str) -> None:
    objects = rendered(site)
    assert set(objects["Deployment"]) == DEPLOYMENTS
    assert "Namespace" not in objects and "Secret" not in objects and "PersistentVolumeClaim" not in objects
    text = json.dumps(objects)
    assert "seaweedfs" not in text and "minio123" not in text and "MYSQL_ALLOW_EMPTY_PASSWORD" not in text
    assert not re.search(r"\bkubeflow\.svc|\.kubeflow[:\"]", text)


def test_all_is_in_the_namespace(rendered: Callable[[str], Rendered]) -> None:
    objects = rendered("plain")
    for kind in ("Deployment", "Service", "ConfigMap", "ServiceAccount", "Role", "RoleBinding"):
        assert {item["metadata"]["namespace"] for item in objects[kind].values()} == {"kubeflow-pipelines"}, kind
    accounts = [subject for item in objects["RoleBinding"].values() for subject in item["subjects"]]
    assert {item["namespace"] for item in accounts if item["kind"] == "ServiceAccount"} == {"kubeflow-pipelines"}


def test_every_container_has_its_bounds_and_its_image_from_the_bundle(rendered: Callable[[str], Rendered]) -> None:
    objects = rendered("plain")
    for name, deployment in objects["Deployment"].items():
        for container in containers(deployment):
            where = f"{name}/{container['name']}"
            assert container["image"] in IMAGES.values(), where
            assert {"cpu", "memory"} <= set(container["resources"]["requests"]), where
            assert "memory" in container["resources"]["limits"], where
    text = json.dumps(objects)
    assert not [image for image in IMAGES.values() if image not in text]
    assert "ghcr.io" not in json.dumps(objects["Deployment"]) and "quay.io" not in json.dumps(objects["Deployment"])


def test_every_pod_is_allowed_where_restricted_pods_are(rendered: Callable[[str], Rendered]) -> None:
    for name, deployment in rendered("plain")["Deployment"].items():
        pod = deployment["spec"]["template"]["spec"].get("securityContext", {})
        for container in containers(deployment):
            own = {**pod, **container["securityContext"]}
            assert own["runAsNonRoot"] is True, name
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"]["drop"] == ["ALL"], name
            assert own["seccompProfile"]["type"] == "RuntimeDefault", name


def test_the_database_has_a_password_and_keeps_its_data(rendered: Callable[[str], Rendered]) -> None:
    deployment = rendered("plain")["Deployment"]["mysql"]
    assert deployment["spec"]["strategy"]["type"] == "Recreate"
    spec = deployment["spec"]["template"]["spec"]
    database = spec["containers"][0]
    assert [item["name"] for item in database["env"]] == ["MYSQL_ROOT_PASSWORD"]
    assert all(f"{kind}Probe" in database for kind in ("startup", "readiness", "liveness"))
    assert spec["automountServiceAccountToken"] is False
    claims = [item["persistentVolumeClaim"]["claimName"] for item in spec["volumes"] if "persistentVolumeClaim" in item]
    assert claims == ["mysql-pv-claim"]


def test_no_password_is_an_argument(rendered: Callable[[str], Rendered]) -> None:
    for name, deployment in rendered("plain")["Deployment"].items():
        for container in containers(deployment):
            words = " ".join([*container.get("command", []), *container.get("args", [])])
            assert "PASSWORD)" not in words, name


def test_code_of_a_run_reads_no_secret_but_its_stores(rendered: Callable[[str], Rendered]) -> None:
    rules = rendered("plain")["Role"]["pipeline-runner"]["rules"]
    assert [rule["resourceNames"] for rule in rules if "secrets" in rule["resources"]] == [
        ["mlpipeline-minio-artifact"]
    ]
    assert not [rule for rule in rules if "*" in rule["verbs"] or "*" in rule["resources"]]
    makes = {resource for rule in rules if "create" in rule["verbs"] for resource in rule["resources"]}
    assert makes == {"persistentvolumeclaims", "workflowtaskresults"}


def test_what_the_user_patches_wins_and_restarts(rendered: Callable[[str], Rendered]) -> None:
    plain, rich = rendered("plain"), rendered("rich")
    assert rich["ConfigMap"]["pipeline-install-config"]["data"]["LOG_LEVEL"] == "debug"
    assert rich["ConfigMap"]["pipeline-install-config"]["data"]["defaultSecurityContextRunAsNonRoot"] == "true"
    database = rich["Deployment"]["mysql"]["spec"]["template"]["spec"]["containers"][0]
    assert database["resources"]["limits"] == {"memory": "9Gi"} and database["resources"]["requests"]["cpu"]
    marks = [site["Deployment"]["ml-pipeline"]["spec"]["template"]["metadata"]["annotations"] for site in (plain, rich)]
    assert marks[0]["slipway/settings"] != marks[1]["slipway/settings"]
    assert marks[0]["slipway/secrets"] == marks[1]["slipway/secrets"] == "a b c"
