//! Roots that an attacker has filled, and ways out that others have left open.

use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use serde_json::json;

use crate::bundle::{Bundle, answer};

#[test]
fn cve_2019_19921_proc_and_sys_must_be_ordinary_folders() {
    for folder in ["proc", "sys"] {
        let bundle = Bundle::new();
        symlink("tmp", bundle.path("rootfs").join(folder)).unwrap();
        let said = bundle.fails(&["create", &bundle.id]);
        assert!(said.contains(&format!("at /{folder}")) && said.contains("ordinary directory"), "{said}");
        bundle.assert_gone();
    }
}

#[test]
fn no_link_in_the_root_leads_a_mount_or_a_device_out_of_it() {
    let outside = tempfile::tempdir().unwrap();
    let bundle = Bundle::new()
        .set("/root/readonly", json!(false))
        .mount(json!({"destination": "/up/inside", "type": "tmpfs", "source": "tmpfs"}))
        .mount(json!({"destination": "/file", "type": "bind", "source": "config.json", "options": ["bind"]}))
        .script("true");
    symlink("../../../../../../../..", bundle.path("rootfs/up")).unwrap();
    symlink(outside.path().join("dev"), bundle.path("rootfs/dev")).unwrap();
    symlink(outside.path().join("file"), bundle.path("rootfs/file")).unwrap();
    let ended = bundle.run(); // whether it is refused or done inside, the host stays as it was
    let left: Vec<_> = std::fs::read_dir(outside.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?} {ended:?}");
    assert!(!Path::new("/inside").exists(), "{ended:?}");
    bundle.assert_gone();
}

#[test]
fn cve_2023_27561_a_masked_path_that_is_a_link_masks_nothing_of_the_host() {
    let outside = tempfile::tempdir().unwrap();
    std::fs::write(outside.path().join("file"), "untouched").unwrap();
    let bundle = Bundle::new().set("/linux/maskedPaths", json!(["/link"])).script("true");
    symlink(outside.path().join("file"), bundle.path("rootfs/link")).unwrap();
    bundle.run();
    assert_eq!(std::fs::read_to_string(outside.path().join("file")).unwrap(), "untouched");
    bundle.assert_gone();
}

#[test]
fn cve_2025_31133_a_mask_is_the_real_null_device() {
    let bundle = Bundle::new()
        .set("/linux/maskedPaths", json!(["/proc/timer_list"]))
        .script("busybox stat -L -c '%t %T' /proc/timer_list");
    std::fs::create_dir(bundle.path("rootfs/dev")).unwrap();
    symlink("/proc/sys/kernel/core_pattern", bundle.path("rootfs/dev/null")).unwrap();
    let mut bundle = bundle;
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    let ended = bundle.run();
    if ended.code == Some(0) {
        assert_eq!(ended.out, "1 3\n", "{ended:?}");
    } else {
        assert!(ended.err.contains("/dev/null"), "{ended:?}");
    }
    bundle.assert_gone();
}

#[test]
fn cve_2024_21626_a_working_folder_through_a_descriptor_is_refused() {
    for number in 3..12 {
        let bundle =
            Bundle::new().set("/process/cwd", json!(format!("/proc/self/fd/{number}"))).script("cat /etc/hostname");
        let ended = bundle.run();
        assert_ne!(ended.code, Some(0), "{number}: {ended:?}");
        assert_eq!(ended.out, "", "{number}");
        bundle.assert_gone();
    }
    let bundle = Bundle::new().script("exec sleep 1000");
    bundle.done(&["run", "-d", &bundle.id]);
    for number in 3..12 {
        // The container's own root is no way out; anything else is refused.
        let cwd = format!("/proc/self/fd/{number}");
        let ended = bundle.tare(&["exec", "--cwd", &cwd, &bundle.id, "busybox", "stat", "-c", "%d:%i", ".", "/"]);
        let places: Vec<&str> = ended.out.lines().collect();
        assert!(ended.code == Some(255) || (ended.code == Some(0) && places[0] == places[1]), "{number}: {ended:?}");
    }
}

#[test]
fn no_descriptor_of_the_runtime_is_open_in_a_container() {
    let bundle = Bundle::new().script("ls /proc/self/fd; exec sleep 1000");
    bundle.done(&["run", "-d", &bundle.id]);
    // 3 is the folder that `ls` reads.
    assert_eq!(bundle.tare(&["exec", &bundle.id, "ls", "/proc/self/fd"]).out, "0\n1\n2\n3\n");
    let open = std::fs::read_dir(format!("/proc/{}/fd", bundle.pid())).unwrap();
    let mut open: Vec<_> = open.map(|fd| fd.unwrap().file_name().into_string().unwrap()).collect();
    open.sort();
    assert_eq!(open, ["0", "1", "2"]);
}

