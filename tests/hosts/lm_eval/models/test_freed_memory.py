"""Freed memory stays with the process while a batch runs."""

from __future__ import annotations

import subprocess
import sys

# In a process of its own: which blocks fit, and what can be given back, depends on all that was allocated before.
PROGRAM = """
import resource
from pathlib import Path

import torch

from xent_metrics.hosts.lm_eval.models import freed_memory


def fill():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(16 * 2**20).fill_(1.0)  # 64 MiB, 16,384 pages
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


with freed_memory.keep_freed_memory():
    for _ in range(12):  # aligned blocks move on through the heap until they find freed ones that fit
        fill()
    print(fill())
    held = resident()
print(held - resident())
"""


def test_freed_memory_is_kept_while_a_batch_runs_and_given_back():
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    faults, given_back = map(int, done.stdout.split())
    assert faults < 4000
    assert given_back > 48 * 2**20
