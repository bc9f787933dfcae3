"""How the peers in Python listen: the port is the first argument, Redis's the second."""

import sys
from typing import Any

PORT = int(sys.argv[1])
REDIS_PORT = int(sys.argv[2])


def serve(app: Any, **options: Any) -> None:
    """Run an ASGI application as `uvicorn[standard]` does, without a log of requests."""
    import uvicorn

    uvicorn.run(app, port=PORT, log_level="warning", backlog=4096, **options)
