"""Run the fuzz targets in Python, each for a time.

    python tests/fuzz/fuzzing.py [--seconds 60] [TARGET ...]
    python tests/fuzz/fuzzing.py --changes 100 --seed 7 [TARGET ...]      the corpus, and N changes of each input

With atheris (``pip install atheris``) what an input reaches decides what is tried next, and what was learned stays in
build/corpus. Without it the corpus is changed blindly. An input that broke the contract is left in build/found; give
it a line in corpus.py.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
BUILD = HERE / "build"
#: that an input may ask for, beside what the libraries have taken
_MEMORY_NBYTES = 4 << 30
NAMES = ("schema", "frozendict", "changes", "checkpoint", "socket", "files", "queues")


def with_atheris(name: str, seconds: int) -> None:
    """Fuzz one target in this process, which ends with that."""
    import atheris

    with atheris.instrument_imports(include=["untorn"]):
        import targets
    learned = BUILD / "corpus" / name
    learned.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        "-rss_limit_mb=6000",  # the libraries of adapters take more than one
        "-malloc_limit_mb=1024",
        "-timeout=60",  # an adapter's library is imported by the first input that has such a value
        "-max_len=8192",
        "-print_final_stats=1",
        "-verbosity=0",
        f"-artifact_prefix={BUILD}/found/{name}-",
    ]
    atheris.Setup([sys.argv[0], *options, str(learned), str(HERE / "corpus" / name)], targets.TARGETS[name])
    atheris.Fuzz()


def blindly(name: str, seconds: int) -> None:
    """The same without atheris. Raises what an input makes the target raise, and leaves that input."""
    import targets

    seed = random.SystemRandom().randrange(2**32)
    rng, deadline, inputs = random.Random(seed), time.monotonic() + seconds, 0
    corpus = [path.read_bytes() for path in sorted((HERE / "corpus" / name).iterdir())]
    try:
        while time.monotonic() < deadline:
            data = targets.changed(rng.choice(corpus), rng)
            (BUILD / "found" / f"{name}-running").write_bytes(data)  # should it end this process
            targets.TARGETS[name](data)
            inputs += 1
    finally:
        targets.forget()
    (BUILD / "found" / f"{name}-running").unlink(missing_ok=True)
    print(f"{name}: {inputs:,} inputs without atheris, seed {seed}")


def replayed(name: str, changes: int, seed: int) -> None:
    """Every input of the corpus, as it is and with changes that the seed fixes. The last line that is printed says at
    which one it ended."""
    import targets

    run, inputs = targets.TARGETS[name], 0
    run(b"")  # memory of imports and caches does not count for an input
    with bounded_memory():
        for path in sorted((HERE / "corpus" / name).iterdir()):
            data = path.read_bytes()
            for change in range(changes + 1):
                rng = random.Random(f"{seed} {path.name} {change}")
                print(f"{name}, {path.name}, change {change}", flush=True)
                run(targets.changed(data, rng) if change else data)
                inputs += 1
    targets.forget()
    print(f"{name}: {inputs:,} inputs, seed {seed}")


@contextlib.contextmanager
def bounded_memory() -> Iterator[None]:
    """An input that asks for more is a MemoryError. Not under AddressSanitizer, which takes all addresses there are."""
    if "asan" not in os.environ.get("LD_PRELOAD", ""):
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
        resource.setrlimit(resource.RLIMIT_AS, (taken + _MEMORY_NBYTES, resource.RLIM_INFINITY))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def main() -> int:
    """Each target in its own process, since some libraries have threads, and some inputs may end it; how many
    failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--changes", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--here", action="store_true", help="one target, in this process")
    parser.add_argument("targets", nargs="*", default=NAMES)
    arguments = parser.parse_args()
    found = BUILD / "found"
    found.mkdir(parents=True, exist_ok=True)
    if arguments.here and arguments.changes is not None:
        replayed(arguments.targets[0], arguments.changes, arguments.seed)
        return 0
    if arguments.here:
        run = with_atheris if importlib.util.find_spec("atheris") else blindly
        run(arguments.targets[0], arguments.seconds)
        return 0
    failed = []
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="untorn-fuzz-") as place:
        for name in arguments.targets:
            print(f"== {name}", flush=True)
            how = ["--seconds", str(arguments.seconds), "--seed", str(arguments.seed)]
            if arguments.changes is not None:
                how += ["--changes", str(arguments.changes)]
            command = [sys.executable, "-X", "faulthandler", __file__, "--here", *how, name]
            path = os.pathsep.join([str(HERE), os.environ.get("PYTHONPATH", "")])
            environment = os.environ | {"PYTHONPATH": path, "UNTORN_FUZZ_PLACE": place}
            with contextlib.suppress(KeyboardInterrupt):
                if subprocess.run(command, env=environment, check=False).returncode != 0:
                    failed.append(name)
    if failed:
        print(f"broken: {', '.join(failed)}; the inputs are in {found}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
