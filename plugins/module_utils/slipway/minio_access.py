"""Buckets, users and policies of MinIO: each tenant may use its own buckets, read those that are named, and nothing else."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol

from ansible.module_utils.slipway.errors import SlipwayError

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9.-]{1,61})[a-z0-9]")
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# MinIO refuses shorter ones (internal/auth/credentials.go).
_MIN_ACCESS_KEY, _MIN_SECRET_KEY = 3, 8

# How modules take a tenant.
TENANT_OPTIONS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "buckets": {"type": "list", "elements": "str", "default": []},
    "read": {"type": "list", "elements": "str", "default": []},
    "expire": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {
            "bucket": {"type": "str", "required": True},
            "prefix": {"type": "str", "default": ""},
            "days": {"type": "int", "required": True},
        },
    },
    # The name of a Secret, not its content.
    "secret": {
        "type": "dict",
        "required": True,
        "no_log": False,
        "options": {"namespace": {"type": "str", "required": True}, "name": {"type": "str", "required": True}},
    },
    "copies": {"type": "list", "elements": "str", "default": []},
}


@dataclass(frozen=True, order=True)
class Expiry:
    """Objects of a bucket below `prefix` that are deleted `days` after they were written."""

    prefix: str
    days: int


@dataclass(frozen=True)
class Tenant:
    """Someone with buckets of its own, or others' to read; its policy has the same name. `expire` is by bucket."""

    name: str
    buckets: tuple[str, ...]
    secret_namespace: str
    secret_name: str
    read: tuple[str, ...] = ()
    expire: Mapping[str, tuple[Expiry, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Login:
    """Credentials of one MinIO user."""

    access_key: str
    secret_key: str = field(repr=False)


@dataclass(frozen=True)
class User:
    """A user as MinIO knows it."""

    policies: frozenset[str]
    enabled: bool


class View(Protocol):
    """What can be seen of a MinIO server."""

    def has_bucket(self, bucket: str) -> bool: ...

    def policy(self, name: str) -> Mapping[str, Any] | None:
        """The policy's document, None where there is none."""

    def user(self, access_key: str) -> User | None: ...

    def accepts(self, login: Login) -> bool:
        """Whether the server takes this secret key for an existing, enabled user."""

    def expiry(self, bucket: str) -> frozenset[Expiry]:
        """What was set by `set_expiry`; rules of others do not count."""


class Store(View, Protocol):
    """What can be done to a MinIO server."""

    def make_bucket(self, bucket: str) -> None: ...

    def set_policy(self, name: str, document: Mapping[str, Any]) -> None: ...

    def set_user(self, login: Login) -> None:
        """Make the user or set its secret key; it is enabled afterwards."""

    def attach(self, access_key: str, policy: str) -> None:
        """Give the user this policy in place of all others."""

    def set_expiry(self, bucket: str, wanted: frozenset[Expiry]) -> None:
        """Have these, and no others that were set so before, expire; rules of others stay."""


class Nothing:
    """The `View` of a server that is not installed yet."""

    def has_bucket(self, bucket: str) -> bool:
        return False

    def policy(self, name: str) -> Mapping[str, Any] | None:
        return None

    def user(self, access_key: str) -> User | None:
        return None

    def accepts(self, login: Login) -> bool:
        return False

    def expiry(self, bucket: str) -> frozenset[Expiry]:
        return frozenset()


@dataclass(frozen=True)
class Change:
    """Something to do, and how a person calls it."""

    text: str
    do: Callable[[Store], None]


def read_tenant(item: Mapping[str, Any]) -> Tenant:
    """A tenant as a site writes it; what it leaves out is empty."""
    expire: dict[str, tuple[Expiry, ...]] = {}
    for rule in item.get("expire") or []:
        expire[rule["bucket"]] = (
            *expire.get(rule["bucket"], ()),
            Expiry(str(rule.get("prefix") or ""), int(rule["days"])),
        )
    own, read = (tuple(str(bucket) for bucket in item.get(key) or []) for key in ("buckets", "read"))
    return Tenant(str(item["name"]), own, item["secret"]["namespace"], item["secret"]["name"], read, expire)


def problems(tenants: Sequence[Tenant]) -> list[str]:
    """Everything wrong with the list itself, each with the tenant's name."""
    found: list[str] = []
    owner: dict[str, str] = {}
    secrets: dict[tuple[str, str], str] = {}
    names: set[str] = set()
    for tenant in tenants:
        if not _TENANT.fullmatch(tenant.name):
            found.append(f"tenant {tenant.name!r}: the name must be lower case letters, digits and hyphens")
        if tenant.name in names:
            found.append(f"tenant {tenant.name!r} is listed twice")
        names.add(tenant.name)
        place = (tenant.secret_namespace, tenant.secret_name)
        if place in secrets:
            found.append(
                f"tenant {tenant.name!r}: Secret {'/'.join(place)} has the credentials of tenant {secrets[place]!r} already"
            )
        secrets.setdefault(place, tenant.name)
        if not tenant.buckets and not tenant.read:
            found.append(f"tenant {tenant.name!r} has no bucket, neither of its own nor to read")
        for bucket in tenant.buckets:
            if fault := bucket_fault(bucket):
                found.append(f"tenant {tenant.name!r}: bucket {bucket!r} {fault}")
            if bucket in owner:
                found.append(f"tenant {tenant.name!r}: bucket {bucket!r} belongs to tenant {owner[bucket]!r} already")
            owner.setdefault(bucket, tenant.name)
    for tenant in tenants:
        for bucket in tenant.read:
            if bucket not in owner:
                likely = get_close_matches(bucket, sorted(owner), n=1)
                hint = f"; did you mean {likely[0]}?" if likely else ""
                found.append(f"tenant {tenant.name!r}: read: bucket {bucket!r} belongs to no tenant{hint}")
            elif bucket in tenant.buckets:
                found.append(f"tenant {tenant.name!r}: read: bucket {bucket!r} is its own, to read and write")
        found += _expire_problems(tenant)
    return found


def _expire_problems(tenant: Tenant) -> list[str]:
    found: list[str] = []
    for bucket, rules in tenant.expire.items():
        where = f"tenant {tenant.name!r}: expire: bucket {bucket!r}"
        if bucket not in tenant.buckets:
            found.append(f"{where} is not its own")
        for rule in rules:
            if rule.days < 1:
                found.append(f"{where}: days is {rule.days}, not at least 1; leave the rule out to keep everything")
            if rule.prefix.startswith("/"):
                found.append(f"{where}: prefix {rule.prefix!r} begins with a slash, which no object's name does")
        prefixes = [rule.prefix for rule in rules]
        found += [
            f"{where}: prefix {each!r} is given twice" for each in sorted(set(prefixes)) if prefixes.count(each) > 1
        ]
    return found


def bucket_fault(name: str) -> str:
    """Why S3 refuses a bucket name; empty when it does not."""
    if not 3 <= len(name) <= 63:
        return "must have 3 to 63 characters"
    if not _BUCKET.fullmatch(name):
        return "may hold lower case letters, digits, dots and hyphens only, a letter or digit at both ends"
    if ".." in name or ".-" in name or "-." in name:
        return "must not have a dot beside a dot or hyphen"
    try:
        ipaddress.IPv4Address(name)
    except ValueError:
        return ""
    return "must not look like an IP address"


def login_problems(logins: Mapping[str, Login], root: Login) -> list[str]:
    """What is wrong with the credentials of the tenants (by tenant name); values are not named."""
    found: list[str] = []
    seen: dict[str, str] = {root.access_key: "MinIO's root user"}
    for tenant, login in logins.items():
        if len(login.access_key) < _MIN_ACCESS_KEY:
            found.append(f"tenant {tenant!r}: accessKey needs at least {_MIN_ACCESS_KEY} characters")
        if len(login.secret_key) < _MIN_SECRET_KEY:
            found.append(f"tenant {tenant!r}: secretKey needs at least {_MIN_SECRET_KEY} characters")
        if login.access_key in seen:
            found.append(f"tenant {tenant!r}: accessKey is the same as that of {seen[login.access_key]}")
        seen.setdefault(login.access_key, f"tenant {tenant!r}")
    return found


def policy_document(buckets: Sequence[str], read: Sequence[str] = ()) -> dict[str, Any]:
    """The IAM policy to list, read, write and delete objects of `buckets`, to list and read those of `read`, and nothing else."""
    statements = []
    if buckets:
        see, use = ["s3:ListBucketMultipartUploads"], ["s3:AbortMultipartUpload", "s3:DeleteObject"]
        statements += _statements(buckets, see, [*use, "s3:ListMultipartUploadParts", "s3:PutObject"])
    if read:
        statements += _statements(read, [], [])
    return {"Version": "2012-10-17", "Statement": statements}


def _statements(buckets: Sequence[str], see: Sequence[str], use: Sequence[str]) -> list[dict[str, Any]]:
    """To list and read, and the further actions `see` on the buckets and `use` on their objects."""
    return [
        {
            "Effect": "Allow",
            "Action": sorted(["s3:GetBucketLocation", "s3:ListBucket", *see]),
            "Resource": [f"arn:aws:s3:::{bucket}" for bucket in sorted(buckets)],
        },
        {
            "Effect": "Allow",
            "Action": sorted(["s3:GetObject", *use]),
            "Resource": [f"arn:aws:s3:::{bucket}/*" for bucket in sorted(buckets)],
        },
    ]


def _canonical(document: Mapping[str, Any]) -> str:
    """A text that is equal for policies that mean the same: MinIO gives lists back in another order."""

    def order(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: order(item) for key, item in sorted(value.items())}
        if isinstance(value, list):
            return sorted((order(item) for item in value), key=json.dumps)
        return value

    return json.dumps(order(document))


def plan(view: View, tenants: Sequence[Tenant], logins: Mapping[str, Login]) -> list[Change]:
    """The changes that bring the server to what `tenants` say, in the order to make them.

    Nothing is ever removed: buckets hold data. A tenant without a login counts as one without a user.
    """
    changes: list[Change] = []
    for tenant in tenants:
        for bucket in tenant.buckets:
            if not view.has_bucket(bucket):
                changes.append(Change(f"bucket {bucket} made", partial(_make_bucket, bucket)))
            due = frozenset(tenant.expire.get(bucket, ()))
            if view.expiry(bucket) != due:
                changes.append(Change(f"bucket {bucket}: expiry set", partial(_set_expiry, bucket, due)))
        wanted, current = policy_document(tenant.buckets, tenant.read), view.policy(tenant.name)
        if current is None or _canonical(current) != _canonical(wanted):
            verb = "made" if current is None else "updated"
            changes.append(Change(f"policy {tenant.name} {verb}", partial(_set_policy, tenant.name, wanted)))
        changes += _plan_user(view, tenant.name, logins.get(tenant.name, Login("", "")))
    return changes


def _plan_user(view: View, tenant: str, login: Login) -> list[Change]:
    user = view.user(login.access_key) if login.access_key else None
    what = f"user of tenant {tenant}"
    changes: list[Change] = []
    if user is None:
        changes.append(Change(f"{what} made", partial(_set_user, login)))
    elif not user.enabled:
        changes.append(Change(f"{what} enabled", partial(_set_user, login)))
    elif not view.accepts(login):
        changes.append(Change(f"{what}: secret key set", partial(_set_user, login)))
    if user is None or user.policies != {tenant}:
        changes.append(Change(f"{what}: policy attached", partial(_attach, login.access_key, tenant)))
    return changes


def _make_bucket(bucket: str, store: Store) -> None:
    store.make_bucket(bucket)


def _set_expiry(bucket: str, wanted: frozenset[Expiry], store: Store) -> None:
    store.set_expiry(bucket, wanted)


def _set_policy(name: str, document: Mapping[str, Any], store: Store) -> None:
    store.set_policy(name, document)


def _set_user(login: Login, store: Store) -> None:
    store.set_user(login)


def _attach(access_key: str, policy: str, store: Store) -> None:
    store.attach(access_key, policy)


def check_or_raise(found: Sequence[str]) -> None:
    """Raise SlipwayError with all problems at once, if any."""
    if found:
        raise SlipwayError("MinIO is unchanged; fix the tenants first: " + "; ".join(found))
