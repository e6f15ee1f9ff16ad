"""Whether a store that somebody else runs can be used: what it answers to the credentials in Secrets. For modules on the controller."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from xml.etree.ElementTree import ParseError

import urllib3
from ansible.module_utils.slipway.minio_access import Login
from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.error import MinioAdminException, MinioException, S3Error

# What stores say by S3's error codes, and what it means.
_CODES = {
    "InvalidAccessKeyId": "the store knows no such accessKey",
    "SignatureDoesNotMatch": "secretKey is not that of accessKey",
    "RequestTimeTooSkewed": "its clock and that of this machine differ by more than 15 minutes",
    "NoSuchBucket": "make it",
    "AccessDenied": "the user needs the right to list it (s3:ListBucket, s3:GetBucketLocation)",
}
# What the connection says.
_HINTS = (
    (r"NameResolutionError|getaddrinfo|Name or service not known", "no such name"),
    (r"Connection refused", "nobody listens there: is the store running, is the port right?"),
    (r"timed out|ConnectTimeout|ReadTimeout", "nothing answers: does a firewall or a NetworkPolicy refuse it?"),
    (r"HTTPS server", "it wants TLS, which the platform's pods do not speak to it"),
    (r"", "it does not answer as an S3 store does"),
)


def store_faults(endpoint: str, address: str, login: Login, buckets: Sequence[str], timeout: float) -> list[str]:
    """What is wrong with the answers of the store `endpoint` to a tenant that needs `buckets`; it is reached at `address` (host:port)."""
    http = urllib3.PoolManager(timeout=timeout, retries=False)
    client = Minio(
        endpoint=address,
        access_key=login.access_key,
        secret_key=login.secret_key,
        secure=False,
        region="us-east-1",
        http_client=http,
    )
    found: list[str] = []
    for bucket in buckets:
        place = f"{endpoint}, bucket {bucket}"

        def look(name: str = bucket) -> None:
            list(islice(client.list_objects(bucket_name=name), 1))

        if fault := _fault(look):
            found.append(f"{place}: {fault}")
            # The same would be said of every other one.
            if not any(code in fault for code in ("NoSuchBucket", "AccessDenied")):
                break
    return found


def administrator_faults(endpoint: str, address: str, login: Login, timeout: float) -> list[str]:
    """What is wrong with the answers to somebody who is to make users and policies."""
    http = urllib3.PoolManager(timeout=timeout, retries=False)
    credentials = StaticProvider(login.access_key, login.secret_key)
    admin = MinioAdmin(endpoint=address, credentials=credentials, secure=False, http_client=http)
    try:
        fault = _fault(lambda: admin.policy_list())
    except MinioAdminException as error:
        said = " ".join(str(error).split())
        hints = [hint for code, hint in _CODES.items() if code in said and code != "AccessDenied"]
        fault = (hints or ["it lets this user not administer it, or is no MinIO"])[0] + f" ({said[:200]})"
    return [f"{endpoint}: {fault}"] if fault else []


def _fault(call: Callable[[], object]) -> str:
    """What a call fails with; empty when it does not."""
    try:
        call()
    except S3Error as error:
        return f"{_CODES.get(error.code or '', 'it refuses')} ({error.code})"
    # The SDK lets the parser's own error through where a body is no XML.
    except (MinioException, urllib3.exceptions.HTTPError, ValueError, ParseError) as error:
        said = " ".join(f"{type(error).__name__} {error}".split())
        hint = next(hint for pattern, hint in _HINTS if re.search(pattern, said))
        return f"{hint} ({said[:200]})"
    return ""
