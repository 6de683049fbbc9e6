"""Clients too odd to be found ready-made. Each prints what it saw as one line of JSON.

usage: probe.py CASE HOST PORT [ARG...]
"""

import json
import socket
import sys
import time

case, host, port, args = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]


def dial():
    connection = socket.create_connection((host, port), timeout=20)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def read_all(connection):
    data = b""
    try:
        while more := connection.recv(65536):
            data += more
    except ConnectionResetError:
        data += b"<reset>"
    except TimeoutError:
        data += b"<timeout>"
    return data


def read_until(connection, mark):
    data = b""
    while mark not in data:
        more = connection.recv(65536)
        if not more:
            raise EOFError(data)
        data += more
    return data


def get(path, more=""):
    return f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n{more}\r\n".encode()


def pipeline():
    """All requests in one write; the answers must come in order."""
    number = int(args[0])
    connection = dial()
    requests = [get(f"/pipelined/{i}") for i in range(number - 1)]
    connection.sendall(b"".join(requests) + get(f"/pipelined/{number - 1}", "Connection: close\r\n"))
    data = read_all(connection).decode()
    paths = [part.split('"')[0] for part in data.split('"path": "')[1:]]
    return {"paths": paths, "ok": data.count("HTTP/1.1 200")}


def half_close():
    """Says that it is done, then waits for the answer."""
    connection = dial()
    connection.sendall(get("/half-closed"))
    connection.shutdown(socket.SHUT_WR)
    return {"answer": read_all(connection).decode()}


def switch(request):
    """Asks for another protocol, speaks it, and closes its side."""
    connection = dial()
    connection.sendall(request)
    head = read_until(connection, b"\r\n\r\n").decode()
    connection.sendall(b"hello ")
    first = connection.recv(100).decode()
    connection.sendall(b"again")
    connection.shutdown(socket.SHUT_WR)
    return {"head": head, "first": first, "rest": read_all(connection).decode()}


def upgrade():
    return switch(get("/upgrade", "Connection: upgrade\r\nUpgrade: shout\r\n"))


def connect():
    """To a name that nobody has: only the server may make something of it."""
    return switch(b"CONNECT nowhere.example:443 HTTP/1.1\r\nHost: nowhere.example:443\r\n\r\n")


def trailers():
    connection = dial()
    connection.sendall(
        f"POST /trailers HTTP/1.1\r\nHost: {host}\r\nTransfer-Encoding: chunked\r\n"
        "Trailer: X-Sum\r\nConnection: close\r\n\r\n"
        "5\r\nhello\r\n6;ext=1\r\n world\r\n0\r\nX-Sum: 42\r\n\r\n".encode()
    )
    return {"answer": read_all(connection).decode()}


def events():
    """How late each event came after it was sent (both ends read the same clock)."""
    connection = dial()
    connection.settimeout(10)
    connection.sendall(get("/events/" + args[0], "Connection: close\r\n"))
    late, buffer = [], b""
    while True:
        data = connection.recv(65536)
        if not data:
            break
        now = time.time()
        buffer += data
        *lines, buffer = buffer.split(b"\n")
        late += [now - float(line[6:]) for line in lines if line.startswith(b"data: ")]
    return {"events": len(late), "latest": max(late)}


def send_file():
    """The bytes of a file, then whatever comes back; keeps its side open."""
    connection = dial()
    begun = time.monotonic()
    connection.sendall(open(args[0], "rb").read())
    connection.settimeout(float(args[1]))
    data = read_all(connection)
    return {"answer": data.decode("latin-1"), "seconds": time.monotonic() - begun}


def drip():
    """A byte every 100 ms, of a head or of a body that never ends."""
    connection = dial()
    begun = time.monotonic()
    body = args[0] == "body"
    head = f"POST /slow HTTP/1.1\r\nHost: {host}\r\nContent-Length: 100000\r\n\r\n" if body else "GET /slow HTTP/1.1\r\n"
    connection.sendall(head.encode())
    connection.settimeout(0.1)
    answer = b""
    while time.monotonic() - begun < float(args[1]):
        try:
            connection.sendall(b"x")
            data = connection.recv(65536)
            if not data:
                break
            answer += data
        except TimeoutError:
            continue
        except OSError:
            answer += b"<reset>"
            break
    return {"answer": answer.decode("latin-1"), "seconds": time.monotonic() - begun}


def late_http2():
    """A gRPC call of a client that lets the server speak first, and claims to be somebody else."""

    def frame(kind, flags, stream, payload):
        return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload

    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/lab.Test/metadata",
        ":authority": host,
        "content-type": "application/grpc",
        "te": "trailers",
        "heddle-client-id": args[0],
    }
    head = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    connection = dial()
    connection.settimeout(0.5)
    first = b""
    try:
        first = connection.recv(65536)
    except TimeoutError:
        pass
    connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, 0, b""))
    connection.sendall(frame(1, 4, 1, head) + frame(0, 1, 1, bytes(5)))
    connection.settimeout(1)
    return {"first": len(first), "answer": read_all(connection).decode("latin-1")}


def hold():
    """Opens a request that the server never answers, waits, and goes away."""
    connection = dial()
    connection.sendall(get("/silent"))
    time.sleep(float(args[0]))
    return {}


cases = [pipeline, half_close, upgrade, connect, trailers, events, send_file, drip, late_http2, hold]
print(json.dumps({f.__name__: f for f in cases}[case]()))
