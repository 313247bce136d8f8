//! The labels by which a security module knows a process: AppArmor's profile, SELinux's context.
//!
//! Both are written by the process itself, to take effect at its next execve. The file lies in the host's procfs, which
//! is looked at before: in the container's, anything may be mounted over it (CVE-2019-16884, CVE-2025-52881).

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, fstat, fstatfs, openat};
use rustix::io::Errno;

use super::c_string;
use crate::bundle::{Error, refused};
use crate::error::{Doing as _, Failed};
use crate::spec;

/// What the process writes, and where.
#[derive(Debug)]
pub struct Label {
    /// The host's /proc, in which the process finds itself whatever namespaces it is in.
    pub proc: OwnedFd,
    pub file: CString,
    pub text: CString,
}

/// Whether this kernel runs AppArmor.
pub fn apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// Whether this kernel runs SELinux.
pub fn selinux() -> bool {
    std::path::Path::new("/sys/fs/selinux/enforce").exists()
}

/// Refuses labels that nobody would heed.
pub fn check(process: &spec::Process) -> Result<(), Error> {
    if !process.apparmor_profile.is_empty() && !apparmor() {
        return refused("process.apparmorProfile", "apparmor: config provided but apparmor not supported");
    }
    if !process.selinux_label.is_empty() && !selinux() {
        return refused(
            "process.selinuxLabel",
            "selinux label is specified in config, but selinux is disabled or not supported",
        );
    }
    Ok(())
}

/// The labels that a process gets.
pub fn labels(process: &spec::Process) -> Result<Vec<Label>, Failed> {
    let mut labels = Vec::new();
    if !process.apparmor_profile.is_empty() {
        // Beside other modules AppArmor has a folder of its own: Linux 5.8.
        let own = std::path::Path::new("/proc/self/attr/apparmor/exec").exists();
        let file = if own { c"thread-self/attr/apparmor/exec" } else { c"thread-self/attr/exec" };
        let text = c_string("process.apparmorProfile", &format!("exec {}", process.apparmor_profile))?;
        labels.push(Label { proc: host_proc()?, file: file.to_owned(), text });
    }
    if !process.selinux_label.is_empty() {
        let text = c_string("process.selinuxLabel", &process.selinux_label)?;
        labels.push(Label { proc: host_proc()?, file: c"thread-self/attr/exec".to_owned(), text });
    }
    Ok(labels)
}

fn host_proc() -> Result<OwnedFd, Failed> {
    const PROC_SUPER_MAGIC: i64 = 0x9fa0;
    const PROC_ROOT: u64 = 1;
    let opening = || "opening /proc".into();
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = openat(CWD, c"/proc", flags, Mode::empty()).doing(opening)?;
    let genuine = fstatfs(&proc).doing(opening)?.f_type as i64 == PROC_SUPER_MAGIC
        && fstat(&proc).doing(opening)?.st_ino == PROC_ROOT;
    if genuine { Ok(proc) } else { Err(Errno::NODEV).doing(|| "looking at /proc: it is not a procfs".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs on machines with and without the modules: a label is either planned or refused by its field.
    #[test]
    fn a_label_is_written_to_the_hosts_procfs_or_refused() {
        let process = spec::Process { apparmor_profile: "some".into(), ..spec::Process::default() };
        match check(&process) {
            Ok(()) => assert_eq!(labels(&process).unwrap()[0].text.to_bytes(), b"exec some"),
            Err(error) => assert!(error.to_string().starts_with("process.apparmorProfile: ") && !apparmor(), "{error}"),
        }
        let process = spec::Process { selinux_label: "a:b:c".into(), ..spec::Process::default() };
        assert_eq!(check(&process).is_ok(), selinux());
        assert_eq!(labels(&spec::Process::default()).unwrap().len(), 0);
    }
}
