//! Cases over one lab, in sequence: each named, each with its control without the mesh, all run
//! whatever became of the others.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

use super::stage::Stage;

/// Who calls whom: namespaces of the client and of the servers.
#[derive(Clone, Copy, Debug)]
pub struct Side {
    pub client: &'static str,
    pub server: &'static str,
}

impl Side {
    /// Without the mesh: the control.
    pub const PLAIN: Self = Self { client: "plain", server: "plain" };
    /// Both meshed.
    pub const MESHED: Self = Self { client: "meshed", server: "meshed" };
    /// A client without a proxy calls meshed servers whose ports are Permissive.
    pub const PERMISSIVE: Self = Self { client: "plain", server: "open" };

    /// A pod of the client's side.
    #[must_use]
    pub fn client(&self, name: &str) -> String {
        format!("{}/{name}", self.client)
    }

    /// A pod of the server's side.
    #[must_use]
    pub fn server(&self, name: &str) -> String {
        format!("{}/{name}", self.server)
    }

    /// A Service of the server's side, as the client calls it.
    #[must_use]
    pub fn host(&self, name: &str) -> String {
        format!("{name}.{}", self.server)
    }

    #[must_use]
    pub fn is_meshed(&self) -> bool {
        self.server != Self::PLAIN.server
    }
}

/// The same manifests for each side, `@NS@` being its namespace and `@INJECT@` whether it is meshed;
/// and the policy that lets plaintext into the namespace `open`.
#[must_use]
pub fn sides(manifests: &str) -> Vec<String> {
    let of = |name: &str, inject: &str| manifests.replace("@NS@", name).replace("@INJECT@", inject);
    let open = "apiVersion: heddle.io/v1alpha1\nkind: MeshTLSPolicy\n\
                metadata: { name: open, namespace: open }\nspec: { mode: Permissive }\n";
    vec![of("plain", "disabled"), of("meshed", "enabled"), of("open", "enabled"), open.to_owned()]
}

/// Runs cases and keeps what failed.
#[derive(Debug, Default)]
pub struct Suite {
    ran: u32,
    failures: Vec<String>,
}

impl Suite {
    /// A case with its control: first without the mesh, then with it.
    pub fn both(
        &mut self,
        stage: &Stage,
        name: &str,
        case: impl Fn(&Stage, &Side) -> anyhow::Result<()>,
    ) {
        self.on(stage, name, &[Side::PLAIN, Side::MESHED], case);
    }

    /// The same, and from outside the mesh to a Permissive port.
    pub fn all(
        &mut self,
        stage: &Stage,
        name: &str,
        case: impl Fn(&Stage, &Side) -> anyhow::Result<()>,
    ) {
        self.on(stage, name, &[Side::PLAIN, Side::MESHED, Side::PERMISSIVE], case);
    }

    /// One case between named sides.
    pub fn on(
        &mut self,
        stage: &Stage,
        name: &str,
        sides: &[Side],
        case: impl Fn(&Stage, &Side) -> anyhow::Result<()>,
    ) {
        if !is_wanted(name) {
            return;
        }
        for side in sides {
            let begun = Instant::now();
            let outcome = case(stage, side);
            self.ran += 1;
            let (from, to) = (side.client, side.server);
            let seconds = begun.elapsed().as_secs_f32();
            let Err(error) = outcome else {
                eprintln!("{name} ({from} to {to}): ok, {seconds:.1} s");
                continue;
            };
            let mut text = format!("{name} ({from} to {to}) after {seconds:.1} s: {error:#}");
            if side.is_meshed() {
                let _ = write!(text, "\n{}", stage.proxy_logs(side));
            } else {
                text.push_str("\nThis is the control: the mesh has no part in it.");
            }
            eprintln!("{text}");
            self.failures.push(text);
            if !side.is_meshed() {
                break;
            }
        }
    }

    /// Fails when a case did.
    ///
    /// # Panics
    /// With every failure, one after the other.
    pub fn finish(self) {
        let Self { ran, failures } = self;
        eprintln!("{ran} cases, {} failed", failures.len());
        assert!(failures.is_empty(), "{} of {ran}:\n{}", failures.len(), failures.join("\n\n"));
    }
}

/// `HEDDLE_TEST_CASES=a,b` runs only the cases whose names hold one of the words.
fn is_wanted(name: &str) -> bool {
    let Some(words) = std::env::var_os("HEDDLE_TEST_CASES") else { return true };
    words.to_string_lossy().split(',').any(|word| name.contains(word))
}

/// Waits until `condition` holds.
///
/// # Errors
/// It did not within `limit`.
pub fn eventually(
    what: &str,
    limit: Duration,
    mut condition: impl FnMut() -> bool,
) -> anyhow::Result<()> {
    let begun = Instant::now();
    while !condition() {
        if begun.elapsed() > limit {
            bail!("{what}: not within {limit:?}");
        }
        pause(Duration::from_millis(50));
    }
    Ok(())
}

#[expect(clippy::disallowed_methods, reason = "this thread waits for other processes, no runtime")]
fn pause(time: Duration) {
    std::thread::sleep(time);
}
