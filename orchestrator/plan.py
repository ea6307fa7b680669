"""The dry run: what a sweep would do, told from its file alone. No model, network or GPU is touched.

Only what follows from the file is printed. Time, memory and cost depend on the machine and are measured, not guessed.
"""

from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.space import configurations, fits, ordered, sample, size, trials
from orchestrator.spec import Choice, Distribution, Fixed, FloatRange, IntRange, Sweep, Value

_LAST_TIMESTEP = 999  # a window that reaches it shifts the chain from its first step on


@dataclass(frozen=True)
class Passes:
    """Forward passes of the UNet, one sample each, that training one trial of method `learned` to its end takes.

    With I iterations, B samples a batch, T steps, W workers and a pool of P unshifted samples:

        unshifted    P T W      the pool is drawn once, by each worker
        shifted      I B T      every step of every shifted chain
        recomputed   I B T      on the way back under checkpoint_steps; 0 under full_graph
        total        the sum of the three

    `decoders` are the second passes through the decoder half that asymmetric injection needs, one for each shifted
    step, run or run again: (shifted + recomputed) where every step is shifted.
    Evaluations, and 32 calibration samples before the first iteration, come on top.

    A window makes two of these upper bounds: steps before its beginning need no recomputation, and only steps inside
    it a second decoder pass. Which steps those are depends on the model's own timesteps.
    """

    unshifted: int
    shifted: int
    recomputed: int
    decoders: int
    recomputed_is_bound: bool
    decoders_is_bound: bool

    @property
    def total(self) -> int:
        """All passes through the whole UNet."""
        return self.unshifted + self.shifted + self.recomputed


def unet_passes(sweep: Sweep) -> Passes:
    """The arithmetic of `Passes` for this sweep."""
    steps, window = sweep.sampler.steps, sweep.sampler.window
    shifted = sweep.train.iterations * sweep.train.batch * steps
    recomputed = shifted if sweep.gradient.policy == "checkpoint_steps" else 0
    decoders = shifted + recomputed if sweep.sampler.injection == "asymmetric" else 0
    return Passes(
        unshifted=sweep.train.pool * steps * sweep.resources.workers,
        shifted=shifted,
        recomputed=recomputed,
        decoders=decoders,
        recomputed_is_bound=bool(recomputed) and window is not None and window[0] < _LAST_TIMESTEP,
        decoders_is_bound=bool(decoders) and window is not None,
    )


def show(sweep: Sweep, console: Console, root: Path = Path("runs")) -> None:
    """Print the plan."""
    console.print(describe(sweep, root=root))


def describe(sweep: Sweep, samples: int = 5, root: Path = Path("runs")) -> RenderableType:
    """The plan: what runs, over which space, what a trial holds and does, and where the results will go."""
    parts = [
        _facts("Sweep", _what_runs(sweep)),
        _space_table(sweep),
        _sample_table(sweep, samples),
        _facts("One trial", _one_trial(sweep)),
        _passes_table(sweep),
        _facts("Results", _results(sweep, root)),
    ]
    return Group(*(part for part in parts if part is not None))


def _what_runs(sweep: Sweep) -> dict[str, str]:
    sampler, window = sweep.sampler, sweep.sampler.window
    where = f" in timesteps {window[0]} to {window[1]}" if window else ""
    return {
        "name": sweep.name,
        "identity": sweep.identity()[:12],
        "model": sweep.model,
        **({"predictor": sweep.predictor} if sweep.predictor else {}),
        "method": " or ".join(sweep.methods),
        "chain": f"{sampler.steps} steps, eta {sampler.eta:g}, {sampler.injection} injection{where}",
        "objectives": ", ".join(f"{objective.metric} ({objective.mode})" for objective in sweep.objectives),
        "scheduler": _scheduler(sweep),
        "budget": _budget(sweep),
    }


def _budget(sweep: Sweep) -> str:
    count = _counted(sweep.budget.trials, "trial")
    if fits(sweep) and trials(sweep) > 1:
        count = f"all {_counted(trials(sweep), 'configuration')}, each once"
    return f"{count}, at most {sweep.budget.hours:g} hours" if sweep.budget.hours else count


def _scheduler(sweep: Sweep) -> str:
    if sweep.scheduler is None:
        return "none: every trial runs to its end"
    asha = sweep.scheduler.asha
    return f"ASHA on {sweep.asha_metric}: from iteration {asha.grace} on, the best 1 in {asha.reduction} go on"


def _one_trial(sweep: Sweep) -> dict[str, str]:
    resources, every = sweep.resources, sweep.evaluate_every
    learns = "learned" in sweep.methods
    held = (
        _counted(resources.workers, "worker"),
        "no GPU" if not resources.gpus_per_trial else f"GPUs: {resources.gpus_per_trial:g}",
        _counted(resources.workers * resources.cpus_per_worker, "CPU"),
    )
    measured = f"every {every} iterations and at the end" if learns and every < sweep.train.iterations else "at the end"
    strength = sweep.evaluate.strength
    scaled = f", every set scaled to strength {strength:g}" if strength else ""
    return {
        "resources": ", ".join(held),
        **(_training(sweep) if learns else {}),
        "evaluation": f"{measured}, on {sweep.evaluate.seeds} seeds{scaled}",
    }


