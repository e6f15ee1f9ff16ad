"""The model service as an application in the GitOps repository: kustomizations for dev and prod on a common base."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from string import Template

from epos.errors import UsageError
from epos.versions import Share, check_shares

FOLDER = "apps/epos"
# Name below the domain, and how many pods there are until somebody says otherwise.
ENVIRONMENTS = {"dev": ("epos-dev", 1), "prod": ("epos", 2)}
# What a person changes; a deployment only makes it.
KEPT = "patch.yaml"
_SERVING = "serving.yaml"
_PATH = "/spec/template/spec/containers/0/args/-"
_FORMS = {
    # A reference as container runtimes take it: host, path, tag, digest.
    "image": re.compile(r"[a-z0-9]([a-zA-Z0-9._:/-]*[a-zA-Z0-9])?(@sha256:[0-9a-f]{64})?"),
    "domain": re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*"),
    "models": re.compile(r"s3://[a-z0-9][a-z0-9.-]+(/[A-Za-z0-9._-]+)*"),
    "runs_namespace": re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"),
}


@dataclass(frozen=True)
class Application:
    """What a deployment brings.

    Attributes:
        image: reference of the image that trained the model; it serves, too.
        domain: of the site: the service is epos.<domain>, in dev epos-dev.<domain>.
        models: s3://bucket/prefix below which the versions lie.
        serve: versions that answer, by environment: for each of ENVIRONMENTS.
        runs_namespace: whose pipeline runs may call the service in dev.
    """

    image: str
    domain: str
    models: str
    serve: Mapping[str, Sequence[Share]]
    runs_namespace: str = "kubeflow-pipelines"

    def __post_init__(self) -> None:
        for name, form in _FORMS.items():
            if not form.fullmatch(getattr(self, name)):
                raise UsageError(f"{name}: {getattr(self, name)!r} cannot be deployed")
        if set(self.serve) != set(ENVIRONMENTS):
            raise UsageError(f"serve: expected versions for {' and '.join(ENVIRONMENTS)}, found {sorted(self.serve)}")
        for shares in self.serve.values():
            check_shares(shares)


def serving_path(environment: str) -> str:
    """The file that says which versions answer in an environment.

    Raises:
        UsageError: there is no such environment.
    """
    if environment not in ENVIRONMENTS:
        raise UsageError(f"{environment!r} is none of the environments {', '.join(ENVIRONMENTS)}")
    return f"{FOLDER}/{environment}/{_SERVING}"


def serving_file(shares: Sequence[Share]) -> str:
    """Its content.

    Raises:
        UsageError: these versions cannot serve together.
    """
    patch = [f"- {{op: add, path: {_PATH}, value: --serve={share}}}" for share in check_shares(shares)]
    return "\n".join([_template("environment", _SERVING).rstrip("\n"), *patch]) + "\n"


def render(application: Application) -> dict[str, str]:
    """Every file of the application by its path in the repository; what KEPT names is only for who has none yet.

    Raises:
        UsageError: versions cannot serve together.
    """
    values = {name: getattr(application, name) for name in _FORMS}
    files = {}
    for folder, names in (
        ("base", ("kustomization.yaml", "deployment.yaml", "service.yaml", "network.yaml")),
        ("dev", ("kustomization.yaml", "runs.yaml")),
        ("prod", ("kustomization.yaml",)),
    ):
        for name in names:
            files[f"{FOLDER}/{folder}/{name}"] = Template(_template(folder, name)).substitute(values)
    for environment, (host, replicas) in ENVIRONMENTS.items():
        own = values | {"host": f"{host}.{application.domain}", "replicas": replicas}
        for name in ("ingress.yaml", KEPT):
            files[f"{FOLDER}/{environment}/{name}"] = Template(_template("environment", name)).substitute(own)
        files[serving_path(environment)] = serving_file(application.serve[environment])
    return files


def _template(folder: str, name: str) -> str:
    return (resources.files("epos") / "application" / folder / name).read_text(encoding="utf-8")
