//! Heddle as a user gets it: the control plane on a directory of files, `heddle-init` in each pod,
//! two proxies that fetch identity, configuration and policy. Nothing is left out for speed.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use heddle_api::names;
use heddle_control_plane::authn::{Claims, mint_token};
use tokio::time::{Instant, sleep};

use super::{Contender, Sidecars, Variant, Workshop};
use crate::backend::{GREETERS, HTTP1};
use crate::netns::{self, Netns, Pair};
use crate::process::{Launch, Process, install};

const VARIANTS: &[Variant] = &[Variant { name: "heddle", http1: HTTP1, grpc: true, stream: true }];
const NAMESPACE: &str = "bench";
/// No run lasts longer.
const TOKEN_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The control plane has two pods to read.
const START_LIMIT: Duration = Duration::from_secs(20);

/// `programs` is the directory of our three binaries.
pub(crate) async fn heddle(workshop: &Workshop, programs: &Path) -> anyhow::Result<Contender> {
    let files = Files::create(workshop, programs)?;
    let pair = Pair::create("heddle")?;
    let control_plane_netns = pair.create_control_plane("heddle")?;
    for (netns, side) in [(&*pair.client, "client"), (&pair.server, "server")] {
        let init = Process::spawn(&files.init(side), netns, None)?;
        init.finish().await.with_context(|| format!("heddle-init in the {side}'s pod"))?;
    }
    let control_plane = files.start_control_plane(&control_plane_netns, workshop).await?;
    let mut contender = Contender::new("heddle", VARIANTS, workshop.cpus, pair)?;
    contender.takes_any_port = true;
    contender.address = netns::SERVICE;
    contender.sidecars =
        Some(Sidecars { outbound: files.proxy("client")?, inbound: files.proxy("server")? });
    contender.support.push(control_plane);
    contender._support_netns = Some(control_plane_netns);
    Ok(contender)
}

struct Files {
    dir: PathBuf,
    token_key: [u8; 32],
}

impl Files {
    fn create(workshop: &Workshop, programs: &Path) -> anyhow::Result<Self> {
        let dir = workshop.create_dir("heddle")?;
        for program in ["heddle-control-plane", "heddle-init", "heddle-proxy"] {
            install(&programs.join(program), &dir)?;
        }
        let state = dir.join("mesh/.state");
        fs::create_dir_all(&state)?;
        fs::write(dir.join("mesh/mesh.yaml"), fill_in(include_str!("../../heddle/mesh.yaml")))?;
        fs::write(state.join("state.yaml"), fill_in(include_str!("../../heddle/state.yaml")))?;
        let mut token_key = [0; 32];
        File::open("/dev/urandom")?.read_exact(&mut token_key).context("make a key")?;
        write_secret(&dir.join("token.key"), &token_key, 0)?;
        Ok(Self { dir, token_key })
    }

    fn init(&self, side: &str) -> Launch {
        self.launch("heddle-init", Vec::new(), Vec::new(), 0, &format!("init-{side}"))
    }

    fn proxy(&self, side: &str) -> anyhow::Result<Launch> {
        let expires = SystemTime::now() + TOKEN_LIFETIME;
        let claims = Claims {
            namespace: NAMESPACE.into(),
            pod: side.into(),
            uid: format!("bench-{side}"),
            exp: expires.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs(),
        };
        let own = self.dir.join(side);
        fs::create_dir_all(&own)?;
        chown(&own, Some(names::PROXY_UID), Some(names::PROXY_UID))?;
        let token = own.join("token");
        write_secret(&token, mint_token(&self.token_key, &claims).as_bytes(), names::PROXY_UID)?;
        let control_plane = SocketAddr::from((netns::CONTROL_PLANE, names::CONTROL_PLANE_PORT));
        let text = |path: PathBuf| path.display().to_string();
        let env = [
            ("HEDDLE_CONTROL_PLANE", control_plane.to_string()),
            ("HEDDLE_TRUST_DOMAIN", "cluster.local".into()),
            ("HEDDLE_NAMESPACE", NAMESPACE.into()),
            ("HEDDLE_POD", side.into()),
            ("HEDDLE_NODE", "bench".into()),
            ("HEDDLE_TOKEN_FILE", text(token)),
            ("HEDDLE_TRUST_BUNDLE_FILE", text(self.trust_bundle())),
            ("HEDDLE_CONTROL_SOCKET", text(own.join("control.sock"))),
            ("HEDDLE_THREADS", "1".into()),
            ("HEDDLE_LOG", "warn".into()),
        ];
        let env = env.map(|(name, value): (&str, String)| (name.to_owned(), value)).into();
        Ok(self.launch("heddle-proxy", vec!["run".into()], env, names::PROXY_UID, side))
    }

    async fn start_control_plane(
        &self,
        netns: &Netns,
        workshop: &Workshop,
    ) -> anyhow::Result<Process> {
        let mesh = self.dir.join("mesh").display().to_string();
        let key = self.dir.join("token.key").display().to_string();
        let bundle = self.trust_bundle().display().to_string();
        // Sidecars are restarted more often here than a pod in its right mind would.
        let args = [
            "--source",
            "files",
            "--dir",
            &mesh,
            "--token-key-file",
            &key,
            "--trust-bundle-out",
            &bundle,
            "--csr-per-minute",
            "6000",
            "--log",
            "info",
        ];
        let args = args.map(str::to_owned).into();
        let launch = self.launch("heddle-control-plane", args, Vec::new(), 0, "control-plane");
        let mut process = Process::spawn(&launch, netns, workshop.cpus.load)?;
        let started = Instant::now();
        while !self.trust_bundle().exists() {
            process.check_alive().context("heddle-control-plane")?;
            if started.elapsed() > START_LIMIT {
                bail!("no trust bundle after {START_LIMIT:?}\n{}", process.last_words());
            }
            sleep(Duration::from_millis(5)).await;
        }
        Ok(process)
    }

    fn trust_bundle(&self) -> PathBuf {
        self.dir.join("trust-bundle.pem")
    }

    fn launch(
        &self,
        program: &str,
        args: Vec<String>,
        mut env: Vec<(String, String)>,
        uid: u32,
        log: &str,
    ) -> Launch {
        env.push(("PATH".into(), "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        Launch {
            program: self.dir.join(program),
            args: args.into_iter().map(Into::into).collect(),
            env,
            uid,
            log: self.dir.join(format!("{log}.log")),
        }
    }
}

/// Addresses, and the ports that say nothing about what they speak.
fn fill_in(template: &str) -> String {
    let undeclared: Vec<_> =
        GREETERS.map(|port| format!("  - {{ name: p{port}, port: {port} }}")).collect();
    template
        .replace("@CLIENT@", &netns::CLIENT.to_string())
        .replace("@SERVER@", &netns::SERVER.to_string())
        .replace("@SERVICE@", &netns::SERVICE.to_string())
        .replace("@UNDECLARED@", &undeclared.join("\n"))
}

/// Readable by `owner` alone.
fn write_secret(path: &Path, content: &[u8], owner: u32) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o400).open(path)?;
    file.write_all(content)?;
    chown(path, Some(owner), Some(owner)).with_context(|| format!("give {} away", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_in() {
        for template in
            [include_str!("../../heddle/mesh.yaml"), include_str!("../../heddle/state.yaml")]
        {
            let text = fill_in(template);
            assert!(!text.contains('@'), "{text}");
            assert!(text.contains("  - { name: p9101, port: 9101 }\n"), "{text}");
        }
    }
}
