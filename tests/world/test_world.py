"""The simulated world: one seed is one history, and a broken product is seen.

Histories run in a process of their own: a life is a forked child, and a test has threads.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
from world.loop import Stuck, VirtualLoop, WorldEscaped
