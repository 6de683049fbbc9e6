//! The bodies the server can answer with: sized, chunked, endless, broken off, with trailers.
//! Content is a fixed pattern, so that whoever receives it can check every byte.

use std::convert::Infallible;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::{self, Stream, StreamExt as _};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;

pub type Body = UnsyncBoxBody<Bytes, io::Error>;

/// Byte `i` of a patterned body is `i % PATTERN_PERIOD`. A prime: a lost, doubled or swapped block
/// of any common size shows.
pub const PATTERN_PERIOD: u8 = 251;

/// A multiple of the period, so that every block begins alike.
const BLOCK: usize = 256 * PATTERN_PERIOD as usize;

/// The first `length` bytes of the pattern.
pub fn pattern(length: usize) -> Bytes {
    (0..PATTERN_PERIOD).cycle().take(length).collect()
}

pub(super) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never: Infallible| match never {}).boxed_unsync()
}

/// `length` bytes of the pattern without ever holding more than one block.
pub(super) fn sized(length: u64) -> Body {
    from_stream(blocks(length, BLOCK).map(|block| Ok(Frame::data(block))))
}

/// The same, one frame per `chunk` bytes and no announced length.
pub(super) fn chunked(length: u64, chunk: usize) -> Body {
    from_stream(blocks(length, chunk.clamp(1, BLOCK)).map(|block| Ok(Frame::data(block))))
}

/// Half of what was announced, then the connection breaks.
pub(super) fn broken(announced: u64) -> Body {
    let half = blocks(announced / 2, BLOCK).map(|block| Ok(Frame::data(block)));
    let cut = stream::once(async { Err(io::Error::other("broken off on purpose")) });
    from_stream(half.chain(cut))
}

/// Data, then trailers. The names must stand in the `trailer` header for HTTP/1 to carry them.
pub(super) fn with_trailers(data: Bytes, name: HeaderName, value: HeaderValue) -> Body {
    let mut trailers = HeaderMap::new();
    trailers.insert(name, value);
    let frames = [Ok(Frame::data(data)), Ok(Frame::trailers(trailers))];
    from_stream(stream::iter(frames))
}

/// Server-sent events, one per interval, the first at once.
pub(super) fn events(count: u64, interval: Duration) -> Body {
    from_stream(stream::unfold(0, move |number| async move {
        if number == count {
            return None;
        }
        if number > 0 {
            tokio::time::sleep(interval).await;
        }
        let event = format!("id: {number}\ndata: event {number}\n\n");
        Some((Ok(Frame::data(Bytes::from(event))), number + 1))
    }))
}

fn from_stream(frames: impl Stream<Item = io::Result<Frame<Bytes>>> + Send + 'static) -> Body {
    StreamBody::new(frames).boxed_unsync()
}

fn blocks(length: u64, block: usize) -> impl Stream<Item = Bytes> + Send + 'static {
    // Blocks that are no multiple of the period begin anywhere in it: slice two periods' worth.
    let period = u64::from(PATTERN_PERIOD);
    let whole = pattern(block + usize::from(PATTERN_PERIOD));
    stream::unfold(0, move |sent| {
        let whole = whole.clone();
        async move {
            let take = usize::try_from(length - sent).unwrap_or(usize::MAX).min(block);
            let start = usize::try_from(sent % period).expect("less than a byte's period");
            let next = sent + take as u64;
            (take > 0).then(|| (whole.slice(start..start + take), next))
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn collect(body: Body) -> Bytes {
        body.collect().await.unwrap().to_bytes()
    }

    #[tokio::test]
    async fn every_way_to_cut_the_pattern_gives_the_same_bytes() {
        let length = BLOCK + 12_345;
        let expected = pattern(length);
        assert_eq!(expected[250..253], [250, 0, 1]);
        assert_eq!(collect(sized(length as u64)).await, expected);
        for chunk in [1_000, 251, 4_096, BLOCK] {
            assert_eq!(collect(chunked(length as u64, chunk)).await, expected, "chunk {chunk}");
        }
        assert!(collect(sized(0)).await.is_empty());
    }

    #[tokio::test]
    async fn a_broken_body_ends_in_an_error() {
        assert!(broken(1000).collect().await.is_err());
    }
}
