//! Opaque TCP servers: one echoes and honours half-close, one speaks before it is spoken to.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Returns every byte; when the client closes its side, finishes writing and closes its own.
pub async fn echo(listen: SocketAddr) -> anyhow::Result<()> {
    let listener = super::bind(listen).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            // A peer that resets ends the copy; the client's side of the test sees it.
            let _ = echo_one(stream).await;
        });
    }
}

/// Sends `greeting` and a newline at once, then echoes.
pub async fn speak_first(listen: SocketAddr, greeting: String) -> anyhow::Result<()> {
    let listener = super::bind(listen).await?;
    let greeting = format!("{greeting}\r\n");
    loop {
        let (mut stream, _) = listener.accept().await?;
        let greeting = greeting.clone();
        tokio::spawn(async move {
            if stream.write_all(greeting.as_bytes()).await.is_ok() {
                let _ = echo_one(stream).await;
            }
        });
    }
}

async fn echo_one(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = stream.read(&mut buffer).await?;
        if read == 0 {
            return stream.shutdown().await;
        }
        stream.write_all(&buffer[..read]).await?;
    }
}
