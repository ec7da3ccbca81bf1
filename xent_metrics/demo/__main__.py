"""python -m xent_metrics.demo: train, validate in Lightning, evaluate in lm-eval, compare to the last bit.

Exit status 0 if every difference is exactly 0, else 1.
"""

from __future__ import annotations

import logging
import lzma
import shlex
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console

from xent_metrics.errors import MissingExtraError

try:
    from lightning.pytorch import seed_everything

    from xent_metrics.demo.data import BATCH_SIZE, WINDOW
    from xent_metrics.demo.harness import command, evaluate
    from xent_metrics.demo.model import ByteLSTM
    from xent_metrics.demo.picture import draw
    from xent_metrics.demo.progress import progress_callback
    from xent_metrics.demo.report import comparison, differences
    from xent_metrics.demo.train import FEWEST_STEPS, steps_in, train, validate, whole_intervals
    from xent_metrics.hosts.lm_eval.python_docs import CORPUS_SHA256, documents
except ImportError as error:
    raise MissingExtraError(f"the demo needs everything: pip install 'xent-metrics[all]' ({error})") from error

_console = Console()


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint, the picture and lm-eval's files.")] = Path(
        "demo_run"
    ),
    seconds: Annotated[
        float, typer.Option(min=1, help="About how long to train; the speed here is measured first.")
    ] = 60,
    steps: Annotated[int | None, typer.Option(min=1, help="Train for so many steps instead: reproducible.")] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"A smoke run: {FEWEST_STEPS} steps.")] = False,
) -> None:
    """Train a small LSTM on the bytes of Python's documentation, and score it in Lightning and in lm-eval."""
    _be_quiet()
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # the same in both hosts; and so small an LSTM gains little from more
    steps, interval = whole_intervals(1 if quick else steps or steps_in(seconds))
    model = ByteLSTM(steps=steps, max_length=WINDOW)
    _introduce(model)

    _console.rule("[bold]Lightning", align="left")
    checkpoint = train(model, interval, output, progress_callback(_console))
    in_lightning = validate(model, checkpoint)
    draw(model, output / "demo.png")
    _console.print(f"Validated the best checkpoint, {checkpoint}.", highlight=False)

    _console.rule("[bold]lm-eval", align="left")
    typed = shlex.join(command(checkpoint, output / "lm_eval"))
    _console.print(f"$ {typed}", style="cyan", highlight=False, soft_wrap=True)
    with _console.status("lm-eval is scoring the same documents in a process of its own …"):
        in_lm_eval = evaluate(checkpoint, output / "lm_eval", output / "lm_eval.log")

    _console.print(comparison(in_lightning, in_lm_eval))
    _conclude(in_lightning, output, time.monotonic() - began)
    unequal = [name for name, difference in differences(in_lightning, in_lm_eval).items() if difference != 0]
    if unequal or in_lm_eval.corpus_sha256 != CORPUS_SHA256:
        _console.print(f"[bold red]Not the same: {', '.join(unequal) or 'the corpus'}")
        raise typer.Exit(1)
    _console.print("[bold green]The same bits in both.")


def _be_quiet() -> None:
    """Nothing but the demo's own words: Lightning's advice on hardware and workers is for larger runs."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _introduce(model: ByteLSTM) -> None:
    train, held_out = documents("train"), documents("validation")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _console.print(
        f"[bold]A toy[/]: an LSTM of {parameters:,} parameters that reads bytes, trained for {model.steps} steps of "
        f"{BATCH_SIZE} × {WINDOW} bytes on {len(train)} topics of Python's documentation ({_size(train):,} bytes) and "
        f"scored on {len(held_out)} others ({_size(held_out):,} bytes). What matters is not how good it is, but that "
        "two hosts say the same of it.",
        highlight=False,
    )


def _conclude(in_lightning: dict[str, float], output: Path, seconds: float) -> None:
    text = "".join(documents("validation").values()).encode()
    packed = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    _console.print(
        "[dim]differ: 0 is equal to the last bit. s.e.: standard error over documents. The best checkpoint was chosen "
        "on these documents, which flatters it a little.[/]\n"
        f"For scale, in bits per byte: all bytes equally likely 8; the xz compressor {packed:.2f}; "
        f"this toy {in_lightning['bits_per_byte']:.2f}.\n"
        f"Picture: {output / 'demo.png'}. {seconds:.0f} s in all.",
        highlight=False,
    )


def _size(texts: Any) -> int:
    return sum(len(text.encode()) for text in texts.values())


if __name__ == "__main__":
    typer.run(demo)
