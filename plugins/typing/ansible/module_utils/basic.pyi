from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

class AnsibleModule:
    params: dict[str, Any]
    check_mode: bool
    no_log_values: set[str]

    def __init__(
        self,
        argument_spec: Mapping[str, Mapping[str, Any]],
        *,
        mutually_exclusive: Sequence[Sequence[str]] = ...,
        required_if: Sequence[tuple[str, object, Sequence[str]]] = ...,
        required_one_of: Sequence[Sequence[str]] = ...,
        required_together: Sequence[Sequence[str]] = ...,
        supports_check_mode: bool = ...,
    ) -> None: ...
    def exit_json(self, **kwargs: Any) -> NoReturn: ...
    def fail_json(self, msg: str, **kwargs: Any) -> NoReturn: ...
    def warn(self, warning: str) -> None: ...
    def run_command(self, args: Sequence[str], check_rc: bool = ...) -> tuple[int, str, str]: ...
