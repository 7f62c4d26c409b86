"""Links between boards: the sum of all shards' gradients over sockets has the bits of one board; and peers that break.

A node here is a channel of weights, a board, worker threads and a link, all in this process.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import select
import socket
import struct
import threading
import time

import numpy as np
import pytest

import untorn
from helpers import descriptors
from untorn import _core
from untorn.board import Board, BoardSpec
from untorn.share import lowlevel
from untorn.train.run.parameter_layout import ParameterLayout

STEPS = 6


def weights_of(numbers):
    """Parameters in both dtypes, behind two buffers of a model: one that is averaged, and one that is not."""
    rng = np.random.default_rng(5)
    return {
        "a_mean": rng.normal(size=7).astype(np.float32),
        "b_count": np.array([3, 4]),
        "v": rng.normal(size=max(1, numbers // 5)),
        "w": rng.normal(size=numbers).astype(np.float32),
    }


def gradient_of(params, step, shard):
    rng = np.random.default_rng([step, shard])
    mean, count, v, w = params.values()
    return [
        (mean * rng.normal(size=mean.shape)).astype(np.float32),
        count + step + shard,
        0.5 * v + rng.normal(size=v.shape),
        (0.5 * w + rng.normal(size=w.shape)).astype(np.float32),
    ]


def examples_of(seed, shards):
    """Some shards are empty; in the last batch most of them."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 4, size=(2, shards)).astype(np.uint64)
    counts[1] //= 2
    counts[0, rng.integers(shards)] = 3
    counts[1, rng.integers(shards)] = 1
    return counts


class Node:
    def __init__(self, counts, *, numbers=50, exchange=True, workers=1, steps=STEPS):
        params = weights_of(numbers)
        self.counts = counts
        self.layout = ParameterLayout.of(params, None, buffers=2)
        self.publisher = untorn.publish(params)
        for _ in range(2):
            self.publisher.update(params)  # so that there are slots
        self.attachment = lowlevel.attachment_of(self.publisher)
        spec = BoardSpec(
            shards=counts.shape[1], max_workers=4, workers=workers, is_async=False, steps=steps, examples=8,
            batch_size=2, gradient_nbytes=self.layout.nbytes, first_version=self.publisher.version,
            ranges=self.layout.ranges(), clip_norm=100.0, exchange=exchange,
        )  # fmt: skip
        self.board = Board.create(spec)
        self.board.rates[:] = [[0.1 / (1 + step), 1, 1, 0, 0] for step in range(steps)]
        self.link = None
        self.threads = []

    def turn(self, board, worker, wait_s=0.05):
        """Take one task of a worker; return its kind."""
        kind, step, shard, at = board.next(self.attachment, worker, False, wait_s)
        if kind == _core.RUN_NEED_SLOT:
            raise AssertionError("no slot")
        if kind == _core.RUN_GRADIENT:
            self.write(board, step, shard, at)
            board.commit(worker)
        return kind

    def write(self, board, step, shard, at):
        buffer = board.buffer(at)
        last = step % board.steps == board.steps - 1
        buffer.examples[0] = self.counts[int(last), shard]
        rng = np.random.default_rng([step, shard, 1])
        buffer.measured[:3] = rng.normal(size=3)
        with self.publisher.subscriber() as reader, reader.snapshot() as newest:
            for view, values in zip(
                self.layout.gradient_views(board, at), gradient_of(newest.value, step, shard), strict=True
            ):
                view[:] = values

    def work(self, workers=1):
        """Start threads that work until the board is stopped."""

        def run(worker):
            board = Board.open(self.board.path)
            while self.turn(board, worker) != _core.RUN_STOP:
                pass

        self.threads = [threading.Thread(target=run, args=(worker,)) for worker in range(workers)]
        for thread in self.threads:
            thread.start()

    def values(self):
        with self.publisher.subscriber() as reader, reader.snapshot() as newest:
            return newest.version, [leaf.tobytes() for leaf in newest.value.values()]

    def result(self):
        return self.values(), self.board.log.tobytes()

    def close(self):
        self.board.stop()
        for thread in self.threads:
            thread.join()
        if self.link is not None:
            self.link.close()
            self.link = None
        self.board.close()
        self.publisher.close()


