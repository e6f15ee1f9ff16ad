"""Filters for the role kubeflow_pipelines: what it is given, and the overlay that makes upstream's manifests ours."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from ansible.errors import AnsibleFilterError

Json = dict[str, Any]

# Deployment and container of what runs, by its name in kubeflow_pipelines_resources.
WORKLOADS: dict[str, tuple[str, str]] = {
    "api_server": ("ml-pipeline", "ml-pipeline-api-server"),
    "ui": ("ml-pipeline-ui", "ml-pipeline-ui"),
    "persistence_agent": ("ml-pipeline-persistenceagent", "ml-pipeline-persistenceagent"),
    "scheduled_workflow": ("ml-pipeline-scheduledworkflow", "ml-pipeline-scheduledworkflow"),
    "workflow_controller": ("workflow-controller", "workflow-controller"),
    "metadata_grpc": ("metadata-grpc-deployment", "container"),
    "metadata_envoy": ("metadata-envoy-deployment", "container"),
    "mysql": ("mysql", "mysql"),
}
# Init containers that wait until somebody listens at WAIT_HOST and WAIT_PORT. Upstream looks every 5 seconds, with an option of nc
# that not every busybox has, and has the pod fail after 5 minutes.
WAITS = {
    "api_server": ("wait-for-database", "wait-for-metadata-grpc"),
    "metadata_grpc": ("wait-for-database",),
    "persistence_agent": ("wait-for-ml-pipeline",),
    "scheduled_workflow": ("wait-for-ml-pipeline",),
}
_WAIT_SCRIPT = """\
until nc -w 2 "$WAIT_HOST" "$WAIT_PORT" -e true; do
  echo "waiting for $WAIT_HOST:$WAIT_PORT"
  sleep 1
