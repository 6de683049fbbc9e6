//! Properties that no table can exhaust.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// Pieces of heads, good and bad, so that random sequences come near to real ones.
const PIECES: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "POST /a?b HTTP/1.1\r\n",
    "CONNECT a:1 HTTP/1.1\r\n",
    "OPTIONS * HTTP/1.0\r\n",
    "GET http://a/b HTTP/1.1\r\n",
    "Host: a\r\n",
    "Content-Length: 3\r\n",
    "Content-Length: 0\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Connection: close, x-hop\r\n",
    "Connection: upgrade\r\n",
    "Upgrade: h2c, websocket\r\n",
    "X-Hop: 1\r\n",
    "X-End: a, b\r\n",
    "heddle-client-id: x\r\n",
    "heddle_client_id: x\r\n",
    "TE: trailers\r\n",
    "Expect: 100-continue\r\n",
    "\r\n",
    "\r\n\r\n",
    "3\r\nabc\r\n",
    "0\r\n\r\n",
    "0\r\nX: y\r\n\r\n",
    "abc",
    " ",
    "\t",
    "\r",
    "\n",
    "\0",
    "\u{e4}",
    ":",
    ";a=\"b\"",
];

fn near_http() -> impl Strategy<Value = Vec<u8>> {
    let pieces = vec(prop::sample::select(PIECES), 0..12);
    prop_oneof![
        9 => pieces.prop_map(|pieces| pieces.concat().into_bytes()),
        1 => vec(any::<u8>(), 0..64),
    ]
}

/// A good request: head fields in any order, always with a host.
fn good_request() -> impl Strategy<Value = String> {
    let first = prop::sample::select(&[
        "GET /a?b HTTP/1.1",
        "POST / HTTP/1.1",
        "GET http://b:8/c HTTP/1.1",
        "DELETE /x HTTP/1.0",
    ]);
    let field = prop_oneof![
        "[A-Za-z][A-Za-z0-9-]{0,12}".prop_map(|name| format!("x-{name}")),
        Just("Keep-Alive".to_owned()),
        Just("Proxy-Connection".to_owned()),
        Just("Heddle-Client-Id".to_owned()),
        Just("HTTP2-Settings".to_owned()),
        Just("Trailer".to_owned()),
        Just("Idempotency-Key".to_owned()),
    ];
    let value = "[ -~\t]{0,24}";
    let framing = prop::sample::select(&["", "Content-Length: 03\r\n"]);
    let connection = prop::sample::select(&[
        "",
        "Connection: close\r\n",
        "Connection: keep-alive, Upgrade\r\nUpgrade: foo, h2c\r\n",
    ]);
    (first, vec((field, value), 0..10), framing, connection).prop_map(
        |(first, fields, framing, connection)| {
            let fields: String =
                fields.iter().map(|(name, value)| format!("{name}:{value}\r\n")).collect();
            format!("{first}\r\n{connection}Host: a\r\n{fields}{framing}\r\n")
        },
    )
}

/// What must survive a hop.
fn end_to_end(head: &RequestHead, buf: &[u8]) -> Vec<(Vec<u8>, Vec<u8>)> {
    head.fields()
        .iter()
        .filter(|field| {
            matches!(field.kind, FieldKind::Other | FieldKind::Trailer | FieldKind::IdempotencyKey)
        })
        .map(|field| (field.name.of(buf).to_vec(), field.value.of(buf).to_vec()))
        .collect()
}

