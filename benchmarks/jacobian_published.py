"""The Jacobian's top vectors: the authors' own code of arXiv 2303.11073 against core.methods.jacobian, in one process.

git clone https://github.com/renhaa/semantic-diffusion
OMP_NUM_THREADS=1 python -m benchmarks.jacobian_published semantic-diffusion      writes results/jacobian_published.md

Their `sequential_power_iteration` runs from their file, unchanged, with the settings of their `calc_power_dirs`: three
vectors, until the eigenvalue changes by less than 1e-5 eleven times, 50 iterations at most. What it reached is measured
by the plain network, and ours then runs to that residual.
"""

import argparse
import importlib.util
import os
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from operator import truediv
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock, patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.common import RESULTS, machine
from benchmarks.jacobian import FullNetwork, at_step, flops, half_flops, load, ratio, residuals, timed
from core.methods.jacobian import spectrum
from core.model.denoiser import Denoiser

VECTORS, TOLERANCE, ITERATIONS = 3, 1e-5, 50  # as in their calc_power_dirs
REPEATS = 5
CASES = [(model, step) for model in ("toyfaces", "mnist") for step in (0, 5, 9)] + [("ddpm-256 narrow", 5)]
_PLOTTING = ("matplotlib", "matplotlib.pyplot", "utils", "semanticdiffusion", "editing", "editing.direction_plotter")


@dataclass(frozen=True)
class Figures:
    """What both sides took, theirs first, and the residual that theirs reached and ours was asked for."""

    model: str
    step: int
    residual: tuple[float, float]
    products: tuple[int, int]
    flops: tuple[float, float]
    seconds: tuple[float, float]  # the median of the repeats
    times: tuple[float, float]  # the least and the largest ratio of the repeats, each of two runs in turn


def published(folder: Path) -> Any:
    """Return their PowerItteration. The modules that their file imports for its plots alone stay unused."""
    spec = importlib.util.spec_from_file_location("published_jacobian", folder / "editing" / "jacobian.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with patch.dict(sys.modules, {name: MagicMock() for name in _PLOTTING} | {spec.name: module}):
        spec.loader.exec_module(module)
    return module.PowerItteration()


def theirs(power: Any, denoiser: Denoiser, x_t: Tensor, t: float) -> tuple[Tensor, int]:
    """Return the vectors in h-space that their code finds [count, *h_shape], and its products with J^T J."""
    network, calls = FullNetwork(denoiser, x_t, t), 0

    def eps(h: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return network.eps(h - h.detach())

    with torch.no_grad():
        hidden = denoiser.encode(x_t, t).hidden.contiguous()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        found = power.sequential_power_iteration(eps, hidden, tol=TOLERANCE, max_iters=ITERATIONS, k=VECTORS)[2]
    return found.detach().reshape(VECTORS, *denoiser.h_shape), calls - VECTORS  # each vector starts with one pass


def measure(power: Any, model: str, denoiser: Denoiser, step: int) -> Figures:
    """Return what both sides take to the residual that theirs reaches."""
    x_t, t = at_step(denoiser, step)
    plain = FullNetwork(denoiser, x_t, t)
    clocks: tuple[list[float], list[float]] = ([], [])
    for _ in range(REPEATS):
        vectors, products = timed(partial(theirs, power, denoiser, x_t, t), clocks[0])
        reached = residuals(plain, vectors)
        ours = timed(partial(spectrum, denoiser, x_t, t, VECTORS, tolerance=reached), clocks[1])
    encoder, decoder = half_flops(denoiser, x_t, t)
    return Figures(
        model,
        step,
        (reached, residuals(plain, ours.vectors)),
        (products, ours.products),
        # A product runs the encoder once, the decoder with its tangent, which is two, and one pass back through it.
        (
            float((encoder + 3 * decoder) * products + VECTORS * (encoder + decoder)),
            float(flops(lambda: spectrum(denoiser, x_t, t, VECTORS, tolerance=reached))),
        ),
        (statistics.median(clocks[0]), statistics.median(clocks[1])),
        (min(map(truediv, *clocks)), max(map(truediv, *clocks))),
    )


def document(figures: list[Figures], hardware: str) -> str:
    """Return the page."""
    by_flops = [ratio(one.flops) for one in figures]
    lines = "\n".join(map(row, figures))
    return f"""# The Jacobian's singular vectors: the authors' own code

The code is that published with arXiv 2303.11073 (renhaa/semantic-diffusion, `editing/jacobian.py`), unchanged and with
its own settings: {VECTORS} vectors, until the eigenvalue changes by less than {TOLERANCE:g} eleven times, {ITERATIONS}
iterations at most. x_t is as in [jacobian.md](jacobian.md), and so are the counts of FLOPs. Where their code stops, the
plain network measures the worst residual ||J^T u - s v|| / s; ours runs until it is no larger. Seconds are the
median of {REPEATS} runs, the two sides in turn, and the ratios those of two runs in turn.

| model | step | residual: theirs, ours | products | GFLOP | ratio | s | ratio, least and largest |
|---|---|---|---|---|---|---|---|
{lines}

{min(by_flops):.1f} to {max(by_flops):.1f} times fewer FLOPs; {min(one.times[0] for one in figures):.1f} to
{max(one.times[1] for one in figures):.1f} times less time, over all runs. To a
residual of 1e-4, which their rule does not ask for, the ratios are those of jacobian.md.

Measured on {hardware}, by `python -m benchmarks.jacobian_published CHECKOUT`.
"""


def row(one: Figures) -> str:
    """Return one line of the table."""
    residual = "{:.1e}, {:.1e}".format(*one.residual)
    gflops = ", ".join(f"{flop / 1e9:.1f}" for flop in one.flops)
    seconds = ", ".join(f"{s:.2f}" for s in one.seconds)
    return (
        f"| {one.model} | {one.step} | {residual} | {one.products[0]}, {one.products[1]} | {gflops} "
        f"| **{ratio(one.flops):.1f}** | {seconds} | {one.times[0]:.1f} to {one.times[1]:.1f} |"
    )


def main() -> None:
    """Measure every case and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path, help="a clone of renhaa/semantic-diffusion")
    power = published(parser.parse_args().checkout)
    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    networks = {model: load(model) for model in dict.fromkeys(model for model, _ in CASES)}
    figures = [measure(power, model, networks[model], step) for model, step in CASES]
    (RESULTS / "jacobian_published.md").write_text(document(figures, machine(torch.device("cpu"))))


if __name__ == "__main__":
    main()