done
"""
# What speaks to the Kubernetes API. The others get no token.
WITH_TOKEN = ("api_server", "ui", "persistence_agent", "scheduled_workflow", "workflow_controller")
# Upstream looks every 5 seconds whether they are ready, and others wait for that.
PROBED = ("api_server", "ui", "metadata_grpc")
# Upstream's images by their names in the bundle.
IMAGES = {
    "kfp_api_server": "ghcr.io/kubeflow/kfp-api-server",
    "kfp_frontend": "ghcr.io/kubeflow/kfp-frontend",
    "kfp_persistence_agent": "ghcr.io/kubeflow/kfp-persistence-agent",
    "kfp_scheduled_workflow": "ghcr.io/kubeflow/kfp-scheduled-workflow-controller",
    "kfp_metadata_envoy": "ghcr.io/kubeflow/kfp-metadata-envoy",
    "kfp_metadata_grpc": "gcr.io/tfx-oss-public/ml_metadata_store_server",
    "kfp_mysql": "mysql",
    "kfp_workflow_controller": "quay.io/argoproj/workflow-controller",
    # Init containers that wait.
    "busybox": "docker.io/alpine",
}
# Those that no container of the manifests names: they run in the pods of runs.
RUN_IMAGES = ("kfp_argoexec", "kfp_driver", "kfp_launcher")
# Where upstream's manifests put everything, and so where kustomize looks for what a patch names.
UPSTREAM = "kubeflow"
# What only pipelines of version 1 need, the object store that MinIO takes the place of, and what the role makes itself.
REMOVED: dict[str, Sequence[str]] = {
    "Deployment": (
        "cache-deployer-deployment",
        "cache-server",
        "metadata-writer",
        "ml-pipeline-viewer-crd",
        "ml-pipeline-visualizationserver",
        "seaweedfs",
    ),
    "Service": ("cache-server", "ml-pipeline-visualizationserver", "seaweedfs"),
    "ServiceAccount": (
        "kubeflow-pipelines-cache",
        "kubeflow-pipelines-cache-deployer-sa",
        "kubeflow-pipelines-container-builder",
        "kubeflow-pipelines-metadata-writer",
        "kubeflow-pipelines-viewer",
        "ml-pipeline-viewer-crd-service-account",
        "ml-pipeline-visualizationserver",
        "seaweedfs",
    ),
    "Role": (
        "kubeflow-pipelines-cache-deployer-role",
        "kubeflow-pipelines-cache-role",
        "kubeflow-pipelines-metadata-writer-role",
        "ml-pipeline-viewer-controller-role",
    ),
    "RoleBinding": (
        "kubeflow-pipelines-cache-binding",
        "kubeflow-pipelines-cache-deployer-rolebinding",
        "kubeflow-pipelines-metadata-writer-binding",
        "ml-pipeline-viewer-crd-binding",
    ),
    "ClusterRole": ("kubeflow-pipelines-cache-deployer-clusterrole",),
    "ClusterRoleBinding": ("kubeflow-pipelines-cache-deployer-clusterrolebinding",),
    # Nothing here serves them, and the second has the short name of Argo CD's.
    "CustomResourceDefinition": ("viewers.kubeflow.org", "applications.app.k8s.io"),
    "NetworkPolicy": ("seaweedfs",),
    "PersistentVolumeClaim": ("mysql-pv-claim", "seaweedfs-pvc"),
    "Secret": ("mlpipeline-minio-artifact", "mysql-secret"),
    "ConfigMap": ("kfp-cluster-scoped-params",),
    "Namespace": (UPSTREAM,),
}
_REMOVAL = {"$patch": "delete", "apiVersion": "any/v1", "kind": "Any", "metadata": {"name": "any"}}
STORE_SECRET = "mlpipeline-minio-artifact"
DATABASE_SECRET = "mysql-secret"
UI_SECRET = "ml-pipeline-ui"
# Where the workflow controller puts the logs of pods, and the UI looks for them once the pods are gone.
LOGS = (
    "private-artifacts/{{workflow.namespace}}/{{workflow.name}}/{{workflow.creationTimestamp.Y}}/"
    "{{workflow.creationTimestamp.m}}/{{workflow.creationTimestamp.d}}/{{pod.name}}"
)
ARTIFACTS = "v2/artifacts"
# Upstream tries pods again that got lost, twice, and no others: its default also takes hold where a task asks for retries, as KFP
# names no policy there. Only the template of such a task's own pod has the first of these inputs and not the second, and what is
# not there is left as it stands.
RETRIES = (
    "lastRetry.status == 'Error' || "
    "'{{inputs.parameters.retry-max-count}}/{{inputs.parameters.cached-decision}}' matches '^[0-9]+/[{]'"
)
# What the code of a run may ask of the API: what launcher, driver and Argo's executor do. Upstream's lets it read every Secret and
# make Deployments and Jobs.
RUN_RULES: list[Json] = [
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [STORE_SECRET], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["get", "list", "watch"]},
    {"apiGroups": [""], "resources": ["pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["persistentvolumeclaims"], "verbs": ["create", "delete", "get", "list", "watch"]},
    {"apiGroups": ["argoproj.io"], "resources": ["workflowtaskresults"], "verbs": ["create", "patch"]},
]
UI_RULES: list[Json] = [
    {"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get"]},
    {"apiGroups": [""], "resources": ["events"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["configmaps"], "verbs": ["get", "list"]},
    {"apiGroups": [""], "resources": ["secrets"], "resourceNames": [STORE_SECRET], "verbs": ["get"]},
    {"apiGroups": ["argoproj.io"], "resources": ["workflows"], "verbs": ["get", "list"]},
]
_RESTRICTED: Json = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_SMALL = {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"memory": "64Mi"}}
# MySQL takes MYSQL_ROOT_PASSWORD only where it makes the data. The volume outlives the Secret: each later start brings the
# database to the Secret's password, and mends a first start that was interrupted.
_DATABASE_SCRIPT = """\
if [ -d /data/mysql ]; then
  umask 077
  cat >/settings/root.sql <<END
