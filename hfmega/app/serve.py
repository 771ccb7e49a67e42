"""The server of the page. It answers this machine alone, and serves no file but uploads to it and gradio's own."""

import os
import shutil
import socket
import time
from contextlib import suppress
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp
from threading import Thread
from typing import Any, Final

from hfmega.errors import HfmegaError
from hfmega.output import Output

HERE: Final = "127.0.0.1"
LARGEST_UPLOAD: Final = "50mb"
QUIET: Final = {"GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_ALLOWED_PATHS": "", "GRADIO_SERVER_NAME": ""}


def serve(base: Path | str, port: int | None = None, browser: bool = False) -> None:
    """Serve the page over the merges below a folder until it is interrupted.

    On a Space it answers the Space's proxy, and visitors sign in by OAuth.
    Raises HfmegaError without gradio, when the folder cannot be made, or when the port is taken.
    """
    if find_spec("gradio") is None:
        raise HfmegaError("the page needs gradio, which is not installed: pip install 'hfmega[app]'.")
    on_space, base = os.environ.get("SYSTEM") == "spaces", Path(base).resolve()
    try:
        base.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HfmegaError(f"{base} cannot be made ({error.strerror or error}): name another folder.") from error
    if port is not None and not on_space:
        check_free(port)
    uploads = mkdtemp(prefix="hfmega-app-")
    # gradio reads them when it is imported: nothing is counted, and uploads lie in a folder of their own.
    os.environ.update({} if on_space else QUIET, GRADIO_TEMP_DIR=uploads, GRADIO_ANALYTICS_ENABLED="False")
    try:
        address = launch(base, uploads, port, browser, on_space)
        Thread(target=warm, daemon=True).start()
        Output().say(f"the page is at {address} (Ctrl-C ends it; merges that run go on)")
        with suppress(KeyboardInterrupt):
            while True:
                time.sleep(1)
    finally:
        shutil.rmtree(uploads, ignore_errors=True)


def launch(base: Path, uploads: str, port: int | None, browser: bool, on_space: bool) -> str:
    """Start the server; returns the address of the page. Raises HfmegaError when the port is taken."""
    from hfmega.app import page

    built = page.build(base, on_space)
    built.queue(default_concurrency_limit=16, api_open=False)
    try:
        _, address, _ = built.launch(
            server_name=None if on_space else HERE,
            server_port=port,
            inbrowser=browser,
            share=False,
            quiet=True,
            prevent_thread_lock=True,
            footer_links=[],
            run_history=False,
            allowed_paths=[uploads],
            max_file_size=LARGEST_UPLOAD,
            enable_monitoring=False,
            app_kwargs={"middleware": [] if on_space else guards()},
            ssr_mode=False,
            pwa=False,
            mcp_server=False,
            theme=page.theme(),
            css_paths=[page.STYLE],
        )
    except OSError as error:
        raise HfmegaError(f"the page cannot be served ({error}): name another --port.") from error
    return str(address)


def warm() -> None:
    """Import what the first look at a checkpoint needs: it takes seconds, in which the page can be read."""
    for name in ("hfmega.hub.pull", "hfmega.models.library", "hfmega.weights.mergeable", "hfmega.evaluation.network"):
        import_module(name)


def check_free(port: int) -> None:
    """Raises HfmegaError for a port that somebody else listens to, or that this user may not take."""
    with socket.socket() as tried:
        tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            tried.bind((HERE, port))
        except OSError as error:
            raise HfmegaError(f"port {port} cannot be used ({error.strerror}): name another with --port.") from error


def guards() -> list[Any]:
    """Answer to this machine's own names only: a foreign name that leads here must not read the page."""
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    return [Middleware(TrustedHostMiddleware, allowed_hosts=[HERE, "localhost"])]
