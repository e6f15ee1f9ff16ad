"""What the airflow role gives to the chart: the lab's stand-in and, where a bundle has it, the official one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ansible.module_utils
import pytest
import yaml

PROJECT = Path(__file__).parents[3]
ansible.module_utils.__path__.append(str(PROJECT / "plugins/module_utils"))
from ansible.module_utils.slipway.flows import Addresses, policies  # noqa: E402

from .needs import assert_same  # noqa: E402

_spec = importlib.util.spec_from_file_location("airflow_filter", PROJECT / "plugins/filter/airflow.py")
assert _spec and _spec.loader
filters = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(filters)

Json = dict[str, Any]
Variables = Callable[[str], Json]
Rendered = dict[tuple[str, str], Json]
STANDIN = PROJECT / "tests/lab/charts/airflow"
CACHE = Path(os.environ.get("SLIPWAY_CACHE", Path.home() / ".cache/slipway"))
IMAGE = "registry.example.com:5000/airflow:3.3.2"
PLAY = """
- hosts: localhost
  gather_facts: false
  vars:
    ansible_python_interpreter: "{{ ansible_playbook_python }}"
    slipway_site: site
    slipway_domain: site.example.com
    slipway_bundle: {images: {airflow: IMAGE}, versions: {airflow: 3.3.2}}
    slipway_components: [front_door, minio, git, postgresql, airflow, kubeflow_pipelines]
    slipway_active_components: "{{ slipway_components }}"
    slipway_kubeconfig: /kubeconfig
    slipway_kubectl: /kubectl
    _airflow_generated: {results: [{fingerprint: a}, {fingerprint: b}]}
    _airflow_mirrored: {results: [{fingerprint: c}]}
    _airflow_read: {results: [{fingerprint: d}]}
  tasks:
    # For the role's variables only.
    - import_role: {name: airflow, tasks_from: precheck}
      when: false
    - copy:
        content: >-
          {{ {'values': _airflow_fixed_values | merge_values(airflow_values), 'flows': _airflow_flows, 'mirrors': _airflow_mirrors,
              'jobs': _airflow_jobs, 'parts': _airflow_default_resources | list, 'needs': _airflow_needs} | to_json }}
        dest: DEST
        mode: "0600"
