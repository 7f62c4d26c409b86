"""Virtual nodes: what a node sees of the others and of the machine; delay, rate, cuts and kills; all of it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from virtual_nodes import Failure, VirtualNodes

pytestmark = pytest.mark.usefixtures("virtual_nodes_work")

PORT = 5001
WATCHDOG_S = 60.0

#: sends every datagram back, and prints it
ECHO = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
    ours.bind(("", {PORT}))
    print("ready", flush=True)
    while True:
        message, sender = ours.recvfrom(100)
        ours.sendto(message, sender)
        print(message.decode(), flush=True)
"""

#: sends its arguments as datagrams
SAY = f"""
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
    for message in sys.argv[2:]:
        ours.sendto(message.encode(), (sys.argv[1], {PORT}))
"""

#: sends a number of bytes over TCP; prints the seconds until the other side has them all
SEND = f"""
import socket, sys, time
with socket.create_connection((sys.argv[1], {PORT})) as ours:
    start = time.perf_counter()
    ours.sendall(bytes(int(sys.argv[2])))
    ours.shutdown(socket.SHUT_WR)
    assert ours.recv(1) == b"!"
    print(time.perf_counter() - start)
"""
TAKE = f"""
import socket
with socket.create_server(("", {PORT})) as server:
    print("ready", flush=True)
    ours, _ = server.accept()
    with ours:
        while ours.recv(1 << 20):
            pass
        ours.sendall(b"!")
"""

#: connects, says so, and waits for the other side's end
LISTEN = f"""
import socket, sys
with socket.create_connection((sys.argv[1], {PORT})) as ours:
    print("connected", flush=True)
    try:
        ours.recv(1)
    except ConnectionResetError:
        pass
    print("closed", flush=True)
"""


