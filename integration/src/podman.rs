//! Debian's podman, told to use `tare`, on folders of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result};

use crate::apart::{self, Apart};
use crate::{image, programs};

/// The tree of peers that podman is in.
const TREE: &str = "callers";

pub struct Podman {
    apart: Option<Apart>,
    dir: PathBuf,
    /// The cgroup that its containers are below: a name that nobody else has.
    pub parent: String,
}

impl Podman {
    /// Writes podman's settings below `dir`; containers get no network, which this is not about, and no cgroup manager but
    /// the file system.
    ///
    /// # Errors
    /// A program is missing.
    pub fn new(dir: &Path) -> Result<Podman> {
        let home = dir.join("home/.config/containers");
        fs::create_dir_all(&home)?;
        fs::write(home.join("policy.json"), r#"{"default": [{"type": "insecureAcceptAnything"}]}"#)?;
        let at = |path: &str| dir.join(path).display().to_string();
        let peer = |program: &str| programs::peer(TREE, program).map(|path| path.display().to_string());
        let tree = programs::peer(TREE, "podman")?;
        let tree = tree.parent().and_then(Path::parent).context("podman lies in usr/bin")?.display().to_string();
        let tare = programs::tare("tare")?;
        fs::write(
            dir.join("containers.conf"),
            format!(
                "[containers]\nnetns = 'none'\nlog_driver = 'k8s-file'\ncgroups = 'no-conmon'\napparmor_profile = 'unconfined'\n\
                 seccomp_profile = '{tree}/share/containers/seccomp.json'\ninit_path = '{init}'\n\
                 [engine]\ncgroup_manager = 'cgroupfs'\nevents_logger = 'file'\nlock_type = 'file'\nruntime = 'tare'\n\
                 runtime_supports_json = ['tare']\nruntime_supports_nocgroup = ['tare']\nconmon_path = ['{conmon}']\n\
                 helper_binaries_dir = ['{tree}/lib/podman', '{tree}/libexec/podman']\n\
                 [engine.runtimes]\ntare = ['{tare}']\n\
                 [network]\nnetwork_backend = 'netavark'\nnetwork_config_dir = '{networks}'\n",
                init = peer("catatonit")?,
                conmon = peer("conmon")?,
                tare = tare.display(),
                networks = at("networks"),
            ),
        )?;
        fs::write(
            dir.join("storage.conf"),
            format!("[storage]\ndriver = 'vfs'\ngraphroot = '{}'\nrunroot = '{}'\n", at("graph"), at("run")),
        )?;
        let parent = format!("tare-podman-{}", std::process::id());
        Ok(Podman { apart: Some(Apart::new()?), dir: dir.to_owned(), parent })
    }

    /// Podman with these arguments and no input.
    ///
    /// # Errors
    /// It is not unpacked.
    pub fn command<'a>(&self, args: impl IntoIterator<Item = &'a str>) -> Result<Command> {
        let apart = self.apart.as_ref().context("it was dropped")?;
        let mut podman = apart.command(&programs::peer(TREE, "podman")?);
        podman
            .env("HOME", self.dir.join("home"))
            .env("CONTAINERS_CONF", self.dir.join("containers.conf"))
            .env("CONTAINERS_STORAGE_CONF", self.dir.join("storage.conf"))
            .env("PODMAN_IGNORE_CGROUPSV1_WARNING", "1")
            .arg("--tmpdir")
            .arg(self.dir.join("tmp"))
            .args(args)
            .stdin(Stdio::null());
        Ok(podman)
    }

    /// Makes the image `tare.test/busybox`.
    ///
    /// # Errors
    /// Podman refuses it.
    pub fn import_busybox(&self) -> Result<()> {
        let layer = self.dir.join("layer.tar.gz");
        fs::write(&layer, &image::busybox()?.layers[0].bytes)?;
        let layer = layer.display().to_string();
        let import = ["import", "--quiet", "--change", "ENV PATH=/bin", &layer, "tare.test/busybox"];
        let out = self.command(import)?.output()?;
        anyhow::ensure!(out.status.success(), "podman import: {}", String::from_utf8_lossy(&out.stderr));
        Ok(())
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if let Ok(mut podman) = self.command(["rm", "--all", "--force", "--time", "0"]) {
            let _ = podman.output();
        }
        drop(self.apart.take());
        apart::remove_cgroup(&self.parent);
    }
}
