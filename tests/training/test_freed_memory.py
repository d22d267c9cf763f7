import subprocess
import sys

import pytest

COUNT_FAULTS = """
import resource, sys
import torch
from spectral.training.memory import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
x = torch.ones(4_000_000)
for _ in range(3):
    x + 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    x + 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a setting of the GNU C library")
def test_a_large_block_is_not_fetched_page_by_page_every_time():
    """16 MB are 3,906 pages; kept, none of them is asked for again."""
    command = [sys.executable, "-c", COUNT_FAULTS, "keep"]
    faults = int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert faults < 500
