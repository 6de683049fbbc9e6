//! How each process of a pod is started: its uid, environment, files and log.

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, bail};
use heddle_api::names;
use heddle_control_plane::authn::{Claims, mint_token};
use nix::unistd::{Gid, Uid, chown};
use serde::{Deserialize, Serialize};
use tokio::process::{Child, Command};

use super::enter::{Capabilities, Enter, EtcFile};
use super::layout::Layout;
use super::network::Addresses;
use super::pod_spec::{ContainerSpec, EnvValue, FieldRef, PodSpec};
use super::published::replace_file;

/// What `up` was asked for, as the node process needs it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeOptions {
    /// Whether there is a control plane at all.
    pub control_plane: bool,
    /// More arguments for it.
    pub control_plane_args: Vec<String>,
    /// Environment of every proxy, over the lab's own.
    pub proxy_env: Vec<(String, String)>,
    /// `HEDDLE_LOG` of proxies and control plane.
    pub log: String,
}

/// A bootstrap token's life; it is renewed well before.
const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// A pod that has an address, and everything to start its processes with.
#[derive(Debug, Clone)]
pub(crate) struct PodContext {
    pub layout: Layout,
    pub spec: PodSpec,
    pub uid: String,
    pub addresses: Addresses,
    pub options: NodeOptions,
    pub trust_domain: String,
}

impl PodContext {
    pub(crate) fn netns(&self) -> String {
        self.layout.pod_netns(&self.spec.key)
    }

    /// Makes the pod's files; the hosts file is the node's to write.
    pub(crate) fn create_files(&self) -> anyhow::Result<()> {
        let dir = self.layout.pod(&self.spec.key);
        for container in &self.spec.containers {
            make_dir(&dir.join("work").join(&container.name), container.uid, container.gid, 0o755)?;
        }
        if self.spec.meshed {
            make_dir(&dir.join("control"), names::PROXY_UID, names::PROXY_UID, 0o700)?;
            self.write_token()?;
        }
        Ok(())
    }

    /// Writes a new bootstrap token, readable by the proxy alone.
    pub(crate) fn write_token(&self) -> anyhow::Result<()> {
        let key = fs::read(self.layout.state().join("token-key")).context("read the token key")?;
        let expires = SystemTime::now() + TOKEN_LIFETIME;
        let claims = Claims {
            namespace: self.spec.key.namespace.clone(),
            pod: self.spec.key.name.clone(),
            uid: self.uid.clone(),
            exp: expires.duration_since(UNIX_EPOCH).context("the clock is before 1970")?.as_secs(),
        };
        let dir = self.layout.pod(&self.spec.key);
        let staged = dir.join(".token.new");
        let _ = fs::remove_file(&staged);
        OpenOptions::new().write(true).create_new(true).mode(0o400).open(&staged)?;
        chown(&staged, Some(Uid::from_raw(names::PROXY_UID)), None)?;
        fs::write(&staged, mint_token(&key, &claims))?;
        fs::rename(&staged, dir.join("token")).context("replace the token")
    }

    /// The one-shot that writes the redirection rules.
    pub(crate) fn init(&self) -> Enter {
        let argv = vec![self.program(names::INIT_CONTAINER)];
        let env = self.spec.init_env.clone();
        Enter { capabilities: Capabilities::NetAdmin, ..self.enter(0, 0, argv, env) }
    }

    /// A command of the proxy: `run`, or `drain`.
    pub(crate) fn proxy(&self, command: &str) -> Enter {
        let argv = vec![self.program(names::PROXY_CONTAINER), command.to_owned()];
        let dir = self.layout.pod(&self.spec.key);
        let path = |path: PathBuf| path.display().to_string();
        let control_plane =
            SocketAddr::new(Addresses::control_plane().v4.into(), names::CONTROL_PLANE_PORT);
        let mut env: BTreeMap<String, String> = [
            ("HEDDLE_CONTROL_PLANE", control_plane.to_string()),
            ("HEDDLE_TRUST_DOMAIN", self.trust_domain.clone()),
            ("HEDDLE_NAMESPACE", self.spec.key.namespace.clone()),
            ("HEDDLE_POD", self.spec.key.name.clone()),
            ("HEDDLE_NODE", self.spec.node.clone()),
            ("HEDDLE_TOKEN_FILE", path(dir.join("token"))),
            ("HEDDLE_TRUST_BUNDLE_FILE", path(self.layout.trust_bundle())),
            ("HEDDLE_CONTROL_SOCKET", path(dir.join("control").join("control.sock"))),
            ("HEDDLE_LOG", self.options.log.clone()),
            ("HEDDLE_ACCESS_LOG", "off".to_owned()),
        ]
        .map(|(name, value)| (name.to_owned(), value))
        .into();
        env.extend(self.options.proxy_env.iter().cloned());
        env.extend(self.spec.proxy_env.iter().cloned());
        self.enter(names::PROXY_UID, names::PROXY_UID, argv, env.into_iter().collect())
    }

