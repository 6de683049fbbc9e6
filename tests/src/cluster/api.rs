//! An API server of one test's own, with its etcd: real admission, real RBAC, real watches, and no
//! node. What a kubelet would do (a Pod's status, say) the test writes itself.
//!
//! Needs no root. Several run side by side: each has a directory, sockets and a port of its own.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, TcpListener};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::time::{Instant, sleep};

use super::daemon::{Daemon, Keeper};
use super::pki::{Authority, write_service_account_keys};
use super::programs::{API, Programs};
use super::tools::Tools;
use super::{etcd, kubeconfig, server_arguments};

const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Directories of test processes begin so; the process id follows.
const PREFIX: &str = "heddle-api-";
/// A machine that compiles meanwhile takes its time.
const PATIENCE: Duration = Duration::from_secs(120);
const POLL: Duration = Duration::from_millis(50);
/// Somebody else may take the port between its choice and its use.
const PORT_ATTEMPTS: usize = 5;

/// What etcd holds, and a copy of it.
const ETCD: &str = "etcd";
const SAVED: &str = "etcd.saved";

/// A running API server. Dropping it ends its processes and removes its files.
#[derive(Debug)]
pub struct ApiServer {
    // In the order in which they end.
    controllers: Option<Daemon>,
    server: Option<Daemon>,
    etcd: Daemon,
    keeper: Keeper,
    tools: Tools,
    authority: Authority,
    port: u16,
    dir: TempDir,
}

impl ApiServer {
    /// Starts one and waits until it is ready.
    ///
    /// # Errors
    /// What does not start, with the end of its log.
    pub async fn start() -> anyhow::Result<Self> {
        let programs = Programs::find(&API)?;
        remove_left_over();
        let dir = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .tempdir()?;
        let authority = Authority::new("heddle-tests")?;
        authority.pair().write(dir.path(), "ca")?;
        write_service_account_keys(dir.path())?;
        let names = server_arguments::server_names(ADDRESS);
        authority.server("kube-apiserver", &names)?.write(dir.path(), "server")?;
        let keeper = Keeper::start()?;
        let arguments = server_arguments::etcd(dir.path());
        let etcd = keeper.spawn("etcd", &programs.path("etcd"), dir.path(), &arguments)?;
        let kubeconfig = dir.path().join("admin.kubeconfig");
        let tools = Tools::new(programs, kubeconfig, dir.path().to_owned());
        let (controllers, server) = (None, None);
        let mut this = Self { controllers, server, etcd, keeper, tools, authority, port: 0, dir };
        this.start_somewhere().await?;
        Ok(this)
    }

    /// Starts Kubernetes' own controllers too: endpoint slices, service accounts, the root
    /// certificate in every namespace, garbage collection, deployments, jobs. Not those that would
    /// miss the nodes and delete what seems to run on them.
    ///
    /// # Errors
    /// What does not start, with the end of its log.
    pub async fn with_controllers(mut self) -> anyhow::Result<Self> {
        let user = "system:kube-controller-manager";
        self.write_kubeconfig("controllers", user, &[])?;
        let mut arguments = server_arguments::controllers(self.dir.path());
        arguments.push(
            "--controllers=*,-node-lifecycle-controller,-node-ipam-controller,\
             -pod-garbage-collector-controller,-taint-eviction-controller"
                .into(),
        );
        let program = self.tools.programs().path("kube-controller-manager");
        let name = "kube-controller-manager";
        let daemon = self.keeper.spawn(name, &program, self.dir.path(), &arguments)?;
        self.controllers = Some(daemon);
        let begun = Instant::now();
        // The last of what a new namespace gets; before it, a Pod is refused.
        while !self.kubectl(&["get", "serviceaccount", "default"]).await?.status.success() {
            self.check(begun)?;
            sleep(POLL).await;
        }
        Ok(self)
    }

