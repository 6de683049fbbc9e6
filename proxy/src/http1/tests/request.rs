//! Good requests: what is read from them.

use super::*;

fn accept(bytes: &str) -> (RequestHead, &[u8]) {
    let bytes = bytes.as_bytes();
    let (head, length) = parse_request(bytes).unwrap_or_else(|refusal| {
        panic!("{}: {}", refusal.reason(), String::from_utf8_lossy(bytes))
    });
    assert_eq!(length, bytes.len());
    (head, bytes)
}

#[test]
fn a_plain_request_is_read_whole() {
    let (head, buf) = accept(
        "POST /a/b?c=d?e HTTP/1.1\r\nHost: web.shop:8080\r\nX-One:  a b\t\r\nx-one:\r\n\
         Content-Length: 5\r\n\r\n",
    );
    assert_eq!(head.method(buf), "POST");
    assert_eq!(head.target(buf), "/a/b?c=d?e");
    assert_eq!(head.target_form(), TargetForm::Origin);
    assert_eq!((head.path(buf), head.query(buf)), ("/a/b", Some("c=d?e")));
    assert_eq!(head.authority(buf), Some("web.shop:8080"));
    assert_eq!(head.version(), Version::Http11);
    assert_eq!(head.framing(), BodyFraming::Length(5));
    assert!(head.keep_alive());
    let values: Vec<_> = head.field(buf, "X-ONE").collect();
    assert_eq!(values, [b"a b".as_slice(), b""]);
    let kinds: Vec<_> = head.fields().iter().map(|field| field.kind).collect();
    let expected = [FieldKind::Host, FieldKind::Other, FieldKind::Other, FieldKind::ContentLength];
    assert_eq!(kinds, expected);
}

#[test]
fn targets() {
    let check = |line: &str, form, path: &str, query: Option<&str>, authority: &str| {
        let text = format!("{line} HTTP/1.1\r\nHost: from.host\r\n\r\n");
        let (head, buf) = accept(&text);
        assert_eq!(head.target_form(), form, "{line}");
        assert_eq!((head.path(buf), head.query(buf)), (path, query), "{line}");
        assert_eq!(head.authority(buf), Some(authority), "{line}");
    };
    use TargetForm::{Absolute, Asterisk, Authority, Origin};
    check("GET /", Origin, "/", None, "from.host");
    check("GET /?", Origin, "/", Some(""), "from.host");
    check("GET //a/../%2F|{}", Origin, "//a/../%2F|{}", None, "from.host");
    check("GET http://a", Absolute, "/", None, "a");
    check("GET HTTP://A:81?q", Absolute, "/", Some("q"), "A:81");
    check("GET http://[::1]:8/p?q", Absolute, "/p", Some("q"), "[::1]:8");
    check("OPTIONS http://a", Absolute, "*", None, "a");
    check("OPTIONS *", Asterisk, "*", None, "from.host");
    check("OPTIONS /x", Origin, "/x", None, "from.host");
    check("CONNECT a.b:443", Authority, "", None, "a.b:443");
    check("CONNECT [2001:db8::1]:443", Authority, "", None, "[2001:db8::1]:443");
}

#[test]
fn hosts() {
    for host in ["a", "a.", "A_b-c.d~", "10.0.0.1:1", "[::1]", "[fe80::1]:65535", "a:0"] {
        let text = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
        let (head, buf) = accept(&text);
        assert_eq!(head.authority(buf), Some(host));
    }
}

