"""A server that notes every request that it begins before it does: `python front_server.py PORT FILE NUMBER`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import Any

import uvicorn


def application(file: str, number: str) -> Any:
    notes = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    headers = [
        (b"x-instainfer-serving", b"yes"),
        (b"x-instainfer-number", number.encode()),
        (b"content-type", b"application/json"),
    ]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        if scope["path"] != "/livez":
            keyed = b"idempotency-key" in dict(scope["headers"])
            os.write(notes, f"{scope['path']} {json.loads(body)['n']} {keyed}\n".encode())
            await asyncio.sleep(0.005)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return app


def main(port: int, file: str, number: str) -> None:
    uvicorn.run(
        application(file, number),
        host="127.0.0.1",
        port=port,
        log_level="error",
        interface="asgi3",
        lifespan="off",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], sys.argv[3])
