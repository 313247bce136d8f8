//! The programs that Tare is compared with, unpacked from Debian packages under `target/peers/<tree>/`.
//!
//! Nothing is installed: apt works on a root of its own, packages are verified by it and only unpacked, no maintainer
//! script runs. Programs newer than this machine's C library bring theirs along: their ELF interpreter and library
//! path are set to the tree they lie in.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};

use crate::sh;

/// One folder below `target/peers/`: packages of one Debian suite with all that they need.
struct Tree {
    name: &'static str,
    suite: &'static str,
    packages: &'static [&'static str],
}

/// Text that others are generated from: of these packages nothing runs, so what they depend on is left out.
const SOURCES: Tree = Tree {
    name: "sources",
    suite: "sid",
    packages: &[
        "golang-github-containerd-cgroups-dev",
        "golang-github-containerd-containerd-api-dev",
        "golang-github-containerd-ttrpc-dev",
        "golang-k8s-cri-api-dev",
    ],
};

/// `bookworm` and `callers` are what stable users have; `newer` is the newest that the package manager reaches.
const TREES: &[Tree] = &[
    Tree {
        name: "bookworm",
        suite: "bookworm",
        packages: &["busybox-static", "containerd", "crun", "docker-registry", "runc"],
    },
    Tree { name: "images", suite: "bookworm", packages: &["skopeo", "umoci"] },
    Tree { name: "newer", suite: "sid", packages: &["containerd", "crun", "runc"] },
    Tree { name: "tools", suite: "bookworm", packages: &["strace"] },
    // Those that call a runtime on behalf of people.
    Tree {
        name: "callers",
        suite: "trixie",
        packages: &["catatonit", "conmon", "docker-cli", "docker.io", "netavark", "podman", "runc", "uidmap"],
    },
    // What docker's client builds with.
    Tree { name: "builders", suite: "trixie", packages: &["docker-buildx"] },
    Tree { name: "network", suite: "sid", packages: &["containernetworking-plugins", "nftables"] },
    Tree { name: "kubernetes", suite: "sid", packages: &["kubectl"] },
    Tree { name: "criu", suite: "sid", packages: &["criu"] },
    // What gives profiles to a kernel that has AppArmor.
    Tree { name: "apparmor", suite: "bookworm", packages: &["apparmor"] },
];

/// Go, and what the kubelet's client is made from: gigabytes, kept only until it is built.
const GO: Tree =
    Tree { name: "go", suite: "sid", packages: &["golang-go", "golang-k8s-cri-api-dev", "golang-k8s-cri-client-dev"] };

/// Makes every tree that is not there yet.
pub fn unpack() -> Result<()> {
    TREES.iter().chain([&SOURCES]).try_for_each(|tree| make(tree).map(|_| ()))
}

/// Runs `work` in the tree with Go, which is there for as long as that takes.
pub fn with_go(work: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let place = make(&GO)?;
    work(&place)?;
    fs::remove_dir_all(&place)?;
    fs::remove_dir_all(apt_root(&GO)).context("removing downloaded packages")
}

/// Makes a tree if it is not there yet; returns its folder.
fn make(tree: &Tree) -> Result<PathBuf> {
    let place = sh::target().join("peers").join(tree.name);
    let recipe = format!("{} {}\n", tree.suite, tree.packages.join(" "));
    if fs::read_to_string(place.join(".recipe")).is_ok_and(|made| made == recipe) {
        return Ok(place);
    }
    eprintln!("peers: unpacking {} from Debian {} into {}", tree.packages.join(", "), tree.suite, place.display());
    let making = place.with_extension("making");
    let _ = fs::remove_dir_all(&making);
    let _ = fs::remove_dir_all(&place);
    let apt = Apt::new(&apt_root(tree), tree.suite)?;
    let with_dependencies = tree.name != SOURCES.name;
    for deb in apt.download(tree.packages, with_dependencies)? {
        sh::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&making))?;
    }
    fs::rename(&making, &place)?;
    lend_own_libraries(&place)?;
    fs::write(place.join(".recipe"), recipe)?;
    Ok(place)
}

fn apt_root(tree: &Tree) -> PathBuf {
    sh::target().join("peers").join(".apt").join(tree.name)
}

/// An apt with a root of its own: lists, cache and an empty package database, so that a download brings every dependency.
/// It keeps this machine's settings (proxies, archive keys).
struct Apt {
    root: PathBuf,
}

