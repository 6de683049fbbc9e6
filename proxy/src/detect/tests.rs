//! Protocols as they begin, and every way to cut them.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::http1::RequestHead;

const HELLO: &[u8] = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03";

#[test]
fn first_bytes_of_clients() {
    use Verdict::{Http1, Http2, NeedMore, Opaque, Tls};
    let long = |length| [b"GET /".as_slice(), &vec![b'a'; length]].concat();
    let rows: &[(&[u8], Verdict)] = &[
        (b"", NeedMore),
        (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", Http1),
        (b"GET / HTTP/1.0", Http1),
        (b"GET / HTTP/1.9", Http1),
        (b"GET / HTTP/1.", NeedMore),
        (b"GET / HTTP/", NeedMore),
        (b"GET /", NeedMore),
        (b"GET ", NeedMore),
        (b"GET", NeedMore),
        (b"M-SEARCH * HTTP/1.1\r\n", Http1),
        (b"MY_OWN!METHOD http://a/b HTTP/1.1\r\n", Http1),
        (b"GET / HTTP/2.0\r\n", Opaque),
        (b"GET / http/1.1\r\n", Opaque),
        (b"GET / HTTP/1.x", Opaque),
        (b"GET  / HTTP/1.1", Opaque),
        (b"GET /a b HTTP/1.1", Opaque),
        (b"GET /\r\n", Opaque),
        (b"GET\r", Opaque),
        (b" GET", Opaque),
        (b"\r", NeedMore),
        (b"\r\n", NeedMore),
        (b"\r\nGET / HTTP/1.1", Http1),
        (b"\r\n\r", Opaque),
        (b"\rG", Opaque),
        (b"\n", Opaque),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Http2),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12\x04", Http2),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", NeedMore),
        (b"PRI * HTTP/2.0\r\n\r\nSX", Opaque),
        (b"PRI * HTTP/1.1\r\n", Http1),
        (b"PRI", NeedMore),
        (b"PRIX / HTTP/1.1", Http1),
        (HELLO, Tls),
        (b"\x16\x03\x01\x00\x01\x01", Tls),
        (b"\x16\x03\x01\x02\x00", NeedMore),
        (b"\x16", NeedMore),
        (b"\x16\x03\x01\x02\x00\x02", Opaque),
        (b"\x16\x02", Opaque),
        (b"\x16\x03\x05", Opaque),
        (b"\x16\x03\x01\x00\x00", Opaque),
        (b"\x16\x03\x01\x40\x01", Opaque),
        (b"\x15\x03\x01", Opaque),
        // PostgreSQL's SSLRequest and start-up, Redis, MongoDB, memcached, Kafka, SSH, AMQP, FIX
        (b"\0\0\0\x08\x04\xd2\x16\x2f", Opaque),
        (b"*1\r\n$4\r\nPING\r\n", Opaque),
        (b"PING\r\n", Opaque),
        (b"SET a b\r\n", Opaque),
        (b"get key\r\n", Opaque),
        (b"\x3f\0\0\0\x01\0\0\0", Opaque),
        (b"SSH-2.0-OpenSSH_9.2\r\n", Opaque),
        (b"AMQP\0\0\x09\x01", Opaque),
        (b"8=FIX.4.4\x019=65", Opaque),
        (b"EHLO a.example\r\n", Opaque),
        (b"\xff", Opaque),
    ];
    for (bytes, expected) in rows {
        assert_eq!(client_first(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
    }
    assert_eq!(client_first(&[b'M'; 32]), NeedMore);
    assert_eq!(client_first(&[b'M'; 33]), Opaque);
    assert_eq!(client_first(&long(LOOK_AHEAD - 2)), NeedMore);
    assert_eq!(client_first(&long(LOOK_AHEAD - 1)), Opaque);
    assert_eq!(client_first(&[&long(30_000)[..], b" HTTP/1.1\r\n"].concat()), Http1);
}

#[test]
fn first_bytes_of_servers() {
    use ServerVerdict::{Http2Settings, HttpResponse, NeedMore, Opaque};
    let rows: &[(&[u8], ServerVerdict)] = &[
        (b"", NeedMore),
        (b"HTTP", NeedMore),
        (b"HTTP/1.", HttpResponse),
        (b"HTTP/1.1 408 Request Timeout\r\n", HttpResponse),
        (b"HTTP/2", Opaque),
        (b"220 mail ESMTP\r\n", Opaque),
        (b"\x5b\0\0\0\x0a11.4.3-MariaDB", Opaque),
        (b"H", NeedMore),
        (b"HELLO", Opaque),
        (b"\0\0\x0c\x04\0\0\0\0\0\0\x03\0\0\0\x64", Http2Settings),
        (b"\0\0\0\x04\0\0\0\0\0", Http2Settings),
        (b"\0\0\0\x04\0\0\0\0", NeedMore),
        (b"\0", NeedMore),
        (b"\0\0\x07", Opaque),
        (b"\0\0\x06\x04\x01\0\0\0\0", Opaque),
        (b"\0\0\x06\x08\0\0\0\0\0", Opaque),
    ];
    for (bytes, expected) in rows {
        assert_eq!(server_first(bytes), *expected, "{:?}", String::from_utf8_lossy(bytes));
    }
}

const BEGINNINGS: &[&[u8]] = &[
    b"",
    b"GET / HTTP/1.1\r\n",
    b"GET /a",
    b"POST ",
    HTTP2_PREFACE,
    b"PRI * HTTP/2.0\r\n",
    b"PRI * HTTP/1.",
    HELLO,
    b"\x16\x03",
    b"HTTP/1.1 ",
    b"\0\0\0\x08",
    b"\0\0\x06\x04\0\0\0\0\0",
];

fn beginnings() -> impl Strategy<Value = Vec<u8>> {
    let starts = prop::sample::select(BEGINNINGS);
    (starts, 0..30_usize, vec(any::<u8>(), 0..20))
        .prop_map(|(start, kept, rest)| [&start[..kept.min(start.len())], &rest].concat())
}

proptest! {
    /// So a caller that asks after every segment comes to the same end as one that asks once.
    #[test]
    fn a_verdict_never_changes_when_more_bytes_follow(bytes in beginnings()) {
        let mut decided = Verdict::NeedMore;
        let mut server = ServerVerdict::NeedMore;
        for shown in 0..=bytes.len() {
            let verdict = client_first(&bytes[..shown]);
            prop_assert!(decided == Verdict::NeedMore || verdict == decided, "at {}", shown);
            decided = verdict;
            let verdict = server_first(&bytes[..shown]);
            prop_assert!(server == ServerVerdict::NeedMore || verdict == server, "at {}", shown);
            server = verdict;
        }
    }

    /// What the codec accepts must not have been taken for opaque, or it would pass unjudged.
    #[test]
    fn whatever_the_codec_accepts_is_detected(
        before in prop::sample::select(&["", "\r\n"]),
        method in "[!#$%&'*+.^_`|~0-9A-Za-z-]{1,33}",
        target in "(/|http://a|)[!-~]{0,60}",
        version in "HTTP/1[.][0-9]",
    ) {
        let head = format!("{before}{method} {target} {version}\r\nHost: a\r\n\r\n");
        let parsed = RequestHead::new().parse(head.as_bytes(), &Limits::STANDARD);
        if parsed.is_ok() {
            prop_assert_eq!(client_first(head.as_bytes()), Verdict::Http1);
        }
    }
}
