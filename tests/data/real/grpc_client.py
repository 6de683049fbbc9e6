"""A gRPC client without generated code. Each case checks for itself what it got.

usage: grpc_client.py TARGET CASE [ARG...]
"""

import json
import queue
import sys
import time
from collections import Counter

import grpc

target, case = sys.argv[1], sys.argv[2]
channel = grpc.insecure_channel(target)


def unary(name):
    return channel.unary_unary(f"/lab.Test/{name}")


def stream(name):
    return channel.unary_stream(f"/lab.Test/{name}")


def equal(got, expected):
    if got != expected:
        sys.exit(f"{case}: got {got!r}, not {expected!r}")


def all_kinds():
    response, call = unary("unary").with_call(b"hello", timeout=10)
    equal(response.split(b":")[1], b"hello")
    trailers = dict(call.trailing_metadata())
    equal(trailers["served-by"].encode(), response.split(b":")[0])
    equal(trailers["raw-bin"], b"\x00\xff")
    equal(list(stream("server_stream")(b"1000", timeout=10))[-1], b"999")
    send = channel.stream_unary("/lab.Test/client_stream")
    equal(send((b"%d" % i for i in range(1000)), timeout=10), b"499500")


def bidi():
    """Every answer is waited for before the next message: nothing is held back on the way."""
    outbox = queue.Queue()
    answers = channel.stream_stream("/lab.Test/bidi")(iter(outbox.get, None), timeout=20)
    for i in range(100):
        outbox.put(b"message %d" % i)
        equal(next(answers), b"MESSAGE %d" % i)
    outbox.put(None)
    equal(list(answers), [])
    equal(answers.code(), grpc.StatusCode.OK)


def large():
    body = bytes(range(256)) * 12_000
    equal(len(unary("unary")(body, timeout=20)), len(body) + 2)


def deadline():
    begun = time.monotonic()
    try:
        unary("slow")(b"5", timeout=0.5)
        sys.exit("no deadline")
    except grpc.RpcError as error:
        equal(error.code(), grpc.StatusCode.DEADLINE_EXCEEDED)
    equal(time.monotonic() - begun < 2, True)
    # The connection is as good as before.
    equal(unary("slow")(b"0", timeout=5), b"late")


def cancellation():
    call = stream("watched")(b"")
    equal(next(call), b"begun")
    call.cancel()
    equal(unary("cancellations")(b"", timeout=15), b"1")


def errors():
    try:
        unary("fail")(b"", timeout=5)
        sys.exit("no error")
    except grpc.RpcError as error:
        equal(error.code(), grpc.StatusCode.FAILED_PRECONDITION)
        equal(error.details(), "not now, café")
        trailers = dict(error.trailing_metadata())
        equal(trailers["reason"], "because")
        equal(trailers["grpc-status-details-bin"], b"\x08\x05\x12\x02no")
    got = []
    try:
        for message in stream("fail_late")(b"", timeout=5):
            got.append(message)
        sys.exit("no late error")
    except grpc.RpcError as error:
        equal(got, [b"one", b"two"])
        equal((error.code(), error.details()), (grpc.StatusCode.DATA_LOSS, "lost it"))
    try:
        unary("missing")(b"", timeout=5)
        sys.exit("no error")
    except grpc.RpcError as error:
        equal(error.code(), grpc.StatusCode.UNIMPLEMENTED)


def parallel():
    calls = [unary("slow").future(b"0.5", timeout=20) for _ in range(100)]
    begun = time.monotonic()
    equal([call.result() for call in calls], [b"late"] * 100)
    equal(time.monotonic() - begun < 10, True)


def balance():
    """One channel, hence one connection to the proxy: which server answered each request?"""
    calls = [unary("unary").future(b"", timeout=20) for _ in range(400)]
    print(json.dumps(Counter(call.result()[:1].decode() for call in calls)))


def metadata():
    sent = (("x-plain", "value"), ("x-raw-bin", b"\x00\x01"), ("heddle-client-id", "spiffe://forged"))
    print(unary("metadata")(b"", metadata=sent, timeout=5).decode())


def identities():
    """Who the server is told is calling, over many calls that claim to be somebody else's."""
    number, claim = int(sys.argv[3]), (("heddle-client-id", sys.argv[4]),)
    told = Counter()
    for begin in range(0, number, 50):
        batch = min(50, number - begin)
        calls = [unary("metadata").future(b"", metadata=claim, timeout=20) for _ in range(batch)]
        for call in calls:
            lines = call.result().decode().split("\n")
            told[" ".join(line for line in lines if line.startswith("heddle-"))] += 1
    print(json.dumps(told))


for run in [all_kinds, bidi, large, deadline, cancellation, errors, parallel, balance, metadata, identities]:
    if run.__name__ == case:
        run()
        break
else:
    sys.exit(f"no case {case}")
