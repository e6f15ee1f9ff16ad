"""The tenants of a store, as all its modules take them."""

from __future__ import annotations


class ModuleDocFragment:
    """Each module uses what concerns it; the list is the same for all."""

    DOCUMENTATION = r"""
options:
  tenants:
    description: Who has which buckets and keys.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: Name of the tenant and of its policy.
        type: str
        required: true
      buckets:
        description: Buckets that belong to this tenant alone, to read and write.
        type: list
        elements: str
        default: []
      read:
        description: Buckets of other tenants that this one may list and read.
        type: list
        elements: str
        default: []
      expire:
        description: What is deleted after a time.
        type: list
        elements: dict
        default: []
        suboptions:
          bucket:
            description: A bucket of this tenant.
            type: str
            required: true
          prefix:
            description: How the names of the objects begin; empty for all.
            type: str
            default: ""
          days:
            description: Days after an object was written.
            type: int
            required: true
      versioned:
        description: Buckets of this tenant that keep versions.
        type: list
        elements: str
        default: []
      expire_versions:
        description: What is deleted a time after it was replaced or deleted.
        type: list
        elements: dict
        default: []
        suboptions:
          bucket:
            description: One of I(versioned).
            type: str
            required: true
          prefix:
            description: How the names of the objects begin; empty for all.
            type: str
            default: ""
          days:
            description: Days after that.
            type: int
            required: true
      quota:
        description: How much a bucket may hold.
        type: list
        elements: dict
        default: []
        suboptions:
          bucket:
            description: A bucket of this tenant.
            type: str
            required: true
          size:
            description: A Kubernetes quantity; 0 takes the quota away.
            type: str
            required: true
      secret:
        description: Secret with the user's credentials, under the keys C(accessKey) and C(secretKey).
        type: dict
        required: true
        suboptions:
          namespace:
            description: Namespace of the Secret.
            type: str
            required: true
          name:
            description: Name of the Secret.
            type: str
            required: true
      copies:
        description: Namespaces where the module M(minio_tenants) keeps a copy of the Secret.
        type: list
        elements: str
        default: []
"""
