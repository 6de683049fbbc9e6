//! Every way in which a message is refused: status, stable reason, and words for people.
//!
//! The reasons are a closed set (header `heddle-error`, metric label), so nothing a peer sent ever
//! becomes part of one.

use std::fmt;

/// Why a message was not accepted. The connection it came on is beyond use: where the next message
/// would begin is exactly what is in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    // first line
    EmptyLines,
    MalformedRequestLine,
    BadMethod,
    MethodTooLong,
    BadTarget,
    TargetForm,
    TargetTooLong,
    UnsupportedVersion,
    // field section
    BareLf,
    BareCr,
    FoldedField,
    BadFieldName,
    BadFieldValue,
    ReservedFieldName,
    HeadTooLarge,
    TooManyFields,
    FieldNameTooLong,
    // routing
    MissingHost,
    RepeatedHost,
    BadHost,
    // framing
    RepeatedContentLength,
    BadContentLength,
    ContentLengthWithTransferEncoding,
    RepeatedTransferEncoding,
    UnsupportedTransferEncoding,
    TransferEncodingInHttp10,
    ConnectWithBody,
    // this hop
    BadConnectionOption,
    ConnectionNamesProtectedField,
    // body
    BadChunkSize,
    ChunkTooLarge,
    BadChunkExtension,
    ChunkExtensionTooLong,
    BadChunkEnd,
    TrailersTooLarge,
    ForbiddenTrailer,
    TruncatedBody,
}

impl Refusal {
    /// Every refusal, for documentation, metrics registered in advance, and tests.
    pub const ALL: [Self; 37] = [
        Self::EmptyLines,
        Self::MalformedRequestLine,
        Self::BadMethod,
        Self::MethodTooLong,
        Self::BadTarget,
        Self::TargetForm,
        Self::TargetTooLong,
        Self::UnsupportedVersion,
        Self::BareLf,
        Self::BareCr,
        Self::FoldedField,
        Self::BadFieldName,
        Self::BadFieldValue,
        Self::ReservedFieldName,
        Self::HeadTooLarge,
        Self::TooManyFields,
        Self::FieldNameTooLong,
        Self::MissingHost,
        Self::RepeatedHost,
        Self::BadHost,
        Self::RepeatedContentLength,
        Self::BadContentLength,
        Self::ContentLengthWithTransferEncoding,
        Self::RepeatedTransferEncoding,
        Self::UnsupportedTransferEncoding,
        Self::TransferEncodingInHttp10,
        Self::ConnectWithBody,
        Self::BadConnectionOption,
        Self::ConnectionNamesProtectedField,
        Self::BadChunkSize,
        Self::ChunkTooLarge,
        Self::BadChunkExtension,
        Self::ChunkExtensionTooLong,
        Self::BadChunkEnd,
        Self::TrailersTooLarge,
        Self::ForbiddenTrailer,
        Self::TruncatedBody,
    ];

    /// The status with which a request refused so is answered.
    pub fn status(self) -> u16 {
        self.row().0
    }