def expected(counts, **options):
    """The result of one board that computes all shards."""
    node = Node(counts, exchange=False, **options)
    try:
        node.board.set_limit(node.board.steps)
        while node.board.step < node.board.steps:
            node.turn(node.board, 0, 0.0)
        return node.result()
    finally:
        node.close()


def tcp_pair():
    with socket.create_server(("127.0.0.1", 0)) as server:
        one = socket.create_connection(server.getsockname())
        return one, server.accept()[0]


def mesh(count, pair=socket.socketpair):
    """Return sockets[k][j], node k's to node j."""
    sockets = [[None] * count for _ in range(count)]
    for k, j in itertools.combinations(range(count), 2):
        sockets[k][j], sockets[j][k] = pair()
    return sockets


def links_of(sockets, **options):
    rows = [[-1 if s is None else s.fileno() for s in row] for row in sockets]
    return [_core.Link(index, row, **options) for index, row in enumerate(rows)]


@contextlib.contextmanager
def cluster(counts, cuts, *, pair=socket.socketpair, workers=1, timeout_s=3.0, **options):
    """Nodes with links that have begun session 1, and whose steps may run."""
    nodes, sockets = [], mesh(len(cuts) - 1, pair)
    try:
        for link in links_of(sockets, timeout_s=timeout_s):
            nodes.append(Node(counts, workers=workers, **options))
            nodes[-1].link = link
        for index, node in enumerate(nodes):
            node.board.set_own(cuts[index], cuts[index + 1])
            assert node.link.begin(node.board, 1, cuts, counts) == 0
            node.board.set_limit(node.board.steps)
        yield nodes, sockets
    finally:
        for node in nodes:
            node.close()
        for one in itertools.chain(*sockets):
            if one is not None:
                one.close()


def wait_until(condition, nodes=()):
    """Wait for something that will happen; a test that hangs is ended from outside."""
    while not condition():
        for node in nodes:
            assert node.link.problem is None
        time.sleep(0.001)


def run_to_the_end(nodes, workers=1):
    for node in nodes:
        node.work(workers)
    wait_until(lambda: all(node.board.step == node.board.steps for node in nodes), nodes)


@pytest.mark.parametrize("pair", [socket.socketpair, tcp_pair])
@pytest.mark.parametrize("cuts", [(0, 2, 4), (0, 1, 4), (0, 3, 3, 5), (0, 2, 4, 6, 8), (0, 5, 6, 9, 13)])
@pytest.mark.parametrize("numbers", [50, 70_001])
def test_the_bits_are_those_of_one_board(cuts, numbers, pair):
    counts = examples_of(numbers + len(cuts), cuts[-1])
    with cluster(counts, cuts, numbers=numbers, pair=pair) as (nodes, _):
        run_to_the_end(nodes)
        wanted = expected(counts, numbers=numbers)
        for node in nodes:
            assert node.result() == wanted
            assert node.link.counters["steps"] == STEPS


def test_several_workers_share_a_nodes_shards():
    counts = examples_of(3, 9)
    with cluster(counts, (0, 4, 9), workers=2) as (nodes, _):
        run_to_the_end(nodes, workers=2)
        wanted = expected(counts)
        assert [node.result() for node in nodes] == [wanted, wanted]


def test_a_batch_without_examples():
    counts = np.zeros((2, 4), np.uint64)
    with cluster(counts, (0, 2, 4)) as (nodes, _):
        run_to_the_end(nodes)
        assert nodes[0].result() == nodes[1].result() == expected(counts)


@pytest.mark.parametrize("nodes", [2, 3, 4, 8])
def test_every_node_sends_the_least_number_of_bytes(nodes):
    shards, numbers = 2 * nodes, 100_003
    counts = np.full((2, shards), 2, np.uint64)
    cuts = tuple(range(0, shards + 1, 2))
    with cluster(counts, cuts, numbers=numbers) as (made, _):
        run_to_the_end(made)
        params = weights_of(numbers)
        payload = STEPS * (params["v"].nbytes + params["w"].nbytes)
        least = 2 * payload * (nodes - 1) / nodes
        for index, node in enumerate(made):
            counters = node.link.counters
            for name in ("sent_bytes", "received_bytes"):
                assert counters[name][index] == 0
                assert least <= sum(counters[name]) <= 1.03 * least


