"""Programs that attack a run's engine from other machines and users; standard library and zmq.

`crowd HOST PORT COUNT SECONDS`: idle connections, by anybody. `holder ENDPOINT SERVER PUBLIC SECRET
RUN JOB NODE...`: somebody with the run's keys says hello for each node, floods, and prints what
came back. Each is bounded in count and time.
"""

from __future__ import annotations

import os
import resource
import socket
import sys
import time

FLOOD = 20_000  # frames


def crowd(host: str, port: str, count: str, seconds: str) -> None:
    """Print how many connections it had."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = []
    for _ in range(int(count)):
        link = socket.socket()
        link.settimeout(2)
        try:
            link.connect((host, int(port)))
        except OSError:
            break
        held.append(link)
    print(len(held), flush=True)
    time.sleep(float(seconds))


def holder(
    endpoint: str, server: str, public: str, secret: str, run: str, job: str, *nodes: str
) -> None:
    """Print a line for each node: how many jobs (Welcome) and refusals came back."""
    import zmq

    from supervisor.channel import identity, wire

    context = zmq.Context()
    for node in nodes:
        link = context.socket(zmq.DEALER)
        link.linger = 0
        link.curve_serverkey = server.encode()
        link.curve_publickey, link.curve_secretkey = public.encode(), secret.encode()
        link.identity = identity.routing_id("attacker", identity.new_key())
        link.connect(endpoint)
        hello = wire.Hello(
            run_id=run,
            node=node,
            job_id=job,
            address="10.77.0.9",
            port=1,
            agent="attacker",
            version="0",
            epoch=0,
            problems=("a lie",),
        )
        seen = {"Welcome": 0, "Refused": 0}
        end = time.monotonic() + 5
        while time.monotonic() < end and not seen["Refused"]:
            link.send(wire.pack(hello))
            while link.poll(500):
                kind = type(wire.unpack_for_agent(link.recv())).__name__
                seen[kind] = seen.get(kind, 0) + 1
        beat = wire.pack(
            wire.Heartbeat(agent="attacker", attempt=1, ranks=1, step=10**9, loss=None)
        )
        for number in range(FLOOD):
            frame = os.urandom(64) if number % 2 else beat
            link.send(frame)
        print(repr(node), seen["Welcome"], seen["Refused"], flush=True)
        link.close()
    context.term()


if __name__ == "__main__":
    {"crowd": crowd, "holder": holder}[sys.argv[1]](*sys.argv[2:])
