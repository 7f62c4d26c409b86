"""available_cpus: the affinity mask, or the cgroup's quota where it is smaller."""

import os

import pytest

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
    [
        ("max 100000\n", 8),
        ("200000 100000\n", 2),
        ("150000 100000\n", 1.5),
        ("nonsense", 8),
        ("", 8),
    ],
)
def test_the_quota_of_a_cgroup(tmp_path, text, expected):
    file = tmp_path / "cpu.max"
    file.write_text(text)
    assert cpus._cgroup_quota(file, 8) == expected


def test_no_cgroup_is_no_quota(tmp_path):
    assert cpus._cgroup_quota(tmp_path / "cpu.max", 8) == 8


@pytest.mark.parametrize(("quota", "expected"), [(0.1, 1), (1.5, 2), (3.0, 3), (64.0, 4)])
def test_a_part_of_a_processor_counts_as_one(monkeypatch, quota, expected):
    monkeypatch.setattr(cpus.os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    monkeypatch.setattr(cpus, "_cgroup_quota", lambda *_: quota)
    assert cpus.available_cpus() == expected
