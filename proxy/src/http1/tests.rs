//! The codec against tables of good and hostile messages, and against properties.

mod body;
mod hostile;
mod properties;
mod request;
mod response;
mod write;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use bytes::BytesMut;

use super::*;

const ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1)), 80);

fn parse_request(bytes: &[u8]) -> Result<(RequestHead, usize), Refusal> {
    let mut head = RequestHead::new();
    let length = head.parse(bytes, &Limits::STANDARD)?.expect("a complete head");
    Ok((head, length))
}

fn forward_request(bytes: &str) -> String {
    let (head, _) = parse_request(bytes.as_bytes()).expect("a good request");
    let edits = RequestEdits {
        target: RequestTarget::Origin,
        host_if_missing: ADDRESS,
        close: false,
        host: None,
        edits: &[],
        add: &[],
    };
    let mut out = BytesMut::new();
    write_request_head(&head, bytes.as_bytes(), &edits, &mut out);
    String::from_utf8(out.to_vec()).expect("ASCII in, ASCII out")
}

const GET: RequestFacts = RequestFacts { head: false, connect: false, upgrade: false };
const HEAD: RequestFacts = RequestFacts { head: true, ..GET };
const CONNECT: RequestFacts = RequestFacts { connect: true, ..GET };
const UPGRADE: RequestFacts = RequestFacts { upgrade: true, ..GET };

fn parse_response(
    bytes: &[u8],
    request: RequestFacts,
) -> Result<(ResponseHead, usize), BadResponse> {
    let mut head = ResponseHead::new();
    let length = head.parse(bytes, &Limits::STANDARD, request)?.expect("a complete head");
    Ok((head, length))
}

#[test]
fn the_fast_scan_of_values_agrees_with_the_table() {
    for length in 0..20 {
        for at in 0..length {
            for byte in 0..=u8::MAX {
                let mut value = vec![b'v'; length];
                value[at] = byte;
                let bad = (!chars::is(chars::VALUE, byte)).then_some(byte);
                assert_eq!(chars::find_bad_value_byte(&value), bad, "{byte:#x} at {at}");
            }
        }
    }
}

/// Reads one body in pieces of the given sizes (the last repeats), as a driver would: what is not
/// taken is shown again with what follows. Returns what was forwarded and its payload.
fn read_body(
    framing: BodyFraming,
    bytes: &[u8],
    sizes: &[usize],
) -> Result<(Vec<u8>, Vec<u8>, bool), Refusal> {
    let mut decoder = BodyDecoder::new(framing, &Limits::STANDARD);
    let (mut raw, mut payload) = (Vec::new(), Vec::new());
    let mut shown = 0;
    let mut sizes = sizes.iter().chain(std::iter::repeat(sizes.last().expect("a size")));
    loop {
        shown = (shown + sizes.next().expect("endless")).min(bytes.len());
        let piece = &bytes[raw.len()..shown];
        let progress =
            decoder.advance_with(piece, |range| payload.extend_from_slice(&piece[range]))?;
        raw.extend_from_slice(&piece[..progress.raw]);
        assert_eq!(progress.done, decoder.is_done());
        if progress.done || shown == bytes.len() {
            return Ok((raw, payload, progress.done));
        }
    }
}
