//! The contenders that are not ours, and none at all. Every choice that is not equal is made in
//! their favour; the configurations say which.

use std::path::{Path, PathBuf};

use heddle_api::names;

use super::{Contender, Sidecars, Variant, Workshop, certificates};
use crate::backend::{HTTP1, HTTP1_OVER_HTTP2, HTTP2, SINK};
use crate::netns::{Pair, Redirection};
use crate::process::{Launch, install};

/// What the mesh's traffic would cost without a mesh.
pub(crate) fn no_proxy(workshop: &Workshop) -> anyhow::Result<Contender> {
    const VARIANTS: &[Variant] =
        &[Variant { name: "no-proxy", http1: HTTP1, grpc: true, stream: true }];
    let mut contender = Contender::new("no-proxy", VARIANTS, workshop.cpus, Pair::create("none")?)?;
    contender.takes_any_port = true;
    Ok(contender)
}

/// The proxy of Istio, with a static configuration.
pub(crate) fn envoy(workshop: &Workshop, program: &Path) -> anyhow::Result<Contender> {
    const VARIANTS: &[Variant] = &[
        Variant { name: "envoy-h1", http1: HTTP1, grpc: false, stream: true },
        Variant { name: "envoy-h2", http1: HTTP1_OVER_HTTP2, grpc: true, stream: false },
    ];
    let dir = workshop.create_dir("envoy")?;
    certificates::write(&dir)?;
    let program = install(program, &dir)?;
    let launch = |side: &str, config: &str| -> anyhow::Result<Launch> {
        let config = Workshop::write_config(&dir, &format!("{side}.yaml"), config)?;
        let options = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"];
        let mut args: Vec<_> = options.into_iter().map(Into::into).collect();
        args.extend(["--config-path".into(), config.into()]);
        Ok(peer(program.clone(), args, dir.join(format!("{side}.log"))))
    };
    let sidecars = Sidecars {
        outbound: launch("outbound", include_str!("../../envoy/outbound.yaml"))?,
        inbound: launch("inbound", include_str!("../../envoy/inbound.yaml"))?,
    };
    let pair = Pair::create("envoy")?;
    pair.redirect(Redirection::OnePort)?;
    let mut contender = Contender::new("envoy", VARIANTS, workshop.cpus, pair)?;
    contender.sidecars = Some(sidecars);
    Ok(contender)
}

/// A fast proxy without a mesh.
pub(crate) fn haproxy(workshop: &Workshop, program: &Path) -> anyhow::Result<Contender> {
    const VARIANTS: &[Variant] = &[
        Variant { name: "haproxy-h1", http1: HTTP1, grpc: false, stream: true },
        Variant { name: "haproxy-h2", http1: HTTP1_OVER_HTTP2, grpc: true, stream: false },
    ];
    /// It has fixed destinations, so each port is redirected to a listener of its own.
    const PORTS: &[(u16, u16)] =
        &[(HTTP1, 15121), (HTTP1_OVER_HTTP2, 15122), (HTTP2, 15123), (SINK, 15124)];
    let dir = workshop.create_dir("haproxy")?;
    certificates::write(&dir)?;
    let program = install(program, &dir)?;
    let launch = |side: &str, config: &str| -> anyhow::Result<Launch> {
        let config = Workshop::write_config(&dir, &format!("{side}.cfg"), config)?;
        let args = vec!["-db".into(), "-f".into(), config.into()];
        Ok(peer(program.clone(), args, dir.join(format!("{side}.log"))))
    };
    let sidecars = Sidecars {
        outbound: launch("outbound", include_str!("../../haproxy/outbound.cfg"))?,
        inbound: launch("inbound", include_str!("../../haproxy/inbound.cfg"))?,
    };
    let pair = Pair::create("haproxy")?;
    pair.redirect(Redirection::PortByPort(PORTS))?;
    let mut contender = Contender::new("haproxy", VARIANTS, workshop.cpus, pair)?;
    contender.sidecars = Some(sidecars);
    Ok(contender)
}

fn peer(program: PathBuf, args: Vec<std::ffi::OsString>, log: PathBuf) -> Launch {
    // The same uid as our own sidecar: it is the one that the rules let through.
    Launch { program, args, env: Vec::new(), uid: names::PROXY_UID, log }
}
