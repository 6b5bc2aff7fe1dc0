"""Programs of the system that some tests need."""

import os
import shutil

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

COMPILER = shutil.which("g++") or shutil.which("clang++")

needs_compiler = pytest.mark.skipif(
    COMPILER is None and "CI" not in os.environ,
    reason="needs a C++ compiler: apt-get install g++",
)
needs_chromium = pytest.mark.skipif(
    # where CI forgot to install it, the tests fail instead
    CHROMIUM is None and "CI" not in os.environ,
    reason="needs Chromium: apt-get install chromium",
)
