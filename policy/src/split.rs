//! TrafficSplit: which backend one request, or one opaque connection, goes to.

use std::collections::HashSet;
use std::sync::Arc;

use heddle_api::proto::v1;

use crate::Invalid;

/// Most backends a split may name.
pub const MAX_BACKENDS: usize = 32;
/// Highest weight of one backend.
pub const MAX_WEIGHT: u32 = 1_000_000;

/// A Service's split, ready to draw from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    backends: Box<[Backend]>,
    weights: Weights,
    source: Arc<str>,
}

/// Weights to draw an index by.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Weights {
    /// `upper[i]` is the sum of the weights up to and including that of index `i`.
    upper: Box<[u64]>,
}

impl Weights {
    pub(crate) fn new(weights: impl Iterator<Item = u32>) -> Self {
        let mut total = 0;
        let upper = weights.map(|weight| {
            total += u64::from(weight);
            total
        });
        Self { upper: upper.collect() }
    }

    /// The sum of all weights.
    pub(crate) fn total(&self) -> u64 {
        self.upper.last().copied().unwrap_or(0)
    }

    /// With `random` uniform over all of `u64`, each index comes with probability weight / sum of
    /// weights, to within 2⁻³². The number of weights when they add up to 0.
    pub(crate) fn draw(&self, random: u64) -> usize {
        // Multiply and shift maps u64 onto 0..total without a modulo's bias.
        let point = ((u128::from(random) * u128::from(self.total())) >> 64) as u64;
        self.upper.partition_point(|upper| *upper <= point)
    }
}

/// One target of a split.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// `namespace/name` of the Service.
    pub service: Arc<str>,
    /// Share, relative to the other backends' weights.
    pub weight: u32,
    /// Only these pods (`namespace/name`) of the Service; `None` means all of them.
    pub subset: Option<HashSet<Arc<str>>>,
    ports: Box<[(u16, u16)]>,
}

impl Backend {
    /// The backend's port for a caller that dialled `port`: as mapped, else the same number.
    #[must_use]
    pub fn port_for(&self, port: u16) -> u16 {
        self.ports.iter().find(|(from, _)| *from == port).map_or(port, |(_, to)| *to)
    }
}

impl Split {
    /// The backends in the order the TrafficSplit lists them.
    #[must_use]
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// `namespace/name` of the TrafficSplit.
    #[must_use]
    pub fn source(&self) -> &Arc<str> {
        &self.source
    }

    /// Draws the index of a backend. With `random` uniform over all of `u64`, each backend is drawn
    /// with probability weight / sum of weights, to within 2⁻³².
    ///
    /// Drawn once per request and kept across its retries.
    #[must_use]
    pub fn draw(&self, random: u64) -> usize {
        self.weights.draw(random)
    }
}

impl TryFrom<v1::Split> for Split {
    type Error = Invalid;

    fn try_from(split: v1::Split) -> Result<Self, Invalid> {
        if split.backends.is_empty() || split.backends.len() > MAX_BACKENDS {
            return Err(Invalid::value("backends", format!("name 1 to {MAX_BACKENDS} backends")));
        }
        let weights = Weights::new(split.backends.iter().map(|backend| backend.weight));
        let mut backends = Vec::with_capacity(split.backends.len());
        for (index, backend) in split.backends.into_iter().enumerate() {
            let at = |field: &str| format!("backends[{index}].{field}");
            if backend.weight > MAX_WEIGHT {
                return Err(Invalid::value(at("weight"), format!("0 to {MAX_WEIGHT}")));
            }
            if backend.service.is_empty() {
                return Err(Invalid::value(at("service"), "name a Service"));
            }
            let ports = backend
                .ports
                .iter()
                .map(|mapping| Some((port(mapping.from)?, port(mapping.to)?)))
                .collect::<Option<_>>()
                .ok_or_else(|| Invalid::value(at("ports"), "ports are 1 to 65535"))?;
            backends.push(Backend {
                service: backend.service.into(),
                weight: backend.weight,
                subset: backend
                    .has_subset
                    .then(|| backend.subset.into_iter().map(Arc::from).collect()),
                ports,
            });
        }
        if weights.total() == 0 {
            return Err(Invalid::value("backends", "at least one weight must be above 0"));
        }
        Ok(Self { backends: backends.into(), weights, source: split.source.into() })
    }
}

/// A port number from the wire: 1 to 65535.
pub(crate) fn port(number: u32) -> Option<u16> {
    u16::try_from(number).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(weights: &[u32]) -> Result<Split, Invalid> {
        let backends = weights
            .iter()
            .enumerate()
            .map(|(i, weight)| v1::Backend {
                service: format!("shop/web-{i}"),
                weight: *weight,
                ..v1::Backend::default()
            })
            .collect();
        v1::Split { backends, source: "shop/web".into() }.try_into()
    }

    #[test]
    fn every_backend_gets_exactly_its_share_of_the_number_line() {
        let split = split(&[90, 0, 10]).unwrap();
        let mut counts = [0u32; 3];
        let n = 100_000u64;
        for i in 0..n {
            counts[split.draw(i * (u64::MAX / n))] += 1;
        }
        assert!((89_999..=90_001).contains(&counts[0]), "{counts:?}");
        assert_eq!(counts[1], 0);
    }

    #[test]
    fn both_ends_of_the_number_line_are_inside() {
        let split = split(&[0, 1, 0]).unwrap();
        assert_eq!((split.draw(0), split.draw(u64::MAX)), (1, 1));
    }

    #[test]
    fn refuses_what_cannot_be_drawn_from() {
        assert_eq!(split(&[]).unwrap_err().path, "backends");
        assert_eq!(split(&[0, 0]).unwrap_err().path, "backends");
        assert_eq!(split(&[1; 33]).unwrap_err().path, "backends");
        assert_eq!(split(&[1, MAX_WEIGHT + 1]).unwrap_err().path, "backends[1].weight");
    }

    #[test]
    fn a_port_is_mapped_or_kept() {
        let backend = v1::Backend {
            service: "a/b".into(),
            weight: 1,
            ports: vec![v1::PortMapping { from: 80, to: 8080 }],
            ..v1::Backend::default()
        };
        let split: Split =
            v1::Split { backends: vec![backend], source: String::new() }.try_into().unwrap();
        assert_eq!(split.backends()[0].port_for(80), 8080);
        assert_eq!(split.backends()[0].port_for(81), 81);
    }
}
