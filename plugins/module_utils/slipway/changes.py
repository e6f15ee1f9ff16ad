"""How modules end that make several changes, or find several faults, and name each."""

from __future__ import annotations

from collections.abc import Callable

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.slipway.errors import SlipwayError


def end_with_changes(module: AnsibleModule, work: Callable[[], list[str]]) -> None:
    """End the module with the changes that `work` has made, or in check mode would make: one line each, also as its diff.

    A SlipwayError of `work` fails the module with its text.
    """
    try:
        changes = work()
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    after = "".join(f"{change}\n" for change in changes)
    module.exit_json(changed=bool(changes), changes=changes, diff={"before": "", "after": after})


def end_with_faults(module: AnsibleModule, work: Callable[[], list[str]], opening: str) -> None:
    """Fail the module with all faults that `work` has found, one line each below `opening`; without any, end it unchanged.

    A SlipwayError of `work` fails the module with its text.
    """
    try:
        faults = work()
    except SlipwayError as error:
        module.fail_json(msg=str(error))
    if faults:
        lines = "\n".join(f"- {fault}" for fault in faults)
        module.fail_json(msg=f"{opening}\n{lines}", faults=faults)
    module.exit_json(changed=False)
