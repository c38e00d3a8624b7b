"""The health check of the Docker image: queries /healthz of the role `web` on this machine; exit status 0 if it responds.

Takes port and certificate of the role `web` from the settings; without that role it falls back to `cxr-node status`.

    python -m cxr_node.node.healthcheck ROLE...

tells whether these roles are ready on this machine, without the database: for hosts that run single roles (`conf/kubernetes/`).
"""

from __future__ import annotations

import os
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from cxr_node.errors import CxrNodeError
from cxr_node.peer_address import endpoint
from cxr_node.settings import Settings, load_settings
from cxr_node.store.views import presence

_TIMEOUT_S = 10.0


def main(roles: Sequence[str] = ()) -> int:
    """Ask; the exit status."""
    config = Path(os.environ.get("CXR_NODE_CONFIG", "/etc/cxr-node/cxr-node.toml"))
    try:
        settings = load_settings(config if config.exists() else None)
        if roles:
            return _look_for(settings, roles)
        if not settings.web.enabled:
            return subprocess.run(
                [sys.executable, "-m", "cxr_node", "status", "--config", str(config), "--json"], check=False
            ).returncode
        print(_ask(settings))
    except (CxrNodeError, OSError) as error:
        print(f"unhealthy: {error}", file=sys.stderr)
        return 1
    return 0


def _look_for(settings: Settings, roles: Sequence[str]) -> int:
    ready = {role for role, _ in presence.present(settings.node.data_dir)}
    missing = [role for role in roles if role not in ready]
    if missing:
        print(f"unhealthy: not ready on this machine: {', '.join(missing)}", file=sys.stderr)
    return bool(missing)


def _ask(settings: Settings) -> str:
    web = settings.web
    context = None
    if web.certificate is not None:  # it names the node's public name, not this machine's loopback
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(web.host, web.host)  # noqa: S104
    address = f"{'https' if context else 'http'}://{endpoint(host, web.port)}/healthz"
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    with opener.open(address, timeout=_TIMEOUT_S) as answer:
        return str(answer.read().decode().strip())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
