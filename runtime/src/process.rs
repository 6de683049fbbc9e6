//! Metrics of the process itself, read from `/proc` at each scrape.

use std::fs;

use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use prometheus::{Counter, Gauge, Registry};

/// Ticks a second in `/proc/self/stat`: fixed by the kernel's interface to programs.
const TICKS_PER_SECOND: f64 = 100.0;

/// Resident memory, open files and processor time, under the names Prometheus users know.
#[derive(Debug)]
pub struct Process {
    resident: Gauge,
    open_fds: Gauge,
    // Describes only: a counter cannot be set, so each scrape fills a fresh one.
    cpu: Counter,
}

impl Process {
    /// Makes the families and registers them.
    ///
    /// # Errors
    /// When the names are taken in `registry`.
    pub fn register(registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(Self {
            resident: Gauge::new("process_resident_memory_bytes", "Resident memory.")?,
            open_fds: Gauge::new("process_open_fds", "Open file descriptors.")?,
            cpu: cpu_counter()?,
        }))
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        [self.resident.desc(), self.open_fds.desc(), self.cpu.desc()].concat()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().and_then(|s| resident(&s))
        {
            self.resident.set(bytes);
        }
        if let Ok(entries) = fs::read_dir("/proc/self/fd") {
            self.open_fds.set(f64::from(u32::try_from(entries.count()).unwrap_or(u32::MAX)));
        }
        let mut families = [self.resident.collect(), self.open_fds.collect()].concat();
        let seconds = fs::read_to_string("/proc/self/stat").ok().and_then(|s| cpu(&s));
        if let (Some(seconds), Ok(counter)) = (seconds, cpu_counter()) {
            counter.inc_by(seconds);
            families.extend(counter.collect());
        }
        families
    }
}

fn cpu_counter() -> Result<Counter, prometheus::Error> {
    Counter::new("process_cpu_seconds_total", "Processor time, user and system.")
}

fn resident(status: &str) -> Option<f64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? * 1024.0)
}

/// Fields 14 and 15. The command in field 2 may hold spaces and parentheses.
fn cpu(stat: &str) -> Option<f64> {
    let mut fields = stat[stat.rfind(')')? + 1..].split_ascii_whitespace().skip(11);
    let user = fields.next()?.parse::<f64>().ok()?;
    let system = fields.next()?.parse::<f64>().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        assert_eq!(resident("Name:\tx\nVmRSS:\t    2048 kB\n"), Some(2_097_152.0));
        assert_eq!(resident("Name:\tx\n"), None);
        let stat = "7 (a) b (c) S 1 7 7 0 -1 4194304 10 0 0 0 250 50 0 0 20 0 1 0";
        assert_eq!(cpu(stat), Some(3.0));
    }

    #[test]
    fn shows_this_process() {
        let registry = Registry::new();
        Process::register(&registry).unwrap();
        let names: Vec<String> = registry.gather().iter().map(|f| f.name().to_owned()).collect();
        assert_eq!(
            names,
            ["process_cpu_seconds_total", "process_open_fds", "process_resident_memory_bytes"]
        );
    }
}
