"""The promises of the README about one site, in the order of its life. Each test goes on where the one before ended."""

from __future__ import annotations

import base64
import contextlib
import gzip
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Self

import psycopg
import pytest
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from tests.e2e.airflow import Airflow
from tests.e2e.front_door import FrontDoor, eventually
from tests.e2e.model_service import ModelService
from tests.e2e.pipelines import RUN_LABEL, Pipelines
from tests.e2e.site import Site as Installed
from tests.e2e.site import Store
from tests.e2e.test_postgresql import Database

from .conftest import PROJECT, STATE, Site
from .listing import OF_MACHINES, listing, new_key, without

REPORT = STATE / "report/index.html"

# Every node is compared by these before the installation and after the reset.
NODE_STATE = {
    # kubectl keeps a cache in the home of whoever calls it on the node, as the contract tests do.
    "files": "find /etc /usr/local /opt /srv /root -xdev -path /root/.kube -prune -o \\( -type f -o -type l \\) "
    "-exec sha256sum {} + 2>/dev/null | sort -k2",
    "directories": "find /etc /usr/local /opt /var/lib /var/log /run /mnt -xdev -maxdepth 2 -type d -not -path /run/user*  "
    "-not -path /run/sudo* -not -path /run/systemd/* -not -path /var/log/journal* | sort",
    "units": "systemctl list-unit-files --no-legend --no-pager | sort",
    "processes": "ps -eo comm= | grep -Ev '^(ps|sh|sudo|ssh|sshd|systemd|\\(sd-pam\\)|sort|grep)$' | sort",
    "mounts": "cut -d' ' -f2 /proc/self/mounts | grep -v ^/run/user | sort",
    "links": "ls /sys/class/net | sort",
    "routes": "ip route",
    "firewall": "{ iptables-save; ip6tables-save; } | grep -E '^-' | sort",
    "kernel settings": "sysctl net.ipv4.ip_forward net.ipv4.conf.all.forwarding",
}

pytestmark = pytest.mark.timeout(2400)


