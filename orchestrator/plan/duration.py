"""Predict how long a sweep takes and what it costs, from what `orchestrator.plan.probe` measured.

A trial of a method that trains, with K directions, after n iterations and e evaluations, takes

    start + n iteration + e evaluation(K)
    evaluation(K) = (4 M K C' + 7 K C' + (5 M + 4 M K) / 2) forward + (5 M + 4 M K) score
                    + (M + 4 M K + 7 K) decode + min(ceil(K / 16), M K / 48) judge

with M seeds (evaluate.seeds), C the steps from the first shifted one on and C' those of a whole chain. start is the
choice of the first directions and 32 C forward for `learned`, and the scores of the pool for `guided`; where directions
start from the slopes of R numbers, 32 C (1 + 2 R) forward more. What is scored is decoded once more. Asymmetric
injection adds half a pass for each shifted step, since it runs the decoder twice. With evaluate.strength up to six
rounds of 16 K chains are added. For other methods the terms before the evaluation are replaced by the passes for the
samples that they use, and for `semantic` by the time of finding sources. Unshifted samples are drawn once. The end of a
sweep takes

    6 evaluation(K) + (60 K C' + 5 * 256 steps) forward

for the champion and five random sets, all of them scaled; the second term is for the champion's dials, and for the h
that random directions are made of.

ASHA lets the next trial continue at a rung if it is among the best 1 in r of those that came there before. For scores
in random order and m trials before it, the probability of that is

    1 for m = 0, else 1 - ((1 - 1/r) (m - 1) + 1) / (m + 1)        which falls to 1/r

so n trials at a rung leave the sum of this over m < n for the next. The sweep takes

    load + work / slots + (1 - 1 / slots) longest / 2

and at most budget.hours, where work is the time of all trials and samples one after the other. The last term is the
wait for the last trial while other slots are idle. Not counted: the time of Ray and MLflow, a second or two per trial.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from core.chain.schedule import Schedule
from core.methods.sources import READ
from core.methods.trained.chain_learner import SLOPE_SAMPLES
from core.metrics import calibration
from core.metrics.factors import SEEDS as FACTOR_SEEDS
from core.metrics.identifiability import ITERATIONS, iterations_for
from core.metrics.strength import ROUNDS
from core.metrics.strength import SEEDS as STRENGTH_SEEDS
from core.metrics.traversals import SCALES
from core.pictures.traversal_grid import GRID_SCALES
from core.samples.training import SPREAD_SAMPLES
from orchestrator.plan.probe import Timings
from orchestrator.search.space import configurations, fits, sample, trials
from orchestrator.spec import TRAINED, Sweep, Value
from orchestrator.trial.model import RANDOM_DRAWS
from orchestrator.trial.settings import samples_of, settings_of

_CALIBRATED = 32  # samples on which the learned method once measures the size of differences
_BACKWARD = 2  # forward passes that a backward pass takes
_DRAWN = 200  # random configurations, where the space is not run through
_UNPREDICTED = {
    "jacobian": "how many products it takes depends on how fast it converges",
    "sae": "how long its autoencoder learns is not measured",
    "pairs": "it depends on how many images the pairs have",
    "look": "how long its vision model looks at an image is not measured",
}


@dataclass(frozen=True)
class Duration:
    """The predicted seconds. None, with a reason in `unknown`, for a method that cannot be predicted."""

    trial: dict[str, float | None]  # by method: the mean over configurations, run to its end
    heaviest: dict[str, float | None]
    unknown: dict[str, str]
    ends: tuple[tuple[int, float], ...]  # of trials that train: (iteration, number of them expected to end there)
    slots: int
    sweep: float | None  # None where the time of some trials is unknown
    busy: float | None  # of all trials, one after the other
    limited: bool  # by budget.hours


def predict(sweep: Sweep, schedule: Schedule, measured: Timings, slots: int) -> Duration:
    """Return the prediction, by the formulas of this module, for a sweep that runs `slots` trials at a time."""
    count = trials(sweep)
    listed = configurations(sweep.space) if fits(sweep) else sample(sweep.space, _DRAWN, sweep.seed)
    by_method: dict[str, list[Mapping[str, Value]]] = {}
    for each in listed:
        by_method.setdefault(str(each["method"]), []).append(each)
    one = _Trial(sweep, schedule, measured)
    unknown = {method: why for method, its_own in by_method.items() if (why := _reason_unpredicted(its_own))}
    numbers = {method: count * len(its_own) / len(listed) for method, its_own in by_method.items()}
    training = sum(numbers.get(method, 0.0) for method in TRAINED)
    ends = asha_ends(sweep, training)
    whole = sweep.train.iterations
    times = {
        method: [one.seconds(each, whole) for each in its_own]
        for method, its_own in by_method.items()
        if method not in unknown
    }
    busy: float | None = None
    if not unknown:
        busy = one.samples(by_method, count) + one.champion(listed)
        for method, its_own in by_method.items():
            at: tuple[tuple[int, float], ...] = ((whole, numbers[method]),)
            if method in TRAINED:  # ASHA compares the trials of all of them
                at = tuple((step, number * numbers[method] / training) for step, number in ends)
            busy += sum(number * fmean(one.seconds(each, step) for each in its_own) for step, number in at)
    longest = max((max(each) for each in times.values()), default=0.0)
    total = None if busy is None else measured.load + busy / slots + (1 - 1 / slots) * longest / 2
    limit = (sweep.budget.hours or math.inf) * 3600
    return Duration(
        {method: fmean(times[method]) if method in times else None for method in by_method},
        {method: max(times[method]) if method in times else None for method in by_method},
        unknown,
        ends,
        slots,
        None if total is None else min(total, limit),
        None if busy is None else min(busy, limit * slots),
        total is not None and total > limit,
    )


def asha_ends(sweep: Sweep, count: float) -> tuple[tuple[int, float], ...]:
    """Return (iteration, trials expected to end there) for `count` trials that train; all at the last if no ASHA."""
    whole, every = sweep.train.iterations, sweep.evaluate_every
    if sweep.scheduler is None:
        return ((whole, count),)
    asha, ends, rung = sweep.scheduler.asha, defaultdict[int, float](float), sweep.scheduler.asha.grace
    while (seen := -(-rung // every) * every) < whole:  # ASHA compares a trial when it reports
        going_on = expected_to_go_on(count, asha.reduction)
        ends[seen] += count - going_on
        count, rung = going_on, rung * asha.reduction
    ends[whole] += count
    return tuple(sorted(ends.items()))


def expected_to_go_on(count: float, reduction: float) -> float:
    """Return how many of `count` trials in random order ASHA is expected to continue at a rung."""
    chances = [1.0] + [1 - ((1 - 1 / reduction) * (m - 1) + 1) / (m + 1) for m in range(1, math.ceil(count))]
    whole = int(count)
    return sum(chances[:whole]) + (count - whole) * (chances[whole] if whole < len(chances) else 0.0)


def cost(sweep: Sweep, prediction: Duration, price_per_hour: float) -> tuple[float, float, str] | None:
    """Return (hours, their cost, "GPU" or "machine"): of GPUs that trials hold, or of machines where they hold none."""
    if prediction.sweep is None or prediction.busy is None:
        return None
    gpus = sweep.resources.gpus_per_trial
    hours = prediction.busy / 3600 * gpus if gpus else prediction.sweep / 3600
    return hours, hours * price_per_hour, "GPU" if gpus else "machine"


class _Trial:
    """The seconds of the parts of a trial of this sweep."""

    def __init__(self, sweep: Sweep, schedule: Schedule, measured: Timings) -> None:
        self.sweep, self.measured, self.steps = sweep, measured, len(schedule)
        inside = schedule.steps_in_window(sweep.sampler.window)
        twice = sum(inside) / 2 if sweep.sampler.injection == "asymmetric" else 0.0
        self.chain, self.shifted = self.steps + twice, self.steps - inside.index(True) + twice
        self.seeds, self.scaled = sweep.evaluate.seeds, sweep.evaluate.strength is not None

    def seconds(self, parameters: Mapping[str, Value], iterations: int) -> float:
        """Return the seconds of a trial with these parameters that ends after `iterations`."""
        settings = settings_of(parameters, self.sweep)
        directions = self._directions(settings)
        if parameters["method"] not in TRAINED:
            return self._found(parameters) + self.evaluation(directions, self.scaled)
        assert self.measured.iteration is not None
        evaluations = -(-iterations // self.sweep.evaluate_every)
        training = iterations * self.measured.iteration + evaluations * self.evaluation(directions, self.scaled)
        return self._start(str(parameters["method"]), settings) + training

    def _start(self, method: str, settings: Any) -> float:
        """Return the seconds from the pool to the first iteration of a method that trains."""
        measured = self.measured
        numbers = 0 if settings.start != "slopes" else measured.labels if method == "guided" else READ
        slopes = SLOPE_SAMPLES * self.shifted * (1 + _BACKWARD * numbers) * measured.forward if numbers else 0.0
        if method == "guided":
            return float(settings.pool * (measured.score + measured.decode) + slopes)
        assert measured.start is not None
        found = measured.start if settings.start == "pca" or settings.finds_sources else 0.0
        return float(found + slopes + _CALIBRATED * self.shifted * measured.forward)

    def evaluation(self, directions: int, scaled: bool) -> float:
        """Return the seconds of an evaluation of a set of `directions` directions, and of scaling it where `scaled`."""
        measured, shifted = self.measured, self.seeds * directions * len(SCALES)
        images, shown = 5 * self.seeds + shifted, len(GRID_SCALES) * directions
        decoded = self.seeds + shifted + shown + (images if measured.labels else 0)
        passes = (shifted + shown) * self.chain + images / 2
        if scaled:
            passes += ROUNDS * 2 * directions * len(STRENGTH_SEEDS) * (self.chain + 0.5)
        seconds = passes * measured.forward + decoded * measured.decode + images * measured.score
        judged = iterations_for(directions, self.seeds // 2 * directions * len(SCALES))
        return seconds + measured.judge * judged / ITERATIONS

    def samples(self, by_method: Mapping[str, Sequence[Mapping[str, Value]]], count: int) -> float:
        """Return the seconds of drawing unshifted samples once: those that trials use, per seed, and the references."""
        most = max(samples_of(settings_of(each, self.sweep)) for its_own in by_method.values() for each in its_own)
        seeds = len({each["seed"] for its_own in by_method.values() for each in its_own})
        drawn = min(seeds, count) * most + 10 * self.seeds + len(FACTOR_SEEDS)
        return drawn * self.steps * self.measured.forward

    def champion(self, listed: Sequence[Mapping[str, Value]]) -> float:
        """Return the seconds of measuring the champion, its dials, and the random sets beside it."""
        return fmean(self._compared(self._directions(settings_of(each, self.sweep))) for each in listed)

    def _compared(self, directions: int) -> float:
        """Return the seconds of comparing a champion of `directions` directions with random ones."""
        dials = len(calibration.SEEDS) * len(calibration.SCALES) * directions * self.chain
        passes = dials + SPREAD_SAMPLES * self.steps
        return (1 + RANDOM_DRAWS) * self.evaluation(directions, scaled=True) + passes * self.measured.forward

    def _found(self, parameters: Mapping[str, Value]) -> float:
        """Return the seconds of a method that does not train, without drawing samples that trials share."""
        if parameters["method"] == "semantic":
            assert self.measured.sources is not None
            return self.measured.sources
        if parameters["method"] != "supervised":
            return 0.0
        settings: Any = settings_of(parameters, self.sweep)
        again = min(settings.samples, 2 * settings.extremes)  # samples drawn again for their h
        return float(again * self.steps * self.measured.forward + settings.samples * self.measured.score)

    def _directions(self, settings: Any) -> int:
        named = len(getattr(settings, "attributes", ())) or self.measured.labels
        return int(getattr(settings, "directions", named)) or 1


def _reason_unpredicted(its_own: Sequence[Mapping[str, Value]]) -> str | None:
    """Return why the time of a method is not predicted; None where it is."""
    if (method := str(its_own[0]["method"])) in ("jacobian", "sae"):
        return _UNPREDICTED[method]
    if any(each.get("semantic.look", "denoiser") != "denoiser" for each in its_own):
        return _UNPREDICTED["look"]
    return _UNPREDICTED["pairs"] if any(each.get("supervised.pairs", "none") != "none" for each in its_own) else None
