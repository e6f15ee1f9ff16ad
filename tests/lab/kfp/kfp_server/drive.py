"""One step of one run: start what can start, look at what runs, settle what has ended.

Everything that is known of a run is in its nodes, in the store, and in the pods. A step may be cut off anywhere: what it did
is found again by the next one, since pods and nodes have names that follow from what they are for.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import pipeline as compiled
from . import pods, stores
from .caching import enabled, fingerprint
from .conditions import ExpressionError, condition
from .kube import Kube, KubeError
from .nodes import FAILED, OMITTED, RUNNING, SKIPPED, SUCCEEDED, InputError, Node, Tree, digits
from .pipeline import Pipeline, SpecError
from .pods import Outcome
from .store import Run, Store, Task

Json = dict[str, Any]

log = logging.getLogger("kfp.engine")

CAUSES = (InputError, ExpressionError, SpecError, stores.StoreError, KeyError)


@dataclass(frozen=True)
class Limits:
    """How long is borne what does not heal by itself, what may, and a pod that is told to end and does not, in seconds."""

    broken: float = 300.0
    slow: float = 3600.0
    deletion: float = 60.0


class Drive:
    """A run for the length of a step."""

    def __init__(
        self,
        store: Store,
        kube: Kube,
        site: pods.Site,
        run: Run,
        found: Mapping[str, Json],
        clock: Callable[[], float],
        limits: Limits,
    ) -> None:
        """`found` are the run's pods by their names, as they were after the last step."""
        self._store = store
        self._kube = kube
        self._site = site
        self._run = run
        self._pods = found
        self._clock = clock
        self._limits = limits
        # Whether pods were made: the list is out of date then.
        self.touched = False
        self._tree = Tree(run, Pipeline(run.pipeline_spec, run.platform_spec))
        self._rows = {row.task_id: row for row in store.tasks(run.run_id)}
        self._written = {task_id: _content(row) for task_id, row in self._rows.items()}
        for row in self._rows.values():
            if "path" in row.state_json:
                node = Node(**row.state_json)
                self._tree.nodes[node.path] = node

    def step(self) -> None:
        """Bring the run as far as it can get now."""
        run = self._run
        if run.retry:
            self._reset()
        self._ending = bool(run.cancel) or self._overdue()
        before = run.state
        if run.cancel:
            run.enter("CANCELING")
        elif run.state == "PENDING":
            run.enter("RUNNING")
        root = self._tree.nodes.get("root")
        if root is None and not self._ending:
            root = self._begin()
        if root is not None:
            self._visit(root)
            self._show(root, run.workflow, root.state)
        if root is None or root.final:
            self._finish(root is not None and root.state == SUCCEEDED and not run.cancel)
        elif run.state != before:
            self._store.save_run(run)

    def _begin(self) -> Node:
        """The pipeline itself starts: its store and its inputs are settled."""
        run, pipeline = self._run, self._tree.pipeline
        config = (self._kube.get("configmaps", "kfp-launcher") or {}).get("data", {})
        given = run.runtime_config.get("pipeline_root") or pipeline.default_root
        root = given or config.get("defaultPipelineRoot") or stores.DEFAULT_ROOT
        run.engine.setdefault("generation", 0)
        run.engine["session"] = stores.session(config, root)
        run.engine["root"] = f"{root.split('?')[0].rstrip('/')}/{pipeline.name}/{run.run_id}"
        inputs = self._tree.root_inputs(run.runtime_config.get("parameters", {}))
        self._store.save_run(run)
        node = Node("root", "", "root", "dag", "", inputs=inputs)
        return self._add(node)

    def _finish(self, succeeded: bool) -> None:
        self._run.enter(SUCCEEDED if succeeded else FAILED)
        self._store.save_run(self._run)

    def _overdue(self) -> bool:
        """Whether the pipeline's own time limit has passed."""
        limit = int(self._tree.pipeline.config.get("activeDeadlineSeconds", 0))
        started = [entry for entry in self._run.state_history if entry["state"] == "RUNNING"]
        return bool(limit and started and self._clock() - pods.seconds(started[-1]["update_time"]) > limit)

    # Starting

    def _add(self, node: Node) -> Node:
        node.generation = self._run.engine["generation"]
        self._tree.nodes[node.path] = node
        self._save(node)
        return node

    def _next(
        self, parent: Node, name: str, task: Json, needs: list[str], handlers: Mapping[str, list[str]]
    ) -> Node | None:
        """The node of a task whose turn has come."""
        before = [self._tree.child(parent, need) for need in needs]
        states = [node.state for node in before if node is not None and node.final]
        if len(states) < len(needs):
            return None
        if compiled.is_exit(task):
            # A handler runs after what ended in whatever way, but not after what was never started. When the run is terminated it is cut off
            # before it begins: the time that the workflow may take is over.
            proceed = not {SKIPPED, OMITTED} & set(states) and not self._ending
            return self._start(parent, name, task, proceed)
        if self._ending:
            return None
        after = [self._tree.child(parent, handler) for need in needs for handler in handlers.get(need, [])]
        if any(node is None or not node.final for node in after):
            return None
        return self._start(parent, name, task, all(state == SUCCEEDED for state in states))

    def _start(self, parent: Node, name: str, task: Json, proceed: bool) -> Node:
        node = Node(f"{parent.path}.{name}", parent.path, name, "", compiled.component_name(task))
        node.kind = compiled.kind(self._tree.pipeline, task)
        if not proceed:
            node.state = OMITTED
            return self._add(node)
        return self._provide(node, task, lambda: self._tree.resolve(parent, name, task))

    def _start_iteration(self, loop: Node, path: str, index: int) -> Node:
        task = self._tree.task(loop)
        node = Node(path, loop.path, loop.name, "", loop.component)
        node.kind = compiled.kind(self._tree.pipeline, task, iteration=True)
        # The condition was the loop's.
        return self._provide(node, {**task, "triggerPolicy": {}}, lambda: self._tree.iteration_inputs(loop, index))

    def _provide(self, node: Node, task: Json, inputs: Callable[[], Json]) -> Node:
        """What the driver of the real server does: inputs, condition, outputs, cache."""
        self._tree.nodes[node.path] = node
        node.generation = self._run.engine["generation"]
        try:
            node.inputs = inputs()
            expression = task.get("triggerPolicy", {}).get("condition", "")
            if expression and not condition(expression, node.inputs["parameters"]):
                node.state = SKIPPED
            elif node.kind == "loop":
                node.items = self._tree.items(task, node.inputs)
            elif node.kind == "importer":
                self._import(node)
            elif node.kind != "dag":
                self._provision(node, task)
        except CAUSES as error:
            node.state, node.message = FAILED, str(error)
        if node.kind in ("dag", "loop", "container"):
            driver = "iteration" if node.kind == "loop" else _display(node)
            self._show(node, f"{driver}-driver", FAILED if node.state == FAILED else SUCCEEDED)
        self._save(node)
        return node

    def _provision(self, node: Node, task: Json) -> None:
        component = self._tree.pipeline.component(node.component)
        node.wanted = pods.provision(f"{self._run.engine['root']}/{node.name}/{uuid.uuid4()}", component)
        if node.kind == "createpvc":
            given = node.inputs["parameters"]
            if given.get("pvc_name") and given.get("pvc_name_suffix"):
                raise InputError("failed to create pvc: at most one of pvc_name and pvc_name_suffix can be non-empty")
            node.wanted["claim"] = given.get("pvc_name") or f"{uuid.uuid4()}{given.get('pvc_name_suffix') or ''}"
        if not enabled(task):
            return
        container = self._tree.pipeline.executor(component)["container"]
        claims = [node.wanted["claim"]] if node.kind == "createpvc" else pods.claims(self._tree, node)
        node.fingerprint = fingerprint(self._tree.pipeline.name, task, component, container, node, claims)
        kept = self._store.cached(node.fingerprint)
        if kept is not None:
            node.outputs, node.state = kept, SUCCEEDED
            self._show(node, "executor", SKIPPED)

    def _import(self, node: Node) -> None:
        component = self._tree.pipeline.component(node.component)
        importer = self._tree.pipeline.executor(component)["importer"]
        if importer.get("downloadToWorkspace"):
            raise InputError("downloadToWorkspace is not part of the stand-in")
        source = importer.get("artifactUri", {})
        uri = source.get("constant") or node.inputs["parameters"].get(source.get("runtimeParameter", ""))
        if not isinstance(uri, str) or not uri:
            raise InputError("the importer has no artifact URI")
        schema = importer.get("typeSchema", {})
        artifact = _recorded({"uri": uri, "type": schema, "metadata": importer.get("metadata", {})})
        node.outputs["artifacts"] = {name: [artifact] for name in compiled.artifacts(component, "output")}
        node.state = SUCCEEDED

    # Going on

    def _visit(self, node: Node) -> None:
        if node.final:
            return
        if node.kind == "dag":
            self._dag(node)
        elif node.kind == "loop":
            self._loop(node)
        elif node.kind == "container":
            self._container(node)
        else:
            self._claim(node)
        self._save(node)

    def _dag(self, node: Node) -> None:
        tasks = list(compiled.ordered(self._tree.pipeline.component(node.component)))
        handlers: dict[str, list[str]] = {}
        for name, task, needs in tasks:
            for need in needs if compiled.is_exit(task) else []:
                handlers.setdefault(need, []).append(name)
        missing, states = 0, list[str]()
        for name, task, needs in tasks:
            child = self._tree.child(node, name) or self._next(node, name, task, needs, handlers)
            if child is not None:
                self._visit(child)
                if compiled.is_exit(task) and child.state != OMITTED:
                    self._show(child, f"{needs[0]}.onExit" if needs else name, child.state)
            # The end of a handler does not count for its DAG.
            if child is None:
                missing += 1
            elif not compiled.is_exit(task) or not child.final:
                states.append(child.state)
        self._settle(node, missing, states)

    def _loop(self, node: Node) -> None:
        limit = int(self._tree.task(node).get("iteratorPolicy", {}).get("parallelismLimit", 0))
        missing, states = 0, list[str]()
        for index, (path, child) in enumerate(self._tree.iterations(node)):
            if child is None and not self._ending and (not limit or states.count(RUNNING) < limit):
                child = self._start_iteration(node, path, index)
            if child is None:
                missing += 1
            else:
                self._visit(child)
                states.append(child.state)
        self._settle(node, missing, states)

    def _settle(self, node: Node, missing: int, states: list[str]) -> None:
        """Whether a group has ended, by its members: those not started and the states of the others."""
        if RUNNING in states or (missing and not self._ending):
            return
        node.state = FAILED if FAILED in states or missing else SUCCEEDED

    def _container(self, node: Node) -> None:
        pod = self._pods.get(pods.name(self._tree, node))
        if pod is not None:
            node.created = True
            node.first_start = node.first_start or pods.seconds(pod["metadata"]["creationTimestamp"])
        outcome = pods.outcome(pod) if pod is not None else None
        if self._ending and (outcome is None or outcome.state != "succeeded"):
            self._end(node, pod)
        elif pod is not None and outcome is not None:
            self._look(node, pod, outcome)
        elif node.created:
            self._attempt_failed(node, Outcome("lost", "the pod was deleted"), None)
        elif self._clock() >= node.not_before:
            self._create(node)

    def _create(self, node: Node) -> None:
        try:
            body = pods.build(self._tree, node, self._site)
            self.touched = True
            self._kube.create("pods", body)
        except CAUSES as error:
            node.state, node.message = FAILED, str(error)
            return
        except KubeError as error:
            if error.passing:
                raise
            if error.status == 403 and "quota" in str(error):
                # Others may free some of it.
                self._wait(node, Outcome("stuck", str(error)), "")
                return
            if error.status != 409:
                node.state, node.message = FAILED, f"the pod is refused: {error}"
                return
        node.created, node.stuck, node.message = True, "", ""
        self._show_attempt(node, "PENDING")

    def _look(self, node: Node, pod: Json, outcome: Outcome) -> None:
        """Act on what a pod's status says."""
        name = pod["metadata"]["name"]
        if outcome.state == "succeeded":
            self._succeeded(node, pod)
        elif outcome.state == "failed":
            self._attempt_failed(node, outcome, pod)
        elif pod["metadata"].get("deletionTimestamp"):
            self._force(pod)
        elif outcome.state == "running":
            node.stuck, node.message = "", ""
            self._show_attempt(node, RUNNING)
        else:
            self._wait(node, outcome, name)

    def _wait(self, node: Node, outcome: Outcome, pod: str) -> None:
        """A pod that does not start: why is shown, and for how long that is borne depends on it."""
        node.message = outcome.reason
        sort = "broken" if outcome.broken else "slow"
        if node.stuck != sort:
            node.stuck, node.stuck_since = sort, self._clock()
        limit = self._limits.broken if outcome.broken else self._limits.slow
        if self._clock() - node.stuck_since < limit:
            return
        if pod:
            # It must not start after all, later.
            self._kube.delete("pods", pod)
        reason = outcome.reason or "the pod does not start"
        self._attempt_failed(node, Outcome("failed", f"{reason} (for {limit:.0f} s)"), None)

    def _succeeded(self, node: Node, pod: Json) -> None:
        found = self._kube.get(pods.RESULTS, pod["metadata"]["name"])
        if found is None:
            self._attempt_failed(node, Outcome("failed", "the pod ended without a report of its outputs"), pod)
            return
        report = pods.report(found)
        node.outputs = {
            "parameters": report.get("parameters", {}),
            "artifacts": {name: [_recorded(artifact)] for name, artifact in report.get("artifacts", {}).items()},
        }
        if node.fingerprint:
            self._store.cache(node.fingerprint, node.outputs)
        node.state, node.message = SUCCEEDED, ""
        self._show_attempt(node, SUCCEEDED)

    def _attempt_failed(self, node: Node, outcome: Outcome, pod: Json | None) -> None:
        """The next attempt, if the task has one left, else the end of it."""
        self._show_attempt(node, FAILED)
        # What a component did wrong is in its log, and as in the real server nowhere else.
        message = "" if pod is not None and pods.main_failed(pod) else outcome.reason
        wait = self._back_off(node, pods.finished_at(pod) if pod else self._clock())
        if wait is None:
            node.state, node.message = FAILED, message
            return
        node.attempt += 1
        node.created, node.stuck, node.message, node.not_before = False, "", message, wait
        if self._clock() >= wait:
            self._container(node)

    def _back_off(self, node: Node, ended: float) -> float | None:
        """When the next attempt may start; None if there is none."""
        policy = self._tree.task(node).get("retryPolicy", {})
        if node.attempt >= int(policy.get("maxRetryCount", 0)) or self._ending:
            return None
        factor = float(policy.get("backoffFactor", 1) or 1)
        start = ended + _duration(policy.get("backoffDuration")) * factor**node.attempt
        longest = _duration(policy.get("backoffMaxDuration"))
        return None if longest and start > node.first_start + longest else start

    def _end(self, node: Node, pod: Json | None) -> None:
        """The run is terminated: the pod goes, and with it the task."""
        if pod is not None and pod.get("status", {}).get("phase") not in ("Succeeded", "Failed"):
            if pod["metadata"].get("deletionTimestamp"):
                self._force(pod)
            else:
                self._kube.delete("pods", pod["metadata"]["name"])
            return
        if node.created:
            self._show_attempt(node, FAILED)
        node.state, node.message = FAILED, ""

    def _force(self, pod: Json) -> None:
        """Remove a pod that was to end and does not: the node that should end it is gone."""
        overdue = self._clock() - pods.seconds(pod["metadata"]["deletionTimestamp"])
        if overdue > self._limits.deletion:
            self._kube.delete("pods", pod["metadata"]["name"], 0)

    def _claim(self, node: Node) -> None:
        """Make or remove a volume claim; asked for again after a kill, that is the same."""
        if self._ending:
            node.state = FAILED
            return
        given = node.inputs["parameters"]
        try:
            if node.kind == "createpvc":
                self._create_claim(node, given)
            else:
                self._delete_claim(node, str(given.get("pvc_name")))
        except KubeError as error:
            if error.passing:
                raise
            node.state, node.message = FAILED, str(error)
            return
        node.state = SUCCEEDED
        if node.fingerprint and node.kind == "createpvc":
            self._store.cache(node.fingerprint, node.outputs)

    def _create_claim(self, node: Node, given: Json) -> None:
        mark = {pods.TASK_ANNOTATION: f"{self._run.run_id}/{node.path}/{node.generation}"}
        claim = node.wanted["claim"]
        spec: Json = {
            "accessModes": given.get("access_modes"),
            "resources": {"requests": {"storage": given.get("size")}},
            "storageClassName": given.get("storage_class_name", "standard"),
        }
        for key, parameter in (("volumeName", "volume_name"), ("dataSource", "data_source")):
            if given.get(parameter):
                spec[key] = given[parameter]
        metadata = {"name": claim, "annotations": {**(given.get("annotations") or {}), **mark}}
        body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        try:
            self._kube.create("persistentvolumeclaims", body)
        except KubeError as error:
            there = self._kube.get("persistentvolumeclaims", claim) if error.status == 409 else None
            if there is None or not mark.items() <= there["metadata"].get("annotations", {}).items():
                raise
        node.outputs["parameters"] = {"name": claim}

    def _delete_claim(self, node: Node, claim: str) -> None:
        if not node.created:
            if self._kube.get("persistentvolumeclaims", claim) is None:
                raise KubeError(f"failed to delete pvc {claim}: cannot find pvc", 404)
            node.created = True
            self._save(node)
        self._kube.delete("persistentvolumeclaims", claim)

    # Again

    def _reset(self) -> None:
        """What failed is forgotten, so that it starts anew; groups that it failed go on; what succeeded stays."""
        run = self._run
        run.engine["generation"] = run.engine.get("generation", 0) + 1
        self._store.save_run(run)
        for node in list(self._tree.nodes.values()):
            if node.state not in (FAILED, OMITTED, RUNNING) or node.kind not in ("dag", "loop"):
                again = node.state in (FAILED, OMITTED, RUNNING)
            else:
                # One that could not even start has to do so now.
                again = node.state == OMITTED or bool(node.message)
                if not again:
                    node.state = RUNNING
                    self._save(node)
            if again:
                self._forget(node)
        self._store.retry_begun(run.run_id)
        run.retry = ""

    def _forget(self, node: Node) -> None:
        for name, pod in self._pods.items():
            if pod["metadata"].get("annotations", {}).get(pods.TASK_ANNOTATION) == node.path:
                self._kube.delete("pods", name)
        del self._tree.nodes[node.path]
        # The node's own row goes last: while it is there, this is done again.
        own = self._id(node.path)
        rows = [task_id for task_id, row in self._rows.items() if task_id != own and self._belongs(row, node)]
        for task_id in (*rows, own):
            self._store.remove_task(task_id)
            self._rows.pop(task_id, None)
            self._written.pop(task_id, None)

    def _belongs(self, row: Task, node: Node) -> bool:
        return "path" not in row.state_json and row.task_id == self._id(node.path, row.display_name)

    # Showing

    def _id(self, path: str, display_name: str = "") -> str:
        """The id of a row: the same whoever writes it first."""
        return str(uuid.uuid5(uuid.UUID(self._run.run_id), f"{path}/{display_name}"))

    def _save(self, node: Node) -> None:
        row = self._row(self._id(node.path), _display(node))
        state = "" if node.state == OMITTED else node.state
        if row.state != state or not row.state_history:
            row.enter(state)
        row.error = {"code": 13, "message": node.message} if node.message else {}
        if node.kind == "container" and node.created:
            row.pods = [pods.name(self._tree, node)]
        row.state_json = dict(vars(node))
        self._write(row)

    def _show(self, node: Node, display_name: str, state: str, pod: str = "", artifacts: Json | None = None) -> None:
        """A row beside that of the node, as Argo has several for a task."""
        row = self._row(self._id(node.path, display_name), display_name)
        if row.state != state:
            row.enter(state)
        row.pods = [pod] if pod else []
        row.state_json = {"artifacts": artifacts} if artifacts else {}
        self._write(row)

    def _show_attempt(self, node: Node, state: str) -> None:
        name = pods.name(self._tree, node)
        kept = {artifact: listed[0]["uri"] for artifact, listed in node.outputs["artifacts"].items()}
        if self._site.publish_logs and state in (SUCCEEDED, FAILED):
            kept[pods.LOGS] = pods.log_uri(node)
        self._show(node, f"executor({node.attempt})", state, name, kept)
        self._show(node, "executor", RUNNING if state == "PENDING" else state, name)

    def _row(self, task_id: str, display_name: str) -> Task:
        row = self._rows.get(task_id)
        if row is None:
            row = Task(self._run.run_id, display_name, task_id=task_id)
            self._rows[task_id] = row
        return row

    def _write(self, row: Task) -> None:
        content = _content(row)
        if self._written.get(row.task_id) != content:
            self._store.save_task(row)
            self._written[row.task_id] = content


def _content(row: Task) -> str:
    return json.dumps(vars(row))


def _display(node: Node) -> str:
    """The name by which the real server shows a task: its own, not the one that set_display_name gives."""
    return "iteration-item" if node.path.endswith(")") else node.name


def _recorded(artifact: Json) -> Json:
    """An artifact as it comes out of ML Metadata: named by a number, its metadata in the sorts of values that it has."""

    def value(given: Any) -> Any:
        if isinstance(given, bool):
            return int(given)
        return {"list": given} if isinstance(given, list) else {"struct": given} if isinstance(given, dict) else given

    metadata = {key: value(given) for key, given in artifact.get("metadata", {}).items()}
    return {**artifact, "name": digits(artifact["uri"]), "metadata": metadata}


def _duration(text: str | None) -> float:
    """Seconds of a duration as protobuf writes it: "3.5s"."""
    return float(text.removesuffix("s")) if text else 0.0
