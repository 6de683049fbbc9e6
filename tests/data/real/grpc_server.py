"""A gRPC server without generated code: messages are bytes.

usage: grpc_server.py PORT NAME
"""

import sys
import threading
import time
from concurrent import futures

import grpc

PORT, NAME = sys.argv[1], sys.argv[2].encode()
cancelled = threading.Semaphore(0)


def unary(request, context):
    context.set_trailing_metadata((("served-by", NAME.decode()), ("raw-bin", b"\x00\xff")))
    return NAME + b":" + request


def server_stream(request, context):
    for i in range(int(request)):
        yield b"%d" % i


def client_stream(requests, context):
    return b"%d" % sum(int(request) for request in requests)


def bidi(requests, context):
    for request in requests:
        yield request.upper()


def slow(request, context):
    time.sleep(float(request))
    return b"late"


def watched(request, context):
    """Goes on until the caller gives up; `cancellations` tells."""
    gone = threading.Event()
    context.add_callback(gone.set)
    yield b"begun"
    gone.wait(30)
    cancelled.release()


def cancellations(request, context):
    return b"1" if cancelled.acquire(timeout=10) else b"0"


def fail(request, context):
    context.set_trailing_metadata((("reason", "because"), ("grpc-status-details-bin", b"\x08\x05\x12\x02no")))
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not now, café")


def fail_late(request, context):
    yield b"one"
    yield b"two"
    context.abort(grpc.StatusCode.DATA_LOSS, "lost it")


def metadata(request, context):
    return "\n".join(f"{k}={v}" for k, v in context.invocation_metadata()).encode()


UNARY = [unary, slow, cancellations, fail, metadata]
STREAMING = [server_stream, watched, fail_late]
handlers = {f.__name__: grpc.unary_unary_rpc_method_handler(f) for f in UNARY}
handlers |= {f.__name__: grpc.unary_stream_rpc_method_handler(f) for f in STREAMING}
handlers["client_stream"] = grpc.stream_unary_rpc_method_handler(client_stream)
handlers["bidi"] = grpc.stream_stream_rpc_method_handler(bidi)

server = grpc.server(futures.ThreadPoolExecutor(max_workers=120))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("lab.Test", handlers)])
server.add_insecure_port(f"[::]:{PORT}")
server.start()
server.wait_for_termination()
