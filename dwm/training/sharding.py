"""One model spread over the processes of a run (FSDP: ``torch.distributed.fsdp.fully_shard``), for models too large for one device.

Each process keeps its share of the weights, of their average and of the optimiser's state, gathers a block's weights when the
block runs, and writes its own share to the checkpoint. Without it every process keeps everything.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_map

from dwm.errors import InputError
from dwm.training.checkpoint import TrainingState, read_payload, write_atomically
from dwm.training.parallel import Crew


def shard(model: nn.Module, crew: Crew, device: torch.device) -> None:
    """Spread a model's parameters over the crew, in place: every entry of its module lists (blocks) is gathered on its own."""
    for parameter in model.parameters():
        parameter.data = parameter.data.contiguous()  # FSDP knows no other layout
    mesh = init_device_mesh(device.type, (crew.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if device.type == "cuda" else None, output_dtype=torch.float32)
    for part in reversed([m for m in model.modules() if isinstance(m, nn.ModuleList)]):  # inner ones first
        for block in part:
            fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)


def is_spread(model: nn.Module) -> bool:
    """Whether ``shard`` was applied."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def save_share(state: TrainingState, out: Path, crew: Crew) -> None:
    """Write this process's share below ``out``; the checkpoint is the newest step that all processes have written."""
    name = f"checkpoint.{state.step}.{crew.rank}.pt"
    write_atomically(_own(state.payload()), out / name)
    crew.wait()
    if crew.leads:
        partial = out / "checkpoint.json.partial"
        partial.write_text(json.dumps({"step": state.step, "processes": crew.size}))
        os.replace(partial, out / "checkpoint.json")
    crew.wait()
    for old in out.glob(f"checkpoint.*.{crew.rank}.pt"):
        if old.name != name:
            old.unlink()


def load_share(state: TrainingState, out: Path, crew: Crew) -> bool:
    """Fill ``state`` with this process's share; False when there is none. InputError for another run or number of processes."""
    if not (out / "checkpoint.json").is_file():
        return False
    found = json.loads((out / "checkpoint.json").read_text())
    if found["processes"] != crew.size:
        problem = f"a checkpoint of {found['processes']} processes, resumed by {crew.size}"
        raise InputError(out / "checkpoint.json", problem, "start as many processes as before, or choose another loop.out")
    path = out / f"checkpoint.{found['step']}.{crew.rank}.pt"
    payload = read_payload(path, state.fingerprint)
    for module, name in ((state.model, "model"), (state.averaged, "averaged")):
        for key, tensor in module.state_dict().items():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).copy_(payload[name][key])
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    moments = payload["optimizer"]["state"]
    for index, values in moments.items():
        moments[index] = {key: _spread(value, parameters[index]) for key, value in values.items()}
    state.optimizer.load_state_dict(payload["optimizer"])
    state.step, state.elapsed_s = payload["step"], payload["elapsed_s"]
    return True


def _own(tree: Any) -> Any:
    """The same nested state with this process's share of every spread tensor."""
    return tree_map(lambda leaf: leaf.to_local() if isinstance(leaf, DTensor) else leaf, tree)


def _spread(share: Any, like: Tensor) -> Any:
    """A share of an optimiser's value as a spread tensor, if the parameter is one; its count of steps is none."""
    if not isinstance(like, DTensor) or share.ndim == 0:
        return share
    return DTensor.from_local(
        share.to(like.device), like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def whole(tensor: Tensor) -> Tensor:
    """A tensor gathered from all processes, which all must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
