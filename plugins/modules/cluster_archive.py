#!/usr/bin/python
"""Documentation of the action of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: cluster_archive
short_description: Keep a snapshot of the datastore and its tokens in an encrypted archive on the controller
description:
  - Each file is encrypted as C(ansible-vault encrypt) does it, so that C(ansible-vault decrypt) opens it without Slipway.
  - What is not encrypted is in no file of the controller but, on its way to a node, in Ansible's private folder for temporary files.
  - A snapshot passes through memory, several times its size. The one of k3s is compressed.
options:
  state:
    description:
      - C(saved) reads files of this node and writes an archive with them.
      - C(checked) opens an archive whole and changes nothing.
      - C(placed) writes files of an archive to this node, readable for root only.
    type: str
    choices: [saved, checked, placed]
    required: true
  path:
    description: The archive; with C(saved) the folder that all archives are in.
    type: path
    required: true
  password_file:
    description: File with the password of the archive, or a program that prints it, as C(ansible-vault --vault-password-file) takes it.
    type: path
    required: true
  files:
    description: Where each file lies on this node, by its name in the archive (C(snapshot.zip), C(token), C(agent-token)).
    type: dict
    default: {}
  site:
    description: The site's name. With C(checked), an archive of another one is refused.
    type: str
  k3s:
    description: Version of k3s. With C(checked), an archive of another one is refused.
    type: str
  nodes:
    description: Names of the cluster's nodes, for C(saved).
    type: list
    elements: str
    default: []
  keep:
    description: How many archives stay in the folder, for C(saved).
    type: int
attributes:
  check_mode:
    support: full
    description: Predicts a change and makes none.
author: [Slipway]
"""

EXAMPLES = r"""
- name: Open an archive
  cluster_archive:
    state: checked
    path: .slipway/example/backup/20261127T120000Z
    password_file: /secure/backup-password
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
  returned: with C(saved)
  type: list
  elements: str
manifest:
  description: What the archive says of itself.
  returned: with C(checked)
  type: dict
"""
