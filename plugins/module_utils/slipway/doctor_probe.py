"""What the doctor reads on a node. Runs on nodes: standard library only, Python 3.8 or newer. Changes nothing.

Every reader takes the root of the file system, so that tests can give it a made one. What a node does not tell is left out, or empty:
the doctor is called when things are broken.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import re
import socket
import ssl
import stat
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ansible.module_utils.slipway.k3s import BINARY, UNITS, binary_version
from ansible.module_utils.slipway.probe import k3s, meminfo, read, time_sync

if TYPE_CHECKING:
    from collections.abc import Iterable

DATA = "var/lib/rancher/k3s"
CONFIG = "etc/rancher/k3s"
# What decides what a start of k3s makes; those that role and node do not have are left out.
INPUTS = (
    BINARY.lstrip("/"),
    *(
        f"{CONFIG}/{name}"
        for name in ("config.yaml", "admission.yaml", "audit-policy.yaml", "registries.yaml", "token")
    ),
)
_TLS = f"{DATA}/server/tls"
# In temporary-certs are those of earlier starts.
CERTIFICATES = (
    f"{_TLS}/*.crt",
    *(f"{_TLS}/{part}/*.crt" for part in ("etcd", "kube-controller-manager", "kube-scheduler")),
    f"{DATA}/agent/*.crt",
)
# Files and folders that nobody but root may read.
SECRETS = (
    f"{CONFIG}/*token",
    f"{CONFIG}/config.yaml",
    f"{CONFIG}/registries.yaml",
    f"{CONFIG}/k3s.yaml",
    "etc/rancher/node/password",
    f"{DATA}/server/*token",
    f"{DATA}/server/cred/passwd",
    f"{DATA}/server/cred/*.json",
    f"{_TLS}/*.key",
    f"{_TLS}/*/*.key",
    f"{DATA}/server/db/etcd",
    f"{DATA}/server/db/snapshots",
    f"{DATA}/agent/*.key",
)
# Where the kubelet's own files, those of k3s with datastore and volumes, and images lie.
PLACES = ("/var/lib/kubelet", f"/{DATA}", f"/{DATA}/agent/containerd")
API_PORT, KUBELET_PORT, FRONT_DOOR_PORT, ETCD_PORT = 6443, 10250, 443, 2381
# For one answer; what lives on the same machine answers at once.
SECONDS = 5
METRICS = (
    "etcd_server_has_leader",
    "etcd_server_is_leader",
    "etcd_server_is_learner",
    "etcd_server_quota_backend_bytes",
    "etcd_mvcc_db_total_size_in_bytes",
    "etcd_mvcc_db_total_size_in_use_in_bytes",
)
_PEM = re.compile(r"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----\n?", re.DOTALL)


def find(root: Path, patterns: Iterable[str]) -> list[Path]:
    """What matches the patterns below `root`, in order; a folder that cannot be read holds nothing."""
    found = []
    for pattern in patterns:
        try:
            found += sorted(root.glob(pattern))
        except OSError:
            continue
    return found


def _shown(path: Path, root: Path) -> str:
    return "/" + str(path.relative_to(root))


def uptime(root: Path) -> float:
    """Seconds since the machine was started."""
    return float((read(root / "proc/uptime").split() or ["0"])[0])


def started(pid: int, root: Path, now: float) -> float | None:
    """When a process was started (seconds since the epoch), by the clock as it is now; None where it is gone."""
    # Its name, in brackets, may hold blanks.
    fields = read(root / f"proc/{pid}/stat").rpartition(")")[2].split()
    if len(fields) < 20:
        return None
    return now - (uptime(root) - int(fields[19]) / os.sysconf("SC_CLK_TCK"))


def service(role: str, root: Path, now: float) -> dict[str, Any]:
    """The state of the unit by systemd; `last` is what it said last where it does not run."""
    unit = UNITS[role]
    keys = ("ActiveState", "UnitFileState", "NRestarts", "MainPID", "NeedDaemonReload")
    answer = _run("systemctl", "show", unit, "--property", ",".join(keys))
    values = dict(line.split("=", 1) for line in answer.splitlines() if "=" in line)
    active = values.get("ActiveState", "unknown")
    last = (
        ""
        if active == "active"
        else _run("journalctl", "--unit", unit, "--lines", "1", "--no-pager", "--output", "cat")
    )
    pid = int(values.get("MainPID") or 0)
    return {
        "unit": unit,
        "there": (root / "etc/systemd/system" / unit).exists(),
        "active": active,
        "enabled": values.get("UnitFileState", ""),
        "restarts": int(values.get("NRestarts") or 0),
        "reload": values.get("NeedDaemonReload") == "yes",
        "started": started(pid, root, now) if pid else None,
        "last": " ".join(last.split())[:300],
    }


def _run(*words: str) -> str:
    """What a command prints; nothing where it is missing, or hangs."""
    try:
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def changed_since(start: float | None, unit: str, root: Path) -> list[str]:
    """The inputs of k3s that were written after it was started."""
    if start is None:
        return []
    paths = [root / name for name in (*INPUTS, f"etc/systemd/system/{unit}")]
    # The start of a process is known to a hundredth of a second, the clock's steps are not.
    return [_shown(path, root) for path in paths if path.exists() and path.stat().st_mtime > start + 2]


def file_systems(places: Iterable[str], root: Path) -> list[dict[str, Any]]:
    """Size and room, in bytes and inodes, of the file systems that hold `places`, each once; `inodes` is 0 where there is no limit."""
    seen: dict[int, dict[str, Any]] = {}
    for name in places:
        place = root / name.lstrip("/")
        while not place.exists():
            place = place.parent
        device = place.stat().st_dev
        if device not in seen:
            status = os.statvfs(str(place))
            seen[device] = {
                "paths": [],
                "size": status.f_blocks * status.f_frsize,
                "free": status.f_bavail * status.f_frsize,
                "inodes": status.f_files,
                "inodes_free": status.f_favail,
            }
        seen[device]["paths"].append(name)
    return list(seen.values())


def certificates(root: Path) -> dict[str, str]:
    """The certificates in k3s' files, in PEM form, by path."""
    return {_shown(path, root): pem for path in find(root, CERTIFICATES) if (pem := "".join(_PEM.findall(read(path))))}


