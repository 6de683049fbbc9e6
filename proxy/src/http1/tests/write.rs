//! What goes on to the next hop.

use super::*;

#[test]
fn requests_on_the_next_hop() {
    let check = |sent: &str, forwarded: &str| {
        assert_eq!(forward_request(sent), forwarded, "{sent}");
    };
    check(
        "GET /a?b HTTP/1.1\r\nHost: web\r\nAccept: */*\r\nX-Odd:   v  \r\n\r\n",
        "GET /a?b HTTP/1.1\r\nHost: web\r\nAccept: */*\r\nX-Odd:   v  \r\n\r\n",
    );
    // All that is for this hop ends here, nominated fields included.
    check(
        "GET / HTTP/1.1\r\nConnection: keep-alive, X-Hop, close\r\nHost: a\r\nKeep-Alive: 5\r\n\
         X-Hop: 1\r\nA: b\r\nProxy-Connection: close\r\nTE: gzip;q=0.5\r\nUpgrade: websocket\r\n\
         HTTP2-Settings: x\r\nC: d\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nA: b\r\nC: d\r\n\r\n",
    );
    // Framing is stated anew, once.
    check(
        "POST / HTTP/1.1\r\nCONTENT-LENGTH:   007\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 7\r\n\r\n",
    );
    check(
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: CHUNKED\r\nTrailer: X-Sum\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTrailer: X-Sum\r\ntransfer-encoding: chunked\r\n\r\n",
    );
    check(
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\ncontent-length: 0\r\n\r\n",
    );
    // The mesh's own fields are nobody else's to send.
    check(
        "GET / HTTP/1.1\r\nheddle-client-id: spiffe://x\r\nHost: a\r\nHEDDLE-X: 1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    // The absolute form gives up its authority to Host, whatever Host said.
    check(
        "GET http://b:81/p?q HTTP/1.1\r\nA: b\r\nHost: a\r\nC: d\r\n\r\n",
        "GET /p?q HTTP/1.1\r\nA: b\r\nHost: b:81\r\nC: d\r\n\r\n",
    );
    check("GET http://b?q HTTP/1.0\r\n\r\n", "GET /?q HTTP/1.1\r\nHost: b\r\n\r\n");
    check("OPTIONS http://b HTTP/1.1\r\nHost: b\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: b\r\n\r\n");
    check(
        "CONNECT b:443 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "CONNECT b:443 HTTP/1.1\r\nHost: b:443\r\n\r\n",
    );
    // HTTP/1.0 becomes 1.1: a Host is supplied, and no 100 is provoked.
    check(
        "POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: 10.0.0.1:80\r\ncontent-length: 1\r\n\r\n",
    );
    check(
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\n",
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\ncontent-length: 1\r\n\r\n",
    );
    check(
        "GET / HTTP/1.1\r\nHost: a\r\nTE: deflate, trailers\r\nConnection: TE\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nconnection: te\r\nte: trailers\r\n\r\n",
    );
    check(
        "GET / HTTP/1.1\r\nHost: a\r\nUpgrade: h2c, websocket\r\nConnection: Upgrade\r\n\
         Upgrade: foo/2\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nconnection: upgrade\r\nupgrade: websocket, foo/2\r\n\r\n",
    );
    check(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\
         HTTP2-Settings: AAMAAABk\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    );
    // A forgiven empty line is not sent on.
    check("\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\n\r\n");
}

#[test]
fn edits_of_requests() {
    let bytes =
        b"GET http://a/p HTTP/1.1\r\nHost: a\r\nTraceparent: old\r\nX: y\r\ntraceparent: 2\r\n\r\n";
    let (head, _) = parse_request(bytes).unwrap();
    let edits = RequestEdits {
        target: RequestTarget::AsSent,
        host_if_missing: "b",
        close: true,
        remove: &["traceparent", "host", "connection"],
        add: &[NewField::new("traceparent", b"new").unwrap()],
    };
    let mut out = BytesMut::from("kept");
    write_request_head(&head, bytes, &edits, &mut out);
    let expected = "keptGET http://a/p HTTP/1.1\r\nHost: a\r\nX: y\r\nconnection: close\r\n\
                    traceparent: new\r\n\r\n";
    assert_eq!(out, expected);
}

#[test]
fn added_fields_cannot_end_a_line() {
    assert!(NewField::new("x", b"a b\tc\xe4").is_some());
    for (name, value) in [("x", "a\r\nb"), ("x", "a\0"), ("x y", ""), ("", "a"), ("x:", "a")] {
        assert!(NewField::new(name, value.as_bytes()).is_none(), "{name:?} {value:?}");
    }
}

const NEW: Version = Version::Http11;
const OLD: Version = Version::Http10;

fn forward_response(
    request: RequestFacts,
    sent: &str,
    edits: &ResponseEdits<'_>,
) -> (String, Delivery) {
    let (head, _) = parse_response(sent.as_bytes(), request).expect(sent);
    let mut out = BytesMut::new();
    let delivery = write_response_head(&head, sent.as_bytes(), edits, &mut out);
    (String::from_utf8(out.to_vec()).expect("ASCII in, ASCII out"), delivery)
}

const PLAIN: ResponseEdits<'static> =
    ResponseEdits { client: NEW, close: false, rechunk: false, remove: &[], add: &[] };

#[test]
fn responses_on_the_way_back() {
    use BodyDelivery::{Payload, Rechunk, Verbatim};
    let check = |request, edits: ResponseEdits<'_>, sent: &str, head: &str, body, close| {
        let (forwarded, delivery) =
            forward_response(request, &format!("HTTP/1.{sent}\r\n\r\n"), &edits);
        assert_eq!(forwarded, format!("HTTP/1.1 {head}\r\n\r\n"), "{sent}");
        assert_eq!(delivery, Delivery { body, close }, "{sent}");
    };
    let old = ResponseEdits { client: OLD, ..PLAIN };
    let close = ResponseEdits { close: true, ..PLAIN };
    let rechunk = ResponseEdits { rechunk: true, ..PLAIN };
    let (length, chunked) = ("\r\ncontent-length: 5", "\r\ntransfer-encoding: chunked");

    check(
        GET,
        PLAIN,
        &format!("1 200 OK\r\nA: b{length}"),
        "200 OK\r\nA: b\r\ncontent-length: 5",
        Verbatim,
        false,
    );
    check(
        GET,
        close,
        &format!("1 200 OK{length}"),
        "200 OK\r\ncontent-length: 5\r\nconnection: close",
        Verbatim,
        true,
    );
    check(
        GET,
        PLAIN,
        &format!("1 200 OK{length}\r\nConnection: close, X\r\nX: y\r\nKeep-Alive: 1"),
        "200 OK\r\ncontent-length: 5",
        Verbatim,
        false,
    );
    check(
        GET,
        PLAIN,
        "1 200 OK\r\nheddle-not-delivered: 1\r\nHeddle_Error: x\r\nContent-Length: 0",
        "200 OK\r\ncontent-length: 0",
        Verbatim,
        false,
    );
    check(
        GET,
        PLAIN,
        &format!("1 200{chunked}"),
        "200 \r\ntransfer-encoding: chunked",
        Verbatim,
        false,
    );
    // A client of 1.0 knows no chunks, and keep-alive only by name.
    check(
        GET,
        old,
        &format!("1 200 OK\r\nTrailer: X{chunked}"),
        "200 OK\r\nconnection: close",
        Payload,
        true,
    );
    check(
        GET,
        old,
        &format!("1 200 OK{length}"),
        "200 OK\r\ncontent-length: 5\r\nconnection: keep-alive",
        Verbatim,
        false,
    );
    check(GET, old, "1 200 OK", "200 OK\r\nconnection: close", Verbatim, true);
    check(
        HEAD,
        old,
        &format!("1 200 OK{chunked}"),
        "200 OK\r\nconnection: keep-alive",
        Verbatim,
        false,
    );
    // The end of a body by close is passed on, or made visible.
    check(GET, PLAIN, "0 200 OK", "200 OK\r\nconnection: close", Verbatim, true);
    check(GET, rechunk, "0 200 OK", "200 OK\r\ntransfer-encoding: chunked", Rechunk, false);
    check(
        GET,
        ResponseEdits { client: OLD, ..rechunk },
        "0 200 OK",
        "200 OK\r\nconnection: close",
        Verbatim,
        true,
    );
    check(
        GET,
        rechunk,
        &format!("1 200 OK{length}"),
        "200 OK\r\ncontent-length: 5",
        Verbatim,
        false,
    );
    // No body, but its length.
    check(
        HEAD,
        PLAIN,
        &format!("1 200 OK{length}"),
        "200 OK\r\ncontent-length: 5",
        Verbatim,
        false,
    );
    check(HEAD, rechunk, "1 200 OK", "200 OK", Verbatim, false);
    check(
        GET,
        PLAIN,
        &format!("1 304 Not Modified{length}"),
        "304 Not Modified\r\ncontent-length: 5",
        Verbatim,
        false,
    );
    check(GET, PLAIN, &format!("1 204 No Content{length}"), "204 No Content", Verbatim, false);
    // Heads after which the exchange goes on.
    check(
        GET,
        close,
        "1 103 Early Hints\r\nLink: </a>\r\nConnection: close",
        "103 Early Hints\r\nLink: </a>",
        Verbatim,
        false,
    );
    check(CONNECT, close, &format!("1 200 OK{length}"), "200 OK", Verbatim, false);
    check(
        UPGRADE,
        close,
        "1 101 S\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: x",
        "101 S\r\nSec-WebSocket-Accept: x\r\nconnection: upgrade\r\nupgrade: websocket",
        Verbatim,
        false,
    );
    check(
        GET,
        PLAIN,
        "1 426 No\r\nConnection: Upgrade\r\nUpgrade: h2c, foo\r\nContent-Length: 0",
        "426 No\r\ncontent-length: 0\r\nconnection: upgrade\r\nupgrade: foo",
        Verbatim,
        false,
    );
    check(
        GET,
        PLAIN,
        "1 200 OK\r\nConnection: Upgrade\r\nUpgrade: h2,h2c\r\nContent-Length: 0",
        "200 OK\r\ncontent-length: 0",
        Verbatim,
        false,
    );
}

