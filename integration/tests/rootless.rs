//! `tare` without root, for a user who has nothing but their own id.

use std::fs;
use std::os::unix::fs::{chown, symlink};
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
    fn new() -> Home {
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
        let chowned = Command::new("chown").arg("-hR").arg(format!("{USER}:{USER}")).arg(home.dir.path()).status();
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
    let home = Home::new();
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
    let home = Home::new();
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
    let home = Home::new();
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