def modes(root: Path) -> list[dict[str, Any]]:
    """Owner and mode of each secret, and whether everybody can get at it (`open`); a link is judged by what it leads to."""
    found = []
    for path in find(root, SECRETS):
        try:
            status = path.stat()
            folders = [folder for folder in path.resolve().parents if folder != root and root in folder.parents]
            ways = all(folder.stat().st_mode & stat.S_IXOTH for folder in folders)
        except OSError:
            continue
        found.append(
            {
                "path": _shown(path, root),
                "mode": format(stat.S_IMODE(status.st_mode), "04o"),
                "uid": status.st_uid,
                "open": bool(status.st_mode & stat.S_IROTH and ways),
            }
        )
    return found


def served(address: str, port: int, name: str = "") -> str:
    """The certificate that is served there for `name`, whoever issued it, in PEM form; empty where nobody answers."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        connection = socket.create_connection((address, port), SECONDS)
        # Closes the connection, too.
        with context.wrap_socket(connection, server_hostname=name or None) as secured:
            found = secured.getpeercert(binary_form=True)
    except (OSError, ValueError):
        return ""
    return ssl.DER_cert_to_PEM_cert(found) if found else ""


class Api:
    """The port of k3s on this machine, asked with the credentials that lie here; they do not leave it."""

    def __init__(self, root: Path, port: int = API_PORT) -> None:
        self._server, self._port = root / DATA / "server", port

    def _get(self, path: str, certificate: bool) -> tuple[int, str]:
        """Status and text of an answer. Raises OSError, http.client.HTTPException."""
        tls = self._server / "tls"
        context = ssl.create_default_context(cafile=str(tls / "server-ca.crt"))
        context.check_hostname = False
        # Newer versions of Python ask for extensions that not every cluster's certificates have.
        context.verify_flags &= ~getattr(ssl, "VERIFY_X509_STRICT", 0)
        headers = {}
        if certificate:
            context.load_cert_chain(str(tls / "client-admin.crt"), str(tls / "client-admin.key"))
        else:
            secret = read(self._server / "token").strip().rpartition(":")[2]
            headers["Authorization"] = "Basic " + base64.b64encode(f"server:{secret}".encode()).decode()
        connection = http.client.HTTPSConnection("127.0.0.1", self._port, timeout=SECONDS, context=context)
        try:
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode(errors="replace")
        finally:
            connection.close()

    def readiness(self) -> dict[str, Any]:
        """`status` of /readyz (0: no answer, `error` says why) and the names of the checks that `failed`."""
        try:
            status, text = self._get("/readyz?verbose", certificate=True)
        except (OSError, http.client.HTTPException) as error:
            return {"status": 0, "failed": [], "error": str(error)}
        return {"status": status, "failed": re.findall(r"^\[-\](\S+)", text, re.MULTILINE), "error": ""}

    def members(self) -> list[dict[str, Any]] | None:
        """Name, addresses and `learner` of each member of etcd; None where nobody knows, as without a majority."""
        try:
            status, text = self._get("/db/info", certificate=False)
            rows = json.loads(text)["members"] if status == 200 else []
            # A server that cannot ask tells of itself alone, without the member's number.
            if not rows or not all(row.get("ID") for row in rows):
                return None
            return [
                {"name": row.get("name", ""), "urls": row.get("peerURLs") or [], "learner": bool(row.get("isLearner"))}
                for row in rows
            ]
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, AttributeError):
            return None


def _plain(port: int, path: str) -> str:
    """The text at a path of this machine, whatever its status; empty where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def etcd(root: Path, api: Api, port: int = ETCD_PORT) -> dict[str, Any] | None:
    """This machine's member of the datastore and its snapshots; None where it has none.

    `begun` is when it became a member, `size` that of the file (bytes), `metrics` those of METRICS that it tells, `alarm` what its
    health says where that is not good.
    """
    folder = root / DATA / "server/db"
    if not (folder / "etcd/member/wal").is_dir():
        return None
    metrics = dict(re.findall(rf"^({'|'.join(METRICS)}) (\S+)$", _plain(port, "/metrics"), re.MULTILINE))
    try:
        health = json.loads(_plain(port, "/health") or "{}")
        alarm = "" if str(health.get("health", "true")) == "true" else str(health.get("reason") or "unhealthy")
    except (ValueError, AttributeError):
        alarm = ""
    return {
        "member": read(folder / "etcd/name").strip(),
        "begun": _time(folder / "etcd/name"),
        "size": _size(folder / "etcd/member/snap/db"),
        "metrics": {name: float(value) for name, value in metrics.items()},
        "alarm": alarm,
        "members": api.members(),
        "snapshots": snapshots(root),
    }


