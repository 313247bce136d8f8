//! Debian's docker, its daemon with containerd and all folders of its own, told to use `tare`.

use std::fs::{self, File};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::apart::{self, Apart};
use crate::{image, programs};

/// The tree of peers that docker is in.
const TREE: &str = "callers";

pub struct Dockerd {
    server: Child,
    dir: PathBuf,
    /// The cgroup that its containers are below.
    pub parent: String,
    apart: Option<Apart>,
}

impl Dockerd {
    /// Starts a daemon without a network and waits until it answers. `tare` is its runtime for all that it runs, its own
    /// builder included, which asks for a program of the name `runc`.
    ///
    /// # Errors
    /// A program is missing, or the daemon ended or was not up within twenty seconds; its log is part of the error.
    pub fn start(dir: &Path) -> Result<Dockerd> {
        let bin = dir.join("bin");
        fs::create_dir_all(&bin)?;
        for program in ["containerd", "containerd-shim-runc-v2", "docker-init"] {
            std::os::unix::fs::symlink(programs::peer(TREE, program)?, bin.join(program))?;
        }
        let tare = programs::tare("tare")?;
        std::os::unix::fs::symlink(&tare, bin.join("runc"))?;
        let parent = format!("tare-docker-{}", std::process::id());
        let mut config = config(dir, &parent);
        config["runtimes"] = json!({
            "tare": {"path": tare},
            "tare-binary": {"runtimeType": "io.containerd.runc.v2", "options": {"BinaryName": tare}},
        });
        config["default-runtime"] = json!("tare");
        Dockerd::launch(dir, parent, Apart::new()?, &config)
    }

    /// The same with `tared` in containerd's place, which also keeps the images if it is to be the `image_store`.
    ///
    /// # Errors
    /// As [`Dockerd::start`].
    pub fn start_on_tared(dir: &Path, image_store: bool) -> Result<Dockerd> {
        let bin = dir.join("bin");
        fs::create_dir_all(&bin)?;
        std::os::unix::fs::symlink(programs::peer(TREE, "docker-init")?, bin.join("docker-init"))?;
        std::os::unix::fs::symlink(programs::tare("tare")?, bin.join("runc"))?;
        let (parent, socket) = (format!("tare-docker-{}", std::process::id()), dir.join("t.sock"));
        let apart = Apart::new()?;
        let log = File::create(dir.join("tared.log"))?;
        apart
            .command(&programs::tare("tared")?)
            .arg("--root")
            .arg(dir.join("root"))
            .arg("--state")
            .arg(dir.join("state"))
            .arg("--address")
            .arg(&socket)
            .env("PATH", path(&[bin, programs::installed()])?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting tared")?;
        let limit = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(&socket).is_err() {
            anyhow::ensure!(Instant::now() < limit, "tared does not answer");
            std::thread::sleep(Duration::from_millis(5));
        }
        let mut config = config(dir, &parent);
        config["containerd"] = json!(socket);
        config["features"] = json!({"containerd-snapshotter": image_store});
        if image_store {
            config["storage-driver"] = json!("overlayfs");
        }
        Dockerd::launch(dir, parent, apart, &config)
    }

    fn launch(dir: &Path, parent: String, apart: Apart, config: &serde_json::Value) -> Result<Dockerd> {
        fs::write(dir.join("daemon.json"), config.to_string())?;
        let log = File::create(dir.join("log"))?;
        let server = apart
            .command(&programs::peer(TREE, "dockerd")?)
            .arg("--config-file")
            .arg(dir.join("daemon.json"))
            .env("PATH", path(&[dir.join("bin")])?)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("starting dockerd")?;
        let mut dockerd = Dockerd { server, dir: dir.to_owned(), parent, apart: Some(apart) };
        dockerd.wait()?;
        Ok(dockerd)
    }

    /// The client with these arguments and no input.
    ///
    /// # Errors
    /// It is not unpacked.
    pub fn docker<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Command> {
        let mut docker = Command::new(programs::peer(TREE, "docker")?);
        docker
            .env("DOCKER_HOST", format!("unix://{}", self.dir.join("d.sock").display()))
            .env("DOCKER_CONFIG", self.dir.join("config"))
            .args(args)
            .stdin(Stdio::null());
        Ok(docker)
    }

    /// Makes the image `busybox`.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub fn import_busybox(&self) -> Result<()> {
        let layer = self.dir.join("layer.tar.gz");
        fs::write(&layer, &image::busybox()?.layers[0].bytes)?;
        let layer = layer.display().to_string();
        let out = self.docker(["import", "--change", "ENV PATH=/bin", &layer, "busybox"])?.output()?;
        anyhow::ensure!(out.status.success(), "docker import: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }

    /// Gives the client the plugin that builds with BuildKit.
    ///
    /// # Errors
    /// It is not unpacked.
    pub fn add_buildx(&self) -> Result<()> {
        let plugins = self.dir.join("config/cli-plugins");
        fs::create_dir_all(&plugins)?;
        let buildx = programs::peer("builders", "docker-buildx")?;
        Ok(std::os::unix::fs::symlink(buildx, plugins.join("docker-buildx"))?)
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    fn wait(&mut self) -> Result<()> {
        let limit = Instant::now() + Duration::from_secs(20);
        while UnixStream::connect(self.dir.join("d.sock")).is_err() {
            if let Some(status) = self.server.try_wait()? {
                bail!("dockerd ended with {status}:\n{}", self.log());
            }
            if Instant::now() > limit {
                bail!("dockerd does not answer:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Everything below `dir`, and nothing of the network.
fn config(dir: &Path, parent: &str) -> serde_json::Value {
    json!({
        "cgroup-parent": format!("/{parent}"),
        "data-root": dir.join("data"), "exec-root": dir.join("exec"), "pidfile": dir.join("pid"),
        "hosts": [format!("unix://{}", dir.join("d.sock").display())],
        "storage-driver": "vfs", "bridge": "none", "iptables": false, "ip6tables": false, "ip-masq": false,
        "userland-proxy": false, "group": "root",
    })
}

/// These folders before the ones that programs are looked for in anyway.
fn path(first: &[PathBuf]) -> Result<std::ffi::OsString> {
    let system = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(first.iter().cloned().chain(std::env::split_paths(&system)))?)
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        drop(self.apart.take()); // the daemon, its containers and their shims
        let _ = self.server.wait();
        apart::remove_cgroup(&self.parent);
    }
}
