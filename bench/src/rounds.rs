//! The run: rounds in which every measurement visits every contender, in an order that turns, so
//! that whatever disturbs the machine disturbs all of them.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::sleep;

use crate::backend::{GREETERS, HTTP2, SINK};
use crate::contender::{Contender, Variant};
use crate::load::{self, Timing, Window};
use crate::process::{Usage, set_realtime};
use crate::report::{Metric, Samples, Void};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    pub rounds: u32,
    pub timing: Timing,
    /// Fixed-rate measurements need more requests for a p99.
    pub rate_timing: Timing,
}

/// Requests per second of the fixed schedule, over so many connections.
pub(crate) const RATE: u32 = 1000;
pub(crate) const RATE_CONNECTIONS: u32 = 16;
/// Memory is also taken with so many connections open.
pub(crate) const MANY_CONNECTIONS: u32 = 256;
/// gRPC: so many connections, and calls in flight on each.
pub(crate) const GRPC: (u32, u32) = (10, 10);
/// Between the first answer and the moment a sidecar counts as idle.
const SETTLE: Duration = Duration::from_millis(500);

/// One row of measurements; every variant takes part unless it has no such port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Measurement {
    Http1 { connections: u32, cpu: Metric, rps: Metric },
    Rate,
    Grpc,
    Stream,
}

const MEASUREMENTS: [Measurement; 6] = [
    Measurement::Http1 { connections: 1, cpu: Metric::Http1C1CpuUs, rps: Metric::Http1C1Rps },
    Measurement::Http1 { connections: 16, cpu: Metric::Http1C16CpuUs, rps: Metric::Http1C16Rps },
    Measurement::Http1 { connections: 64, cpu: Metric::Http1C64CpuUs, rps: Metric::Http1C64Rps },
    Measurement::Rate,
    Measurement::Grpc,
    Measurement::Stream,
];

impl Measurement {
    fn includes(self, variant: &Variant) -> bool {
        match self {
            Self::Http1 { .. } | Self::Rate => true,
            Self::Grpc => variant.grpc,
            Self::Stream => variant.stream,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Http1 { connections, .. } => format!("http1, {connections} connections"),
            Self::Rate => format!("http1, {RATE} requests per second"),
            Self::Grpc => "grpc".into(),
            Self::Stream => "tcp stream".into(),
        }
    }
}

/// Runs the plan; what goes wrong becomes a void sample, not the end of the run.
pub(crate) struct Run<'a> {
    pub contenders: &'a mut [Contender],
    pub plan: Plan,
    pub samples: Samples,
    /// Whether the fixed-rate measurements had priority over everything else on the machine.
    pub realtime: bool,
}

