"""A client of Kubeflow Pipelines' REST API v2beta1: what submitting a run, following and ending it need, no more.

The SDK cannot be had beside Airflow: it wants older versions of the Kubernetes client than Airflow's provider does.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

import httpx

Json = dict[str, Any]
T = TypeVar("T")

API = "/apis/v2beta1"
FINAL = frozenset({"SUCCEEDED", "FAILED", "CANCELED", "SKIPPED"})
MAX_NAME = 128
_TIMEOUT = httpx.Timeout(60.0, connect=10.0)  # seconds
_PAUSE = 2.0  # seconds between two tries of a server that is away
_SETTLE = 1.1  # seconds
_EQUALS = 1

log = logging.getLogger(__name__)


class KubeflowPipelinesError(Exception):
    """The server refuses, in one line."""


class Away(KubeflowPipelinesError):
    """The server did not answer for as long as it may be away."""


class Overdue(KubeflowPipelinesError):
    """A run goes on after its time."""


@dataclass(frozen=True)
class Address:
    """Where the server is and how one gets in.

    Attributes:
        url: of the API, without its path.
        login: user and password of the front door's basic authentication, where there is one.
        ca_file: PEM file of the authority that signed its certificate; the system's where it is None.
    """

    url: str
    login: tuple[str, str] | None = None
    ca_file: str | None = None


@dataclass(frozen=True)
class Run:
    """A run as the server knows it.

    Attributes:
        run_id, name, state, created_at: its own.
        pipeline_id, version_id: what it was made from.
        terminated: whether somebody asked for its end.
        archived: whether somebody put it aside.
        error: the server's words about how it ended.
        failed: names of entries in its list of tasks that failed, with the server's words about each.
    """

    run_id: str
    name: str
    state: str
    created_at: str
    pipeline_id: str = ""
    version_id: str = ""
    terminated: bool = False
    archived: bool = False
    error: str = ""
    failed: dict[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, answer: Json) -> Run:
        """Reads what the API says."""
        reference = answer.get("pipeline_version_reference") or {}
        state = answer.get("state", "PENDING")
        details = (answer.get("run_details") or {}).get("task_details") or []
        # What was terminated ends as FAILED.
        history = [entry.get("state") for entry in answer.get("state_history") or []]
        return cls(
            run_id=answer["run_id"],
            name=answer.get("display_name", ""),
            state=state,
            created_at=answer.get("created_at", ""),
            pipeline_id=reference.get("pipeline_id", ""),
            version_id=reference.get("pipeline_version_id", ""),
            terminated=bool({"CANCELING", "CANCELED"} & {state, *history}),
            archived=answer.get("storage_state") == "ARCHIVED",
            error=(answer.get("error") or {}).get("message", ""),
            failed={
                detail.get("display_name", ""): (detail.get("error") or {}).get("message", "")
                for detail in details
                if detail.get("state") == "FAILED"
            },
        )

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self.state in FINAL

    @property
    def alive(self) -> bool:
        """Whether whoever wants its work done need not start another."""
        return not self.terminated and not self.archived and self.state not in ("FAILED", "CANCELED", "SKIPPED")

    def facts(self) -> Json:
        """Itself as JSON."""
        return asdict(self)


class Client:
    """The API, patient with a server that is away.

    Args:
        address: of the server.
        away: how long it may be away, s.
        pause: between two tries, s.
    """

    def __init__(self, address: Address, away: float = 300.0, pause: float = _PAUSE) -> None:
        self.address, self.away, self.pause = address, away, pause
        self._http: httpx.AsyncClient | None = None

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        """Keeps connections for as long as the block lasts."""
        verify: ssl.SSLContext | bool = True
        if self.address.ca_file:
            try:
                verify = ssl.create_default_context(cafile=self.address.ca_file)
            except OSError as error:
                raise KubeflowPipelinesError(f"{self.address.ca_file}: {error.strerror or error}") from error
        async with httpx.AsyncClient(
            base_url=self.address.url.rstrip("/") + API, auth=self.address.login, verify=verify, timeout=_TIMEOUT
        ) as http:
            self._http = http
            try:
                yield self
            finally:
                self._http = None

    async def pipeline(self, name: str, version: str | None = None) -> tuple[str, str]:
        """Ids of an uploaded pipeline and of its version of that name, or of the newest one.

        Raises:
            KubeflowPipelinesError: there is none.
        """

        async def work() -> tuple[str, str]:
            found = await self._list("pipelines", "pipelines", filter=_named(name))
            if not found:
                raise KubeflowPipelinesError(f"{self.address.url}: no pipeline {name!r} was uploaded")
            pipeline_id = str(found[0]["pipeline_id"])
            wanted = {"filter": _named(version)} if version else {}
            path = f"pipelines/{pipeline_id}/versions"
            versions = await self._list(path, "pipeline_versions", sort_by="created_at desc", **wanted)
            if not versions:
                raise KubeflowPipelinesError(f"{self.address.url}: pipeline {name!r} has no version {version or ''!r}")
            return pipeline_id, str(versions[0]["pipeline_version_id"])

        return await self._patiently(work)

    async def submit(
        self,
        experiment: str,
        name: str,
        pipeline: tuple[str, str],
        parameters: Mapping[str, Any],
        description: str = "",
    ) -> tuple[Run, bool]:
        """Makes sure that there is a run of that name which is under way or has succeeded.

        An answer that got lost does not start a second one, and of two that were started at once only the older goes on.

        Args:
            experiment: which it belongs to; made where it is not there.
            name: that no other work has.
            pipeline: ids of pipeline and version.
            parameters: of the run.
            description: for people.

        Returns:
            the run, and whether this call has started it.
        """

        async def work() -> tuple[Run, bool]:
            experiment_id = await self._experiment(experiment)
            if there := await self._alive(experiment_id, name):
                return there[0], False
            body = {
                "display_name": name,
                "description": description,
                "experiment_id": experiment_id,
                "pipeline_version_reference": {"pipeline_id": pipeline[0], "pipeline_version_id": pipeline[1]},
                "runtime_config": {"parameters": dict(parameters)},
            }
            made = Run.read(await self._ask("POST", "runs", json=body))
            # The server's times are in seconds: whoever makes a run after this pause has a younger one, and sees ours.
            await asyncio.sleep(_SETTLE)
            first = (await self._alive(experiment_id, name) or [made])[0]
            if first.run_id != made.run_id:
                await self._terminate(made.run_id)
            return first, first.run_id == made.run_id

        return await self._patiently(work)

    async def run(self, run_id: str) -> Run:
        """A run."""

        async def work() -> Run:
            return Run.read(await self._ask("GET", f"runs/{run_id}"))

        return await self._patiently(work)

    async def terminate(self, run_id: str) -> None:
        """Asks for the end of a run; one that has ended stays as it is."""
        await self._patiently(lambda: self._terminate(run_id))

    async def follow(self, run_id: str, deadline: float, poll: float) -> Run:
        """Waits until a run has ended.

        Args:
            run_id: of the run.
            deadline: when it must have, as time.time().
            poll: between two looks, s.

        Raises:
            Overdue: it has not ended in time.
            Away: the server was away for too long.
        """
        state = ""
        while True:
            run = await self.run(run_id)
            if run.state != state:
                log.info("run %s: %s", run_id, run.state)
                state = run.state
            if run.final:
                return run
            if time.time() >= deadline:
                raise Overdue(f"run {run_id} ({run.name}) is still {run.state}")
            await asyncio.sleep(min(poll, max(0.0, deadline - time.time()) + 0.01))

    async def explain(self, run: Run) -> str:
        """Why a run has not succeeded, in one line that names the tasks which failed."""
        text = f"run {run.run_id} ({run.name}) "
        if run.terminated:
            return text + "was terminated"
        failed = run.failed
        try:
            path = f"pipelines/{run.pipeline_id}/versions/{run.version_id}"
            version = await self._patiently(lambda: self._ask("GET", path))
            # Beside the tasks the server lists their drivers, groups, attempts and the workflow.
            names = _task_names(version["pipeline_spec"])
            of_tasks = {name: words for name, words in run.failed.items() if name in names}
            failed = of_tasks or {name: words for name, words in run.failed.items() if words} or run.failed
        except (KubeflowPipelinesError, KeyError, TypeError, AttributeError) as error:
            log.info("nothing is known of the pipeline of run %s: %s", run.run_id, error)
        tasks = ", ".join(f"{name} ({words})" if words else name for name, words in sorted(failed.items()))
        text += f"ended {run.state}" + (f": {run.error}" if run.error else "")
        return f"{text}; failed: {tasks or 'no task'}; the reason is in the log of its pod, label pipeline/runid={run.run_id}"

    async def _terminate(self, run_id: str) -> None:
        try:
            await self._ask("POST", f"runs/{run_id}:terminate")
        except KubeflowPipelinesError:
            # It says no to a run that has ended; nothing is to be done then.
            if not Run.read(await self._ask("GET", f"runs/{run_id}")).final:
                raise

    async def _experiment(self, name: str) -> str:
        found = await self._list("experiments", "experiments", filter=_named(name))
        if not found:
            try:
                return str((await self._ask("POST", "experiments", json={"display_name": name}))["experiment_id"])
            except KubeflowPipelinesError:
                # Somebody else may have made it just now.
                found = await self._list("experiments", "experiments", filter=_named(name))
                if not found:
                    raise
        return str(found[0]["experiment_id"])

    async def _alive(self, experiment_id: str, name: str) -> list[Run]:
        """The runs of a name that need no successor, oldest first."""
        found = await self._list("runs", "runs", experiment_id=experiment_id, filter=_named(name))
        # The server compares without regard to case.
        runs = [run for run in map(Run.read, found) if run.name == name and run.alive]
        return sorted(runs, key=lambda run: (run.created_at, run.run_id))

    async def _list(self, path: str, key: str, **query: str) -> list[Json]:
        found: list[Json] = []
        token = ""
        while True:
            page = await self._ask("GET", path, params={**query, "page_size": "100", "page_token": token})
            found += page.get(key) or []
            token = page.get("next_page_token") or ""
            if not token:
                return found

    async def _ask(self, method: str, path: str, **options: Any) -> Json:
        """One request, one try."""
        if self._http is None:
            raise RuntimeError("the client is not open")
        answer = await self._http.request(method, f"/{path}", **options)
        if answer.status_code == 429 or answer.status_code >= 500:
            raise _Unwell(f"{answer.status_code} {_words(answer)}")
        if answer.status_code >= 400:
            raise KubeflowPipelinesError(
                f"{method} {self.address.url}{API}/{path}: {answer.status_code} {_words(answer)}"
            )
        try:
            value = answer.json() if answer.content else {}
        except ValueError:
            value = None
        if not isinstance(value, dict):
            # A redirect to a login page, or somebody else's server.
            raise KubeflowPipelinesError(
                f"{method} {self.address.url}{API}/{path}: {answer.status_code}, but no JSON: is this the API?"
            )
        return value

    async def _patiently(self, work: Callable[[], Awaitable[T]]) -> T:
        """Does some work, anew from its start while the server is away."""
        since: float | None = None
        while True:
            try:
                return await work()
            except (httpx.TransportError, _Unwell) as error:
                reason = str(error) or type(error).__name__
                # A certificate does not become right by waiting.
                if isinstance(error.__cause__, ssl.SSLCertVerificationError) or "CERTIFICATE_VERIFY_FAILED" in reason:
                    raise KubeflowPipelinesError(f"{self.address.url}: {reason}") from error
                now = time.monotonic()
                if since is None:
                    since = now
                    log.warning("%s is away (%s); waiting %g s at most", self.address.url, reason, self.away)
                if now - since >= self.away:
                    raise Away(f"{self.address.url}: no good answer for {self.away:g} s: {reason}") from error
                await asyncio.sleep(self.pause)


async def outcome(client: Client, run_id: str, deadline: float, poll: float) -> Json:
    """How waiting for a run ended, as a trigger's event can say it.

    Args:
        client: not open yet.
        run_id: of the run.
        deadline: when it must have ended, as time.time().
        poll: between two looks, s.

    Returns:
        `status`: succeeded, failed, terminated, overdue, away or refused; `message` for people; `run_id`; `run`, where it is known.
    """
    event: Json = {"run_id": run_id, "run": None}
    try:
        async with client.open():
            run = await client.follow(run_id, deadline, poll)
            if run.state == "SUCCEEDED":
                return event | {"status": "succeeded", "message": "", "run": run.facts()}
            status = "terminated" if run.terminated else "failed"
            return event | {"status": status, "message": await client.explain(run), "run": run.facts()}
    except KubeflowPipelinesError as error:
        status = {Overdue: "overdue", Away: "away"}.get(type(error), "refused")
        return event | {"status": status, "message": str(error)}


class _Unwell(Exception):
    """The server answers that it cannot for now."""


def run_name(*parts: str) -> str:
    """A name made of parts that is no longer than the server takes, and still another one for other parts."""
    text = " ".join(part for part in parts if part)
    if len(text) <= MAX_NAME:
        return text
    return f"{text[: MAX_NAME - 13]}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _named(name: str) -> str:
    return json.dumps({"predicates": [{"operation": _EQUALS, "key": "display_name", "stringValue": name}]})


def _words(answer: httpx.Response) -> str:
    """One line of an error; answers carry stack traces."""
    try:
        said = answer.json()
        text = str(said.get("message") or said.get("error_message") or said)
    except (ValueError, AttributeError):
        text = answer.text
    return text.strip().splitlines()[0][:500] if text.strip() else answer.reason_phrase


def _task_names(spec: Json) -> set[str]:
    """Names under which a server may list the tasks of a compiled pipeline that run a container."""
    spec = spec.get("pipeline_spec", spec)
    names: set[str] = set()
    for component in (spec["root"], *spec["components"].values()):
        for key, task in component.get("dag", {}).get("tasks", {}).items():
            if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                names |= {key, task["taskInfo"]["name"]}
    return names
