//! The root file system that the daemon asks for, mounted in the bundle; the runtime gets it ready.

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};
use tare_proto::containerd::types::Mount;

use crate::error::{Doing as _, Failed};

/// Options that set or clear a flag; the rest is for the file system. Source: mount(8).
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("async", MountFlags::SYNCHRONOUS, false),
    ("atime", MountFlags::NOATIME, false),
    ("bind", MountFlags::BIND, true),
    ("defaults", MountFlags::empty(), true),
    ("dev", MountFlags::NODEV, false),
    ("diratime", MountFlags::NODIRATIME, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("nodev", MountFlags::NODEV, true),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("noexec", MountFlags::NOEXEC, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("rbind", MountFlags::BIND.union(MountFlags::REC), true),
    ("relatime", MountFlags::RELATIME, true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("suid", MountFlags::NOSUID, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
];

const PROPAGATION: &[(&str, MountPropagationFlags)] = &[
    ("private", MountPropagationFlags::PRIVATE),
    ("rprivate", MountPropagationFlags::PRIVATE.union(MountPropagationFlags::REC)),
    ("shared", MountPropagationFlags::SHARED),
    ("rshared", MountPropagationFlags::SHARED.union(MountPropagationFlags::REC)),
    ("slave", MountPropagationFlags::DOWNSTREAM),
    ("rslave", MountPropagationFlags::DOWNSTREAM.union(MountPropagationFlags::REC)),
    ("unbindable", MountPropagationFlags::UNBINDABLE),
    ("runbindable", MountPropagationFlags::UNBINDABLE.union(MountPropagationFlags::REC)),
];

/// What mount(2) takes at most, with its closing zero: a page.
const LONGEST_DATA: usize = 4095;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Failed(#[from] Failed),
    #[error("rootfs option {0:?} is not supported")]
    Option(String),
    #[error("rootfs option {0:?} holds a zero byte")]
    Zero(String),
    #[error("rootfs options of {0} bytes are longer than the kernel takes")]
    Long(usize),
}

/// A bundle's mounted root; unmounted when dropped, unless kept.
pub struct Rootfs {
    path: PathBuf,
    kept: bool,
}

impl Rootfs {
    /// Mounts all of them at `<bundle>/rootfs`, in order. None at all means that the root is there already.
    ///
    /// # Errors
    /// The one that was refused; those before it are unmounted again.
    pub fn mount(mounts: &[Mount], bundle: &Path) -> Result<Rootfs, Error> {
        let rootfs = Rootfs { path: bundle.join("rootfs"), kept: mounts.is_empty() };
        if !mounts.is_empty() {
            fs::create_dir_all(&rootfs.path).doing(|| format!("making {}", rootfs.path.display()))?;
        }
        for mount in mounts {
            mount_one(mount, &rootfs.path)?;
        }
        Ok(rootfs)
    }

    /// The container has it now; [`unmount_all`] takes it down.
    pub fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Rootfs {
    fn drop(&mut self) {
        if !self.kept
            && let Err(error) = unmount_all(&self.path)
        {
            crate::log::warn(&error.to_string());
        }
    }
}

/// An option list, taken apart.
#[derive(Debug, PartialEq, Eq)]
struct Parsed<'a> {
    flags: MountFlags,
    propagation: Option<MountPropagationFlags>,
    data: Vec<&'a str>,
}

fn parse(options: &[String]) -> Result<Parsed<'_>, Error> {
    let mut parsed = Parsed { flags: MountFlags::empty(), propagation: None, data: Vec::new() };
    for option in options {
        if let Some((_, flag, set)) = FLAGS.iter().find(|(word, ..)| word == option) {
            parsed.flags.set(*flag, *set);
        } else if let Some((_, change)) = PROPAGATION.iter().find(|(word, _)| word == option) {
            parsed.propagation = Some(*change);
        } else if option == "loop" || option.starts_with("uidmap=") || option.starts_with("gidmap=") {
            return Err(Error::Option(option.clone()));
        } else if !option.starts_with("X-") && !option.starts_with("x-") {
            parsed.data.push(option); // mount(8): names with x- are comments for programs
        }
    }
    Ok(parsed)
}

fn mount_one(asked: &Mount, rootfs: &Path) -> Result<(), Error> {
    let parsed = parse(&asked.options)?;
    let (place, _held) = place(rootfs, &asked.target)?;
    let doing = || format!("mounting {} {} at {}", asked.r#type, asked.source, rootfs.join(&asked.target).display());
    let (data, _lower) = data_of(&parsed.data)?;
    mount(asked.source.as_str(), &place, asked.r#type.as_str(), parsed.flags, data.as_c_str()).doing(doing)?;
    if parsed.flags.contains(MountFlags::BIND) {
        let given = parsed.flags - MountFlags::BIND - MountFlags::REC;
        if !given.is_empty() {
            // A bind mount takes its flags only in a second step: mount(2), "Creating a bind mount".
            mount_remount(&place, MountFlags::BIND | given, c"").doing(doing)?;
        }
    }
    if let Some(change) = parsed.propagation {
        mount_change(&place, change).doing(doing)?;
    }
    Ok(())
}

/// Where a mount goes: the root, or a place below it, which no link leads out of. The second keeps the first valid.
fn place(rootfs: &Path, target: &str) -> Result<(PathBuf, Option<OwnedFd>), Failed> {
    let target = target.trim_start_matches('/');
    if target.is_empty() {
        return Ok((rootfs.to_owned(), None));
    }
    let doing = || format!("finding {target} in {}", rootfs.display());
    let root = openat(CWD, rootfs, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).doing(doing)?;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = openat2(&root, target, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within).doing(doing)?;
    Ok((by_fd(&found), Some(found)))
}

fn by_fd(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// The file system's options as one string. An overlay of many layers may not fit a page: then each layer is named by a
/// descriptor, which is held in the second value.
fn data_of(options: &[&str]) -> Result<(CString, Vec<OwnedFd>), Error> {
    let zero = |text: String| CString::new(text.clone()).map_err(|_| Error::Zero(text));
    let text = options.join(",");
    if text.len() <= LONGEST_DATA {
        return Ok((zero(text)?, Vec::new()));
    }
    let mut held = Vec::new();
    let mut short = Vec::new();
    for option in options {
        let Some(layers) = option.strip_prefix("lowerdir=") else {
            short.push((*option).to_owned());
            continue;
        };
        let mut names = Vec::new();
        for layer in layers.split(':') {
            let fd = openat(CWD, layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .doing(|| format!("opening the layer {layer}"))?;
            names.push(by_fd(&fd).display().to_string());
            held.push(fd);
        }
        short.push(format!("lowerdir={}", names.join(":")));
    }
    let text = short.join(",");
    if text.len() > LONGEST_DATA {
        return Err(Error::Long(text.len()));
    }
    Ok((zero(text)?, held))
}

/// Unmounts whatever is mounted at `rootfs` and below, however often. Nothing there, or no such folder, is fine.
///
/// # Errors
/// The kernel refused.
pub fn unmount_all(rootfs: &Path) -> Result<(), Failed> {
    let table = fs::read("/proc/self/mountinfo").doing(|| "reading /proc/self/mountinfo".into())?;
    // Those on top come last.
    for target in mount_points(&table).iter().rev().filter(|target| target.starts_with(rootfs)) {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno).doing(|| format!("unmounting {}", target.display())),
        }
    }
    Ok(())
}

/// Source: proc_pid_mountinfo(5): the fifth field, with spaces and the like in octal.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    let fields = table.split(|byte| *byte == b'\n').filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    fields.map(|field| PathBuf::from(std::ffi::OsStr::from_bytes(&unescaped(field)))).collect()
}

fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code =
            digits.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        bytes.push(code.unwrap_or(*first));
        rest = if code.is_some() { &after[3..] } else { after };
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, target: &str, options: &[&str]) -> Mount {
        Mount {
            r#type: "bind".into(),
            source: source.display().to_string(),
            target: target.into(),
            options: options.iter().map(|option| (*option).to_owned()).collect(),
        }
    }

    #[test]
    fn a_bind_mount_is_there_read_only_and_gone_again() {
        let dir = tempfile::tempdir().unwrap();
        let (source, bundle) = (dir.path().join("a b"), dir.path().join("bundle"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&bundle).unwrap();
        fs::write(source.join("hello"), "").unwrap();
        let rootfs = Rootfs::mount(&[bind(&source, "", &["rbind", "ro"])], &bundle).unwrap();
        assert!(bundle.join("rootfs/hello").exists());
        assert_eq!(fs::write(bundle.join("rootfs/x"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
        drop(rootfs);
        assert!(!bundle.join("rootfs/hello").exists());
        unmount_all(&bundle.join("rootfs")).unwrap();
    }

    #[test]
    fn no_target_leads_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let (source, bundle, canary) = (dir.path().join("s"), dir.path().join("b"), dir.path().join("canary"));
        for folder in [&source, &bundle, &canary, &bundle.join("rootfs/canary")] {
            fs::create_dir_all(folder).unwrap();
        }
        fs::write(source.join("hello"), "").unwrap();
        std::os::unix::fs::symlink(&canary, bundle.join("rootfs/out")).unwrap();
        let error = Rootfs::mount(&[bind(&source, "out", &["bind"])], &bundle).err().map(|error| error.to_string());
        assert!(!canary.join("hello").exists(), "{error:?}");
    }

    #[test]
    fn a_failed_mount_takes_down_those_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let (source, bundle) = (dir.path().join("s"), dir.path().join("b"));
        fs::create_dir_all(&source).unwrap();
        fs::create_dir_all(&bundle).unwrap();
        fs::write(source.join("hello"), "").unwrap();
        let missing = dir.path().join("missing");
        let mounts = [bind(&source, "", &["bind"]), bind(&missing, "", &["bind"])];
        let error = Rootfs::mount(&mounts, &bundle).err().unwrap().to_string();
        assert!(error.starts_with("mounting bind ") && error.ends_with(": no such file or directory"), "{error}");
        assert!(!bundle.join("rootfs/hello").exists());
    }

    #[test]
    fn options_are_told_apart_and_what_is_not_supported_is_named() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let options = words("rw nosuid lowerdir=/a:/b rslave X-containerd.test=1");
        let parsed = parse(&options).unwrap();
        assert_eq!(parsed.flags, MountFlags::NOSUID);
        assert_eq!(parsed.data, ["lowerdir=/a:/b"]);
        assert!(parsed.propagation.is_some());
        assert_eq!(
            parse(&words("uidmap=0:1:2")).unwrap_err().to_string(),
            "rootfs option \"uidmap=0:1:2\" is not supported"
        );
    }

    #[test]
    fn a_hundred_long_layers_still_fit() {
        let dir = tempfile::tempdir().unwrap();
        let layer = dir.path().join("x".repeat(100));
        fs::create_dir(&layer).unwrap();
        let option = format!("lowerdir={}", vec![layer.display().to_string(); 100].join(":"));
        let (data, held) = data_of(&[&option]).unwrap();
        assert_eq!(held.len(), 100);
        assert!(data.as_bytes().len() <= LONGEST_DATA);
    }
}
