//! What goes on to the next hop.

use heddle_policy::route::HeaderEdit;

use super::BodyDelivery::{Payload, Rechunk, Verbatim};
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
    let edits = ["traceparent", "host", "connection"].map(|name| edit(name, false, &[]));
    let edits = RequestEdits {
        target: RequestTarget::AsSent,
        host: None,
        host_if_missing: ADDRESS,
        close: true,
        edits: &edits,
        add: &[NewField::new("traceparent", b"new").unwrap()],
    };
    let mut out = BytesMut::from("kept");
    write_request_head(&head, bytes, &edits, &mut out);
    let expected = "keptGET http://a/p HTTP/1.1\r\nHost: a\r\nX: y\r\nconnection: close\r\n\
                    traceparent: new\r\n\r\n";
    assert_eq!(out, expected);
}

fn edit(name: &str, keep: bool, values: &[&str]) -> HeaderEdit {
    let values = values.iter().map(|value| value.as_bytes().into()).collect();
    HeaderEdit { name: name.into(), keep, values }
}

#[test]
fn a_route_changes_target_host_and_fields() {
    let edits = [
        edit("x-set", false, &["new"]),
        edit("x-add", true, &["1", "2"]),
        edit("x-gone", false, &[]),
    ];
    let changed = RequestEdits {
        target: RequestTarget::Path("/q"),
        host: Some("b"),
        host_if_missing: ADDRESS,
        close: false,
        edits: &edits,
        add: &[NewField::new("heddle-client-id", b"us").unwrap()],
    };
    let tail = "x-set: new\r\nx-add: 1\r\nx-add: 2\r\nheddle-client-id: us\r\n\r\n";
    for (sent, edits, want) in [
        (
            "GET /p?a=b HTTP/1.1\r\nX-Set: old\r\nHost: a:80\r\nX-Add: 0\r\nx-gone: y\r\n\
             X-SET: old\r\n\r\n",
            changed,
            "GET /q?a=b HTTP/1.1\r\nHost: b\r\nX-Add: 0\r\n",
        ),
        (
            "GET http://a/p?a=b HTTP/1.1\r\nHost: other\r\n\r\n",
            changed,
            "GET /q?a=b HTTP/1.1\r\nHost: b\r\n",
        ),
        (
            "GET http://a?a=b HTTP/1.1\r\nHost: other\r\n\r\n",
            RequestEdits { target: RequestTarget::Origin, ..changed },
            "GET /?a=b HTTP/1.1\r\nHost: b\r\n",
        ),
        ("GET /p HTTP/1.0\r\n\r\n", changed, "GET /q HTTP/1.1\r\nHost: b\r\n"),
        (
            "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
            RequestEdits { target: RequestTarget::Origin, ..changed },
            "OPTIONS * HTTP/1.1\r\nHost: b\r\n",
        ),
    ] {
        let (head, _) = parse_request(sent.as_bytes()).unwrap();
        let mut out = BytesMut::new();
        write_request_head(&head, sent.as_bytes(), &edits, &mut out);
        assert_eq!(out, format!("{want}{tail}"), "{sent}");
    }
}

#[test]
fn a_route_changes_the_answers_fields() {
    let edits = [edit("server", false, &["us"]), edit("set-cookie", true, &["b=2"])];
    let edits = ResponseEdits {
        client: Version::Http11,
        close: false,
        rechunk: false,
        edits: &edits,
        add: &[],
    };
    let (got, _) = forward_response(
        GET,
        "HTTP/1.1 200 OK\r\nServer: app\r\nset-cookie: a=1\r\nContent-Length: 2\r\n\r\n",
        &edits,
    );
    let want = "HTTP/1.1 200 OK\r\nset-cookie: a=1\r\ncontent-length: 2\r\nserver: us\r\n\
                set-cookie: b=2\r\n\r\n";
    assert_eq!(got, want);
}

#[test]
fn a_redirect_says_where_and_which_rule() {
    let edits = [edit("x", true, &["y"])];
    let response = RedirectResponse {
        status: 308,
        location: "http://b/p",
        rule: "HTTPRoute/shop/web[0]",
        edits: &edits,
        close: true,
    };
    let mut out = BytesMut::new();
    write_redirect(&response, &mut out);
    let want = "HTTP/1.1 308 Permanent Redirect\r\nlocation: http://b/p\r\ncontent-length: 0\r\n\
                heddle-route: HTTPRoute/shop/web[0]\r\nconnection: close\r\nx: y\r\n\r\n";
    assert_eq!(out, want);
}

#[test]
fn added_fields_cannot_end_a_line() {
    assert!(NewField::new("x", b"a b\tc\xe4").is_some());
    for (name, value) in [("x", "a\r\nb"), ("x", "a\0"), ("x y", ""), ("", "a"), ("x:", "a")] {
        assert!(NewField::new(name, value.as_bytes()).is_none(), "{name:?} {value:?}");
    }
}

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
    ResponseEdits { client: Version::Http11, close: false, rechunk: false, edits: &[], add: &[] };