class TestSessions:
    def test_shards_move_to_other_nodes_and_back(self):
        counts = examples_of(8, 6)
        cuts = [(0, 2, 4, 6), (0, 0, 5, 6), (0, 3, 3, 6), (0, 2, 4, 6)]
        with cluster(counts, cuts[0], steps=8) as (nodes, _):
            for node in nodes:
                node.link.end()
                node.board.set_limit(2)
                node.work()
            for session, cut in enumerate(cuts, 2):
                limit = 2 * (session - 1)
                for index, node in enumerate(nodes):
                    node.board.set_own(cut[index], cut[index + 1])
                    assert node.link.begin(node.board, session, cut, counts) == limit - 2
                    node.board.set_limit(limit)
                wait_until(lambda limit=limit: all(node.board.step == limit for node in nodes), nodes)
                assert [node.link.end() for node in nodes] == [True] * 3
            wanted = expected(counts, steps=8)
            assert [node.result() for node in nodes] == [wanted] * 3

    def test_a_session_ends_in_the_middle_of_a_step_and_another_takes_over(self):
        """Each session ends at a random moment. Nodes that are behind then compute the rest of the step alone."""
        seed = int(os.environ.get("UNTORN_SEED", random.randrange(2**32)))
        print(f"UNTORN_SEED={seed}")
        rng = random.Random(seed)
        counts = examples_of(seed, 6)
        with cluster(counts, (0, 2, 4, 6), steps=200, numbers=3000) as (nodes, _):
            for node in nodes:
                node.work()
            for session in range(2, 30):
                time.sleep(rng.random() * 0.01)
                for node in rng.sample(nodes, 3):
                    node.link.end(rng.choice((0.0, 0.2)))
                target = max(node.board.incomplete_step for node in nodes)
                for node in nodes:
                    node.board.set_limit(target)
                    node.board.set_own(0, 6)
                wait_until(lambda target=target: all(node.board.step == target for node in nodes), nodes)
                cuts = (0, *sorted(rng.choices(range(7), k=2)), 6)
                for index, node in enumerate(nodes):
                    node.board.set_own(cuts[index], cuts[index + 1])
                    assert node.link.begin(node.board, session, cuts, counts) == target
                for node in nodes:
                    node.board.set_limit(200)
            wait_until(lambda: all(node.board.step == 200 for node in nodes), nodes)
            wanted = expected(counts, steps=200, numbers=3000)
            assert [node.result() for node in nodes] == [wanted] * 3

    def test_what_begin_refuses(self):
        counts = examples_of(1, 4)
        with cluster(counts, (0, 2, 4)) as (nodes, _):
            node = nodes[0]
            begin = node.link.begin
            with pytest.raises(RuntimeError, match="call end"):
                begin(node.board, 2, (0, 2, 4), counts)
            node.link.end()
            assert node.link.end() is True
            with pytest.raises(ValueError, match="session 1: expected a number above"):
                begin(node.board, 1, (0, 2, 4), counts)
            with pytest.raises(ValueError, match="node 0 has shards 0 to 3 by the cuts, and 0 to 2 by its board"):
                begin(node.board, 2, (0, 3, 4), counts)
            with pytest.raises(ValueError, match="cuts: expected 3 numbers for 2 nodes, found 2"):
                begin(node.board, 2, (0, 4), counts)
            for cuts in [(0, 2, 5), (1, 2, 4), (0, 2, 3)]:
                with pytest.raises(ValueError, match="the cuts do not cover the shards"):
                    begin(node.board, 2, cuts, counts)
            with pytest.raises(ValueError, match="not in order"):
                begin(node.board, 2, (0, 5, 4), counts)
            with pytest.raises(ValueError, match="counts: expected 64 bytes, two rows of 4 numbers, found 32"):
                begin(node.board, 2, (0, 2, 4), counts[0])
            with pytest.raises(ValueError, match="numbers of examples"):
                begin(node.board, 2, (0, 2, 4), counts + np.uint64(2**63))
            plain = Node(counts, exchange=False)
            with pytest.raises(ValueError, match="without exchange"):
                begin(plain.board, 2, (0, 4, 4), counts)
            plain.close()
            node.link.close()
            with pytest.raises(OSError):
                begin(node.board, 2, (0, 2, 4), counts)

    def test_a_node_alone_needs_no_peers(self):
        counts = examples_of(4, 3)
        with cluster(counts, (0, 3)) as (nodes, _):
            run_to_the_end(nodes)
            assert nodes[0].result() == expected(counts)

    def test_a_shard_with_another_number_of_examples_than_the_table_says(self):
        counts = np.full((2, 4), 2, np.uint64)
        with cluster(counts, (0, 2, 4)) as (nodes, _):
            nodes[1].counts = counts + np.uint64(1)
            nodes[1].work()
            problem = problem_of(nodes[1].link)
            assert problem == (1, "garbage", 0, "shard 2 has another number of examples than the table says")


