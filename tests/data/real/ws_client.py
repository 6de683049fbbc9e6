"""A WebSocket client that checks what comes back. usage: ws_client.py URL"""

import asyncio
import os
import sys

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError


async def main(url):
    async with connect(url, max_size=8 << 20) as connection:
        large = os.urandom(3 << 20)
        for message in ["text, käse", b"\x00\xff binary", large, ""]:
            await connection.send(message)
            assert await connection.recv() == message
        await asyncio.wait_for(await connection.ping(b"mark"), 5)
        # Several on the way at once.
        for i in range(100):
            await connection.send(str(i))
        assert [await connection.recv() for _ in range(100)] == [str(i) for i in range(100)]
    assert connection.close_code == 1000, connection.close_code
    async with connect(url) as connection:
        await connection.send("close 4321 enough")
        try:
            await connection.recv()
            sys.exit("not closed")
        except ConnectionClosedError as closed:
            assert (closed.rcvd.code, closed.rcvd.reason) == (4321, "enough"), closed


asyncio.run(main(sys.argv[1]))
