//! What the flags of `checkpoint` and `restore` ask of CRIU, checked, and in its words.

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use super::Error;
use super::message::{CgroupMode, NetworkLock, Options, PageServer};
use crate::bundle::Bundle;
use crate::error::{Doing as _, Failed};

/// CRIU's options for containers of any runtime of runc's kind, where the bundle does not say otherwise.
const CONFIG: &str = "/etc/criu/runc.conf";
const DEBUG: i32 = 4;

/// One value for each flag; some are for one direction alone.
#[derive(Default)]
pub struct Asked {
    pub images: PathBuf,
    pub work: Option<PathBuf>,
    pub parent: Option<String>,
    pub leave_running: bool,
    pub tcp_established: bool,
    pub tcp_skip_in_flight: bool,
    pub tcp_close: bool,
    pub link_remap: bool,
    pub ext_unix_sk: bool,
    pub shell_job: bool,
    pub lazy_pages: bool,
    /// Gets a zero byte once pages can be asked for.
    pub status: Option<File>,
    pub page_server: Option<(String, u16)>,
    pub file_locks: bool,
    pub pre_dump: bool,
    pub auto_dedup: bool,
    pub cgroups: Option<CgroupMode>,
    pub network_lock: Option<NetworkLock>,
    pub lsm_profile: Option<String>,
    pub lsm_mount_context: Option<String>,
}

/// The folders that a request names by descriptor, which are open as long as CRIU may look.
pub struct Folders {
    images: File,
    work: Option<File>,
    log: PathBuf,
}

impl Folders {
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// By number: CRIU looks them up in our own table.
    pub fn name_in(&self, options: &mut Options) {
        options.images_dir_fd = self.images.as_raw_fd();
        options.work_dir_fd = self.work.as_ref().map(File::as_raw_fd);
        options.log_file = self.log.file_name().map(|name| name.to_string_lossy().into_owned());
    }
}

impl Asked {
    /// Opens the folders; that of the work is made if it is not there, and that of the images if `make` says so.
    ///
    /// # Errors
    /// One is missing, or cannot be made.
    pub fn folders(&self, make: bool, log: &str) -> Result<Folders, Failed> {
        if make {
            make_folder(&self.images)?;
        }
        if let Some(work) = &self.work {
            make_folder(work)?;
        }
        Ok(Folders {
            images: open(&self.images)?,
            work: self.work.as_deref().map(open).transpose()?,
            log: self.work.as_ref().unwrap_or(&self.images).join(log),
        })
    }

    /// What both directions have in common.
    pub fn options(&self, bundle: &Bundle) -> Options {
        Options {
            log_level: Some(DEBUG),
            notify_scripts: Some(true),
            manage_cgroups_mode: Some(self.cgroups.unwrap_or(CgroupMode::Default).into()),
            network_lock: self.network_lock.map(i32::from),
            shell_job: Some(self.shell_job),
            ext_unix_sk: Some(self.ext_unix_sk),
            tcp_established: Some(self.tcp_established),
            tcp_close: Some(self.tcp_close),
            file_locks: Some(self.file_locks),
            // Network devices and their addresses are whoever's who has made them.
            empty_ns: Some(libc::CLONE_NEWNET.cast_unsigned()),
            orphan_pts_master: Some(true),
            auto_dedup: Some(self.auto_dedup),
            lazy_pages: Some(self.lazy_pages),
            config_file: config_file(bundle),
            ..Options::default()
        }
    }

    /// What is for dumping alone.
    pub fn dump_options(&self, mut options: Options) -> Options {
        options.leave_running = Some(self.leave_running);
        options.tcp_skip_in_flight = Some(self.tcp_skip_in_flight);
        options.link_remap = Some(self.link_remap);
        options.parent_img.clone_from(&self.parent);
        options.track_mem = self.parent.is_some().then_some(true);
        options.page_server = self
            .page_server
            .as_ref()
            .map(|(address, port)| PageServer { address: Some(address.clone()), port: Some(i32::from(*port)) });
        options
    }
}

/// The annotation `org.criu.config` names a file; empty it names none.
fn config_file(bundle: &Bundle) -> Option<String> {
    match bundle.spec.annotations.get("org.criu.config").map(String::as_str) {
        Some("") => None,
        Some(file) => Some(file.to_owned()),
        None => Some(CONFIG.to_owned()),
    }
}

/// `--manage-cgroups-mode`; empty is CRIU's own choice.
///
/// # Errors
/// Another word.
pub fn cgroup_mode(word: &str) -> Result<Option<CgroupMode>, Error> {
    Ok(Some(match word {
        "" => return Ok(None),
        "soft" => CgroupMode::Soft,
        "full" => CgroupMode::Full,
        "strict" => CgroupMode::Strict,
        "ignore" => CgroupMode::Ignore,
        _ => {
            return Err(Error::unfit("--manage-cgroups-mode", format!("{word:?} is not soft, full, strict or ignore")));
        }
    }))
}

