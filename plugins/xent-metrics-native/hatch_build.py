"""Compiles the C sources when the package is built. Without a compiler it is built without them, with a warning."""

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

PACKAGE = "xent_metrics_native"
# Library: (source, contraction of multiply-adds). kernel.c writes out every fused multiply-add, so nothing else may be fused.
LIBRARIES = {"_kernel.so": ("kernel.c", "-ffp-contract=off"), "_layers.so": ("layers.c", "-ffp-contract=fast")}
# No fast-math: nan and infinities are scored as by torch, and bits depend on nothing but the row.
FLAGS = ["-std=gnu11", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
THREADS = (["-fopenmp"], ["-fopenmp-simd"], [])  # the first that the compiler accepts


class KernelBuildHook(BuildHookInterface):
    """Adds the compiled libraries to the wheel, or, in an editable installation, to the source tree."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        editable = version == "editable"
        self.folder = None if editable else tempfile.mkdtemp()
        folder = Path(self.folder) if self.folder else root / PACKAGE
        compiled = compile_all(root, folder)
        for name in LIBRARIES.keys() - compiled:
            self.app.display_warning(
                f"no C compiler could compile {LIBRARIES[name][0]}; the package is built without it"
            )
        if compiled and not editable:
            for name in compiled:
                build_data["force_include"][str(folder / name)] = f"{PACKAGE}/{name}"
            build_data["pure_python"] = False
            platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
            build_data["tag"] = f"py3-none-{platform}"  # the libraries don't use Python: one wheel for every version

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.folder:
            shutil.rmtree(self.folder)


def compile_all(sources: Path, libraries: Path) -> set[str]:
    """Compile every library into the folder `libraries`; return the names of those that compiled."""
    return {
        name
        for name, (source, contraction) in LIBRARIES.items()
        if _compile(sources / source, libraries / name, contraction)
    }


def _compile(source: Path, library: Path, contraction: str) -> bool:
    """Compile `source` with $CC or the first of cc, gcc and clang that can; return whether one could."""
    chosen = os.environ.get("CC")
    compilers = [shlex.split(chosen)] if chosen else [[name] for name in ("cc", "gcc", "clang")]
    for compiler in compilers:
        for threads in THREADS:
            command = [*compiler, *FLAGS, contraction, *threads, str(source), "-o", str(library), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, text=True)
            except OSError:
                break  # there is no such compiler
            if done.returncode == 0:
                return True
    return False
