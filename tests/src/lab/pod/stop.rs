//! A pod's deletion, as Kubernetes does it: the endpoints hear of it and the hooks start in the
//! same moment, the sidecar's among them; each application gets SIGTERM after its own hook; the
//! proxy gets SIGTERM when the applications have gone; what is left when the grace period ends is
//! killed.
//!
//! An application without a hook of its own has the one that injection gives it: its SIGTERM waits
//! until the proxy has nothing inbound left, so one that exits at once leaves no request behind.

use std::net::IpAddr;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use heddle_api::names;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Child;

use super::{Command, Origin, Pod, Role, State, processes, state};
use crate::lab::pod_spec::ContainerSpec;
use crate::lab::probe;

/// Answers when the proxy is drained, at its metrics port.
pub(crate) const DRAINED_PATH: &str = "/drained";

/// What comes before a container's SIGTERM.
enum Hook {
    None,
    Command(Child),
    Drained { origin: Origin, limit: Duration },
}

impl Pod {
    pub(super) async fn stop(&mut self) {
        self.deleted_s = Some(state::now_s());
        self.report().await;
        let grace = Duration::from_secs(self.context.spec.grace_s);
        if tokio::time::timeout(grace, self.stop_gracefully()).await.is_err() {
            tracing::info!("{}: killed after its grace period", self.context.spec.key);
        }
        // Also whatever left its process group.
        processes::signal_all(&processes::in_netns(&self.context.netns()), Signal::SIGKILL);
        while let Some(Ok((index, status))) = self.exits.join_next().await {
            self.note_exit(index, status);
        }
    }

    async fn stop_gracefully(&mut self) {
        let drain = self
            .running_proxy()
            .and_then(|_| self.spawn_hook(self.context.proxy("drain"), super::PROXY));
        let mut hooks = self.start_hooks();
        while let Some(index) = self.attend(hooks.next()).await {
            // It may have ended, or have been killed, before its hook did.
            if let Some(pid) = self.containers[index].state.pid() {
                let _ = kill(pid, Signal::SIGTERM);
            }
        }
        while self.has_running(|role| matches!(role, Role::Application(_))) {
            self.attend_once().await;
        }
        if let Some(mut drain) = drain {
            // Its status is in the proxy's log.
            let _ = self.attend(drain.wait()).await;
        }
        if let Some(pid) = self.running_proxy() {
            let _ = kill(pid, Signal::SIGTERM);
        }
        while self.has_running(|role| matches!(role, Role::Proxy)) {
            self.attend_once().await;
        }
    }

    /// Starts the hook of every running application; yields each container when its hook has ended.
    fn start_hooks(&self) -> FuturesUnordered<impl Future<Output = usize> + use<>> {
        let hooks = FuturesUnordered::new();
        for (index, container) in self.containers.iter().enumerate() {
            let Role::Application(spec) = &container.role else { continue };
            if container.state.pid().is_none() {
                continue;
            }
            let hook = self.begin_hook(spec);
            hooks.push(async move {
                await_hook(hook).await;
                index
            });
        }
        hooks
    }

    fn begin_hook(&self, spec: &ContainerSpec) -> Hook {
        if let Some(argv) = spec.pre_stop.clone() {
            let hook = self.spawn_hook(self.context.container(spec, argv), &spec.name);
            return hook.map_or(Hook::None, Hook::Command);
        }
        if self.running_proxy().is_none() {
            return Hook::None;
        }
        let origin = Origin {
            netns: self.context.netns(),
            address: IpAddr::from(self.context.addresses.v4),
            uid: names::PROXY_UID,
        };
        Hook::Drained { origin, limit: Duration::from_secs(self.context.spec.grace_s) }
    }

    /// Waits for `work`, while the pod still answers commands and notices exits.
    async fn attend<T>(&mut self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = self.attend_once() => {}
            }
        }
    }

    /// The next exit or command.
    async fn attend_once(&mut self) {
        tokio::select! {
            Some(Ok((index, status))) = self.exits.join_next() => {
                self.note_exit(index, status);
                self.report().await;
            }
            Some(command) = self.commands.recv() => match command {
                Command::Signal { container, signal, done } => {
                    let _ = done.send(self.signal(container.as_deref(), signal));
                }
                Command::Start { done, .. } => {
                    let key = &self.context.spec.key;
                    let _ = done.send(Err(anyhow::anyhow!("{key} is being stopped")));
                }
                Command::Stop => {}
            },
            else => std::future::pending().await,
        }
    }

    fn running_proxy(&self) -> Option<Pid> {
        let proxy = self.containers.iter().find(|c| matches!(c.role, Role::Proxy))?;
        proxy.state.pid()
    }

    fn has_running(&self, is_meant: impl Fn(&Role) -> bool) -> bool {
        self.containers
            .iter()
            .any(|c| is_meant(&c.role) && matches!(c.state, State::Running { .. }))
    }
}

/// Whatever becomes of a hook, SIGTERM follows it.
async fn await_hook(hook: Hook) {
    match hook {
        Hook::None => {}
        Hook::Command(mut child) => drop(child.wait().await),
        Hook::Drained { origin, limit } => {
            let asked = probe::fetch_http(origin, names::METRICS_PORT, DRAINED_PATH, &[], limit);
            if let Err(error) = asked.await {
                tracing::warn!("waiting for the proxy to be drained: {error:#}");
            }
        }
    }
}
