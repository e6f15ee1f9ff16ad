"""Submits a compiled pipeline to Kubeflow Pipelines and follows its run.

    .venv/kfp/bin/python pipelines/submit.py epos --host https://kubeflow-pipelines.example.org --image IMAGE \
        --user NAME --password-file FILE --parameter domain=example.org --follow

A pipeline is a folder beside this file, or a file that KFP's compiler wrote. `slipway-epos` in it becomes IMAGE. The version
is named by a hash of what is uploaded, so the same pipeline with the same image is uploaded once. Behind a login, give
--user and --password-file, or the variables KFP_USER and KFP_PASSWORD; through `kubectl port-forward svc/ml-pipeline 8888`
there is none.

Exit status: 0 the run was submitted, or with --follow has succeeded; 1 it failed, or the server stayed away; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import io
import json
import os
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import kfp
import kfp_server_api
import urllib3
import yaml
from kfp.client.token_credentials_base import TokenCredentialsBase

PIPELINES = Path(__file__).parent
IMAGE = "slipway-epos"
FINAL = ("SUCCEEDED", "FAILED", "CANCELED", "SKIPPED")
# Of several entries with a task's name the one that says most.
_WEIGHT = ("FAILED", "RUNNING", "CANCELING", "PAUSED", "PENDING", "CANCELED", "SUCCEEDED", "SKIPPED")
_REQUEST_TIMEOUT = (10, 60)  # s, to connect and to read
_POLL = 2.0  # s
T = TypeVar("T")


class UsageError(Exception):
    """An option, or the pipeline's file, is wrong."""


class Failure(Exception):
    """The run failed, or nothing can be known of it."""


@dataclass
class Pipeline:
    """What is uploaded.

    Attributes:
        name: of the pipeline.
        text: its compiled form, with the site's image.
        parameters: KFP's description of each, by name.
        tasks: those that run a container, each with the names under which a server may list it.
    """

    name: str
    text: str
    parameters: dict[str, dict[str, Any]]
    tasks: dict[str, set[str]] = field(default_factory=dict)

    @property
    def version(self) -> str:
        """Names this content."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:12]


def find(name: str) -> Path:
    """The compiled file of a pipeline.

    Raises:
        UsageError: there is none.
    """
    for path in (PIPELINES / name / "pipeline.yaml", Path(name)):
        if path.is_file():
            return path
    known = sorted(path.parent.name for path in PIPELINES.glob("*/pipeline.yaml"))
    raise UsageError(f"{name}: neither a file nor one of {', '.join(known)}")


def read(path: Path, image: str | None, gpu: bool) -> Pipeline:
    """Reads a compiled pipeline and fits it to a site.

    Args:
        path: what the compiler wrote.
        image: what `slipway-epos` stands for.
        gpu: whether tasks may ask for accelerators.

    Raises:
        UsageError: it is no compiled pipeline, or needs an image.
    """
    try:
        documents = list(yaml.safe_load_all(path.read_text()))
        spec = documents[0]
        name = str(spec["pipelineInfo"]["name"])
        executors = spec["deploymentSpec"]["executors"]
        parameters: dict[str, dict[str, Any]] = spec["root"].get("inputDefinitions", {}).get("parameters", {})
        for executor in executors.values():
            container = executor.get("container", {})
            if container.get("image") == IMAGE:
                if image is None:
                    raise UsageError(f"{path}: --image is needed in place of {IMAGE}")
                container["image"] = image
            if not gpu:
                container.get("resources", {}).pop("accelerator", None)
        for parameter in parameters.values():
            if parameter.get("defaultValue") == IMAGE:
                parameter["defaultValue"] = image
        tasks: dict[str, set[str]] = {}
        for component in (spec["root"], *spec["components"].values()):
            for key, task in component.get("dag", {}).get("tasks", {}).items():
                if "executorLabel" in spec["components"][task["componentRef"]["name"]]:
                    tasks[key] = {key, task["taskInfo"]["name"]}
    except (OSError, yaml.YAMLError, KeyError, IndexError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: is no compiled pipeline: {error!r}") from error
    return Pipeline(name, yaml.safe_dump_all(documents, sort_keys=True), parameters, tasks)


def arguments(pipeline: Pipeline, given: Sequence[str]) -> dict[str, Any]:
    """The parameters of a run, each of the type that the pipeline wants.

    Raises:
        UsageError: one is unknown, missing or of another type.
    """
    values: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or name not in pipeline.parameters:
            raise UsageError(
                f"--parameter {text}: expected NAME=VALUE with a NAME of {', '.join(sorted(pipeline.parameters))}"
            )
        kind = pipeline.parameters[name]["parameterType"]
        try:
            values[name] = _CONVERSIONS.get(kind, json.loads)(value)
        except ValueError as error:
            raise UsageError(f"--parameter {text}: {value!r} is no {kind}") from error
    for name, parameter in pipeline.parameters.items():
        if name not in values and not parameter.get("isOptional") and "defaultValue" not in parameter:
            raise UsageError(f"--parameter {name}=VALUE is needed")
    return values


_CONVERSIONS: dict[str, Callable[[str], Any]] = {"STRING": str, "NUMBER_INTEGER": int, "NUMBER_DOUBLE": float}


class Login(TokenCredentialsBase):  # type: ignore[misc]
    """HTTP basic authentication, as the platform's front door asks for it.

    Args:
        user, password: of a person who may see the page.
    """

    def __init__(self, user: str, password: str) -> None:
        self._token = base64.b64encode(f"{user}:{password}".encode()).decode()

    def refresh_api_key_hook(self, config: Any) -> None:
        """Sets the header; the SDK calls it before each request."""
        config.api_key["authorization"] = self._token
        config.api_key_prefix["authorization"] = "Basic"


class _Client(kfp.Client):  # type: ignore[misc]
    """The SDK's client with a time limit for every answer; it would wait for one as long as the connection lives."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """The first request, made while the object is made. One try: Server knows better when to try again."""
        ask = self.healthzs.healthz_service_get_healthz
        api = ask.__self__.api_client  # That of all requests.
        call = api.call_api

        def limited(*args: Any, **options: Any) -> Any:
            return call(*args, **{**options, "_request_timeout": options.get("_request_timeout") or _REQUEST_TIMEOUT})

        api.call_api = limited
        return ask()


