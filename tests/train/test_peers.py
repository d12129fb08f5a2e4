"""Who is gone is found out, and said to all, whichever process it is; a busy or silent process is none of them."""

import socket
import threading
import time

import pytest

from jaxtrain.train import peers
from jaxtrain.train.peers import LostProcess, Peers

SECONDS = 60  # far more than any of this takes


class Store:
    """A process's view of the texts that all of them leave for one another."""

    def __init__(self):
        self._texts, self._there = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._there:
            self._texts[key] = value
            self._there.notify_all()

    def blocking_key_value_get(self, key, timeout_in_ms):
        with self._there:
            assert self._there.wait_for(lambda: key in self._texts, timeout_in_ms / 1000)
            return self._texts[key]


class Process:
    """What stands here for a process: its connections, and what it has heard."""

    def __init__(self, index, count):
        self.heard, self._news = [], threading.Event()
        self.peers = Peers(index, count, self._hear)

    def _hear(self, loss):
        self.heard.append(loss)
        self._news.set()

    def wait(self):
        assert self._news.wait(SECONDS)
        return self.heard

    def die(self):
        """Close all connections without a word, as the system does for a process that was killed."""
        self.peers._ends = True
        for writer in list(self.peers._others.values()):
            self.peers._loop.call_soon_threadsafe(writer.transport.abort)


@pytest.fixture
def three():
    store, processes = Store(), [Process(index, 3) for index in range(3)]
    met = [threading.Thread(target=process.peers.meet, args=("127.0.0.1:1", store)) for process in processes]
    for thread in met:
        thread.start()
    for thread in met:
        thread.join(SECONDS)
        assert not thread.is_alive()
    yield processes
    for process in processes:
        process.peers.leave(0)
    for process in processes:
        process.die()


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_all_others_hear_which_process_is_gone(three, gone):
    three[gone].die()
    heard = [process.wait() for index, process in enumerate(three) if index != gone]
    assert heard == [[LostProcess(gone, None)]] * 2
    assert str(LostProcess(gone, None)) == f"process {gone} is gone"


@pytest.mark.parametrize("gone", [0, 2])
def test_a_process_that_ends_with_an_error_leaves_the_others_time_to_end_with_theirs(three, gone, monkeypatch):
    monkeypatch.setattr(peers, "LEAVE_SECONDS", 0)
    three[gone].peers.leave(2)
    others = [process for index, process in enumerate(three) if index != gone]
    assert all(process.peers._learned.wait(SECONDS) for process in others)
    assert [process.heard for process in others] == [[], []]
    for process in others:
        process.peers.verdict()  # as when something fails for want of the other
    assert [process.heard for process in others] == [[LostProcess(gone, 2)]] * 2
    assert str(LostProcess(gone, 2)) == f"process {gone} has ended with exit code 2"


def test_the_others_end_when_the_time_is_over(three, monkeypatch):
    monkeypatch.setattr(peers, "LEAVE_SECONDS", 0)
    monkeypatch.setattr(peers, "GRACE_SECONDS", 0)
    three[1].peers.leave(7)
    assert [three[0].wait(), three[2].wait()] == [[LostProcess(1, 7)]] * 2


def test_nobody_is_missed_once_all_are_at_their_end(three):
    for process in three:
        process.peers.leave(0)
    for process in three:
        process.die()
    time.sleep(0.2)
    assert [process.heard for process in three] == [[], [], []]


def test_a_failure_while_all_are_there_is_not_laid_on_others(three, monkeypatch):
    monkeypatch.setattr(peers, "VERDICT_SECONDS", 0.01)
    three[0].peers.verdict()
    assert three[0].heard == []


@pytest.mark.parametrize(
    ("kind", "order"), [(ValueError, ["verdict", "said", "left 1"]), (KeyboardInterrupt, ["said", "left 1"])]
)
def test_an_exception_that_nobody_catches_waits_for_a_verdict_and_not_for_the_others(kind, order, monkeypatch):
    done = []
    monkeypatch.setattr(peers, "verdict", lambda: done.append("verdict"))
    monkeypatch.setattr(peers, "leave", lambda code: done.append(f"left {code}"))
    peers._excepthook(lambda *error: done.append("said"))(kind, kind(), None)
    assert done == order


def test_a_stranger_is_turned_away_and_not_missed(three):
    [writer, *_] = three[0].peers._others.values()
    port = writer.get_extra_info("sockname")[1]
    with socket.create_connection(("127.0.0.1", port), timeout=SECONDS) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(100) == b""
    three[2].die()
    assert three[0].wait() == [LostProcess(2, None)]


def test_a_relay_passes_everything_on_and_never_closes_by_itself():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = Process(1, 2).peers.relay(f"127.0.0.1:{server.getsockname()[1]}")
        near = socket.create_connection(tuple(address.rsplit(":", 1)), timeout=SECONDS)
        far, _ = server.accept()
    far.settimeout(SECONDS)
    sent = bytes(range(256)) * 4096
    threading.Thread(target=near.sendall, args=(sent,)).start()
    assert _read(far, len(sent)) == sent
    far.sendall(b"answer")
    assert _read(near, 6) == b"answer"
    far.close()
    near.settimeout(0.2)
    with pytest.raises(TimeoutError):
        near.recv(1)
    near.close()


def test_a_relay_to_nobody_refuses_so_that_the_caller_tries_again():
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
    near = socket.create_connection(tuple(Process(1, 2).peers.relay(address).rsplit(":", 1)), timeout=SECONDS)
    assert near.recv(1) == b""
    near.close()


def _read(connection, size):
    read = b""
    while len(read) < size:
        read += connection.recv(size - len(read))
    return read
