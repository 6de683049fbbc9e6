//! Bodies: how many of the next bytes belong to the message, and whether they are well-formed.
//!
//! A body is forwarded as it came, chunk lines included, so the decoder only counts and judges.
//! Chunk extensions stay: within the strict grammar enforced here (no whitespace, no control byte,
//! nothing but ASCII in quotes) no parser can see the end of the line anywhere else, and dropping
//! them would mean rewriting bodies. The trailer section is held back until all of it is judged.

use std::ops::Range;

use super::chars::{self, TOKEN};
use super::fields::{self, LineScan};
use super::{BodyFraming, Limits, Refusal};

/// Follows one body from its first byte to its last.
#[derive(Clone, Copy, Debug)]
pub struct BodyDecoder(Framing);

#[derive(Clone, Copy, Debug)]
enum Framing {
    /// Bytes still to come.
    Length(u64),
    Chunked(Chunked),
    UntilClose,
    Done,
}

/// What [`BodyDecoder::advance`] made of the bytes it was shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// So many leading bytes belong to the message and may be forwarded as they are. When less
    /// than was shown and not `done`, the rest is the start of a trailer section: show it again
    /// together with what follows.
    pub raw: usize,
    /// The message ends after `raw` bytes.
    pub done: bool,
}

impl BodyDecoder {
    pub fn new(framing: BodyFraming, limits: &Limits) -> Self {
        Self(match framing {
            BodyFraming::None | BodyFraming::Length(0) => Framing::Done,
            BodyFraming::Length(length) => Framing::Length(length),
            BodyFraming::Chunked => Framing::Chunked(Chunked::new(limits)),
            BodyFraming::UntilClose => Framing::UntilClose,
        })
    }

    /// Judges the next bytes of the body. They may be cut anywhere.
    pub fn advance(&mut self, bytes: &[u8]) -> Result<Progress, Refusal> {
        self.advance_with(bytes, |_| {})
    }

    /// As `advance`, and hands over where in `bytes` the payload lies, for a peer that does not
    /// know chunks.
    pub fn advance_with(
        &mut self,
        bytes: &[u8],
        mut payload: impl FnMut(Range<usize>),
    ) -> Result<Progress, Refusal> {
        match &mut self.0 {
            Framing::Done => Ok(Progress { raw: 0, done: true }),
            Framing::UntilClose => {
                give(&mut payload, 0..bytes.len());
                Ok(Progress { raw: bytes.len(), done: false })
            }
            Framing::Length(left) => {
                let raw = take(left, bytes.len());
                let done = *left == 0;
                give(&mut payload, 0..raw);
                if done {
                    self.0 = Framing::Done;
                }
                Ok(Progress { raw, done })
            }
            Framing::Chunked(chunked) => {
                let progress = chunked.advance(bytes, &mut payload)?;
                if progress.done {
                    self.0 = Framing::Done;
                }
                Ok(progress)
            }
        }
    }

    pub fn is_done(&self) -> bool {
        matches!(self.0, Framing::Done)
    }

    /// How much is still to come, where that is known.
    pub fn remaining(&self) -> Option<u64> {
        match self.0 {
            Framing::Done => Some(0),
            Framing::Length(left) => Some(left),
            Framing::Chunked(_) | Framing::UntilClose => None,
        }
    }

    /// The peer has closed in an orderly way. Whether that ends the body or cuts it.
    pub fn finish_at_eof(&mut self) -> Result<(), Refusal> {
        match self.0 {
            Framing::Done => Ok(()),
            Framing::UntilClose => {
                self.0 = Framing::Done;
                Ok(())
            }
            Framing::Length(_) | Framing::Chunked(_) => Err(Refusal::TruncatedBody),
        }
    }
}

/// Takes what is there of what is wanted.
fn take(wanted: &mut u64, there: usize) -> usize {
    let taken = usize::try_from(*wanted).map_or(there, |wanted| wanted.min(there));
    *wanted -= taken as u64;
    taken
}

fn give(payload: &mut impl FnMut(Range<usize>), range: Range<usize>) {
    if !range.is_empty() {
        payload(range);
    }
}

#[derive(Clone, Copy, Debug)]
struct Chunked {
    at: At,
    limits: Limits,
}

/// What the next byte is.
#[derive(Clone, Copy, Debug)]
enum At {
    Size { digits: u8, size: u64 },
    Extension { part: Part, length: usize, size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailers { scan: LineScan, fields: usize },
}

/// `;name`, `;name=token` or `;name="quoted"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    NameStart,
    Name,
    ValueStart,
    Value,
    Quoted,
    QuotedPair,
    QuotedEnd,
}

const SIZE_DIGITS: u8 = 16;

impl Chunked {
    fn new(limits: &Limits) -> Self {
        Self { at: At::Size { digits: 0, size: 0 }, limits: *limits }
    }