def problem_of(link):
    """Wait for the link's problem."""
    assert select.select([link], [], [], 60)[0]
    return link.problem


MAGIC = 0x31787475
ALIVE, META, RAW, ROOT, SUM = range(1, 6)


def frame(kind, session=1, step=0, offset=0, index=0, nbytes=0, magic=MAGIC):
    return struct.pack("<IIQQQII", magic, kind, session, step, offset, index, nbytes)


META_FRAME = frame(META, nbytes=32, index=1) + bytes(32)

GARBAGE = {
    "text": (b"GET / HTTP/1.1\r\nHost: example.org\r\n\r\n" * 2, "the bytes are no frame"),
    "kind": (frame(9), "unknown kind"),
    "kind 0": (frame(0), "unknown kind"),
    "length": (frame(META, nbytes=2**32 - 1), "too long"),
    "alive": (frame(ALIVE, session=0, index=3), "sign of life with contents"),
    "meta": (frame(META, nbytes=8), "measurements of a wrong size"),
    "meta twice": (META_FRAME * 2, "measurements for the second time"),
    "metrics": (frame(META, index=17, nbytes=2 * 18 * 8), "measurements of a wrong size"),
    "shard": (frame(RAW, index=0, nbytes=44), "a shard that is not the peer's"),
    "shards": (frame(RAW, index=2**31, nbytes=44), "a shard that is not the peer's"),
    "raw place": (frame(RAW, index=2, offset=1, nbytes=46), "values at a wrong place"),
    "raw size": (frame(RAW, index=2, nbytes=45), "values at a wrong place"),
    "raw twice": ((frame(RAW, index=2, nbytes=46) + bytes(46)) * 2, "values for the second time"),
    "own root": (frame(ROOT, index=0, nbytes=128), "a root that is not the peer's"),
    "no root": (frame(ROOT, index=2, nbytes=128), "a root that is not the peer's"),
    "root place": (frame(ROOT, index=1, offset=4, nbytes=80), "a root at a wrong place"),
    "root size": (frame(ROOT, index=1, nbytes=81), "a root at a wrong place"),
    "root twice": ((frame(ROOT, index=1, nbytes=80) + bytes(80)) * 2, "a root for the second time"),
    "sum": (frame(SUM, nbytes=80), "a sum at a wrong place"),
    "step": (frame(META, step=2, nbytes=32, index=1), "a step far ahead"),
    "a step that cannot be": (frame(META, step=2**64 - 1, nbytes=32, index=1), "a step far ahead"),
}


@contextlib.contextmanager
def node_with_peers(peers=1, **options):
    """A node with its worker, whose peers are plain sockets."""
    counts = np.full((2, 2 * (peers + 1)), 2, np.uint64)
    sockets = mesh(peers + 1)
    node = Node(counts)
    cuts = range(0, 2 * (peers + 1) + 1, 2)
    try:
        node.link = links_of(sockets, **options)[0]
        node.board.set_own(0, 2)
        node.link.begin(node.board, 1, cuts, counts)
        node.board.set_limit(STEPS)
        yield node, [row[0] for row in sockets[1:]]
    finally:
        node.close()
        for one in itertools.chain(*sockets):
            if one is not None:
                one.close()


