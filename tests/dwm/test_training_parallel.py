"""Two processes training one model: the same weights in both, other samples in each, one set of files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dwm.errors import InputError
from dwm.models.systems import SYSTEMS
from dwm.training.config import TrainConfig
from dwm.training.loop import fit
from dwm.training.parallel import Crew, join_crew
from dwm.training.sharding import load_share
from dwm.training.world_trainer import WorldTask
from tests.dwm.test_trainer_loop import ToyClips, make_config

_WORKER = """
import sys
from pathlib import Path
import torch
from dwm.training.loop import fit
from dwm.errors import InputError
from dwm.training.loop import fit
from dwm.training.parallel import Crew, join_crew
from dwm.training.sharding import load_share
from dwm.training.world_trainer import WorldTask
from tests.dwm.test_trainer_loop import ToyClips, make_config
from dwm.training.world_trainer import WorldTask
from tests.dwm.test_trainer_loop import ToyClips, make_config

seen = []
class Counting(WorldTask):
    def load(self, indices, generator):
        seen.extend(indices)
        return super().load(indices, generator)

out = Path(sys.argv[1])
config = make_config(out, steps=4, accumulate=1, checkpoint_every=2)
task = Counting(config, ToyClips())
fit(task, config.loop)
crew = join_crew()
assert (out / "weights.safetensors").is_file()  # whoever returns may read it
torch.save({"weights": task.model.state_dict(), "seen": seen}, out / f"rank{crew.rank}.pt")
"""
_SPREAD = """
import sys
from pathlib import Path
from dwm.training.loop import fit
from dwm.training.sharding import is_spread
from dwm.training.world_trainer import WorldTask
from tests.dwm.test_trainer_loop import ToyClips
from tests.dwm.test_training_parallel import spread_config

for name, system, legs in (("mila", "mila", [4]), ("legs", "mila", [2, 4]), ("maskgwm", "maskgwm", [4]), ("longdwm", "longdwm", [4])):
    for steps in legs:
        config = spread_config(Path(sys.argv[1]) / name, system, steps=steps, accumulate=1, shard=True)
        task = WorldTask(config, ToyClips())
        fit(task, config.loop)
        assert is_spread(task.model)
"""


def spread_config(out: Path, system: str, **loop) -> TrainConfig:
    config = make_config(out, **{"steps": 4, "sample_every": 2, "log_every": 1, **loop})
    model = replace(config.world.model, system=system, decoder_depth=1, injected_depth=1, modulation_width=8)
    return replace(config, world=replace(config.world, model=model))


def test_one_process_is_a_crew_that_changes_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    crew = join_crew()
    assert (crew, crew.leads) == (Crew(rank=0, size=1), True)
    assert crew.agree(True, 3.0) == (True, 3.0)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    crew.average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


def run_two(script: str, out: Path, arguments: tuple[str, ...] = ()) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (out / "worker.py").write_text(script)
    root = Path(__file__).resolve().parents[2]
    common = {**os.environ, "PYTHONPATH": str(root), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(out / "worker.py"), str(out), *arguments],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=180) for process in processes] == [0, 0]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("crew")
    run_two(_WORKER, out)
    return out, [torch.load(out / f"rank{rank}.pt", weights_only=True) for rank in range(2)]


def test_both_processes_end_with_the_same_weights_bit_for_bit(ranks):
    _, (one, other) = ranks
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name


def test_they_share_the_samples_out(ranks):
    # Six clips in batches of two, dealt in turn: one epoch is three batches.
    _, (one, other) = ranks
    first_epoch = one["seen"][:2] + other["seen"][:2] + one["seen"][2:4]
    assert sorted(first_epoch) == list(range(6))


def test_only_the_first_one_writes(ranks):
    out, _ = ranks
    assert [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()] == [1, 2, 3, 4]
    assert sorted(p.name for p in out.glob("*.safetensors")) == ["weights.safetensors"]


def test_models_spread_over_two_processes_learn_what_one_process_learns(tmp_path):
    """The same clips and noise in each step; only the order of summation differs."""
    run_two(_SPREAD, tmp_path)
    for system in SYSTEMS:
        config = spread_config(tmp_path / "alone" / system, system, accumulate=2)
        fit(WorldTask(config, ToyClips()), config.loop)
        alone, whole = (load_file(tmp_path / name / "weights.safetensors") for name in (f"alone/{system}", system))
        for name, tensor in alone.items():
            torch.testing.assert_close(whole[name], tensor, atol=1e-6, rtol=1e-4)
        log, other = (
            [json.loads(line) for line in (tmp_path / run / "log.jsonl").read_text().splitlines()]
            for run in (f"alone/{system}", system)
        )
        for key in ("gradient_norm", "held_out_sampled_error"):
            values, others = ([line[key] for line in lines if key in line] for lines in (log, other))
            assert len(values) >= 2
            assert others == pytest.approx(values, rel=1e-4)
    whole, legs = (load_file(tmp_path / name / "weights.safetensors") for name in ("mila", "legs"))
    assert all(torch.equal(legs[name], whole[name]) for name in whole)  # stopped and resumed
    # Each process keeps half, whatever the model weighs.
    shares = [(tmp_path / "mila" / f"checkpoint.4.{rank}.pt").stat().st_size for rank in range(2)]
    assert max(shares) < 0.7 * (tmp_path / "alone" / "mila" / "checkpoint.pt").stat().st_size
    assert sorted(p.name for p in (tmp_path / "legs").glob("checkpoint.*.pt")) == ["checkpoint.4.0.pt", "checkpoint.4.1.pt"]
    with pytest.raises(InputError, match=r"a checkpoint of 2 processes, resumed by 1; start as many processes as before"):
        load_share(None, tmp_path / "mila", Crew())  # type: ignore[arg-type]


def test_a_critic_is_not_spread(tmp_path):
    config = make_config(tmp_path, shard=True)
    config = replace(config, world=replace(config.world, adversary=0.4))
    with pytest.raises(InputError, match=r"true beside world\.adversary"):
        WorldTask(config, ToyClips())
