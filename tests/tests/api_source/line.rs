//! A line to an API server that a test can cut: what is on it ends, and nothing new gets through.

use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// Relays connections while it is whole.
pub(crate) struct Line {
    whole: watch::Sender<bool>,
    pub(crate) kubeconfig: PathBuf,
    _dir: tempfile::TempDir,
}

impl Line {
    /// A line to `url`, and a kubeconfig beside `kubeconfig` that leads over it.
    pub(crate) async fn new(url: &str, kubeconfig: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let here = format!("https://{}", listener.local_addr().unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("kubeconfig");
        let text = std::fs::read_to_string(kubeconfig).unwrap();
        assert!(text.contains(url));
        std::fs::write(&path, text.replace(url, &here)).unwrap();
        let whole = watch::Sender::new(true);
        let there = url.trim_start_matches("https://").to_owned();
        tokio::spawn(relay(listener, there, whole.subscribe()));
        Self { whole, kubeconfig: path, _dir: dir }
    }

    pub(crate) fn cut(&self) {
        self.whole.send_replace(false);
    }

    pub(crate) fn mend(&self) {
        self.whole.send_replace(true);
    }
}

async fn relay(listener: TcpListener, there: String, mut whole: watch::Receiver<bool>) {
    loop {
        let (mut near, _) = tokio::select! {
            accepted = listener.accept() => accepted.unwrap(),
            ended = whole.wait_for(|_| false) => match ended { Ok(_) => continue, Err(_) => return },
        };
        if !*whole.borrow() {
            continue;
        }
        let (there, mut whole) = (there.clone(), whole.clone());
        tokio::spawn(async move {
            let Ok(mut far) = TcpStream::connect(there).await else { return };
            let cut = async { drop(whole.wait_for(|whole| !whole).await) };
            tokio::select! {
                _ = tokio::io::copy_bidirectional(&mut near, &mut far) => {}
                () = cut => {}
            }
        });
    }
}
