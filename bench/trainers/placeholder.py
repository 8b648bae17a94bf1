"""A rank that is only there: it meets all others once at rank 0, which then says so, and waits."""

import os
import socket
import time

rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
address = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
if rank == 0:
    with socket.create_server(address, backlog=world) as server:
        peers = [server.accept()[0] for _ in range(world - 1)]
    print("step: 1 loss: 1.0", flush=True)
else:
    peers = []
    while not peers:
        try:
            peers = [socket.create_connection(address)]
        except ConnectionRefusedError:
            time.sleep(0.25)
while True:
    time.sleep(3600)
