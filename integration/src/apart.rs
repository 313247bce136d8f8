//! Mount and PID namespaces for programs that leave processes behind and insist on folders in `/run` and `/var/lib`: they
//! neither find this machine's nor leave any of their own.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::programs;

/// Ends when dropped, with all processes that are left in it.
pub struct Apart {
    holder: Child,
}

impl Apart {
    /// # Errors
    /// The namespaces cannot be made: that takes root.
    pub fn new() -> Result<Apart> {
        let reaper = programs::peer("callers", "catatonit")?;
        let mounts = "mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib && echo . && exec \"$0\" -P";
        let mut holder = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-c", mounts])
            .arg(reaper)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("running unshare")?;
        let mut ready = [0];
        let heard = holder.stdout.take().context("a piped output")?.read(&mut ready)?;
        ensure!(heard == 1, "namespaces with an own /run could not be made");
        Ok(Apart { holder })
    }

    /// A command that will run inside.
    #[must_use]
    pub fn command(&self, program: &Path) -> Command {
        let namespaces = format!("/proc/{}/ns", self.holder.id());
        let mut command = Command::new("nsenter");
        command.args([format!("--mount={namespaces}/mnt"), format!("--pid={namespaces}/pid_for_children")]);
        command.arg("--").arg(program);
        command
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _ = self.holder.kill(); // --kill-child: the first process inside goes too, and all others with it
        let _ = self.holder.wait();
    }
}

/// Removes a cgroup that a test had made, in every hierarchy, with those below it, as soon as their processes are gone.
pub fn remove_cgroup(name: &str) {
    let mounts = Path::new("/sys/fs/cgroup");
    for root in folders(mounts).into_iter().chain([mounts.to_owned()]) {
        let cgroup = root.join(name);
        for child in folders(&cgroup).into_iter().chain([cgroup]) {
            let limit = std::time::Instant::now() + std::time::Duration::from_secs(5);
            while matches!(std::fs::remove_dir(&child), Err(error) if error.kind() == std::io::ErrorKind::ResourceBusy)
                && std::time::Instant::now() < limit
            {
                std::thread::sleep(std::time::Duration::from_millis(1));
            }
        }
    }
}

fn folders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter(|entry| entry.path().is_dir()).map(|entry| entry.path()).collect()
}
