"""The gradient through the whole chain, beside the straightforward way to take it: exact counts, bytes and seconds.

python -m benchmarks.chain                  writes results/chain_cpu.md
python -m benchmarks.chain --device cuda    writes results/chain_cuda.md; needs torch, diffusers and safetensors only

Straightforward is what the papers' codes do: two calls of the UNet for each shifted step, `torch.utils.checkpoint`
around each, and the unshifted sample drawn again. Its fairer form has frozen weights, so that none gets a gradient.
"""

import argparse
import copy
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import RESULTS, machine
from benchmarks.sides import CELEBA, Case, celeba, chain_flops, flops, held, ours, seconds, straightforward
from core import Denoiser, Schedule
from core.chain.gradient import CheckpointBlocks, CheckpointSteps, FullGraph, GradientPolicy, KeepSteps, predict
from core.chain.step_memory import chain_costs
from core.execution.lean import LeanUNet, lean
from core.model.cuts.unet import UNetCut

MIB = 1 << 20
_HEAD = (
    "| | straightforward | frozen | run again | kept | straightforward / run again | frozen / run again "
    "| straightforward / kept | frozen / kept | one step |"
)


def agreement(case: Case) -> list[tuple[str, float]]:
    """Relative error of every policy's gradient against the plain graph's, on the plain and on the lean denoiser."""
    wanted = ours(case, FullGraph(), case.denoiser)().clone()
    one = predict(lean(case.denoiser), case.schedule, len(case.x_T), CheckpointSteps(), None, "asymmetric").graphs
    policies: dict[str, GradientPolicy] = {
        "CheckpointSteps": CheckpointSteps(),
        "KeepSteps(3 steps)": KeepSteps(3 * one),
        "CheckpointBlocks": CheckpointBlocks(),
    }
    rows = []
    for name, policy in policies.items():
        for word, denoiser in (("plain", case.denoiser), ("lean", lean(case.denoiser))):
            found = ours(case, policy, denoiser)()
            rows.append((f"{name}, {word}", float((found - wanted).norm() / wanted.norm())))
    return rows


def counted() -> list[tuple[str, str, str]]:
    """Exact counts on the real architecture, without weights: (what, ours beside the reference, goal)."""
    denoiser = celeba()
    leaner = lean(denoiser)
    case, x = Case.of(denoiser, 40, 1), torch.empty(1, 3, 256, 256, device="meta")
    with torch.no_grad():
        unet, encoder = flops(lambda: denoiser(x, 5)), flops(lambda: leaner.encode(x, 5))
        features = leaner.encode(x, 5)
        decoder = flops(lambda: leaner.decode(features, case.shift))
    sides = [
        *(partial(straightforward, frozen=still) for still in (False, True)),
        *(partial(ours, policy=policy) for policy in (CheckpointSteps(), FullGraph())),
    ]
    full, frozen, again, kept = (chain_flops(side, denoiser, len(case.schedule)) for side in sides)
    steps = [True, True]
    plain_graph, lean_graph = (
        chain_costs(d, case.schedule, 1, "symmetric", steps)[1].graph for d in (denoiser, leaner)
    )
    asymmetric = chain_costs(leaner, case.schedule, 1, "asymmetric", steps)[1].graph
    short, long = (
        predict(leaner, Schedule.ddim(denoiser, t), 1, CheckpointSteps(), None, "asymmetric") for t in (10, 40)
    )
    bytes_short, bytes_long = (p.states + p.graphs for p in (short, long))
    return [
        ("one UNet call", f"{unet / 1e9:.1f} GFLOP", ""),
        ("an encoder pass, with all that the skips give", f"{encoder / unet:.3f} of it", ""),
        ("a decoder pass", f"{decoder / unet:.3f} of it", ""),
        ("one asymmetric step, two UNets / ours", f"{2 * unet / (encoder + 2 * decoder):.3f}", ">= 1.29"),
        ("a training step, straightforward", f"{full / unet / 40:.2f} UNet calls for each step of the chain", ""),
        ("the same, frozen", f"{frozen / unet / 40:.2f}", ""),
        ("ours, each step run again", f"{again / unet / 40:.2f}", ""),
        ("ours, all steps kept", f"{kept / unet / 40:.2f}", ""),
        ("straightforward / ours, run again", f"{full / again:.2f}", ">= 1.9"),
        ("frozen / ours, run again", f"{frozen / again:.2f}", ">= 1.45"),
        ("straightforward / ours, kept", f"{full / kept:.2f}", ">= 2.8"),
        ("frozen / ours, kept", f"{frozen / kept:.2f}", ""),
        ("bytes of a kept plain step, diffusers / ours", _over(plain_graph, lean_graph), ">= 2.5"),
        ("bytes of a kept asymmetric step, two diffusers calls / ours", _over(2 * plain_graph, asymmetric), ""),
        ("bytes kept, each step run again, T = 40 / T = 10", f"{bytes_long / bytes_short:.3f}", "<= 1.05"),
    ]


