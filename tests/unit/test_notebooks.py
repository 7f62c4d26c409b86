"""Every notebook under examples/notebooks runs in one kernel of Jupyter, and shows what it promises."""

import asyncio
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
NOTEBOOKS = ROOT / "examples/notebooks"
WATCHDOG_S = 120
_COLOR = re.compile(r"\x1b\[[\d;]*m")
#: of libraries that are used here for the first time
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:(jupyter_client|zmq|nbclient|traitlets)")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a notebook; return the outputs of each of its cells of code."""
    with pytest.MonkeyPatch.context() as patch:
        place = tmp_path_factory.mktemp("notebooks")
        for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "MPLCONFIGDIR"):
            patch.setenv(name, str(place / name))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        loop = asyncio.new_event_loop()
        client = NotebookClient(
            nbformat.v4.new_notebook(),
            kernel_name="python3",
            timeout=WATCHDOG_S,
            resources={"metadata": {"path": str(place)}},
        )

        async def run_cells(path):
            client.nb = nbformat.read(path, as_version=4)
            client.reset_execution_trackers()
            cells = [(cell, index) for index, cell in enumerate(client.nb.cells) if cell.cell_type == "code"]
            for cell, index in cells:
                await client.async_execute_cell(cell, index)
            return [cell.outputs for cell, _ in cells]

        context = client.async_setup_kernel()
        loop.run_until_complete(context.__aenter__())
        try:
            yield lambda name: loop.run_until_complete(run_cells(NOTEBOOKS / name))
        finally:
            loop.run_until_complete(context.__aexit__(None, None, None))
            loop.close()


def text(outputs):
    return "".join(output.text for output in outputs if output.output_type == "stream")


def shown(outputs, kind="text/plain"):
    (output,) = [output for output in outputs if output.output_type == "execute_result"]
    return output.data[kind]


def test_a_table_that_several_processes_share(run):
    published, forked, updated, snapshot, tail, closed = run("table.ipynb")
    assert "<b>Publisher of" in shown(published, "text/html")
    assert text(updated).splitlines() == ["readers that ended well: 2", "last versions: [4, 4]", "torn reads: 0"]
    assert "DataFrame of 1,000,000" in shown(snapshot, "text/html")
    assert shown(tail).splitlines()[-1].split() == ["999999", "100.0", "100.4"]
    assert forked == closed == []


def test_training_on_two_processes(run):
    data, trained, curves, history, weights, broken, closed = run("training.ipynb")
    assert shown(data) == "(1797, 64)"
    lines = [line.rpartition("\r")[2] for line in text(trained).removesuffix("\n").split("\n")]  # as a cell shows them
    assert [line[:9] for line in lines] == [f"epoch {epoch}/5" for epoch in range(1, 6)]
    assert float(lines[-1].split("val_accuracy ")[1].split()[0]) > 0.8
    assert shown(curves, "image/png").startswith("iVBOR")
    assert "<b>History of 5 epochs</b>" in shown(history, "text/html")
    assert "ndarray, float32, 64 x 32" in shown(weights, "text/html")
    (error,) = broken
    told = _COLOR.sub("", "\n".join(error.traceback)).splitlines()
    assert error.ename == "WorkerError"
    assert told[-1] == "KeyError: 'w3'"
    assert told[-2] == '    return images @ params["w3"], params'  # the line of the cell
    assert closed == []


def test_new_weights_for_a_running_server(run):
    first, updated, patched, killed, publisher, closed = run("live_model.ipynb")
    assert [shown(each) for each in (first, updated, patched)] == ["(1, 2.0)", "(2, 3.5)", "(3, 0.0)"]
    assert shown(killed) == "[(3, 0.0), (3, 0.0), (3, 0.0)]"
    assert "holds versions" in shown(publisher, "text/html")
    assert text(closed) == "exit codes: [-9, 0]\n"


def test_notebooks_are_kept_without_outputs():
    """Outputs would be of one machine and one day, and make each change of a notebook hard to read."""
    names = sorted(path.name for path in NOTEBOOKS.iterdir() if path.suffix == ".ipynb")
    assert names == ["live_model.ipynb", "table.ipynb", "training.ipynb"]
    for name in names:
        for cell in nbformat.read(NOTEBOOKS / name, as_version=4).cells:
            assert cell.cell_type == "markdown" or (cell.outputs == [] and cell.execution_count is None), name
            assert max(len(line) for line in cell.source.splitlines()) <= 130, name
