"""A trainer of the standard library: every step all ranks meet in a TCP barrier at rank 0.

So a dead peer breaks the others' connection and a silent one leaves them waiting, as a collective
does. It reads torchrun's contract (RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT). Rank 0 "saves" by
copying a real checkpoint to SAVE_DIR/step-N, its .metadata last. The loss depends on the step only.
"""

import argparse
import os
import shutil
import signal
import socket
import sys
import time
from pathlib import Path

RANK, WORLD = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
ADDRESS = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=1_000_000)
    parser.add_argument("--step-s", type=float, default=0.05)
    parser.add_argument("--save-dir", type=Path)
    parser.add_argument("--resume-path", default="")
    parser.add_argument("--resume-step", type=int, default=0)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--checkpoint", type=Path, help="what a checkpoint is a copy of")
    bad = parser.add_argument_group("how it can misbehave")
    bad.add_argument("--ignore-term", action="store_true")
    bad.add_argument("--daemonise", action="store_true", help="leave a child of its own behind")
    bad.add_argument("--daemon-port", type=int, help="on SIGUSR1 leave a nameless daemon there")
    bad.add_argument("--cling", action="store_true", help="never end when a peer is gone")
    bad.add_argument("--skew", type=int, default=0, help="come back so many steps later")
    bad.add_argument("--save-s", type=float, default=0, help="the first save takes so long")
    bad.add_argument("--quiet", action="store_true", help="only rank 0 tells its steps")
    bad.add_argument("--exit-code", type=int, help="exit at once")
    return parser.parse_args()


def receive(peer: socket.socket) -> None:
    """One byte, for as long as it takes; a peer that is gone is an error."""
    if not peer.recv(1):
        raise ConnectionError("a peer is gone")


def gather() -> list[socket.socket]:
    """Rank 0: a connection to every other rank; the others: one to rank 0."""
    if RANK == 0:
        with socket.create_server(ADDRESS, backlog=WORLD) as server:
            return [server.accept()[0] for _ in range(WORLD - 1)]
    while True:
        try:
            return [socket.create_connection(ADDRESS)]
        except ConnectionRefusedError:
            time.sleep(0.02)


def barrier(peers: list[socket.socket]) -> None:
    if RANK == 0:
        for peer in peers:
            receive(peer)
        for peer in peers:
            peer.sendall(b".")
    else:
        peers[0].sendall(b".")
        receive(peers[0])


def save(args: argparse.Namespace, step: int) -> None:
    there = args.save_dir / f"step-{step}"
    there.mkdir(parents=True)
    if step == args.save_every:
        with (there / "slow.distcp").open("wb", buffering=0) as shard:
            for _ in range(round(args.save_s)):
                shard.write(b" ")
                time.sleep(1)
    for shard in args.checkpoint.glob("*.distcp"):
        shutil.copyfile(shard, there / shard.name)
    shutil.copyfile(args.checkpoint / ".metadata", there / ".metadata.tmp")
    (there / ".metadata.tmp").rename(there / ".metadata")


def daemonise() -> None:
    """Fork twice; the grandchild leads a session of its own, outlives its parent and SIGTERM."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            while True:
                time.sleep(60)
        os._exit(0)
    os.wait()


def leave_daemon(port: int) -> None:
    """As `daemonise`, with nothing by which it could be known: no environment, nothing open."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.closerange(0, 1000)
            code = (
                "import signal, socket, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                "there = socket.create_server(('', int(sys.argv[1]))); time.sleep(3600)"
            )
            os.execve(sys.executable, [sys.executable, "-c", code, str(port)], {})
        os._exit(0)
    os.wait()


def train(args: argparse.Namespace, peers: list[socket.socket]) -> None:
    first = args.resume_step + 1
    if args.resume_step:
        first += args.skew
    print(f"Training starts at step {first}", flush=True)
    for step in range(first, args.steps + 1):
        time.sleep(args.step_s)
        barrier(peers)
        if RANK == 0 or not args.quiet:
            print(f"step: {step} loss: {1 / step:.6f}", flush=True)
        if args.save_dir and RANK == 0 and step % args.save_every == 0:
            save(args, step)


def main() -> None:
    args = arguments()
    if args.exit_code is not None:
        print(f"cannot train: exit code {args.exit_code} was asked for", flush=True)
        sys.exit(args.exit_code)
    if args.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if args.daemonise:
        daemonise()
    if args.daemon_port:
        with socket.create_server(("", args.daemon_port + RANK)):
            pass  # an older one's daemon would have it
        signal.signal(signal.SIGUSR1, lambda *_: leave_daemon(args.daemon_port + RANK))
    peers = gather()
    try:
        train(args, peers)
    except OSError as error:
        print(f"broken: {error}", flush=True)
        while args.cling:
            time.sleep(60)
        sys.exit(1)
    print("Training completed", flush=True)


if __name__ == "__main__":
    main()