CREATE USER IF NOT EXISTS 'root'@'%';
GRANT ALL PRIVILEGES ON *.* TO 'root'@'%' WITH GRANT OPTION;
ALTER USER 'root'@'%' IDENTIFIED BY '$PASSWORD';
ALTER USER 'root'@'localhost' IDENTIFIED BY '$PASSWORD';
END
  printf '[mysqld]\\ninit-file=/etc/mysql/conf.d/root.sql\\n' >/settings/slipway.cnf
fi
"""
# Upstream gives the password as an argument, which every process of the node can read.
_METADATA_SCRIPT = """\
umask 077
cat >/settings/server.txt <<END
connection_config {
  mysql { host: "$MYSQL_HOST" port: $MYSQL_PORT database: "$MYSQL_DATABASE" user: "$DBCONFIG_USER" password: "$DBCONFIG_PASSWORD" }
}
migration_options { enable_upgrade_migration: true }
END
"""


def kubeflow_pipelines_faults(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with the options of the role kubeflow_pipelines, one line each: option, key and remedy.

    `options` holds those of the role by their names, and `components`: those of the site in their order.
    """
    faults: list[str] = []
    components = list(options["components"])
    if "minio" not in components:
        faults.append("slipway_components: kubeflow_pipelines keeps artifacts in MinIO, but minio is not listed")
    for other in ("minio", "git"):
        if other in components and components.index(other) > components.index("kubeflow_pipelines"):
            faults.append(
                f"slipway_components: {other} must come before kubeflow_pipelines, which takes a credential from it"
            )
    resources = options["kubeflow_pipelines_resources"]
    for name in sorted(set(resources) - set(WORKLOADS)):
        faults.append(f"kubeflow_pipelines_resources: {name}: unknown; there are {', '.join(sorted(WORKLOADS))}")
    for index, patch in enumerate(options["kubeflow_pipelines_patches"]):
        if not isinstance(patch, Mapping) or not set(patch) <= {"patch", "target", "options"} or "patch" not in patch:
            faults.append(
                f"kubeflow_pipelines_patches[{index}]: needs patch, may have target and options, as in a kustomization.yaml"
            )
    for name, least in (("kubeflow_pipelines_keep_pods", 60), ("kubeflow_pipelines_lost_pod_retries", 0)):
        if options[name] < least:
            faults.append(f"{name}: {options[name]} is less than {least}")
    return faults


def kubeflow_pipelines_config(
    store: Mapping[str, Any], keep_pods: int, retries: int, timezone: str, pod_security: str
) -> dict[str, dict[str, str]]:
    """What upstream's ConfigMaps get, by their names.

    Args:
        store: where artifacts go: `host`, `port`, `bucket` and `region`.
        keep_pods: seconds that a finished run's workflow and pods stay.
        retries: how often a pod that got lost is tried again where its task does not say.
        timezone: that of recurring runs.
        pod_security: the level of the namespace; with `restricted` tasks must not run as root.
    """
    endpoint, bucket = f"{store['host']}:{store['port']}", str(store["bucket"])
    credentials = {"secretName": STORE_SECRET, "accessKeyKey": "accesskey", "secretKeyKey": "secretkey"}
    provider = {
        "default": {
            "endpoint": endpoint,
            "region": store["region"],
            "disableSSL": True,
            "forcePathStyle": True,
            "credentials": {"fromEnv": False, "secretRef": credentials},
        }
    }
    repository = {
        "archiveLogs": True,
        "s3": {
            "endpoint": endpoint,
            "bucket": bucket,
            "region": store["region"],
            "insecure": True,
            "keyFormat": LOGS,
            "accessKeySecret": {"name": STORE_SECRET, "key": "accesskey"},
            "secretKeySecret": {"name": STORE_SECRET, "key": "secretkey"},
        },
    }
    kept = dict.fromkeys(("secondsAfterCompletion", "secondsAfterSuccess", "secondsAfterFailure"), keep_pods)
    retry = {"limit": str(retries), "retryPolicy": "Always", "expression": RETRIES}
    return {
        "pipeline-install-config": {
            "bucketName": bucket,
            "cronScheduleTimezone": timezone,
            # Nothing here could run them.
            "BLOCK_V1_PIPELINES": "true",
            "defaultSecurityContextRunAsNonRoot": "true" if pod_security == "restricted" else "",
        },
        "kfp-launcher": {
            "defaultPipelineRoot": f"minio://{bucket}/{ARTIFACTS}",
            # A run may name either kind of address.
            "providers": _text({"minio": provider, "s3": provider}),
        },
        "workflow-controller-configmap": {
            "artifactRepository": _text(repository),
            "workflowDefaults": _text(
                {"spec": {"ttlStrategy": kept, "templateDefaults": {"retryStrategy": retry}}},
            ),
        },
    }


