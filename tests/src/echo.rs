//! The workload of the Gateway API conformance suite: a server that tells what it was asked, and a
//! client that prints it in the form the suite's `utils/echo` parses. Speaks HTTP/1.1, h2c, TLS,
//! gRPC and plain TCP; judges nothing.

pub mod client;
pub mod server;

/// The one message of the gRPC service, in both directions.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Text {
    #[prost(string, tag = "1")]
    pub message: String,
}

/// Full name of the gRPC method that the server answers and the client calls.
pub const GRPC_PATH: &str = "/proto.EchoTestService/Echo";

/// Longest message in either direction.
const MESSAGE_LIMIT: usize = 64 * 1024;

/// A gRPC message with its length in front (gRPC over HTTP/2, Length-Prefixed-Message).
fn frame(text: &Text) -> bytes::Bytes {
    use bytes::BufMut as _;
    use prost::Message as _;
    let length = text.encoded_len();
    let mut framed = bytes::BytesMut::with_capacity(length + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(length).expect("bounded by MESSAGE_LIMIT"));
    text.encode(&mut framed).expect("a BytesMut grows");
    framed.freeze()
}

/// The message of a body that holds exactly one.
fn unframe(body: &[u8]) -> anyhow::Result<Text> {
    use prost::Message as _;
    let [0, a, b, c, d, message @ ..] = body else {
        anyhow::bail!("{} bytes are no uncompressed gRPC message", body.len());
    };
    let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d]))?;
    anyhow::ensure!(length == message.len(), "announced {length} bytes, got {}", message.len());
    Ok(Text::decode(message)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_their_frame() {
        let text = Text { message: "Hostname=a\n".to_owned() };
        assert_eq!(unframe(&frame(&text)).unwrap(), text);
        for broken in [&b""[..], b"\x01\0\0\0\0", b"\0\0\0\0\x05ab"] {
            assert!(unframe(broken).is_err(), "{broken:?}");
        }
    }
}