    /// The address of the API, `https://127.0.0.1:PORT`.
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{ADDRESS}:{}", self.port)
    }

    /// An administrator's client.
    ///
    /// # Errors
    /// When the kubeconfig cannot be read.
    pub async fn client(&self) -> anyhow::Result<Client> {
        client_of(self.tools.kubeconfig()).await
    }

    /// The kubeconfig of somebody whom the API server knows by a certificate.
    ///
    /// # Errors
    /// As the file system's.
    pub fn kubeconfig_for(&self, user: &str, groups: &[&str]) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(&user.replace([':', '/'], "-"), user, groups)
    }

    /// A client of somebody whom the API server knows by a certificate.
    ///
    /// # Errors
    /// As the file system's.
    pub async fn client_for(&self, user: &str, groups: &[&str]) -> anyhow::Result<Client> {
        client_of(&self.kubeconfig_for(user, groups)?).await
    }

    /// Kills the API server, as a crash would.
    pub fn kill(&mut self) {
        self.server = None;
    }

    /// Starts it again where it was, after [`Self::kill`].
    ///
    /// # Errors
    /// The end of its log.
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.server = None;
        let mut server = self.spawn_server(self.port)?;
        let ready = self.wait_until_ready(&mut server).await;
        self.server = Some(server);
        ready
    }

    /// Forgets the past: a watch that resumes from before is answered 410.
    ///
    /// # Errors
    /// What etcd answers instead.
    pub async fn compact(&self) -> anyhow::Result<()> {
        etcd::compact(&self.dir.path().join("etcd.sock")).await
    }

    /// Keeps a copy of all that etcd holds now. The API server is away meanwhile.
    ///
    /// # Errors
    /// What cannot be copied, or does not start again.
    pub async fn back_up(&mut self) -> anyhow::Result<()> {
        self.start_over(ETCD, SAVED).await
    }

    /// Goes back to the last [`Self::back_up`], as an operator does who restores etcd: whatever came
    /// after never was, and revisions count from there again.
    ///
    /// # Errors
    /// What cannot be copied, or does not start again.
    pub async fn restore(&mut self) -> anyhow::Result<()> {
        self.start_over(SAVED, ETCD).await
    }

    /// Copies one directory of etcd's over the other while nothing runs.
    async fn start_over(&mut self, from: &str, to: &str) -> anyhow::Result<()> {
        self.server = None;
        self.etcd.kill();
        let (from, to) = (self.dir.path().join(from), self.dir.path().join(to));
        if to.exists() {
            fs::remove_dir_all(&to)?;
        }
        let copied = Command::new("cp").arg("-a").args([&from, &to]).status().await?;
        ensure!(copied.success(), "cp: {copied}");
        let program = self.tools.programs().path("etcd");
        let arguments = server_arguments::etcd(self.dir.path());
        self.etcd = self.keeper.spawn("etcd", &program, self.dir.path(), &arguments)?;
        self.restart().await
    }

    async fn start_somewhere(&mut self) -> anyhow::Result<()> {
        for _ in 0..PORT_ATTEMPTS {
            self.port = TcpListener::bind((ADDRESS, 0))?.local_addr()?.port();
            self.write_kubeconfig("admin", "admin", &["system:masters"])?;
            let mut server = self.spawn_server(self.port)?;
            match self.wait_until_ready(&mut server).await {
                Ok(()) => {
                    self.server = Some(server);
                    return Ok(());
                }
                Err(_) if server.log_tail().contains("address already in use") => {}
                Err(error) => return Err(error),
            }
        }
        bail!("no port of {ADDRESS} stays free for as long as an API server takes to start")
    }

    fn spawn_server(&self, port: u16) -> anyhow::Result<Daemon> {
        let mut arguments = server_arguments::api_server(self.dir.path(), ADDRESS, port);
        // It would refuse to publish a loopback address as the Service `kubernetes`.
        arguments.push("--endpoint-reconciler-type=none".into());
        let program = self.tools.programs().path("kube-apiserver");
        self.keeper.spawn("kube-apiserver", &program, self.dir.path(), &arguments)
    }

    async fn wait_until_ready(&mut self, server: &mut Daemon) -> anyhow::Result<()> {
        let begun = Instant::now();
        let client = self.client().await?;
        while !is_ready(&client).await {
            server.check()?;
            self.check(begun).with_context(|| server.log_tail())?;
            sleep(POLL).await;
        }
        Ok(())
    }

    fn check(&mut self, begun: Instant) -> anyhow::Result<()> {
        self.etcd.check()?;
        if let Some(server) = &mut self.server {
            server.check()?;
        }
        if let Some(controllers) = &mut self.controllers {
            controllers.check()?;
        }
        if begun.elapsed() > PATIENCE {
            bail!("not ready after {PATIENCE:?}");
        }
        Ok(())
    }

    fn write_kubeconfig(&self, name: &str, user: &str, groups: &[&str]) -> anyhow::Result<PathBuf> {
        let path = self.dir.path().join(format!("{name}.kubeconfig"));
        let pair = self.authority.client(user, groups)?;
        kubeconfig::write(&path, &self.url(), self.authority.certificate(), &pair)?;
        Ok(path)
    }
}

/// `kubectl` and manifests, as administrator.
impl Deref for ApiServer {
    type Target = Tools;

    fn deref(&self) -> &Tools {
        &self.tools
    }
}

/// A client for the current context of a kubeconfig.
///
/// # Errors
/// When it cannot be read.
pub async fn client_of(kubeconfig: &Path) -> anyhow::Result<Client> {
    let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

/// Whether the API server says that it is ready.
pub(crate) async fn is_ready(client: &Client) -> bool {
    let request = http::Request::get("/readyz").body(Vec::new()).expect("a path and no body");
    client.request_text(request).await.is_ok()
}

/// Removes directories of test processes that were killed. Their children died with them.
fn remove_left_over() {
    for entry in fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let pid = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            // Somebody else's, or gone by now.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}
