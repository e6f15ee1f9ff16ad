#!/usr/bin/python
"""Documentation of the action of the same name."""

from __future__ import annotations

DOCUMENTATION = r"""
module: run_suite
short_description: Run a test suite on the controller and show its output while it runs
options:
  argv:
    description: The command and its arguments.
    type: list
    elements: str
    required: true
  chdir:
    description: Directory to run in.
    type: path
author: [Slipway]
"""

EXAMPLES = r"""
- name: Verify
  run_suite:
    argv: [pytest, tests/e2e]
"""

RETURN = r"""
rc:
  description: Exit status of the suite.
  returned: always
  type: int
"""
