"""What pyproject.toml cannot describe: the C extension, and README with links that also work outside of the repository.

`UNTORN_SANITIZE=address,undefined pip install -e .` builds it under sanitizers.
"""

import os
import re
import sysconfig
import tomllib
from glob import glob
from pathlib import Path

from setuptools import Extension, setup

repository = tomllib.loads(Path("pyproject.toml").read_text())["project"]["urls"]["Source"]


def absolute(link: re.Match[str]) -> str:
    """Return a link within the repository as a link to it; pictures need the file itself."""
    kind = "raw" if link[1] else "blob"
    return f"{link[1]}{link[2]}({repository}/{kind}/main/{link[3]})"


readme = re.sub(r"(!?)(\[[^\]]*\])\((?![a-z]+:|#)([^)\s]+)\)", absolute, Path("README.md").read_text())

sanitizers = os.environ.get("UNTORN_SANITIZE")
# The Limited API makes one build serve every CPython from 3.11 on. Free-threaded builds do not have it.
limited = not sysconfig.get_config_var("Py_GIL_DISABLED")

flags = ["-std=c11", "-O3", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
# Without a declaration the compiler guesses argument types; newer compilers refuse this by default.
flags += ["-Werror=implicit-function-declaration"]
# One rounding per operation, on every processor: vector width must not change a single bit of the weights.
flags += ["-ffp-contract=off", "-fno-math-errno"]
link = ["-pthread"]
if sanitizers:
    flags += [f"-fsanitize={sanitizers}", "-g", "-O1", "-DUNTORN_NO_CLONES"]
    link += [f"-fsanitize={sanitizers}"]

setup(
    long_description=readme,
    long_description_content_type="text/markdown",
    ext_modules=[
        Extension(
            "untorn._core",
            sources=sorted(glob("csrc/*.c")),
            depends=sorted(glob("csrc/*.h")),
            include_dirs=["csrc"],
            define_macros=[("_GNU_SOURCE", None)] + ([("Py_LIMITED_API", "0x030b0000")] if limited else []),
            extra_compile_args=flags,
            extra_link_args=link,
            py_limited_api=limited,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}} if limited else {},
)