def started(node, script, *arguments):
    """Start a Python script in a node; return its Popen when it has printed its first line."""
    process = node.popen([sys.executable, "-c", script, *map(str, arguments)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline().strip() in {"ready", "connected"}
    return process


def say(node, to, *messages):
    """Send datagrams from a node to another."""
    node.run([sys.executable, "-c", SAY, to.hostname, *messages])


def wait_until(happened):
    end = time.monotonic() + WATCHDOG_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.005)  # the switch has a process of its own; nothing tells of its packets


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_nodes_have_their_own_name_processes_and_memory():
    with VirtualNodes(2) as nodes:
        assert [node.run(["hostname"]).strip() for node in nodes] == ["node0", "node1"]
        nodes[0].run(["touch", "/dev/shm/mine", "/tmp/mine"])
        # a project that lies in /tmp is there, too
        assert {"home", "mine"} <= set(nodes[0].run(["ls", "/tmp"]).split())
        assert "mine" not in nodes[1].run(["ls", "/tmp"]).split()
        assert [node.run(["ls", "/dev/shm"]).split() for node in nodes] == [["mine"], []]
        assert not Path("/dev/shm/mine").exists()
        assert not Path("/tmp/mine").exists()
        # a shell, whose pid is small because the first process is 1
        assert int(nodes[1].run(["sh", "-c", "echo $$"])) < 100
        assert nodes[1].run(["sh", "-c", "echo $HOME; pwd"]).split() == ["/tmp/home", os.getcwd()]


def test_a_kept_directory_is_the_same_for_all():
    with tempfile.TemporaryDirectory() as kept, VirtualNodes(2, kept=[Path(kept)]) as nodes:
        nodes[0].run(["sh", "-c", f"echo hello > {kept}/file"])
        assert nodes[1].run(["cat", f"{kept}/file"]) == "hello\n"


def test_a_packet_takes_the_delay_each_way():
    script = f"""
import socket, sys, time
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours:
    start = time.perf_counter()
    ours.sendto(b"ping", (sys.argv[1], {PORT}))
    assert ours.recv(10) == b"ping"
    print(time.perf_counter() - start)
"""
    with VirtualNodes(2, delay_ms=20) as nodes:
        started(nodes[1], ECHO)
        assert float(nodes[0].run([sys.executable, "-c", script, "node1"])) >= 0.040
        nodes.set_delay(50)
        assert float(nodes[0].run([sys.executable, "-c", script, "node1"])) >= 0.100


def test_a_node_sends_no_faster_than_the_rate_and_every_byte_is_counted():
    nbytes = 500_000
    with VirtualNodes(2, rate_mbit=20) as nodes:
        started(nodes[1], TAKE)
        assert float(nodes[0].run([sys.executable, "-c", SEND, "node1", str(nbytes)])) >= nbytes * 8 / 20e6
        sender, receiver = nodes.counters()
        assert sender.sent_payload >= nbytes
        assert receiver.received_payload >= nbytes
        assert sender.sent_payload < sender.sent_bytes < 1.1 * nbytes
        assert receiver.sent_payload == 1


def test_two_senders_share_the_rate_of_their_receiver():
    nbytes = 200_000
    with VirtualNodes(3, rate_mbit=20) as nodes:
        script = TAKE.replace(str(PORT), "int(sys.argv[1])").replace("import socket", "import socket, sys")
        send = SEND.replace(str(PORT), "int(sys.argv[3])")
        start = time.perf_counter()
        for port in (5001, 5002):
            started(nodes[0], script, port)
        senders = [
            nodes[i].popen([sys.executable, "-c", send, "node0", str(nbytes), str(5000 + i)], stdout=subprocess.DEVNULL)
            for i in (1, 2)
        ]
        assert [each.wait(WATCHDOG_S) for each in senders] == [0, 0]
        assert time.perf_counter() - start >= 2 * nbytes * 8 / 20e6


def test_nothing_passes_a_cut_until_it_heals():
    with VirtualNodes(3) as nodes:
        echo = started(nodes[1], ECHO)
        nodes.cut(1)
        say(nodes[0], nodes[1], "lost")
        say(nodes[2], nodes[1], "lost, too")
        assert nodes.counters()[1].dropped_packets >= 2
        nodes.heal(1)
        say(nodes[0], nodes[1], "heard")
        assert echo.stdout.readline() == "heard\n"


def test_two_nodes_can_be_cut_from_each_other_only():
    with VirtualNodes(3) as nodes:
        echo = started(nodes[1], ECHO)
        nodes.cut(0, 1)
        say(nodes[0], nodes[1], "lost")
        say(nodes[2], nodes[1], "heard")
        assert echo.stdout.readline() == "heard\n"
        nodes.heal(1, 0)
        say(nodes[0], nodes[1], "heard again")
        assert echo.stdout.readline() == "heard again\n"


def test_a_cut_takes_the_packets_that_are_under_way():
    with VirtualNodes(2, delay_ms=300) as nodes:
        echo = started(nodes[1], ECHO)
        say(nodes[0], nodes[1], "lost")
        nodes.cut(1)
        before = nodes.counters()[1]
        assert before.received_packets == 0, "the machine stood still for 300 ms"
        wait_until(lambda: nodes.counters()[1].dropped_packets > 0)
        nodes.heal(1)
        say(nodes[0], nodes[1], "heard")
        assert echo.stdout.readline() == "heard\n"


def test_the_others_hear_of_a_killed_node_at_once():
    with VirtualNodes(2) as nodes:
        server = started(nodes[1], TAKE)
        client = started(nodes[0], LISTEN, "node1")
        nodes[1].kill()
        assert client.stdout.readline() == "closed\n"
        assert server.returncode == -signal.SIGKILL
        assert nodes[1].pids() == []


def test_the_others_hear_nothing_of_a_node_without_power():
    with VirtualNodes(2) as nodes:
        started(nodes[1], TAKE)
        client = started(nodes[0], LISTEN, "node1")
        before = nodes.counters()[0]
        nodes[1].kill(silently=True)
        wait_until(lambda: nodes.counters()[0].dropped_packets > before.dropped_packets)  # the end of the connection
        assert nodes.counters()[0].received_packets == before.received_packets
        assert client.poll() is None


def test_a_killed_node_starts_again_empty():
    with VirtualNodes(2) as nodes:
        nodes[1].run(["touch", "/dev/shm/old"])
        nodes[1].kill()
        nodes[1].kill()  # again, which does nothing
        with pytest.raises(Failure, match="node1 is off"):
            nodes[1].popen(["true"])
        nodes[1].start()
        assert nodes[1].run(["ls", "/dev/shm"]) == ""
        echo = started(nodes[1], ECHO)
        say(nodes[0], nodes[1], "heard")
        assert echo.stdout.readline() == "heard\n"


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_reaches_the_command(by):
    with VirtualNodes(1) as nodes:
        process = nodes[0].popen(["sh", "-c", "echo $$; exec sleep 1000"], stdout=subprocess.PIPE)
        process.stdout.readline()
        process.send_signal(by)
        assert process.wait(WATCHDOG_S) == -by
        wait_until(lambda: nodes[0].pids() == [])


def test_a_command_returns_its_output_and_its_status():
    with VirtualNodes(1) as nodes:
        assert nodes[0].run(["echo", "hello"]) == "hello\n"
        with pytest.raises(subprocess.CalledProcessError) as caught:
            nodes[0].run(["sh", "-c", "exit 3"])
        assert caught.value.returncode == 3


def test_every_process_of_a_node_ends_with_the_block_even_after_an_error():
    pids = []
    with contextlib.suppress(KeyboardInterrupt), VirtualNodes(2) as nodes:
        # one of them leaves its parent and its session
        nodes[0].run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0"])
        nodes[1].popen(["sleep", "1000"])
        wait_until(lambda: all(node.pids() for node in nodes))
        pids = [nodes.pid, *nodes[0].pids(), *nodes[1].pids()]
        raise KeyboardInterrupt
    assert len(pids) >= 3
    assert not any(map(alive, pids))


def test_nothing_outlives_a_killed_test():
    script = """
import sys, time
sys.path.insert(0, sys.argv[1])
from virtual_nodes import VirtualNodes
with VirtualNodes(2) as nodes:
    nodes[0].run(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & exit 0"])
    while not nodes[0].pids():
        pass
    print(nodes.pid, *nodes[0].pids(), flush=True)
    sys.stdin.read()
"""
    command = [sys.executable, "-c", script, str(Path(__file__).parents[1])]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        pids = list(map(int, process.stdout.readline().split()))
        assert len(pids) == 2
        process.kill()
    wait_until(lambda: not any(map(alive, pids)))


def test_the_number_of_nodes_is_checked():
    with pytest.raises(Failure, match="the number of nodes must be 1 to 64, not 65"), VirtualNodes(65):
        pass