"""
SITES: dict[str, Json] = {
    "plain": {},
    "small": {"airflow_executor": "LocalExecutor", "airflow_parallelism": 2, "slipway_components": ["minio", "git", "airflow"]},
    "rich": {
        "airflow_pools": [{"name": "one", "slots": 3}],
        "airflow_outside": True,
        "airflow_targets": [{"namespace": "epos-dev", "ports": [8080]}],
        "airflow_resources": {"worker": {"limits": {"memory": "9Gi"}}},
        "airflow_values": {"scheduler": {"replicas": 2}, "env": [{"name": "MINE", "value": "1"}]},
        "git_provider": "external",
        "git_url": "https://git.example.com/us/platform.git",
        "postgresql_provider": "external",
    },
    "keys": {"git_provider": "external", "git_url": "git@git.example.com:us/platform.git"},
}  # fmt: skip
ADDRESSES = Addresses(("10.0.0.1/32",), 6443, ("10.0.0.1/32",), ("10.42.0.0/16",))
# Of the official chart, and of no use here: what a hook makes for Celery, and a Service that nobody calls.
ONLY_OFFICIAL = {("Secret", "airflow-broker-url"), ("Service", "airflow-triggerer")}
PROGRAMS = ["api-server", "dag-processor", "scheduler", "triggerer"]


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> Variables:
    """The role's own variables, by the name of a site."""
    known: dict[str, Json] = {}

    def find(site: str) -> Json:
        if site not in known:
            folder = tmp_path_factory.mktemp(site)
            out, play = folder / "out.json", folder / "play.yml"
            play.write_text(PLAY.replace("DEST", str(out)).replace("IMAGE", IMAGE))
            command = [sys.executable, "-m", "ansible", "playbook", "-i", "localhost,", "-c", "local", str(play)]
            answer = subprocess.run(
                [*command, "-e", json.dumps({"_airflow_files": str(PROJECT / "roles/airflow/files"), **SITES[site]})],
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


def helm() -> str:
    """The helm of a bundle or the lab's build of it; skips aloud where there is none."""
    programs = [*(path / "bin/helm" for path in bundles()), *sorted(CACHE.glob("program/helm-*"))]
    found = [str(path) for path in programs if path.is_file() and os.access(path, os.X_OK)]
    return found[0] if found else pytest.skip("no helm on this machine: make bundle brings one")


@pytest.fixture(scope="module")
def official() -> Path:
    """The packed official chart of a bundle; only that one brings Celery's workers."""
    for archive in [path for bundle in bundles() for path in bundle.glob("charts/airflow-*.tgz")]:
        with tarfile.open(archive) as tar:
            if "airflow/templates/workers/worker-deployment.yaml" in tar.getnames():
                return archive
    pytest.skip(
        "no bundle on this machine has Airflow's official chart: SOURCE=upstream make bundle, or BUNDLE=<directory>"
    )


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stand-in, packed."""
    archive = tmp_path_factory.mktemp("chart") / "airflow.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(STANDIN, "airflow")
    return archive


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, variables: Variables) -> Callable[[Path, str], Rendered]:
    """The objects that a chart makes of a site's values; helm must say nothing on the side."""
    known: dict[tuple[Path, str], Rendered] = {}

    def render(chart: Path, site: str) -> Rendered:
        if (chart, site) not in known:
            known[chart, site] = rendered(tmp_path_factory.mktemp("values"), chart, variables(site)["values"])
        return known[chart, site]

    return render


def rendered(folder: Path, chart: Path, values: Json) -> Rendered:
    """The objects that `helm template` makes."""
    (folder / "values.json").write_text(json.dumps(values))
    command = [helm(), "template", "airflow", str(chart), "--namespace", "airflow", "--kube-version", "1.35.0"]
    answer = subprocess.run(
        [*command, "--values", str(folder / "values.json")], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    found = [item for item in yaml.safe_load_all(answer.stdout) if item]
    return {(item["kind"], item["metadata"]["name"]): item for item in found}


def pods(objects: Rendered) -> dict[str, Json]:
    """The pods of a chart's objects by their label `component`, those of tasks among them."""
    templates = [item["spec"]["template"] for (kind, _), item in objects.items() if kind in ("Deployment", "Job")]
    if text := objects["ConfigMap", "airflow-config"]["data"].get("pod_template_file.yaml"):
        templates.append(yaml.safe_load(text))
    return {item["metadata"]["labels"]["component"]: item for item in templates}


def containers(pod: Json) -> list[Json]:
    """Every container of a pod."""
    return [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]


def essence(pod: Json) -> Json:
    """What of a pod the two charts must have alike."""

    def by_name(items: list[Json] | None) -> dict[str, Json]:
        return {item["name"] + item.get("mountPath", ""): item for item in items or []}

    kept = {
        container["name"]: {
            **{key: container.get(key) or {} for key in ("image", "args", "resources", "securityContext")},
            # What only makes Python speak sooner is no difference.
            "env": {key: item for key, item in by_name(container["env"]).items() if key != "PYTHONUNBUFFERED"},
            # The official chart also gives the logs to those that wait, who write none.
            "volumeMounts": {
                key: item
                for key, item in by_name(container["volumeMounts"]).items()
                if not (key.startswith("logs/") and container["name"].startswith("wait-"))
            },
        }
        for container in containers(pod)
    }
    spec = {key: pod["spec"].get(key) for key in ("securityContext", "serviceAccountName", "enableServiceLinks")}
    return {"containers": kept, "volumes": by_name(pod["spec"]["volumes"]), **spec}


# The values.


def test_the_values_fit_the_stand_in(variables: Variables, packed: Path) -> None:
    """No key is misspelt or of another type, and the lab proves nothing with a key that its chart does not have."""
    schema = filters.read_schema(str(packed))
    # The other one has keys of a user's own.
    for site in ("plain", "small", "keys"):
        assert filters.value_faults(variables(site)["values"], schema) == []


@pytest.mark.parametrize("site", SITES)
def test_the_values_fit_the_official_chart(variables: Variables, official: Path, site: str) -> None:
    assert filters.value_faults(variables(site)["values"], filters.read_schema(str(official))) == []


@pytest.mark.parametrize(
    "values",
    [
        {"schedler": {"replicas": 2}},
        {"scheduler": {"resorces": {}}},
        {"rbacc": {}},
        {"workers": {"celery": {"persistense": {}}}},
        {"ingress": {"apiserver": {}}},
        {"executor": 3},
        {"migrateDatabaseJob": {"useHelmHook": False}},
    ],
)
def test_a_misspelt_key_is_refused(values: Json, packed: Path, request: pytest.FixtureRequest) -> None:
    """By the stand-in's schema and, where it is there, by the official one, which by itself takes the first without a word."""
    key = next(iter(values))
    for archive in [packed, *([request.getfixturevalue("official")] if _has_official() else [])]:
        (fault,) = filters.airflow_faults({**GIVEN, "airflow_values": values}, ["worker"], str(archive))
        assert fault.startswith("airflow_values: ")
        assert key in fault or str(next(iter(values.values()))) in fault or "unexpected" in fault


def _has_official() -> bool:
    return any(path.stat().st_size > 1 << 17 for bundle in bundles() for path in bundle.glob("charts/airflow-*.tgz"))


def test_the_stand_ins_schema_is_a_part_of_the_official_one(official: Path) -> None:
    """Types and strictness are the same for every key that it has."""
    differences: list[str] = []

    def compare(ours: Json, theirs: Json, where: str) -> None:
        for key in ("type", "enum", "pattern", "required"):
            if ours.get(key) != theirs.get(key):
                differences.append(f"{where}: {key}: {ours.get(key)} instead of {theirs.get(key)}")
        if (ours.get("additionalProperties") is False) != (theirs.get("additionalProperties") is False):
            differences.append(f"{where}: additionalProperties")
        for key, value in (ours.get("properties") or {}).items():
            compare(value, theirs["properties"][key], f"{where}.{key}")

    own = json.loads((STANDIN / "values.schema.json").read_text())
    compare(own, filters.read_schema(str(official)), "")
    assert differences == []


def test_the_stand_ins_own_values_fit_its_schema(packed: Path) -> None:
    values = yaml.safe_load((STANDIN / "values.yaml").read_text())
    assert filters.value_faults(values, filters.read_schema(str(packed))) == []


def test_a_chart_without_a_schema_is_named(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "empty.tgz", "w:gz"):
        pass
    with pytest.raises(
        filters.AnsibleFilterError, match=r"empty\.tgz: its airflow/values\.schema\.json cannot be read"
    ):
        filters.read_schema(str(tmp_path / "empty.tgz"))


# What comes of them, with the stand-in and with the official chart.


@pytest.fixture(params=["stand-in", "official"])
def chart(request: pytest.FixtureRequest) -> Path:
    """Both charts; the official one where a bundle has it."""
    return STANDIN if request.param == "stand-in" else Path(request.getfixturevalue("official"))


def test_the_stand_in_makes_what_the_official_chart_makes(
    official: Path, template: Callable[[Path, str], Rendered]
) -> None:
    """The same objects, and the same pods as far as anything depends on them."""
    ours, theirs = template(STANDIN, "plain"), template(official, "plain")
    assert set(theirs) - set(ours) == ONLY_OFFICIAL
    assert set(ours) - set(theirs) == set()
    for name, pod in pods(ours).items():
        assert essence(pod) == essence(pods(theirs)[name]), name
    for name in ("pod-launcher", "pod-log-reader"):
        assert granted(ours, name) == granted(theirs, name)


def granted(objects: Rendered, name: str) -> Json:
    """What a Role allows, by kind of resource, and to whom."""
    rules = objects["Role", f"airflow-{name}-role"]["rules"]
    allowed = {resource: sorted(rule["verbs"]) for rule in rules for resource in rule["resources"]}
    subjects = objects["RoleBinding", f"airflow-{name}-rolebinding"]["subjects"]
    return {**allowed, "to": sorted(each["name"] for each in subjects)}


@pytest.mark.parametrize("site", ["plain", "small", "keys"])
def test_its_needs_are_what_the_chart_asks_for(
    variables: Variables, chart: Path, template: Callable[[Path, str], Rendered], site: str
) -> None:
    assert_same(variables(site)["needs"], template(chart, site).values())


def test_rendering_is_stable(
    chart: Path, variables: Variables, template: Callable[[Path, str], Rendered], tmp_path: Path
) -> None:
    """The chart makes no password of its own, so a second run changes nothing."""
    first = template(chart, "plain")
    assert first == rendered(tmp_path, chart, variables("plain")["values"])
    # A hook of the official chart, never an object of the release: without Celery it says nothing.
    secrets = [item for (kind, _), item in first.items() if kind == "Secret"]
    assert all("helm.sh/hook" in item["metadata"]["annotations"] for item in secrets)


def test_the_programs(chart: Path, template: Callable[[Path, str], Rendered]) -> None:
    """Each in a pod that could run under Pod Security `restricted`, with limits, of the bundle's image."""
    objects = template(chart, "plain")
    assert sorted(name.removeprefix("airflow-") for kind, name in objects if kind == "Deployment") == PROGRAMS
    assert not [name for kind, name in objects if kind in ("StatefulSet", "PersistentVolumeClaim", "CronJob")]
    found = pods(objects)
    assert set(found) == {*PROGRAMS, "run-airflow-migrations", "create-user-job", "worker"}
    for name, pod in found.items():
        security = pod["spec"]["securityContext"]
        assert (security["runAsNonRoot"], security["runAsUser"]) == (True, 50000), name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in containers(pod):
            assert container["image"] == IMAGE
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
            }  # fmt: skip
            assert container["resources"]["limits"]["memory"] and container["resources"]["requests"]["cpu"], name
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        assert {mount["name"] for container in containers(pod) for mount in container["volumeMounts"]} <= volumes


def test_no_secret_is_written_out(chart: Path, template: Callable[[Path, str], Rendered]) -> None:
    """Every credential is a reference to a Secret of ours."""
    for name, pod in pods(template(chart, "plain")).items():
        for container in containers(pod):
            environment = {item["name"]: item for item in container["env"]}
            secrets = {
                key: (item["valueFrom"]["secretKeyRef"]["name"], item["valueFrom"]["secretKeyRef"]["key"])
                for key, item in environment.items()
                if "valueFrom" in item
            }
            assert secrets["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] == ("airflow-database", "connection"), name
            assert secrets["AIRFLOW__CORE__FERNET_KEY"] == ("airflow-fernet", "fernet-key")
            assert secrets["AIRFLOW__API__SECRET_KEY"] == ("airflow-keys", "api-secret-key")
            assert not [
                key for key in environment if key.endswith(("_KEY", "PASSWORD", "SECRET")) and key not in secrets
            ]
    admin = {
        item["name"]: item for item in pods(template(chart, "plain"))["create-user-job"]["spec"]["containers"][0]["env"]
    }
    assert admin["ADMIN_PASSWORD"]["valueFrom"]["secretKeyRef"] == {"name": "airflow-admin", "key": "password"}


def test_the_jobs_are_no_hooks_and_stay(
    chart: Path, variables: Variables, template: Callable[[Path, str], Rendered]
) -> None:
    """Without hooks they run beside the pods that wait for them, and one that vanished would count as a change."""
    objects = template(chart, "plain")
    jobs = {name: item for (kind, name), item in objects.items() if kind == "Job"}
    assert sorted(jobs) == sorted(variables("plain")["jobs"])
    for item in jobs.values():
        assert not [key for key in item["metadata"].get("annotations") or {} if key.startswith("helm.sh/")]
        assert "ttlSecondsAfterFinished" not in item["spec"]
        assert item["spec"]["template"]["metadata"]["annotations"]["slipway/secrets"] == "a b c d"
    (migration,) = jobs["airflow-run-airflow-migrations"]["spec"]["template"]["spec"]["containers"]
    assert migration["args"][-1].endswith("exec airflow db migrate")


def test_the_configuration(chart: Path, template: Callable[[Path, str], Rendered]) -> None:
    """Logs in MinIO, DAGs by Git, one address; every option as Airflow reads it."""
    import configparser

    data = template(chart, "plain")["ConfigMap", "airflow-config"]["data"]
    config = configparser.ConfigParser(interpolation=None)
    config.read_string(data["airflow.cfg"])
    assert config["core"]["executor"] == "KubernetesExecutor"
    assert config["core"]["auth_manager"].endswith("FabAuthManager")
    assert config["core"]["load_examples"] == "False"
    assert config["core"]["execution_api_server_url"] == "http://airflow-api-server:8080/execution/"
    assert config["api"]["base_url"] == "https://airflow.site.example.com"
    assert {key: config["logging"][key] for key in ("remote_logging", "remote_base_log_folder", "remote_log_conn_id")} == {
        "remote_logging": "True", "remote_base_log_folder": "s3://airflow-logs", "remote_log_conn_id": "airflow_logs",
    }  # fmt: skip
    own, bundle = json.loads(config["dag_processor"]["dag_bundle_config_list"])
    assert own["kwargs"] == {"path": "/opt/slipway/dags"}
    assert bundle["classpath"] == "airflow.providers.git.bundles.git.GitDagBundle"
    assert bundle["kwargs"] == {
        "git_conn_id": "git_platform", "tracking_ref": "main", "subdir": "dags", "refresh_interval": 30,
    }  # fmt: skip
    compile(data["airflow_local_settings.py"], "airflow_local_settings.py", "exec")


def test_connections(chart: Path, template: Callable[[Path, str], Rendered]) -> None:
    """Each is JSON whose secrets Kubernetes puts in: of variables that come before it."""
    for name in (*PROGRAMS, "worker"):
        environment = pods(template(chart, "plain"))[name]["spec"]["containers"][0]["env"]
        order = [item["name"] for item in environment]
        found = {
            item["name"].removeprefix("AIRFLOW_CONN_"): json.loads(item["value"])
            for item in environment
            if item["name"].startswith("AIRFLOW_CONN_") and "value" in item
        }
        assert set(found) == {"MINIO_DEFAULT", "AIRFLOW_LOGS", "KUBEFLOW_PIPELINES_DEFAULT", "GIT_PLATFORM"}
        for connection, content in found.items():
            for key in ("login", "password"):
                if key in content:
                    variable = content[key].removeprefix("$(").removesuffix(")")
                    assert order.index(variable) < order.index(f"AIRFLOW_CONN_{connection}")
        assert found["KUBEFLOW_PIPELINES_DEFAULT"] == {
            "conn_type": "http", "schema": "http", "host": "ml-pipeline.kubeflow-pipelines.svc", "port": 8888,
        }  # fmt: skip
        assert found["MINIO_DEFAULT"]["extra"]["endpoint_url"] == "http://minio.minio.svc:9000"
        assert found["GIT_PLATFORM"]["host"] == "http://git.git/platform.git"
        (parameters,) = [item["value"] for item in environment if item["name"] == "AIRFLOW_VAR_DATAOPS_PARAMETERS"]
        assert json.loads(parameters) == {"domain": "site.example.com"}


def test_the_front_door(chart: Path, template: Callable[[Path, str], Rendered]) -> None:
    """One host, without the front door's own login: Airflow asks people itself. None where the site has no front door."""
    ingress = template(chart, "plain")["Ingress", "airflow-ingress"]
    assert "traefik.ingress.kubernetes.io/router.middlewares" not in (ingress["metadata"].get("annotations") or {})
    (rule,) = ingress["spec"]["rules"]
    assert (ingress["spec"]["ingressClassName"], rule["host"]) == ("traefik", "airflow.site.example.com")
    assert rule["http"]["paths"][0]["backend"]["service"]["name"] == "airflow-api-server"
    assert ("Ingress", "airflow-ingress") not in template(chart, "small")


def test_a_small_site(chart: Path, template: Callable[[Path, str], Rendered]) -> None:
    """Tasks run beside the scheduler, in a Deployment without a volume; nobody makes pods or asks the API."""
    objects = template(chart, "small")
    assert "pod_template_file.yaml" not in objects["ConfigMap", "airflow-config"]["data"]
    assert ("Role", "airflow-pod-launcher-role") not in objects
    assert ("Deployment", "airflow-scheduler") in objects
    config = objects["ConfigMap", "airflow-config"]["data"]["airflow.cfg"]
    assert "executor = LocalExecutor" in config and "parallelism = 2" in config
    (scheduler,) = pods(objects)["scheduler"]["spec"]["containers"]
    assert scheduler["resources"]["limits"] == {"memory": "4Gi"}
    # The official chart leaves the scheduler its token, with which it may do nothing.
    for name in ("api-server", "dag-processor", "triggerer"):
        assert objects["ServiceAccount", f"airflow-{name}"]["automountServiceAccountToken"] is False


def test_tokens(chart: Path, template: Callable[[Path, str], Rendered]) -> None:
    """Only who makes pods and who reads their logs may ask the Kubernetes API."""
    accounts = {name: item for (kind, name), item in template(chart, "plain").items() if kind == "ServiceAccount"}
    with_token = [name for name, item in accounts.items() if item.get("automountServiceAccountToken", True)]
    assert sorted(with_token) == ["airflow-api-server", "airflow-scheduler"]


def test_the_users_values_and_repository(official: Path, template: Callable[[Path, str], Rendered]) -> None:
    """They come over ours; an external repository has a credential of its own, a key as a file."""
    objects = template(official, "rich")
    assert objects["Deployment", "airflow-scheduler"]["spec"]["replicas"] == 2
    (worker,) = pods(objects)["worker"]["spec"]["containers"]
    environment = {item["name"]: item for item in worker["env"]}
    assert environment["MINE"]["value"] == "1"
    assert worker["resources"] == {"limits": {"memory": "9Gi"}, "requests": {"cpu": "100m", "memory": "256Mi"}}
    assert json.loads(environment["AIRFLOW_CONN_GIT_PLATFORM"]["value"])["host"] == SITES["rich"]["git_url"]
    (worker,) = pods(template(official, "keys"))["worker"]["spec"]["containers"]
    environment = {item["name"]: item for item in worker["env"]}
    content = json.loads(environment["AIRFLOW_CONN_GIT_PLATFORM"]["value"])
    assert content["extra"] == {"key_file": "/etc/airflow-git/sshPrivateKey"}
    assert "/etc/airflow-git" in [mount["mountPath"] for mount in worker["volumeMounts"]]
    assert not [name for name in environment if name in ("GIT_USERNAME", "GIT_PASSWORD")]


# Who calls whom.


@pytest.mark.parametrize("site", SITES)
def test_flows_become_policies(variables: Variables, site: str) -> None:
    made = policies(variables(site)["flows"], "airflow", ADDRESSES)
    assert made[0]["metadata"]["name"] == "slipway-default-deny"


def test_flows_name_the_charts_labels(
    chart: Path, variables: Variables, template: Callable[[Path, str], Rendered]
) -> None:
    """A label that no pod carries would open nothing."""
    for site in ("plain", "small"):
        known = set(pods(template(chart, site))) | {"worker"}
        for flow in variables(site)["flows"]:
            chosen = flow.get("of", {}).get("component", [])
            assert set([chosen] if isinstance(chosen, str) else chosen) <= known, flow["name"]


def test_only_some_reach_the_database(variables: Variables) -> None:
    """What people have written runs without: tasks come to it through the API server. Not so beside the scheduler."""
    flows = {flow["name"]: flow for flow in variables("plain")["flows"]}
    assert "worker" not in flows["database"]["of"]["component"]
    assert flows["database"]["to"] == [{"namespace": "postgresql", "pods": {"app.kubernetes.io/name": "postgresql"}}]
    assert flows["api"]["of"]["component"] == ["api-server", "scheduler"]
    assert flows["pipelines"]["of"] == {"component": ["triggerer", "worker"]}
    assert (flows["logs"]["of"], flows["logs"]["ports"]) == ({"component": ["triggerer"]}, [8794])
    small = {flow["name"]: flow for flow in variables("small")["flows"]}
    assert (small["to-logs"]["to"][0]["pods"]["component"], small["logs"]["ports"]) == (
        ["triggerer", "scheduler"],
        [8794, 8793],
    )
    assert "api" not in small and "pipelines" not in small
    rich = {flow["name"]: flow for flow in variables("rich")["flows"]}
    assert rich["database"]["to"] == rich["git"]["to"] == rich["outside"]["to"] == ["outside"]
    assert rich["target-0"]["to"] == [{"namespace": "epos-dev"}]


def test_mirrors(variables: Variables) -> None:
    """What it takes over, and from where."""
    taken = {item["name"]: item for item in variables("plain")["mirrors"]}
    assert taken["airflow-database"]["source"] == {"namespace": "postgresql", "name": "postgresql-airflow"}
    assert taken["airflow-database"]["taken"] == {"connection": "uri", "ca.crt": "ca.crt"}
    assert taken["airflow-fernet"]["source"] == {"namespace": "postgresql", "name": "airflow-fernet"}
    assert taken["airflow-git"]["taken"] == {"password": "airflow.read"}
    assert {item["name"]: item for item in variables("keys")["mirrors"]}["airflow-git"]["taken"] == {
        "sshPrivateKey": "sshPrivateKey"
    }


# What is given.

GIVEN: Json = {
    "components": ["minio", "git", "postgresql", "airflow"],
    "airflow_parallelism": 8,
    "airflow_pools": [{"name": "training", "slots": 1}],
    "airflow_resources": {},
    "airflow_values": {},
    "minio_tenants": [],
    "git_users": [],
}
TENANT = {"name": "airflow", "secret": {"namespace": "airflow", "name": "minio-airflow"}}
EPOS = {"name": "epos", "secret": {"namespace": "epos", "name": "minio-epos"}, "copies": ["airflow"]}


def test_good_options_have_no_fault(packed: Path) -> None:
    good = {"minio_tenants": [TENANT, EPOS], "git_users": [{"name": "airflow", "right": "read"}]}
    assert filters.airflow_faults({**GIVEN, **good}, ["worker"], str(packed)) == []


def test_a_bundle_without_airflow_is_named() -> None:
    (found,) = filters.airflow_faults(GIVEN, ["worker"], "")
    assert "the bundle has no chart or no image of Airflow" in found


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("components", ["minio", "git", "airflow"], "postgresql is not listed"),
        ("components", ["minio", "git", "airflow", "postgresql"], "postgresql must come before airflow"),
        ("airflow_parallelism", 0, "0 is less than 1"),
        ("airflow_pools", [{"name": "x"}], "needs name and slots"),
        ("airflow_pools", [{"name": "x", "slots": 0}], "slots: 0 is no number of at least 1"),
        ("airflow_pools", [{"name": "x", "slots": 1}, {"name": "x", "slots": 1}], "x is there twice"),
        ("airflow_resources", {"wroker": {}}, "wroker: unknown; there are worker"),
        ("airflow_values", {"extraEnv": "- name: x"}, "put yours into env and secret"),
        ("minio_tenants", [EPOS], "a tenant airflow with buckets"),
        ("minio_tenants", [TENANT, {**EPOS, "copies": []}], "a tenant epos with copies: [airflow]"),
        ("git_users", [{"name": "argocd", "right": "read"}], "{name: airflow, right: read}"),
    ],
)
def test_faults_name_option_and_remedy(option: str, value: Any, fault: str, packed: Path) -> None:
    (found,) = filters.airflow_faults({**GIVEN, option: value}, ["worker"], str(packed))
    assert fault in found
    assert option in found or option == "components"
