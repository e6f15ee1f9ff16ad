"""What runs in PostgreSQL's pod beside the server: it fills the volume, archives, restores and backs up.

    postgres_pod.py prepare             fill an empty volume, with a new database cluster or with one out of the archive
    postgres_pod.py archive PATH        archive_command of the server
    postgres_pod.py fetch NAME PATH     restore_command of the server
    postgres_pod.py keep                base backups in time, their retention, and a reload whenever the certificate is another one
    postgres_pod.py backup [NAME]       a base backup now, and after it a restore point of that name, of which it tells as JSON
    postgres_pod.py backups             what base backups there are, as JSON

The archive is a bucket, written by barman-cloud. Each database cluster has a folder of its own there, named by its system
identifier: a new cluster never writes over what an older one has archived, and a restored one goes on in the same folder.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

Json = dict[str, Any]
# Of the server's status by which it gives up; below, a file that cannot be fetched is the end of the archive.
GIVE_UP = 255
# Seconds between two looks of `keep`, and until a failed backup is tried again.
LOOK, RETRY = 5.0, 60.0
# Seconds that a segment of WAL has to get to the archive.
ARCHIVED = 300.0


class PodError(Exception):
    """Something a person must act on; the text says what."""


@dataclass(frozen=True)
class Settings:
    """Where things are, and how often what happens."""

    data: Path
    bucket: str
    credentials: Path
    request: Path
    certificate: Path
    socket: Path
    interval: timedelta
    keep_days: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """From the pod's environment."""
        return cls(
            data=Path(environment["PGDATA"]),
            bucket=environment["ARCHIVE_BUCKET"],
            credentials=Path(environment.get("ARCHIVE_CREDENTIALS", "/etc/postgresql/archive")),
            request=Path(environment.get("RESTORE_REQUEST", "/etc/postgresql/restore/request.json")),
            certificate=Path(environment.get("CERTIFICATE", "/etc/postgresql/tls/tls.crt")),
            socket=Path(environment.get("PGHOST", "/run/postgresql")),
            interval=timedelta(hours=float(environment.get("BACKUP_INTERVAL_HOURS", "24"))),
            keep_days=int(environment.get("BACKUP_KEEP_DAYS", "14")),
        )


@dataclass(frozen=True)
class Backup:
    """A base backup; `end` and `end_lsn` are those of a complete one."""

    name: str
    complete: bool
    timeline: int
    end: datetime
    end_lsn: int

    @classmethod
    def parse(cls, item: Json) -> Backup:
        """From an entry of barman-cloud-backup-list."""
        ended = item.get("end_time_iso")
        return cls(
            item["backup_id"],
            item["status"] == "DONE",
            int(item.get("timeline") or 0),
            datetime.fromisoformat(ended) if ended else datetime.max.replace(tzinfo=UTC),
            lsn(item["end_xlog"]) if item.get("end_xlog") else 0,
        )


def lsn(text: str) -> int:
    """A position in the WAL, written as PostgreSQL does."""
    high, _, low = text.partition("/")
    return (int(high, 16) << 32) + int(low, 16)


def lineage(timeline: int, history: str) -> dict[int, float]:
    """The timelines that lead to one, each with the position where it was left. `history` is the content of its .history file."""
    found: dict[int, float] = {timeline: float("inf")}
    for line in history.splitlines():
        words = line.split()
        if len(words) >= 2 and words[0].isdigit():
            found[int(words[0])] = lsn(words[1])
    return found


def choose(backups: Sequence[Backup], line: Mapping[int, float], target: datetime | None) -> Backup | None:
    """The newest backup from which the server gets to `target` (None: to the end) on that lineage."""
    usable = [
        each
        for each in backups
        if each.complete and each.end_lsn <= line.get(each.timeline, -1) and (target is None or each.end <= target)
    ]
    return max(usable, key=lambda each: each.end, default=None)


