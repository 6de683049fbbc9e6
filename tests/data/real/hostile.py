"""Sends the rows of a table, each on a connection of its own, and tells for each what came back and
which requests the server found meanwhile. Prints one line of JSON.

usage: hostile.py HOST PORT ROWS LOG     (ROWS: JSON list of [name, bytes in hexadecimal])
"""

import json
import os
import socket
import sys

host, port, rows, log = sys.argv[1], int(sys.argv[2]), json.load(open(sys.argv[3])), sys.argv[4]


def exchange(data):
    connection = socket.create_connection((host, port), timeout=2)
    answer = b""
    try:
        connection.sendall(data)
        while more := connection.recv(65536):
            answer += more
        return answer, "closed"
    except TimeoutError:
        return answer, "open"
    except OSError:
        return answer, "reset"
    finally:
        connection.close()


results = []
for name, data in rows:
    before = os.path.getsize(log)
    answer, end = exchange(bytes.fromhex(data))
    with open(log) as lines:
        lines.seek(before)
        seen = [json.loads(line)["path"] for line in lines]
    results.append({"name": name, "answer": answer.decode("latin-1"), "end": end, "seen": seen})
print(json.dumps(results))
