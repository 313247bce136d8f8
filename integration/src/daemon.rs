//! `tared`, or the containerd it is compared with, on a root, a state folder and a socket of its own; gone when dropped.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::programs;

/// Which daemon to start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ours, with our shim and our runtime.
    Tared,
    /// The peer's, from the tree of that name, without its CRI plugin unless a test has put a configuration there; it finds
    /// our shim and runtime as well as its own.
    Containerd(&'static str),
}

pub struct Daemon {
    server: Child,
    kind: Kind,
    dir: PathBuf,
}

impl Daemon {
    /// Starts a daemon with everything of its own below `dir`, and waits until it accepts connections.
    ///
    /// # Errors
    /// A program is missing, or the daemon ended or was not up within twenty seconds; its log is part of the error.
    pub fn start(kind: Kind, dir: &Path) -> Result<Daemon> {
        let mut daemon = Daemon { server: launch(kind, dir)?, kind, dir: dir.to_owned() };
        daemon.wait()?;
        Ok(daemon)
    }

    /// Kills the daemon as a crash would, and starts it again on the same folders.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn crash_and_restart(&mut self) -> Result<()> {
        self.server.kill()?;
        self.server.wait()?;
        self.server = launch(self.kind, &self.dir)?;
        self.wait()
    }

    pub fn pid(&self) -> u32 {
        self.server.id()
    }

    pub fn socket(&self) -> PathBuf {
        socket(&self.dir)
    }

    /// `ctr` of the Debian release `tree`, pointed at this daemon.
    ///
    /// # Errors
    /// Peers are not unpacked.
    pub fn ctr(&self, tree: &str) -> Result<Command> {
        let mut ctr = Command::new(programs::peer(tree, "ctr")?);
        ctr.env_remove("CONTAINERD_NAMESPACE").arg("--address").arg(self.socket());
        Ok(ctr)
    }

    /// `tarectl`, pointed at this daemon.
    ///
    /// # Errors
    /// It was not built.
    pub fn tarectl(&self) -> Result<Command> {
        let mut tarectl = Command::new(programs::tare("tarectl")?);
        tarectl.env_remove("CONTAINERD_NAMESPACE").env("TARE_ADDRESS", self.socket());
        Ok(tarectl)
    }

    /// Removes every container that `tarectl` shows, as far as that is possible: what a test that failed left running.
    pub fn remove_containers(&self) {
        let Ok(mut list) = self.tarectl() else { return };
        let Ok(left) = list.args(["ps", "-a", "-q"]).output() else { return };
        for name in String::from_utf8_lossy(&left.stdout).lines() {
            let removed = self.tarectl().map(|mut tarectl| tarectl.args(["rm", "-f", name]).output());
            if !matches!(removed, Ok(Ok(_))) {
                return;
            }
        }
    }

    /// What the daemon has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn wait(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = self.server.try_wait()? {
                bail!("{:?} ended with {status}:\n{}", self.kind, self.log());
            }
            if Instant::now() > limit {
                bail!("{:?} does not answer at {}:\n{}", self.kind, self.socket().display(), self.log());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    /// Ends the daemon as a service manager would, and insists after ten seconds.
    fn drop(&mut self) {
        let pid = self.server.id().to_string();
        let _ = Command::new("kill").args(["-TERM", &pid]).status();
        let limit = Instant::now() + Duration::from_secs(10);
        while matches!(self.server.try_wait(), Ok(None)) && Instant::now() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("d.sock")
}

fn launch(kind: Kind, dir: &Path) -> Result<Child> {
    let (root, state) = (dir.join("root"), dir.join("state"));
    let mut command = match kind {
        Kind::Tared => {
            let mut command = inside(dir, &programs::tare("tared")?);
            command.arg("--root").arg(root).arg("--state").arg(state).arg("--address").arg(socket(dir));
            let config = dir.join("config.toml");
            if config.exists() {
                command.arg("--config").arg(config); // what a test has put there
            }
            command
        }
        Kind::Containerd(tree) => {
            let config = dir.join("config.toml");
            let (root, state, socket) = (root.display(), state.display(), socket(dir));
            let socket = socket.display();
            if !config.exists() {
                fs::write(
                    &config,
                    format!(
                        "version = 2\nroot = '{root}'\nstate = '{state}'\n\
                         disabled_plugins = ['io.containerd.grpc.v1.cri']\n\
                         [grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{socket}.ttrpc'\n"
                    ),
                )?;
            }
            let mut command = inside(dir, &programs::peer(tree, "containerd")?);
            command.arg("--config").arg(config);
            command
        }
    };
    let log = File::options().create(true).append(true).open(dir.join("log"))?;
    command
        .env("PATH", search_path(kind)?)
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("starting {kind:?}"))
}

/// A program in the network namespace that a test has named in the file `netns`, if it has.
fn inside(dir: &Path, program: &Path) -> Command {
    match fs::read_to_string(dir.join("netns")) {
        Ok(name) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net=/run/netns/{name}")).arg("--").arg(program);
            command
        }
        Err(_) => Command::new(program),
    }
}

/// Our programs first, then the peer's.
fn search_path(kind: Kind) -> Result<std::ffi::OsString> {
    let mut dirs = vec![programs::installed()];
    if let Kind::Containerd(tree) = kind {
        dirs.extend(programs::peer(tree, "runc")?.parent().map(Path::to_owned));
        dirs.extend(programs::peer(tree, "containerd")?.parent().map(Path::to_owned));
    }
    let system = std::env::var_os("PATH").unwrap_or_default();
    dirs.extend(std::env::split_paths(&system));
    // For the plugins of networks, where the machine has none.
    dirs.extend(programs::peer("network", "nft").ok().and_then(|nft| Some(nft.parent()?.to_owned())));
    // For checkpoints, the same.
    dirs.extend(programs::peer("criu", "criu").ok().and_then(|criu| Some(criu.parent()?.to_owned())));
    Ok(std::env::join_paths(dirs)?)
}