@pytest.fixture(scope="module")
def temporary() -> Iterator[Path]:
    """Where the site's commands put temporary files, and those of others on this machine do not."""
    with (
        tempfile.TemporaryDirectory(prefix="slipway-", dir="/var/tmp") as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("TMPDIR", folder)
        yield Path(folder)


@pytest.fixture(scope="module")
def machine_before(site: Site, temporary: Path) -> dict[str, str]:
    """This machine's containers, mounts, rules and links without a lab."""
    assert site.run("make", "down").status == 0
    return machine(temporary)


def machine(temporary: Path) -> dict[str, str]:
    """Return what the lab could leave behind on this machine."""
    commands = {
        "containers": "podman ps -aq",
        "volumes": "podman volume ls -q",
        "networks": "podman network ls -q",
        "mounts": "cut -d' ' -f2 /proc/self/mounts",
        "rules": "iptables-save | grep -E '^-' || true",
        "links": "ls /sys/class/net",
        "temporary files": f"ls -d {temporary}/k8srcp-* {temporary}/ansible* 2>/dev/null || true",
        "cgroups": "find /sys/fs/cgroup -type d -name 'libpod-*'",
    }
    return {name: subprocess.check_output(["bash", "-c", command], text=True) for name, command in commands.items()}


def node_state(site: Site) -> dict[str, dict[str, str]]:
    """Return what each node is compared by."""
    script = "".join(f"echo '=={name}=='\n{command} || true\n" for name, command in NODE_STATE.items())
    states = {}
    for node in site.nodes:
        text = site.ssh(node, script)
        parts = text.split("==")[1:]
        states[node] = dict(zip(parts[::2], parts[1::2], strict=True))
    return states


@pytest.fixture(scope="module")
def nodes_before(site: Site, machine_before: dict[str, str]) -> dict[str, dict[str, str]]:
    """The bare nodes, before anything is installed."""
    assert site.run("make", "bundle").status == 0
    site.lab("up", "--site", "lab")
    return node_state(site)


def starts(site: Site) -> dict[str, str]:
    """Return when every service and container of the site was started."""
    found = {}
    for node in site.nodes:
        found[node] = site.ssh(node, "systemctl show -p ExecMainStartTimestampMonotonic k3s k3s-agent")
    for pod in site.kubectl("get", "pods", "-A")["items"]:
        # Pods of a verification come and go; those of the platform stay.
        if pod["metadata"]["namespace"] != "epos" and RUN_LABEL not in pod["metadata"].get("labels", {}):
            found[pod["metadata"]["name"]] = str([c["state"] for c in pod["status"]["containerStatuses"]])
    return found


# Keys of Secrets that hold names, times and addresses. Addresses hold no passwords: precheck refuses that.
NO_SECRETS = ("endpoint", "host", "release", "url", "accessKey", "accesskey", "admin.passwordMtime")


def secrets(site: Site) -> dict[str, str]:
    """Return where every secret value comes from that exists on the site: the API, the nodes, the controller."""
    found = {}
    for secret in site.kubectl("get", "secrets", "-A")["items"]:
        for key, value in (secret.get("data") or {}).items():
            text = base64.b64decode(value).decode(errors="replace").strip()
            if key not in NO_SECRETS:
                value = text.splitlines()[1] if "-----BEGIN" in text and "CERT" not in text else text
                found[value] = f"{key} of {secret['metadata']['namespace']}/{secret['metadata']['name']}"
    for node in site.nodes:
        for path in ("/etc/rancher/k3s/token", "/etc/rancher/k3s/agent-token", "/etc/rancher/node/password"):
            found[site.ssh(node, f"cat {path} 2>/dev/null || true").strip().rpartition(":")[2]] = f"{path} of {node}"
    for line in (STATE / "kubeconfig").read_text().splitlines():
        if "client-key-data" in line:
            found[line.split()[-1]] = "the kubeconfig's key"
    # Everything that is one is long.
    return {value: place for value, place in found.items() if len(value) >= 16 and "BEGIN CERT" not in value}


@pytest.mark.parametrize("task", ["Place the image archives", "Run k3s on these files"])
def test_interrupted_first_run(site: Site, nodes_before: dict[str, dict[str, str]], task: str) -> None:
    """Ctrl-C while images travel or are imported ends the run; nothing half done is in the way of the next one."""
    assert set(nodes_before) == set(site.nodes)
    assert site.interrupt_up(task).status != 0


def test_first_run_ends_with_a_model_that_answers(site: Site) -> None:
    """`make up` installs, has the pipeline release a model, and says what runs where and where the report is."""
    run = site.up(ANSIBLE_ARGS="-vvv")
    assert "recall" in run.output
    for place in (STATE / "kubeconfig", REPORT):
        assert str(place) in run.output
    record = json.loads((STATE / "report/training.json").read_text())
    assert record["run_id"]
    for told in (record["version"], record["run_id"], record["commit"], "data:image/png;base64,"):
        assert told in REPORT.read_text()


def test_second_run_changes_nothing(site: Site) -> None:
    """Unchanged input: no change on any host, no service and no container restarted."""
    before = starts(site)
    run = site.up()
    assert set(run.changed()) >= {*site.nodes, "localhost"}
    assert set(run.changed().values()) == {0}, run.changed_tasks()
    assert starts(site) == before


def doctor(site: Site, status: int, arguments: str = "") -> set[tuple[str, str, str]]:
    """Run `make doctor`, which must end so; return severity, node and check of what it found."""
    run = site.run("make", "doctor", ANSIBLE_ARGS=arguments)
    assert run.status == status, run.output[-6000:]
    assert set(run.changed().values()) == {0}
    report = json.loads((STATE / "doctor.json").read_text())
    assert report["ok"] is (status == 0)
    for problem in report["problems"]:
        assert problem["severity"] == "ok" or problem["remedy"] in run.output, problem
    return {(problem["severity"], problem["node"], problem["check"]) for problem in report["problems"]}


def test_doctor_finds_no_error(site: Site) -> None:
    """On a healthy site it says what it has looked at, of every node and of the cluster."""
    found = doctor(site, 0)
    looked = {(node, check) for _, node, check in found}
    for node in site.nodes:
        assert looked >= {
            (node, check) for check in ("k3s", "certificates", "disk", "memory", "clock", "secret files", "node")
        }
    assert looked >= {("server-1", check) for check in ("API", "etcd", "snapshots")}
    checks = ("etcd members", "front door", "version", "workloads", "pods", "claims", "issued certificates", "images")
    # Nothing of these depends on the machine below the lab.
    assert found >= {("ok", "cluster", check) for check in checks} | {("ok", "controller", "kubeconfig")}


def test_check_mode_predicts(site: Site) -> None:
    """--check --diff reports nothing on an installed site, and names exactly what a changed value will change."""
    run = site.playbook("site", "--check", "--diff")
    assert run.status == 0, run.output[-4000:]
    assert set(run.changed().values()) == {0}, run.changed_tasks()

    changed = {
        "k3s_tls_sans": ["api.example"],
        "minio_values": {
            "podLabels": {"slipway-test": "yes"},
            "resources": {"requests": {"memory": "192Mi", "cpu": "50m"}},
        },
    }
    run = site.playbook("site", "--check", "--diff", "-e", json.dumps(changed))
    assert run.status == 0, run.output[-4000:]
    assert run.changed_tasks() == ["Write the configuration", "Run k3s on these files", "Apply the release minio"]
    assert {host: count for host, count in run.changed().items() if count} == {"server-1": 2, "localhost": 1}
    assert "api.example" in run.output


def test_bad_input_is_named(site: Site) -> None:
    """A misspelt variable stops the run before any change and says which one was meant."""
    run = site.run("make", "up", ANSIBLE_ARGS="-e minio_storage_sise=3Gi")
    assert run.status != 0
    assert "minio_storage_sise" in run.output
    assert "minio_storage_size" in run.output
    assert set(run.changed().values()) == {0}


# By which the suite knows the site.
SITE_OPTIONS = (
    f"--kubeconfig={STATE / 'kubeconfig'}",
    f"--bundle={STATE / 'bundle'}",
    f"--ca={STATE / 'ca.crt'}",
    f"--report-dir={STATE / 'report'}",
)


@pytest.mark.parametrize(
    "words",
    [
        # Those of the others hold on clusters without the rest.
        pytest.param(("tests/contract/test_kfp_runs.py",), id="contract"),
        # The rest was part of the installation.
        pytest.param(("tests/e2e", "-m", "not smoke and not train", "--train=auto", *SITE_OPTIONS), id="e2e"),
    ],
)
def test_suite(site: Site, words: tuple[str, ...]) -> None:
    """The contracts of stand-ins hold on the site; the platform survives what is done to it, and does what commits say."""
    run = site.run(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--durations=15", *words)
    print(run.output[-8000:])
    assert run.status == 0, run.output[-8000:]


class Writer(threading.Thread):
    """A client that writes ten times a second, and now and then begins anew with what its Secret has then, as pods do that are rolled."""

    def __init__(self, connect: Callable[[], AbstractContextManager[Callable[[int], object]]], refused: str) -> None:
        """`connect` opens a way to write a number; an error that `refused` matches is one of credentials."""
        super().__init__(daemon=True)
        self.connect = connect
        self.refused = re.compile(refused)
        self.over = threading.Event()
        self.number = 0
        self.written: set[int] = set()
        self.refusals: list[str] = []

    def run(self) -> None:
        while not self.over.is_set():
            # What the forwarded port loses is not confirmed, and no refusal.
            try:
                with self.connect() as write:
                    for _ in range(20):
                        self.number += 1
                        write(self.number)
                        self.written.add(self.number)
                        self.over.wait(0.1)
            except Exception as error:
                if self.refused.search(str(error)):
                    self.refusals.append(str(error))
                self.over.wait(0.1)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.join(90)


def test_credentials_change_under_clients_that_write(site: Site, tmp_path: Path) -> None:
    """Of MinIO and PostgreSQL, interrupted once: no write is refused or lost, the former ones are worth nothing, and then all is as declared."""
    installed = Installed(STATE / "kubeconfig", STATE / "bundle")
    place, bucket, prefix, schema = ("epos", "minio-epos"), "epos-data", "slipway-test/rotation/", "slipway_rotation"
    before = {each: installed.secret(*each) for each in (place, ("postgresql", "postgresql-airflow"))}
    (tmp_path / "ca.crt").write_text(before["postgresql", "postgresql-airflow"]["ca.crt"])
    confirmed = ("-e", "rotate_confirm=lab")

    def database(address: str) -> Database:
        return Database(installed, address, installed.secret("postgresql", "postgresql-airflow"), tmp_path / "ca.crt")

    with contextlib.ExitStack() as opened:
        endpoint = opened.enter_context(installed.way_to("minio.minio.svc:9000"))
        address = opened.enter_context(installed.way_to("postgresql.postgresql.svc:5432"))
        owner = database(address)
        drop = f"DROP SCHEMA IF EXISTS {schema} CASCADE"
        owner.sql(f"{drop}; CREATE SCHEMA {schema} AUTHORIZATION airflow", "airflow")
        opened.callback(owner.sql, drop, "airflow")

        def client(values: dict[str, str]) -> Minio:
            return Minio(
                endpoint=endpoint, access_key=values["accessKey"], secret_key=values["secretKey"], secure=False
            )

        @contextlib.contextmanager
        def store() -> Iterator[Callable[[int], object]]:
            minio = client(installed.secret(*place))
            yield lambda number: minio.put_object(
                bucket_name=bucket, object_name=f"{prefix}{number}", data=io.BytesIO(b"x"), length=1
            )

        @contextlib.contextmanager
        def rows() -> Iterator[Callable[[int], object]]:
            with database(address).connect(autocommit=True) as connection:
                connection.execute(f"CREATE TABLE IF NOT EXISTS {schema}.rows (number int PRIMARY KEY)")
                yield lambda number: connection.execute(f"INSERT INTO {schema}.rows VALUES (%s)", (number,))

        writers = (
            Writer(store, "InvalidAccessKeyId|SignatureDoesNotMatch|AccessDenied"),
            Writer(rows, r"authentication failed|no pg_hba\.conf entry|permission denied"),
        )
        with writers[0], writers[1]:
            words = site.playbook_words("rotate", "-e", "rotate=minio,postgresql", *confirmed)
            reached_at = "TASK [Have these components take the logins over]"
            run, reached = site.interrupt(reached_at, 5, *words, timeout=1500)
            assert reached, run.output[-6000:]
            assert "in this order: minio, postgresql. No node is touched." in " ".join(run.output.split())
            begun = installed.secret("postgresql", "postgresql-airflow")
            assert begun["username"] != before["postgresql", "postgresql-airflow"]["username"]
            run = site.playbook("rotate", "-e", "rotate=postgresql", *confirmed)
            assert run.status == 0, run.output[-6000:]
            written = [len(writer.written) for writer in writers]
            time.sleep(5)
        assert [writer.refusals for writer in writers] == [[], []]
        assert all(len(writer.written) > count for writer, count in zip(writers, written, strict=True)), written
        assert installed.secret("postgresql", "postgresql-airflow") == begun

        current = client(installed.secret(*place))
        names = [str(item.object_name) for item in current.list_objects(bucket_name=bucket, prefix=prefix)]
        assert {f"{prefix}{number}" for number in writers[0].written} <= set(names)
        assert not list(current.remove_objects(bucket_name=bucket, delete_object_list=map(DeleteObject, names)))
        with database(address).connect() as connection:
            found = {row[0] for row in connection.execute(f"SELECT number FROM {schema}.rows").fetchall()}
        assert writers[1].written <= found

        with pytest.raises(S3Error) as refused:
            list(client(before[place]).list_objects(bucket_name=bucket))
        assert refused.value.code == "InvalidAccessKeyId"
        former = before["postgresql", "postgresql-airflow"]
        with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
            owner.connect(user=former["username"], password=former["password"])
    for value in (before[place]["secretKey"], former["password"]):
        assert not any(value in each.output for each in site.runs)
    again = site.playbook("site", "--skip-tags", "verify")
    assert again.status == 0, again.output[-6000:]
    assert set(again.changed().values()) == {0}, again.changed_tasks()


def test_deleted_and_changed_objects_come_back(site: Site) -> None:
    """What somebody deleted or changed by hand in a release that is otherwise unchanged is put back, and the data is there."""
    wanted = [site.kubectl("get", kind, "minio", "-n", "minio")["spec"] for kind in ("deployment", "service")]
    site.kubectl(
        "patch", "service", "minio", "-n", "minio", "-p", '{"spec": {"ports": [{"port": 9000, "targetPort": 1}]}}'
    )
    subprocess.run(
        [*site.kubectl_words(), "delete", "deployment", "minio", "-n", "minio"], check=True, capture_output=True
    )
    run = site.playbook("platform")
    assert run.status == 0, run.output[-4000:]
    assert run.changed_tasks() == ["Put back what was deleted or changed by hand in minio"]
    assert [site.kubectl("get", kind, "minio", "-n", "minio")["spec"] for kind in ("deployment", "service")] == wanted
    assert set(site.playbook("platform").changed().values()) == {0}


def commit_of_main(site: Site) -> str:
    """Return the commit that the GitOps repository is at."""
    words = [
        "exec",
        "-n",
        "git",
        "deployment/git",
        "--",
        "git",
        "--git-dir=/repositories/platform.git",
        "rev-parse",
        "main",
    ]
    return subprocess.run([*site.kubectl_words(), *words], check=True, capture_output=True, text=True).stdout


def applications(site: Site) -> dict[str, tuple[str, str]]:
    """Return whether each Application is synced and healthy."""
    return {
        item["metadata"]["name"]: (item["status"]["sync"]["status"], item["status"]["health"]["status"])
        for item in site.kubectl("get", "applications.argoproj.io", "-n", "argocd")["items"]
    }


def test_lost_namespaces_come_back(site: Site) -> None:
    """Every commit is there again, and what Argo CD follows; only a lost authority is not replaced behind people's backs."""
    commit, followed = commit_of_main(site), applications(site)
    lost = ("argocd", "git", "front-door", "cert-manager", "kubeflow-pipelines", "airflow")
    subprocess.run([*site.kubectl_words(), "delete", "namespace", *lost], check=True, capture_output=True)

    refused = site.playbook("platform")
    assert refused.status != 0
    assert "cert_manager_accept_new_ca" in refused.output
    assert set(refused.changed().values()) == {0}
    run = site.playbook("platform", "-e", "cert_manager_accept_new_ca=true")
    assert run.status == 0, run.output[-4000:]
    assert commit_of_main(site) == commit
    assert applications(site) == followed
    assert set(site.playbook("platform").changed().values()) == {0}


def traces(site: Site, words: tuple[str, ...]) -> list[str]:
    """Return objects of the cluster and of kube-system whose names hold one of `words`."""

    def names(*arguments: str) -> list[str]:
        command = [*site.kubectl_words(), *arguments, "-o", "name"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()

    found = []
    for scope, namespaced in (([], "false"), (["-n", "kube-system"], "true")):
        kinds = names("api-resources", "--verbs=list,delete", f"--namespaced={namespaced}")
        found += names("get", ",".join(kinds), *scope)
    # Kinds stay on purpose, with the API's own note of each group of them, and so do the volumes of repository and database. Events tell
    # of what was, until they expire.
    kept = ("customresourcedefinition", "apiservice.apiregistration.k8s.io/v1", "persistentvolume/", "event")
    return [name for name in found if not name.startswith(kept) and any(word in name for word in words)]


def volume_of(site: Site, namespace: str, claim: str) -> str:
    """Return the volume of a claim."""
    volume: str = site.kubectl("get", "pvc", claim, "-n", namespace)["spec"]["volumeName"]
    return volume


def leave_half_removed(site: Site, namespace: str, release: str) -> None:
    """Put Helm's record of a release as a removal leaves it that was killed at its beginning."""
    labels = f"owner=helm,name={release},status=deployed"
    (secret,) = site.kubectl("get", "secrets", "-n", namespace, "-l", labels)["items"]
    record = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(secret["data"]["release"]))))
    record["info"]["status"] = secret["metadata"]["labels"]["status"] = "uninstalling"
    packed = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(record).encode()))).decode()
    command = [*site.kubectl_words(), "replace", "-f", "-"]
    changed = json.dumps({**secret, "data": {"release": packed}})
    subprocess.run(command, input=changed, check=True, capture_output=True, text=True)