def parse_time(text: str) -> datetime:
    """A point in time by ISO 8601; one without a zone is UTC. Raises PodError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise PodError(f"target_time is {text!r}, no time such as 2026-11-26T14:05:00+00:00") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def identifier(data: Path) -> str:
    """The system identifier of the database cluster in a folder: the first 8 bytes of its control file."""
    with (data / "global/pg_control").open("rb") as file:
        return str(struct.unpack("<Q", file.read(8))[0])


def major(data: Path) -> str:
    """The PostgreSQL version whose server can read a folder."""
    return (data / "PG_VERSION").read_text().strip()


def server_major() -> str:
    """The major version of this image's server."""
    said = subprocess.run(["postgres", "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"\) (\d+)", said)
    if not found:
        raise PodError(f"postgres --version says {said!r}")
    return found[1]


class Archive:
    """The bucket, by barman-cloud. Credentials are read at each use, so that rotated ones count at once."""

    def __init__(self, settings: Settings) -> None:
        self.bucket = settings.bucket
        self._folder = settings.credentials

    @property
    def endpoint(self) -> str:
        return f"http://{self._read('endpoint')}"

    def _read(self, key: str) -> str:
        try:
            return (self._folder / key).read_text().strip()
        except OSError as error:
            raise PodError(f"no credentials for the archive: {error}") from error

    def environment(self) -> dict[str, str]:
        """What boto3 takes its credentials from."""
        return {
            "AWS_ACCESS_KEY_ID": self._read("accessKey"),
            "AWS_SECRET_ACCESS_KEY": self._read("secretKey"),
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "3",
        }

    def words(self, server: str, *options: str) -> list[str]:
        """The arguments that every command of barman-cloud begins with."""
        place = ["--endpoint-url", self.endpoint, "--addressing-style", "path", "--read-timeout", "30"]
        return [*place, *options, f"s3://{self.bucket}", server]

    def become(self, client: str, words: Sequence[str]) -> int:
        """Run a command of barman-cloud in this process; return its exit status."""
        os.environ.update(self.environment())
        try:
            importlib.import_module(f"barman.clients.{client}").main(list(words))
        except SystemExit as error:
            return error.code if isinstance(error.code, int) else int(bool(error.code))
        return 0

    def run(self, client: str, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
        """Run a command of barman-cloud; any exit status is fine. It says on stderr what it does."""
        command = [sys.executable, "-m", f"barman.clients.{client}", *words]
        environment = {**os.environ, **self.environment()}
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
            try:
                out, _ = process.communicate()
            except BaseException:
                process.terminate()
                raise
        return subprocess.CompletedProcess(command, process.returncode, out)

    def demand(self, client: str, words: Sequence[str]) -> str:
        """Run a command that must succeed; return what it printed. Raises PodError."""
        done = self.run(client, words)
        if done.returncode:
            raise PodError(f"{client.replace('_', '-')} ended with {done.returncode}; its last lines above say why")
        return done.stdout

    def backups(self, server: str) -> list[Backup]:
        """All base backups of a server. Raises PodError."""
        said = self.demand("cloud_backup_list", self.words(server, "--format", "json"))
        return [Backup.parse(item) for item in json.loads(said or "{}").get("backups_list") or []]

    def _names(self, prefix: str) -> list[str]:
        """The names of files and folders right below a folder of the bucket. Raises PodError."""
        boto3, errors = importlib.import_module("boto3"), importlib.import_module("botocore.exceptions")
        os.environ.update(self.environment())
        client = boto3.client("s3", endpoint_url=self.endpoint)
        try:
            pages = list(
                client.get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix, Delimiter="/")
            )
        except (errors.BotoCoreError, errors.ClientError) as error:
            raise PodError(f"the archive cannot be listed: {error}") from error
        found = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes") or []]
        found += [item["Key"] for page in pages for item in page.get("Contents") or []]
        return [name.removeprefix(prefix).strip("/") for name in found]

    def servers(self) -> list[str]:
        """The database clusters that have a folder."""
        return [name for name in self._names("") if name.isdigit()]

    def timelines(self, server: str) -> list[int]:
        """The timelines that were begun after the first one."""
        matches = (re.match(r"([0-9A-F]{8})\.history", name) for name in self._names(f"{server}/wals/"))
        return sorted(int(match[1], 16) for match in matches if match)

    def history(self, server: str, timeline: int) -> str:
        """The content of a timeline's .history file; empty for the first, which has none."""
        if timeline == 1:
            return ""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "history")
            self.demand("cloud_walrestore", [*self.words(server), f"{timeline:08X}.history", str(path)])
            return path.read_text()


def prepare(settings: Settings, archive: Archive) -> None:
    """Fill the volume unless it holds a database cluster; a request to restore counts for an empty one only. Raises PodError."""
    data, here = settings.data, server_major()
    draft = data.with_name(f"{data.name}.part")
    if data.exists():
        if not (data / "PG_VERSION").exists():
            raise PodError(f"{data} holds no database cluster: it is not touched. Look into the volume")
        if (there := major(data)) != here:
            raise PodError(
                f"the volume holds databases of PostgreSQL {there}, and this server is PostgreSQL {here}: nothing is changed. "
                "The operations guide says how to bring them over (PostgreSQL, Major versions)"
            )
        # Volumes whose group the kubelet sets let that group write, which the server refuses.
        data.chmod(0o700)
        return
    if draft.exists():
        shutil.rmtree(draft)
    if settings.request.exists():
        restore(json.loads(settings.request.read_text()), settings, archive, draft)
        if (there := major(draft)) != here:
            raise PodError(f"the backup is one of PostgreSQL {there}, and this server is PostgreSQL {here}")
    else:
        options = ["--encoding=UTF8", "--locale=C.UTF-8", "--data-checksums", "--auth-local=peer", "--auth-host=reject"]
        subprocess.run(
            ["initdb", f"--pgdata={draft}", "--username=postgres", *options, "--no-instructions"], check=True
        )
    os.sync()
    draft.rename(data)
    say(f"{data}: database cluster {identifier(data)}")


