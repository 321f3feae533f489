"""A real nginx over a directory, with a configuration of its own, on loopback."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import socket
import subprocess
from collections.abc import Iterator

from support.ports import fixed_port
from support.waiting import wait_until

PROGRAM = shutil.which("nginx", path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")
WHY_NOT = "nginx is not here (apt-get install nginx-light)"

_CONFIG = """
daemon off;
worker_processes 1;
{user}
pid {directory}/pid;
error_log {directory}/error.log;
events {{ worker_connections 128; }}
http {{
    access_log off;
    sendfile on;
    default_type application/octet-stream;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    server {{
        listen 127.0.0.1:{port};
        root {root};
        autoindex on;
        charset utf-8;
        {more}
    }}
}}
"""


@contextlib.contextmanager
def nginx(root: pathlib.Path, directory: pathlib.Path, *, more: str = "") -> Iterator[str]:
    """Serve `root`, keep nginx's own files in `directory`, and yield the URL, which ends in "/".

    `more` are further lines of the `server` section.
    """
    assert PROGRAM, WHY_NOT
    directory.mkdir(parents=True, exist_ok=True)
    port = fixed_port()
    user = "user root;" if os.getuid() == 0 else ""  # else it becomes nobody, who may not read the files
    config = directory / "nginx.conf"
    config.write_text(_CONFIG.format(user=user, directory=directory, port=port, root=root, more=more))
    process = subprocess.Popen([PROGRAM, "-c", str(config), "-e", str(directory / "error.log")])
    try:
        wait_until(lambda: process.poll() is not None or _answers(port), "nginx")
        assert process.poll() is None, (directory / "error.log").read_text()
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True