def _text(content: Any) -> str:
    """JSON, which is YAML: their readers take both."""
    return json.dumps(content, indent=1, sort_keys=True) + "\n"


def kubeflow_pipelines_overlay(
    images: Mapping[str, str],
    namespace: str,
    store: Mapping[str, Any],
    config_maps: Mapping[str, Mapping[str, str]],
    resources: Mapping[str, Any],
    annotations: Mapping[str, str],
    patches: Sequence[Mapping[str, Any]],
) -> Json:
    """The kustomization that makes upstream's manifests ours.

    Args:
        images: references by their names in the bundle.
        namespace: where everything goes.
        store: where artifacts go: `host`, `port`, `bucket` and `region`.
        config_maps: what ConfigMaps get, by their names.
        resources: requests and limits by the names of WORKLOADS.
        annotations: of all pods. Who changes them restarts the pods.
        patches: those of the user, which come last.

    Raises:
        AnsibleFilterError: the bundle lacks an image.
    """
    if missing := [name for name in (*IMAGES, *RUN_IMAGES) if name not in images]:
        raise AnsibleFilterError(
            f"the bundle names no image for {', '.join(missing)}; is it one of this release, made with kubeflow_pipelines "
            "in slipway_components?"
        )
    return {
        "namespace": namespace,
        "images": [_image(images[name], of) for name, of in IMAGES.items()],
        "patches": [
            *(
                {"target": {"kind": kind, "name": f"^{re.escape(name)}$"}, "patch": json.dumps(_REMOVAL)}
                for kind, names in REMOVED.items()
                for name in names
            ),
            *(_patch("v1", "ConfigMap", name, {"data": dict(data)}) for name, data in config_maps.items()),
            _role("pipeline-runner", RUN_RULES),
            _role("ml-pipeline-ui", UI_RULES),
            *(_workload(name, resources[name], annotations) for name in WORKLOADS),
            _api_server(images, store),
            _ui(store),
            _workflow_controller(images),
            _database(images["busybox"]),
            _metadata(images["busybox"]),
            *patches,
        ],
    }


def _image(reference: str, of: str) -> Json:
    """What takes the place of upstream's image `of`."""
    head, _, digest = reference.partition("@")
    repository, colon, tag = head.rpartition(":")
    # A colon before a slash is that of a port.
    if not colon or "/" in tag:
        repository, tag = head, ""
    return {
        "name": of,
        "newName": repository,
        **({"newTag": tag} if tag else {}),
        **({"digest": digest} if digest else {}),
    }


def _patch(version: str, kind: str, name: str, content: Json) -> Json:
    """A patch that fails where upstream has no such object any more."""
    metadata = {"name": name, "namespace": UPSTREAM}
    return {"patch": json.dumps({"apiVersion": version, "kind": kind, "metadata": metadata, **content}, sort_keys=True)}