    /// Stable, for `heddle-error` and metric labels.
    pub fn reason(self) -> &'static str {
        self.row().1
    }

    #[rustfmt::skip]
    const fn row(self) -> (u16, &'static str, &'static str) {
        match self {
            Self::EmptyLines => (400, "empty-lines", "more than one empty line stands before the first line of the message; send at most one"),
            Self::MalformedRequestLine => (400, "malformed-request-line", "the first line must be METHOD, one space, target, one space, HTTP/1.1"),
            Self::BadMethod => (400, "bad-method", "the method has a byte that is not allowed in a token; send letters, digits and -"),
            Self::MethodTooLong => (501, "method-too-long", "the method is longer than 32 bytes"),
            Self::BadTarget => (400, "bad-target", "the target has a control, non-ASCII, # or \\ in it; percent-encode such bytes"),
            Self::TargetForm => (400, "target-form", "the target must be /path, http://host/path, host:port (CONNECT) or * (OPTIONS), as the method demands"),
            Self::TargetTooLong => (414, "target-too-long", "the first line is longer than a whole head may be"),
            Self::UnsupportedVersion => (505, "unsupported-version", "only HTTP/1.1 and HTTP/1.0 are spoken here"),
            Self::BareLf => (400, "bare-lf", "a line ends in LF alone; end every line of the head in CR LF"),
            Self::BareCr => (400, "bare-cr", "a CR stands without its LF; end every line of the head in CR LF"),
            Self::FoldedField => (400, "folded-field", "a line of the head begins with whitespace; send each field on one line"),
            Self::BadFieldName => (400, "bad-field-name", "a field line must be a name, a colon directly after it, and a value"),
            Self::BadFieldValue => (400, "bad-field-value", "a field value has a control byte in it"),
            Self::ReservedFieldName => (400, "reserved-field-name", "a field is spelled like one of the mesh's or like a framing field, but with _ for -; leave it out"),
            Self::HeadTooLarge => (431, "head-too-large", "the head is larger than allowed; send fewer or shorter fields"),
            Self::TooManyFields => (431, "too-many-fields", "the head has more fields than allowed"),
            Self::FieldNameTooLong => (431, "field-name-too-long", "a field name is longer than allowed"),
            Self::MissingHost => (400, "missing-host", "an HTTP/1.1 request needs a Host field"),
            Self::RepeatedHost => (400, "repeated-host", "more than one Host field; send one"),
            Self::BadHost => (400, "bad-host", "the host must be a name or an address, then optionally a colon and a port"),
            Self::RepeatedContentLength => (400, "repeated-content-length", "more than one Content-Length; send one"),
            Self::BadContentLength => (400, "bad-content-length", "Content-Length must be one decimal number below 2^63"),
            Self::ContentLengthWithTransferEncoding => (400, "content-length-with-transfer-encoding", "both Content-Length and Transfer-Encoding; send one of them"),
            Self::RepeatedTransferEncoding => (400, "repeated-transfer-encoding", "more than one Transfer-Encoding field; send one"),
            Self::UnsupportedTransferEncoding => (501, "unsupported-transfer-encoding", "Transfer-Encoding must be exactly: chunked"),
            Self::TransferEncodingInHttp10 => (400, "transfer-encoding-in-http10", "HTTP/1.0 has no Transfer-Encoding; use Content-Length or HTTP/1.1"),
            Self::ConnectWithBody => (400, "connect-with-body", "a CONNECT request has no body; leave Content-Length and Transfer-Encoding out"),
            Self::BadConnectionOption => (400, "bad-connection-option", "Connection must be a list of at most 32 names"),
            Self::ConnectionNamesProtectedField => (400, "connection-names-protected-field", "Connection names a field that every recipient needs; name only fields meant for one hop"),
            Self::BadChunkSize => (400, "bad-chunk-size", "a chunk must begin with 1 to 16 hexadecimal digits and CR LF"),
            Self::ChunkTooLarge => (400, "chunk-too-large", "a chunk is 2^63 bytes or larger"),
            Self::BadChunkExtension => (400, "bad-chunk-extension", "a chunk extension must be ;name or ;name=value without whitespace or control bytes"),
            Self::ChunkExtensionTooLong => (400, "chunk-extension-too-long", "the extensions of a chunk are longer than allowed"),
            Self::BadChunkEnd => (400, "bad-chunk-end", "the data of a chunk must be followed by CR LF"),
            Self::TrailersTooLarge => (431, "trailers-too-large", "the trailer section has more bytes or fields than allowed"),
            Self::ForbiddenTrailer => (400, "forbidden-trailer", "a field for framing, routing or authentication stands in the trailers; send it in the head"),
            Self::TruncatedBody => (400, "truncated-body", "the connection ended before the body did"),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.row().2)
    }
}

impl std::error::Error for Refusal {}

/// Why a server's response cannot be passed on. The client is answered with 502, or cut off if it
/// was already sent a part; the server's connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BadResponse {
    /// Not `HTTP/1.x`, a three-digit status and a reason.
    StatusLine,
    /// 101 to a request that did not ask for it, or 101 that does not say to what.
    UnaskedSwitch,
    /// A 1xx head that announces a body, which would be read as the next head.
    InterimWithBody,
    /// More 1xx heads than [`super::Limits::interim_responses`] before the final one.
    TooManyInterim,
    /// What a request would be refused for as well.
    Message(Refusal),
}

impl BadResponse {
    /// The status with which the client is answered, if it still can be.
    pub const STATUS: u16 = 502;

    /// Stable, for logs and metric labels.
    pub fn reason(self) -> &'static str {
        match self {
            Self::StatusLine => "bad-status-line",
            Self::UnaskedSwitch => "unasked-switch",
            Self::InterimWithBody => "interim-with-body",
            Self::TooManyInterim => "too-many-interim-responses",
            Self::Message(refusal) => refusal.reason(),
        }
    }
}

impl From<Refusal> for BadResponse {
    fn from(refusal: Refusal) -> Self {
        Self::Message(refusal)
    }
}

impl fmt::Display for BadResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the server's response is not valid HTTP/1: ")?;
        match self {
            Self::StatusLine => {
                f.write_str("its first line must be HTTP/1.1, a status of three digits, a reason")
            }
            Self::UnaskedSwitch => {
                f.write_str("it switches protocols, which the request did not ask for")
            }
            Self::InterimWithBody => f.write_str("a 1xx response announces a body"),
            Self::TooManyInterim => f.write_str("too many 1xx responses come before the final one"),
            Self::Message(refusal) => refusal.fmt(f),
        }
    }
}

impl std::error::Error for BadResponse {}
