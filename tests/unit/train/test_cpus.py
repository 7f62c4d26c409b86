"""available_cpus: the affinity mask, or a cgroup's quota where it is smaller."""

import os

import pytest

from untorn.engines import cgroups
from untorn.train import cpus


def test_at_least_one_and_no_more_than_the_mask():
    assert 1 <= cpus.available_cpus() <= len(os.sched_getaffinity(0))


def test_a_narrower_mask_counts():
    mask = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(mask)})
    try:
        assert cpus.available_cpus() == 1
    finally:
        os.sched_setaffinity(0, mask)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("max 100000\n", None), ("200000 100000\n", 2), ("150000 100000\n", 1.5), ("nonsense", None), ("", None)],
)
def test_a_quota_of_version_2(tmp_path, text, expected):
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert cpus.quota_of(file) == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1\n", None), ("250000\n", 2.5), ("0", 0)])
def test_a_quota_of_version_1(tmp_path, quota, expected):
    (tmp_path / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu.cfs_quota_us").write_text(quota)
    assert cpus.quota_of(tmp_path / "cpu.cfs_quota_us") == expected


def test_no_cgroup_is_no_quota(tmp_path):
    assert cpus.quota_of(tmp_path / "cpu.max") is None


def test_the_smallest_quota_counts(tmp_path, monkeypatch):
    files = [tmp_path / "outer", tmp_path / "inner"]
    for file, text in zip(files, ["100000 100000", "50000 100000"], strict=True):
        file.write_text(text)
    monkeypatch.setattr(cpus, "group_files", lambda *_, **__: files)
    assert cpus.available_cpus() == 1


@pytest.mark.parametrize(
    ("membership", "there", "expected"),
    [
        ("0::/a/b\n", ["a/b/two", "a/two", "two"], ["a/b/two", "a/two", "two"]),
        ("0::/a/b\n", ["a/two", "a/b/one"], ["a/two"]),
        ("0::/\n", ["two"], ["two"]),
        ("3:cpu,cpuacct:/a\n0::/\n", ["cpu/a/one", "cpu/one", "cpuacct/one"], ["cpu/a/one", "cpu/one"]),
        ("3:memory:/a\n", ["cpu/a/one"], []),
    ],
)
def test_files_of_the_groups(tmp_path, membership, there, expected):
    (tmp_path / "membership").write_text(membership)
    for name in there:
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text("")
    found = cgroups.group_files("cpu", v1="one", v2="two", root=tmp_path / "root", membership=tmp_path / "membership")
    assert [str(path.relative_to(tmp_path / "root")) for path in found] == expected


def test_no_membership_is_no_files(tmp_path):
    assert not list(cgroups.group_files("cpu", v1="one", v2="two", membership=tmp_path / "none"))
