"""python -m xent_metrics.demo: train, validate in Lightning, evaluate in lm-eval, and compare bit by bit.

The exit status is 0 if every difference is exactly 0, otherwise 1.
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
    from xent_metrics.demo.harness import Evaluation, command, evaluate
    from xent_metrics.demo.model import ByteLSTM
    from xent_metrics.demo.picture import draw
    from xent_metrics.demo.progress import progress_callback
    from xent_metrics.demo.report import comparison, differences
    from xent_metrics.demo.train import FEWEST_STEPS, steps_in, train, validate, whole_intervals
    from xent_metrics.hosts.lm_eval.python_docs import CORPUS_SHA256, documents
except ImportError as error:
    raise MissingExtraError(f"the demo needs all extras: pip install 'xent-metrics[all]' ({error})") from error

_console = Console()


def demo(
    output: Annotated[Path, typer.Option(help="Folder for the checkpoint, the plot and lm-eval's files.")] = Path(
        "demo_run"
    ),
    seconds: Annotated[float, typer.Option(min=1, help="Approximate training time; the speed is measured first.")] = 60,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Number of training steps, for a reproducible run; overrides --seconds.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help=f"Smoke test: {FEWEST_STEPS} training steps.")] = False,
) -> None:
    """Train a small LSTM on the bytes of Python's documentation and evaluate it in Lightning and in lm-eval."""
    _be_quiet()
    began = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    seed_everything(0, verbose=False)
    torch.set_num_threads(1)  # both hosts must use the same number; a small LSTM gains little from more
    steps, interval = whole_intervals(1 if quick else steps or steps_in(seconds))
    model = ByteLSTM(steps=steps, max_length=WINDOW)
    _introduce(model)
    checkpoint, in_lightning = _run_lightning(model, interval, output)
    in_lm_eval = _run_lm_eval(checkpoint, output)
    _console.print(comparison(in_lightning, in_lm_eval))
    _conclude(in_lightning, output, time.monotonic() - began)
    _judge(in_lightning, in_lm_eval)


def _run_lightning(model: ByteLSTM, interval: int, output: Path) -> tuple[Path, dict[str, float]]:
    """Train, validate and draw; returns the best checkpoint and its values."""
    _console.rule("[bold]Lightning", align="left")
    checkpoint = train(model, interval, output, progress_callback(_console))
    values = validate(model, checkpoint)
    draw(model, output / "demo.png")
    _console.print(f"Validated the best checkpoint, {checkpoint}.", highlight=False)
    return checkpoint, values


def _run_lm_eval(checkpoint: Path, output: Path) -> Evaluation:
    """Evaluate the checkpoint with lm-eval's command, which is shown."""
    _console.rule("[bold]lm-eval", align="left")
    shown = shlex.join(command(checkpoint, output / "lm_eval"))
    _console.print(f"$ {shown}", style="cyan", highlight=False, soft_wrap=True)
    with _console.status("lm-eval is evaluating the same documents in a separate process …"):
        return evaluate(checkpoint, output / "lm_eval", output / "lm_eval.log")


def _judge(in_lightning: dict[str, float], in_lm_eval: Evaluation) -> None:
    """Exit with status 1 unless all bits are equal."""
    unequal = [name for name, difference in differences(in_lightning, in_lm_eval).items() if difference != 0]
    if unequal or in_lm_eval.corpus_sha256 != CORPUS_SHA256:
        _console.print(f"[bold red]Different: {', '.join(unequal) or 'the corpus'}")
        raise typer.Exit(1)
    _console.print("[bold green]Both hosts give exactly the same bits.")


def _be_quiet() -> None:
    """Silence Lightning's advice on hardware and workers, which is meant for larger runs."""
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _introduce(model: ByteLSTM) -> None:
    train, held_out = documents("train"), documents("validation")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    _console.print(
        f"[bold]A toy[/]: a byte-level LSTM with {parameters:,} parameters, trained for {model.steps} steps of "
        f"{BATCH_SIZE} × {WINDOW} bytes on {len(train)} topics of Python's documentation ({_size(train):,} bytes) and "
        f"evaluated on {len(held_out)} others ({_size(held_out):,} bytes). The point is not how good it is, but that "
        "two hosts report the same values.",
        highlight=False,
    )


def _conclude(in_lightning: dict[str, float], output: Path, seconds: float) -> None:
    text = "".join(documents("validation").values()).encode()
    packed = 8 * len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME)) / len(text)
    _console.print(
        "[dim]Difference 0 means equal to the last bit. s.e.: standard error over documents. The best checkpoint was "
        "selected on these documents, so its values are slightly optimistic.[/]\n"
        f"For scale, in bits per byte: uniform bytes 8, the xz compressor {packed:.2f}, "
        f"this toy {in_lightning['bits_per_byte']:.2f}.\n"
        f"Plot: {output / 'demo.png'}. Total time: {seconds:.0f} s.",
        highlight=False,
    )


def _size(texts: Any) -> int:
    return sum(len(text.encode()) for text in texts.values())


if __name__ == "__main__":
    typer.run(demo)
