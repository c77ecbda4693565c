"""Where this process stands among its siblings: one CPU or GPU, or many under torchrun or SLURM, with one code path."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from dpa1.model.inference import pick_device


@dataclass(frozen=True)
class World:
    """``rank`` of ``size`` processes, computing on ``device``."""

    rank: int
    size: int
    device: torch.device

    @property
    def main(self) -> bool:
        """Whether this is the one process that writes files and talks."""
        return self.rank == 0

    def add(self, tensor: Tensor) -> Tensor:
        """Sum ``tensor`` in place over all processes."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def share(self, tensors: list[Tensor]) -> None:
        """Give every process the main process's ``tensors``, in place."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor.data, 0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, value: bool) -> bool:
        """Whether ``value`` is true in any process."""
        if self.size == 1:
            return value
        return bool(self.add(torch.tensor([float(value)], device=self.device)).item() > 0)


def join(device: str) -> World:
    """Find the siblings (torchrun's or SLURM's environment), connect to them and choose the device.

    Raises
    ------
    UserError
        as ``pick_device``.
    """
    rank, size, local = place_of_process()
    chosen = pick_device(device, "training.device")
    if chosen.type == "cuda":
        if chosen.index is None:
            chosen = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(chosen)
    if size > 1 and not dist.is_initialized():
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method="env://", rank=rank, world_size=size)
    return World(rank, size, chosen)


def leave() -> None:
    """Disconnect from the siblings."""
    if dist.is_initialized():
        dist.destroy_process_group()


def place_of_process() -> tuple[int, int, int]:
    """(rank, number of processes, rank on this node) as torchrun or SLURM set them; alone otherwise."""
    env = os.environ
    if "RANK" in env and "WORLD_SIZE" in env:
        return int(env["RANK"]), int(env["WORLD_SIZE"]), int(env.get("LOCAL_RANK", 0))
    # SLURM sets SLURM_PROCID in batch scripts too; only srun steps have a step of several tasks.
    size = int(env.get("SLURM_STEP_NUM_TASKS", "1"))
    if size > 1 and "SLURM_PROCID" in env:
        if "MASTER_ADDR" not in env:
            env["MASTER_ADDR"] = _first_host(env["SLURM_STEP_NODELIST"])
        env.setdefault("MASTER_PORT", str(20000 + int(env.get("SLURM_JOB_ID", 0)) % 20000))
        return int(env["SLURM_PROCID"]), size, int(env.get("SLURM_LOCALID", 0))
    return 0, 1, 0


def _first_host(nodes: str) -> str:
    """First host name of a SLURM node list such as ``gpu[03-05],login1``."""
    try:
        hosts = subprocess.run(["scontrol", "show", "hostnames", nodes], capture_output=True, text=True, check=True)
        return hosts.stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        head, _, tail = nodes.split(",")[0] if "[" not in nodes else nodes, "", ""
        prefix, bracket, rest = head.partition("[")
        return prefix + (rest.split("]")[0].split(",")[0].split("-")[0] if bracket else tail)
