#!/usr/bin/python
"""Module: judge a running cluster."""

from __future__ import annotations

DOCUMENTATION = r"""
module: doctor_report
short_description: Report every fault of a running cluster in one table
description:
  - Judges the results of M(doctor_probe), what the API tells, the kubeconfig and the bundle. What cannot be asked is a fault of its own, and
    the rest is judged without it.
  - Its action part collects the nodes, prints the table, and fails after it if there is an error.
  - Writes the report as JSON; changes nothing else. Runs on the controller.
options:
  nodes:
    description: The hosts and what came of looking at them. Collected by the action part.
    type: list
    elements: dict
    default: []
  limits:
    description: Thresholds; the role C(doctor), whose options these are with its prefix, says what each means.
    type: dict
    suboptions:
      certificate_days:
        description: Days before its end from which on a certificate is a warning.
        type: int
        default: 30
      certificate_error_days:
        description: Days before its end from which on it is an error.
        type: int
        default: 7
      authority_days:
        description: Days before its end from which on an authority is a warning.
        type: int
        default: 180
      etcd_percent:
        description: Part of its quota from which on the size of the datastore is a warning.
        type: int
        default: 75
      snapshot_hours:
        description: Age from which on the newest snapshot of a server is a warning.
        type: float
        default: 25
      max_clock_skew_seconds:
        description: Seconds that the clocks of two nodes may differ.
        type: float
        default: 2.0
      min_free_percent:
        description: Free part of a file system below which it is a warning.
        type: int
        default: 15
      min_memory_mb:
        description: Available memory, in MiB, below which it is a warning.
        type: int
        default: 256
      restarts:
        description: Restarts of a container or of k3s from which on they are a warning.
        type: int
        default: 5
  kubeconfig:
    description: Path of the kubeconfig file; it need not be there.
    type: path
    required: true
  kubectl:
    description: How commands that use the API begin, in remedies.
    type: str
    default: kubectl
  playbook:
    description: How commands that run a playbook begin, in remedies.
    type: str
    default: ansible-playbook playbooks/
  bundle:
    description: Directory of the bundle; only its manifest is read.
    type: path
    required: true
  unpinned:
    description: Image references that the release has besides those of the bundle.
    type: list
    elements: str
    default: []
  namespaces:
    description: Namespaces of k3s and the platform. Every workload in them must be ready, and run images of the bundle.
    type: list
    elements: str
    default: []
  expect:
    description: Single workloads that must be there, as C(namespace/Kind/name).
    type: list
    elements: str
    default: []
  domain:
    description: Domain of the front door; empty where there is none.
    type: str
    default: ""
  authority:
    description: File with the certificate of the site's own authority; it need not be there.
    type: path
  settle:
    description: Seconds to give workloads, and nodes where k3s runs, before those that are not ready are faults.
    type: int
    default: 0
  report:
    description: File for the report.
    type: path
    required: true
attributes:
  check_mode:
    support: full
    description: The same; the report is written, too.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Report
  doctor_report:
    kubeconfig: "{{ slipway_kubeconfig }}"
    bundle: "{{ slipway_bundle_dir }}"
    namespaces: [kube-system]
    report: "{{ slipway_state_dir }}/doctor.json"
  delegate_to: localhost
  run_once: true
"""

RETURN = r"""
table:
  description: The report for a person.
  returned: always
  type: str
problems:
  description: Severity (error, warning or ok), node, check, found, wanted and remedy of each finding.
  returned: always
  type: list
  elements: dict
errors:
  description: Number of errors.
  returned: always
  type: int
"""

import base64
import json
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.bundle import read_manifest
from ansible.module_utils.slipway.certificates import utc_now
from ansible.module_utils.slipway.doctor import CLUSTER, Limits, Look, Site, judge_nodes, lifetime, runs, summary_line
from ansible.module_utils.slipway.doctor_cluster import Cluster, judge_cluster
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.files import write_atomically
from ansible.module_utils.slipway.gpus import Declared
from ansible.module_utils.slipway.kube import Kube, KubeClient, KubeError, items
from ansible.module_utils.slipway.preflight import CONTROLLER, Node, in_order, table
from ansible.module_utils.slipway.workloads import Wanted, await_ready, parse_expected, read_nodes

