"""An HTTP/1 server that believes its caller: it takes what strict parsers refuse, counts every
request it finds in the bytes, and logs each as one line of JSON. What the mesh lets through shows
here. Its paths are in `answer`.

usage: raw_http.py PORT LOG
"""

import asyncio
import hashlib
import json
import sys
import time

PORT, LOG = int(sys.argv[1]), open(sys.argv[2], "a", buffering=1)
count = 0


async def read_head(reader):
    """Lines up to an empty one; a bare LF ends a line."""
    lines = []
    while True:
        line = await reader.readline()
        if not line:
            return None
        if line.strip(b"\r\n"):
            lines.append(line)
        elif lines:
            return lines


def parse(lines):
    method, target = (lines[0].split(None, 2) + [b"", b""])[:2]
    fields = []
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        fields.append((name.strip().lower().decode("latin-1"), value.strip().decode("latin-1")))
    return method.decode("latin-1"), target.decode("latin-1"), fields


async def read_body(reader, fields):
    """The body and its trailers. The last length and any `chunked` count."""
    by_name = dict(fields)
    if "chunked" not in by_name.get("transfer-encoding", "").lower():
        return await reader.readexactly(int(by_name.get("content-length") or 0)), []
    body = b""
    while size := int((await reader.readline()).split(b";")[0].strip() or b"0", 16):
        body += await reader.readexactly(size)
        await reader.readline()
    trailers = []
    while (line := await reader.readuntil(b"\n")).strip():
        trailers.append(line)
    return body, parse([b"- -"] + trailers)[2]


def response(body, status="200 OK", extra=""):
    head = f"HTTP/1.1 {status}\r\n{extra}content-length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def events(writer, number):
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
                 b"transfer-encoding: chunked\r\n\r\n")
    for i in range(number):
        event = f"id: {i}\ndata: {time.time()}\n\n".encode()
        writer.write(b"%x\r\n%s\r\n" % (len(event), event))
        await writer.drain()
        await asyncio.sleep(1)
    writer.write(b"0\r\n\r\n")


async def echo(reader, writer, head):
    writer.write(head)
    while data := await reader.read(65536):
        writer.write(data.upper())
    writer.write(b"bye")


async def answer(reader, writer, path, seen):
    """True when the connection may carry another request."""
    if path == "/early":
        writer.write(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>; rel=preload\r\n\r\n")
        await writer.drain()
        await asyncio.sleep(0.2)
        writer.write(response(b"late"))
    elif path == "/upgrade":
        head = b"HTTP/1.1 101 Switching Protocols\r\nupgrade: shout\r\nconnection: upgrade\r\n\r\n"
        await echo(reader, writer, head)
        return False
    elif seen["method"] == "CONNECT":
        await echo(reader, writer, b"HTTP/1.1 200 Connected\r\n\r\n")
        return False
    elif path == "/old":
        writer.write(b"HTTP/1.0 200 OK\r\nserver: old\r\n\r\nno length, ended by the close")
        return False
    elif path.startswith("/events/"):
        await events(writer, int(path[8:]))
    elif path == "/silent":
        await asyncio.sleep(3600)
    elif path == "/count":
        writer.write(response(str(count).encode()))
    else:
        writer.write(response(json.dumps(seen).encode(), extra="x-raw: 1\r\n"))
    return True


def enter(method, path, lines):
    """One line for a request that has arrived whole."""
    global count
    if path != "/count":
        count += 1
        head = b"".join(lines).decode("latin-1")
        LOG.write(json.dumps({"method": method, "path": path, "head": head}) + "\n")


async def exchange(reader, writer, lines):
    method, path, fields = parse(lines)
    if path == "/too-large":
        # Says no at once and reads nothing of the body.
        enter(method, path, lines)
        writer.write(response(b"too large", "413 Payload Too Large", "connection: close\r\n"))
        await writer.drain()
        return False
    if ("expect", "100-continue") in [(name, value.lower()) for name, value in fields]:
        if path == "/refuse":
            enter(method, path, lines)
            writer.write(response(b"no", "417 Expectation Failed", "connection: close\r\n"))
            return False
        await asyncio.sleep(0.2)
        writer.write(b"HTTP/1.1 100 Continue\r\nx-late: 1\r\n\r\n")
    body, trailers = await read_body(reader, fields)
    enter(method, path, lines)
    seen = {
        "method": method,
        "path": path,
        "fields": fields,
        "trailers": trailers,
        "length": len(body),
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    kept = await answer(reader, writer, path, seen)
    return kept and ("connection", "close") not in fields


async def serve(reader, writer):
    try:
        while (lines := await read_head(reader)) is not None:
            if not await exchange(reader, writer, lines):
                break
            await writer.drain()
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError, ValueError, TypeError):
        pass
    finally:
        writer.close()


async def main():
    server = await asyncio.start_server(serve, ["0.0.0.0", "::"], PORT, limit=1 << 20)
    await server.serve_forever()


asyncio.run(main())
