"""Principal components of rows as wide as h of a 256-pixel model: scikit-learn's IncrementalPCA against
core.statistics.principal_components.

OMP_NUM_THREADS=1 python -m benchmarks.pca                writes results/pca.md
python -m benchmarks.pca --device cuda                    writes results/pca_cuda.md; scikit-learn stays on the CPU

Both sides see the same float32 rows in memory, in turn. What they find is compared with the components of all rows,
by a float64 Gram matrix of all rows or, where they are too many, by block Krylov iteration to a small residual.
"""

import argparse
import ctypes
import os
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import psutil
import torch
from sklearn.decomposition import IncrementalPCA
from torch import Tensor

from benchmarks.common import RESULTS, machine
from core.statistics.principal_components import RunningComponents, store_height

WIDTH, COUNT = 32_768, 25
BATCH = 64  # rows that core.methods.pca draws at a time
MEAN = 5.0  # of every column: far from zero beside the deviations


@dataclass(frozen=True)
class Case:
    """Rows of one spectrum, and the batches that scikit-learn takes of them."""

    spectrum: str
    rows: int
    peers: tuple[int, ...]
    repeats: int = 1


@dataclass(frozen=True)
class Figures:
    """What one side took for one case, and how good it is."""

    case: Case
    side: str
    seconds: float  # the least of the repeats
    extra: float  # peak memory beside the rows, bytes
    cosines: tuple[float, float]  # of the principal angles to the components of all rows: mean, least
    explained: float  # variance along what was found / along the components of all rows


CASES = [
    Case("gap", 2000, (100, 1000), repeats=2),
    Case("slow", 2000, (100, 1000)),
    Case("gap", 10_000, (100,)),
]


def drawn(spectrum: str, count: int, width: int = WIDTH, components: int = COUNT) -> Tensor:
    """Normal rows [count, width] whose columns are independent; their deviations are the spectrum.

    gap: 10 to 2 for the components asked, 0.2 for the rest; slow: 1 / sqrt(i).
    """
    deviations = torch.arange(1, width + 1).float() ** -0.5
    if spectrum == "gap":
        deviations[:components], deviations[components:] = torch.logspace(1, 0.30103, components), 0.2
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(0))
    return rows.mul_(deviations).add_(MEAN)


def ours(rows: Tensor, count: int = COUNT) -> Tensor:
    """The components [count, D] of rows on any device, as core.methods.pca finds them."""
    height = store_height(rows.shape[1], count, len(rows))
    running = RunningComponents(rows.shape[1], height, rows.dtype, rows.device)
    for batch in torch.split(rows, BATCH):
        running.add(batch)
    return running.components(count).vectors


def peer(rows: Tensor, batch: int, count: int = COUNT) -> Tensor:
    found: Tensor = torch.as_tensor(IncrementalPCA(count, batch_size=batch).fit(rows.numpy()).components_)
    return found.double()


