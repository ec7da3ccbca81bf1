"""What one CUDA card shows of this package, in one run of under five minutes, without a network.

    python benchmarks/gpu.py [--out FILE]       # on a card: the JSON goes to benchmarks/results/
    python benchmarks/gpu.py --dry              # on a CPU: every section runs at tiny sizes; no time of it means anything

Nothing needs to be installed but torch, torchmetrics, pluggy, typer and rich: the package and its Triton plugin are found
beside this file. Peers, transformers and lm-eval are measured where they can be imported, and listed where not. Every
section is guarded, and the JSON is written after each. The exit status is 1 if a check isn't held or a section failed.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import re
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "plugins" / "xent-metrics-triton")]  # what is measured is what lies here
RESULTS = ROOT / "benchmarks" / "results"
TOTAL = 290.0  # seconds after which no case starts
#: Section, in the order in which they run: its seconds at most. The first ones compile what the later ones time.
SECONDS = {
    "agreement": 75.0, "bits": 50.0, "waits": 20.0, "rows": 95.0, "head": 45.0, "launches": 25.0, "sync": 50.0,
    "lm-eval": 50.0, "graphs": 15.0,
}  # fmt: skip
PATIENCE = 20  # times as long for a dry run, on a CPU that others use too


def sections() -> dict[str, Any]:
    from card import correctness, graphs, language_models, processes, speed

    return {
        "agreement": correctness.agreement, "bits": correctness.bits, "waits": correctness.waits,
        "rows": speed.row_times, "head": speed.head_times, "launches": speed.launches, "sync": processes.sync,
        "lm-eval": language_models.language_models, "graphs": graphs.graphs,
    }  # fmt: skip


def measure(card: Any, sizes: Any, chosen: list[str], path: Path | None) -> dict[str, Any]:
    """Run the chosen sections; the JSON so far is written to `path`, unless that is None, after each.

    Args:
        card: the `Card`, or a `DryCard`.
        sizes: the `Sizes` of the cases.
        chosen: names of sections.
        path: of the JSON.
    """
    from card import cases
    from card.record import Section, describe_run, write

    found = describe_run(card) | {"missing": {}, "failed": [], "sections": {}}
    start = time.monotonic()
    try:
        routes, found["missing"] = cases.find_routes()
    except RuntimeError as error:
        routes = [cases.make_route("torch")]
        found["failed"].append(f"routes: {error}: {error.__cause__}")
    patience = PATIENCE if card.dry else 1
    for name in chosen:
        left = TOTAL * patience - (time.monotonic() - start)
        section = Section(name, min(SECONDS[name] * patience, max(0.0, left)))
        section.run(sections()[name], card, sizes, routes)
        found["sections"][name] = section.as_json()
        found["failed"] += [f"{name}: {what}" for what in section.failed]
        found["seconds"] = round(time.monotonic() - start, 1)
        if path is not None:
            write(found, path)
    return found


def main(given: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--dry", action="store_true", help="on a CPU, at tiny sizes: shows that every section runs")
    parser.add_argument("--out", type=Path, help="the JSON; by default in benchmarks/results, of a dry run none")
    parser.add_argument("--only", action="append", choices=list(SECONDS), help="only these sections")
    parser.add_argument("--limit", type=float, default=420.0, help="seconds after which a run on a card is ended")
    arguments = parser.parse_args(given)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("COLUMNS", "150")  # the tables' width where stdout is no terminal
    os.environ["XENT_METRICS_PLUGINS"] = ""  # the routes name their plugins
    if arguments.dry:
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton's kernels are imported
    import torch

    if not (arguments.dry or torch.cuda.is_available()):
        print("no GPU: run with --dry, or on a card")
        return 0
    if not arguments.dry:
        faulthandler.dump_traceback_later(arguments.limit, exit=True, file=sys.__stderr__)  # a kernel that hangs
    from card.cases import TINY, Sizes
    from card.device import Card, DryCard

    try:
        card = DryCard() if arguments.dry else Card()
        path = arguments.out or (None if arguments.dry else default_path(card))
        found = measure(card, TINY if arguments.dry else Sizes(), arguments.only or list(SECONDS), path)
    finally:
        faulthandler.cancel_dump_traceback_later()
    print(f"{found['device']['name']}, {found['seconds']} s" + (f", {path}" if path else ""))
    for name, why in found["missing"].items():
        print(f"not there: {name}: {why}")
    for what in found["failed"]:
        print(f"not held: {what}")
    return 1 if found["failed"] else 0


def default_path(card: Any) -> Path:
    slug = re.sub(r"[^a-z0-9]+", "-", card.describe()["name"].lower()).strip("-")
    return RESULTS / f"{slug}-{time.strftime('%Y-%m-%dT%H%M%SZ', time.gmtime())}.json"


if __name__ == "__main__":
    raise SystemExit(main())
