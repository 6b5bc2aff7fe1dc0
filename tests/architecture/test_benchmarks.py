"""The benchmarks run on the code that there is: nothing else looks at them until one is wanted."""

from importlib import import_module
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    "name", sorted(path.stem for path in BENCHMARKS.glob("*.py") if path.stem != "__init__")
)
def test_a_benchmark_finds_what_it_imports(name: str) -> None:
    import_module(f"tests.benchmarks.{name}")
