#!/usr/bin/python
"""Module: all buckets of a MinIO, as an encrypted file of an archive."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bucket_archive
short_description: Bring every object of a MinIO in the cluster into a site's archive, and back into the store
description:
  - C(saved) encrypts all current objects of all buckets, with their content types and metadata, to a file of the archive that M(site_archive) has
    begun. It is a tar archive, written and encrypted as objects come. Former versions of objects, and tags, are not in it.
  - C(restored) writes each object of it that is not in the store as it is in the archive. Objects of the same name are overwritten, all others stay.
    Buckets that are missing are made.
  - With I(target), objects go to a bucket of another store instead, only what is new or changed, and come back from there; the archive has the
    list of them.
  - Nothing of it is on the controller unencrypted, nor in memory but for a piece.
  - Runs on the controller and reaches MinIO by C(kubectl port-forward), which ends with the task.
extends_documentation_fragment: [kube, kube.kubectl]
options:
  namespace:
    description: Namespace of MinIO.
    type: str
    default: minio
  service:
    description: Name of MinIO's S3 Service.
    type: str
    default: minio
  port:
    description: Port of the Service.
    type: int
    default: 9000
  root_secret:
    description: Secret in I(namespace) with the root credentials, under the keys C(rootUser) and C(rootPassword).
    type: str
    default: minio-root
  state:
    description: Which way.
    type: str
    choices: [saved, restored]
    required: true
  path:
    description: The archive.
    type: path
    required: true
  recipients:
    description: Public keys to encrypt for, with C(saved).
    type: list
    elements: str
    default: []
  identity_file:
    description: File with a secret key, with C(restored).
    type: path
  target:
    description: A bucket of another store for the objects. It must exist. Objects lie there as that store keeps them, without encryption of ours.
    type: dict
    suboptions:
      endpoint:
        description: Where the store is, as C(host:port).
        type: str
        required: true
      bucket:
        description: The bucket.
        type: str
        required: true
      prefix:
        description: What the names of the objects begin with there, before their own bucket.
        type: str
        required: true
      access_key_file:
        description: File on the controller with the access key.
        type: path
        required: true
      secret_key_file:
        description: File on the controller with the secret key.
        type: path
        required: true
      tls:
        description: Whether the store is reached over TLS.
        type: bool
        default: true
      ca:
        description: File with the certificate of who signed the store's; empty for what the system trusts.
        type: str
        default: ""
  timeout:
    description: Seconds to wait until MinIO answers.
    type: int
    default: 60
attributes:
  check_mode:
    support: full
    description: Predicts a change and makes none.
  diff_mode:
    support: none
author: Slipway
"""

EXAMPLES = r"""
- name: Bring the objects back
  bucket_archive:
    kubeconfig: "{{ slipway_kubeconfig }}"
    kubectl: "{{ slipway_kubectl }}"
    state: restored
    path: .slipway/example/backup/20261127T120000Z
    identity_file: /secure/backup.key
"""

RETURN = r"""
buckets:
  description: How many buckets went through.
  returned: success, but for check mode
  type: int
objects:
  description: How many objects.
  returned: success, but for check mode
  type: int
size:
  description: How many bytes they have together.
  returned: success, but for check mode
  type: int
newer:
  description: How many came back as they are in the other store now, as they have changed since the archive was made.
  returned: success, but for check mode
  type: int
same:
  description: How many of them were in the store as they are in the archive.
  returned: success, but for check mode
  type: int
"""

import tarfile
from dataclasses import asdict
from pathlib import Path
from typing import IO

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway import bucket_archive, secrets
from ansible.module_utils.slipway.age import decrypt, encrypt, read_identities, read_recipients
from ansible.module_utils.slipway.backup import SUFFIX, add_part, draft
from ansible.module_utils.slipway.bucket_archive import Count, Mirror
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.minio_access import Login
from ansible.module_utils.slipway.port_forward import port_forward

PART, FILE, LIST = "minio", "minio.tar", "minio.jsonl"


