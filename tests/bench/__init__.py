"""The benchmark; `python -m tests.bench` runs it."""

from pathlib import Path

import ansible.module_utils

# It judges nodes and memory by the same code as the modules do.
ansible.module_utils.__path__.append(str(Path(__file__).parents[2] / "plugins/module_utils"))
