"""Arguments and launcher of the peers in Python: the port, then the port of Redis."""

import sys
from typing import Any

PORT = int(sys.argv[1])
REDIS_PORT = int(sys.argv[2])


def serve(app: Any, **options: Any) -> None:
    """Run an ASGI application with `uvicorn[standard]`, without a log of requests."""
    import uvicorn

    uvicorn.run(app, port=PORT, log_level="warning", backlog=4096, **options)