def restore(request: Json, settings: Settings, archive: Archive, target: Path) -> None:
    """Bring a base backup to an empty folder, and have the server recover from there. Raises PodError."""
    moment = parse_time(request["target_time"]) if request.get("target_time") else None
    source, backups = find_source(str(request.get("source") or ""), archive)
    known = archive.timelines(source)
    wanted = str(request.get("timeline") or "latest")
    timeline = max(known, default=1) if wanted == "latest" else int(wanted)
    if timeline != 1 and timeline not in known:
        raise PodError(f"timeline is {timeline}; the archive of {source} has {[1, *known]}")
    chosen = choose(backups, lineage(timeline, archive.history(source, timeline)), moment)
    if chosen is None:
        listed = ", ".join(
            f"{each.name} (timeline {each.timeline}, ended {each.end})" for each in backups if each.complete
        )
        raise PodError(
            f"no base backup of {source} leads to {moment or 'the end'} on timeline {timeline}; there are: {listed or 'none'}"
        )
    say(
        f"restoring {source} from base backup {chosen.name} to {moment or 'the end of its archive'} on timeline {timeline}"
    )
    archive.demand("cloud_restore", [*archive.words(source), chosen.name, str(target)])
    target.chmod(0o700)
    lines = [f"recovery_target_timeline = '{timeline}'", "recovery_target_action = 'promote'"]
    if name := str(request.get("target_name") or ""):
        lines.append(f"recovery_target_name = '{name}'")
    elif moment:
        lines.append(f"recovery_target_time = '{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S.%f}+00'")
    # Beside the data, so that no base backup has it; without the signal the server takes no notice.
    settings.data.with_name("recovery.conf").write_text("".join(f"{line}\n" for line in lines))
    (target / "recovery.signal").touch(0o600)


def find_source(wanted: str, archive: Archive) -> tuple[str, list[Backup]]:
    """The database cluster to restore: the one that is wanted, or the one with the newest complete backup. Raises PodError."""
    names = archive.servers()
    if wanted and wanted not in names:
        raise PodError(f"source is {wanted}; the archive has: {', '.join(names) or 'nothing'}")
    found = {name: archive.backups(name) for name in ([wanted] if wanted else names)}
    ends = {name: max((each.end for each in backups if each.complete), default=None) for name, backups in found.items()}
    best = max(((end, name) for name, end in ends.items() if end), default=None)
    if best is None:
        raise PodError(f"the archive has no complete base backup of {wanted or 'any database cluster'}")
    return best[1], found[best[1]]


def fetch(settings: Settings, archive: Archive, name: str, path: str) -> int:
    """The exit status that the server's restore_command ends with: 1 where the archive has no such file.

    Anything else must not look like the end of the archive: the server would begin to serve with what it has.
    """
    words = [*archive.words(identifier(settings.data), "--no-partial"), name, path]
    status = archive.become("cloud_walrestore", words)
    return status if status in (0, 1) else GIVE_UP


def due(backups: Sequence[Backup], timeline: int, now: datetime, interval: timedelta) -> bool:
    """Whether it is time for a base backup; each timeline begins with one of its own."""
    ends = [each.end for each in backups if each.complete and each.timeline == timeline]
    return not ends or now - max(ends) >= interval


def back_up(settings: Settings, archive: Archive) -> None:
    """Take a base backup, then remove those that are not needed any more. Raises PodError."""
    with (settings.socket / "backup.lock").open("w") as lock:
        # One at a time, also of those that a person asks for.
        fcntl.flock(lock, fcntl.LOCK_EX)
        _back_up(settings, archive)


def _back_up(settings: Settings, archive: Archive) -> None:
    server = identifier(settings.data)
    archive.demand("cloud_backup", archive.words(server, "--gzip", "--immediate-checkpoint", "--name", "slipway"))
    # Nobody else takes backups now: one that is not complete was interrupted.
    for broken in [each for each in archive.backups(server) if not each.complete]:
        archive.demand("cloud_backup_delete", archive.words(server, "--backup-id", broken.name))
    policy = f"RECOVERY WINDOW OF {settings.keep_days} DAYS"
    archive.demand(
        "cloud_backup_delete", archive.words(server, "--retention-policy", policy, "--minimum-redundancy", "1")
    )


