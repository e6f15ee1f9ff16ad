"""The callback loads filters before Ansible forks."""

from __future__ import annotations

import subprocess
import sys

from .conftest import PLUGINS

# In a process of its own: here other tests have used filters already.
SCRIPT = """
import sys
from ansible.plugins.loader import init_plugin_loader
init_plugin_loader()
sys.path.insert(0, sys.argv[1])
from callback.preload import CallbackModule
loaded = lambda: any(name.startswith("ansible.plugins.filter.core") for name in sys.modules)
before = loaded()
CallbackModule().v2_playbook_on_start(None)
print(before, loaded())
"""


def test_filters_are_there_before_they_are_used() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, PLUGINS], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"], done.stdout
