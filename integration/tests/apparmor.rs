//! The profile that CRI's containers get by default, in a kernel that has AppArmor: the QEMU guest's.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tare_integration::programs;

/// The daemon's own text.
const PROFILE: &str = include_str!("../../manager/src/cri/spec/apparmor.profile");

/// What a container with the rights to do all of it tries.
const TRIES: &[&str] = &[
    "cat /proc/self/attr/current",
    "touch /tmp/file && echo writes",
    "mount -t tmpfs x /tmp",
    "echo 1 > /proc/sys/kernel/sysrq",
    "echo 4096 > /proc/sys/kernel/shmmni && echo has memory to share",
    "cat /proc/kcore",
    "cat /sys/kernel/security/apparmor/profiles",
    "sleep 100 & kill $! && echo signals its own",
];

const EXPECTED: &str = "\
cri-containerd.apparmor.d (enforce)
writes
mount: mounting x on /tmp failed: Permission denied
/bin/sh: can't create /proc/sys/kernel/sysrq: Permission denied
has memory to share
cat: can't open '/proc/kcore': Permission denied
cat: can't open '/sys/kernel/security/apparmor/profiles': Permission denied
signals its own
";

#[test]
fn the_default_profile_keeps_a_container_from_the_kernel_and_lets_it_work() {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("bundle/rootfs");
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    std::fs::copy(programs::peer("bookworm", "busybox").unwrap(), rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "kill", "mount", "sleep", "touch"] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let rights = ["CAP_DAC_OVERRIDE", "CAP_KILL", "CAP_SYS_ADMIN", "CAP_SYS_RAWIO"];
    let config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0}, "env": ["PATH=/bin"], "cwd": "/",
            "args": ["/bin/sh", "-c", format!("exec 2>&1\n{}", TRIES.join("\n"))],
            "apparmorProfile": "cri-containerd.apparmor.d",
            "capabilities": {"bounding": rights, "permitted": rights, "effective": rights},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs"},
            {"destination": "/sys/kernel/security", "type": "securityfs", "source": "securityfs"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "ipc"}]},
    });
    std::fs::write(dir.path().join("bundle/config.json"), config.to_string()).unwrap();
    std::fs::write(dir.path().join("profile"), PROFILE).unwrap();
    std::fs::copy(programs::tare("tare").unwrap(), dir.path().join("tare")).unwrap();
    std::fs::copy(programs::peer("apparmor", "apparmor_parser").unwrap(), dir.path().join("parser")).unwrap();

    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/run");
    let mut run = Command::new(guest);
    run.args(["--no-systemd", "--timeout", "280", "--share", &format!("{}=box", dir.path().display())]);
    let script = "cp -a /share/box /root && cd /root/box && mount -t securityfs securityfs /sys/kernel/security &&
        ./parser --replace --skip-cache profile && cd bundle && ../tare --root /run/tare run box </dev/null";
    let output = run.args(["--", "bash", "-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, EXPECTED);
}
