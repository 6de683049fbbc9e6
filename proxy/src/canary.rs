//! Are we still in the way? The redirection rules send one canary address to a listener of this
//! process, whoever dials it. The proxy dials it again and again: when the answer is not its own
//! nonce, traffic passes the proxy by, and the pod must not be called ready.
//!
//! Reads no rules and needs no privilege. Repairs nothing.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use heddle_api::names::{CANARY_PORT, CANARY_V4, CANARY_V6};
use heddle_runtime::drain;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// While the rules stand.
const INTERVAL: Duration = Duration::from_secs(10);
/// Until they are first seen, and while they are gone.
const URGENT_INTERVAL: Duration = Duration::from_secs(1);
/// A redirected dial stays on this machine; one that leaves it is answered by nobody.
const DIAL_TIMEOUT: Duration = Duration::from_secs(1);
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// This process and no other: an older proxy on the same port must not answer for it.
type Nonce = [u8; 16];

/// What the last check said. `Err` holds the reason for people.
pub type State = Result<(), String>;

/// Answers on `listener` and checks until the drain's abort. The state says why it is not proven
/// that the rules stand.
pub async fn run(listener: TcpListener, state: watch::Sender<State>, drain: drain::Watch) {
    let nonce: Nonce = rand::random();
    tokio::select! {
        () = answer(listener, nonce) => {}
        () = check(nonce, &state) => {}
        () = drain.aborted() => {}
    }
}

/// What holds before the first check.
pub fn unproven() -> State {
    Err("the redirection rules have not been seen yet".to_owned())
}

async fn answer(listener: TcpListener, nonce: Nonce) {
    loop {
        match listener.accept().await {
            // Sixteen bytes always fit into an empty send buffer, so nobody can make this wait.
            Ok((mut tcp, _)) => drop(tcp.write_all(&nonce).await),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn check(nonce: Nonce, state: &watch::Sender<State>) {
    loop {
        let found = check_once(nonce).await;
        let interval = if found.is_ok() { INTERVAL } else { URGENT_INTERVAL };
        state.send_if_modified(|before| {
            let news = before.is_ok() != found.is_ok();
            if news {
                match &found {
                    Ok(()) => tracing::info!("the redirection rules stand"),
                    Err(reason) => tracing::error!(%reason, "the redirection rules do not stand"),
                }
            }
            let changed = *before != found;
            *before = found;
            changed
        });
        tokio::time::sleep(interval).await;
    }
}

async fn check_once(nonce: Nonce) -> State {
    let canaries: [IpAddr; 2] = [CANARY_V4.into(), CANARY_V6.into()];
    let mut reachable = canaries.into_iter().filter(|address| has_route(*address)).peekable();
    if reachable.peek().is_none() {
        return Err("the pod has no route for either canary address".to_owned());
    }
    for address in reachable {
        dial((address, CANARY_PORT).into(), nonce).await?;
    }
    Ok(())
}

/// A pod without a route of one family cannot dial its canary, and has no traffic of that family to
/// take over.
fn has_route(address: IpAddr) -> bool {
    let any: IpAddr = match address {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Connecting a datagram socket looks up the route and sends nothing.
    UdpSocket::bind((any, 0)).and_then(|socket| socket.connect((address, CANARY_PORT))).is_ok()
}

async fn dial(address: SocketAddr, nonce: Nonce) -> State {
    let exchange = async {
        let mut tcp = TcpStream::connect(address).await?;
        let mut answer: Nonce = [0; 16];
        tcp.read_exact(&mut answer).await?;
        io::Result::Ok(answer)
    };
    match tokio::time::timeout(DIAL_TIMEOUT, exchange).await {
        Ok(Ok(answer)) if answer == nonce => Ok(()),
        Ok(Ok(_)) => Err(format!("{address} is answered by somebody else than this proxy")),
        Ok(Err(error)) => Err(format!("{address} is not redirected to this proxy: {error}")),
        Err(_) => Err(format!("{address} is not redirected to this proxy: nobody answers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn listener(nonce: Nonce) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(answer(listener, nonce));
        address
    }

    #[tokio::test]
    async fn only_our_own_answer_counts() {
        let own = listener([7; 16]).await;
        assert_eq!(dial(own, [7; 16]).await, Ok(()));
        let other = listener([8; 16]).await;
        let error = dial(other, [7; 16]).await.unwrap_err();
        assert!(error.ends_with("is answered by somebody else than this proxy"), "{error}");
    }

    #[tokio::test]
    async fn a_refused_or_silent_address_is_not_ours() {
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = closed.local_addr().unwrap();
        drop(closed);
        let error = dial(address, [7; 16]).await.unwrap_err();
        assert!(error.contains("is not redirected to this proxy"), "{error}");
        let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let error = dial(silent.local_addr().unwrap(), [7; 16]).await.unwrap_err();
        assert!(error.ends_with("nobody answers"), "{error}");
    }
}
