"""Finds the pipelines' files; the tests here run in the environment kfp."""

from __future__ import annotations

import sys
from pathlib import Path

PIPELINES = Path(__file__).parents[3] / "pipelines"
sys.path.insert(0, str(PIPELINES))
