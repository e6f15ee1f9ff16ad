"""Filter that reads Kubernetes quantities."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

from ansible.errors import AnsibleFilterError
from kubernetes.utils import parse_quantity


def quantity(value: str | int | float) -> Decimal:
    """Return the number that the Kubernetes quantity `value` ("2Gi", "500m") stands for, in base units.

    Raises:
        AnsibleFilterError: `value` is not a quantity.
    """
    try:
        number: Decimal = parse_quantity(str(value))  # type: ignore[no-untyped-call]
    except ValueError:
        raise AnsibleFilterError(f"{value!r} is not a Kubernetes quantity such as 500m, 2Gi or 10") from None
    return number


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return names and functions."""
        return {"quantity": quantity}
