"""`autoprune dashboard`."""

from autoprune.cli.again import uri_of
from autoprune.cli.call import DONE, Call
from autoprune.orchestration.tracking.pages import (
    HOST,
    check_port,
    serve,
    sweep_page,
    without_login,
)

ENDS = "Ctrl-C ends it."


def dashboard(call: Call) -> int:
    """Serve MLflow's pages on 127.0.0.1 until Ctrl-C, and print where the sweep is."""
    folder, record = call.sweep()
    uri = call.config["uri"] or uri_of(folder, record)
    port = call.config["port"]
    if uri.startswith(("http://", "https://")):
        page = sweep_page(uri, record.header["experiment"], folder.name)
        call.say(f"{without_login(uri).rstrip('/')}/{page}")
        return DONE
    check_port(port)
    page = sweep_page(uri, record.header["experiment"], folder.name)
    serve(uri, port=port, on_ready=lambda: call.say(f"http://{HOST}:{port}/{page}", ENDS))
    return DONE