class Server:
    """KFP's API, patient with a server that is away for a while.

    Args:
        host: its address.
        ca: PEM file of the authority that signed its certificate.
        login: user and password, where there is a login.
        away: how long the server may be away, s.
    """

    def __init__(self, host: str, ca: str | None, login: tuple[str, str] | None, away: float) -> None:
        self.host, self.away = host.rstrip("/"), away
        self._client = self._patiently(
            lambda: _Client(host=self.host, ssl_ca_cert=ca, credentials=Login(*login) if login else None)
        )

    def _patiently(self, work: Callable[[], T]) -> T:
        since: float | None = None
        while True:
            try:
                # The SDK prints links to pages.
                with contextlib.redirect_stdout(io.StringIO()):
                    return work()
            except (urllib3.exceptions.HTTPError, TimeoutError, kfp_server_api.ApiException) as error:
                status = getattr(error, "status", None)
                # A certificate does not become right by waiting; the SDK says 0 for some of those.
                wrong = isinstance(getattr(error, "reason", None), urllib3.exceptions.SSLError)
                if wrong or (status is not None and status < 500 and status != 429):
                    raise Failure(f"{self.host}: {f'{status} ' if status else ''}{_reason(error)}") from error
                now = time.monotonic()
                if since is None:
                    since = now
                    say(f"{self.host} does not answer ({_reason(error)}); waiting for it, {self.away:.0f} s at most")
                if now - since > self.away:
                    raise Failure(f"{self.host}: no answer for {self.away:.0f} s: {_reason(error)}") from error
                time.sleep(_POLL)

    def upload(self, pipeline: Pipeline) -> tuple[str, str]:
        """Makes sure that the pipeline is there in this version; returns both ids."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "pipeline.yaml"
            path.write_text(pipeline.text)
            return self._patiently(lambda: self._upload(pipeline, str(path)))

    def _upload(self, pipeline: Pipeline, path: str) -> tuple[str, str]:
        client = self._client
        found = client.get_pipeline_id(pipeline.name)
        if found is None:
            # This makes a first version as well, with the pipeline's name.
            found = _unless_there(lambda: client.upload_pipeline(path, pipeline.name).pipeline_id)
            found = found or client.get_pipeline_id(pipeline.name)
        version = self._version(found, pipeline.version)
        if version is None:
            version = _unless_there(
                lambda: client.upload_pipeline_version(path, pipeline.version, pipeline_id=found).pipeline_version_id
            )
            version = version or self._version(found, pipeline.version)
        return str(found), str(version)

    def _version(self, pipeline_id: str, name: str) -> str | None:
        token = ""
        while True:
            page = self._client.list_pipeline_versions(pipeline_id, page_token=token, page_size=100)
            for version in page.pipeline_versions or ():
                if version.display_name == name:
                    return str(version.pipeline_version_id)
            token = page.next_page_token or ""
            if not token:
                return None

    def start(self, experiment: str, name: str, ids: tuple[str, str], parameters: dict[str, Any]) -> str:
        """Starts a run; returns its id. An answer that got lost does not start a second one."""

        def work() -> str:
            experiment_id = self._client.create_experiment(experiment).experiment_id
            runs = self._client.list_runs(experiment_id=experiment_id, page_size=50, sort_by="created_at desc").runs
            for run in runs or ():
                if run.display_name == name:
                    return str(run.run_id)
            run = self._client.run_pipeline(
                experiment_id, name, params=parameters, pipeline_id=ids[0], version_id=ids[1]
            )
            return str(run.run_id)

        return self._patiently(work)

    def run(self, run_id: str) -> Any:
        """The state of a run."""
        return self._patiently(lambda: self._client.get_run(run_id))


def _unless_there(work: Callable[[], str]) -> str | None:
    """What the work gives; None where somebody else did it just before."""
    try:
        return work()
    except kfp_server_api.ApiException as error:
        if error.status != 409:
            raise
        return None


def _reason(error: Exception) -> str:
    """One line about an error; KFP's answers carry stack traces."""
    body = getattr(error, "body", None)
    with contextlib.suppress(ValueError, TypeError, AttributeError):
        answer = json.loads(body or "")
        return str(answer.get("message") or answer.get("error_message"))
    return str(getattr(error, "reason", None) or error).splitlines()[0]