const HEAD: RequestFacts = RequestFacts { head: true, ..GET };
const CONNECT: RequestFacts = RequestFacts { connect: true, ..GET };
const UPGRADE: RequestFacts = RequestFacts { upgrade: true, ..GET };

#[test]
fn obs_text_passes_unchanged() {
    let bytes = b"HTTP/1.1 200 gr\xfc\xdf\r\nX: \xe4\r\nContent-Length: 0\r\n\r\n";
    let (head, _) = parse_response(bytes, GET).unwrap();
    let mut out = BytesMut::new();
    write_response_head(&head, bytes, &PLAIN, &mut out);
    let expected = b"HTTP/1.1 200 gr\xfc\xdf\r\nX: \xe4\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(out, expected.as_slice());
}

#[test]
fn the_proxys_own_answers() {
    let response = LocalResponse {
        status: 503,
        reason: "no-endpoints",
        proxy: "outbound",
        message: "service web has no ready endpoint",
        head_only: false,
        close: true,
        add: &[NewField::new("retry-after", b"1").unwrap()],
    };
    let mut out = BytesMut::new();
    write_local_response(&response, &mut out);
    let head = "HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
                content-length: 34\r\nheddle-error: no-endpoints\r\nheddle-error-proxy: outbound\r\n\
                connection: close\r\nretry-after: 1\r\n\r\n";
    assert_eq!(out, format!("{head}service web has no ready endpoint\n"));

    out.clear();
    write_local_response(&LocalResponse { head_only: true, ..response }, &mut out);
    assert_eq!(out, head);
    let (parsed, length) = parse_response(&out, HEAD).unwrap();
    assert_eq!((length, parsed.framing()), (out.len(), BodyFraming::None));
}

#[test]
fn every_refusal_makes_an_answer_that_the_codec_accepts() {
    for refusal in Refusal::ALL {
        let mut out = BytesMut::new();
        let message = refusal.to_string();
        let response = LocalResponse {
            status: refusal.status(),
            reason: refusal.reason(),
            proxy: "inbound",
            message: &message,
            head_only: false,
            close: true,
            add: &[],
        };
        write_local_response(&response, &mut out);
        let (head, length) = parse_response(&out, GET).unwrap();
        assert_eq!(head.framing(), BodyFraming::Length((out.len() - length) as u64));
        assert!(!head.reason(&out).is_empty(), "{} has no phrase", refusal.status());
        assert!(!head.keep_alive());
    }
}
