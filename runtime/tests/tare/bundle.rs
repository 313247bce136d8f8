//! A bundle in a temporary folder, with a state root of its own. Dropped, its containers and their cgroups are gone.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};

pub struct Bundle {
    dir: tempfile::TempDir,
    pub config: Value,
    /// Unlike any other on this machine: cgroups are named by it.
    pub id: String,
}

/// How a command ended, and what it said.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Bundle {
    /// What `tare spec` writes, without a terminal, and a root with busybox.
    pub fn new() -> Bundle {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let id = format!("tare-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("rootfs/bin");
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::create_dir(dir.path().join("rootfs/tmp")).unwrap();
        std::fs::copy(busybox(), bin.join("busybox")).unwrap();
        for applet in ["cat", "echo", "env", "head", "id", "kill", "ls", "pwd", "sh", "sleep", "stty", "touch", "true"]
        {
            symlink("busybox", bin.join(applet)).unwrap();
        }
        let mut bundle = Bundle { dir, config: Value::Null, id };
        let answer = bundle.tare(&["spec", "--bundle", bundle.path("").to_str().unwrap()]);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        bundle.config = serde_json::from_slice(&std::fs::read(bundle.path("config.json")).unwrap()).unwrap();
        bundle.set("/process/terminal", json!(false))
    }

    /// With one value, named by a JSON pointer, set to another.
    pub fn set(mut self, pointer: &str, value: Value) -> Bundle {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        self.config.pointer_mut(parent).unwrap()[key] = value;
        self
    }

    /// With one more mount after the others.
    pub fn mount(mut self, mount: Value) -> Bundle {
        self.config["mounts"].as_array_mut().unwrap().push(mount);
        self
    }

    /// With a script as its program.
    pub fn script(self, text: &str) -> Bundle {
        self.set("/process/args", json!(["sh", "-c", text]))
    }

    /// In a user namespace whose ids are the host's from 100000 on, with a root file system that belongs to it.
    pub fn in_user_namespace(mut self) -> Bundle {
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
        self.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        for folder in ["dev", "proc", "sys"] {
            std::fs::create_dir_all(self.path("rootfs").join(folder)).unwrap();
        }
        self.give("rootfs", 100_000);
        // It must be able to walk to its root file system.
        use std::os::unix::fs::PermissionsExt as _;
        std::fs::set_permissions(self.path(""), std::fs::Permissions::from_mode(0o755)).unwrap();
        self.set("/linux/uidMappings", mapping.clone()).set("/linux/gidMappings", mapping)
    }

    /// Gives a folder of the bundle and all that lies in it to a user and the group of the same number.
    pub fn give(&self, folder: &str, id: u32) {
        fn give(path: &Path, id: u32) {
            std::os::unix::fs::lchown(path, Some(id), Some(id)).unwrap();
            if path.symlink_metadata().unwrap().is_dir() {
                std::fs::read_dir(path).unwrap().for_each(|entry| give(&entry.unwrap().path(), id));
            }
        }
        give(&self.path(folder), id);
    }

    /// A path in the bundle.
    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.path().join(below)
    }

    pub fn state_root(&self) -> PathBuf {
        self.path("state")
    }

    /// `tare` with these words, its root before them.
    pub fn command(&self, words: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_tare")), words)
    }

    /// Another runtime with these words.
    pub fn command_of(&self, runtime: &Path, words: &[&str]) -> Command {
        std::fs::write(self.path("config.json"), self.config.to_string()).unwrap();
        let mut command = Command::new(runtime);
        command.arg("--root").arg(self.state_root()).args(words).current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    /// A command to its end, and what it said. Not for one that leaves a container behind, which would keep our pipes.
    pub fn tare(&self, words: &[&str]) -> Answer {
        if words[0] == "spec" {
            return answer(Command::new(env!("CARGO_BIN_EXE_tare")).args(words));
        }
        answer(&mut self.command(words))
    }

    pub fn run(&self) -> Answer {
        self.tare(&["run", &self.id])
    }

    /// A command that must succeed, with the container's output in the file `output`.
    pub fn done(&self, words: &[&str]) {
        let open = || std::fs::File::options().create(true).append(true).open(self.path("output")).unwrap();
        let status = self.command(words).stdout(open()).stderr(open()).status().unwrap();
        assert!(status.success(), "{words:?}: {}", self.output());
    }

    /// The same, expecting a failure, whose words are returned.
    pub fn fails(&self, words: &[&str]) -> String {
        let answer = self.tare(words);
        assert_ne!(answer.code, Some(0), "{words:?}: {answer:?}");
        answer.err
    }

    pub fn output(&self) -> String {
        std::fs::read_to_string(self.path("output")).unwrap_or_default()
    }

    pub fn state(&self) -> Value {
        let answer = self.tare(&["state", &self.id]);
        assert_eq!(answer.code, Some(0), "{answer:?}");
        serde_json::from_str(&answer.out).unwrap()
    }

    pub fn status(&self) -> String {
        self.state()["status"].as_str().unwrap().to_owned()
    }

    pub fn pid(&self) -> i32 {
        i32::try_from(self.state()["pid"].as_i64().unwrap()).unwrap()
    }

    /// Returns once the process has ended, which a handle to it tells.
    pub fn wait_for_end_of(pid: i32) {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
        let mut watched = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut watched, None).unwrap();
    }

    /// That nothing of the container is left: no state, and no cgroup in any hierarchy.
    pub fn assert_gone(&self) {
        let left = std::fs::read_dir(self.state_root()).map_or(0, |entries| {
            entries.filter(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.')).count()
        });
        assert_eq!(left, 0, "state is left in {}", self.state_root().display());
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap();
        let ours = own.lines().filter_map(|line| line.rsplit(':').next()).map(|path| path.trim_start_matches('/'));
        let ours: Vec<&str> = ours.collect();
        let mounts = std::fs::read_dir("/sys/fs/cgroup").unwrap().map(|entry| entry.unwrap().path());
        mounts
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .flat_map(|mount| ours.iter().map(move |ours| mount.join(ours)).collect::<Vec<_>>())
            .flat_map(|folder| [folder.join(&self.id), folder.join("..").join(&self.id)])
            .filter(|folder| folder.exists())
            .collect()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Whatever a failed test left; the root is its own, so nobody else's containers are meant.
        for entry in std::fs::read_dir(self.state_root()).into_iter().flatten().flatten() {
            let id = entry.file_name().to_string_lossy().into_owned();
            if !id.starts_with('.') {
                let _ = self.command(&["delete", "--force", &id]).status();
            }
        }
    }
}

/// What a script in the container prints.
pub fn sees(bundle: Bundle, script: &str) -> String {
    let bundle = bundle.script(script);
    let ended = bundle.run();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    bundle.assert_gone();
    ended.out
}

pub fn answer(command: &mut Command) -> Answer {
    let output = command.output().unwrap();
    Answer {
        code: output.status.code(),
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

fn busybox() -> PathBuf {
    std::env::var_os("TARE_TEST_BUSYBOX")
        .map_or_else(|| peer(&["bookworm/bin/busybox", "bookworm/usr/bin/busybox"]), PathBuf::from)
}

/// A program that `cargo xtask test` unpacks: the first of these that is there.
pub fn peer(places: &[&str]) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let peers = target.join("peers");
    let found = places.iter().map(|place| peers.join(place)).find(|path| path.exists());
    found.unwrap_or_else(|| panic!("{} is missing: `cargo xtask test` puts it there", peers.join(places[0]).display()))
}