def say(text: str) -> None:
    """Prints a line for people who follow."""
    print(text, flush=True)


def task_states(pipeline: Pipeline, run: Any) -> dict[str, dict[str, Any]]:
    """State and times of each task.

    KFP lists the nodes of its workflow, several for each task; that with the task's own name is the task.
    """
    details = (run.run_details.task_details if run.run_details else None) or ()
    found: dict[str, dict[str, Any]] = {}
    for key, names in pipeline.tasks.items():
        entries = [entry for entry in details if entry.display_name in names]
        if not entries:
            continue
        entry = min(entries, key=lambda e: _WEIGHT.index(e.state) if e.state in _WEIGHT else len(_WEIGHT))
        started, ended = _time(entry.start_time), _time(entry.end_time)
        found[key] = {
            "state": entry.state or "PENDING",
            "started": started.isoformat() if started else None,
            "ended": ended.isoformat() if ended else None,
            "seconds": (ended - started).total_seconds() if started and ended else None,
        }
    return found


def _time(value: datetime | None) -> datetime | None:
    """A point in time; KFP writes the year 1 or 1970 for none."""
    return value if value is not None and value.year > 1970 else None


def follow(server: Server, pipeline: Pipeline, run_id: str, timeout: float, record: dict[str, Any]) -> None:
    """Waits for the end of a run, with a line for each change.

    Args:
        server: that runs it.
        pipeline: of the run.
        run_id: its id.
        timeout: for the whole run, s.
        record: gets states and times as they are known.

    Raises:
        Failure: the run did not succeed in time.
    """
    start = time.monotonic()
    seen: dict[str, str] = {}
    while True:
        run = server.run(run_id)
        tasks = task_states(pipeline, run)
        record |= {"state": run.state, "tasks": tasks, "seconds": round(time.monotonic() - start, 1)}
        states = {name: str(task["state"]) for name, task in tasks.items()} | {"run": str(run.state)}
        for name, state in states.items():
            if seen.get(name) != state:
                took = tasks.get(name, {}).get("seconds")
                say(f"{datetime.now(UTC):%H:%M:%S} {name}: {state}" + (f", {took:.0f} s" if took is not None else ""))
        seen = states
        if run.state in FINAL:
            break
        if time.monotonic() - start > timeout:
            waiting = [f"{name} {state}" for name, state in states.items() if state not in FINAL and name != "run"]
            raise Failure(f"run {run_id} goes on after {timeout:.0f} s: {', '.join(waiting) or 'no task has started'}")
        time.sleep(_POLL)
    if run.state != "SUCCEEDED":
        failed = [name for name, state in states.items() if state == "FAILED" and name != "run"]
        reason = f": {run.error.message}" if run.error and run.error.message else ""
        raise Failure(f"run {run_id} ended {run.state}{reason}; failed: {', '.join(failed) or 'no task'}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see --help)")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        UsageError: it is wrong.
    """
    about, _, more = (__doc__ or "").partition("\n\n")
    parser = _Parser(
        prog="submit.py", description=about, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", metavar="PIPELINE", help="epos, iris, or a compiled file")
    parser.add_argument("--host", required=True, metavar="URL", help="of KFP's API or pages")
    parser.add_argument("--ca", metavar="FILE", help="PEM file of the authority that signed the server's certificate")
    parser.add_argument("--user", default=os.environ.get("KFP_USER"), help="of the login")
    parser.add_argument("--password-file", type=Path, metavar="FILE", help="its password")
    parser.add_argument("--image", metavar="REFERENCE", help=f"in place of {IMAGE}")
    parser.add_argument("--no-gpu", action="store_true", help="no task asks for an accelerator")
    parser.add_argument(
        "--parameter", action="append", default=[], metavar="NAME=VALUE", help="of the run; may be repeated"
    )
    parser.add_argument(
        "--experiment", default="slipway", metavar="NAME", help="which the run belongs to (default: %(default)s)"
    )
    parser.add_argument("--follow", action="store_true", help="wait for the end of the run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write what is known of the run")
    parser.add_argument(
        "--timeout", type=float, default=7200, metavar="S", help="for the whole run (default: %(default).0f)"
    )
    parser.add_argument("--away", type=float, default=300, metavar="S",
                        help="how long the server may not answer (default: %(default).0f)")  # fmt: skip
    parser.add_argument(
        "--namespace",
        default="kubeflow-pipelines",
        metavar="NAME",
        help="where runs have their pods (default: %(default)s)",
    )
    return parser.parse_args(argv)


def _login(args: argparse.Namespace) -> tuple[str, str] | None:
    if args.user is None:
        return None
    if args.password_file is None:
        if "KFP_PASSWORD" not in os.environ:
            raise UsageError("--user needs --password-file, or the variable KFP_PASSWORD")
        return args.user, os.environ["KFP_PASSWORD"]
    try:
        return args.user, args.password_file.read_text().strip("\n")
    except OSError as error:
        raise UsageError(f"--password-file: {args.password_file}: {error.strerror}") from error


def submit(args: argparse.Namespace, record: dict[str, Any]) -> None:
    """Does what the command line says.

    Args:
        args: of parse().
        record: gets what is known, also when this fails.

    Raises:
        UsageError, Failure: in one line.
    """
    if args.ca and not Path(args.ca).is_file():
        raise UsageError(f"--ca: {args.ca}: no such file")
    pipeline = read(find(args.pipeline), args.image, not args.no_gpu)
    parameters = arguments(pipeline, args.parameter)
    record |= {"pipeline": pipeline.name, "version": pipeline.version, "parameters": parameters, "host": args.host}
    server = Server(args.host, args.ca, _login(args), args.away)
    ids = server.upload(pipeline)
    run_id = server.start(args.experiment, f"{pipeline.name} {uuid.uuid4().hex[:12]}", ids, parameters)
    record |= {"run_id": run_id, "state": "PENDING"}
    say(f"run {run_id} of pipeline {pipeline.name}, version {pipeline.version}: {server.host}/#/runs/details/{run_id}")
    if not args.follow:
        return
    try:
        follow(server, pipeline, run_id, args.timeout, record)
    except Failure as error:
        logs = f"kubectl -n {args.namespace} logs -l pipeline/runid={run_id} -c main --prefix --tail 50"
        raise Failure(f"{error}\nlogs: {logs}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    warnings.filterwarnings("ignore", category=FutureWarning, module="kfp")
    record: dict[str, Any] = {}
    args = None
    status, message = 0, ""
    try:
        args = parse(argv)
        submit(args, record)
    except UsageError as error:
        status, message = 2, str(error)
    except Failure as error:
        status, message = 1, str(error)
    if message:
        record["error"] = message
        print(f"submit: {message}", file=sys.stderr, flush=True)
    if args is not None and args.json:
        args.json.write_text(json.dumps(record, indent=1, sort_keys=True) + "\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
