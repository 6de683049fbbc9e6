//! Bodies, cut at every place.

use super::*;

const CHUNKED: &[u8] = b"5\r\nhello\r\n00A;a;b=c;d=\"e \\\" f\"\r\n, wonderfu\r\n1\r\nl\r\n\
                         0;last\r\nX-Sum: 1\r\nx-two: 2\r\n\r\n";

#[test]
fn a_chunked_body_means_the_same_wherever_it_is_cut() {
    let followed = [CHUNKED, b"GET /next HTTP/1.1\r\n"].concat();
    let whole = read_body(BodyFraming::Chunked, &followed, &[followed.len()]).unwrap();
    assert_eq!(whole.0, CHUNKED, "the next request is not a part of it");
    assert_eq!(whole.1, b"hello, wonderful");
    assert!(whole.2);
    for first in 1..followed.len() {
        let cut = read_body(BodyFraming::Chunked, &followed, &[first, followed.len()]).unwrap();
        assert_eq!(cut, whole, "cut at {first}");
        for second in 1..followed.len() - first {
            let sizes = [first, second, followed.len()];
            let cut = read_body(BodyFraming::Chunked, &followed, &sizes).unwrap();
            assert_eq!(cut, whole, "cut at {first} and {second} later");
        }
    }
    assert_eq!(read_body(BodyFraming::Chunked, &followed, &[1]).unwrap(), whole);
}

#[test]
fn what_stands_in_front_of_a_refused_trailer_section_is_all_that_is_forwarded() {
    let bytes = b"2\r\nhi\r\n0\r\nX: y\r\nHost: evil\r\n\r\n";
    let mut decoder = BodyDecoder::new(BodyFraming::Chunked, &Limits::STANDARD);
    let cut = bytes.len() - 10;
    let progress = decoder.advance(&bytes[..cut]).unwrap();
    assert_eq!(&bytes[..progress.raw], b"2\r\nhi\r\n0\r\n");
    assert!(!progress.done);
    assert_eq!(decoder.advance(&bytes[progress.raw..]), Err(Refusal::ForbiddenTrailer));
}

#[test]
fn a_length_is_counted_and_not_passed() {
    let outcome = read_body(BodyFraming::Length(5), b"helloGET /", &[3]).unwrap();
    assert_eq!(outcome, (b"hello".to_vec(), b"hello".to_vec(), true));
    let mut decoder = BodyDecoder::new(BodyFraming::Length(5), &Limits::STANDARD);
    decoder.advance(b"he").unwrap();
    assert_eq!(decoder.remaining(), Some(3));
    assert_eq!(decoder.finish_at_eof(), Err(Refusal::TruncatedBody));
}

#[test]
fn only_a_body_that_ends_with_the_connection_may_end_with_it() {
    let mut decoder = BodyDecoder::new(BodyFraming::UntilClose, &Limits::STANDARD);
    assert_eq!(decoder.advance(b"any\0thing"), Ok(Progress { raw: 9, done: false }));
    assert_eq!(decoder.finish_at_eof(), Ok(()));
    assert!(decoder.is_done());

    for framing in [BodyFraming::None, BodyFraming::Length(0)] {
        let mut decoder = BodyDecoder::new(framing, &Limits::STANDARD);
        assert_eq!(decoder.advance(b"GET /"), Ok(Progress { raw: 0, done: true }));
        assert_eq!(decoder.finish_at_eof(), Ok(()));
    }

    for length in 0..CHUNKED.len() {
        let mut decoder = BodyDecoder::new(BodyFraming::Chunked, &Limits::STANDARD);
        assert!(!decoder.advance(&CHUNKED[..length]).unwrap().done);
        assert_eq!(decoder.finish_at_eof(), Err(Refusal::TruncatedBody), "{length} bytes");
    }
}

#[test]
fn chunk_lines() {
    let check = |line: &str, expected: Result<usize, Refusal>| {
        let mut decoder = BodyDecoder::new(BodyFraming::Chunked, &Limits::STANDARD);
        let outcome = decoder.advance(line.as_bytes()).map(|progress| progress.raw);
        assert_eq!(outcome, expected, "{line}");
    };
    check("7fffffffffffffff\r\n", Ok(18));
    check("8000000000000000\r\n", Err(Refusal::ChunkTooLarge));
    check("0000000000000001\r\n", Ok(18));
    check("00000000000000001\r\n", Err(Refusal::BadChunkSize));
    check("5;a=\"\"\r\n", Ok(8));
    check("5;a=\"x\"y\r\n", Err(Refusal::BadChunkExtension));
    check("5;a=\r\n", Err(Refusal::BadChunkExtension));
    check("5;\r\n", Err(Refusal::BadChunkExtension));
    check("5;a=\"\u{e4}\"\r\n", Err(Refusal::BadChunkExtension));
    check(&format!("5;{}\r\n", "a".repeat(1023)), Ok(1027));
    check(&format!("5;{}\r\n", "a".repeat(1024)), Err(Refusal::ChunkExtensionTooLong));
}

#[test]
fn trailers_up_to_the_limit() {
    let section = |length: usize| format!("0\r\nX: {}\r\n\r\n", "y".repeat(length - 7));
    let limit = Limits::STANDARD.trailer_bytes;
    let good = section(limit);
    let outcome = read_body(BodyFraming::Chunked, good.as_bytes(), &[1]).unwrap();
    assert_eq!((outcome.0.len(), outcome.2), (good.len(), true));
    let bad = section(limit + 1);
    let outcome = read_body(BodyFraming::Chunked, bad.as_bytes(), &[bad.len()]);
    assert_eq!(outcome, Err(Refusal::TrailersTooLarge));
    // A caller whose buffer holds no more than the limit must not be asked to wait.
    let unfinished = &bad.as_bytes()[..b"0\r\n".len() + limit];
    let outcome = BodyDecoder::new(BodyFraming::Chunked, &Limits::STANDARD).advance(unfinished);
    assert_eq!(outcome, Err(Refusal::TrailersTooLarge));
}

#[test]
fn chunk_heads_are_what_the_decoder_reads() {
    for length in [1, 9, 15, 16, 255, 256, 4096, 65_535, 1 << 20] {
        let mut out = BytesMut::new();
        write_chunk_head(length, &mut out);
        assert_eq!(out, format!("{length:x}\r\n"));
    }
}
