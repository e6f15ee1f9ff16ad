"""What modules document alike that use the Kubernetes API."""

from __future__ import annotations


class ModuleDocFragment:
    """C(kube) is the kubeconfig, C(kube.kubectl) the program of those that reach into pods."""

    DOCUMENTATION = r"""
options:
  kubeconfig:
    description: Path of the kubeconfig file.
    type: path
    required: true
"""

    KUBECTL = r"""
options:
  kubectl:
    description: Path of the kubectl program.
    type: path
    required: true
"""