def test_components_come_off_and_back(site: Site) -> None:
    """Nothing of an uninstalled component is left but what the run names; installing it again works, with every commit and every bucket."""
    commit, store = commit_of_main(site), volume_of(site, "minio", "minio")
    leave_half_removed(site, "cert-manager", "cert-manager")
    marks = {
        "airflow": ("airflow",),
        "postgresql": ("postgresql",),
        "kubeflow_pipelines": ("kubeflow", "ml-pipeline", "pipeline-runner", "workflow-controller"),
        # Its last users went before it.
        "minio": ("/minio",),
        "argocd": ("argocd",),
        "git": ("/git",),
        "front_door": ("front-door",),
        "cert_manager": ("cert-manager", "/slipway"),
    }
    for component, words in marks.items():
        assert traces(site, words), component
        run = site.playbook("uninstall", "-e", f"uninstall_component={component}", "-e", "uninstall_confirm=lab")
        assert run.status == 0, run.output[-4000:]
        assert not traces(site, words), component
    assert not (STATE / "ca.crt").exists()
    run = site.playbook("platform")
    assert run.status == 0, run.output[-4000:]
    assert commit_of_main(site) == commit
    assert volume_of(site, "minio", "minio") == store


def test_doctor_names_faults(site: Site) -> None:
    """A stopped agent, a cordoned node, a token that everybody may read, an image of nobody's: each is named, and gone once mended."""
    metrics = ["deployment/metrics-server", "-n", "kube-system"]

    def kubectl(*words: str) -> None:
        subprocess.run([*site.kubectl_words(), *words], check=True, capture_output=True)

    with contextlib.ExitStack() as mended:
        kubectl("set", "image", *metrics, "*=localhost/foreign:1")
        mended.callback(kubectl, "rollout", "undo", *metrics)
        kubectl("cordon", "agent-1")
        mended.callback(kubectl, "uncordon", "agent-1")
        site.ssh("server-1", "chmod 644 /etc/rancher/k3s/token")
        mended.callback(site.ssh, "server-1", "chmod 600 /etc/rancher/k3s/token")
        site.ssh("agent-1", "systemctl stop k3s-agent")
        mended.callback(site.ssh, "agent-1", "systemctl start k3s-agent")
        assert doctor(site, 2) >= {
            ("error", "agent-1", "k3s"),
            ("error", "server-1", "secret files"),
            ("error", "cluster", "workloads"),
            ("warning", "agent-1", "cordoned"),
            ("warning", "cluster", "images"),
        }
    kubectl("rollout", "status", *metrics, "--timeout=60s")
    # Where the agent was away for long its pods come back a moment after it.
    doctor(site, 0, "-e doctor_settle_seconds=60")


