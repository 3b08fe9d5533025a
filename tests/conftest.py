"""The order of the tests, one thread for each of them, and the devices they run on."""

from __future__ import annotations

import os
import sys

import pytest
from _study import Study

# Jobs that tests run take all cores, and tests run side by side: threads that spin while they wait
# for others would take the cores from these, and a training would take four times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


@pytest.fixture(scope="session", autouse=True)
def common_folder(tmp_path_factory: pytest.TempPathFactory) -> None:
    """One folder for all processes that run tests; what kdsteps is gets described there once."""
    folder = tmp_path_factory.getbasetemp()
    in_parallel = "PYTEST_XDIST_WORKER" in os.environ
    Study.described = (folder.parent if in_parallel else folder) / "described"


@pytest.fixture(autouse=True)
def same_rounding() -> None:
    """Undo what an earlier test left: rounding depends on the number of threads and on TF32."""
    if "torch" in sys.modules:
        torch = sys.modules["torch"]
        torch.set_num_threads(1)
        if torch.cuda.is_available():  # float32, the same algorithm each time
            torch.backends.cudnn.allow_tf32 = False
            torch.backends.cudnn.benchmark = False
            torch.backends.cudnn.deterministic = True


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes a `device` on the CPU, and on the GPU of a machine that has one."""
    if "device" in metafunc.fixturenames:
        import torch

        metafunc.parametrize("device", ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the stories first and leave all else as it is."""
    items.sort(key=lambda item: item.get_closest_marker("stories") is None)
