"""The object store gives each user its own buckets and nothing else."""

from __future__ import annotations

import io
import secrets as random
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from ansible.module_utils.slipway import secrets
from ansible.module_utils.slipway.kube import KubeClient
from ansible.module_utils.slipway.minio_access import Expiry, Login, Tenant, foreign_buckets, other_key, plan
from ansible.module_utils.slipway.minio_client import MinioStore
from ansible.module_utils.slipway.minio_rotation import Holder, Rotation
from kubernetes.client.exceptions import ApiException
from minio import Minio, MinioAdmin
from minio.credentials.providers import StaticProvider
from minio.deleteobjects import DeleteObject
from minio.error import S3Error

from .site import Site, Store

FOREIGN = "slipway-test-foreign"
OWN = "slipway-test-own"
# Nothing of the platform runs in that namespace.
NAMESPACE, SECRET = "default", "minio-slipway-test"
TENANT = Tenant(
    "slipway-test",
    (OWN,),
    NAMESPACE,
    SECRET,
    expire={OWN: (Expiry("", 7, replaced=True),)},
    versioned=(OWN,),
    quota=((OWN, "1Mi"),),
)


@pytest.mark.smoke
def test_own_buckets(store: Store) -> None:
    """The training's user writes and reads in its bucket."""
    store.client.put_object(
        bucket_name="epos-data", object_name="slipway-test/object", data=io.BytesIO(b"content"), length=7
    )
    assert store.read("epos-data", "slipway-test/object") == b"content"
    store.client.remove_object(bucket_name="epos-data", object_name="slipway-test/object")


@pytest.mark.smoke
def test_strangers_are_refused(store: Store) -> None:
    """Without credentials nothing is listed."""
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(f"http://{store.endpoint}/epos-data/", timeout=10)
    assert refusal.value.code == 403


@pytest.fixture
def foreign_bucket(site: Site) -> Iterator[str]:
    """A bucket of somebody else, with an object in it."""
    with Store.open(site, "minio", "minio-root", ("rootUser", "rootPassword")) as root:
        root.client.make_bucket(bucket_name=FOREIGN)
        root.client.put_object(bucket_name=FOREIGN, object_name="object", data=io.BytesIO(b"x"), length=1)
        yield FOREIGN
        root.client.remove_object(bucket_name=FOREIGN, object_name="object")
        root.client.remove_bucket(bucket_name=FOREIGN)


@pytest.mark.fault
def test_foreign_bucket_is_refused(store: Store, foreign_bucket: str) -> None:
    """The training's user neither reads nor writes nor lists nor makes a bucket that is not its own."""
    attempts: dict[str, Callable[[], Any]] = {
        "read": lambda: store.read(foreign_bucket, "object"),
        "write": lambda: store.client.put_object(
            bucket_name=foreign_bucket, object_name="y", data=io.BytesIO(b"y"), length=1
        ),
        "list": lambda: list(store.client.list_objects(bucket_name=foreign_bucket)),
        "delete": lambda: store.client.remove_object(bucket_name=foreign_bucket, object_name="object"),
        "make": lambda: store.client.make_bucket(bucket_name=f"{foreign_bucket}-2"),
    }
    for name, attempt in attempts.items():
        with pytest.raises(S3Error) as refusal:
            attempt()
        assert refusal.value.code == "AccessDenied", name
    assert foreign_bucket not in {bucket.name for bucket in store.client.list_buckets()}


class Client:
    """The tests' own tenant, as its clients see it and as the role makes it."""

    def __init__(self, root: Store, server: MinioStore, login: Login) -> None:
        self.root = root.client
        self.endpoint = root.endpoint
        self.server = server
        self.login = login

    def connect(self, login: Login | None = None) -> Minio:
        user = login or self.login
        return Minio(
            endpoint=self.endpoint,
            access_key=user.access_key,
            secret_key=user.secret_key,
            secure=False,
            region="us-east-1",
        )

    def write(self, name: str, content: bytes) -> None:
        self.connect().put_object(bucket_name=OWN, object_name=name, data=io.BytesIO(content), length=len(content))


@pytest.fixture
def tenant(site: Site) -> Iterator[Client]:
    """A tenant with a bucket that keeps versions; both are removed afterwards, what an interrupted suite left is before."""
    with Store.open(site, "minio", "minio-root", ("rootUser", "rootPassword")) as root:
        user, password = root.credentials["rootUser"], root.credentials["rootPassword"]
        server = MinioStore(root.endpoint, Login(user, password))
        admin = MinioAdmin(endpoint=root.endpoint, credentials=StaticProvider(user, password), secure=False)

        def remove() -> None:
            if root.client.bucket_exists(bucket_name=OWN):
                found = root.client.list_objects(bucket_name=OWN, recursive=True, include_version=True)
                names = [DeleteObject(str(item.object_name), item.version_id) for item in found]
                assert not list(root.client.remove_objects(bucket_name=OWN, delete_object_list=names))
                root.client.remove_bucket(bucket_name=OWN)
            for name in (TENANT.name, other_key(TENANT.name)):
                if server.user(name):
                    server.remove_user(name)
            if server.policy(TENANT.name):
                admin.policy_remove(TENANT.name)

        remove()
        login = Login(TENANT.name, random.token_hex(16))
        for change in plan(server, [TENANT], {TENANT.name: login}):
            change.do(server)
        yield Client(root, server, login)
        remove()