def _role(name: str, rules: Sequence[Json]) -> Json:
    return _patch("rbac.authorization.k8s.io/v1", "Role", name, {"rules": list(rules)})


def _deployment(name: str, template: Json) -> Json:
    return _patch("apps/v1", "Deployment", name, {"spec": {"template": template}})


def _workload(name: str, resources: Any, annotations: Mapping[str, str]) -> Json:
    deployment, container = WORKLOADS[name]
    running: Json = {"name": container, "imagePullPolicy": "IfNotPresent", "resources": resources}
    if name in PROBED:
        running["readinessProbe"] = {"initialDelaySeconds": 1, "periodSeconds": 2}
    # Upstream's UI finds its servers by the links alone; it is told their names instead.
    spec: Json = {"enableServiceLinks": False, "containers": [running]}
    if name in WAITS:
        spec["initContainers"] = [{"name": each, "args": [_WAIT_SCRIPT]} for each in WAITS[name]]
    if name not in WITH_TOKEN:
        spec["automountServiceAccountToken"] = False
    return _deployment(deployment, {"metadata": {"annotations": dict(annotations)}, "spec": spec})


def _container(name: str, changes: Json) -> Json:
    deployment, container = WORKLOADS[name]
    return _deployment(deployment, {"spec": {"containers": [{"name": container, **changes}]}})


def _env(**values: Any) -> list[Json]:
    """Variables with fixed values; upstream may have taken them from elsewhere."""
    return [{"name": name, "value": str(value), "valueFrom": None} for name, value in values.items()]


def _from_secret(name: str, secret: str, key: str) -> Json:
    return {"name": name, "value": None, "valueFrom": {"secretKeyRef": {"name": secret, "key": key}}}


def _api_server(images: Mapping[str, str], store: Mapping[str, Any]) -> Json:
    return _container(
        "api_server",
        {
            "env": _env(
                OBJECTSTORECONFIG_HOST=store["host"],
                OBJECTSTORECONFIG_PORT=store["port"],
                OBJECTSTORECONFIG_REGION=store["region"],
                OBJECTSTORECONFIG_SECURE="false",
                # It does not start without this address, which service links gave; nothing is there any more.
                ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_HOST="ml-pipeline-visualizationserver",
                ML_PIPELINE_VISUALIZATIONSERVER_SERVICE_PORT=8888,
                V2_DRIVER_IMAGE=images["kfp_driver"],
                V2_LAUNCHER_IMAGE=images["kfp_launcher"],
            )
        },
    )


def _ui(store: Mapping[str, Any]) -> Json:
    host, _, rest = str(store["host"]).partition(".")
    return _container(
        "ui",
        {
            "env": [
                *_env(
                    # The UI puts a dot between them.
                    MINIO_HOST=host,
                    MINIO_NAMESPACE=rest,
                    MINIO_PORT=store["port"],
                    MINIO_SSL="false",
                    ARGO_ARCHIVE_BUCKETNAME=store["bucket"],
                    ARGO_KEYFORMAT=LOGS,
                    # Their server is left out.
                    ALLOW_CUSTOM_VISUALIZATIONS="false",
                    ML_PIPELINE_SERVICE_HOST="ml-pipeline",
                    ML_PIPELINE_SERVICE_PORT=8888,
                    METADATA_ENVOY_SERVICE_SERVICE_HOST="metadata-envoy-service",
                    METADATA_ENVOY_SERVICE_SERVICE_PORT=9090,
                ),
                _from_secret("TENSORBOARD_PROXY_SIGNING_SECRET", UI_SECRET, "signing"),
            ]
        },
    )


def _workflow_controller(images: Mapping[str, str]) -> Json:
    return _container(
        "workflow_controller",
        {
            # Only here is it said which image runs beside each task.
            "args": [
                "--configmap",
                "workflow-controller-configmap",
                "--executor-image",
                images["kfp_argoexec"],
                "--namespaced",
            ],
            # It looks at a run again every 10 seconds otherwise, and every step waits for that.
            "env": _env(DEFAULT_REQUEUE_TIME="1s"),
        },
    )


