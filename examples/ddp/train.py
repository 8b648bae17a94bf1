"""Plain PyTorch: DistributedDataParallel, gloo on CPUs and NCCL on GPUs, and nothing of superv's.

superv tells it where to save and what to resume in SUPERV_SAVE_DIR, SUPERV_RESUME_PATH and
SUPERV_RESUME_STEP (`checkpoints.handoff: env`); without them, as under torchrun, it saves into
./checkpoints. Its lines say which step was finished, and at which one training starts.
"""

import argparse
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.nn.parallel import DistributedDataParallel


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--step-s", type=float, default=0.1, help="the least that a step takes")
    return parser.parse_args()


def batch(step: int, rank: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of one step and rank: always the same, so a resumed run prints the same losses."""
    dice = torch.Generator().manual_seed(step * 1000 + rank)
    x = torch.randn(32, 16, generator=dice)
    return x.to(device), x.sum(dim=1, keepdim=True).to(device)


def main() -> None:
    args = arguments()
    gpus = torch.cuda.is_available()
    dist.init_process_group("nccl" if gpus else "gloo")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpus else torch.device("cpu")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    layers = (torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    model = DistributedDataParallel(torch.nn.Sequential(*layers).to(device))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)

    saves = Path(os.environ.get("SUPERV_SAVE_DIR") or "checkpoints")
    resume = os.environ.get("SUPERV_RESUME_PATH", "")
    done = 0
    if resume:
        weights, moments = get_state_dict(model, optimizer)
        state = {"model": weights, "optimizer": moments, "step": 0}
        dcp.load(state, checkpoint_id=resume)
        set_state_dict(
            model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"]
        )
        done = state["step"]
    print(f"Training starts at step {done + 1}", flush=True)

    for step in range(done + 1, args.steps + 1):
        began = time.monotonic()
        x, y = batch(step, dist.get_rank(), device)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        optimizer.step()
        time.sleep(max(0.0, began + args.step_s - time.monotonic()))
        print(f"step {step}/{args.steps} loss {loss.item():.6f}", flush=True)
        if step % args.every == 0 or step == args.steps:
            weights, moments = get_state_dict(model, optimizer)
            state = {"model": weights, "optimizer": moments, "step": step}
            dcp.save(state, checkpoint_id=saves / f"step-{step}")
    dist.destroy_process_group()
    print("Training completed", flush=True)


if __name__ == "__main__":
    main()
