"""Buckets, users and policies of MinIO: each tenant may use its own buckets, read those that are named, and nothing else."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, Protocol

from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.needs import amount

# https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
_BUCKET = re.compile(r"[a-z0-9](?:[a-z0-9.-]{1,61})[a-z0-9]")
_TENANT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
# MinIO refuses shorter ones (internal/auth/credentials.go).
_MIN_ACCESS_KEY, _MIN_SECRET_KEY = 3, 8

_EXPIRY_OPTIONS: dict[str, Any] = {
    "type": "list",
    "elements": "dict",
    "default": [],
    "options": {
        "bucket": {"type": "str", "required": True},
        "prefix": {"type": "str", "default": ""},
        "days": {"type": "int", "required": True},
    },
}
# How modules take a tenant.
TENANT_OPTIONS: dict[str, Any] = {
    "name": {"type": "str", "required": True},
    "buckets": {"type": "list", "elements": "str", "default": []},
    "read": {"type": "list", "elements": "str", "default": []},
    "expire": _EXPIRY_OPTIONS,
    "versioned": {"type": "list", "elements": "str", "default": []},
    "expire_versions": _EXPIRY_OPTIONS,
    "quota": {
        "type": "list",
        "elements": "dict",
        "default": [],
        "options": {"bucket": {"type": "str", "required": True}, "size": {"type": "str", "required": True}},
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
    """Objects of a bucket below `prefix` that are deleted `days` after they were written; with `replaced`, versions after another one came."""

    prefix: str
    days: int
    replaced: bool = False


@dataclass(frozen=True)
class Tenant:
    """Someone with buckets of its own, or others' to read; its policy has the same name.

    `expire` is by bucket, `quota` has buckets and sizes as Kubernetes quantities. `versioned` are those of `buckets` that keep what is
    replaced or deleted.
    """

    name: str
    buckets: tuple[str, ...]
    secret_namespace: str
    secret_name: str
    read: tuple[str, ...] = ()
    expire: Mapping[str, tuple[Expiry, ...]] = field(default_factory=dict)
    versioned: tuple[str, ...] = ()
    quota: tuple[tuple[str, str], ...] = ()


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

    def is_versioned(self, bucket: str) -> bool: ...

    def quota(self, bucket: str) -> int:
        """How many bytes it may hold, 0 for any number."""


class Store(View, Protocol):
    """What can be done to a MinIO server."""

    def make_bucket(self, bucket: str) -> None: ...

    def set_policy(self, name: str, document: Mapping[str, Any]) -> None: ...

    def set_user(self, login: Login) -> None:
        """Make the user or set its secret key; it is enabled afterwards."""

    def attach(self, access_key: str, policy: str) -> None:
        """Give the user this policy in place of all others."""

    def remove_user(self, access_key: str) -> None: ...

    def set_expiry(self, bucket: str, wanted: frozenset[Expiry]) -> None:
        """Have these, and no others that were set so before, expire; rules of others stay."""

    def keep_versions(self, bucket: str) -> None: ...

    def set_quota(self, bucket: str, size: int) -> None: ...


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

    def is_versioned(self, bucket: str) -> bool:
        return False

    def quota(self, bucket: str) -> int:
        return 0


@dataclass(frozen=True)
class Change:
    """Something to do, and how a person calls it."""

    text: str
    do: Callable[[Store], None]


def read_tenant(item: Mapping[str, Any]) -> Tenant:
    """A tenant as a site writes it; what it leaves out is empty."""
    expire: dict[str, tuple[Expiry, ...]] = {}
    for option, replaced in (("expire", False), ("expire_versions", True)):
        for rule in item.get(option) or []:
            expire[rule["bucket"]] = (
                *expire.get(rule["bucket"], ()),
                Expiry(str(rule.get("prefix") or ""), int(rule["days"]), replaced),
            )
    own, read, versioned = (
        tuple(str(bucket) for bucket in item.get(key) or []) for key in ("buckets", "read", "versioned")
    )
    quota = tuple((str(each["bucket"]), str(each["size"])) for each in item.get("quota") or [])
    secret = item["secret"]
    return Tenant(str(item["name"]), own, secret["namespace"], secret["name"], read, expire, versioned, quota)


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
        found += _bucket_option_problems(tenant)
    return found


def _expire_problems(tenant: Tenant) -> list[str]:
    found: list[str] = []
    for bucket, rules in tenant.expire.items():
        for replaced, option in ((False, "expire"), (True, "expire_versions")):
            where = f"tenant {tenant.name!r}: {option}: bucket {bucket!r}"
            chosen = [rule for rule in rules if rule.replaced is replaced]
            if chosen and bucket not in tenant.buckets:
                found.append(f"{where} is not its own")
            elif chosen and replaced and bucket not in tenant.versioned:
                found.append(f"{where} keeps no versions: list it under versioned, too")
            for rule in chosen:
                if rule.days < 1:
                    found.append(f"{where}: days is {rule.days}, not at least 1; leave the rule out to keep everything")
                if rule.prefix.startswith("/"):
                    found.append(f"{where}: prefix {rule.prefix!r} begins with a slash, which no object's name does")
            found += [f"{where}: prefix {each!r} is given twice" for each in _twice([rule.prefix for rule in chosen])]
    return found


def _bucket_option_problems(tenant: Tenant) -> list[str]:
    limited = [bucket for bucket, _ in tenant.quota]
    found = [
        f"tenant {tenant.name!r}: {option}: bucket {bucket!r} is not its own"
        for option, buckets in (("versioned", tenant.versioned), ("quota", limited))
        for bucket in buckets
        if bucket not in tenant.buckets
    ]
    found += [f"tenant {tenant.name!r}: quota: bucket {each!r} is given twice" for each in _twice(limited)]
    for bucket, size in tenant.quota:
        try:
            quota_bytes(size, f"tenant {tenant.name!r}: quota: bucket {bucket!r}")
        except SlipwayError as error:
            found.append(str(error))
    return found


def _twice(names: Sequence[str]) -> list[str]:
    return sorted({each for each in names if names.count(each) > 1})


def quota_bytes(size: str, where: str) -> int:
    """The bytes that a quota stands for; 0 takes it away. Raises SlipwayError that names `where` it stands."""
    value = amount(size, where)
    if value != int(value):
        raise SlipwayError(f"{where}: {size!r} is no whole number of bytes, such as 50Gi")
    return int(value)


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


def foreign_buckets(
    view: View, tenants: Sequence[Tenant], logins: Mapping[str, Login], adopt: Sequence[str] = ()
) -> list[str]:
    """Buckets that are there and that no listed tenant had so far: somebody's data, which only `adopt` gives away.

    A tenant has what its policy opens to write. Where the policy alone was lost, its user still says that it is one.
    """
    policies = {tenant.name: view.policy(tenant.name) for tenant in tenants}
    had = {bucket for document in policies.values() if document for bucket in _written(document)} | set(adopt)
    return [
        f"tenant {tenant.name!r}: bucket {bucket!r} is in the store already and was nobody's of minio_tenants. Choose another name, or, "
        f"if the tenant may have what is in it, add it to minio_adopt_buckets"
        for tenant in tenants
        if policies[tenant.name] or not _is_user(view, logins.get(tenant.name))
        for bucket in tenant.buckets
        if bucket not in had and view.has_bucket(bucket)
    ]


def _written(document: Mapping[str, Any]) -> set[str]:
    """The buckets whose objects a policy lets write."""
    prefix, suffix = "arn:aws:s3:::", "/*"
    return {
        resource.removeprefix(prefix).removesuffix(suffix)
        for statement in document.get("Statement") or []
        if "s3:PutObject" in statement.get("Action", [])
        for resource in statement.get("Resource", [])
    }


def _is_user(view: View, login: Login | None) -> bool:
    return login is not None and view.user(login.access_key) is not None


def other_key(access_key: str) -> str:
    """The name of a tenant's next access key: there are two, by turns, so that one can come before the other goes."""
    # Names of tenants have no dot.
    return access_key.removesuffix(".2") if access_key.endswith(".2") else f"{access_key}.2"


