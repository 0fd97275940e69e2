"""Several ranks as forks of this process: they need no second import of torch."""

import os
import pickle
import signal
import socket
import sys
from contextlib import closing

import torch


def free_port():
    with closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def in_ranks(num, work, folder, meanwhile=lambda children: None):
    """What ``work(rank)`` gives in each of so many processes that know of each other as torchrun's do.

    An exception is given in place of a value; of a process that was killed, the signal. ``meanwhile`` is called with
    the processes' numbers.
    """
    port, children = free_port(), []
    for rank in range(num):
        child = os.fork()
        if child == 0:
            _run(rank, num, work, folder / f"rank{rank}.pkl", port)
        children.append(child)
    meanwhile(children)
    found = []
    for rank, child in enumerate(children):
        status = os.waitpid(child, 0)[1]
        killed = os.WIFSIGNALED(status)
        found.append(signal.Signals(os.WTERMSIG(status)) if killed else _read(folder / f"rank{rank}.pkl"))
    return found


def _run(rank, num, work, path, port):
    try:
        torch.set_num_threads(1)
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(num), "LOCAL_RANK": str(rank)}
        try:
            found = work(rank)
        except Exception as error:
            found = error
        path.write_bytes(pickle.dumps(found))
        sys.stderr.flush()
    finally:
        os._exit(0)


def _read(path):
    found = pickle.loads(path.read_bytes())
    path.unlink()
    return found