proptest! {
    #[test]
    fn a_request_means_the_same_after_a_hop(sent in good_request()) {
        let (before, length) = parse_request(sent.as_bytes()).unwrap();
        prop_assert_eq!(length, sent.len());
        let forwarded = forward_request(&sent);
        let (after, length) = parse_request(forwarded.as_bytes()).unwrap();
        prop_assert_eq!(length, forwarded.len());
        let (old, new) = (sent.as_bytes(), forwarded.as_bytes());
        prop_assert_eq!(before.method(old), after.method(new));
        prop_assert_eq!(before.path(old), after.path(new));
        prop_assert_eq!(before.query(old), after.query(new));
        prop_assert_eq!(before.authority(old), after.authority(new));
        prop_assert_eq!(before.framing(), after.framing());
        prop_assert_eq!(before.wants_upgrade(), after.wants_upgrade());
        prop_assert_eq!(end_to_end(&before, old), end_to_end(&after, new));
        prop_assert!(after.fields().iter().all(|field| field.kind != FieldKind::Heddle));
        prop_assert_eq!(&forward_request(&forwarded), &forwarded, "a second hop changes nothing");
    }

    #[test]
    fn a_request_head_is_judged_the_same_in_pieces(bytes in near_http()) {
        let whole = RequestHead::new().parse(&bytes, &Limits::STANDARD);
        let mut head = RequestHead::new();
        let pieces = (1..=bytes.len())
            .find_map(|shown| head.parse(&bytes[..shown], &Limits::STANDARD).transpose())
            .transpose();
        prop_assert_eq!(whole, pieces);
    }

    #[test]
    fn a_head_ends_at_the_first_empty_line_or_not_at_all(bytes in near_http()) {
        if let Ok(Some(length)) = RequestHead::new().parse(&bytes, &Limits::STANDARD) {
            let skipped = if bytes.starts_with(b"\r\n") { 2 } else { 0 };
            let end = bytes[skipped..].windows(4).position(|four| four == b"\r\n\r\n").unwrap();
            prop_assert_eq!(length, skipped + end + 4);
        }
    }

    #[test]
    fn a_forwarded_head_is_never_refused_by_the_next_hop(bytes in near_http()) {
        let mut head = RequestHead::new();
        if let Ok(Some(length)) = head.parse(&bytes, &Limits::STANDARD) {
            let edits = RequestEdits {
                target: RequestTarget::AsSent,
                host_if_missing: ADDRESS,
                close: false,
                host: None,
                edits: &[],
                add: &[],
            };
            let mut out = BytesMut::new();
            write_request_head(&head, &bytes[..length], &edits, &mut out);
            let (again, parsed) = parse_request(&out).unwrap();
            prop_assert_eq!(parsed, out.len());
            let same = head.framing() == again.framing();
            prop_assert!(same || head.is_connect());
        }
    }

    #[test]
    fn a_body_means_the_same_in_pieces_and_never_takes_what_follows(
        payloads in vec(vec(any::<u8>(), 1..40), 0..6),
        trailers in vec("x-[a-z]{1,5}: [a-z]{0,9}\r\n", 0..4),
        following in vec(any::<u8>(), 0..20),
        sizes in vec(1..30_usize, 1..10),
    ) {
        let mut sent = BytesMut::new();
        for payload in &payloads {
            write_chunk_head(payload.len(), &mut sent);
            sent.extend_from_slice(payload);
            sent.extend_from_slice(CHUNK_END);
        }
        sent.extend_from_slice(b"0\r\n");
        sent.extend_from_slice(trailers.concat().as_bytes());
        sent.extend_from_slice(b"\r\n");
        let followed = [&sent[..], &following].concat();
        let (raw, payload, done) = read_body(BodyFraming::Chunked, &followed, &sizes).unwrap();
        prop_assert!(done);
        prop_assert_eq!(&raw[..], &sent[..]);
        prop_assert_eq!(payload, payloads.concat());
    }

    #[test]
    fn any_chunked_bytes_are_judged_the_same_in_pieces(
        bytes in near_http(),
        sizes in vec(1..9_usize, 1..6),
    ) {
        let bytes = [b"3\r\nabc\r\n", bytes.as_slice()].concat();
        let whole = read_body(BodyFraming::Chunked, &bytes, &[bytes.len()]);
        prop_assert_eq!(read_body(BodyFraming::Chunked, &bytes, &sizes), whole);
    }

    #[test]
    fn a_response_head_is_judged_the_same_in_pieces(bytes in near_http(), ok: bool) {
        let start: &[u8] = if ok { b"HTTP/1.1 200 OK\r\n" } else { b"" };
        let bytes = [start, &bytes].concat();
        let whole = ResponseHead::new().parse(&bytes, &Limits::STANDARD, GET);
        let mut head = ResponseHead::new();
        let pieces = (1..=bytes.len())
            .find_map(|shown| head.parse(&bytes[..shown], &Limits::STANDARD, GET).transpose())
            .transpose();
        prop_assert_eq!(whole, pieces);
    }
}
