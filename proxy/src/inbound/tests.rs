//! The first bytes of a connection from outside.

use tokio::io::{AsyncWriteExt, duplex};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_client_hello_that_drips_is_not_waited_for() {
    let (mut caller, near) = duplex(1024);
    let drip = async {
        // The head of a record that announces a ClientHello of 16,000 bytes.
        caller.write_all(&[0x16, 3, 1, 0x3e, 0x80, 1, 0, 0x3e, 0x7c]).await.unwrap();
        loop {
            tokio::time::sleep(Duration::from_millis(900)).await;
            if caller.write_all(&[0]).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    };
    let begun = Instant::now();
    let mut conn = Conn::new(Stream::Local(near));
    let sniffed = tokio::select! {
        sniffed = sniff(&mut conn, HANDSHAKE_TIMEOUT) => sniffed,
        () = drip => unreachable!("it never ends"),
    };
    assert!(matches!(sniffed, Sniffed::Plain));
    assert!(begun.elapsed() <= HANDSHAKE_TIMEOUT);
}
