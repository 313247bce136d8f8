//! The root file system that the daemon asks for, mounted in the bundle; the runtime gets it ready.

mod idmap;
mod loopback;
mod options;

use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_change, mount_remount, unmount};
use tare_proto::containerd::types::Mount;

use crate::error::{Doing as _, Failed};
use idmap::Layers;
pub use idmap::detach_layers;
use options::Parsed;

/// What mount(2) takes at most, with its closing zero: a page.
const LONGEST_DATA: usize = 4095;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Failed(#[from] Failed),
    #[error("rootfs option {0:?} needs {1} beside it")]
    OneMap(String, &'static str),
    #[error("rootfs option {0:?} is not container:host:count, …")]
    Map(String),
    #[error("rootfs options name no lowerdir whose ids could be mapped")]
    NoLayers,
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
            mount_one(mount, &rootfs.path, bundle)?;
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

fn mount_one(asked: &Mount, rootfs: &Path, bundle: &Path) -> Result<(), Error> {
    let parsed = Parsed::new(&asked.options)?;
    let (place, _held) = place(rootfs, &asked.target)?;
    let doing = || format!("mounting {} {} at {}", asked.r#type, asked.source, rootfs.join(&asked.target).display());
    let is_overlay = asked.r#type == "overlay";
    let layers = match &parsed.ids {
        Some(ids) if is_overlay => Some(Layers::map(lower(&parsed.data).ok_or(Error::NoLayers)?, ids, bundle)?),
        _ => None,
    };
    let mapped = layers.as_ref().map(Layers::option);
    let option = |given| mapped.as_deref().filter(|_| lower(&[given]).is_some()).unwrap_or(given);
    let (data, _lower) = data_of(&parsed.data.into_iter().map(option).collect::<Vec<_>>())?;
    let (source, _device) = if parsed.is_loop {
        let (path, device) = loopback::bind(&asked.source, parsed.flags.contains(MountFlags::RDONLY), parsed.direct)?;
        (path, Some(device))
    } else {
        (PathBuf::from(&asked.source), None)
    };
    mount(&source, &place, asked.r#type.as_str(), parsed.flags, data.as_c_str()).doing(doing)?;
    if parsed.flags.contains(MountFlags::BIND) {
        let given = parsed.flags - MountFlags::BIND - MountFlags::REC;
        if !given.is_empty() {
            // A bind mount takes its flags only in a second step: mount(2), "Creating a bind mount".
            mount_remount(&place, MountFlags::BIND | given, c"").doing(doing)?;
        }
    }
    if let Some(ids) = parsed.ids.filter(|_| !is_overlay) {
        idmap::map_in_place(&place, &ids)?;
    }
    if let Some(change) = parsed.propagation {
        mount_change(&place, change).doing(doing)?;
    }
    Ok(())
}

/// An overlay's layers, the uppermost first.
fn lower<'a>(options: &[&'a str]) -> Option<&'a str> {
    options.iter().find_map(|option| option.strip_prefix("lowerdir="))
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

    /// A folder whose one file belongs to `owner`.
    fn layer(path: &Path, file: &str, owner: u32) {
        fs::create_dir_all(path).unwrap();
        fs::write(path.join(file), "").unwrap();
        std::os::unix::fs::chown(path.join(file), Some(owner), Some(owner)).unwrap();
    }

    fn owner(path: &Path) -> (u32, u32) {
        use std::os::unix::fs::MetadataExt as _;
        let found = fs::metadata(path).unwrap();
        (found.uid(), found.gid())
    }

    const MAPS: [&str; 2] = ["uidmap=0:100000:1000,1000:7:1", "gidmap=0:200000:65536"];

    #[test]
    fn an_overlay_of_mapped_layers_shows_other_owners_and_leaves_nothing_else_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        layer(&at("low"), "root", 0);
        layer(&at("high"), "user", 1000);
        for folder in ["upper", "work", "bundle"] {
            fs::create_dir(at(folder)).unwrap();
        }
        let folders = [
            ("lowerdir", format!("{}:{}", at("high").display(), at("low").display())),
            ("upperdir", at("upper").display().to_string()),
            ("workdir", at("work").display().to_string()),
        ];
        let mut options: Vec<String> = folders.iter().map(|(name, path)| format!("{name}={path}")).collect();
        options.extend(MAPS.map(str::to_owned));
        let asked = Mount { r#type: "overlay".into(), source: "overlay".into(), options, ..Mount::default() };
        let rootfs = Rootfs::mount(&[asked], &at("bundle")).unwrap();
        assert_eq!(owner(&at("bundle/rootfs/root")), (100_000, 200_000));
        assert_eq!(owner(&at("bundle/rootfs/user")), (7, 201_000));
        assert_eq!(owner(&at("low/root")), (0, 0), "the layer itself is as it was");
        assert!(!at("bundle/layers").exists());
        drop(rootfs);
        let left = fs::read("/proc/self/mountinfo").unwrap();
        assert!(!mount_points(&left).iter().any(|point| point.starts_with(dir.path())));
    }

    #[test]
    fn a_mapped_bind_mount_keeps_its_flags_and_is_one_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (source, bundle) = (dir.path().join("s"), dir.path().join("b"));
        layer(&source, "file", 1000);
        let rootfs = Rootfs::mount(&[bind(&source, "", &["rbind", "ro", MAPS[0], MAPS[1]])], &bundle).unwrap();
        assert_eq!(owner(&bundle.join("rootfs/file")), (7, 201_000));
        assert_eq!(fs::write(bundle.join("rootfs/x"), "").unwrap_err().raw_os_error(), Some(libc::EROFS));
        let table = fs::read("/proc/self/mountinfo").unwrap();
        assert_eq!(mount_points(&table).iter().filter(|point| point.starts_with(&bundle)).count(), 1);
        drop(rootfs);
    }

    #[test]
    fn layers_that_a_killed_shim_left_attached_are_taken_down() {
        let dir = tempfile::tempdir().unwrap();
        let (source, bundle) = (dir.path().join("s"), dir.path().join("b"));
        layer(&source, "file", 0);
        let ids = idmap::IdMap::parse("0:1:2", "0:1:2").unwrap();
        std::mem::forget(Layers::map(source.to_str().unwrap(), &ids, &bundle).unwrap());
        assert!(bundle.join("layers/0/file").exists());
        detach_layers(&bundle).unwrap();
        assert!(!bundle.join("layers").exists() && source.join("file").exists());
    }

    #[test]
    fn a_file_is_mounted_as_a_disk_and_its_device_is_let_go_with_the_mount() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, bundle) = (dir.path().join("disk"), dir.path().join("b"));
        fs::File::create(&disk).unwrap().set_len(4 << 20).unwrap();
        let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(&disk).status().unwrap();
        assert!(made.success());
        let asked = Mount {
            r#type: "ext4".into(),
            source: disk.display().to_string(),
            options: vec!["loop".into()],
            ..Mount::default()
        };
        let rootfs = Rootfs::mount(&[asked], &bundle).unwrap();
        fs::write(bundle.join("rootfs/hello"), "").unwrap();
        let bound = || {
            let files =
                fs::read_dir("/sys/block").unwrap().flatten().map(|entry| entry.path().join("loop/backing_file"));
            files.filter_map(|file| fs::read_to_string(file).ok()).any(|file| Path::new(file.trim()) == disk)
        };
        assert!(bound());
        drop(rootfs);
        // The kernel takes a mount apart behind the caller's back; the device follows.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
        while bound() {
            assert!(std::time::Instant::now() < deadline, "the loop device is still bound");
            std::thread::yield_now();
        }
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
