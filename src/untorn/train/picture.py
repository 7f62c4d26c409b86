"""A figure of matplotlib that notebooks show as a picture, also if pyplot was never imported. Needs matplotlib."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

__all__ = ["Picture"]


class Picture(Figure):
    """A figure. IPython shows a plain one as a picture only once pyplot has told it how."""

    def _repr_png_(self) -> bytes:
        content = io.BytesIO()
        self.savefig(content, format="png")
        return content.getvalue()