def _preparation(image: str, script: str, env: Sequence[Json], mounts: Sequence[Json], user: int) -> Json:
    """An init container that writes settings with a secret in them, which only its pod sees."""
    return {
        "name": "settings",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-ec", script],
        "env": list(env),
        "resources": _SMALL,
        "securityContext": {**_RESTRICTED, "runAsUser": user},
        "volumeMounts": [{"name": "settings", "mountPath": "/settings"}, *mounts],
    }


def _memory() -> Json:
    return {"name": "settings", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}


def _database(busybox: str) -> Json:
    data = {"name": "mysql-persistent-storage", "mountPath": "/data", "readOnly": True}
    user = 999
    probe = {"tcpSocket": {"port": 3306}, "timeoutSeconds": 2}
    deployment, container = WORKLOADS["mysql"]
    return _deployment(
        deployment,
        {
            "spec": {
                "initContainers": [
                    _preparation(
                        busybox, _DATABASE_SCRIPT, [_from_secret("PASSWORD", DATABASE_SECRET, "password")], [data], user
                    )
                ],
                "containers": [
                    {
                        "name": container,
                        "env": [
                            {"name": "MYSQL_ALLOW_EMPTY_PASSWORD", "$patch": "delete"},
                            _from_secret("MYSQL_ROOT_PASSWORD", DATABASE_SECRET, "password"),
                        ],
                        # The port opens once the data is there and recovered, which may take long after a power cut.
                        "startupProbe": {**probe, "periodSeconds": 2, "failureThreshold": 300},
                        "readinessProbe": {**probe, "periodSeconds": 2},
                        "livenessProbe": {**probe, "periodSeconds": 10, "failureThreshold": 6},
                        "volumeMounts": [{"name": "settings", "mountPath": "/etc/mysql/conf.d", "readOnly": True}],
                    }
                ],
                "volumes": [_memory()],
            }
        },
    )


def _metadata(busybox: str) -> Json:
    settings = {"MYSQL_HOST": "mysqlHost", "MYSQL_PORT": "mysqlPort", "MYSQL_DATABASE": "mlmdDb"}
    secrets = {"DBCONFIG_USER": "username", "DBCONFIG_PASSWORD": "password"}
    env = [
        *(
            {"name": name, "valueFrom": {"configMapKeyRef": {"name": "pipeline-install-config", "key": key}}}
            for name, key in settings.items()
        ),
        *(_from_secret(name, DATABASE_SECRET, key) for name, key in secrets.items()),
    ]
    deployment, container = WORKLOADS["metadata_grpc"]
    return _deployment(
        deployment,
        {
            "spec": {
                "initContainers": [_preparation(busybox, _METADATA_SCRIPT, env, [], 1000)],
                "containers": [
                    {
                        "name": container,
                        "args": [
                            "--grpc_port=8080",
                            "--metadata_store_server_config_file=/settings/server.txt",
                            "--grpc_channel_arguments=grpc.max_metadata_size=16384,"
                            "grpc.max_receive_message_length=104857600,grpc.max_send_message_length=104857600",
                        ],
                        "env": [{"name": name, "$patch": "delete"} for name in secrets],
                        "volumeMounts": [{"name": "settings", "mountPath": "/settings", "readOnly": True}],
                    }
                ],
                "volumes": [_memory()],
            }
        },
    )


class FilterModule:
    """Registers the filters."""

    def filters(self) -> dict[str, Any]:
        return {
            "kubeflow_pipelines_faults": kubeflow_pipelines_faults,
            "kubeflow_pipelines_config": kubeflow_pipelines_config,
            "kubeflow_pipelines_overlay": kubeflow_pipelines_overlay,
        }