    fn advance(
        &mut self,
        bytes: &[u8],
        payload: &mut impl FnMut(Range<usize>),
    ) -> Result<Progress, Refusal> {
        let mut read = 0;
        while let Some(&byte) = bytes.get(read) {
            self.at = match self.at {
                At::Data { mut left } => {
                    let taken = take(&mut left, bytes.len() - read);
                    payload(read..read + taken);
                    read += taken;
                    self.at = if left == 0 { At::DataCr } else { At::Data { left } };
                    continue;
                }
                At::Trailers { scan, fields } => {
                    return self.judge_trailers(&bytes[read..], scan, fields).map(|progress| {
                        Progress { raw: read + progress.raw, done: progress.done }
                    });
                }
                At::Size { digits, size } => next_of_size(byte, digits, size)?,
                At::Extension { part, length, size } => {
                    if length >= self.limits.chunk_extension_bytes && byte != b'\r' {
                        return Err(Refusal::ChunkExtensionTooLong);
                    }
                    next_of_extension(byte, part, length, size)?
                }
                At::SizeLf { size } if byte == b'\n' => after_size(size),
                At::SizeLf { .. } => return Err(Refusal::BadChunkSize),
                At::DataCr if byte == b'\r' => At::DataLf,
                At::DataLf if byte == b'\n' => At::Size { digits: 0, size: 0 },
                At::DataCr | At::DataLf => return Err(Refusal::BadChunkEnd),
            };
            read += 1;
        }
        Ok(Progress { raw: read, done: false })
    }

    /// `bytes` begins with the trailer section each time, since none of it is given up before all
    /// of it is there.
    fn judge_trailers(
        &mut self,
        bytes: &[u8],
        mut scan: LineScan,
        mut fields: usize,
    ) -> Result<Progress, Refusal> {
        let window = &bytes[..bytes.len().min(self.limits.trailer_bytes)];
        while let Some(line) = scan.next_line(window)? {
            if line.is_empty() {
                return Ok(Progress { raw: line.end + 2, done: true });
            }
            fields += 1;
            if fields > self.limits.trailer_fields {
                return Err(Refusal::TrailersTooLarge);
            }
            let field = fields::split_line(window, line, self.limits.name_bytes)?;
            if !fields::is_allowed_in_trailers(field.name.of(window)) {
                return Err(Refusal::ForbiddenTrailer);
            }
        }
        if bytes.len() >= self.limits.trailer_bytes {
            return Err(Refusal::TrailersTooLarge);
        }
        self.at = At::Trailers { scan, fields };
        Ok(Progress { raw: 0, done: false })
    }
}

#[inline]
fn next_of_size(byte: u8, digits: u8, size: u64) -> Result<At, Refusal> {
    let value = match byte {
        b'0'..=b'9' => byte - b'0',
        b'a'..=b'f' => byte - b'a' + 10,
        b'A'..=b'F' => byte - b'A' + 10,
        b'\r' if digits > 0 => return Ok(At::SizeLf { size }),
        b';' if digits > 0 => {
            return Ok(At::Extension { part: Part::NameStart, length: 1, size });
        }
        _ => return Err(Refusal::BadChunkSize),
    };
    if digits == SIZE_DIGITS {
        return Err(Refusal::BadChunkSize);
    }
    // Sixteen digits fill a u64 exactly; servers that count in signed numbers stop a bit earlier.
    let size = size << 4 | u64::from(value);
    if i64::try_from(size).is_err() {
        return Err(Refusal::ChunkTooLarge);
    }
    Ok(At::Size { digits: digits + 1, size })
}

fn next_of_extension(byte: u8, part: Part, length: usize, size: u64) -> Result<At, Refusal> {
    let token = chars::is(TOKEN, byte);
    let quotable = matches!(byte, b'\t' | b' '..=b'~');
    let part = match (part, byte) {
        (Part::Name | Part::Value | Part::QuotedEnd, b'\r') => return Ok(At::SizeLf { size }),
        (Part::Name | Part::Value | Part::QuotedEnd, b';') => Part::NameStart,
        (Part::Name, b'=') => Part::ValueStart,
        (Part::NameStart | Part::Name, _) if token => Part::Name,
        (Part::ValueStart, b'"') => Part::Quoted,
        (Part::ValueStart | Part::Value, _) if token => Part::Value,
        (Part::Quoted, b'"') => Part::QuotedEnd,
        (Part::Quoted, b'\\') => Part::QuotedPair,
        (Part::Quoted | Part::QuotedPair, _) if quotable => Part::Quoted,
        _ => return Err(Refusal::BadChunkExtension),
    };
    Ok(At::Extension { part, length: length + 1, size })
}

fn after_size(size: u64) -> At {
    if size == 0 {
        At::Trailers { scan: LineScan::default(), fields: 0 }
    } else {
        At::Data { left: size }
    }
}