class TestBrokenPeers:
    @pytest.mark.parametrize("name", GARBAGE)
    @pytest.mark.parametrize("cut", [0, 1, 39, 41, 1000])
    def test_garbage(self, name, cut):
        data, text = GARBAGE[name]
        with node_with_peers() as (node, (peer,)):
            peer.sendall(data[:cut])
            with contextlib.suppress(BrokenPipeError):
                peer.sendall(data[cut:])
            who, kind, errno, said = problem_of(node.link)
            assert (who, kind, errno) == (1, "garbage", 0)
            assert text in said
            assert node.link.problem == (who, kind, errno, said)

    @pytest.mark.parametrize("sent", [0, 1, 39, 40, 50])
    def test_a_peer_that_closes(self, sent):
        with node_with_peers() as (node, (peer,)):
            peer.sendall(META_FRAME[:sent])
            peer.close()
            assert problem_of(node.link)[:3] == (1, "closed", 0)

    @pytest.mark.parametrize("sent", [0, 1, 39, 40, 50])
    def test_a_peer_that_falls_silent(self, sent):
        with node_with_peers(timeout_s=0.3) as (node, (peer,)):
            peer.sendall(META_FRAME[:sent])
            who, kind, errno, text = problem_of(node.link)
            assert (who, kind, errno) == (1, "silent", 0)
            assert text.startswith("nothing came for 0.")
            assert peer.recv(10)  # the link itself was not
            with pytest.raises(OSError), node.board:
                node.link.end()
                node.link.begin(node.board, 2, (0, 2, 4), node.counts)

    def test_signs_of_life_are_enough(self):
        with node_with_peers(timeout_s=0.3) as (node, (peer,)):
            for _ in range(20):
                peer.sendall(frame(ALIVE, session=0))
                assert not select.select([node.link], [], [], 0.05)[0]
            assert node.link.problem is None
            assert peer.recv(10_000).startswith(frame(ALIVE, session=0))

    def test_two_idle_links_keep_each_other_alive(self):
        sockets = mesh(2)
        links = links_of(sockets, timeout_s=0.7)
        assert not select.select(links, [], [], 2)[0]
        for link in links:
            link.close()
        for one in itertools.chain(*sockets):
            if one is not None:
                one.close()

    def test_a_reset_connection(self):
        sockets = mesh(2, tcp_pair)
        link = links_of(sockets)[0]
        peer = sockets[1][0]
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sockets[0][1].close()  # the link has its own
        peer.close()
        # the other end of links_of() is another description of the same socket, which closed with its link
        assert problem_of(link)[:2] == (1, "closed")
        link.close()

    def test_the_other_peers_go_on(self):
        """A step needs every peer. Sums travel on between those that are left until then, and in the next session."""
        with node_with_peers(2) as (node, (broken, other)):
            node.work()
            broken.sendall(b"x" * 100)
            assert problem_of(node.link)[:2] == (1, "garbage")
            other.sendall(frame(META, nbytes=32, index=1) + bytes(32))
            received = b""
            while frame(META, nbytes=64, index=2)[:8] + struct.pack("<QQQ", 1, 0, 0) not in received:
                received += other.recv(100_000)
            assert frame(ROOT, nbytes=200)[:8] in received
            assert node.board.step == 0
            assert node.link.problem[0] == 1


