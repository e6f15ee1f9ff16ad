"""What a cluster holds, to be compared with what a restored one does, and keys for the archive between them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pyrage

from .conftest import Site

# What others make anew at any time, by their nature.
VOLATILE = {"CertificateSigningRequest", "ETCDSnapshotFile", "EndpointSlice", "Endpoints", "Event", "Lease", "Pod"}
# What belongs to a machine.
OF_MACHINES = {"CSINode", "Node"}
Listing = dict[tuple[str, str, str], str]


def listing(site: Site) -> Listing:
    """Identity of every object of every kind, but for what is volatile and the passwords of machines."""
    words = [*site.kubectl_words(), "api-resources", "--verbs=list", "--output=name"]
    # It fails while metrics, which are none of the objects, are not served yet.
    kinds = subprocess.run(words, check=False, capture_output=True, text=True).stdout.split()
    kinds = [kind for kind in kinds if not kind.endswith(".metrics.k8s.io")]
    found = {}
    for item in site.kubectl("get", ",".join(kinds), "--all-namespaces")["items"]:
        metadata = item["metadata"]
        if item["kind"] not in VOLATILE and not metadata["name"].endswith(".node-password.k3s"):
            found[item["kind"], metadata.get("namespace", ""), metadata["name"]] = metadata.get("uid", "")
    return found


def without(listed: Listing, kinds: set[str]) -> Listing:
    """A listing without some kinds."""
    return {key: uid for key, uid in listed.items() if key[0] not in kinds}


def new_key(path: Path) -> tuple[Path, str]:
    """Write a secret key as age-keygen does; return its file and the public one."""
    key = pyrage.x25519.Identity.generate()
    path.write_text(f"{key}\n")
    path.chmod(0o600)
    return path, str(key.to_public())
