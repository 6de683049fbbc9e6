//! Where the server was seen to speak first. The memory only shortens a wait, and it expires: a
//! wrong entry costs a needless connection, never a wrong protocol.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// Entries kept at most.
const CAPACITY: usize = 1024;
/// After this long a port is unknown again.
const LIFE: Duration = Duration::from_secs(600);
/// How long a client may be silent before the server's side is asked, too.
const GRACE: Duration = Duration::from_millis(8);

/// One data thread's memory of server-speaks-first destinations.
#[derive(Default)]
pub struct DetectMemory {
    seen: RefCell<HashMap<SocketAddr, Duration>>,
}

impl DetectMemory {
    /// How long to wait for the client of `destination` before also opening the server's side.
    /// `now` is time since the process started.
    #[must_use]
    pub fn grace(&self, destination: SocketAddr, now: Duration) -> Duration {
        match self.seen.borrow().get(&destination) {
            Some(at) if now.saturating_sub(*at) < LIFE => Duration::ZERO,
            _ => GRACE,
        }
    }

    /// Remembers that the server spoke first.
    pub fn remember(&self, destination: SocketAddr, now: Duration) {
        let mut seen = self.seen.borrow_mut();
        if seen.len() >= CAPACITY && !seen.contains_key(&destination) {
            seen.retain(|_, at| now.saturating_sub(*at) < LIFE);
            if seen.len() >= CAPACITY {
                return;
            }
        }
        seen.insert(destination, now);
    }

    /// Forgets it: the client spoke first this time.
    pub fn forget(&self, destination: SocketAddr) {
        self.seen.borrow_mut().remove(&destination);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_shortens_the_wait_and_expires() {
        let memory = DetectMemory::default();
        let port = "10.0.0.1:3306".parse().unwrap();
        let at = Duration::from_secs;
        assert_eq!(memory.grace(port, at(1)), GRACE);
        memory.remember(port, at(1));
        assert_eq!(memory.grace(port, at(2)), Duration::ZERO);
        assert_eq!(memory.grace(port, at(602)), GRACE);
        memory.forget(port);
        assert_eq!(memory.grace(port, at(2)), GRACE);
    }

    #[test]
    fn the_memory_is_bounded() {
        let memory = DetectMemory::default();
        for port in 1..=2000 {
            memory.remember(SocketAddr::from(([10, 0, 0, 1], port)), Duration::ZERO);
        }
        assert_eq!(memory.seen.borrow().len(), CAPACITY);
    }
}