def snapshots(root: Path) -> dict[str, Any]:
    """Number of snapshots on this machine, and name and time of the newest one."""
    given = re.search(r"^etcd-snapshot-dir:\s*(\S+)", read(root / CONFIG / "config.yaml"), re.MULTILINE)
    folder = root / given.group(1).strip("'\"").lstrip("/") if given else root / DATA / "server/db/snapshots"
    files = [path for path in find(folder, ["*"]) if path.is_file() and not path.name.startswith(".")]
    newest = max(files, key=_time, default=None)
    return {
        "folder": _shown(folder, root),
        "count": len(files),
        "newest": newest.name if newest else "",
        "time": _time(newest) if newest else None,
    }


def _time(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def examine(role: str, address: str, front_door: str, root: Path = Path("/")) -> dict[str, Any]:
    """Everything that the doctor wants to know of this machine.

    `address` is the one by which others reach it; `front_door` the domain that it serves, empty for none.
    """
    now = time.time()
    api = Api(root)
    memory = meminfo(root)
    state = service(role, root, now)
    found: dict[str, Any] = {
        "time": now,
        "root": os.geteuid() == 0,
        "time_sync": time_sync(root),
        "service": state,
        "k3s": {
            "state": k3s(root)["state"],
            "version": binary_version(str(root / BINARY.lstrip("/"))),
            "changed": changed_since(state["started"], UNITS[role], root),
        },
        "file_systems": file_systems(PLACES, root),
        "memory_mb": memory.get("MemTotal", 0),
        "available_mb": memory.get("MemAvailable", 0),
        "kubelet": [read(path) for path in find(root, [f"{DATA}/agent/etc/kubelet.conf.d/*.conf"])],
        "certificates": certificates(root),
        "served": {"kubelet": served("127.0.0.1", KUBELET_PORT)},
        "modes": modes(root),
        "api": None,
        "etcd": None,
    }
    if role == "server":
        found["served"]["API"] = served("127.0.0.1", API_PORT)
        found["api"] = api.readiness()
        found["etcd"] = etcd(root, api)
    if front_door:
        found["served"]["front door"] = served(address, FRONT_DOOR_PORT, front_door)
    return found
