"""engine="ray" on a real Ray cluster: the serial engine's bits on all its machines, whatever happens to them."""

import sys
import time

import pytest

import ray_nodes
import ray_programs

if ray_nodes.missing():
    pytest.skip(ray_nodes.missing(), allow_module_level=True)


@pytest.fixture(scope="module")
def cluster():
    with ray_nodes.RayNodes(4, started=3) as made:
        yield made


def hosts(nodes):
    return sorted(node["host"] for node in nodes)


def test_all_machines_train_and_give_the_serial_engines_bits(cluster):
    with cluster.start(0, ray_programs.train_on_ray, None, None, None, 2) as program:
        nodes = program.get()
        assert hosts(nodes) == ["node0", "node1", "node2"]
        assert [len(node["workers"]) for node in nodes] == [2, 2, 2]
        program.put()
        program.get()
        program.put()
        assert program.get() is True


def test_a_given_number_of_nodes_and_workers(cluster):
    with cluster.start(0, ray_programs.train_on_ray, 2, 1, {"resources": {"node1": 1}}, 1) as program:
        nodes = program.get()
        assert hosts(nodes) == ["node1", "node1"]  # where else is that resource
        assert [len(node["workers"]) for node in nodes] == [1, 1]
        program.put()
        assert program.get() is True


def test_functions_of_the_main_program_go_by_value(cluster):
    command = [sys.executable, ray_nodes.TESTS / "ray_main.py"]
    assert cluster.nodes[0].run(command, env=cluster.environment, timeout_s=ray_nodes.WATCHDOG_S).split()[-1] == "same"


def test_what_there_is_no_room_for_is_named(cluster):
    messages = cluster.call(
        0,
        ray_programs.train_wrongly,
        {"ray_options": {"address": "ray://somewhere:10001"}},
        {"nodes": 7, "workers": 1},
        {"workers": 3},
        {"nodes": 1, "ray_options": {"resources": {"unicorn": 1}}},
        {"ray_options": {"scheduling_strategy": "SPREAD"}},
        {"nodes": 1, "ray_options": {"colour": "red"}},
    )
    assert len(messages) == 6
    client, many, large, unicorn, strategy, option = messages
    assert many.startswith("CapacityError: the Ray cluster has room for 6 more nodes of this training, and 7 are asked")
    assert "with 1 CPU each. It has node0 (10.77.0.1) with 2 of 2 CPU free; node1" in many
    assert "room for 0 more nodes of this training, and 1 is asked for, with 3 CPU each" in large
    assert "0 of 0 unicorn free" in unicorn
    assert strategy.startswith("ValueError: nodes: give their number")
    assert "colour" in option
    assert client.startswith("ConnectionError: ray://somewhere:10001 is for Ray Client")


def test_the_figures_are_metrics_of_ray(cluster):
    found = cluster.call(0, ray_programs.metrics_of_a_training)
    assert 0 < found["untorn_steps"] <= 3000
    assert found["untorn_examples"] == 16 * found["untorn_steps"]
    assert found["untorn_nodes"] == found["untorn_workers"] == 2
    assert min(found[name] for name in ("untorn_sent_bytes", "untorn_received_bytes", "untorn_examples_per_second")) > 0


def test_another_version_on_a_node_is_refused_by_name(cluster):
    messages = cluster.call(0, ray_programs.train_beside_another_version)
    assert any("node0" in message and "untorn" in message and "0.0.1" in message for message in messages), messages


def test_machines_come_and_go_and_the_bits_stay(cluster):
    """The nodes are asked for without a number, so a machine that joins the Ray cluster gets one."""
    with cluster.start(0, ray_programs.train_on_ray, None, 1, None, 100_000) as program:
        program.get()
        until_there(program, "node0", "node1", "node2")
        cluster.join(3)
        until_there(program, "node0", "node1", "node2", "node3")
        cluster.nodes[3].kill()  # all of the machine
        until_there(program, "node0", "node1", "node2")
        kill_in(cluster, "node2", chosen(program, "node2")["pid"])  # Ray starts another one
        until_there(program, "node0", "node1", "node2")
        program.put(["nodes", 1])
        program.get()
        until_there(program, number=1)
        program.put(["nodes", 3])
        program.get()
        until_there(program, "node0", "node1", "node2")
        program.put("stop")
        assert program.get() is True


@pytest.mark.parametrize("events", [4, pytest.param(20, marks=pytest.mark.soak)])
def test_random_events_do_not_change_the_bits(cluster, events, rng):
    """Workers and node processes are killed, machines are switched off or cut off, and the number of nodes changes."""
    with cluster.start(0, ray_programs.train_on_ray, 3, 1, None, 100_000) as program:
        program.get()
        nodes = until_there(program, number=3)
        for _ in range(events):
            host = rng.choice([node["host"] for node in nodes if node["host"] != "node0"] or ["node1"])
            there = [node for node in nodes if node["host"] == host]
            event = rng.choice(EVENTS)
            print(event, host)
            if event == "kill a worker" and there and there[0]["workers"]:
                kill_in(cluster, host, there[0]["workers"][0]["pid"])
            elif event == "kill a node process" and there:
                kill_in(cluster, host, there[0]["pid"])
            elif event == "resize":
                program.put(["nodes", 1])
                program.get()
                until_there(program, number=1)
                program.put(["nodes", 3])
                program.get()
            else:
                index = int(host.removeprefix("node"))
                if event == "cut off a machine":
                    cluster.nodes.cut(index)
                    until_there(program, without=host)
                    cluster.nodes.heal(index)  # Ray has given the machine up by then, and starts anew there
                cluster.nodes[index].kill()
                cluster.nodes[index].start()
                cluster.join(index)
            nodes = until_there(program, number=3)
        program.put("stop")
        assert program.get() is True


EVENTS = ["kill a worker", "kill a node process", "switch off a machine", "cut off a machine", "resize"]


def chosen(program, host):
    program.put()
    return next(node for node in program.get() if node["host"] == host and node["state"] == "running")


def kill_in(cluster, host, pid):
    node = cluster.nodes[int(host.removeprefix("node"))]
    node.run(["sh", "-c", f"kill -9 {pid} 2>/dev/null || true"])  # the status may still have a process that is gone


def until_there(program, *wanted, number=None, without=None):
    """Let epochs pass until nodes run on these machines, or a number of them anywhere, or none on one machine."""
    deadline = time.monotonic() + ray_nodes.WATCHDOG_S
    while True:
        program.put()
        nodes = program.get()
        assert isinstance(nodes, list), program.errors()
        running = hosts(node for node in nodes if node["state"] == "running")
        if running == sorted(wanted) or len(running) == number or (without is not None and without not in running):
            return nodes
        assert time.monotonic() < deadline, (running, program.errors())
        time.sleep(0.05)


def test_a_driver_that_is_killed_leaves_no_process(cluster):
    before = [set(node.pids()) for node in list(cluster.nodes)[:3]]
    with cluster.start(0, ray_programs.train_on_ray, None, 1, None, 100) as program:
        program.get()
        program.kill()
    for node, pids in zip(list(cluster.nodes)[:3], before, strict=True):
        for _ in range(600):
            if not has_untorn(set(node.pids()) - pids):
                break
            time.sleep(0.05)
        assert not has_untorn(set(node.pids()) - pids)


def has_untorn(pids):
    return [command for command in map(command_of, pids) if "untorn" in command or "NodeProcess" in command]


def command_of(pid):
    try:
        with open(f"/proc/{pid}/cmdline") as file:
            return file.read().replace("\0", " ")
    except OSError:
        return ""
