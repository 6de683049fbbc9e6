//! Which destinations the proxy is subscribed to, and which it can do without. Pure: time and use
//! are arguments.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

/// The contract's own limit.
const MAX: usize = 65_536;
/// Given up together when the limit is reached, those first that were not used for longest.
const ROOM: usize = MAX / 16;
const IDLE: Duration = Duration::from_secs(3600);

/// When destinations were used last, since the process started; those never used may be missing.
pub(super) type Uses = HashMap<SocketAddr, Duration>;

/// Destinations with the time since the process started at which each was subscribed to.
#[derive(Debug, Default)]
pub(super) struct Subscriptions {
    since: HashMap<SocketAddr, Duration>,
}

impl Subscriptions {
    pub(super) fn len(&self) -> usize {
        self.since.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &SocketAddr> {
        self.since.keys()
    }

    /// True when `more` fit in without anything having to go.
    pub(super) fn has_room(&self, more: usize) -> bool {
        self.since.len() + more <= MAX
    }

    /// Adds what is new among `asked`. Returns that, and what had to make room for it.
    pub(super) fn add(
        &mut self,
        asked: impl IntoIterator<Item = SocketAddr>,
        now: Duration,
        uses: &Uses,
    ) -> (Vec<SocketAddr>, Vec<SocketAddr>) {
        let (mut added, mut removed) = (Vec::new(), Vec::new());
        for address in asked {
            if self.since.contains_key(&address) {
                continue;
            }
            if self.since.len() == MAX {
                removed.extend(self.make_room(uses));
            }
            self.since.insert(address, now);
            added.push(address);
        }
        (added, removed)
    }

    /// Gives up what was not used for an hour.
    pub(super) fn evict_idle(&mut self, now: Duration, uses: &Uses) -> Vec<SocketAddr> {
        let idle = |(address, since): (&SocketAddr, &Duration)| {
            let used = uses.get(address).copied().unwrap_or_default().max(*since);
            (now.saturating_sub(used) >= IDLE).then_some(*address)
        };
        let idle: Vec<_> = self.since.iter().filter_map(idle).collect();
        for address in &idle {
            self.since.remove(address);
        }
        idle
    }

    fn make_room(&mut self, uses: &Uses) -> Vec<SocketAddr> {
        let mut by_use: Vec<_> = self
            .since
            .iter()
            .map(|(address, since)| {
                (uses.get(address).copied().unwrap_or_default().max(*since), *address)
            })
            .collect();
        by_use.sort_unstable();
        by_use.truncate(ROOM);
        let removed: Vec<_> = by_use.into_iter().map(|(_, address)| address).collect();
        for address in &removed {
            self.since.remove(address);
        }
        removed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(index: usize) -> SocketAddr {
        let index = u32::try_from(index).unwrap();
        (std::net::Ipv4Addr::from(0x0a00_0000 + index), 80).into()
    }

    fn secs(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn the_same_address_is_added_once() {
        let mut subscriptions = Subscriptions::default();
        let asked = [address(1), address(2), address(1)];
        let (added, removed) = subscriptions.add(asked, secs(5), &Uses::new());
        assert_eq!((added.len(), removed.len()), (2, 0));
        let (added, _) = subscriptions.add([address(2), address(3)], secs(6), &Uses::new());
        assert_eq!(added, [address(3)]);
    }

    #[test]
    fn an_hour_without_use_ends_a_subscription() {
        let mut subscriptions = Subscriptions::default();
        subscriptions.add([address(1), address(2), address(3)], secs(10), &Uses::new());
        subscriptions.add([address(4)], secs(3000), &Uses::new());
        // 1 was used late, 2 early, 3 never; 4 is younger than an hour.
        let uses = Uses::from([(address(1), secs(2000)), (address(2), secs(20))]);
        assert!(subscriptions.evict_idle(secs(3609), &uses).is_empty());
        let mut idle = subscriptions.evict_idle(secs(3620), &uses);
        idle.sort_unstable();
        assert_eq!(idle, [address(2), address(3)]);
        assert_eq!(subscriptions.len(), 2);
    }

    #[test]
    fn at_the_limit_the_least_used_make_room() {
        let mut subscriptions = Subscriptions::default();
        let uses = Uses::from([(address(0), secs(100))]);
        assert!(subscriptions.has_room(MAX));
        let (_, removed) = subscriptions.add((0..MAX).map(address), secs(1), &uses);
        assert!(removed.is_empty() && !subscriptions.has_room(1));
        let (added, removed) = subscriptions.add([address(MAX)], secs(2), &uses);
        assert_eq!((added.len(), removed.len()), (1, ROOM));
        assert!(!removed.contains(&address(0)), "in use");
        assert_eq!(subscriptions.len(), MAX - ROOM + 1);
    }
}
