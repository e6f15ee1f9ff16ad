"""`minio_access.Store`, and `Source` and `Target` of bucket_archive, on MinIO's Python SDK. For modules on the controller."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import IO, Any, BinaryIO, TypeVar, cast

import urllib3
from ansible.module_utils.slipway.bucket_archive import Stored
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.minio_access import Expiry, Login, User
from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED, Filter
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, MinioException, S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, NoncurrentVersionExpiration, Rule
from minio.versioningconfig import VersioningConfig

# How the names of our lifecycle rules begin.
_RULES = "slipway-"
# What a client says of its object, besides metadata of its own.
_HEADERS = ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type")
_METADATA = "x-amz-meta-"
# S3 error codes with which MinIO answers a wrong secret key, an unknown and a disabled user.
_REFUSED = {"SignatureDoesNotMatch", "InvalidAccessKeyId"}
T = TypeVar("T")


class MinioStore:
    """The server at `endpoint` (host:port); plain HTTP as through a local port forward, or TLS with what the system or the file `ca` trusts."""

    def __init__(self, endpoint: str, root: Login, secure: bool = False, ca: str | None = None) -> None:
        self._endpoint = endpoint
        self._secure = secure
        self._http = urllib3.PoolManager(timeout=10, retries=False, ca_certs=ca)
        self._s3 = self._client(root)
        self._admin = MinioAdmin(
            endpoint=endpoint,
            credentials=StaticProvider(root.access_key, root.secret_key),
            secure=secure,
            http_client=self._http,
        )

    def _client(self, login: Login) -> Minio:
        return Minio(
            endpoint=self._endpoint,
            access_key=login.access_key,
            secret_key=login.secret_key,
            secure=self._secure,
            region="us-east-1",
            http_client=self._http,
        )

    def await_ready(self, timeout: float) -> None:
        """Wait until the server can write; `timeout` is in seconds. Raises SlipwayError."""
        deadline = time.monotonic() + timeout
        said = "nothing"
        while time.monotonic() < deadline:
            try:
                response = self._http.request("GET", f"http://{self._endpoint}/minio/health/cluster")
                if response.status == 200:
                    return
                said = f"status {response.status}"
            except urllib3.exceptions.HTTPError as error:
                said = str(error)
            time.sleep(0.2)
        raise SlipwayError(f"MinIO did not get ready within {timeout:.0f} s; it last answered: {said}")

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Turn what the SDK raises inside the block into SlipwayError."""
        try:
            yield
        except (MinioException, MinioAdminException, urllib3.exceptions.HTTPError, ValueError) as error:
            raise SlipwayError(f"MinIO at {self._endpoint}: {error}") from error

    def has_bucket(self, bucket: str) -> bool:
        return self._s3.bucket_exists(bucket_name=bucket)

    def make_bucket(self, bucket: str) -> None:
        try:
            self._s3.make_bucket(bucket_name=bucket)
        except S3Error as error:
            # Made by another run since it was looked for.
            if error.code != "BucketAlreadyOwnedByYou":
                raise

    def buckets(self) -> list[str]:
        return sorted(bucket.name for bucket in self._s3.list_buckets())

    def listed(self, bucket: str, prefix: str = "") -> Iterable[tuple[str, str]]:
        found = self._s3.list_objects(bucket_name=bucket, prefix=prefix or None, recursive=True)
        return ((str(item.object_name), str(item.etag).strip('"')) for item in found)

    @contextmanager
    def read_object(self, bucket: str, key: str) -> Iterator[tuple[Stored, IO[bytes]] | None]:
        try:
            response = self._s3.get_object(bucket_name=bucket, object_name=key)
        except S3Error as error:
            if error.code != "NoSuchKey":
                raise
            yield None
            return
        # Content that a client has packed stays packed.
        response.decode_content = False
        try:
            said = {name.lower(): value for name, value in response.headers.items()}
            yield (
                Stored(
                    key,
                    int(said["content-length"]),
                    said["etag"].strip('"'),
                    {name: value for name, value in said.items() if name in _HEADERS or name.startswith(_METADATA)},
                    parsedate_to_datetime(said["last-modified"]),
                ),
                cast(IO[bytes], response),
            )
        finally:
            response.close()
            response.release_conn()

    def etag(self, bucket: str, key: str) -> str | None:
        try:
            found = self._s3.stat_object(bucket_name=bucket, object_name=key)
        except S3Error as error:
            if error.code in ("NoSuchKey", "NoSuchObject"):
                return None
            raise
        return str(found.etag)

    def write_object(self, bucket: str, item: Stored, content: IO[bytes], part_size: int) -> None:
        self._s3.put_object(
            bucket_name=bucket,
            object_name=item.key,
            data=cast(BinaryIO, content),
            length=item.size,
            content_type=item.headers.get("content-type", "application/octet-stream"),
            metadata={name: value for name, value in item.headers.items() if name != "content-type"},
            part_size=part_size,
        )

    def policy(self, name: str) -> Mapping[str, Any] | None:
        answer = self._lookup(lambda: self._admin.policy_info(name), "XMinioAdminNoSuchPolicy")
        # Newer servers wrap the document together with its name and dates.
        return answer.get("Policy", answer) if answer is not None else None

    def set_policy(self, name: str, document: Mapping[str, Any]) -> None:
        self._admin.policy_add(name, policy=dict(document))

    def user(self, access_key: str) -> User | None:
        answer = self._lookup(lambda: self._admin.user_info(access_key), "XMinioAdminNoSuchUser")
        if answer is None:
            return None
        names = (answer.get("policyName") or "").split(",")
        return User(frozenset(name for name in names if name), answer.get("status") == "enabled")

    def set_user(self, login: Login) -> None:
        self._admin.user_add(login.access_key, login.secret_key)

    def attach(self, access_key: str, policy: str) -> None:
        self._admin.policy_set(policy, user=access_key)

    def remove_user(self, access_key: str) -> None:
        self._admin.user_remove(access_key)

    def accepts(self, login: Login) -> bool:
        try:
            self._client(login).list_buckets()
        except S3Error as error:
            # Any other refusal comes after the signature was found good.
            return error.code not in _REFUSED
        return True

    def is_versioned(self, bucket: str) -> bool:
        return self._of_bucket(lambda: self._s3.get_bucket_versioning(bucket_name=bucket).status == ENABLED, False)

    def keep_versions(self, bucket: str) -> None:
        self._s3.set_bucket_versioning(bucket_name=bucket, config=VersioningConfig(ENABLED))

    def quota(self, bucket: str) -> int:
        answer = self._lookup(lambda: self._admin.bucket_quota_get(bucket), "NoSuchBucket")
        # Newer servers fill both keys, older ones the second.
        return int((answer or {}).get("size") or (answer or {}).get("quota") or 0)

    def set_quota(self, bucket: str, size: int) -> None:
        self._admin.bucket_quota_set(bucket, size)

    def expiry(self, bucket: str) -> frozenset[Expiry]:
        return frozenset(found for rule in self._rules(bucket) if _is_ours(rule) and (found := _read_rule(rule)))

    def set_expiry(self, bucket: str, wanted: frozenset[Expiry]) -> None:
        rules = [rule for rule in self._rules(bucket) if not _is_ours(rule)]
        rules += [_rule(f"{_RULES}{number}", item) for number, item in enumerate(sorted(wanted))]
        if rules:
            self._s3.set_bucket_lifecycle(bucket_name=bucket, config=LifecycleConfig(rules))
        else:
            self._s3.delete_bucket_lifecycle(bucket_name=bucket)

    def _rules(self, bucket: str) -> list[Any]:
        found = self._of_bucket(lambda: self._s3.get_bucket_lifecycle(bucket_name=bucket), None)
        return list(found.rules) if found else []

    @staticmethod
    def _of_bucket(call: Callable[[], T], absent: T) -> T:
        """What a call says of a bucket, `absent` of one that is about to be made."""
        try:
            return call()
        except S3Error as error:
            if error.code == "NoSuchBucket":
                return absent
            raise

    @staticmethod
    def _lookup(call: Callable[[], str], absent: str) -> dict[str, Any] | None:
        """The JSON that an admin call returns; None when it fails with the code `absent`."""
        try:
            answer: dict[str, Any] = json.loads(call())
        except MinioAdminException as error:
            if absent in str(error):
                return None
            raise
        return answer


def _rule(name: str, item: Expiry) -> Rule:
    if not item.replaced:
        return Rule(
            ENABLED, rule_filter=Filter(prefix=item.prefix), rule_id=name, expiration=Expiration(days=item.days)
        )
    return Rule(
        ENABLED,
        rule_filter=Filter(prefix=item.prefix),
        rule_id=name,
        # What says of a deleted object that it is, once there is no version of it any more.
        expiration=Expiration(expired_object_delete_marker=True),
        noncurrent_version_expiration=NoncurrentVersionExpiration(noncurrent_days=item.days),
    )


def _read_rule(rule: Any) -> Expiry | None:
    prefix = (rule.rule_filter.prefix if rule.rule_filter else "") or ""
    if rule.noncurrent_version_expiration:
        return Expiry(prefix, rule.noncurrent_version_expiration.noncurrent_days or 0, replaced=True)
    days = rule.expiration.days if rule.expiration else None
    return Expiry(prefix, days) if days else None


def _is_ours(rule: Any) -> bool:
    return bool((rule.rule_id or "").startswith(_RULES))
