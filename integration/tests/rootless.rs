//! `tare` without root: on this machine for a user who has nothing but their own id, in the QEMU guest for one who has
//! subordinate ids, a delegated cgroup and a systemd of their own.

use std::fs;
use std::os::unix::fs::{chown, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tare_integration::programs;
use tempfile::TempDir;

/// An id that nobody has.
const USER: u32 = 54_321;

/// A folder of the user's with `tare`, a bundle and a place for run-time files.
struct Home {
    dir: TempDir,
}

impl Home {
    fn new(owner: u32) -> Home {
        let dir = tempfile::Builder::new().prefix("tare-rootless.").tempdir().unwrap();
        let home = Home { dir };
        let rootfs = home.path("bundle/rootfs");
        for folder in ["bin", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(rootfs.join(folder)).unwrap();
        }
        fs::create_dir(home.path("run")).unwrap();
        fs::copy(programs::peer("bookworm", "busybox").unwrap(), rootfs.join("bin/busybox")).unwrap();
        for applet in ["sh", "cat", "id", "ls", "mount", "sleep", "tty"] {
            symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
        }
        fs::copy(programs::tare("tare").unwrap(), home.path("tare")).unwrap();
        let chowned = Command::new("chown").arg("-hR").arg(format!("{owner}:{owner}")).arg(home.dir.path()).status();
        assert!(chowned.unwrap().success());
        home
    }

    fn path(&self, below: &str) -> std::path::PathBuf {
        self.dir.path().join(below)
    }

    /// `tare` as the user. What it starts keeps its output: a file, since a pipe would not end.
    fn tare(&self, words: &str, script: Option<&str>) -> Output {
        let (out, err) = (self.path("out"), self.path("err"));
        let status = Command::new("setpriv")
            .args([format!("--reuid={USER}"), format!("--regid={USER}")])
            .arg("--clear-groups")
            .arg(self.path("tare"))
            .args(words.split_whitespace())
            .args(script)
            .env("XDG_RUNTIME_DIR", self.path("run"))
            .current_dir(self.path("bundle"))
            .stdin(Stdio::null())
            .stdout(fs::File::create(&out).unwrap())
            .stderr(fs::File::create(&err).unwrap())
            .status()
            .unwrap();
        Output { status, stdout: fs::read(out).unwrap(), stderr: fs::read(err).unwrap() }
    }

    fn ok(&self, words: &str, script: Option<&str>) -> String {
        let out = self.tare(words, script);
        assert!(out.status.success(), "tare {words}: {}: {}", out.status, String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn error(&self, words: &str) -> String {
        let out = self.tare(words, None);
        assert!(!out.status.success(), "tare {words}");
        let said = String::from_utf8_lossy(&out.stderr);
        said.split_once("msg=").map_or("", |(_, text)| text.trim()).trim_matches('"').to_owned()
    }

    /// What `tare spec --rootless` writes, changed.
    fn configure(&self, change: impl FnOnce(&mut Value)) {
        let place = self.path("bundle/config.json");
        let _ = fs::remove_file(&place);
        self.ok("spec --rootless", None);
        let mut config: Value = serde_json::from_slice(&fs::read(&place).unwrap()).unwrap();
        config["process"]["terminal"] = false.into();
        config["process"]["args"] = json!(["sleep", "1000"]);
        change(&mut config);
        fs::write(&place, config.to_string()).unwrap();
        chown(&place, Some(USER), Some(USER)).unwrap();
    }
}

#[test]
fn a_user_runs_looks_into_and_ends_a_container() {
    let home = Home::new(USER);
    home.configure(|_| {});
    home.ok("create box", None);
    assert!(home.ok("state box", None).contains("\"status\": \"created\""));
    home.ok("start box", None);
    let seen = home.ok("exec box sh -c", Some("id -u; cat /proc/self/uid_map; : > /dev/null && echo null"));
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["0", "0", &USER.to_string(), "1", "null"]);
    assert_eq!(home.ok("exec -t box tty", None).trim(), "/dev/pts/0");
    let mounted = home.ok("exec --cap CAP_SYS_ADMIN box sh -c", Some("mount -t tmpfs x /tmp && echo mounted"));
    assert_eq!(mounted, "mounted\n");
    assert!(home.ok("list", None).contains("running"));
    assert!(home.path("run/tare/box").is_dir());
    home.ok("kill box KILL", None);
    while !home.ok("state box", None).contains("\"status\": \"stopped\"") {}
    home.ok("delete box", None);
    assert!(!home.path("run/tare/box").exists());

    home.configure(|config| config["process"]["args"] = json!(["sh", "-c", "exit 7"]));
    assert_eq!(home.tare("run box", None).status.code(), Some(7));
}

#[test]
fn what_a_user_may_not_is_told_before_anything_is_made() {
    let home = Home::new(USER);
    home.configure(|config| config["linux"]["resources"] = json!({"memory": {"limit": 10_000_000}}));
    let why = "linux.resources.memory: a limit needs a cgroup, and none may be made here without root (is one delegated to \
               this user?)";
    assert_eq!(home.error("run box"), why);
    home.configure(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
        config["linux"].as_object_mut().unwrap().retain(|key, _| !key.ends_with("idMappings"));
    });
    assert!(home.error("run box").starts_with("linux.namespaces: without root it needs a user namespace"));
    home.configure(|config| config["linux"]["uidMappings"][0]["size"] = 65_536.into());
    let error = home.error("run box");
    assert!(error.starts_with("mapping users: "), "{error}");
    assert_eq!(fs::read_dir(home.path("run")).unwrap().count(), 0);
}

/// podman and rootlesskit make the user namespace themselves, and are root in it.
#[test]
fn root_of_a_user_namespace_needs_no_other_one() {
    let home = Home::new(USER);
    home.configure(|config| {
        config["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "user");
        config["linux"].as_object_mut().unwrap().retain(|key, _| !key.ends_with("idMappings"));
    });
    let script = "tare=../tare; $tare run -d box >/dev/null 2>../run/err || exit 1; $tare exec box id -u; $tare delete --force box";
    let output = Command::new("setpriv")
        .args([format!("--reuid={USER}"), format!("--regid={USER}")])
        .args(["--clear-groups", "unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script])
        .env("XDG_RUNTIME_DIR", home.path("run"))
        .current_dir(home.path("bundle"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let error = fs::read_to_string(home.path("run/err")).unwrap_or_default() + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "0\n", "{error}");
}

#[test]
fn a_user_with_ids_and_a_cgroup_of_their_own_sets_limits() {
    let home = Home::new(0);
    let config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [7]}, "args": ["/bin/sleep", "1000"], "env": ["PATH=/bin"], "cwd": "/",
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]},
        ],
        "linux": {
            "uidMappings": [
                {"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 100_000, "size": 65_536},
            ],
            "gidMappings": [
                {"containerID": 0, "hostID": 1000, "size": 1}, {"containerID": 1, "hostID": 100_000, "size": 65_536},
            ],
            "namespaces": [{"type": "user"}, {"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}],
            "resources": {"memory": {"limit": 67_108_864}, "pids": {"limit": 50}},
        },
    });
    fs::write(home.path("bundle/config.json"), config.to_string()).unwrap();
    fs::write(home.path("test.sh"), include_str!("rootless.sh")).unwrap();
    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/run");
    let mut run = Command::new(guest);
    run.args(["--timeout", "280", "--share", &format!("{}=box", home.dir.path().display())]);
    let script = "cp -a /share/box /home/user/box && chown -hR user:user /home/user/box && exec systemd-run --quiet --user \
                  -M user@ --wait --pipe -p Delegate=yes -p WorkingDirectory=/home/user/box bash test.sh";
    let output = run.args(["--", "bash", "-c", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, EXPECTED);
}

/// By files first, by systemd then.
const EXPECTED: &str = "\
it runs:
its ids: 0 1000 1 1 100000 65536
its cgroup: 0::/
its limits: 67108864 50
may have cgroups below: yes
updated: 33554432
paused: 1
statistics: \"limit\":33554432
left over: (status 2)
it runs:
its ids: 0 1000 1 1 100000 65536
its cgroup: 0::/
its limits: 67108864 50
may have cgroups below: yes
updated: 33554432
paused: 1
statistics: \"limit\":33554432
left over: (status 2)
";