def interrupt_helm(site: Site) -> None:
    """Leave MinIO's release as a helm that was killed during an upgrade leaves it: pending."""
    last = site.kubectl("get", "secret", "-n", "minio", "-l", "owner=helm,name=minio,status=deployed")["items"][-1]
    release = json.loads(gzip.decompress(base64.b64decode(base64.b64decode(last["data"]["release"]))))
    release["version"] += 1
    release["info"]["status"] = "pending-upgrade"
    payload = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(release).encode()))).decode()
    labels = {**last["metadata"]["labels"], "status": "pending-upgrade", "version": str(release["version"])}
    name = f"sh.helm.release.v1.minio.v{release['version']}"
    metadata = {"name": name, "namespace": "minio", "labels": labels}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": last["type"],
        "metadata": metadata,
        "data": {"release": payload},
    }
    site.apply(secret)


def test_killed_k3s_and_lost_node(site: Site) -> None:
    """k3s killed, helm killed, the agent's machine installed anew, a pipeline under way: the same command repairs all of it."""
    # Rejected whatever comes out, and in a place of its own: production has nothing to do with it.
    parameters = {
        "domain": "lab.internal",
        "models": "s3://epos-models/test-lost/models",
        "train_steps": "40",
        "min_recall": "1",
    }
    with Pipelines.open(Installed(STATE / "kubeconfig", STATE / "bundle"), "kubeflow-pipelines") as pipelines:
        with pipelines.submit("epos", {**parameters, "checkpoint_every": "10"}) as followed:
            followed.await_log("train", "step 20", 600)
            followed.let_go()
        interrupt_helm(site)
        site.ssh("server-1", "systemctl kill --signal=KILL --kill-whom=main k3s")
        subprocess.run(["podman", "rm", "--force", "--time=0", "slipway-lab-agent-1"], check=True, capture_output=True)
        run = site.up()
        # In the repaired cluster it ends, and a failure says why.
        state = pipelines.await_end(followed.id, timeout=600)
        evidence = pipelines.evidence(followed.id)
        assert state == "SUCCEEDED" or ("task " in evidence and " failed" in evidence), evidence
    assert run.changed()["agent-1"] > 0
    assert "Drop the record of an unfinished operation on minio" in run.changed_tasks()
    ready = {
        node["metadata"]["name"]: [c["status"] for c in node["status"]["conditions"] if c["type"] == "Ready"]
        for node in site.kubectl("get", "nodes")["items"]
    }
    assert ready == {"server-1": ["True"], "agent-1": ["True"]}
    again = site.playbook("site", "--skip-tags", "verify")
    assert set(again.changed().values()) == {0}, again.changed_tasks()