/// `--network-lock`, as crun has it.
///
/// # Errors
/// Another word.
pub fn network_lock(word: &str) -> Result<NetworkLock, Error> {
    Ok(match word {
        "iptables" => NetworkLock::Iptables,
        "nftables" => NetworkLock::Nftables,
        "skip" => NetworkLock::Skip,
        _ => return Err(Error::unfit("--network-lock", format!("{word:?} is not iptables, nftables or skip"))),
    })
}

/// `--page-server ADDRESS:PORT`; an address with colons is in brackets.
///
/// # Errors
/// It is not that.
pub fn page_server(text: &str) -> Result<(String, u16), Error> {
    let parts = text.rsplit_once(':').filter(|(address, port)| !address.is_empty() && !port.is_empty());
    let (address, port) =
        parts.ok_or_else(|| Error::unfit("--page-server", "use --page-server ADDRESS:PORT to specify page server"))?;
    let port = port.parse().map_err(|_| Error::unfit("--page-server", format!("{port:?} is not a port number")))?;
    let address = address.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')).unwrap_or(address);
    Ok((address.to_owned(), port))
}

/// `--parent-path`: relative to the images.
///
/// # Errors
/// It is absolute, or no folder.
pub fn parent(images: &Path, path: &str) -> Result<String, Error> {
    if path.starts_with('/') {
        return Err(Error::unfit("--parent-path", "must be relative"));
    }
    let invalid = |why: &str| Error::unfit("invalid --parent-path", format!("{}: {why}", images.join(path).display()));
    match images.join(path).metadata() {
        Ok(there) if there.is_dir() => Ok(path.to_owned()),
        Ok(_) => Err(invalid("not a directory")),
        Err(_) => Err(invalid("no such file or directory")),
    }
}

/// `--status-fd`: a descriptor of ours, by number, that can be written to.
///
/// # Errors
/// Nothing is open by that number, or not for writing.
pub fn status(number: i32) -> Result<File, Error> {
    let invalid = |why: String| Error::unfit(format!("invalid --status-fd argument {number}"), why);
    let own = rustix::process::pidfd_open(rustix::process::getpid(), rustix::process::PidfdFlags::empty())
        .doing(|| "opening a handle of our own".into())?;
    let copy: OwnedFd = rustix::process::pidfd_getfd(&own, number, rustix::process::PidfdGetfdFlags::empty())
        .map_err(|errno| invalid(crate::error::words(errno)))?;
    let flags = rustix::fs::fcntl_getfl(&copy).map_err(|errno| invalid(crate::error::words(errno)))?;
    if !flags.intersects(rustix::fs::OFlags::WRONLY | rustix::fs::OFlags::RDWR) {
        return Err(invalid("not writable".into()));
    }
    Ok(copy.into())
}

fn make_folder(path: &Path) -> Result<(), Failed> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.doing(|| format!("making {}", path.display()))
}

fn open(path: &Path) -> Result<File, Failed> {
    use std::os::unix::fs::OpenOptionsExt as _;
    let folder = rustix::fs::OFlags::DIRECTORY.bits().cast_signed();
    let opened = File::options().read(true).custom_flags(folder).open(path);
    opened.doing(|| format!("opening {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_server_is_an_address_and_a_port() {
        assert_eq!(page_server("10.0.0.1:27").unwrap(), ("10.0.0.1".into(), 27));
        assert_eq!(page_server("[::1]:27").unwrap(), ("::1".into(), 27));
        for bad in ["", "host", "host:", ":1", "host:x", "host:65536"] {
            assert!(page_server(bad).unwrap_err().to_string().starts_with("--page-server: "), "{bad:?}");
        }
    }

    #[test]
    fn a_parent_is_a_folder_beside_the_images() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("parent")).unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let images = dir.path().join("images");
        std::fs::create_dir(&images).unwrap();
        assert_eq!(parent(&images, "../parent").unwrap(), "../parent");
        assert_eq!(parent(&images, "/parent").unwrap_err().to_string(), "--parent-path: must be relative");
        for (path, why) in [("../none", "no such file or directory"), ("../file", "not a directory")] {
            let error = parent(&images, path).unwrap_err().to_string();
            assert_eq!(error, format!("invalid --parent-path: {}: {why}", images.join(path).display()));
        }
    }

    #[test]
    fn a_status_goes_where_it_can_be_written() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
        assert!(status(writer.as_raw_fd()).is_ok());
        let error = status(reader.as_raw_fd()).unwrap_err().to_string();
        assert_eq!(error, format!("invalid --status-fd argument {}: not writable", reader.as_raw_fd()));
        assert_eq!(status(999).unwrap_err().to_string(), "invalid --status-fd argument 999: bad file descriptor");
    }
}
