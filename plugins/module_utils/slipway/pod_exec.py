"""A command inside a container of the cluster, with its input from here."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence

from ansible.module_utils.slipway.errors import SlipwayError


def pod_exec(
    kubectl: str,
    kubeconfig: str,
    namespace: str,
    target: str,
    container: str,
    command: Sequence[str],
    stdin: str = "",
    timeout: float = 60,
) -> str:
    """Run `command` in `container` of `target` (such as `pod/x-0`) and return what it printed.

    What is secret belongs into `stdin`: it is in nobody's arguments. `timeout` is in seconds. Raises SlipwayError with the command's
    own words when it fails.
    """
    words = [kubectl, "--kubeconfig", kubeconfig, "--namespace", namespace, "exec", "--stdin", target]
    words += ["--container", container, "--", *command]
    where = f"{command[0]} in {namespace}/{target}"
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, text=True, timeout=timeout, check=False)
    except OSError as error:
        raise SlipwayError(f"{kubectl} cannot be run: {error}") from error
    except subprocess.TimeoutExpired as error:
        raise SlipwayError(f"{where} did not end within {timeout:.0f} s") from error
    if done.returncode:
        raise SlipwayError(f"{where} ended with {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