# What a restored site does not have as it was: workflows, which end by themselves, and the volume that PostgreSQL is brought back on.
NOT_RESTORED = {"Job", "PersistentVolume", "Workflow", "WorkflowTaskResult", *OF_MACHINES}
# Buckets to which something is added all the time: the archive of PostgreSQL, logs.
GROWING = ("airflow-logs", "postgresql-backups")
PSQL = ("psql", "--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--dbname=airflow", "--command")


def secret_hashes(site: Site) -> dict[str, str]:
    """Return a hash of the data of every Secret but for those of machines."""
    return {
        f"{item['metadata']['namespace']}/{item['metadata']['name']}": hashlib.sha256(
            json.dumps(item.get("data"), sort_keys=True).encode()
        ).hexdigest()
        for item in site.kubectl("get", "secrets", "-A")["items"]
        # The certificate of the servers' API names their machines.
        if not item["metadata"]["name"].endswith((".node-password.k3s", "k3s-serving"))
    }


def objects(installed: Installed) -> dict[str, str]:
    """Return what each object of every bucket holds, and its content type."""
    found = {}
    with Store.open(installed, "minio", "minio-root", ("rootUser", "rootPassword")) as store:
        for bucket in store.client.list_buckets():
            if bucket.name in GROWING:
                continue
            for item in store.client.list_objects(bucket_name=bucket.name, recursive=True):
                # How a large object was cut counts into its ETag.
                etag = str(item.etag)
                held = hashlib.sha256(store.read(bucket.name, item.object_name)).hexdigest() if "-" in etag else etag
                kind = store.client.stat_object(bucket_name=bucket.name, object_name=item.object_name).content_type
                found[f"{bucket.name}/{item.object_name}"] = f"{held} {kind}"
    return found