def _training(sweep: Sweep) -> dict[str, str]:
    train, engine, workers = sweep.train, sweep.deepspeed, sweep.resources.workers
    micro_batches = _counted(train.batch // workers // sweep.micro_batch, "micro-batch", "micro-batches")
    shares = f"{_counted(workers, 'worker')} x {micro_batches} of {sweep.micro_batch}"
    return {
        "training": f"{_counted(train.iterations, 'iteration')}, batch {train.batch}: {shares}",
        "precision": f"denoiser {train.precision}, trained parts {engine.precision}",
        "DeepSpeed": f"ZeRO-{engine.zero}, optimizer offload {engine.offload_optimizer}",
        "gradient": sweep.gradient.policy,
    }


def _results(sweep: Sweep, root: Path) -> dict[str, str]:
    facts = {
        "sweep": f"{root / sweep.name}",
        "best set": f"{root / sweep.name / 'champion'}",
        "tracking": f"{sweep.tracking.uri or root / 'mlflow.db'}, experiment {sweep.experiment}",
    }
    if sweep.export.register_as:
        facts["registered as"] = sweep.export.register_as
    return facts


def _space_table(sweep: Sweep) -> Table:
    count = size(sweep.space)
    held = "continuous" if count is None else _counted(count, "configuration")
    table = _table(f"Search space ({held})", "parameter", "values", "only when")
    for name in ordered(sweep.space):
        distribution = sweep.space[name]
        given = name in sweep.search or (name == "method" and "method" in sweep.model_fields_set)
        values = _values(distribution) + ("" if given else " (default)")
        when = " and ".join(
            f"{other} is {' or '.join(map(_word, wanted))}" for other, wanted in distribution.when.items()
        )
        _row(table, name, values, when)
    return table


def _values(distribution: Distribution) -> str:
    match distribution:
        case Fixed(value):
            return _word(value)
        case Choice(values):
            return ", ".join(map(_word, values))
        case IntRange(low, high, step, log):
            return f"{low} to {high}" + (f" in steps of {step}" if step > 1 else "") + (", log" if log else "")
        case FloatRange(low, high, log):
            return f"{low:g} to {high:g}" + (", log" if log else "")


def _sample_table(sweep: Sweep, samples: int) -> Table | None:
    """The first configurations, where each will be run; else some as a random search would draw them.

    The real sampler learns from the trials before.
    """
    searched = [name for name in ordered(sweep.space) if not isinstance(sweep.space[name], Fixed)]
    if not searched:
        return None
    listed = fits(sweep)
    table = _table("The first configurations" if listed else "For example", *searched)
    for configuration in configurations(sweep.space)[:samples] if listed else sample(sweep.space, samples, sweep.seed):
        _row(table, *(_word(configuration[name]) if name in configuration else "-" for name in searched))
    return table


def _passes_table(sweep: Sweep) -> Table | Text:
    if "learned" not in sweep.methods:
        return Text("\nNo training: only method learned trains.")
    passes = unet_passes(sweep)
    steps, train, workers = sweep.sampler.steps, sweep.train, sweep.resources.workers
    chain = f"{train.iterations} x {train.batch} x {steps}"
    twice = " x 2" if passes.recomputed else ""
    table = _table("UNet passes of a trial of method learned, run to its end", "what", "arithmetic", "passes")
    _row(
        table,
        "unshifted samples",
        f"{train.pool} x {steps}" + f" x {workers} workers" * (workers > 1),
        _number(passes.unshifted),
    )
    _row(table, "shifted samples", f"{chain} (iterations x batch x steps)", _number(passes.shifted))
    if passes.recomputed:
        _row(table, "recomputed", chain, _number(passes.recomputed, passes.recomputed_is_bound))
    _row(table, "total", "evaluation not included", _number(passes.total, passes.recomputed_is_bound))
    if passes.decoders:
        _row(table, "second decoder half", f"{chain}{twice}", _number(passes.decoders, passes.decoders_is_bound))
    return table


def _number(value: int, bound: bool = False) -> str:
    return f"{'at most ' if bound else ''}{value:,}"


def _counted(count: int, one: str, many: str | None = None) -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def _word(value: Value) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _facts(title: str, facts: dict[str, str]) -> Table:
    table = Table(
        title=f"\n{title}", title_justify="left", title_style="bold", box=None, show_header=False, padding=(0, 2, 0, 0)
    )
    for name, fact in facts.items():
        _row(table, name, fact)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(
        title=f"\n{title}",
        title_justify="left",
        title_style="bold",
        box=None,
        padding=(0, 2, 0, 0),
        min_width=len(title),  # of a narrow table the title would be broken
    )
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _row(table: Table, *cells: str) -> None:
    """Cells as plain text: a name such as [bold] is not markup."""
    table.add_row(*(Text(cell) for cell in cells))
