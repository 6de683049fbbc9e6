//! What the tests need on the machine and where it is. Installs nothing: what is missing fails the
//! test with the line that installs it.

use std::path::{Path, PathBuf};

use super::stage::tools;

/// A program, or a package of the Python environment.
#[derive(Clone, Copy, Debug)]
pub enum Program {
    /// On the search path, from a Debian package.
    Debian { name: &'static str, package: &'static str },
    /// PostgreSQL's own, which Debian keeps off the search path.
    Postgres(&'static str),
    /// A module of the tests' Python environment.
    Python(&'static str),
    /// Built by `scripts/prepare`.
    Built(&'static str),
}

impl Program {
    /// Where it is.
    #[must_use]
    pub fn find(self) -> Option<PathBuf> {
        match self {
            Self::Debian { name, .. } => {
                let places = ["/usr/sbin", "/usr/bin", "/sbin", "/bin", "/usr/local/bin"];
                places.iter().map(|place| Path::new(place).join(name)).find(|path| path.is_file())
            }
            Self::Postgres(name) => {
                let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
                let paths =
                    versions.filter_map(Result::ok).map(|v| v.path().join("bin").join(name));
                paths.filter(|path| path.is_file()).max()
            }
            Self::Python(module) => {
                let libraries = std::fs::read_dir(tools().join("venv/test/lib")).ok()?;
                let mut paths = libraries
                    .filter_map(Result::ok)
                    .map(|python| python.path().join("site-packages").join(module));
                paths.find(|path| path.exists())
            }
            Self::Built(name) => Some(tools().join("bin").join(name)).filter(|path| path.is_file()),
        }
    }

    fn describe(self) -> String {
        match self {
            Self::Debian { name, package } => format!("{name}: apt-get install -y {package}"),
            Self::Postgres(name) => format!("{name}: apt-get install -y postgresql"),
            Self::Python(module) => format!("Python's {module}: scripts/prepare test"),
            Self::Built(name) => format!("{name}: scripts/prepare test"),
        }
    }
}

/// Says everything that is missing at once.
///
/// # Errors
/// One line per program, with the command that installs it.
pub fn require(programs: &[Program]) -> anyhow::Result<()> {
    let missing: Vec<_> = programs
        .iter()
        .filter(|program| program.find().is_none())
        .map(|program| program.describe())
        .collect();
    anyhow::ensure!(
        missing.is_empty(),
        "missing programs; `scripts/prepare test` installs them all:\n{}",
        missing.join("\n")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said_with_the_way_to_get_it() {
        let none = Program::Debian { name: "no-such-program", package: "no-such-package" };
        let shell = Program::Debian { name: "sh", package: "dash" };
        let error = require(&[shell, none]).unwrap_err().to_string();
        assert!(error.contains("no-such-program: apt-get install -y no-such-package"), "{error}");
        assert!(!error.contains("dash"), "{error}");
        assert!(require(&[shell]).is_ok());
    }
}
