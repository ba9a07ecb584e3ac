"""A ring all-reduce over sockets: every rank has a vector, and in the end every rank has the sum of all.

Of each vector one part travels once around the ring per phase, so that a rank sends no more than twice its vector, however
many ranks there are. Nothing but Python's own library is needed.
"""
import array
import os
import socket
import struct
import threading
import time

RANK = int(os.environ["SKYPILOT_NODE_RANK"])
NODES = int(os.environ["SKYPILOT_NUM_NODES"])
ADDRESS = os.environ["SKYPILOT_NODE_IPS"].split()[RANK]
MASTER = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
ELEMENTS = int(os.environ.get("ELEMENTS", "1000000"))
PATIENCE = 120  # seconds that ranks wait for each other


def read(conn, size):
    data = bytearray()
    while len(data) < size:
        part = conn.recv(min(size - len(data), 1 << 20))
        if not part:
            raise ConnectionError("a peer has gone")
        data += part
    return bytes(data)


def dial(address):
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            conn = socket.create_connection(address, timeout=PATIENCE)
            conn.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return conn
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def rendezvous(own):
    """Every rank tells the first one where it listens, and hears where all do."""
    if RANK > 0:
        with dial(MASTER) as conn:
            conn.sendall(struct.pack("!HI", own[1], RANK) + socket.inet_aton(own[0]))
            table = read(conn, 6 * NODES)
    else:
        places, waiting = {0: own}, []
        with socket.create_server(MASTER, backlog=NODES) as server:
            server.settimeout(PATIENCE)
            while len(places) < NODES:
                conn, _ = server.accept()
                port, rank = struct.unpack("!HI", read(conn, 6))
                places[rank] = (socket.inet_ntoa(read(conn, 4)), port)
                waiting.append(conn)
        table = b"".join(socket.inet_aton(places[r][0]) + struct.pack("!H", places[r][1]) for r in range(NODES))
        for conn in waiting:
            conn.sendall(table)
            conn.close()
    return [(socket.inet_ntoa(table[i:i + 4]), struct.unpack("!H", table[i + 4:i + 6])[0]) for i in range(0, len(table), 6)]


def exchange(to, frm, part, size):
    """Sends a part to the next rank while one arrives from the rank before."""
    sender = threading.Thread(target=to.sendall, args=(part.tobytes(),))
    sender.start()
    got = array.array("q")
    got.frombytes(read(frm, size * 8))
    sender.join()
    return got


def allreduce(vector, to, frm):
    bounds = [len(vector) * i // NODES for i in range(NODES + 1)]

    def part(i):
        return slice(bounds[i % NODES], bounds[i % NODES + 1])

    for step in range(NODES - 1):  # after this each rank has the sum of one part
        mine, theirs = part(RANK - step), part(RANK - step - 1)
        got = exchange(to, frm, vector[mine], theirs.stop - theirs.start)
        vector[theirs] = array.array("q", map(int.__add__, vector[theirs], got))
    for step in range(NODES - 1):  # and after this of all
        mine, theirs = part(RANK + 1 - step), part(RANK - step)
        vector[theirs] = exchange(to, frm, vector[mine], theirs.stop - theirs.start)


with socket.create_server((ADDRESS, 0)) as server:
    server.settimeout(PATIENCE)
    places = rendezvous(server.getsockname())
    to = dial(places[(RANK + 1) % NODES])
    frm, _ = server.accept()

vector = array.array("q", ((RANK + 1) * (i % 1000) for i in range(ELEMENTS)))
began = time.monotonic()
allreduce(vector, to, frm)
took = time.monotonic() - began

# What all ranks together have to come to can be told beforehand.
for i, value in enumerate(vector):
    if value != NODES * (NODES + 1) // 2 * (i % 1000):
        raise SystemExit(f"rank {RANK}: element {i} is {value}: wrong")
print(f"rank {RANK} of {NODES}: the sum of {ELEMENTS} elements is right, {sum(vector)} in all, after {took:.2f} s")