def mark(settings: Settings, name: str) -> Json:
    """Set a restore point, and wait until it is in the archive; return what a request to restore to it says. Raises PodError."""
    driver = importlib.import_module("psycopg2")
    try:
        connection = driver.connect(dbname="postgres", application_name="backup", connect_timeout=5)
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_walfile_name(pg_create_restore_point(%s))", (name,))
                segment = str(cursor.fetchone()[0])
                moment = datetime.now(UTC)
                cursor.execute("SELECT pg_switch_wal()")
                end = time.monotonic() + ARCHIVED
                while True:
                    # Beside segments it archives .history and .backup files, whose names begin like those.
                    cursor.execute("SELECT coalesce(last_archived_wal, '') FROM pg_stat_archiver")
                    archived = str(cursor.fetchone()[0])
                    if archived[:24] >= segment:
                        break
                    if time.monotonic() > end:
                        raise PodError(f"{segment} was not archived within {ARCHIVED:.0f} s; the server's log says why")
                    time.sleep(0.2)
        finally:
            connection.close()
    except driver.Error as error:
        raise PodError(f"the server does not answer: {str(error).strip()}") from error
    return {
        "source": identifier(settings.data),
        "timeline": int(segment[:8], 16),
        "target_name": name,
        "target_time": moment.isoformat(),
    }


class Keeper:
    """The sidecar's work."""

    def __init__(self, settings: Settings, archive: Archive) -> None:
        self.settings = settings
        self.archive = archive
        self.certificate = ""
        self.timeline = 0
        self.next: datetime | None = None

    def look(self, connection: Any, now: datetime) -> None:
        """Do what is to be done now. Raises PodError."""
        with connection.cursor() as cursor:
            digest = hashlib.sha256(self.settings.certificate.read_bytes()).hexdigest()
            if digest != self.certificate:
                cursor.execute("SELECT pg_reload_conf()")
                self.certificate = digest
            cursor.execute("SELECT timeline_id FROM pg_control_checkpoint()")
            timeline = int(cursor.fetchone()[0])
        if timeline != self.timeline:
            self.timeline, self.next = timeline, now
        if self.next is None or now < self.next:
            return
        self.next = now + timedelta(seconds=RETRY)
        backups = self.archive.backups(identifier(self.settings.data))
        if due(backups, timeline, now, self.settings.interval):
            back_up(self.settings, self.archive)
            say("base backup taken")
            self.next = now + self.settings.interval
        else:
            ends = [each.end for each in backups if each.complete and each.timeline == timeline]
            self.next = max(ends) + self.settings.interval

    def run(self) -> None:
        """Look for ever."""
        driver = importlib.import_module("psycopg2")
        while True:
            try:
                connection = driver.connect(dbname="postgres", application_name="keeper", connect_timeout=5)
                try:
                    connection.autocommit = True
                    while True:
                        self.look(connection, datetime.now(UTC))
                        time.sleep(LOOK)
                finally:
                    connection.close()
            except driver.Error as error:
                # It starts, recovers or stops; its own container says why.
                say(f"the server does not answer: {str(error).strip()}")
            except (PodError, OSError) as error:
                say(f"failed, tried again within {RETRY:.0f} s: {error}")
            time.sleep(LOOK)


def say(text: str) -> None:
    """A line of the log."""
    print(f"postgres_pod: {text}", file=sys.stderr, flush=True)


def stop(*_: object) -> None:
    """End, with what was started."""
    raise SystemExit(0)


def main(words: Sequence[str]) -> int:
    """Run one verb; return the exit status."""
    settings = Settings.read(os.environ)
    archive = Archive(settings)
    match words:
        case ["prepare"]:
            prepare(settings, archive)
        case ["archive", path]:
            server = archive.words(identifier(settings.data), "--gzip")
            return archive.become("cloud_walarchive", [*server, path])
        case ["fetch", name, path]:
            return fetch(settings, archive, name, path)
        case ["keep"]:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, stop)
            Keeper(settings, archive).run()
        case ["backup"]:
            back_up(settings, archive)
        case ["backup", name]:
            back_up(settings, archive)
            print(json.dumps(mark(settings, name)))
        case ["backups"]:
            print(
                json.dumps(
                    [each.__dict__ for each in archive.backups(identifier(settings.data))], default=str, indent=1
                )
            )
        case _:
            print(__doc__, file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (PodError, OSError, subprocess.CalledProcessError) as problem:
        say(str(problem))
        # Of archive and fetch: the server tries again, or stops; it never takes it for the end of the archive.
        sys.exit(GIVE_UP if sys.argv[1:2] == ["fetch"] else 1)
