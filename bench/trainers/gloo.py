"""examples/torch_minimal without checkpoints, for any launcher: torch, gloo, one all-reduce a step.

Rank 0 appends a line `PID STEP TIME` to the file that BENCH_STEPS names when a step is done: so the
steps of all launchers are timed in the same way.
"""

import argparse
import os
import time

import torch
import torch._dynamo  # torch.optim imports it when the first optimizer is made: 1.3 s
import torch.distributed as dist


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--step-s", type=float, default=0.1)
    step_s = parser.parse_args().step_s
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(1, 1_000_000):
        began = time.monotonic()
        dice = torch.Generator().manual_seed(step * 1000 + dist.get_rank())
        x = torch.randn(32, 16, generator=dice)
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), x.sum(dim=1, keepdim=True))
        loss.backward()
        for parameter in model.parameters():
            dist.all_reduce(parameter.grad)
        optimizer.step()
        time.sleep(max(0.0, began + step_s - time.monotonic()))
        if dist.get_rank() == 0:
            with open(os.environ["BENCH_STEPS"], "a") as steps:
                steps.write(f"{os.getpid()} {step} {time.time():.6f}\n")
            print(f"step: {step} loss: {loss.item():.6f}", flush=True)


if __name__ == "__main__":
    main()
