"""The training loop shared by all targets: resumable, stoppable, and a pure function of its seed.

Every random draw comes from a generator made of (seed, step, part), so a resumed run repeats an uninterrupted one exactly.
"""

from __future__ import annotations

import copy
import logging
import math
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from dwm.device import half_precision, pick_device
from dwm.models.weights import save_model
from dwm.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint, update_average
from dwm.training.config import LoopConfig
from dwm.training.journal import Journal
from dwm.training.parallel import Crew, join_crew
from dwm.training.sharding import is_spread, load_share, save_share, shard, whole

logger = logging.getLogger(__name__)
MAX_BAD_STEPS = 50  # steps in a row without finite gradients after which a run is given up


class Task(Protocol):
    """What is trained: a model, its data, its loss."""

    model: nn.Module

    @property
    def fingerprint(self) -> str:
        """JSON object of what must stay the same when a run is resumed."""
        ...

    @property
    def metadata(self) -> dict[str, str]:
        """Facts stored with the weights."""
        ...

    def prepare(self, device: torch.device) -> None:
        """What is done to the model once, before the first step of a new run."""
        ...

    def __len__(self) -> int:
        """Training samples."""
        ...

    def load(self, indices: list[int], generator: np.random.Generator) -> Any:
        """A batch on the CPU with a ``.to(device)``; called from loader threads."""
        ...

    def loss(self, model: nn.Module, batch: Any, generator: torch.Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss and further scalars to log; the generator is on the CPU."""
        ...

    def evaluate(self, model: nn.Module, device: torch.device) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """Held-out figures and an image strip [H, W, 3]."""
        ...

    def finish(self, model: nn.Module, device: torch.device) -> nn.Module:
        """Last touch on a copy of the averaged model; what is exported."""
        ...


def fit(task: Task, config: LoopConfig, *, progress: bool = False) -> Path:
    """Train until ``steps``, ``max_minutes`` or SIGTERM, whichever is first; the path of the exported weights."""
    crew, device = join_crew(), pick_device(config.device)
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    state = _begin(task, config, out, device, crew)
    journal = Journal(out, state.step) if crew.leads else None
    with _stop_on_sigterm() as stop:
        _run(task, state, config, journal, stop, device, crew, progress)
    _save(state, out, crew)
    if journal is not None:
        journal.close()
    export(task, state, out / "weights.safetensors", device, crew)
    crew.wait()
    return out / "weights.safetensors"


def _begin(task: Task, config: LoopConfig, out: Path, device: torch.device, crew: Crew) -> TrainingState:
    """A new run, or the one that the folder holds."""
    model = task.model.to(device).train()
    spread = config.shard and crew.size > 1
    resumes = (out / ("checkpoint.json" if spread else "checkpoint.pt")).is_file()
    if not resumes:
        task.prepare(device)
    averaged = copy.deepcopy(model).eval().requires_grad_(False)
    template = copy.deepcopy(averaged).cpu() if spread and crew.leads else None
    if spread:
        shard(model, crew, device)
        shard(averaged, crew, device)
    state = TrainingState(
        model=model, averaged=averaged, optimizer=_optimizer(model, config), fingerprint=task.fingerprint, template=template
    )  # fmt: skip
    if resumes and (load_share(state, out, crew) if spread else load_checkpoint(state, out / "checkpoint.pt")):
        logger.info("resumed %s at step %d", out, state.step)
    return state


def _save(state: TrainingState, out: Path, crew: Crew) -> None:
    if is_spread(state.model):
        save_share(state, out, crew)
    elif crew.leads:
        save_checkpoint(state, out / "checkpoint.pt")


def export(task: Task, state: TrainingState, path: Path, device: torch.device, crew: Crew) -> None:
    """Write the averaged weights, ready for use; all processes take part, the first one writes."""
    weights = {name: whole(tensor) for name, tensor in state.averaged.state_dict().items()}
    if crew.leads:
        averaged = copy.deepcopy(state.template or state.averaged)
        averaged.load_state_dict(weights)
        save_model(task.finish(averaged.to(device), device), path, {**task.metadata, "steps": str(state.step)})


def learning_rate(config: LoopConfig, step: int, elapsed_s: float) -> float:
    """Linear warm-up, constant, then linear to a tenth over the last ``decay_fraction`` of the steps or of the time."""
    done = step / config.steps
    if config.max_minutes:
        done = max(done, elapsed_s / (60 * config.max_minutes))
    decay = 1 - 0.9 * max(0.0, min(1.0, (done - 1) / max(config.decay_fraction, 1e-9) + 1))
    return config.learning_rate * min(1.0, (step + 1) / max(config.warmup_steps, 1)) * decay


def sample_indices(seed: int, batch: int, batch_size: int, total: int) -> list[int]:
    """Samples of batch number ``batch``: each epoch is another permutation."""
    places = range(batch * batch_size, (batch + 1) * batch_size)
    return [int(_permutation(seed, place // total, total)[place % total]) for place in places]


@lru_cache(maxsize=4)
def _permutation(seed: int, epoch: int, total: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, 1, epoch]).permutation(total)


def _optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.Optimizer:
    decayed = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98), foreach=True)


def _run(
    task: Task, state: TrainingState, config: LoopConfig, journal: Journal | None, stop: threading.Event,
    device: torch.device, crew: Crew, progress: bool,
) -> None:  # fmt: skip
    """The steps; only the process with a journal writes anything."""
    out = Path(config.out)
    forward = torch.compile(state.model) if config.compile else state.model
    batches = _prefetch(task, config, state.step * config.accumulate, crew)
    bar = tqdm(
        total=config.steps, initial=state.step, unit="step", disable=not (progress and crew.leads and sys.stderr.isatty())
    )
    bad_steps, last_log, last_step, clock = 0, time.monotonic(), state.step, time.monotonic()
    try:
        while state.step < config.steps:
            done, state.elapsed_s = crew.agree(stop.is_set() or _out_of_time(state, config), state.elapsed_s)
            if done:
                break
            rate = learning_rate(config, state.step, state.elapsed_s)
            figures = _step(task, forward, state, config, batches, rate, device, crew)
            bad_steps = 0 if math.isfinite(figures["gradient_norm"]) else bad_steps + 1
            if bad_steps >= MAX_BAD_STEPS:
                raise FloatingPointError(f"{out}: {bad_steps} steps in a row without finite gradients at step {state.step}")
            now = time.monotonic()
            state.elapsed_s, clock = state.elapsed_s + now - clock, now
            bar.update()
            if journal is not None and (state.step % config.log_every == 0 or state.step == config.steps):
                speed = (state.step - last_step) * config.batch_size * config.accumulate * crew.size / max(now - last_log, 1e-9)
                journal.scalars(state.step, {**figures, "learning_rate": rate, "samples_per_s": speed})
                bar.set_postfix(loss=f"{figures['loss']:.4f}", refresh=False)
                last_log, last_step = now, state.step
            if state.step % config.checkpoint_every == 0:
                _save(state, out, crew)
            if config.sample_every and state.step % config.sample_every == 0:
                _evaluate(task, state, journal, device)
                export(task, state, out / "weights.safetensors", device, crew)
    finally:
        batches.close()
        bar.close()


def _step(
    task: Task, forward: Any, state: TrainingState, config: LoopConfig, batches: Iterator[Any], rate: float,
    device: torch.device, crew: Crew,
) -> dict[str, float]:  # fmt: skip
    """One optimiser step; the model is left alone when the gradients are not finite."""
    for group in state.optimizer.param_groups:
        group["lr"] = rate
    state.optimizer.zero_grad(set_to_none=True)
    sums: dict[str, float] = {}
    for part in range(config.accumulate):
        generator = torch.Generator().manual_seed(_seed(config.seed, state.step, part * crew.size + crew.rank))
        batch = next(batches).to(device)
        with half_precision(config.precision, device, on_cpu=True):
            loss, scalars = task.loss(forward, batch, generator)
        (loss / config.accumulate).backward()
        for key, value in {"loss": loss, **scalars}.items():
            sums[key] = sums.get(key, 0.0) + float(value.detach()) / config.accumulate
    if not is_spread(state.model):
        crew.average_gradients(state.model.parameters())
    norm = float(whole(nn.utils.clip_grad_norm_(state.model.parameters(), config.gradient_clip)))
    if math.isfinite(norm):
        state.optimizer.step()
        decay = min(config.ema_decay, (1 + state.step) / (10 + state.step))
        update_average(state.averaged, state.model, decay)
    state.step += 1
    return {**sums, "gradient_norm": norm}


def _evaluate(task: Task, state: TrainingState, journal: Journal | None, device: torch.device) -> None:
    """Held-out figures; processes that share a model all take part."""
    if journal is None and not is_spread(state.averaged):
        return
    with torch.no_grad():
        figures, strip = task.evaluate(state.averaged, device)
    if journal is None:
        return
    if figures:
        journal.scalars(state.step, figures)
    if strip is not None:
        journal.strip(state.step, strip)


def _prefetch(task: Task, config: LoopConfig, first: int, crew: Crew) -> Generator[Any, None, None]:
    """Batches from number ``first`` of each process on, in order, prepared ahead in threads."""
    waiting: deque[Future[Any]] = deque()
    number = first
    with ThreadPoolExecutor(config.loader_threads, thread_name_prefix="loader") as pool:
        while True:
            while len(waiting) <= config.loader_threads:
                mine = number * crew.size + crew.rank
                indices = sample_indices(config.seed, mine, config.batch_size, len(task))
                waiting.append(pool.submit(task.load, indices, np.random.default_rng([config.seed, 2, mine])))
                number += 1
            yield waiting.popleft().result()


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0]) >> 1


def _out_of_time(state: TrainingState, config: LoopConfig) -> bool:
    return bool(config.max_minutes) and state.elapsed_s >= 60 * config.max_minutes


@contextmanager
def _stop_on_sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; outside the main thread, where Python forbids handlers, it is never set."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield stop
    finally:
        signal.signal(signal.SIGTERM, before)