# For one answer of the API. One that is there answers at once; one that is not must not hold up the rest.
API_SECONDS = 10
API_PORT = 6443
Connect = Callable[..., Kube]
# On a command line they are given as texts.
LIMITS = {each.name: {"type": each.type, "default": each.default} for each in fields(Limits)}


def archive_images(path: Path) -> list[str]:
    """References of the images in an archive as C(docker save) makes it. Raises SlipwayError."""
    try:
        with tarfile.open(path) as archive:
            stream = archive.extractfile("manifest.json")
            return [str(tag) for image in json.load(stream) for tag in image["RepoTags"] or []] if stream else []
    except (OSError, KeyError, TypeError, ValueError, tarfile.TarError) as error:
        raise SlipwayError(f"{path}: cannot be read: {error}") from error


def read_bundle(path: Path, look: Look) -> tuple[str, frozenset[str]]:
    """Version of k3s and references of the images in a bundle; without the latter nothing can be compared with them."""
    try:
        manifest = read_manifest(path)
        images = {str(image) for image in manifest["images"].values()}
        for artifact in manifest["artifacts"]:
            listed = artifact.get("images") or []
            # Of archives of others the references are not in the manifest.
            if artifact["kind"] == "images" and not listed:
                listed = archive_images(path / artifact["path"])
            images.update(listed)
    except SlipwayError as error:
        wanted = "a bundle, to compare versions and images with"
        look.warn("bundle", str(error), wanted, "make bundle, or carry a whole one in again")
        return "", frozenset()
    return str(manifest["versions"].get("k3s", "")), frozenset(images)


def judge_controller(params: dict[str, Any], look: Look, site: Site, limits: Limits, now: datetime) -> None:
    """The credentials and the authority that lie on the controller."""
    again = f"{site.playbook}cluster.yml takes a new one, after k3s was started anew on that server"
    try:
        config = yaml.safe_load(Path(params["kubeconfig"]).read_text())
        pem = base64.b64decode(config["users"][0]["user"]["client-certificate-data"]).decode()
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        # Without one, or with a token inside, the API is asked all the same.
        pem = ""
    if pem and (age := lifetime(pem, now)):
        if severity := age.severity(*limits.certificates):
            look.add(
                severity, "kubeconfig", f"its certificate {age}", f"at least {limits.certificate_days} days", again
            )
        look.well("kubeconfig", f"its certificate {age}")
    if params["authority"] and Path(params["authority"]).is_file():
        age = lifetime(Path(params["authority"]).read_text(), now)
        if age and (severity := age.severity(*limits.authorities)):
            remedy = "docs/operations.md, The front door: another authority"
            look.add(
                severity, "authority", f"{params['authority']} {age}", f"at least {limits.authority_days} days", remedy
            )
        elif age:
            look.well("authority", f"that of the site's certificates {age}")


def connect(
    params: dict[str, Any], nodes: Sequence[Node], look: Look, site: Site, client: Connect = KubeClient
) -> Kube | None:
    """The API by the kubeconfig, else by any server that answers; None where there is none."""
    remedy = f"{site.playbook}cluster.yml takes it from a server"
    if not Path(params["kubeconfig"]).is_file():
        look.error("API", f"there is no {params['kubeconfig']}", "the kubeconfig of this site", remedy)
        return None
    rest = "; nodes, workloads, claims and images were not looked at"
    try:
        kube = client(params["kubeconfig"], API_SECONDS)
        kube.get("/version")
        return kube
    except KubeError as error:
        failure = error
    if failure.status:
        look.error("API", f"{failure}{rest}", "an answer", f"if the kubeconfig is not accepted any more: {remedy}")
        return None
    for node in nodes:
        if node.role != "server" or not node.address:
            continue
        host = f"https://{node.address}:{API_PORT}"
        try:
            kube = client(params["kubeconfig"], API_SECONDS, host=host)
            kube.get("/version")
        except KubeError:
            continue
        found = f"{failure}; asked {node.name} instead"
        look.error("API", found, "an answer at the address in the kubeconfig", f"mend what is there, or {remedy}")
        return kube
    own = [node.name for node in nodes if node.probe and (node.probe["api"] or {}).get("status") == 200]
    remedy = (
        f"{', '.join(own)} answer on their own machines: look for a firewall, a route or an address that is between"
        if own
        else "start k3s on the servers, see above"
    )
    look.error("API", f"{failure}{rest}", "an answer", remedy)
    return None


