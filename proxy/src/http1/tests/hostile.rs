//! The tables in `tests/data/http1-hostile*.txt`, which the end-to-end smuggling test reads as well.

use super::*;

const REQUESTS: &str = include_str!("../../../../tests/data/http1-hostile.txt");
const RESPONSES: &str = include_str!("../../../../tests/data/http1-hostile-responses.txt");

/// The rows of a table, split into as many columns as it has.
fn rows<const COLUMNS: usize>(table: &str) -> impl Iterator<Item = [&str; COLUMNS]> {
    table.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).map(|line| {
        let columns: Vec<_> = line.splitn(COLUMNS, " | ").collect();
        columns.try_into().unwrap_or_else(|_| panic!("{COLUMNS} columns: {line}"))
    })
}

/// `\r \n \t \\ \xNN`, and `\{N:text}` for N times the text.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let (escape, after) = rest[at + 1..].split_at(1);
        rest = after;
        match escape {
            "r" => bytes.push(b'\r'),
            "n" => bytes.push(b'\n'),
            "t" => bytes.push(b'\t'),
            "\\" => bytes.push(b'\\'),
            "x" => {
                bytes.push(u8::from_str_radix(&rest[..2], 16).expect("two hex digits"));
                rest = &rest[2..];
            }
            "{" => {
                let (repeat, after) = rest.split_once('}').expect("a closing brace");
                let (times, text) = repeat.split_once(':').expect("times and text");
                let times: usize = times.parse().expect("a number");
                bytes.extend(unescape(text).repeat(times));
                rest = after;
            }
            other => panic!("unknown escape {other} in {text}"),
        }
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// Reads requests until one is refused, fed in pieces of `size` bytes.
fn first_refusal(bytes: &[u8], size: usize) -> Result<usize, Refusal> {
    let mut head = RequestHead::new();
    let mut requests = 0;
    let mut start = 0;
    while start < bytes.len() {
        let mut shown = start;
        let length = loop {
            shown = (shown + size).min(bytes.len());
            match head.parse(&bytes[start..shown], &Limits::STANDARD)? {
                Some(length) => break length,
                None if shown == bytes.len() => return Ok(requests),
                None => {}
            }
        };
        start += length;
        let (raw, _, done) = read_body(head.framing(), &bytes[start..], &[size])?;
        start += raw.len();
        if !done {
            return Ok(requests);
        }
        requests += 1;
    }
    Ok(requests)
}

#[test]
fn every_hostile_request_is_refused_for_its_reason_however_it_is_cut() {
    let mut wrong = Vec::new();
    let mut count = 0;
    for [name, expected, bytes] in rows(REQUESTS) {
        count += 1;
        for size in [usize::MAX / 2, 1, 7] {
            let found = match first_refusal(&unescape(bytes), size) {
                Ok(requests) => format!("{requests} requests accepted"),
                Err(refusal) => format!("{} {}", refusal.status(), refusal.reason()),
            };
            if found != expected {
                wrong.push(format!("{name}: {found}, not {expected} ({size})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(count >= 75, "only {count} rows");
}

#[test]
fn every_hostile_response_is_refused_for_its_reason_however_it_is_cut() {
    let mut wrong = Vec::new();
    for [name, request, expected, bytes] in rows(RESPONSES) {
        let request = match request {
            "get" => GET,
            "head" => HEAD,
            "connect" => CONNECT,
            "upgrade" => UPGRADE,
            other => panic!("{name}: unknown request {other}"),
        };
        let bytes = unescape(bytes);
        for size in [bytes.len(), 1, 7] {
            let mut head = ResponseHead::new();
            let outcome = (1..=bytes.len().div_ceil(size)).find_map(|pieces| {
                let shown = bytes.len().min(pieces * size);
                head.parse(&bytes[..shown], &Limits::STANDARD, request).transpose()
            });
            let found = match outcome {
                Some(Err(bad)) => bad.reason(),
                Some(Ok(_)) => "accepted",
                None => "waited for more",
            };
            if found != expected {
                wrong.push(format!("{name}: {found}, not {expected} ({size})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn names_of_rows_are_unique() {
    for table in [REQUESTS, RESPONSES] {
        let mut names: Vec<_> = rows(table).map(|[name, _]| name).collect();
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}

#[test]
fn every_refusal_has_its_own_reason_and_a_row() {
    let mut reasons: Vec<_> = Refusal::ALL.iter().map(|refusal| refusal.reason()).collect();
    for refusal in Refusal::ALL {
        let expected = format!("{} {}", refusal.status(), refusal.reason());
        let tried = rows(REQUESTS).any(|[_, row, _]| row == expected);
        // Only the end of a connection makes a body truncated.
        assert_eq!(tried, refusal != Refusal::TruncatedBody, "{refusal:?}");
    }
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), Refusal::ALL.len());
}
