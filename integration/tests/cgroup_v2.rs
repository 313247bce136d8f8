//! `tare` on cgroup version 2 with all its controllers, which not every machine that builds has: in the QEMU guest.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tare_integration::programs;

#[test]
fn limits_devices_and_the_life_cycle_work_on_version_2() {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("bundle/rootfs");
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        std::fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    std::fs::copy(programs::peer("bookworm", "busybox").unwrap(), rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "head", "mkdir", "mknod", "sleep", "tail", "true"] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {
            "user": {"uid": 0, "gid": 0}, "args": ["/bin/sleep", "1000"], "env": ["PATH=/bin"], "cwd": "/",
            "capabilities": {"bounding": ["CAP_MKNOD"], "permitted": ["CAP_MKNOD"], "effective": ["CAP_MKNOD"]},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["rw"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}],
            "cgroupsPath": "/tare-test/box",
            "devices": [{"path": "/dev/disk", "type": "b", "major": 254, "minor": 0}],
            "resources": {
                "memory": {"limit": 67_108_864, "swap": 134_217_728},
                "cpu": {"shares": 512, "quota": 50_000, "cpus": "0"},
                "pids": {"limit": 50},
                "unified": {"memory.high": "58720256"},
                "devices": [{"allow": false, "access": "rwm"}],
            },
        },
    });
    std::fs::write(dir.path().join("bundle/config.json"), config.to_string()).unwrap();
    std::fs::copy(programs::tare("tare").unwrap(), dir.path().join("tare")).unwrap();
    std::fs::write(dir.path().join("test.sh"), include_str!("cgroup_v2.sh")).unwrap();

    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/run");
    let mut run = Command::new(guest);
    run.args(["--no-systemd", "--timeout", "280", "--share", &format!("{}=box", dir.path().display())]);
    run.args(["--", "bash", "-c", "cp -a /share/box /root && cd /root/box && exec bash test.sh"]);
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, EXPECTED);
}

const EXPECTED: &str = "\
memory.max: 67108864
memory.swap.max: 67108864
memory.high: 58720256
cpu.max: 50000 100000
cpu.weight: 59
cpuset.cpus: 0
pids.max: 50
one process: 0
in its namespace: 0::/
null can be opened: yes
the disk cannot: no
nor a node that it makes: no
paused: \"status\": \"paused\" 1
exec while paused: msg=\"cannot exec in a paused container (use --ignore-paused to override)\"
resumed: \"status\": \"running\" 0
moves its processes down: pids
exec follows: 0::/inner
updated memory.max: 33554432
updated memory.swap.max: 0
updated cpu.weight: 100
updated pids.max: 77
updated cpu.max: 50000 100000
a quota keeps its period: 40000 100000
a period keeps its quota: 40000 50000
swap beside the limit there is: 16777216
statistics: \"limit\":33554432 \"pids\":{\"current\":1,\"limit\":77}
too much memory: Killed (status 137)
the kernel counted it: 1
and it was told: {\"type\":\"oom\",\"id\":\"box\"}
delete:
left over:
a user may have cgroups below: yes
but not lift a limit: /bin/sh: can't create /sys/fs/cgroup/memory.max: Permission denied (status 1)
refused: msg=\"linux.resources.cpu.realtimeRuntime: needs cgroup version 1, and this host has version 2\"
nothing made:
";
