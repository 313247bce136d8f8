//! In tests, an allocator that ends a process which allocates between clone and exec. The memory of a clone is a copy: a
//! lock that another thread holds at that moment is never let go of in it, and the allocator's is the one that counts.

#![allow(unsafe_code)] // an allocator

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

/// The exit code of a process that was caught.
pub const CAUGHT: i32 = 99;

static ARMED: AtomicBool = AtomicBool::new(false);

/// From here on this process, a clone, may not allocate or free any more.
pub fn arm() {
    ARMED.store(true, Ordering::Relaxed);
}

struct Trap;

#[global_allocator]
static ALLOCATOR: Trap = Trap;

fn look() {
    if ARMED.load(Ordering::Relaxed) {
        sys::exit(CAUGHT);
    }
}

// SAFETY: all of it is the system's allocator, or the end of the process.
unsafe impl GlobalAlloc for Trap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        look();
        // SAFETY: the caller's promises are the system allocator's conditions.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        look();
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        look();
        // SAFETY: as above.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::Path;

    use rustix::process::{Pid, WaitOptions, waitpid};
    use serde_json::{Value, json};

    use super::*;
    use crate::sys::Cloned;

    #[test]
    fn whoever_allocates_is_caught() {
        match sys::clone3(0, None).unwrap() {
            Cloned::Child => {
                arm();
                drop(std::hint::black_box(vec![1]));
                sys::exit(0)
            }
            Cloned::Parent { pid, .. } => assert_eq!(exit_code(pid), Some(CAUGHT)),
        }
    }

    fn exit_code(pid: Pid) -> Option<i32> {
        waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap().1.exit_status()
    }

    fn tare(root: &Path, words: &[&str]) -> i32 {
        let before = ["tare", "--root", root.to_str().unwrap()];
        crate::cli::main(before.iter().chain(words).map(|word| (*word).to_owned()).collect())
    }

    /// Everything that a child may have to do, on the host's programs.
    fn config(dir: &Path) -> Value {
        let mut mounts = vec![
            json!({"destination": "/proc", "type": "proc", "source": "proc"}),
            json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["mode=755", "ro"]}),
            json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]}),
            json!({"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]}),
            json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}),
            json!({"destination": "/filled", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
            json!({"destination": "/filled", "options": ["remount", "size=1m"]}),
            json!({"destination": "/made/on/the/way", "type": "tmpfs", "source": "tmpfs"}),
            json!({"destination": "/nowhere/file", "type": "bind", "source": "config.json", "options": ["bind"]}),
            json!({"destination": "/again", "type": "bind", "source": "rootfs/filled", "options": ["rbind", "nosuid"]}),
        ];
        for folder in ["/bin", "/lib", "/lib64", "/usr"] {
            mounts.push(json!({"destination": folder, "type": "bind", "source": folder, "options": ["rbind", "ro"]}));
        }
        let kill_only = json!(["CAP_KILL"]);
        json!({
            "ociVersion": "1.3.0",
            "root": {"path": dir.join("rootfs"), "readonly": true},
            "hostname": "trap",
            "domainname": "trap",
            "mounts": mounts,
            "process": {
                "args": ["sleep", "1000"], "cwd": "/", "env": ["PATH=/usr/bin:/bin"], "noNewPrivileges": true,
                "user": {"uid": 7, "gid": 8, "additionalGids": [9]},
                "rlimits": [{"type": "RLIMIT_CORE", "soft": 0, "hard": 0}],
                "capabilities": {"bounding": kill_only, "permitted": kill_only, "effective": kill_only,
                    "inheritable": kill_only, "ambient": kill_only},
                "scheduler": {"policy": "SCHED_BATCH", "nice": 1}, "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 5},
            },
            "hooks": {"createContainer": [{"path": "/bin/true"}], "startContainer": [{"path": "/bin/true"}]},
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                    {"type": "cgroup"}],
                "devices": [{"path": "/dev/sub/zero", "type": "c", "major": 1, "minor": 5, "uid": 3, "gid": 4}],
                "sysctl": {"net.ipv4.ip_forward": "1"},
                "maskedPaths": ["/proc/timer_list", "/proc/scsi", "/sys/firmware", "/filled/folder"],
                "readonlyPaths": ["/proc/sys"],
                "rootfsPropagation": "rshared",
                "personality": {"domain": "LINUX"},
                "memoryPolicy": {"mode": "MPOL_LOCAL"},
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                    "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_ERRNO"}]},
            },
        })
    }

    fn in_user_namespace(mut config: Value) -> Value {
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]);
        config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
        config["linux"].as_object_mut().unwrap().remove("devices");
        config
    }

    /// A child that allocates ends with another word than its program's.
    #[test]
    fn no_child_allocates_between_clone_and_exec() {
        for (number, user_namespace) in [false, true].into_iter().enumerate() {
            let dir = tempfile::tempdir().unwrap();
            std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
            std::fs::create_dir_all(dir.path().join("rootfs/filled/folder")).unwrap();
            std::fs::write(dir.path().join("rootfs/filled/file"), "text").unwrap();
            std::os::unix::fs::symlink("/elsewhere", dir.path().join("rootfs/nowhere")).unwrap();
            let mut config = config(dir.path());
            if user_namespace {
                config = in_user_namespace(config);
                for path in ["rootfs", "rootfs/filled", "rootfs/filled/folder", "rootfs/filled/file"] {
                    std::os::unix::fs::chown(dir.path().join(path), Some(100_000), Some(100_000)).unwrap();
                }
            }
            std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
            let root = dir.path().join("state");
            let id = format!("tare-trap-{}-{number}", std::process::id());
            let created = tare(&root, &["create", "--bundle", dir.path().to_str().unwrap(), &id]);
            let init = std::fs::read_to_string(root.join(&id).join("init"));
            let started = tare(&root, &["start", &id]);
            let one_more = tare(&root, &["exec", &id, "true"]);
            let refused = tare(&root, &["exec", &id, "no-such-program"]);
            let deleted = tare(&root, &["delete", "--force", &id]);
            let pid = init.unwrap().split(' ').next().unwrap().parse().unwrap();
            assert_eq!(
                (created, started, one_more, refused, deleted),
                (0, 0, 0, 255, 0),
                "user namespace: {user_namespace}"
            );
            assert_eq!(exit_code(Pid::from_raw(pid).unwrap()), None, "it was killed by `delete` and by nothing else");
        }
    }
}
