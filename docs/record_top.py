"""Record docs/top.svg, the picture of `untorn top NAME`: a real training, and the view that a terminal shows.

python docs/record_top.py
"""

from __future__ import annotations

import io
import re
import subprocess
import sys
import time
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console, Group
from rich.terminal_theme import TerminalTheme

from untorn.cli.jobs import job_views

PICTURE = Path(__file__).with_name("top.svg")
NAME = "policy"
WIDTH, HEIGHT = 88, 26
EPOCHS, UNTIL_EPOCH = 40, 12
#: the picture needs no network: the format of rich loads its font from one
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\s*", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL).replace(
    "Fira Code, monospace", "ui-monospace, SFMono-Regular, Menlo, DejaVu Sans Mono, monospace"
)
THEME = TerminalTheme(
    (13, 17, 23),
    (230, 237, 243),
    [(72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34), (88, 166, 255), (188, 140, 255), (57, 197, 207)],
)


def main() -> None:
    """Train in another process, look at it once a second, and write what is seen in the middle."""
    command = [sys.executable, "-m", "untorn.cli", "train", "digits", "--workers", "3", "--name", NAME]
    with subprocess.Popen(
        [*command, "--epochs", str(EPOCHS)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as job:
        for view in job_views(NAME):
            status = view.document()["job"]
            if status is not None and status["epoch"] + 1 >= UNTIL_EPOCH:
                break
            if job.poll() is not None:
                sys.exit("the training ended before it was seen")
            time.sleep(0.5)
        job.terminate()
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, highlight=False)
    console.print(Group(*view.picture(WIDTH, HEIGHT)))
    title = f"untorn top {NAME}"
    PICTURE.write_text(console.export_svg(title=title, theme=THEME, code_format=FORMAT, unique_id="untorn-top"))


if __name__ == "__main__":
    main()