def repository(site: Site) -> str:
    """Return every reference of the GitOps repository, and who pushed what."""
    words = ("git", "--git-dir=/repositories/platform.git")
    inside = ("git", "deployment/git", "git")
    return site.inside(*inside, *words, "for-each-ref") + site.inside(*inside, *words, "reflog", "show", "main")


def pipeline_records(installed: Installed) -> dict[str, str]:
    """Return the names of Kubeflow Pipelines' experiments and pipelines, and the states of its runs, by their ids."""
    found = {}
    with Pipelines.open(installed, "kubeflow-pipelines") as pipelines:
        for kind, key, value in (
            ("experiments", "experiment_id", "display_name"),
            ("pipelines", "pipeline_id", "display_name"),
            ("runs", "run_id", "state"),
        ):
            for item in pipelines.call("GET", kind, page_size=200).get(kind, []):
                found[item[key]] = item.get(value, "")
    return found


def held(site: Site) -> dict[str, dict[Any, str]]:
    """Return what the site holds, by what holds it."""
    installed = Installed(STATE / "kubeconfig", STATE / "bundle")
    kinds = without(listing(site), NOT_RESTORED)
    kinds.pop(("PersistentVolumeClaim", "postgresql", "postgresql-data"), None)
    airflow = Airflow(installed, FrontDoor(installed, STATE / "ca.crt"))
    return {
        "objects of the API": kinds,
        "Secrets": secret_hashes(site),
        "buckets": objects(installed),
        "repository": {"platform": repository(site)},
        "Kubeflow Pipelines": pipeline_records(installed),
        "Airflow": {each["key"]: each["value"] for each in airflow.call("GET", "/variables?limit=100")["variables"]},
        "PostgreSQL": {
            "rows": site.inside("postgresql", "postgresql-0", "postgresql", *PSQL, "SELECT sum(number) FROM kept")
        },
    }