impl Apt {
    fn new(root: &Path, suite: &str) -> Result<Apt> {
        for dir in ["etc/preferences.d", "state/lists/partial", "cache/archives/partial"] {
            fs::create_dir_all(root.join(dir))?;
        }
        let at = root.display();
        fs::write(root.join("status"), "")?;
        fs::write(
            root.join("apt.conf"),
            format!(
                "Dir::Etc \"{at}/etc\";\nDir::Etc::parts \"/etc/apt/apt.conf.d\";\nDir::State \"{at}/state\";\n\
                 Dir::Cache \"{at}/cache\";\nDir::State::status \"{at}/status\";\nAPT::Sandbox::User \"root\";\n\
                 APT::Install-Recommends \"false\";\nAPT::Get::List-Cleanup \"false\";\nAcquire::Retries \"3\";\n"
            ),
        )?;
        fs::write(
            root.join("etc/sources.list"),
            format!("deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {} {suite} main\n", archive()?),
        )?;
        let apt = Apt { root: root.to_owned() };
        sh::run(&mut apt.get(&["-qq", "update"]))?;
        Ok(apt)
    }

    fn get(&self, args: &[&str]) -> Command {
        let mut command = Command::new("apt-get");
        command.env("APT_CONFIG", self.root.join("apt.conf")).args(args).stdout(Stdio::null());
        command
    }

    /// Downloads `packages`, and all they depend on if so; returns the package files.
    fn download(&self, packages: &[&str], with_dependencies: bool) -> Result<Vec<PathBuf>> {
        let archives = self.root.join("cache/archives");
        if with_dependencies {
            sh::run(self.get(&["-qq", "-y", "--download-only", "install"]).args(packages))?;
        } else {
            sh::run(self.get(&["-qq", "download"]).args(packages).current_dir(&archives))?;
        }
        let mut debs = Vec::new();
        for entry in fs::read_dir(archives)? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                debs.push(path);
            }
        }
        ensure!(!debs.is_empty(), "apt downloaded nothing for {packages:?}");
        Ok(debs)
    }
}

/// The Debian archive that this machine's own apt uses.
fn archive() -> Result<String> {
    let targets = sh::output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(REPO_URI)",
        "Identifier: Packages",
        "Label: Debian",
    ]))?;
    Ok(targets.lines().next().context("apt knows no Debian archive: run `apt-get update` first")?.to_owned())
}

/// Points each dynamic program of a tree to the C library and the libraries in that same tree.
fn lend_own_libraries(tree: &Path) -> Result<()> {
    let tree = tree.canonicalize()?;
    let lib = tree.join("usr/lib/x86_64-linux-gnu");
    let loader = ["lib64/ld-linux-x86-64.so.2", "usr/lib64/ld-linux-x86-64.so.2"]
        .iter()
        .map(|name| tree.join(name))
        .find(|path| path.exists());
    let Some(loader) = loader else { return Ok(()) }; // nothing dynamic came along
    let patchelf = patchelf()?;
    for dir in ["usr/bin", "usr/sbin", "usr/lib/cni"] {
        let Ok(entries) = fs::read_dir(tree.join(dir)) else { continue };
        for entry in entries {
            let path = entry?.path();
            let meta = fs::symlink_metadata(&path)?;
            let dynamic = meta.is_file() && meta.permissions().mode() & 0o111 != 0 && {
                Command::new(&patchelf).arg("--print-interpreter").arg(&path).output()?.status.success()
            };
            if dynamic {
                sh::run(
                    Command::new(&patchelf)
                        .arg("--set-interpreter")
                        .arg(&loader)
                        .args(["--force-rpath", "--set-rpath"])
                        .arg(format!("{}:{}", lib.display(), tree.join("lib/x86_64-linux-gnu").display()))
                        .arg(&path),
                )?;
            }
        }
    }
    Ok(())
}

/// `patchelf`, from its package, unpacked like a peer.
fn patchelf() -> Result<PathBuf> {
    let place = sh::target().join("peers/.patchelf");
    let program = place.join("usr/bin/patchelf");
    if !program.exists() {
        let apt = Apt::new(&sh::target().join("peers/.apt/patchelf"), "bookworm")?;
        for deb in apt.download(&["patchelf"], true)? {
            if deb.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"patchelf")) {
                sh::run(Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&place))?;
            }
        }
    }
    Ok(program)
}