@pytest.mark.fault
def test_what_is_replaced_or_deleted_is_kept_for_a_time(tenant: Client) -> None:
    """Each version is there for an administrator, and the rule that ends them is in the bucket."""
    for content in (b"first", b"second"):
        tenant.write("object", content)
    tenant.connect().remove_object(bucket_name=OWN, object_name="object")
    found = list(tenant.root.list_objects(bucket_name=OWN, include_version=True))
    assert [item.is_delete_marker for item in found].count(True) == 1 and len(found) == 3
    assert tenant.server.expiry(OWN) == {Expiry("", 7, replaced=True)}
    # What is set is taken for what is wanted.
    assert plan(tenant.server, [TENANT], {TENANT.name: tenant.login}) == []


@pytest.mark.fault
def test_a_quota_refuses_what_is_too_big(tenant: Client) -> None:
    """What fits is taken, before and after."""
    tenant.write("small", b"x" * 1000)
    with pytest.raises(S3Error) as refusal:
        tenant.write("big", b"x" * (2 << 20))
    assert refusal.value.code == "XMinioAdminBucketQuotaExceeded"
    tenant.write("small", b"y" * 1000)


@pytest.mark.fault
def test_a_bucket_of_nobody_is_not_taken(tenant: Client, foreign_bucket: str) -> None:
    """A tenant that lists it is refused; its own bucket is not in question."""
    wanted = replace(TENANT, buckets=(OWN, foreign_bucket))
    (fault,) = foreign_buckets(tenant.server, [wanted], {TENANT.name: tenant.login})
    assert f"bucket '{foreign_bucket}' is in the store already" in fault


@pytest.fixture
def secret(site: Site, tenant: Client) -> Iterator[KubeClient]:
    """The tenant's Secret in the cluster."""

    def remove() -> None:
        try:
            site.core.delete_namespaced_secret(SECRET, NAMESPACE)
        except ApiException as error:
            if error.status != 404:
                raise

    remove()
    kube = KubeClient(str(site.kubeconfig))
    values = {"accessKey": tenant.login.access_key, "secretKey": tenant.login.secret_key}
    secrets.ensure(kube, NAMESPACE, SECRET, [secrets.Key(key, value=value) for key, value in values.items()], {})
    yield kube
    remove()


class Writer(threading.Thread):
    """A client that writes without a pause, and reads its Secret when it is started anew."""

    def __init__(self, tenant: Client, kube: KubeClient) -> None:
        super().__init__(daemon=True)
        self.tenant = tenant
        self.kube = kube
        self.again = threading.Event()
        self.over = threading.Event()
        self.written: list[str] = []
        self.users: list[str] = []
        self.failures: list[str] = []

    def login(self) -> Login:
        values = secrets.read(self.kube, NAMESPACE, SECRET, ("accessKey", "secretKey"))
        assert values
        return Login(values["accessKey"], values["secretKey"])

    def run(self) -> None:
        login = self.login()
        client = self.tenant.connect(login)
        while not self.over.is_set():
            if self.again.is_set():
                login = self.login()
                client = self.tenant.connect(login)
                self.again.clear()
            name = f"writes/{len(self.written)}"
            try:
                client.put_object(bucket_name=OWN, object_name=name, data=io.BytesIO(b"x"), length=1)
            except Exception as error:
                self.failures.append(f"{name}: {error}")
                return
            self.written.append(name)
            self.users.append(login.access_key)


@pytest.mark.fault
def test_a_key_is_exchanged_while_a_client_writes(tenant: Client, secret: KubeClient) -> None:
    """No write is lost or refused, before, while and after; the former key is refused in the end."""
    writer = Writer(tenant, secret)
    holder = Holder(TENANT.name, SECRET, (NAMESPACE,))
    rotation = Rotation(secret, tenant.server)

    def more(user: str) -> None:
        """Some writes as that user have come through."""
        end, before = time.monotonic() + 5, writer.users.count(user)
        while writer.users.count(user) < before + 5 and writer.is_alive() and time.monotonic() < end:
            time.sleep(0.02)
        assert writer.users.count(user) >= before + 5, writer.failures

    writer.start()
    try:
        more(TENANT.name)
        rotation.begin(holder)
        more(TENANT.name)
        rotation.hand_over(holder)
        writer.again.set()
        more(other_key(TENANT.name))
        rotation.end(holder, 5)
        more(other_key(TENANT.name))
    finally:
        writer.over.set()
        writer.join(10)
    assert not writer.failures
    listed = tenant.connect(writer.login()).list_objects(bucket_name=OWN, prefix="writes/")
    assert {item.object_name for item in listed} == set(writer.written)
    assert not tenant.server.accepts(tenant.login)
