//! What people ask of the node.

use nix::sys::signal::Signal;
use tokio::sync::oneshot;

use super::{Node, Reply, Request, control_plane, pod};
use crate::lab::enter::Enter;
use crate::lab::layout::PodKey;
use crate::lab::protocol::Target;

/// The answer to a command, or what went wrong.
type Answer = oneshot::Sender<Reply>;

impl Node {
    pub(super) fn command(&mut self, request: Request, reply: Answer) {
        match request {
            Request::Status => answer(reply, Ok(Reply::Status(self.status()))),
            Request::Enter { pod, container, argv } => {
                let enter = self.enter(&pod, container.as_deref(), argv);
                answer(reply, enter.map(|enter| Reply::Enter(Box::new(enter))));
            }
            Request::Signal { target, signal } => match Signal::try_from(signal) {
                Ok(signal) => self.signal(target, signal, reply),
                Err(_) => answer(reply, Err(anyhow::anyhow!("{signal} is not a signal's number"))),
            },
            Request::Start { target } => self.start(target, reply),
            Request::Stop { pod } => self.stop(&pod, reply),
        }
    }

    fn enter(
        &self,
        pod: &str,
        container: Option<&str>,
        argv: Vec<String>,
    ) -> anyhow::Result<Enter> {
        let key: PodKey = pod.parse()?;
        let entry = self.pods.get(&key).ok_or_else(|| self.unknown(&key))?;
        entry.context.exec(container, argv)
    }

    fn signal(&self, target: Target, signal: Signal, reply: Answer) {
        let (key, container) = match target {
            Target::ControlPlane => {
                let command = |done| control_plane::Command::Signal { signal, done };
                return self.tell_control_plane(command, reply);
            }
            Target::Pod(key) => (key, None),
            Target::Container(key, container) => (key, Some(container)),
        };
        self.tell(&key, |done| pod::Command::Signal { container, signal, done }, reply);
    }

    fn start(&mut self, target: Target, reply: Answer) {
        let (key, container) = match target {
            Target::ControlPlane => {
                let command = |done| control_plane::Command::Start { done };
                return self.tell_control_plane(command, reply);
            }
            Target::Pod(key) => (key, None),
            Target::Container(key, container) => (key, Some(container)),
        };
        if self.held.remove(&key) {
            // It is made anew as soon as the one before is gone.
            return answer(reply, Ok(Reply::Done));
        }
        self.tell(&key, |done| pod::Command::Start { container, done }, reply);
    }

    fn stop(&mut self, pod: &str, reply: Answer) {
        let key: PodKey = match pod.parse() {
            Ok(key) => key,
            Err(error) => return answer(reply, Err(error)),
        };
        if !self.pods.contains_key(&key) {
            return answer(reply, Err(self.unknown(&key)));
        }
        self.held.insert(key.clone());
        let entry = self.pods.get_mut(&key).expect("looked up above");
        entry.stop();
        entry.waiting.push(reply);
    }

    fn tell(&self, key: &PodKey, command: impl FnOnce(pod::Done) -> pod::Command, reply: Answer) {
        let Some(entry) = self.pods.get(key) else {
            return answer(reply, Err(self.unknown(key)));
        };
        let (done, outcome) = oneshot::channel();
        if entry.commands.try_send(command(done)).is_err() {
            return answer(reply, Err(anyhow::anyhow!("{key} is being stopped")));
        }
        forward(outcome, reply);
    }

    fn tell_control_plane(
        &self,
        command: impl FnOnce(pod::Done) -> control_plane::Command,
        reply: Answer,
    ) {
        let (done, outcome) = oneshot::channel();
        if self.control_plane.try_send(command(done)).is_err() {
            let error = anyhow::anyhow!("this lab was started with --no-control-plane");
            return answer(reply, Err(error));
        }
        forward(outcome, reply);
    }

    fn unknown(&self, key: &PodKey) -> anyhow::Error {
        let pods: Vec<_> = self.pods.keys().map(ToString::to_string).collect();
        anyhow::anyhow!("no pod {key}; there are: {}", pods.join(", "))
    }
}

fn answer(reply: Answer, outcome: anyhow::Result<Reply>) {
    let outcome = outcome.unwrap_or_else(|error| Reply::Failed { message: format!("{error:#}") });
    // Whoever asked may have given up.
    let _ = reply.send(outcome);
}

fn forward(outcome: oneshot::Receiver<anyhow::Result<()>>, reply: Answer) {
    tokio::spawn(async move {
        let outcome = outcome.await.unwrap_or_else(|_| Err(anyhow::anyhow!("it is being stopped")));
        answer(reply, outcome.map(|()| Reply::Done));
    });
}
