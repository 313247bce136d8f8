//! Checkpoint and restore with CRIU, which does the work; we say what of a container lies outside of it.
//!
//! | outside | when dumping | when restoring |
//! |---|---|---|
//! | sources of bind mounts, the null device over masked files, folders of v1 cgroups | `ext_mnt`: place, name | `ext_mnt`: name, source |
//! | standard input, output and error | `descriptors.json`, `external` for files | `inherit_fd`: ours |
//! | a terminal's master | `orphan_pts_master` | sent to us, and from us to the console socket |
//! | network and PID namespaces that were joined | `external`: inode | `inherit_fd` |
//! | other namespaces that were joined | nothing | `join_ns` |
//! | network devices | `empty_ns`: they are whoever's who made them | |
//!
//! What a container's mounts and devices are is read from its bundle, when it is dumped as when it is restored.
//! Images are the same as runc's: each restores what the other has dumped.
//!
//! Source: criu(8); <https://criu.org/RPC>; runc-checkpoint(8), runc-restore(8).

mod asked;
pub mod descriptors;
mod dump;
mod log;
mod message;
mod outside;
mod own_mounts;
mod restore;
mod swrk;

use std::path::{Path, PathBuf};

pub use asked::{Asked, cgroup_mode, network_lock, page_server, parent, status};
pub use dump::dump;
pub use restore::restore;

use crate::error::Failed;
use message::Kind;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("CRIU version check failed: exec: \"criu\": executable file not found in $PATH")]
    NotFound,
    #[error("criu {0} is too old: 3.16 or later is needed")]
    TooOld(String),
    #[error("criu is missing features: {0}")]
    Features(&'static str),
    /// As runc says it.
    #[error("criu failed: type {} errno {errno}", .kind.word())]
    Refused { kind: Kind, errno: i32 },
    #[error("criu failed: {0}")]
    Ended(String),
    #[error("criu failed: it ended without an answer")]
    Gone,
    #[error("reading criu's answer: {0}")]
    Nonsense(String),
    #[error("{error}{} (log file: {})", .reason.as_ref().map(|reason| format!(": {reason}")).unwrap_or_default(), .log.display())]
    Logged { error: Box<Error>, reason: Option<String>, log: PathBuf },
    /// A flag, or a field of `config.json`.
    #[error("{what}: {why}")]
    Unfit { what: String, why: String },
    #[error(transparent)]
    Bundle(#[from] crate::bundle::Error),
    #[error(transparent)]
    State(#[from] crate::state::Error),
    #[error(transparent)]
    Cgroup(#[from] crate::cgroup::Error),
    #[error(transparent)]
    Hook(#[from] crate::hooks::Error),
    #[error(transparent)]
    Failed(#[from] Failed),
}

impl Error {
    fn unfit(what: impl Into<String>, why: impl Into<String>) -> Error {
        Error::Unfit { what: what.into(), why: why.into() }
    }

    /// Adds to what CRIU says what it has written.
    fn with_log(self, log: &Path) -> Error {
        match self {
            Error::Refused { .. } | Error::Ended(_) | Error::Gone => {
                Error::Logged { error: Box::new(self), reason: log::reason(log), log: log.to_owned() }
            }
            other => other,
        }
    }
}

/// Refuses a CRIU that lacks what both directions need: external PID namespaces (3.15), another LSM profile (3.16).
fn check_version() -> Result<(), Error> {
    let version = swrk::version()?;
    // Between releases the last one's number is told, with a commit.
    if (version.major, version.minor) < (3, 16) {
        return Err(Error::TooOld(format!("{}.{}", version.major, version.minor)));
    }
    Ok(())
}
