#!/usr/bin/python
"""Documentation of the action of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: site_archive
short_description: Keep an encrypted archive of a site on the controller, and in it the cluster's snapshot and tokens
description:
  - An archive is a folder. Each file is encrypted as age does it, so that C(age -d) opens it without Slipway. M(pod_archive) and
    M(bucket_archive) add what components have.
  - What is not encrypted is in no file of the controller but, on its way to a node, in Ansible's private folder for temporary files.
  - A snapshot passes through memory. The one of k3s is compressed.
options:
  state:
    description:
      - C(begun) judges the public keys and names an archive; it makes nothing.
      - C(saved) makes the archive, as a draft without a name, with files of this node.
      - C(completed) gives the archive its name and removes the oldest ones.
      - C(checked) opens an archive and changes nothing.
      - C(placed) writes files of an archive to this node, readable for root only.
    type: str
    choices: [begun, saved, completed, checked, placed]
    required: true
  path:
    description: The archive; with C(begun) the folder that all archives are in.
    type: path
    required: true
  recipients:
    description: Public keys of age or SSH to encrypt for, with C(begun) and C(saved).
    type: list
    elements: str
    default: []
  identity_file:
    description: File with a secret key of age, or of SSH without a passphrase, with C(checked) and C(placed).
    type: path
  files:
    description: Where each file lies on this node, by its name in the archive (C(snapshot.zip), C(token), C(agent-token)).
    type: dict
    default: {}
  site:
    description: The site's name. With C(checked), an archive of another one is refused.
    type: str
  k3s:
    description: Version of k3s. With C(checked), an archive of another one is refused; empty takes any.
    type: str
    default: ""
  parts:
    description: With C(checked), what the archive must have something of.
    type: list
    elements: str
    default: []
  nodes:
    description: Names of the cluster's nodes, for C(saved).
    type: list
    elements: str
    default: []
  keep:
    description: How many archives stay in the folder, for C(completed).
    type: int
attributes:
  check_mode:
    support: full
    description: Predicts a change and makes none.
author: [Slipway]
"""

EXAMPLES = r"""
- name: Open an archive
  site_archive:
    state: checked
    path: .slipway/example/backup/20261127T120000Z
    identity_file: /secure/backup.key
    site: example
    k3s: v1.35.8+k3s1
"""

RETURN = r"""
path:
  description: The archive.
  returned: success
  type: str
removed:
  description: Names of the archives that were older than those to keep.
  returned: with C(completed)
  type: list
  elements: str
manifest:
  description: What the archive says of itself.
  returned: with C(checked)
  type: dict
"""
