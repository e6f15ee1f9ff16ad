"""Telling people what came of data that somebody dropped."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow.sdk import Context

CONNECTION = "dataops_notices"

log = logging.getLogger(__name__)


def tell(text: str, level: int = logging.INFO) -> bool:
    """Sends a line to the webhook of connection `dataops_notices` (`{"text": ...}`, as Slack, Mattermost and others take it), and to the
    log. Nobody's work stops because the webhook is away, or because there is none.

    The webhook's whole address is the connection's password, since whoever knows it may write there.

    Returns:
        whether the webhook has taken it.
    """
    import httpx
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    log.log(level, "%s", text)
    try:
        url = BaseHook.get_connection(CONNECTION).password
    except AirflowNotFoundException:
        return False
    try:
        httpx.post(url or "", json={"text": text}, timeout=10).raise_for_status()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        # The address is not for the log.
        log.warning("nobody was told: %s", type(error).__name__)
        return False
    return True


def tell_failure(context: Context) -> None:
    """A callback for tasks: says which one failed and why, in a line or a few."""
    ti: Any = context["ti"]
    exception = context.get("exception")
    reason = str(exception) or type(exception).__name__
    lines = reason.strip().splitlines()
    shown = "\n".join(lines[:10]) + (f"\n... and {len(lines) - 10} lines more" if len(lines) > 10 else "")
    tell(f"DAG {ti.dag_id}, run {ti.run_id}: task {ti.task_id} failed: {shown}", logging.ERROR)