def models(installed: Installed) -> dict[str, dict[str, int]]:
    """Return which versions of the model answer in each environment, through the front door; none where there is no service."""
    front_door = FrontDoor(installed, STATE / "ca.crt")
    return {environment: ModelService(front_door, environment).shares() for environment in ("dev", "prod")}


@pytest.mark.timeout(5400)
def test_the_whole_site_comes_back(
    site: Site, nodes_before: dict[str, dict[str, str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every machine is lost with its disks. One command on new ones: every object, Secret, row, repository and bucket is as it was."""
    installed = Installed(STATE / "kubeconfig", STATE / "bundle")
    with Store.open(installed, "epos", "minio-epos") as store:
        store.client.fput_object(
            bucket_name="epos-data",
            object_name="kept/site.py",
            file_path=__file__,
            content_type="text/x-python",
            metadata={"who": "tests"},
        )
    with Pipelines.open(installed, "kubeflow-pipelines") as pipelines:
        pipelines.call("POST", "experiments", {"display_name": "kept"})
    airflow = Airflow(installed, FrontDoor(installed, STATE / "ca.crt"))
    airflow.call("POST", "/variables", {"key": "kept", "value": "unforgotten"})
    rows = "CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number"
    site.inside("postgresql", "postgresql-0", "postgresql", *PSQL, rows)
    before, followed, answering = held(site), applications(site), models(installed)
    # What is approved for prod at this point is the business of the tests before.
    assert any(answering.values()), answering

    key, recipient = new_key(tmp_path / "key")
    archives = tmp_path / "archives"
    begun = time.monotonic()
    saved = site.playbook(
        "backup", "-e", json.dumps({"backup_recipients": [recipient], "backup_dir": str(archives), "backup_keep": 2})
    )
    backup_took = time.monotonic() - begun
    assert saved.status == 0, saved.output[-6000:]
    (archive,) = archives.iterdir()
    size = sum(path.stat().st_size for path in archive.iterdir())
    # What comes later is not in it.
    with Store.open(installed, "epos", "minio-epos") as store:
        store.client.remove_object(bucket_name="epos-data", object_name="kept/site.py")
    site.inside("postgresql", "postgresql-0", "postgresql", *PSQL, "DELETE FROM kept")

    site.wipe(*site.nodes)
    site.lab("up", "--site", "lab")
    # Bare as those were.
    nodes_before.update(node_state(site))
    words = {"restore_component": "site", "restore_confirm": "lab", "restore_from": str(archive)}
    begun = time.monotonic()
    restored = site.playbook("restore", "-e", json.dumps({**words, "backup_identity_file": str(key)}))
    restore_took = time.monotonic() - begun
    assert restored.status == 0, restored.output[-8000:]
    for run in (saved, restored):
        assert key.read_text().strip() not in run.output
    assert "make up SITE=lab" in restored.output
    # Also where the test passes.
    with capsys.disabled():
        held_then = f"{size / 1e6:.0f} MB, {len(before['buckets'])} objects in buckets"
        print(f"\nbackup: {backup_took:.0f} s, {held_then}; restore: {restore_took:.0f} s")

    up = site.playbook("site", "--skip-tags", "verify")
    assert up.status == 0, up.output[-6000:]
    after = held(site)
    for what, wanted in before.items():
        different = {name for name, value in wanted.items() if after[what].get(name) != value}
        assert not different, f"{what}: {sorted(map(str, different))[:20]}"

    def same() -> bool:
        found = (applications(site), models(Installed(STATE / "kubeconfig", STATE / "bundle")))
        assert found == (followed, answering), found
        return True

    # Argo CD looks every three minutes.
    eventually(same, 600, interval=5)
    again = site.playbook("site", "--skip-tags", "verify")
    assert set(again.changed().values()) == {0}, again.changed_tasks()


def test_no_secret_was_printed(site: Site) -> None:
    """No output of any run so far, the most verbose one included, and no report holds a generated secret, plain or encoded."""
    values = secrets(site)
    assert len(values) >= 8
    text = "".join([*(run.output for run in site.runs), REPORT.read_text()])
    shown = [place for v, place in values.items() if v in text or base64.b64encode(v.encode()).decode() in text]
    assert not shown


def test_no_secret_lies_open_on_a_node(site: Site) -> None:
    """No process has a secret in its arguments, no journal line and no file that everybody may read holds one."""
    places = {
        "arguments": "cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\\0' '\\n'",
        "journal": "journalctl --no-pager -o cat",
        "readable files": "find / -xdev -type f -perm -o+r -size -2M -not -path '/proc/*' -not -path '/sys/*' -exec cat {} + 2>/dev/null",
    }
    values = secrets(site)
    patterns = "\n".join(values)
    for node in site.nodes:
        for name, command in places.items():
            # The values travel on standard input: in an argument they would be where they must not be.
            script = f"{{ {command}; }} | grep -aoFf /dev/fd/3 3<<'END' | sort -u\n{patterns}\nEND\n"
            found = set(site.ssh(node, script).splitlines())
            shown = [place for value, place in values.items() if not found.isdisjoint(value.splitlines())]
            assert not shown, f"{node}: {name}"


def test_data_go_only_when_told(site: Site) -> None:
    """A store that others use stays; the word for keeping deletes nothing; the word for deleting leaves no volume, also of what is off."""
    words = ("-e", "uninstall_confirm=lab", "-e")
    refused = site.playbook("uninstall", *words, "uninstall_component=minio")
    assert refused.status != 0
    assert "airflow, kubeflow_pipelines, postgresql use MinIO" in " ".join(refused.output.split())
    assert set(refused.changed().values()) == {0}

    volume = volume_of(site, "git", "git-data")
    delete = ("-e", "uninstall_component=git", "-e", "uninstall_data=delete")
    refused = site.playbook("uninstall", *delete, *words[:2])
    assert refused.status != 0
    said = " ".join(refused.output.split())
    assert f"volume {volume} of claim git/git-data" in said
    assert "uninstall_confirm=git@lab" in said
    assert set(refused.changed().values()) == {0}

    kept = site.playbook("uninstall", *words, "uninstall_component=git")
    assert kept.status == 0, kept.output[-4000:]
    assert site.kubectl("get", "pv", volume)["status"]["phase"] == "Released"
    deleted = site.playbook("uninstall", *delete, "-e", "uninstall_confirm=git@lab")
    assert deleted.status == 0, deleted.output[-4000:]
    assert deleted.changed_tasks() == ["Delete its data"]
    assert volume not in [item["metadata"]["name"] for item in site.kubectl("get", "pv")["items"]]


def test_reset_leaves_the_nodes_as_they_were(site: Site, nodes_before: dict[str, dict[str, str]]) -> None:
    """reset.yml asks first; then everything that NODE_STATE lists is as before the installation."""
    refusal = site.playbook("reset")
    assert refusal.status != 0
    assert "reset_confirm=lab" in refusal.output
    assert site.kubectl("get", "nodes")["items"]

    run = site.playbook("reset", "-e", "reset_confirm=lab")
    assert run.status == 0, run.output[-4000:]
    # agent-1 was made anew since; its bare state is that of a node of the same image.
    after = node_state(site)
    for name in NODE_STATE:
        assert after["server-1"][name] == nodes_before["server-1"][name], f"server-1: {name}"
    assert site.playbook("reset", "-e", "reset_confirm=lab").changed().get("server-1") == 0


def test_down_leaves_nothing(site: Site, machine_before: dict[str, str], temporary: Path) -> None:
    """`make down` removes containers, volumes, networks, mounts, firewall rules, links and the site's files."""
    assert site.run("make", "down").status == 0
    assert machine(temporary) == machine_before
    assert not STATE.exists()
    assert not os.path.lexists(PROJECT / ".slipway/lab")
