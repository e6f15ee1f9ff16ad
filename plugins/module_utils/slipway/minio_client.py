"""`minio_access.Store` on MinIO's Python SDK. For modules on the controller."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import urllib3
from ansible.module_utils.slipway.errors import SlipwayError
from ansible.module_utils.slipway.minio_access import Expiry, Login, User
from minio import Minio, MinioAdmin
from minio.commonconfig import ENABLED, Filter
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, MinioException, S3Error
from minio.lifecycleconfig import Expiration, LifecycleConfig, Rule

# How the names of our lifecycle rules begin.
_RULES = "slipway-"
# S3 error codes with which MinIO answers a wrong secret key, an unknown and a disabled user.
_REFUSED = {"SignatureDoesNotMatch", "InvalidAccessKeyId"}


class MinioStore:
    """The server at `endpoint` (host:port, plain HTTP: it is reached through a local port forward)."""

    def __init__(self, endpoint: str, root: Login) -> None:
        self._endpoint = endpoint
        self._http = urllib3.PoolManager(timeout=10, retries=False)
        self._s3 = self._client(root)
        self._admin = MinioAdmin(
            endpoint=endpoint,
            credentials=StaticProvider(root.access_key, root.secret_key),
            secure=False,
            http_client=self._http,
        )

    def _client(self, login: Login) -> Minio:
        return Minio(
            endpoint=self._endpoint,
            access_key=login.access_key,
            secret_key=login.secret_key,
            secure=False,
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

    def accepts(self, login: Login) -> bool:
        try:
            self._client(login).list_buckets()
        except S3Error as error:
            # Any other refusal comes after the signature was found good.
            return error.code not in _REFUSED
        return True

    def expiry(self, bucket: str) -> frozenset[Expiry]:
        return frozenset(
            Expiry(rule.rule_filter.prefix or "", rule.expiration.days)
            for rule in self._rules(bucket)
            if _is_ours(rule) and rule.rule_filter and rule.expiration and rule.expiration.days
        )

    def set_expiry(self, bucket: str, wanted: frozenset[Expiry]) -> None:
        rules = [rule for rule in self._rules(bucket) if not _is_ours(rule)]
        rules += [
            Rule(
                ENABLED,
                rule_filter=Filter(prefix=item.prefix),
                rule_id=f"{_RULES}{number}",
                expiration=Expiration(days=item.days),
            )
            for number, item in enumerate(sorted(wanted))
        ]
        if rules:
            self._s3.set_bucket_lifecycle(bucket_name=bucket, config=LifecycleConfig(rules))
        else:
            self._s3.delete_bucket_lifecycle(bucket_name=bucket)

    def _rules(self, bucket: str) -> list[Any]:
        try:
            found = self._s3.get_bucket_lifecycle(bucket_name=bucket)
        except S3Error as error:
            # A bucket that is about to be made.
            if error.code == "NoSuchBucket":
                return []
            raise
        return list(found.rules) if found else []

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


def _is_ours(rule: Any) -> bool:
    return bool((rule.rule_id or "").startswith(_RULES))
