//! From the seccomp profile of `config.json` to the BPF program that the kernel runs before each system call.
//!
//! ```text
//! linux.seccomp ── profile ──▶ rules by name ── rules ──▶ ranges of numbers ── tree ──▶ instructions ── load ──▶ kernel
//!                  (checked)                   (a calling convention each)      (assemble)
//! ```
//!
//! Most filters in use list some 350 calls and treat all of them alike. Written as a list they cost the kernel 300 µs to
//! load; merged to ranges with one verdict and searched as a balanced tree, some 30. A call whose arguments are tested
//! has its tests at its own leaf, so that the kernel can still remember "always allowed" for all the others.
//!
//! What a profile means follows libseccomp and runc, since profiles are written against these: see `rules` and `profile`.
//!
//! Sources: runtime-spec config-linux.md, "Seccomp"; seccomp(2); kernel seccomp_filter.rst.

mod abi;
mod assemble;
mod load;
mod name;
mod profile;
mod rules;
mod table;
mod tree;

#[cfg(test)]
mod interpret;
#[cfg(test)]
mod oracle;

pub use load::load;
pub use name::Name;
pub use profile::{actions, architectures, flags, operators};

use crate::spec;

/// A compiled filter. Having one proves that the kernel's limit on its length is kept and that every word of the profile
/// was understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    pub instructions: Vec<Instruction>,
    /// `SECCOMP_FILTER_FLAG_*`, with `NEW_LISTENER` if an action is to notify.
    pub flags: u32,
    /// Who is to be given the notification descriptor; present exactly if the flags ask for one.
    pub listener: Option<Listener>,
}

/// One instruction of classic BPF, as `struct sock_filter` has it (linux/filter.h).
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// Where the descriptor of a notifying filter goes, and what is said with it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Listener {
    pub path: String,
    pub metadata: String,
}

/// A profile that cannot be compiled. It names the field, as the user wrote it.
#[derive(Debug, thiserror::Error)]
#[error("linux.seccomp{field}: {why}")]
pub struct Error {
    field: String,
    why: String,
}

impl Error {
    fn at(field: impl Into<String>, why: impl Into<String>) -> Error {
        Error { field: field.into(), why: why.into() }
    }
}

/// The kernel refuses longer programs: `BPF_MAXINSNS`, linux/bpf_common.h.
const MAX_INSTRUCTIONS: usize = 4096;

/// Compiles the profile for this machine and its kernel.
pub fn compile(profile: &spec::Seccomp) -> Result<Program, Error> {
    compile_for(profile, load::kernel_may_know_x32())
}

fn compile_for(profile: &spec::Seccomp, x32: bool) -> Result<Program, Error> {
    let profile = profile::read(profile)?;
    let blocks = rules::resolve(&profile, x32);
    let instructions = tree::program(&blocks);
    if instructions.len() > MAX_INSTRUCTIONS {
        let length = instructions.len();
        return Err(Error::at(
            "",
            format!("the filter has {length} instructions, the kernel takes {MAX_INSTRUCTIONS}"),
        ));
    }
    Ok(Program { instructions, flags: profile.flags, listener: profile.listener })
}
