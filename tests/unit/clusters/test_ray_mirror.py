"""untorn.ray.mirror on a real Ray cluster, whose nodes have a network and a /dev/shm each."""

import subprocess
import sys

import pytest

import ray_nodes
import ray_programs

if ray_nodes.missing():
    pytest.skip(ray_nodes.missing(), allow_module_level=True)


@pytest.fixture(scope="module")
def cluster():
    with ray_nodes.RayNodes(4, started=3) as made:
        yield made


def files_of(cluster, index):
    return cluster.call(index, ray_programs.channel_files)


def test_versions_are_on_all_nodes_with_their_numbers_and_its_end(cluster, name):
    with (
        cluster.start(0, ray_programs.mirror_a_channel, name) as source,
        cluster.start(1, ray_programs.read_a_channel, name) as one,
        cluster.start(2, ray_programs.read_a_channel, name) as two,
    ):
        assert source.get() == [1, 1]
        for number in range(2, 8):
            source.put(["update", number])
            assert source.get() == number
            for reader in (one, two):
                while reader.get() < number:
                    pass
        source.put(["wait", 7])
        assert source.get() == [7, 7]
        source.put(["close"])
        assert source.get() == "closed"
        for reader in (one, two):
            assert "its publisher closed it" in reader.get()
        assert f"{name}.control" in files_of(cluster, 1)
        source.put(None)
        assert source.get() == "ended"
        assert f"{name}.control" not in files_of(cluster, 1) + files_of(cluster, 2)


def test_a_source_that_is_killed_is_a_dead_publisher_on_all_nodes(cluster, name):
    with (
        cluster.start(0, ray_programs.mirror_a_channel, name) as source,
        cluster.start(1, ray_programs.read_a_channel, name) as one,
    ):
        source.get()
        assert one.get() == 1
        source.kill()
        assert "its publisher is dead" in one.get()
    # the next one continues the channels that are left
    with (
        cluster.start(0, ray_programs.mirror_a_channel, name) as source,
        cluster.start(1, ray_programs.read_a_channel, name) as one,
    ):
        source.get()
        assert one.get() in (1, 2)
        source.put(["wait", 2])
        assert source.get() == [2, 2]
        source.put(None)
        assert source.get() == "ended"


def test_a_node_that_joins_later_gets_it_and_one_that_dies_disturbs_nobody(cluster, name):
    with (
        cluster.start(0, ray_programs.mirror_a_channel, name, 500_000) as source,
        cluster.start(1, ray_programs.read_a_channel, name) as one,
    ):
        source.get()
        assert one.get() == 1
        cluster.join(3)
        with cluster.start(3, ray_programs.read_a_channel, name) as three:
            assert three.get() == 1
            source.put(["nodes"])
            assert source.get() == 3
            cluster.nodes[3].kill()
        for number in range(2, 6):
            source.put(["update", number])
            assert source.get() == number
            while one.get() < number:
                pass
        source.put(["wait", 5])  # of the nodes that are left
        assert source.get() == [5, 5]
        cluster.nodes[3].start()
        cluster.join(3)
        with cluster.start(3, ray_programs.read_a_channel, name) as three:
            assert three.get() == 5
        source.put(None)
        assert source.get() == "ended"
    cluster.nodes[3].kill()


def test_a_node_that_is_cut_off_catches_up(cluster, name):
    with (
        cluster.start(0, ray_programs.mirror_a_channel, name) as source,
        cluster.start(2, ray_programs.read_a_channel, name) as two,
    ):
        source.get()
        assert two.get() == 1
        cluster.nodes.cut(2)
        source.put(["update", 2])
        source.get()
        source.put(["update", 3])
        source.get()
        cluster.nodes.heal(2)
        while two.get() < 3:
            pass
        source.put(None)
        assert source.get() == "ended"


def test_wrong_arguments_are_named(cluster):
    anonymous, nobody, path = cluster.call(0, ray_programs.mirror_errors)
    assert anonymous == "ValueError: name: an anonymous channel needs a name on the other nodes"
    assert nobody.startswith("ChannelNotFoundError: ")
    assert path.startswith("ValueError: name: channel '/tmp/there/name' has a directory of its own")


def test_an_address_without_a_cluster_is_named(cluster):
    nobody = f"{cluster.nodes[2].address}:6379"
    message = cluster.call(0, ray_programs.mirror_without_a_cluster, RAY_ADDRESS=nobody)
    assert f"there is no Ray cluster at {nobody} (Connection refused)" in message
    assert "ray start --head" in message


def test_without_ray_the_extra_is_named():
    code = "import sys; sys.modules['ray'] = None; import untorn; import untorn.ray"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ImportError: untorn.ray needs Ray, which is not installed here: pip install 'untorn[ray]'" in done.stderr
