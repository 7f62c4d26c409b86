"""available_cpus: the affinity mask, or the quota of a cgroup if it is smaller, from the files of the kernel."""

import os

import pytest

from untorn.engines import cgroups
from untorn.train.run import cpus

MEMBERSHIP, ROOT = "/proc/self/cgroup", "/sys/fs/cgroup"


def quotas(texts):
    return list(cpus.cpu_quotas(texts.get))


def test_at_least_one_and_no_more_than_the_mask():
    assert 1 <= cpus.available_cpus() <= len(os.sched_getaffinity(0))


def test_a_narrower_mask_counts():
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mask)})
    try:
        assert cpus.available_cpus() == 1
    finally:
        os.sched_setaffinity(0, mask)


def test_the_smallest_quota_counts(monkeypatch):
    monkeypatch.setattr(cpus, "cpu_quotas", lambda: iter([3.0, 0.5]))
    assert cpus.available_cpus() == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", []), ("200000 100000\n", [2]), ("150000 100000\n", [1.5]), ("nonsense", []), ("", []),
     ("200000 0\n", [])],
)  # fmt: skip
def test_a_quota_of_version_2(text, expected):
    assert quotas({MEMBERSHIP: "0::/\n", f"{ROOT}/cpu.max": text}) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", []), ("250000\n", [2.5]), ("0", [])])
def test_a_quota_of_version_1(quota, expected):
    period = {f"{ROOT}/cpu/cpu.cfs_period_us": "100000\n"}
    assert quotas({MEMBERSHIP: "3:cpu:/\n", f"{ROOT}/cpu/cpu.cfs_quota_us": quota} | period) == expected
    assert quotas({MEMBERSHIP: "3:cpu:/\n", f"{ROOT}/cpu/cpu.cfs_quota_us": quota}) == []


@pytest.mark.parametrize(
    ("membership", "there", "expected"),
    [
        ("0::/a/b\n", ["a/b/two", "a/two", "two"], ["a/b/two", "a/two", "two"]),
        ("0::/a/b\n", ["a/two", "a/b/one"], ["a/two"]),
        ("0::/../a\n", ["a/two", "../a/two"], ["a/two"]),
        ("0::/\n", ["two"], ["two"]),
        ("3:cpu,cpuacct:/a\n0::/\n", ["cpu/a/one", "cpu/one", "cpuacct/one"], ["cpu/a/one", "cpu/one"]),
        ("3:cpu,cpuacct:/a\n", ["cpu,cpuacct/a/one", "cpu/a/one"], ["cpu,cpuacct/a/one"]),
        ("3:memory:/a\n", ["cpu/a/one"], []),
    ],
)
def test_files_of_the_groups(membership, there, expected):
    texts = {f"{ROOT}/{name}": name for name in there} | {MEMBERSHIP: membership}
    found = list(cgroups.group_files("cpu", v1="one", v2="two", read=texts.get))
    assert found == [(f"{ROOT}/{name}", name) for name in expected]


def test_no_membership_is_no_files():
    assert not list(cgroups.group_files("cpu", v1="one", v2="two", read={}.get))


def test_a_file_that_cannot_be_read_has_no_text(tmp_path):
    (tmp_path / "there").write_text("3\n")
    assert cgroups.read_text(str(tmp_path / "there")) == "3\n"
    assert cgroups.read_text(str(tmp_path / "none")) is None