def plan(
    view: View, tenants: Sequence[Tenant], logins: Mapping[str, Login], rotating: Collection[str] = ()
) -> list[Change]:
    """The changes that bring the server to what `tenants` say, in the order to make them.

    Buckets, which hold data, and what others have made are never removed. A tenant without a login counts as one without a user; one that is
    `rotating` has two keys for now. A policy comes before its buckets, as it says whose they are where this is interrupted.
    """
    changes: list[Change] = []
    for tenant in tenants:
        wanted, current = policy_document(tenant.buckets, tenant.read), view.policy(tenant.name)
        if current is None or _canonical(current) != _canonical(wanted):
            verb = "made" if current is None else "updated"
            changes.append(Change(f"policy {tenant.name} {verb}", partial(_set_policy, tenant.name, wanted)))
        for bucket in tenant.buckets:
            changes += _plan_bucket(view, tenant, bucket)
        login = logins.get(tenant.name, Login("", ""))
        changes += _plan_user(view, tenant.name, login)
        former = other_key(login.access_key)
        user = view.user(former) if login.access_key and tenant.name not in rotating else None
        # Of a Secret that was deleted since.
        if user and user.policies == {tenant.name}:
            changes.append(Change(f"user of tenant {tenant.name}: former key removed", partial(_remove, former)))
    return changes


def _plan_bucket(view: View, tenant: Tenant, bucket: str) -> list[Change]:
    """What is not said of a bucket stays as it is there; but our rules of what expires go."""
    changes: list[Change] = []
    if not view.has_bucket(bucket):
        changes.append(Change(f"bucket {bucket} made", partial(_make_bucket, bucket)))
    if bucket in tenant.versioned and not view.is_versioned(bucket):
        changes.append(Change(f"bucket {bucket}: versions kept", partial(_keep_versions, bucket)))
    due = frozenset(tenant.expire.get(bucket, ()))
    if view.expiry(bucket) != due:
        changes.append(Change(f"bucket {bucket}: expiry set", partial(_set_expiry, bucket, due)))
    for limited, size in tenant.quota:
        if limited == bucket and view.quota(bucket) != (limit := quota_bytes(size, bucket)):
            said = f"quota {size} set" if limit else "quota taken away"
            changes.append(Change(f"bucket {bucket}: {said}", partial(_set_quota, bucket, limit)))
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


def _keep_versions(bucket: str, store: Store) -> None:
    store.keep_versions(bucket)


def _set_quota(bucket: str, size: int, store: Store) -> None:
    store.set_quota(bucket, size)


def _set_policy(name: str, document: Mapping[str, Any], store: Store) -> None:
    store.set_policy(name, document)


def _set_user(login: Login, store: Store) -> None:
    store.set_user(login)


def _attach(access_key: str, policy: str, store: Store) -> None:
    store.attach(access_key, policy)


def _remove(access_key: str, store: Store) -> None:
    store.remove_user(access_key)


def check_or_raise(found: Sequence[str]) -> None:
    """Raise SlipwayError with all problems at once, if any."""
    if found:
        raise SlipwayError("MinIO is unchanged; fix the tenants first: " + "; ".join(found))
