"""Two processes training one model: the same weights in both, other samples in each, one set of files."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dwm.training.parallel import Crew, join_crew

_WORKER = """
import sys
from pathlib import Path
import torch
from dwm.training.loop import fit
from dwm.training.parallel import Crew, join_crew
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


def test_one_process_is_a_crew_that_changes_nothing(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    crew = join_crew()
    assert (crew, crew.leads) == (Crew(rank=0, size=1), True)
    assert crew.agree(True, 3.0) == (True, 3.0)
    parameter = torch.nn.Parameter(torch.ones(2))
    parameter.grad = torch.tensor([1.0, 2.0])
    crew.average_gradients([parameter])
    assert parameter.grad.tolist() == [1.0, 2.0]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("crew")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    script = out / "worker.py"
    script.write_text(_WORKER)
    root = Path(__file__).resolve().parents[2]
    common = {**os.environ, "PYTHONPATH": str(root), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), str(out)],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1"},
        )
        for rank in range(2)
    ]
    assert [process.wait(timeout=180) for process in processes] == [0, 0]
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