const OLD: ResponseEdits<'static> = ResponseEdits { client: Version::Http10, ..PLAIN };
const CLOSE: ResponseEdits<'static> = ResponseEdits { close: true, ..PLAIN };
const RECHUNK: ResponseEdits<'static> = ResponseEdits { rechunk: true, ..PLAIN };
const OLD_RECHUNK: ResponseEdits<'static> =
    ResponseEdits { client: Version::Http10, rechunk: true, ..PLAIN };

/// Request, edits, what the server sent (after `HTTP/1.`), what the client gets (after
/// `HTTP/1.1 `), how its body follows, and whether its connection ends. `/` ends a line.
#[rustfmt::skip]
const RESPONSES: &[(RequestFacts, ResponseEdits<'_>, &str, &str, BodyDelivery, bool)] = &[
    (GET, PLAIN, "1 200 OK/A: b/Content-Length: 05", "200 OK/A: b/content-length: 5", Verbatim, false),
    (GET, CLOSE, "1 200 OK/Content-Length: 5", "200 OK/content-length: 5/connection: close", Verbatim, true),
    (GET, PLAIN, "1 200 OK/Content-Length: 5/Connection: close, X/X: y/Keep-Alive: 1", "200 OK/content-length: 5", Verbatim, false),
    (GET, PLAIN, "1 200 OK/heddle-not-delivered: 1/Heddle_Error: x/Content-Length: 0", "200 OK/content-length: 0", Verbatim, false),
    (GET, PLAIN, "1 200/Transfer-Encoding: CHUNKED", "200 /transfer-encoding: chunked", Verbatim, false),
    // A client of 1.0 knows no chunks, and keep-alive only by name.
    (GET, OLD, "1 200 OK/Trailer: X/Transfer-Encoding: chunked", "200 OK/connection: close", Payload, true),
    (GET, OLD, "1 200 OK/Content-Length: 5", "200 OK/content-length: 5/connection: keep-alive", Verbatim, false),
    (GET, OLD, "1 200 OK", "200 OK/connection: close", Verbatim, true),
    (HEAD, OLD, "1 200 OK/Transfer-Encoding: chunked", "200 OK/connection: keep-alive", Verbatim, false),
    // The end of a body by close is passed on, or made visible.
    (GET, PLAIN, "0 200 OK", "200 OK/connection: close", Verbatim, true),
    (GET, RECHUNK, "0 200 OK", "200 OK/transfer-encoding: chunked", Rechunk, false),
    (GET, OLD_RECHUNK, "0 200 OK", "200 OK/connection: close", Verbatim, true),
    (GET, RECHUNK, "1 200 OK/Content-Length: 5", "200 OK/content-length: 5", Verbatim, false),
    // No body, but its length.
    (HEAD, PLAIN, "1 200 OK/Content-Length: 5", "200 OK/content-length: 5", Verbatim, false),
    (HEAD, RECHUNK, "1 200 OK", "200 OK", Verbatim, false),
    (GET, PLAIN, "1 304 Not Modified/Content-Length: 5", "304 Not Modified/content-length: 5", Verbatim, false),
    (GET, PLAIN, "1 204 No Content/Content-Length: 5", "204 No Content", Verbatim, false),
    // Heads after which the exchange goes on.
    (GET, CLOSE, "1 103 Early Hints/Link: <a>/Connection: close", "103 Early Hints/Link: <a>", Verbatim, false),
    (CONNECT, OLD, "1 200 OK", "200 OK", Verbatim, false),
    (CONNECT, CLOSE, "1 200 OK/Content-Length: 5", "200 OK", Verbatim, false),
    (UPGRADE, CLOSE, "1 101 S/Connection: Upgrade/Upgrade: ws/A: b", "101 S/A: b/connection: upgrade/upgrade: ws", Verbatim, false),
    (GET, PLAIN, "1 426 No/Connection: Upgrade/Upgrade: h2c, ws/Content-Length: 0", "426 No/content-length: 0/connection: upgrade/upgrade: ws", Verbatim, false),
    (GET, PLAIN, "1 200 OK/Connection: Upgrade/Upgrade: h2,h2c/Content-Length: 0", "200 OK/content-length: 0", Verbatim, false),
];

#[test]
fn responses_on_the_way_back() {
    for (request, edits, sent, expected, body, close) in RESPONSES {
        let text = format!("HTTP/1.{}\r\n\r\n", sent.replace('/', "\r\n"));
        let (forwarded, delivery) = forward_response(*request, &text, edits);
        let expected = format!("HTTP/1.1 {}\r\n\r\n", expected.replace('/', "\r\n"));
        assert_eq!(forwarded, expected, "{sent}");
        assert_eq!(delivery, Delivery { body: *body, close: *close }, "{sent}");
    }
}

#[test]
fn a_client_of_1_0_gets_no_interim_head() {
    let (forwarded, delivery) =
        forward_response(GET, "HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", &OLD);
    assert_eq!(forwarded, "");
    assert_eq!(delivery, Delivery { body: Verbatim, close: false });
}

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
