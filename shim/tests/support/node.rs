//! A private containerd of one of Debian's releases, with our shim and an image.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tare_integration::daemon::{Daemon, Kind};
use tare_integration::image;
use tare_integration::inventory::Inventory;
use tempfile::TempDir;

pub const IMAGE: &str = "localhost/busybox:latest";

/// A private containerd that knows one image; everything goes when it is dropped.
pub struct Node {
    pub daemon: Daemon,
    tree: &'static str,
    runtime: String,
    /// Part of every container's name: names are shared by all who use the runtime's root.
    pub mark: String,
    pub dir: TempDir,
}

impl Node {
    pub fn start(tree: &'static str, runtime: &str) -> Node {
        let dir = tempfile::Builder::new().prefix("tare-shim.").tempdir().unwrap();
        let daemon = Daemon::start(Kind::Containerd(tree), dir.path()).unwrap();
        let mark = dir.path().extension().unwrap().to_string_lossy().to_lowercase();
        let node = Node { daemon, tree, runtime: runtime.into(), mark, dir };
        let archive = node.dir.path().join("image.tar");
        fs::write(&archive, image::busybox().unwrap().archive(IMAGE).unwrap()).unwrap();
        node.ok(&["image", "import", archive.to_str().unwrap()]);
        node
    }

    pub fn id(&self, name: &str) -> String {
        format!("{name}-{}", self.mark)
    }

    pub fn ctr(&self, words: &[&str]) -> Command {
        let mut ctr = self.daemon.ctr(self.tree).unwrap();
        ctr.args(words).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        ctr
    }

    pub fn run(&self, flags: &[&str], id: &str, command: &[&str]) -> Command {
        let words = [&["run", "--runtime", &self.runtime], flags, &[IMAGE, id], command].concat();
        self.ctr(&words)
    }

    pub fn ok(&self, words: &[&str]) -> String {
        self.check(words, self.ctr(words).output().unwrap())
    }

    pub fn check(&self, words: &[&str], out: Output) -> String {
        assert!(out.status.success(), "ctr {words:?}: {}\n{}\n{}", out.status, text(&out), self.daemon.log());
        String::from_utf8(out.stdout).unwrap()
    }

    pub fn detached(&self, name: &str, flags: &[&str], command: &[&str]) -> String {
        let id = self.id(name);
        let out = self.run(&[&["-d"], flags].concat(), &id, command).output().unwrap();
        self.check(&["run", "-d", name], out);
        id
    }

    /// Kills a task and removes all that there is of it.
    pub fn remove(&self, id: &str) {
        self.ok(&["task", "kill", "-s", "KILL", id]);
        while !self.stopped(id) {}
        let removed = self.ctr(&["task", "rm", id]).output().unwrap();
        assert!(text(&removed).contains("137") || removed.status.code() == Some(137), "{}", text(&removed));
        self.ok(&["container", "rm", id]);
    }

    pub fn stopped(&self, id: &str) -> bool {
        self.ok(&["task", "ls"]).lines().any(|line| line.contains(id) && line.contains("STOPPED"))
    }

    /// The serving process of a container.
    pub fn shim(&self, id: &str) -> (Pid, OwnedFd) {
        let socket = self.daemon.socket().display().to_string();
        let found = fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
            let has = |word: &str| words.iter().any(|there| there == word);
            (words[0].contains("containerd-shim-") && has(id) && has(&socket) && !has("start")).then_some(pid)
        });
        let pid = Pid::from_raw(found.expect("a shim serves the container")).unwrap();
        (pid, pidfd_open(pid, PidfdFlags::empty()).unwrap())
    }

    /// Stops the daemon and looks for what is left.
    pub fn end(self) {
        let (private, mark) = (self.dir.path().display().to_string(), self.mark.clone());
        assert_eq!(self.ok(&["task", "ls", "-q"]), "");
        drop(self.daemon);
        let left = Inventory::of(&[&private, &mark]);
        assert!(left.is_empty(), "left behind: {left:#?}");
        let root = Path::new("/run/tare/default");
        let states = fs::read_dir(root).into_iter().flatten().flatten();
        let states: Vec<_> = states.filter(|entry| entry.file_name().to_string_lossy().contains(&mark)).collect();
        assert!(states.is_empty(), "left in {}: {states:?}", root.display());
    }
}

pub fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Waits for the end of a process that is not our child.
pub fn gone(pidfd: &OwnedFd) {
    let mut fds = [rustix::event::PollFd::new(pidfd, rustix::event::PollFlags::IN)];
    rustix::event::poll(&mut fds, None).unwrap();
}
