"""A trainer on this machine's GPUs: torch, NCCL, one all-reduce a step, DCP checkpoints every ten.

Rank 0 appends a line `PID STEP TIME LOSS` to the file that BENCH_STEPS names when a step is done.
The loss depends on the step and the weights only: a resumed run prints the same losses.
"""

import argparse
import os
import time

import torch
import torch._dynamo  # torch.optim imports it when the first optimizer is made
import torch.distributed as dist
import torch.distributed.checkpoint as dcp

STEP_S = 0.1
SAVE_EVERY = 10


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--save-dir", required=True)
    parser.add_argument("--resume-path", default="")
    args = parser.parse_args()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    dist.init_process_group("nccl", device_id=device)
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Linear(2048, 8192), torch.nn.GELU(), torch.nn.Linear(8192, 2048)
    ).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    done = 0
    if args.resume_path:
        for parameter in model.parameters():  # AdamW has no state to load into before a step
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 0}
        dcp.load(state, checkpoint_id=args.resume_path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        done = state["step"]
    print(f"Training starts at step {done + 1}", flush=True)
    for step in range(done + 1, 1_000_000):
        began = time.monotonic()
        dice = torch.Generator().manual_seed(step * 1000 + dist.get_rank())
        x = torch.randn(512, 2048, generator=dice).to(device)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), x)
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        value = loss.item()
        time.sleep(max(0.0, began + STEP_S - time.monotonic()))
        if dist.get_rank() == 0:
            with open(os.environ["BENCH_STEPS"], "a") as steps:
                steps.write(f"{os.getpid()} {step} {time.time():.6f} {value:.9f}\n")
            print(f"step: {step}  loss: {value:.6f}", flush=True)
        if step % SAVE_EVERY == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            dcp.save(state, checkpoint_id=os.path.join(args.save_dir, f"step-{step}"))
            print(f"Finished saving step {step}", flush=True)


if __name__ == "__main__":
    main()
