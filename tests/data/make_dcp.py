"""Make tests/data/dcp with torch 2.13: `python make_dcp.py OUT`. Run once; its output is committed.

Two gloo ranks, FSDP2 on the CPU, and the state dict that TorchTitan 0.2.2 hands to DCP: the model
flattened into the top level, the optimizer by flattened names, one dataloader entry a rank.
Writes OUT/step-5 (full training state) and OUT/step-6 (model only).
"""

import os
import pickle
import sys

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def save(rank: int, out: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = torch.nn.Sequential()
    model.add_module("tok_embeddings", torch.nn.Embedding(8, 4))
    model.add_module("output", torch.nn.Linear(4, 8))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    for module in model.modules():
        if hasattr(module, "set_force_sum_reduction_for_comms"):
            module.set_force_sum_reduction_for_comms(True)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    model(torch.arange(8)).square().mean().backward()
    optimizer.step()
    flat = StateDictOptions(flatten_optimizer_state_dict=True)
    state = {
        "train_state": {"step": 5, "ntokens_seen": 2560},
        "optimizer": get_optimizer_state_dict(model, optimizer, options=flat),
        "dataloader": {f"dp_rank_{rank}": pickle.dumps({"_sample_idx": 7}), "world_size": 2},
        "lr_scheduler": {"last_epoch": 5, "_step_count": 6},
        **get_model_state_dict(model),
    }
    dcp.save(state, checkpoint_id=f"{out}/step-5")
    dcp.save(get_model_state_dict(model), checkpoint_id=f"{out}/step-6")
    dist.destroy_process_group()


if __name__ == "__main__":
    mp.spawn(save, args=(sys.argv[1],), nprocs=2)