impl Run<'_> {
    pub(crate) async fn all(&mut self) {
        for round in 0..self.plan.rounds {
            eprintln!("heddle-bench: round {} of {}", round + 1, self.plan.rounds);
            for index in turned(self.contenders.len(), round) {
                let name = self.contenders[index].name;
                let outcome = self.life(index).await;
                self.note(name, "cold start and memory", round, outcome);
            }
            if round == 0 {
                self.greetings().await;
            }
            for measurement in MEASUREMENTS {
                self.measure_all(measurement, round).await;
            }
        }
    }

    /// Fresh processes: cold start, memory idle, memory with many connections.
    async fn life(&mut self, index: usize) -> anyhow::Result<()> {
        let contender = &mut self.contenders[index];
        let cold = contender.restart().await?;
        if !contender.has_sidecars() {
            return Ok(());
        }
        sleep(SETTLE).await;
        let idle = Usage::of(&contender.pids())?;
        let target = contender.target(contender.variants[0].http1);
        let window =
            load::http1(&target, MANY_CONNECTIONS, self.plan.timing, &contender.pids()).await?;
        self.samples.add(Metric::ColdStartMs, contender.name, cold.as_secs_f64() * 1e3);
        self.samples.add(Metric::RssIdleMb, contender.name, megabytes(idle.rss_kib));
        self.samples.add(Metric::Rss256Mb, contender.name, megabytes(window.rss_kib));
        Ok(())
    }

    /// Each port is new to its sidecars once. The pairs alternate between no proxy and contender.
    async fn greetings(&mut self) {
        let Some(control) = self.contenders.iter().position(|c| !c.has_sidecars()) else { return };
        for index in 0..self.contenders.len() {
            if index == control || !self.contenders[index].takes_any_port {
                continue;
            }
            for port in GREETERS {
                let outcome = self.greeting_pair(control, index, port).await;
                let name = self.contenders[index].name;
                self.note(name, "server speaks first", 0, outcome);
            }
        }
    }

    async fn greeting_pair(
        &mut self,
        control: usize,
        index: usize,
        port: u16,
    ) -> anyhow::Result<()> {
        let name = self.contenders[index].name;
        let without = self.contenders[control].target(port);
        let with = self.contenders[index].target(port);
        let control_name = self.contenders[control].name;
        for (metric, added) in [
            (Metric::GreetingFirstMs, Metric::GreetingFirstAddedMs),
            (Metric::GreetingLaterMs, Metric::GreetingLaterAddedMs),
        ] {
            let without = load::greeting(&without).await?.as_secs_f64() * 1e3;
            let with = load::greeting(&with).await?.as_secs_f64() * 1e3;
            self.samples.add(metric, control_name, without);
            self.samples.add(metric, name, with);
            self.samples.add(added, name, with - without);
        }
        Ok(())
    }

    async fn measure_all(&mut self, measurement: Measurement, round: u32) {
        let all: Vec<_> = (0..self.contenders.len())
            .flat_map(|index| self.contenders[index].variants.iter().map(move |v| (index, v)))
            .filter(|(_, variant)| measurement.includes(variant))
            .collect();
        if measurement == Measurement::Rate {
            self.realtime &= set_realtime(&self.everybody(), true).await;
        }
        let mut fixed = Vec::new();
        for position in turned(all.len(), round) {
            let (index, variant) = all[position];
            let outcome = self.measure(measurement, index, variant).await;
            if let Ok(Some(latency)) = &outcome {
                fixed.push((index, variant.name, *latency));
            }
            self.note(variant.name, &measurement.name(), round, outcome);
        }
        if measurement == Measurement::Rate {
            self.realtime &= set_realtime(&self.everybody(), false).await;
            self.added(&fixed);
        }
    }

    /// Latency is given back, because what it adds is known only when no proxy has had its turn.
    async fn measure(
        &mut self,
        measurement: Measurement,
        index: usize,
        variant: &Variant,
    ) -> anyhow::Result<Option<Latency>> {
        let contender = &mut self.contenders[index];
        contender.check_alive()?;
        let (pids, plan) = (contender.pids(), self.plan);
        let target = contender.target(variant.http1);
        match measurement {
            Measurement::Http1 { connections, cpu, rps } => {
                let window = load::http1(&target, connections, plan.timing, &pids).await?;
                self.add_window(variant, &window, cpu, Some(rps));
                Ok(None)
            }
            Measurement::Rate => {
                let (connections, timing) = (RATE_CONNECTIONS, plan.rate_timing);
                let window = load::http1_at_rate(&target, connections, RATE, timing, &pids).await?;
                self.add_window(variant, &window, Metric::RateCpuUs, None);
                let latency = Latency::of(&window);
                self.samples.add(Metric::RateP50Us, variant.name, latency.p50_us);
                self.samples.add(Metric::RateP99Us, variant.name, latency.p99_us);
                Ok(Some(latency))
            }
            Measurement::Grpc => {
                let target = contender.target(HTTP2);
                let (connections, calls) = GRPC;
                let window = load::grpc(&target, connections, calls, plan.timing, &pids).await?;
                self.add_window(variant, &window, Metric::GrpcCpuUs, Some(Metric::GrpcRps));
                Ok(None)
            }
            Measurement::Stream => {
                let target = contender.target(SINK);
                let stream = load::stream(&target, plan.timing.counted, &pids).await?;
                #[expect(clippy::cast_precision_loss, reason = "no stream has 2^52 bytes")]
                let gigabytes = stream.bytes as f64 / 1e9;
                let rate = gigabytes * 8.0 / stream.elapsed.as_secs_f64();
                self.samples.add(Metric::StreamGbitS, variant.name, rate);
                if !pids.is_empty() {
                    let cpu = stream.cpu.as_secs_f64() / gigabytes;
                    self.samples.add(Metric::StreamCpuSPerGb, variant.name, cpu);
                }
                Ok(None)
            }
        }
    }

    fn add_window(&mut self, variant: &Variant, window: &Window, cpu: Metric, rps: Option<Metric>) {
        #[expect(clippy::cast_precision_loss, reason = "no run has 2^52 requests")]
        let requests = window.requests as f64;
        if !window.cpu.is_zero() {
            self.samples.add(cpu, variant.name, window.cpu.as_secs_f64() * 1e6 / requests);
        }
        if let Some(rps) = rps {
            self.samples.add(rps, variant.name, requests / window.elapsed.as_secs_f64());
        }
    }

    /// Compared with no proxy in the same round.
    fn added(&mut self, fixed: &[(usize, &'static str, Latency)]) {
        let is_control = |index: usize| !self.contenders[index].has_sidecars();
        let Some((_, _, control)) = fixed.iter().find(|(index, ..)| is_control(*index)) else {
            return;
        };
        let added: Vec<_> = fixed
            .iter()
            .filter(|(index, ..)| !is_control(*index))
            .map(|(_, name, found)| {
                (*name, found.p50_us - control.p50_us, found.p99_us - control.p99_us)
            })
            .collect();
        for (name, p50, p99) in added {
            self.samples.add(Metric::AddedP50Us, name, p50);
            self.samples.add(Metric::AddedP99Us, name, p99);
        }
    }

    /// All sidecars, and ourselves: load and applications.
    fn everybody(&self) -> BTreeSet<u32> {
        let sidecars = self.contenders.iter().flat_map(Contender::pids);
        sidecars.chain([std::process::id()]).collect()
    }

    fn note<T>(
        &mut self,
        variant: &str,
        measurement: &str,
        round: u32,
        outcome: anyhow::Result<T>,
    ) {
        if let Err(error) = outcome {
            let reason = format!("{error:#}");
            eprintln!("heddle-bench: void: {variant}, {measurement}: {reason}");
            let (variant, measurement) = (variant.to_owned(), measurement.to_owned());
            self.samples.void.push(Void { variant, measurement, round, reason });
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Latency {
    p50_us: f64,
    p99_us: f64,
}

impl Latency {
    fn of(window: &Window) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "no latency has 2^52 nanoseconds")]
        let at = |quantile| window.latency_ns.value_at_quantile(quantile) as f64 / 1e3;
        Self { p50_us: at(0.5), p99_us: at(0.99) }
    }
}

/// 0..length, beginning elsewhere in every round.
fn turned(length: usize, round: u32) -> impl Iterator<Item = usize> + use<> {
    let first = round as usize;
    (0..length).map(move |position| (position + first) % length)
}

#[expect(clippy::cast_precision_loss, reason = "no process has 2^52 KiB")]
fn megabytes(kib: u64) -> f64 {
    kib as f64 * 1024.0 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_round_visits_everybody_in_another_order() {
        assert_eq!(turned(3, 0).collect::<Vec<_>>(), [0, 1, 2]);
        assert_eq!(turned(3, 1).collect::<Vec<_>>(), [1, 2, 0]);
        assert_eq!(turned(3, 5).collect::<Vec<_>>(), [2, 0, 1]);
        assert_eq!(turned(0, 4).count(), 0);
    }
}
