//! Responses: framing by request and status, and what is not believed.

use super::*;

#[test]
fn framing_follows_request_status_and_fields() {
    use BodyFraming::{Chunked, Length, None, UntilClose};
    let check = |request, head: &str, framing, keep_alive| {
        let text = format!("HTTP/1.{head}\r\n\r\n");
        let (parsed, length) = parse_response(text.as_bytes(), request)
            .unwrap_or_else(|bad| panic!("{}: {text}", bad.reason()));
        assert_eq!(length, text.len());
        assert_eq!((parsed.framing(), parsed.keep_alive()), (framing, keep_alive), "{text}");
    };
    check(GET, "1 200 OK\r\nContent-Length: 5", Length(5), true);
    check(GET, "1 200 OK\r\nContent-Length: 5\r\nConnection: close", Length(5), false);
    check(GET, "1 200 OK\r\nTransfer-Encoding: chunked", Chunked, true);
    check(GET, "1 200 OK", UntilClose, false);
    check(GET, "0 200 OK", UntilClose, false);
    check(GET, "0 200 OK\r\nContent-Length: 5", Length(5), false);
    check(GET, "0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive", Length(5), true);
    check(GET, "1 204 No Content", None, true);
    check(GET, "1 204 No Content\r\nContent-Length: 0", None, true);
    check(GET, "1 204 No Content\r\nContent-Length: 5", None, false);
    check(GET, "1 204 No Content\r\nTransfer-Encoding: chunked", None, false);
    check(GET, "1 304 Not Modified\r\nContent-Length: 5", None, true);
    check(GET, "1 304 Not Modified", None, true);
    check(HEAD, "1 200 OK\r\nContent-Length: 5", None, true);
    check(HEAD, "1 200 OK\r\nTransfer-Encoding: chunked", None, true);
    check(HEAD, "1 200 OK", None, true);
    check(GET, "1 100 Continue", None, true);
    check(GET, "1 103 Early Hints\r\nLink: </a>", None, true);
    check(CONNECT, "1 200 OK\r\nContent-Length: 5", None, false);
    check(CONNECT, "1 407 No\r\nContent-Length: 5", Length(5), false);
    check(UPGRADE, "1 101 S\r\nUpgrade: websocket\r\nConnection: upgrade", None, false);
    check(UPGRADE, "1 200 OK\r\nContent-Length: 5", Length(5), false);
    check(
        GET,
        "1 200 OK\r\nConnection: Transfer-Encoding\r\nTransfer-Encoding: chunked",
        Chunked,
        true,
    );
}

#[test]
fn kinds_of_heads() {
    let check = |request, head: &str, interim, switches| {
        let text = format!("HTTP/1.1 {head}\r\n\r\n");
        let (parsed, _) = parse_response(text.as_bytes(), request).expect(&text);
        assert_eq!((parsed.is_interim(), parsed.switches()), (interim, switches), "{text}");
    };
    check(GET, "100 Continue", true, false);
    check(CONNECT, "103 Early", true, false);
    check(CONNECT, "200 OK", false, true);
    check(CONNECT, "302 Found\r\nContent-Length: 0", false, false);
    check(UPGRADE, "101 Switching\r\nUpgrade: a/1\r\nConnection: upgrade", false, true);
    check(UPGRADE, "200 OK", false, false);
}

#[test]
fn status_lines() {
    let check = |line: &str, status, reason: &[u8]| {
        let text = format!("{line}\r\n\r\n");
        let (parsed, _) = parse_response(text.as_bytes(), GET).expect(&text);
        assert_eq!((parsed.status(), parsed.reason(text.as_bytes())), (status, reason));
    };
    check("HTTP/1.1 200 OK", 200, b"OK");
    check("HTTP/1.0 404 Not  Found ", 404, b"Not  Found ");
    check("HTTP/1.1 200 ", 200, b"");
    check("HTTP/1.1 200", 200, b"");
    check("HTTP/1.1 999 \u{e4}", 999, "\u{e4}".as_bytes());
}

#[test]
fn interim_heads_and_the_final_one_are_parsed_with_one_object() {
    let bytes = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n\
                  HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    let mut head = ResponseHead::new();
    let mut rest = bytes.as_slice();
    let mut seen = Vec::new();
    loop {
        let length = head.parse(rest, &Limits::STANDARD, GET).unwrap().unwrap();
        seen.push((head.status(), head.fields().len()));
        rest = &rest[length..];
        if !head.is_interim() {
            break;
        }
    }
    assert_eq!(seen, [(100, 0), (103, 1), (200, 1)]);
    assert_eq!((head.framing(), rest), (BodyFraming::Length(2), b"hi".as_slice()));
}