def _key(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise SlipwayError(f"the key of the other store: {error}") from error


def _mirror(module: AnsibleModule) -> Mirror | None:
    """The place in another store, if that is where objects go."""
    from ansible.module_utils.slipway.minio_client import MinioStore

    if not (target := module.params["target"]):
        return None
    login = Login(_key(target["access_key_file"]), _key(target["secret_key_file"]))
    module.no_log_values.add(login.secret_key)
    store = MinioStore(target["endpoint"], login, target["tls"], target["ca"] or None)
    with store.errors():
        if not store.has_bucket(target["bucket"]):
            raise SlipwayError(f"{target['endpoint']} has no bucket {target['bucket']}: make it there")
    return Mirror(store, target["bucket"], target["prefix"])


def run(module: AnsibleModule) -> Count:
    params = module.params
    namespace, name = params["namespace"], params["root_secret"]
    values = secrets.read(KubeClient(params["kubeconfig"]), namespace, name, ["rootUser", "rootPassword"])
    if values is None:
        raise SlipwayError(f"there is no Secret {namespace}/{name}")
    module.no_log_values.add(values["rootPassword"])
    # Imported here, as only a real server needs the SDK.
    from ansible.module_utils.slipway.minio_client import MinioStore

    mirror, archive = _mirror(module), Path(params["path"])
    file = LIST if mirror else FILE
    if params["state"] == "restored" and not (archive / f"{file}{SUFFIX}").exists():
        raise SlipwayError(
            f"{archive} has no {file}: its objects are "
            + ("in itself; leave the target out" if mirror else "in another store; name it by the target")
        )
    target = f"service/{params['service']}"
    with port_forward(params["kubectl"], params["kubeconfig"], namespace, target, params["port"]) as address:
        store = MinioStore(address, Login(values["rootUser"], values["rootPassword"]))
        store.await_ready(params["timeout"])
        with store.errors():
            if params["state"] == "restored":
                identities = read_identities(Path(params["identity_file"]))

                def back(stream: IO[bytes]) -> Count:
                    if mirror:
                        return bucket_archive.restore_mirrored(store, mirror, stream)
                    return bucket_archive.restore(store, stream)

                return decrypt(archive / f"{file}{SUFFIX}", identities, back)

            def out(stream: IO[bytes]) -> Count:
                return (
                    bucket_archive.save_mirrored(store, mirror, stream)
                    if mirror
                    else bucket_archive.save(store, stream)
                )

            recipients = read_recipients(params["recipients"])
            digest, count = encrypt(draft(archive) / f"{file}{SUFFIX}", recipients, out)
    add_part(archive, PART, {file: digest}, {"buckets": count.buckets, "objects": count.objects, "size": count.size})
    return count


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "kubeconfig": {"type": "path", "required": True},
            "kubectl": {"type": "path", "required": True},
            "namespace": {"type": "str", "default": "minio"},
            "service": {"type": "str", "default": "minio"},
            "port": {"type": "int", "default": 9000},
            # The name of a Secret, not its content.
            "root_secret": {"type": "str", "default": "minio-root", "no_log": False},
            "state": {"type": "str", "choices": ["saved", "restored"], "required": True},
            "path": {"type": "path", "required": True},
            "recipients": {"type": "list", "elements": "str", "default": []},
            "identity_file": {"type": "path"},
            "target": {
                "type": "dict",
                "options": {
                    "endpoint": {"type": "str", "required": True},
                    "bucket": {"type": "str", "required": True},
                    "prefix": {"type": "str", "required": True},
                    # Names of files, not their contents.
                    "access_key_file": {"type": "path", "required": True, "no_log": False},
                    "secret_key_file": {"type": "path", "required": True, "no_log": False},
                    "tls": {"type": "bool", "default": True},
                    "ca": {"type": "str", "default": ""},
                },
            },
            "timeout": {"type": "int", "default": 60},
        },
        required_if=[("state", "saved", ["recipients"]), ("state", "restored", ["identity_file"])],
        supports_check_mode=True,
    )
    if module.check_mode:
        module.exit_json(changed=True)
    try:
        count = run(module)
    except (SlipwayError, OSError, tarfile.TarError) as error:
        module.fail_json(msg=str(error))
    changed = module.params["state"] == "saved" or count.objects > count.same
    module.exit_json(changed=changed, **asdict(count))


if __name__ == "__main__":
    main()
