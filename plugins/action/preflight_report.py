"""Action part of preflight_report: collects what only the controller knows, prints the table, fails after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.action import ActionBase
from ansible.plugins.loader import action_loader
from ansible.template import Templar
from ansible.utils.display import Display

GROUPS = ("server", "agent")
_DEFAULT_BACKEND = "vxlan"
# The role gpu_operator's variables of a node, without its prefix.
_GPU = ("gpus", "share", "mig", "taint", "driver")


# Runs modules in a fork of this process, which knows all that they import.
Normal: Any = action_loader.get("normal", class_only=True)


class ActionModule(Normal):  # type: ignore[misc]
    """Runs the module on the controller with the hosts of the play, as they are in the inventory."""

    # Under this name the role registers the result of preflight_probe.
    probe = "_preflight_probe"

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        # That of the class between would run the module.
        result = ActionBase.run(self, tmp, task_vars)
        assert task_vars is not None
        hostvars, groups = task_vars["hostvars"], task_vars["groups"]
        nodes = self._nodes(task_vars)
        hosts = [node["name"] for node in nodes]
        prefixes = tuple(f"{role.name}_" for role in Path(self._task.args["roles"]).iterdir())
        # An agent need not know what servers leave out.
        disable = [_get(hostvars[host], "k3s_disable", []) for host in groups.get("server", [])[:1]]
        common = {"disable": [name for names in disable if isinstance(names, list) for name in names]}
        arguments = {
            **self._task.args,
            "nodes": [{**node, **common} for node in nodes],
            "variables": {host: sorted(hostvars.raw_get(host)) for host in hosts},
            "values": {host: _values(hostvars[host], hostvars.raw_get(host), prefixes) for host in hosts},
            **self._needs(task_vars),
            "sources": [source for source in task_vars["ansible_inventory_sources"] if Path(source).exists()],
        }
        result.update(self._execute_module(module_args=arguments, task_vars=task_vars))
        return self._show(result)

    def _nodes(self, variables: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The hosts of the play and of the inventory's groups, by name, with what their probes have found."""
        hostvars, groups = variables["hostvars"], variables["groups"]
        absent = set(_get(hostvars[variables["inventory_hostname"]], "slipway_absent_names", []))
        asked = set(variables["ansible_play_hosts_all"])
        hosts = sorted({*asked, *(host for name in GROUPS for host in groups.get(name, []))})
        return [
            {
                **_node(host, hostvars[host], groups, self.probe),
                "asked": host in asked - absent,
                "absent": host in absent,
            }
            for host in hosts
        ]

    def _show(self, result: dict[str, Any]) -> dict[str, Any]:
        """Print the module's table, and return the result: failed where there is an error."""
        if "table" in result:
            Display().display("\n" + result.pop("table") + "\n")
            # The table has said it all; once more as YAML would bury it.
            result.pop("problems")
        if result.get("errors"):
            report = self._task.args["report"]
            result.update(failed=True, msg=f"Nothing was changed. Mend the errors above; see also {report}")
        return result

    def _needs(self, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The module's `needs` and `images`: what the roles say, with the variables that they will have. A fault is a text instead."""
        needs: dict[str, Any] = {}
        for component in ("k3s", *self._task.args.get("active", [])):
            role = Path(self._task.args["roles"]) / component
            # Precedence as in a play: defaults, the site's, the role's own.
            files = [
                self._loader.load_from_file(str(role / part / "main.yml"), trusted_as_template=True) or {}
                for part in ("defaults", "vars")
                if (role / part / "main.yml").is_file()
            ]
            name = f"_{component}_needs"
            if not files or name not in files[-1]:
                needs[component] = None
                continue
            known = {**files[0], **variables, **files[-1], "role_path": str(role)}
            try:
                needs[component] = Templar(self._loader, known).template(files[-1][name])
            except AnsibleError as error:
                needs[component] = str(error)
        base = needs.get("k3s")
        images = base.pop("images") if isinstance(base, dict) else []
        return {"needs": needs, "images": images}


def _node(host: str, variables: Mapping[str, Any], groups: Mapping[str, list[str]], probe: str) -> dict[str, Any]:
    """One entry of the module's `nodes`; `probe` is the variable with what was found there."""
    probed = _get(variables, probe, {})
    roles = [name for name in GROUPS if host in groups.get(name, [])]
    clock = probed.get("clock") or {}
    config = [_get(variables, "k3s_node_config", {})]
    if "server" in roles:
        config.append(_get(variables, "k3s_server_config", {}))
    return {
        "name": host,
        "role": "+".join(roles) or "none",
        "address": str(_get(variables, "ansible_host", "")),
        "probe": probed.get("probe"),
        "failure": str(probed.get("failure", "")),
        "unreachable": not probed.get("reachable", True),
        "offset": clock.get("offset"),
        "error": clock.get("error", 0.0),
        "kubelet_args": [
            str(item) for part in config if isinstance(part, Mapping) for item in part.get("kubelet-arg") or []
        ],
        "backend": str(_get(variables, "k3s_flannel_backend", _DEFAULT_BACKEND)),
        "shared": str(_get(variables, "k3s_api_address", ""))
        if "server" in roles and _get(variables, "api_address_provider", "external") == "keepalived"
        else None,
        "gpus": {name: value for name in _GPU if (value := _get(variables, f"gpu_operator_{name}", None)) is not None},
    }


def _values(variables: Mapping[str, Any], names: Iterable[str], prefixes: tuple[str, ...]) -> dict[str, Any]:
    """The values of the variables that have one of the prefixes, but for those that cannot be templated yet."""
    missing = object()
    values = {name: _get(variables, name, missing) for name in names if name.startswith(prefixes)}
    return {name: value for name, value in values.items() if value is not missing}


def _get(variables: Mapping[str, Any], name: str, default: Any) -> Any:
    """A variable's value; the default where it is not set or cannot be templated yet (its role then says so)."""
    try:
        return variables[name]
    except (KeyError, AnsibleError):
        return default