def _over(reference: int, found: int) -> str:
    return f"{reference / MIB:.0f} MiB / {found / MIB:.0f} MiB = {reference / found:.2f}"


def timed(name: str, case: Case, repeats: int) -> list[str]:
    """One model's seconds: the reference's two forms, our two ends, and one step forward."""
    leaner = lean(case.denoiser)
    runs = [
        straightforward(case, False),
        straightforward(case, True),
        ours(case, CheckpointSteps()),
        ours(case, KeepSteps()),
    ]
    full, frozen, again, kept = seconds(runs, repeats)
    t = case.schedule.timesteps[0]

    @torch.no_grad()
    def two_unets() -> Tensor:
        return case.denoiser(case.x_T, t, case.shift) + case.denoiser(case.x_T, t)

    @torch.no_grad()
    def one_step() -> Tensor:
        features = leaner.encode(case.x_T, t)
        return leaner.decode(features, case.shift) + leaner.decode(features)

    two, one = seconds([two_unets, one_step], 4 * repeats)
    shape = f"{len(case.x_T)} samples, {len(case.schedule)} steps"
    return [
        f"| {name}, {shape} | {full:.2f} | {frozen:.2f} | {again:.2f} | {kept:.2f} "
        f"| {full / again:.2f} | {frozen / again:.2f} | **{full / kept:.2f}** | {frozen / kept:.2f} | {two / one:.2f} |"
    ]


def precisions(name: str, case: Case) -> list[str]:
    """Each precision of the network: seconds, peak bytes as predicted and as measured, cosine of the gradient."""
    wanted, rows = None, []
    for word, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, False),
    ):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
        unet = copy.deepcopy(case.denoiser.network)
        torch.nn.Module.to(unet, dtype=dtype)
        cast = lean(Denoiser(unet, case.denoiser.scheduler, word, word))
        run = ours(case, CheckpointSteps(), cast)
        gradient = run().double().flatten(1)
        wanted = gradient if wanted is None else wanted
        cosine = torch.nn.functional.cosine_similarity(gradient.flatten(), wanted.flatten(), dim=0)
        median = torch.nn.functional.cosine_similarity(gradient, wanted, dim=1).median()
        (taken,) = seconds([run], 3)
        said = predict(cast, case.schedule, len(case.x_T), CheckpointSteps(), None, "asymmetric")
        measured = held(case, cast, CheckpointSteps()) + said.network
        rows.append(
            f"| {name}, {word} | {taken:.2f} | {said.peak / MIB:.0f} | {measured / MIB:.0f} "
            f"| {cosine:.5f} | {median:.5f} |"
        )
    return rows


def large(device: torch.device) -> str:
    """The real shape on a GPU: straightforward with TF32, its default, beside ours in bf16 with memory filled."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    whole = celeba(device=str(device))
    case, batch = Case.of(whole, 40, 8), 8
    wanted = straightforward(case, True)().double().flatten()
    unet = torch.nn.Module.to(copy.deepcopy(whole.network), dtype=torch.bfloat16)
    half = lean(Denoiser(unet, whole.scheduler, "bf16", "bf16"))
    runs = {"straightforward, TF32": straightforward(case, False), "frozen, TF32": straightforward(case, True)}
    for name, policy in (("run again", CheckpointSteps()), ("kept", KeepSteps())):
        runs[f"ours, bf16, {name}"] = ours(case, policy, half)
    rows = []
    for name, run in runs.items():
        gradient = run().double().flatten()
        cosine = torch.nn.functional.cosine_similarity(gradient, wanted, dim=0)
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        (taken,) = seconds([run], 2)
        peak = torch.cuda.max_memory_allocated(device) - before
        rows.append(f"| {name} | {taken:.2f} | {peak / MIB:.0f} MiB | {cosine:.5f} |")
    said = predict(half, case.schedule, batch, CheckpointSteps(), None, "asymmetric")
    return f"""## {CELEBA}'s shape at full size, batch {batch}, 40 steps