def exact(rows: Tensor, count: int = COUNT) -> Tensor:
    """The components [count, D] of all rows, float64; rounding apart, nothing is left out."""
    mean = rows.double().mean(0)
    parts = torch.split(rows, 500)

    def times(right: Tensor) -> Tensor:  # (X - mean) right
        return torch.cat([part.double() @ right for part in parts]) - mean @ right

    def back(left: Tensor) -> Tensor:  # (X - mean)^T left
        found = torch.zeros(len(mean), left.shape[1], dtype=torch.float64)
        for part, weights in zip(parts, torch.split(left, 500), strict=True):
            found += part.double().T @ weights
        return found - mean[:, None] * left.sum(0)

    if len(rows) <= 2048:
        centred = rows.double() - mean
        left = torch.linalg.eigh(centred @ centred.T)[1][:, -count:].flip(1)
        vectors: Tensor = torch.linalg.qr(back(left)).Q.T
        return vectors
    block = torch.randn(rows.shape[1], count + 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    basis, image = block[:, :0], torch.zeros(len(rows), 0, dtype=torch.float64)
    for _ in range(8):
        for _ in range(2):
            block = torch.linalg.qr(block - basis @ (basis.T @ block)).Q
        basis, image = torch.cat([basis, block], 1), torch.cat([image, times(block)], 1)
        left, lengths, right = torch.linalg.svd(image, full_matrices=False)
        block = back(left[:, : count + 10])
        found: Tensor = basis @ right[:count].T
        errors = block[:, :count] / lengths[:count] - found
        if errors.norm(dim=0).max() < 1e-6:
            return found.T
    raise RuntimeError("the components of all rows did not converge")


def measure(case: Case, device: torch.device) -> list[Figures]:
    rows = drawn(case.spectrum, case.rows)
    here = rows.to(device)
    sides: dict[str, Callable[[], Tensor]] = {"ours": lambda: ours(here).cpu()}
    for batch in case.peers:
        sides[f"IncrementalPCA, batch {batch}"] = partial(peer, rows, batch)
    if device.type == "cuda":
        ours(here)  # starts the device's libraries
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    found, extra = {}, {}
    for _ in range(case.repeats):
        for side, run in sides.items():
            found[side], took, extra[side] = watched(run, device if side == "ours" else torch.device("cpu"))
            seconds[side].append(took)
    truth = exact(rows)
    most = along(rows, truth)
    figures = []
    for side, vectors in found.items():
        cosines = torch.linalg.svdvals(vectors @ truth.T)
        spread = along(rows, vectors) / most
        quality = (float(cosines.mean()), float(cosines.min()))
        figures.append(Figures(case, side, min(seconds[side]), extra[side], quality, spread))
    return figures


def along(rows: Tensor, vectors: Tensor) -> float:
    """The variance of the rows along orthonormal vectors."""
    return float(torch.cat([part.double() @ vectors.T for part in torch.split(rows, 500)]).var(0).sum())


def watched(run: Callable[[], Tensor], device: torch.device) -> tuple[Tensor, float, float]:
    """What a run returns, its seconds, and how far its memory rose, in bytes."""
    process, done, peak = psutil.Process(), threading.Event(), [0]

    def watch() -> None:
        while not done.wait(0.005):
            peak[0] = max(peak[0], process.memory_info().rss)

    # What earlier runs freed goes back to the system first: it would be used again unseen.
    ctypes.CDLL(None).malloc_trim(0)
    before = process.memory_info().rss
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        held = torch.cuda.memory_allocated(device)
    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    found = run()  # ends on the CPU, so that a device is done as well
    took = time.perf_counter() - start
    done.set()
    watcher.join()
    if device.type == "cuda":
        return found, took, torch.cuda.max_memory_allocated(device) - held
    return found, took, max(0, peak[0] - before)


def document(figures: Sequence[Figures], hardware: str) -> str:
    """The page."""
    least = {one.case: one.seconds for one in figures if one.side == "ours"}
    lines = [
        f"| {one.case.spectrum} | {one.case.rows} | {one.side} | {one.seconds:.2f} "
        f"| {'' if one.side == 'ours' else f'**{one.seconds / least[one.case]:.1f}**'} | {one.extra / 2**20:.0f} "
        f"| {one.cosines[0]:.6f} | {one.cosines[1]:.6f} | {one.explained:.6f} |"
        for one in figures
    ]
    return f"""# Principal components

The first {COUNT} components of float32 rows of {WIDTH} columns, as h of a 256-pixel model has. `gap`: deviations 10
to 2 along {COUNT} components, 0.2 along all others; `slow`: 1 / sqrt(i). Every column's mean is {MEAN}. Ours is
`core.statistics.principal_components.RunningComponents` at the height that `store_height` gives for these rows ({BATCH}
rows at a time): up to 2048 rows all are kept and the result is that of all rows; beyond, it is a stream. Memory is what
the process's rose by at most (that of the device on a GPU). Cosines are of the principal angles to the components of
all rows; `explained` is the variance along what was found, of that along the components of all rows.

| spectrum | rows | | s | ratio to ours | MiB | mean cos | least cos | explained |
|---|---|---|---|---|---|---|---|---|
{chr(10).join(lines)}

Seconds are the least of two runs for the first case and of one for the others, the sides in turn.

Measured on {hardware}, by `python -m benchmarks.pca`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="where ours runs")
    device = torch.device(parser.parse_args().device)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    hardware = machine(torch.device("cpu"))
    if device.type == "cuda":
        hardware = f"{machine(device)}; scikit-learn on {hardware}"
    figures = [one for case in CASES for one in measure(case, device)]
    name = "pca.md" if device.type == "cpu" else f"pca_{device.type}.md"
    (RESULTS / name).write_text(document(figures, hardware))


if __name__ == "__main__":
    main()
