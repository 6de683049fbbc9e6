//! One exchange between scripted ends.

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

use super::*;
use crate::http1::{ResponseEdits, Version, write_response_head};
use crate::stream::Stream;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn pair(capacity: usize) -> (DuplexStream, Conn) {
    let (far, near) = duplex(capacity);
    (far, Conn::new(Stream::Local(near)))
}

/// A request whose head and first body bytes are in hand.
fn request(text: &[u8], down: &mut Conn) -> Outgoing {
    let mut head = RequestHead::new();
    let n = head.parse(text, &LIMITS).unwrap().expect("a whole head");
    down.buf.extend_from_slice(&text[n..]);
    Outgoing::new(&head, text[..n].into(), down).unwrap()
}

fn forward(head: &ResponseHead, buf: &[u8], out: &mut BytesMut) -> Judgement {
    let edits = ResponseEdits {
        client: Version::Http11,
        close: false,
        rechunk: true,
        edits: &[],
        add: &[],
    };
    Judgement::Forward(write_response_head(head, buf, &edits, out))
}

#[tokio::test]
async fn a_connection_that_holds_half_a_body_is_not_used_again() {
    let ((_client, mut down), (mut server, up)) = (pair(1024), pair(64));
    let mut up = Upstream::new(up, false);
    let body = [b'x'; 1000];
    let mut request =
        request(b"PUT / HTTP/1.1\r\nHost: w\r\nContent-Length: 1001\r\n\r\n.", &mut down);
    down.buf.extend_from_slice(&body);
    // The server answers when it has seen the head, and leaves the body for later.
    let serve = async {
        let mut head = [0; 52];
        server.read_exact(&mut head).await.unwrap();
        server.write_all(OK).await.unwrap();
    };
    let exchange = exchange(&mut down, &mut up, &mut request, Patience::ENDLESS, forward);
    let (end, ()) = tokio::join!(exchange, serve);
    let End::Complete(complete) = end else { panic!("the response came whole") };
    assert!(!complete.upstream_reusable, "the rest of the body is still to come on it");
}

#[tokio::test]
async fn the_last_words_of_a_server_that_takes_no_request_are_heard_whole() {
    let ((_client, mut down), (mut server, up)) = (pair(1024), pair(1024));
    let mut up = Upstream::new(up, false);
    server.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await.unwrap();
    drop(server);
    let mut request = request(b"GET / HTTP/1.1\r\nHost: w\r\n\r\n", &mut down);
    let end = exchange(&mut down, &mut up, &mut request, Patience::ENDLESS, forward).await;
    let End::Complete(complete) = end else { panic!("the server did answer") };
    assert_eq!((complete.status, complete.upstream_reusable), (503, false));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_leaves_is_not_waited_for() {
    for text in [
        &b"GET / HTTP/1.1\r\nHost: w\r\n\r\n"[..],
        b"PUT / HTTP/1.1\r\nHost: w\r\nContent-Length: 3\r\n\r\nab",
    ] {
        let ((mut client, mut down), (_server, up)) = (pair(1024), pair(1024));
        let mut up = Upstream::new(up, false);
        let mut request = request(text, &mut down);
        let leave = async {
            client.write_all(b"c").await.unwrap();
            drop(client);
        };
        let exchange = exchange(&mut down, &mut up, &mut request, Patience::ENDLESS, forward);
        let (end, ()) = tokio::join!(exchange, leave);
        assert!(matches!(end, End::ClientGone));
    }
}

#[tokio::test]
async fn a_switch_in_the_middle_of_a_request_is_refused() {
    let ((mut client, mut down), (mut server, up)) = (pair(1024), pair(1024));
    let mut up = Upstream::new(up, false);
    let head = b"PUT / HTTP/1.1\r\nHost: w\r\nConnection: upgrade\r\nUpgrade: x\r\nContent-Length: 9\r\n\r\n";
    let mut request = request(head, &mut down);
    client.write_all(b"half").await.unwrap();
    server
        .write_all(b"HTTP/1.1 101 Switching\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n")
        .await
        .unwrap();
    let end = exchange(&mut down, &mut up, &mut request, Patience::ENDLESS, forward).await;
    assert!(matches!(end, End::Broken { status: 101, .. }));
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_moves_is_not_idle() {
    let ((mut client, mut down), (mut server, up)) = (pair(1024), pair(1024));
    let mut up = Upstream::new(up, false);
    let mut request =
        request(b"PUT / HTTP/1.1\r\nHost: w\r\nContent-Length: 9\r\n\r\n.", &mut down);
    let patience = Patience { head_by: None, idle: Some(Duration::from_secs(5)) };
    let upload = async {
        for _ in 0..8 {
            tokio::time::sleep(Duration::from_secs(4)).await;
            client.write_all(b".").await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(4)).await;
        server.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\no").await.unwrap();
        Instant::now()
    };
    let exchange = exchange(&mut down, &mut up, &mut request, patience, forward);
    let (end, answered) = tokio::join!(exchange, upload);
    assert!(matches!(end, End::Broken { status: 200, error: Error::IdleTimeout }));
    assert_eq!((Instant::now() - answered).as_secs(), 5, "silence counts from the last byte");
}
