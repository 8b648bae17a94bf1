"""A trainer that knows nothing of superv: torch, one all-reduce a step, DCP checkpoints.

    train.py --save-dir DIR [--resume-path DIR/step-N --resume-step N] [--steps 50] [--every 5]
             [--step-s 0.1]

Its checkpoints' keys: model, optimizer, step (`superv checkpoints verify --required` takes them).
The loss depends on the step and the weights only, so a resumed run prints the same losses.
"""

import argparse
import os
import time

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--save-dir", required=True)
    parser.add_argument("--resume-path", default="", help="a step-N directory, or empty: step 0")
    parser.add_argument("--resume-step", type=int, default=0)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--every", type=int, default=5, help="steps between checkpoints")
    parser.add_argument("--step-s", type=float, default=0.1, help="how long a step takes")
    return parser.parse_args()


def batch(step: int, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The data of one step and rank: always the same."""
    dice = torch.Generator().manual_seed(step * 1000 + rank)
    x = torch.randn(32, 16, generator=dice)
    return x, x.sum(dim=1, keepdim=True)


def main() -> None:
    args = arguments()
    dist.init_process_group("gloo")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    done = 0
    if args.resume_path:
        for parameter in model.parameters():  # AdamW has no state to load into before a step
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 0}
        dcp.load(state, checkpoint_id=args.resume_path)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if (done := state["step"]) != args.resume_step:
            raise SystemExit(f"{args.resume_path} holds step {done}, not {args.resume_step}")
    print(f"Training starts at step {done + 1}", flush=True)
    for step in range(done + 1, args.steps + 1):
        began = time.monotonic()
        x, y = batch(step, dist.get_rank())
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(model(x), y)
        loss.backward()
        flat = torch.cat([loss.detach().view(1), *[p.grad.view(-1) for p in model.parameters()]])
        dist.all_reduce(flat)
        parts = (flat / dist.get_world_size()).split([1, *[p.numel() for p in model.parameters()]])
        for parameter, part in zip(model.parameters(), parts[1:], strict=True):
            parameter.grad.copy_(part.view_as(parameter))
        optimizer.step()
        time.sleep(max(0.0, began + args.step_s - time.monotonic()))
        print(f"step: {step}  loss: {parts[0].item():.6f}", flush=True)
        if step % args.every == 0 or step == args.steps:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
            dcp.save(state, checkpoint_id=os.path.join(args.save_dir, f"step-{step}"))
            print(f"Finished saving step {step}", flush=True)
    dist.destroy_process_group()
    print("Training completed", flush=True)


if __name__ == "__main__":
    main()
