"""``untorn export``: serve the channels, queues and jobs of this user as metrics for Prometheus (untorn.prometheus)."""

from __future__ import annotations

import threading

import click

from untorn.cli.errors import reported
from untorn.cli.signals import cleaning_up_after_signals
from untorn.cli.tables import say

__all__ = ["export"]


@click.command(short_help="Serve metrics for Prometheus.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.option(
    "--port",
    type=click.IntRange(min=0, max=65535),
    default=9464,
    show_default=True,
    help="The port to serve at; 0 for any free one, which is printed.",
)
@click.option(
    "--address",
    default="127.0.0.1",
    show_default=True,
    help="The address to serve at; 0.0.0.0 for other machines, too. Metrics have the names of channels and jobs.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0),
    default=0.5,
    show_default=True,
    help="How many seconds to wait for a running job, which answers between two steps.",
)
@click.option("--once", is_flag=True, help="Print the metrics once, in Prometheus's text format, and exit.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
def export(*, names: tuple[str, ...], port: int, address: str, timeout_s: float, once: bool, debug: bool) -> None:
    """Serve all of this user's channels, queues and running jobs as metrics for Prometheus, until Ctrl-C.

    With NAMEs or paths (anything with a slash), only these channels and queues, and the running jobs. Each request
    looks anew, takes no reader row and disturbs no process.

    --once is for the textfile collector of Prometheus's node_exporter, and to see what there is.
    """
    with reported(debug=debug):
        from prometheus_client import CollectorRegistry, generate_latest, start_http_server

        from untorn.prometheus import Collector

        registry = CollectorRegistry()
        registry.register(Collector(names or None, timeout_s=timeout_s))
        if once:
            click.echo(generate_latest(registry).decode(), nl=False)
            return
        with cleaning_up_after_signals():
            server, thread = start_http_server(port, address, registry)
            try:
                say(f"http://{address}:{server.server_port}/metrics")
                threading.Event().wait()
            finally:
                server.shutdown()
                server.server_close()
                thread.join()
