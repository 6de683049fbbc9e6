//! The way from the host to the API server: a port of the host's loopback, and nothing else of the
//! host. It forwards bytes; certificates are checked at both ends.

use std::convert::Infallible;
use std::net::{Ipv4Addr, TcpListener};

use anyhow::Context as _;
use nix::sched::CloneFlags;
use nix::unistd::setsid;
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;

use super::cgroup;
use super::layout::{API_PORT, FIRST_NODE, Layout, Node};
use super::process;

/// Listens on the host, says where in the file `port`, enters the node, and forwards.
///
/// Needs a process with one thread, made for this: the listener stays where it was made, and what
/// is dialled later is dialled from the node.
///
/// # Errors
/// Says which step failed.
pub fn run(layout: &Layout) -> anyhow::Result<Infallible> {
    cgroup::join(layout)?;
    setsid().context("leave the terminal")?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen on loopback")?;
    listener.set_nonblocking(true)?;
    let port = listener.local_addr()?.port();
    process::enter(layout, FIRST_NODE, CloneFlags::CLONE_NEWNET)?;
    // Moved into place, so that nobody reads half a number.
    let path = layout.dir().join("port");
    std::fs::write(path.with_extension("new"), port.to_string())?;
    std::fs::rename(path.with_extension("new"), path)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(forward(listener))
}

async fn forward(listener: TcpListener) -> anyhow::Result<Infallible> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let address = (Node::first(1)[0].address_v4(), API_PORT);
    loop {
        let (mut client, _) = listener.accept().await?;
        let address = address.clone();
        tokio::spawn(async move {
            // An API server that is down is what the client is to see: its connection ends.
            if let Ok(mut server) = TcpStream::connect(address).await {
                let _ = copy_bidirectional(&mut client, &mut server).await;
            }
        });
    }
}
