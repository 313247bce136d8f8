//! `tare` with the systemd cgroup driver, in the QEMU guest, which has systemd on cgroup version 2; beside runc, which is
//! asked for the same.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use tare_integration::programs;

#[test]
fn a_scope_has_the_limits_and_the_life_of_its_container() {
    let dir = tempfile::tempdir().unwrap();
    let rootfs = dir.path().join("bundle/rootfs");
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(folder)).unwrap();
    }
    fs::copy(programs::peer("bookworm", "busybox").unwrap(), rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "ls", "sleep"] {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    let config = json!({
        "ociVersion": "1.2.0",
        "root": {"path": "rootfs"},
        "process": {"user": {"uid": 0, "gid": 0}, "args": ["/bin/sleep", "1000"], "env": ["PATH=/bin"], "cwd": "/"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
        ],
        "annotations": {"org.systemd.property.TimeoutStopUSec": "uint64 7000000"},
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}],
            "cgroupsPath": "taretest-inner.slice:tare:box",
            "resources": {
                "memory": {"limit": 67_108_864, "swap": 134_217_728, "reservation": 33_554_432},
                "cpu": {"shares": 512, "quota": 33_333, "period": 100_000, "cpus": "0"},
                "pids": {"limit": 1},
                "unified": {"memory.high": "58720256", "memory.oom.group": "1"},
                "devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "b", "major": 254, "minor": 0, "access": "r"},
                ],
            },
        },
    });
    fs::write(dir.path().join("bundle/config.json"), config.to_string()).unwrap();
    fs::copy(programs::tare("tare").unwrap(), dir.path().join("tare")).unwrap();
    fs::write(dir.path().join("test.sh"), include_str!("systemd.sh")).unwrap();
    let runc = peer_with_its_libraries(&dir.path().join("peer"));

    let guest = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/run");
    let mut run = Command::new(guest);
    run.args(["--timeout", "280", "--share", &format!("{}=box", dir.path().display())]);
    run.args([
        "--",
        "bash",
        "-c",
        "cp -a /share/box /root && cp -a /root/box/peer/. / && cd /root/box && exec bash test.sh \"$1\"",
    ]);
    run.arg("sh").arg(runc);
    let output = run.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}: {said}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    assert_eq!(said, EXPECTED);
}

/// Copies runc below `root` to where its ELF header wants its libraries, and returns its path there.
fn peer_with_its_libraries(root: &Path) -> std::path::PathBuf {
    let runc = programs::peer("newer", "runc").unwrap().canonicalize().unwrap();
    let tree = runc.ancestors().nth(3).unwrap();
    for file in [
        "usr/sbin/runc",
        "usr/lib64/ld-linux-x86-64.so.2",
        "usr/lib/x86_64-linux-gnu/libc.so.6",
        "usr/lib/x86_64-linux-gnu/libseccomp.so.2",
    ] {
        let place = root.join(tree.strip_prefix("/").unwrap()).join(file);
        fs::create_dir_all(place.parent().unwrap()).unwrap();
        fs::copy(tree.join(file), place).unwrap();
    }
    runc
}

const EXPECTED: &str = "\
memory.max: 67108864
memory.low: 33554432
memory.high: 58720256
memory.swap.max: 67108864
cpu.max: 33333 100000
cpu.weight: 59
cpuset.cpus: 0
pids.max: 1
processes: 1
systemd knows: TimeoutStopUSec=7s OOMPolicy=kill Slice=taretest-inner.slice \
ControlGroup=/taretest.slice/taretest-inner.slice/tare-box.scope Delegate=yes CPUAccounting=yes CPUWeight=59 \
CPUQuotaPerSecUSec=340ms CPUQuotaPeriodUSec=100ms AllowedCPUs=0 IOAccounting=yes MemoryAccounting=yes \
MemoryLow=33554432 MemoryHigh=58720256 MemoryMax=67108864 MemorySwapMax=67108864 DevicePolicy=strict \
DeviceAllow=char-pts rwm DeviceAllow=/dev/char/5:2 rwm DeviceAllow=/dev/char/5:1 rwm DeviceAllow=/dev/char/5:0 rwm \
DeviceAllow=/dev/char/1:9 rwm DeviceAllow=/dev/char/1:8 rwm DeviceAllow=/dev/char/1:7 rwm DeviceAllow=/dev/char/1:5 rwm \
DeviceAllow=/dev/char/1:3 rwm DeviceAllow=block-* m DeviceAllow=char-* m DeviceAllow=/dev/block/254:0 r \
TasksAccounting=yes TasksMax=1 DefaultDependencies=no
after a reload: 67108864 33333 100000 1
updated: 33554432 0 77 100
systemd knows the new: CPUWeight=100 MemoryMax=33554432 TasksMax=77 NeedDaemonReload=no
in its namespace: 0::/
paused: 1 \"status\": \"paused\"
gone with its container:
left over:
created: active
stopped by systemd:
refused: msg=\"linux.resources.memory.swap: 1 is below memory.limit (67108864), which it includes\"
no program: exec: \\\"/nope\\\": stat /nope: no such file or directory\"
undone:
not a path: msg=\"linux.cgroupsPath: \\\"nonsense\\\" is not slice:prefix:name, which --systemd-cgroup needs\"
its cgroup without a namespace: 67108864
gone by force:
unlike runc's unit:
unlike runc's files:
";