Peak beside the weights, from the allocator; predicted for "run again": {(said.peak - said.network) / MIB:.0f} MiB.

| | seconds | peak | cosine to the gradient in TF32 |
|---|---|---|---|
{chr(10).join(rows)}

"""


def ablated(case: Case, repeats: int) -> list[str]:
    """What each saving of the lean denoiser is worth, on one asymmetric step forward and backward."""
    plain = case.denoiser.cut
    assert isinstance(plain, UNetCut)
    variants = {
        "diffusers' modules, shared encoder": case.denoiser,
        "less saved, doubling merged": case.denoiser.with_cut(LeanUNet.of(plain, share_skips=False)),
        "and skips shared": lean(case.denoiser),
    }
    one = Case(case.denoiser, Schedule.ddim(case.denoiser, 2), case.x_T, case.shift)
    taken = seconds([ours(one, FullGraph(), denoiser) for denoiser in variants.values()], repeats)
    rows = []
    for (name, denoiser), spent in zip(variants.items(), taken, strict=True):
        rows.append(f"| {name} | {taken[0] / spent:.2f} | {held(one, denoiser, FullGraph()) / MIB:.0f} MiB |")
    return rows


def document(device: torch.device, repeats: int) -> str:
    """The page."""
    narrow = celeba(2, 64, str(device))
    small = Denoiser.from_pretrained("toyfaces", device=device)
    exact = Denoiser.from_pretrained("toyfaces", torch.float64, device)
    counts = "\n".join(f"| {what} | {found} | {goal} |" for what, found, goal in counted())
    errors = "\n".join(
        f"| {name} | {single:.1e} | {double:.1e} |"
        for (name, single), (_, double) in zip(
            agreement(Case.of(small, 10, 2)), agreement(Case.of(exact, 10, 2)), strict=True
        )
    )
    wall = [
        *timed("toyfaces", Case.of(small, 20, 16), repeats),
        *timed("celebahq at half the width, 64x64", Case.of(narrow, 10, 2), repeats),
    ]
    precise = [
        *precisions("toyfaces, 6 steps", Case.of(small, 6, 8)),
        *precisions("toyfaces, 20 steps", Case.of(small, 20, 8)),
        *precisions("narrower celebahq, 10 steps", Case.of(narrow, 10, 2)),
    ]
    parts = ablated(Case.of(narrow, 2, 4), 3 * repeats)
    return f"""# The gradient through the whole chain

Straightforward: two UNet calls for each shifted step, `torch.utils.checkpoint` around each, weights that get
gradients, the unshifted sample drawn again. Frozen: the same with frozen weights. Ours: the lean denoiser, the
unshifted sample cached; "run again": `CheckpointSteps`, "kept": `FullGraph` in counts, `KeepSteps("auto")` in seconds.
All steps are shifted, with asymmetric injection.

## Exact counts on {CELEBA}, 40 steps, one sample

Counted by torch's FlopCounterMode and by following every storage, on the meta device.

| what | measured | goal |
|---|---|---|
{counts}

## Gradients against the plain graph, toyfaces, 10 steps

Relative error of the gradient with respect to the shift.

| policy | float32 | float64 |
|---|---|---|
{errors}

## Seconds of a training step

Medians of {repeats} runs, all columns in turns; the last is one asymmetric step forward, two UNets over ours.

{chr(10).join([_HEAD, "|---" * 10 + "|", *wall])}

## What each saving is worth

Two asymmetric steps of the narrower celebahq, 4 samples, forward and backward, all kept.

| | speed | peak beside the weights |
|---|---|---|
{chr(10).join(parts)}

## Precision

Each step run again: MiB predicted, and as followed storage by storage, and the cosine of the gradient to that of fp32
(goal >= 0.99), of the whole batch and the median of its samples: a long chain multiplies what bf16 rounds, in some
samples far more than in others. TF32 differs from fp32 only on GPUs that have it.

| network | seconds | predicted | held | cosine | of a sample |
|---|---|---|---|---|---|
{chr(10).join(precise)}

{large(device) if device.type == "cuda" else ""}Measured on {machine(device)}.
Command: `python -m benchmarks.chain --device {device.type}`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    page = document(device, arguments.repeats)
    (RESULTS / f"chain_{device.type}.md").write_text(page)
    print(page)


if __name__ == "__main__":
    main()
