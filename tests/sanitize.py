"""Run the tests of share on an extension that is built under sanitizers.

    python tests/sanitize.py address [PYTEST ARGUMENTS]    AddressSanitizer and UndefinedBehaviorSanitizer
    python tests/sanitize.py thread [PYTEST ARGUMENTS]     ThreadSanitizer: the tests with threads

The package is copied to build/sanitize-KIND and built there, so that the one in use stays as it is; PYTHONPATH puts the
copy before it. Python is not built under a sanitizer, so the runtime is preloaded. It writes what it finds, in this
process or in any child, to a file of its own: one such file and the run has failed, whatever the tests say.

gcc is enough; its runtimes come with it on Debian (libasan, libubsan, libtsan).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CC = os.environ.get("CC", "gcc")

SANITIZERS = {"address": "address,undefined", "thread": "thread"}
#: Each line runs in one process. Under AddressSanitizer the cost of a fork grows with the memory of the process, so the
#: tests that fork most have their own process.
TESTS = {
    "address": [
        ["tests/unit/share"],
        ["tests/property/test_round_trips.py", "tests/fuzz"],
        ["tests/property/test_state_machine.py"],
    ],
    "thread": [
        [
            "tests/unit/share/test_threads.py",
            "tests/unit/share/test_async.py",
            "tests/unit/share/test_subscriber.py",
            "tests/unit/share/test_publisher.py",
            "tests/unit/share/test_frozen_dict.py",
        ]
    ],
}
#: AddressSanitizer's runtime opens /dev/null where a standard stream is closed, which is what this one is about.
NOT_RUN = "tests/unit/share/test_descriptors.py::test_a_training_in_a_program_that_starts_without_standard_streams"
#: The first is the runtime; C++ libraries throw, and the runtime looks for the function that does when it starts.
PRELOADED = {"address": ["libasan.so", "libstdc++.so.6"], "thread": ["libtsan.so"]}
COMMON_OPTIONS = "allocator_may_return_null=1:handle_abort=1"
OPTIONS = {
    # Leaks: Python and NumPy never free what they keep for the life of the process, some thousands of pieces.
    # tests/c looks for the core's own. Signals: tests write to read-only memory in children, and want the signal.
    "address": {
        "ASAN_OPTIONS": f"{COMMON_OPTIONS}:detect_leaks=0:quarantine_size_mb=32:handle_segv=0:handle_sigbus=0:"
        "strict_string_checks=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",  # or the ends of Python's own objects would not be seen
    },
    # Of memory that libraries without instrumentation touch nothing is known; their locks are seen. Children that were
    # forked start threads here.
    "thread": {
        "TSAN_OPTIONS": f"{COMMON_OPTIONS}:ignore_noninstrumented_modules=1:die_after_fork=0:handle_segv=0:"
        f"handle_sigbus=0:history_size=4:suppressions={ROOT}/tests/tsan.supp",
    },
}


def built(kind: str) -> Path:
    """The package with its extension under the sanitizer, built again; the directory that it lies in."""
    place = ROOT / "build" / f"sanitize-{kind}"
    shutil.rmtree(place, ignore_errors=True)
    source = place / "source"
    source.mkdir(parents=True)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("csrc", "src"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("*.so", "*.egg-info", "__pycache__"))
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run(
        [sys.executable, *install, "--target", place / "lib", source],
        env=os.environ | {"UNTORN_SANITIZE": SANITIZERS[kind], "CC": CC},
        check=True,
    )
    return place


def environment(kind: str, place: Path) -> dict[str, str]:
    """Return the environment of the tests' processes."""
    libraries = []
    for name in PRELOADED[kind]:
        asked = [CC, f"-print-file-name={name}"]
        found = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
        if not os.path.isabs(found):
            sys.exit(f"{CC} has no {name}; install it (Debian: it comes with gcc)")
        libraries.append(os.path.realpath(found))
    chosen = {
        name: f"{value}:log_path={place}/found" if name.endswith("SAN_OPTIONS") else value
        for name, value in OPTIONS[kind].items()
    }
    return os.environ | chosen | {"LD_PRELOAD": " ".join(libraries), "PYTHONPATH": str(place / "lib")}


def main() -> int:
    """Not 0 if a test failed, or a report was found."""
    kind, *arguments = sys.argv[1:]
    place = built(kind)
    chosen = environment(kind, place)
    look = "import untorn._core as core; print(core.__file__)"
    loaded = subprocess.run([sys.executable, "-c", look], env=chosen, check=True, capture_output=True, text=True).stdout
    if not loaded.startswith(str(place)):
        sys.exit(f"expected an extension in {place}, found {loaded}")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--deselect", NOT_RUN]
    runs = [arguments] if arguments else TESTS[kind]
    failed = [run for run in runs if subprocess.run([*command, *run], cwd=ROOT, env=chosen, check=False).returncode]
    reports = sorted(place.glob("found.*"))
    for report in reports:
        print(f"== {report}\n{report.read_text()}")
    print(f"sanitize {kind}: {len(reports)} reports, {len(failed)} of {len(runs)} runs failed")
    return bool(failed or reports)


if __name__ == "__main__":
    sys.exit(main())
