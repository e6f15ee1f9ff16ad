"""Makes the plugins importable as Ansible imports them."""

from __future__ import annotations

import sys
from pathlib import Path

import ansible.module_utils

PLUGINS = Path(__file__).parents[3] / "plugins"

ansible.module_utils.__path__.append(str(PLUGINS / "module_utils"))
sys.path.append(str(PLUGINS))
