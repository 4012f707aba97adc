"""Processes that say what a test wants, in place of those that measure."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

START = subprocess.Popen


def pretend_process(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Start a shell's script instead of any command."""

    def pretend(command: object, **more: Any) -> subprocess.Popen:
        return START(["sh", "-c", script], **more)

    monkeypatch.setattr(subprocess, "Popen", pretend)