def read_cluster(kube: Kube, params: dict[str, Any], nodes: Sequence[Node], look: Look) -> Cluster | None:
    """What the API tells; None where it stops answering meanwhile."""
    wanted = Wanted(
        namespaces=tuple(params["namespaces"]),
        # One that is down is not waited for.
        nodes=tuple(node.name.lower() for node in nodes if node.probe and runs(node.probe)),
        expect=tuple(parse_expected(text) for text in params["expect"]),
    )
    try:
        # First, as it may wait.
        waiting = await_ready(kube, wanted, params["settle"])
        return Cluster(
            nodes=read_nodes(kube),
            pods=items(kube, "/api/v1/pods"),
            claims=items(kube, "/api/v1/persistentvolumeclaims"),
            classes=items(kube, "/apis/storage.k8s.io/v1/storageclasses"),
            certificates=items(kube, "/apis/cert-manager.io/v1/certificates"),
            waiting=waiting,
        )
    except KubeError as error:
        remedy = "run it again; on the servers: journalctl -u k3s -n 50"
        look.error("API", f"it stopped answering: {error}", "answers", remedy)
        return None


def run(params: dict[str, Any], client: Connect = KubeClient) -> dict[str, Any]:
    """The module's result. Raises SlipwayError, OSError when the report itself cannot be made."""
    now = utc_now()
    limits = Limits(**params["limits"])
    nodes = [
        Node(**{**item, "kubelet_args": tuple(item["kubelet_args"]), "disable": (), "gpus": Declared()})
        for item in params["nodes"]
        if not item["absent"]
    ]
    look = Look(CONTROLLER)
    version, images = read_bundle(Path(params["bundle"]), look)
    site = Site(
        playbook=params["playbook"],
        kubectl=params["kubectl"],
        version=version,
        images=images | set(params["unpinned"]) if images else images,
        domain=params["domain"],
        namespaces=tuple(params["namespaces"]),
    )
    judge_controller(params, look, site, limits, now)
    kube = connect(params, nodes, look, site, client)
    cluster = read_cluster(kube, params, nodes, look) if kube else None
    problems = [*look.found, *judge_nodes(nodes, site, limits, now)]
    summary = {node.name: summary_line(node, now) for node in nodes}
    if cluster:
        problems += judge_cluster(nodes, cluster, site, limits, now)
        summary[CLUSTER] = f"{len(cluster.nodes)} nodes, {len(cluster.pods)} pods, {len(cluster.claims)} claims"
    problems = in_order(problems)
    number = Counter(problem.severity for problem in problems)
    report = {
        "ok": not number["error"],
        "time": now.isoformat(timespec="seconds"),
        "errors": number["error"],
        "warnings": number["warning"],
        "well": number["ok"],
        "problems": [asdict(problem) for problem in problems],
    }
    write_atomically(Path(params["report"]), json.dumps(report, indent=2) + "\n")
    return {
        "changed": False,
        "errors": number["error"],
        "problems": report["problems"],
        "table": table(problems, summary, width=160, title="doctor"),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "nodes": {"type": "list", "elements": "dict", "default": []},
            "limits": {"type": "dict", "options": LIMITS, "apply_defaults": True},
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "str", "default": "kubectl"},
            "playbook": {"type": "str", "default": "ansible-playbook playbooks/"},
            "bundle": {"type": "path", "required": True},
            "unpinned": {"type": "list", "elements": "str", "default": []},
            "namespaces": {"type": "list", "elements": "str", "default": []},
            "expect": {"type": "list", "elements": "str", "default": []},
            "domain": {"type": "str", "default": ""},
            "authority": {"type": "path"},
            "settle": {"type": "int", "default": 0},
            "report": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module.params)
    except (SlipwayError, OSError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()
