"""Compiles kernel.c when the package is built; without a compiler the package is built without it, and says so."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE, LIBRARY = "xent_metrics_native", "_kernel.so"
# No fast-math: nan and infinities are scored as torch does, and bits depend on nothing but the row.
FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-shared", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
THREADS = (["-fopenmp"], ["-fopenmp-simd"], [])  # the first that this compiler has


class KernelBuildHook(BuildHookInterface):
    """Adds the compiled kernel to the wheel, or, in an editable installation, to the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if version == "editable":
            compile_kernel(root / "kernel.c", root / PACKAGE / LIBRARY)
            return
        self.folder = tempfile.mkdtemp()
        library = Path(self.folder) / LIBRARY
        if compile_kernel(root / "kernel.c", library):
            build_data["force_include"][str(library)] = f"{PACKAGE}/{LIBRARY}"
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"  # no Python in it: one wheel for every version
        else:
            self.app.display_warning("no C compiler could compile kernel.c; the package is built without it")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if version != "editable":
            shutil.rmtree(self.folder)


def compile_kernel(source: Path, library: Path) -> bool:
    """Compile `source` with $CC, cc, gcc or clang; whether it could be done."""
    chosen = os.environ.get("CC")
    compilers = [shlex.split(chosen)] if chosen else [[name] for name in ("cc", "gcc", "clang")]
    for compiler in compilers:
        for threads in THREADS:
            command = [*compiler, *FLAGS, *threads, str(source), "-o", str(library), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except OSError:
                break  # there is no such compiler
            if done.returncode == 0:
                return True
    return False