class TestOtherTimes:
    def test_frames_of_an_old_session_are_forgotten_and_those_of_a_later_one_wait(self):
        counts = examples_of(6, 4)
        sockets = mesh(2)
        nodes = [Node(counts), Node(counts)]
        links = links_of(sockets)
        for index, (node, link) in enumerate(zip(nodes, links, strict=True)):
            node.link = link
            node.board.set_own(2 * index, 2 * index + 2)
        nodes[0].work()
        try:
            nodes[0].link.begin(nodes[0].board, 3, (0, 2, 4), counts)
            nodes[0].board.set_limit(STEPS)
            wait_until(lambda: links[1].counters["received_bytes"][0] > 300, nodes)  # the other has no session
            links[0].end()
            links[0].begin(nodes[0].board, 5, (0, 2, 4), counts)
            links[1].begin(nodes[1].board, 4, (0, 2, 4), counts)
            nodes[1].board.set_limit(STEPS)
            nodes[1].work()
            # session 4 of node 1 hears nothing: that of node 0 is later, and that before was older
            wait_until(lambda: links[0].counters["received_bytes"][1] > 300, nodes)
            assert nodes[1].board.step == 0
            assert links[1].end() is True
            links[1].begin(nodes[1].board, 5, (0, 2, 4), counts)
            wait_until(lambda: all(node.board.step == STEPS for node in nodes), nodes)
            assert nodes[0].result() == nodes[1].result() == expected(counts)
        finally:
            for node in nodes:
                node.close()
            for one in itertools.chain(*sockets):
                if one is not None:
                    one.close()

    def test_an_interrupted_frame_is_completed_in_the_next_session(self):
        counts = np.full((2, 4), 2, np.uint64)
        sockets = mesh(2)
        node = Node(counts, numbers=1_000_000)  # more than a socket takes
        node.link = links_of(sockets)[0]
        peer = sockets[1][0]
        try:
            node.board.set_own(0, 2)
            node.link.begin(node.board, 1, (0, 2, 4), counts)
            node.board.set_limit(STEPS)
            node.work()
            wait_until(lambda: node.link.counters["sent_bytes"][1] > 100_000)
            assert node.link.end(0.05) is False
            sent = node.link.counters["sent_bytes"][1]
            node.link.begin(node.board, 2, (0, 2, 4), counts)
            received, end = bytearray(), 0
            sessions = []
            while True:
                while len(received) < end + 40:
                    received += peer.recv(1 << 20)
                magic, kind, session, *_, nbytes = struct.unpack_from("<IIQQQII", received, end)
                assert magic == MAGIC
                assert kind in (ALIVE, META, RAW, ROOT)
                sessions.append(session)
                end += 40 + nbytes
                if session == 2:
                    break
            assert sessions.count(2) == 1
            assert 1 in sessions
            assert 40 <= sent < end
            assert node.link.problem is None
        finally:
            node.close()
            for one in itertools.chain(*sockets):
                if one is not None:
                    one.close()


class TestLifetimes:
    def test_nothing_is_left(self):
        before, threads = descriptors(), os.listdir("/proc/self/task")
        counts = examples_of(2, 4)
        with cluster(counts, (0, 2, 4)) as (nodes, _):
            run_to_the_end(nodes)
        del nodes, _
        assert descriptors() == before
        assert os.listdir("/proc/self/task") == threads

    def test_a_dropped_link_ends(self):
        sockets = mesh(2)
        before, threads = descriptors(), os.listdir("/proc/self/task")
        links = links_of(sockets)
        counts = np.full((2, 4), 2, np.uint64)
        node = Node(counts)
        node.board.set_own(0, 2)
        links[0].begin(node.board, 1, (0, 2, 4), counts)
        memory = memoryview(node.board)
        node.close()
        del node, links, memory
        assert descriptors() == before
        assert os.listdir("/proc/self/task") == threads
        for one in itertools.chain(*sockets):
            if one is not None:
                one.close()

    def test_a_forked_child_cannot_use_it(self):
        with node_with_peers() as (node, (peer,)):
            reader, writer = os.pipe()
            pid = os.fork()
            if pid == 0:
                refused = 0
                for use in (node.link.end, node.link.fileno, lambda: node.link.problem):
                    try:
                        use()
                    except RuntimeError as error:
                        refused += "inherited by fork" in str(error)
                node.link.close()
                node.link = None
                os.write(writer, bytes([refused]))
                os._exit(0)
            os.waitpid(pid, 0)
            assert os.read(reader, 1) == b"\3"
            os.close(reader)
            os.close(writer)
            peer.sendall(META_FRAME)
            node.work()
            wait_until(lambda: node.link.counters["sent_bytes"][1] > 300)
            assert node.link.problem is None

    def test_sockets_that_are_none(self):
        before = descriptors()
        with pytest.raises(OSError):
            _core.Link(0, [-1, 999_999])
        with pytest.raises(ValueError, match="node 2 of 2"):
            _core.Link(2, [-1, 1])
        with pytest.raises(TypeError):
            _core.Link(0, [-1, "x"])
        assert descriptors() == before
