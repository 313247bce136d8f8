//! The bundle that all runtimes are given: what containerd makes by default, with busybox.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::programs;

use crate::sh;

/// containerd's own default specification with its default seccomp profile, all namespaces but user.
///
/// # Errors
/// The peer's containerd does not start.
pub fn default_spec() -> Result<Value> {
    let dir = tempfile::tempdir()?;
    let rootfs = dir.path().join("rootfs");
    fs::create_dir(&rootfs)?;
    let daemon = Daemon::start(Kind::Containerd("newer"), dir.path())?;
    sh::run(
        daemon.ctr("newer")?.args(["container", "create", "--seccomp", "--rootfs"]).arg(&rootfs).args(["spec", "true"]),
    )?;
    let info = sh::output(daemon.ctr("newer")?.args(["container", "info", "spec"]))?;
    let mut spec = serde_json::from_str::<Value>(&info)?["Spec"].take();
    spec["process"]["env"] = json!(["PATH=/bin"]);
    spec["process"]["args"] = json!(["/bin/true"]);
    spec["root"] = json!({"path": "rootfs", "readonly": true});
    spec["hostname"] = json!("bench");
    let namespaces = spec["linux"]["namespaces"].as_array_mut().context("the default specification has namespaces")?;
    namespaces.push(json!({"type": "cgroup"}));
    spec["linux"].as_object_mut().context("linux is an object")?.remove("cgroupsPath");
    Ok(spec)
}

/// Makes `dir` a bundle: busybox as the root file system, `spec` as config.json.
///
/// # Errors
/// Peers are not unpacked, or the folder cannot be written.
pub fn make(dir: &Path, spec: &Value) -> Result<PathBuf> {
    let root = dir.join("rootfs");
    for name in ["bin", "dev", "etc", "proc", "run", "sys", "tmp"] {
        fs::create_dir_all(root.join(name))?;
    }
    fs::copy(programs::peer("bookworm", "busybox")?, root.join("bin/busybox"))?;
    for applet in ["true", "sh", "cat", "ls", "hostname", "id", "sleep", "sort"] {
        symlink("busybox", root.join("bin").join(applet))?;
    }
    fs::write(dir.join("config.json"), serde_json::to_vec(spec)?)?;
    Ok(dir.to_owned())
}

/// The script whose output tells what a container sees; run once by each contender before timing.
pub const LOOK: &str = "cat /proc/self/mountinfo; grep -E '^(Cap|NoNewPrivs|Seccomp|Groups|Uid|Gid)' /proc/self/status; \
    ls -l /dev; hostname; cat /proc/self/limits; cat /proc/self/cgroup; ls /proc/self/fd; ls -ln /proc/self/ns | wc -l; \
    cat /proc/scsi /proc/kcore; ls /sys/firmware";

/// Runs `runtime` once with [`LOOK`] and returns what it saw, without what differs from run to run.
///
/// # Errors
/// The runtime did not succeed.
pub fn look(run: &mut Command) -> Result<BTreeSet<String>> {
    let out = run.output().with_context(|| format!("starting {run:?}"))?;
    anyhow::ensure!(!out.stdout.is_empty(), "{run:?} showed nothing: {}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout)?;
    Ok(text.lines().map(normalized).collect())
}

/// Mount point, file system and the flags that protect: how a path is masked is each runtime's own affair, but it must
/// not be a way to write. Source: proc_pid_mountinfo(5).
fn mount(words: &[&str]) -> String {
    let kind = words.iter().skip_while(|word| **word != "-").nth(1).unwrap_or(&"");
    let protecting: Vec<&str> =
        words[5].split(',').filter(|flag| matches!(*flag, "nosuid" | "nodev" | "noexec" | "ro")).collect();
    let masked = words[3] == "/null"
        || words[3].contains(".empty")
        || words.last().is_some_and(|data| data.contains("nr_inodes=1"));
    if masked {
        format!("mount {} masked", words[4])
    } else {
        format!("mount {} {kind} {}", words[4], protecting.join(","))
    }
}

/// A line without mount ids, device numbers, inode numbers and dates.
fn normalized(line: &str) -> String {
    let words: Vec<&str> = line.split_whitespace().collect();
    let mountinfo = words.len() >= 9 && words.contains(&"-") && words[2].contains(':');
    if mountinfo {
        return mount(&words);
    }
    let dated = words.len() >= 9 && matches!(words[0].as_bytes().first(), Some(b'c' | b'd' | b'l' | b'-'));
    if dated {
        let mut kept = words.clone();
        kept.drain(kept.len().min(6)..kept.len().min(9)); // month, day, time
        return kept.join(" ");
    }
    words.join(" ")
}
