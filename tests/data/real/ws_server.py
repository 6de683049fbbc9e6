"""A WebSocket server: echoes; `close CODE REASON` makes it close. usage: ws_server.py PORT"""

import asyncio
import sys

from websockets.asyncio.server import serve


async def echo(connection):
    async for message in connection:
        if isinstance(message, str) and message.startswith("close "):
            _, code, reason = message.split(" ", 2)
            return await connection.close(int(code), reason)
        else:
            await connection.send(message)


async def main():
    async with serve(echo, None, int(sys.argv[1]), max_size=8 << 20) as server:
        await server.serve_forever()


asyncio.run(main())