#[test]
fn keep_alive_follows_version_and_connection() {
    let check = |version: &str, connection: &str, expected: bool| {
        let text = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        assert_eq!(accept(&text).0.keep_alive(), expected, "{text}");
    };
    check("1.1", "", true);
    check("1.1", "Connection: close\r\n", false);
    check("1.1", "Connection: x, CLOSE\r\n", false);
    check("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false);
    check("1.0", "", false);
    check("1.0", "Connection: Keep-Alive\r\n", true);
    check("1.0", "Connection: keep-alive, close\r\n", false);
    check("1.0", "Proxy-Connection: keep-alive\r\n", false);
}

#[test]
fn upgrades_are_offered_only_with_their_option_and_never_to_another_http() {
    let check = |fields: &str, expected: bool| {
        let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        assert_eq!(accept(&text).0.wants_upgrade(), expected, "{text}");
    };
    check("Upgrade: websocket\r\nConnection: Upgrade\r\n", true);
    check("Upgrade: h2c, websocket\r\nConnection: keep-alive, upgrade\r\n", true);
    check("Upgrade: SPDY/3.1\r\nConnection: upgrade\r\n", true);
    check("Upgrade: websocket\r\n", false);
    check("Connection: upgrade\r\n", false);
    check("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: x\r\n", false);
    check("Upgrade: H2C, h2, HTTP/2.0\r\nConnection: upgrade\r\n", false);
    check("Upgrade: a b\r\nConnection: upgrade\r\n", false);
    let old = "GET / HTTP/1.0\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n";
    assert!(!accept(old).0.wants_upgrade());
}

#[test]
fn facts_about_the_request() {
    let (head, _) = accept(
        "PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-Continue\r\nTransfer-Encoding: Chunked\r\n\
         Idempotency-Key: 1\r\n\r\n",
    );
    assert!(head.expects_continue() && head.has_idempotency_key());
    assert_eq!(head.framing(), BodyFraming::Chunked);
    let (head, _) = accept("PUT / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\n\r\n");
    assert!(!head.expects_continue(), "nothing would follow the 100");
    assert_eq!(head.framing(), BodyFraming::None);
    let (head, _) = accept("HEAD / HTTP/1.0\r\nContent-Length: 000\r\n\r\n");
    assert!(head.is_head() && !head.is_connect());
    assert_eq!(head.framing(), BodyFraming::Length(0));
    let (head, _) = accept("CONNECT a:1 HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n");
    assert!(head.is_connect());
}

#[test]
fn one_empty_line_before_a_request_is_forgiven() {
    let (head, buf) = accept("\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_eq!((head.method(buf), head.path(buf)), ("GET", "/x"));
}

#[test]
fn a_head_is_used_again_for_pipelined_requests() {
    let bytes = b"GET /1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n\
                  POST /2 HTTP/1.0\r\nContent-Length: 1\r\n\r\nxGET /3";
    let mut head = RequestHead::new();
    let first = head.parse(bytes, &Limits::STANDARD).unwrap().unwrap();
    assert!(!head.keep_alive());
    assert_eq!(head.path(bytes), "/1");
    let rest = &bytes[first..];
    let second = head.parse(rest, &Limits::STANDARD).unwrap().unwrap();
    assert_eq!(head.path(rest), "/2");
    assert_eq!((head.fields().len(), head.version()), (1, Version::Http10));
    assert_eq!(head.framing(), BodyFraming::Length(1));
    let rest = &rest[second + 1..];
    assert_eq!(head.parse(rest, &Limits::STANDARD), Ok(None));
}

#[test]
fn exactly_the_limits_are_accepted() {
    let limits = Limits { head_bytes: 64, fields: 3, name_bytes: 4, ..Limits::STANDARD };
    let check = |bytes: &str, expected| {
        let outcome = RequestHead::new().parse(bytes.as_bytes(), &limits);
        assert_eq!(outcome.map(|length| length.is_some()), expected, "{bytes}");
    };
    let start = "GET / HTTP/1.1\r\nHost: a\r\n";
    let fill = "y".repeat(64 - start.len() - 7);
    check(&format!("{start}X: {fill}\r\n\r\n"), Ok(true));
    check(&format!("{start}X: {fill}y\r\n\r\n"), Err(Refusal::HeadTooLarge));
    check(&format!("{start}X: {fill}y\r\n\r"), Err(Refusal::HeadTooLarge));
    check(&format!("{start}a:\r\nb:\r\n\r\n"), Ok(true));
    check(&format!("{start}a:\r\nb:\r\nc:\r\n\r\n"), Err(Refusal::TooManyFields));
    check(&format!("{start}abcd:\r\n\r\n"), Ok(true));
    check(&format!("{start}abcde:\r\n\r\n"), Err(Refusal::FieldNameTooLong));
    let method = "M".repeat(32);
    check(&format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n"), Ok(true));
}

#[test]
fn a_slow_sender_costs_no_more_than_a_fast_one() {
    let text = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\nY: z\r\n\r\n", "y".repeat(20_000));
    let bytes = text.as_bytes();
    let mut head = RequestHead::new();
    for shown in 0..bytes.len() {
        assert_eq!(head.parse(&bytes[..shown], &Limits::STANDARD), Ok(None));
    }
    assert_eq!(head.parse(bytes, &Limits::STANDARD), Ok(Some(bytes.len())));
    assert_eq!(head.fields().len(), 3);
    assert_eq!(head.field(bytes, "y").collect::<Vec<_>>(), [b"z"]);
}

#[test]
fn nominated_fields_are_for_this_hop_only() {
    let (head, buf) = accept(
        "GET / HTTP/1.1\r\nHost: a\r\nX-Hop: 1\r\nConnection: x-hop\r\nx-hop: 2\r\nX-End: 3\r\n\r\n",
    );
    assert_eq!(head.field(buf, "x-hop").count(), 0);
    assert_eq!(head.field(buf, "x-end").count(), 1);
}