    /// A command in a container of the application.
    pub(crate) fn container(&self, container: &ContainerSpec, argv: Vec<String>) -> Enter {
        let work = self.layout.pod(&self.spec.key).join("work").join(&container.name);
        let mut env = vec![("HOME".to_owned(), work.display().to_string())];
        env.extend(container.env.iter().map(|(name, value)| (name.clone(), self.value(value))));
        let mut enter = self.enter(container.uid, container.gid, argv, env);
        enter.cwd = container.working_dir.clone().unwrap_or(work);
        enter
    }

    /// A command of a person's in a container, by default the first; the proxy's and the mesh's other
    /// containers are not for that.
    pub(crate) fn exec(&self, container: Option<&str>, argv: Vec<String>) -> anyhow::Result<Enter> {
        let containers = &self.spec.containers;
        let found = containers.iter().find(|c| container.is_none_or(|name| c.name == name));
        let Some(found) = found else {
            let names: Vec<_> = containers.iter().map(|c| c.name.as_str()).collect();
            let key = &self.spec.key;
            bail!("{key} has no such container; it has: {}", names.join(", "));
        };
        Ok(self.container(found, argv))
    }

    fn value(&self, value: &EnvValue) -> String {
        let field = match value {
            EnvValue::Text(text) => return text.clone(),
            EnvValue::Field(field) => field,
        };
        match field {
            FieldRef::Name => self.spec.key.name.clone(),
            FieldRef::Namespace => self.spec.key.namespace.clone(),
            FieldRef::Uid => self.uid.clone(),
            FieldRef::PodIp => self.addresses.v4.to_string(),
            FieldRef::PodIps => self.addresses.both().map(|ip| ip.to_string()).join(","),
            FieldRef::HostIp => super::network::GATEWAY_V4.to_string(),
            FieldRef::NodeName => self.spec.node.clone(),
            FieldRef::ServiceAccountName => self.spec.service_account.clone(),
        }
    }

    fn program(&self, name: &str) -> String {
        self.layout.bin().join(name).display().to_string()
    }

    fn enter(&self, uid: u32, gid: u32, argv: Vec<String>, env: Vec<(String, String)>) -> Enter {
        let run = self.layout.run();
        let etc = |name: &str, source: PathBuf| EtcFile { name: name.to_owned(), source };
        let mut variables = base_env(&self.layout);
        variables.push(("HOSTNAME".to_owned(), self.spec.hostname.clone()));
        variables.extend(env);
        Enter {
            netns: self.netns(),
            hostname: self.spec.hostname.clone(),
            etc: vec![
                etc("hosts", self.layout.pod(&self.spec.key).join("hosts")),
                etc("resolv.conf", run.join("resolv.conf")),
                etc("nsswitch.conf", run.join("nsswitch.conf")),
            ],
            uid,
            gid,
            capabilities: Capabilities::None,
            cwd: PathBuf::from("/"),
            env: variables,
            argv,
            parent: None,
        }
    }
}

/// The lab's programs come first on every search path.
pub(crate) fn base_env(layout: &Layout) -> Vec<(String, String)> {
    let bin = layout.bin().display().to_string();
    let path = format!("{bin}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    vec![("PATH".to_owned(), path), ("LANG".to_owned(), "C.UTF-8".to_owned())]
}

/// Starts a process whose output is appended to `log`. It leads a process group of its own.
pub(crate) fn spawn(mut enter: Enter, log: &Path) -> anyhow::Result<Child> {
    let out = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    enter.parent = Some(nix::unistd::Pid::this().as_raw());
    let mut command = Command::new(std::env::current_exe()?);
    command
        .arg("__enter")
        .arg(serde_json::to_string(&enter)?)
        .stdin(Stdio::null())
        .stdout(out.try_clone()?)
        .stderr(out)
        .process_group(0);
    command.spawn().with_context(|| format!("start {:?}", enter.argv))
}

/// Makes a directory with an owner; its parents are everybody's to pass.
fn make_dir(path: &Path, uid: u32, gid: u32, mode: u32) -> anyhow::Result<()> {
    fs::create_dir_all(path).with_context(|| format!("make {}", path.display()))?;
    fs::set_permissions(path, Permissions::from_mode(mode))?;
    chown(path, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .with_context(|| format!("give {} to uid {uid}", path.display()))
}

/// Copies the trust bundle to where proxies may read it, once the control plane has written it.
pub(crate) fn copy_trust_bundle(layout: &Layout) -> anyhow::Result<()> {
    let Ok(bundle) = fs::read(layout.state().join("trust-bundle.pem")) else { return Ok(()) };
    if fs::read(layout.trust_bundle()).is_ok_and(|copy| copy == bundle) {
        return Ok(());
    }
    replace_file(&layout.trust_bundle(), &bundle).context("copy the trust bundle")
}