/// A copy of our binary that nobody else executes: what is executed cannot be written anyway, which would hide a hole.
fn own_copy(bundle: &Bundle) -> PathBuf {
    let copy = bundle.path("tare");
    let copied = std::process::Command::new("cp").arg(env!("CARGO_BIN_EXE_tare")).arg(&copy).status().unwrap();
    assert!(copied.success());
    copy
}

fn assert_untouched(copy: &Path) {
    let same = std::fs::read(env!("CARGO_BIN_EXE_tare")).unwrap() == std::fs::read(copy).unwrap();
    assert!(same, "the runtime was overwritten");
}

/// Whoever holds on to what the first process executes may write when it runs no more, and then finds a file that nobody
/// can write to.
#[test]
fn cve_2019_5736_the_runtimes_binary_cannot_be_written_through_proc() {
    let bundle = Bundle::new().set("/process/args", json!(["/proc/self/exe", "--version"]));
    let copy = own_copy(&bundle);
    let created = bundle.command_of(&copy, &["create", &bundle.id]).status().unwrap();
    assert!(created.success());
    let pid = bundle.pid();
    let held = rustix::fs::open(format!("/proc/{pid}/exe"), OFlags::PATH, Mode::empty()).unwrap();
    bundle.done(&["kill", &bundle.id, "KILL"]);
    Bundle::wait_for_end_of(pid);
    let again = format!("/proc/self/fd/{}", held.as_raw_fd());
    let refused = rustix::fs::open(again, OFlags::WRONLY, Mode::empty()).unwrap_err();
    assert!(matches!(refused, Errno::ROFS | Errno::PERM), "{refused}");
    assert_untouched(&copy);
}

/// The same from inside: the container executes the runtime by the link, makes it sit still on a pipe, and attacks.
#[test]
fn cve_2019_5736_a_container_cannot_overwrite_what_it_was_entered_by() {
    let all = json!(["CAP_SYS_ADMIN", "CAP_DAC_OVERRIDE", "CAP_SYS_PTRACE", "CAP_FOWNER", "CAP_KILL"]);
    let bundle = Bundle::new()
        .set("/process/capabilities", json!({"bounding": all, "permitted": all, "effective": all}))
        .set("/root/readonly", json!(false))
        .script("exec sleep 1000");
    let copy = own_copy(&bundle);
    bundle.done(&["run", "-d", &bundle.id]);
    let attack = "busybox mkfifo /tmp/config.json; victim=; \
                  until test $victim; do for p in /proc/[0-9]*; do \
                  read name 2>/dev/null < $p/comm && test \"$name\" = exe && victim=${p#/proc/}; done; done; \
                  command exec 6< /proc/$victim/exe && echo held; kill -9 $victim; \
                  while test -d /proc/$victim; do :; done; (echo gone > /proc/self/fd/6) 2>&1; \
                  busybox mount -o remount,bind,rw /proc/self/fd/6 2>/dev/null; (echo gone > /proc/self/fd/6) 2>&1; true";
    let mut attacker = bundle.command(&["exec", &bundle.id, "sh", "-c", attack]);
    let mut attacker = attacker.stdout(Stdio::piped()).spawn().unwrap();
    while !bundle.path("rootfs/tmp/config.json").exists() {
        std::thread::yield_now();
    }
    let entered = ["exec", "--cwd", "/tmp", &bundle.id, "/proc/self/exe", "run", "box"];
    let victim = answer(&mut bundle.command_of(&copy, &entered));
    assert_eq!(victim.code, Some(137), "it did not sit still: {victim:?}");
    let mut said = String::new();
    attacker.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(attacker.wait().unwrap().success());
    assert!(said.starts_with("held\n"), "{said}");
    assert_eq!(said.matches("Read-only file system").count(), 2, "{said}");
    assert_untouched(&copy);
}

#[test]
fn cve_2016_9962_nobody_inside_can_look_into_a_process_on_its_way_in() {
    let bundle = Bundle::new().script(
        "while :; do for p in /proc/[0-9]*; do case $p in /proc/1|/proc/$$) ;; *) ls -l $p/fd 2>/dev/null;; esac; done; done \
         | busybox grep -e '/state' -e cgroup -e ns/",
    );
    bundle.done(&["run", "-d", &bundle.id]);
    for _ in 0..10 {
        bundle.done(&["exec", &bundle.id, "true"]);
    }
    bundle.done(&["delete", "-f", &bundle.id]);
    assert_eq!(bundle.output(), "");
}
