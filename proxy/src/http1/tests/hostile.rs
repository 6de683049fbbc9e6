//! The table in `tests/data/http1-hostile.txt`, which the end-to-end smuggling test reads as well.

use super::*;

struct Row {
    name: &'static str,
    expected: &'static str,
    bytes: Vec<u8>,
}

fn rows() -> Vec<Row> {
    include_str!("../../../../tests/data/http1-hostile.txt")
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let parts: Vec<_> = line.splitn(3, " | ").collect();
            let [name, expected, bytes] = parts[..] else { panic!("three columns: {line}") };
            Row { name, expected, bytes: unescape(bytes) }
        })
        .collect()
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
fn every_hostile_framing_is_refused_for_its_reason_however_it_is_cut() {
    let rows = rows();
    assert!(rows.len() >= 75, "only {} rows", rows.len());
    let mut wrong = Vec::new();
    for row in &rows {
        for size in [usize::MAX / 2, 1, 7] {
            let found = match first_refusal(&row.bytes, size) {
                Ok(requests) => format!("{requests} requests accepted"),
                Err(refusal) => format!("{} {}", refusal.status(), refusal.reason()),
            };
            if found != row.expected {
                wrong.push(format!("{}: {found}, not {} ({size})", row.name, row.expected));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn names_of_rows_are_unique() {
    let mut names: Vec<_> = rows().into_iter().map(|row| row.name).collect();
    names.sort_unstable();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "{names:?}");
}

#[test]
fn every_refusal_has_its_own_reason_and_a_row_or_says_why_not() {
    let rows = rows();
    let mut reasons: Vec<_> = Refusal::ALL.iter().map(|refusal| refusal.reason()).collect();
    for refusal in Refusal::ALL {
        let tried =
            rows.iter().any(|row| row.expected.ends_with(&format!(" {}", refusal.reason())));
        // Only the end of a connection makes a body truncated.
        assert_eq!(tried, refusal != Refusal::TruncatedBody, "{refusal:?}");
    }
    reasons.sort_unstable();
    reasons.dedup();
    assert_eq!(reasons.len(), Refusal::ALL.len());
}
