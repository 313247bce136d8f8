//! What a process gets beyond who it is: processors, priorities, memory, descriptors.

use std::process::Command;

use serde_json::json;

use crate::bundle::{Bundle, answer, sees};

/// A field of the container's /proc/self/stat, counted from 1 as proc_pid_stat(5) does.
fn stat(bundle: Bundle, field: usize) -> String {
    let seen = sees(bundle, "cat /proc/self/stat");
    seen.split(' ').nth(field - 1).unwrap().trim().to_owned()
}

#[test]
fn the_scheduler_is_the_one_asked_for() {
    let batch = Bundle::new().set("/process/scheduler", json!({"policy": "SCHED_BATCH", "nice": 19}));
    let seen = sees(batch, "cat /proc/self/stat | while read -r line; do set -- $line; echo ${19} ${41}; done");
    assert_eq!(seen, "19 3\n");
    assert_eq!(stat(Bundle::new().set("/process/scheduler", json!({"policy": "SCHED_IDLE"})), 41), "5");
}

#[test]
fn the_io_priority_is_the_one_asked_for() {
    let bundle = Bundle::new()
        .set("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 6}))
        .script("sleep 1000");
    bundle.done(&["run", "--detach", &bundle.id]);
    let of_init = answer(Command::new("ionice").arg("-p").arg(bundle.pid().to_string()));
    assert_eq!(of_init.out, "best-effort: prio 6\n");
    bundle.done(&["exec", "--detach", "--pid-file", "pid", &bundle.id, "sleep", "1000"]);
    let pid = std::fs::read_to_string(bundle.path("pid")).unwrap();
    let of_more = answer(Command::new("ionice").args(["-p", &pid]));
    assert_eq!(of_more.out, "best-effort: prio 6\n");
}

/// Source: runtime-spec config-linux.md, "Memory policy"; numa(7) on the file.
#[test]
fn memory_comes_from_the_nodes_asked_for() {
    let bundle = Bundle::new().set(
        "/linux/memoryPolicy",
        json!({"mode": "MPOL_BIND", "nodes": "0",
        "flags": ["MPOL_F_STATIC_NODES"]}),
    );
    let seen = sees(bundle, "busybox head -n 1 /proc/self/numa_maps");
    assert!(seen.contains(" bind=static:0 "), "{seen}");
}

#[test]
fn a_runtime_that_is_confined_does_not_confine_the_container() {
    let all = Bundle::new().script("busybox grep Cpus_allowed_list /proc/self/status");
    let tare = all.command(&["run", &all.id]);
    let mut confined = Command::new("taskset");
    confined.args(["-c", "0"]).arg(tare.get_program()).args(tare.get_args()).current_dir(all.path(""));
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find(|line| line.starts_with("Cpus_allowed_list")).unwrap();
    assert_eq!(answer(&mut confined).out.trim(), own);
}

#[test]
fn one_more_process_runs_on_the_processors_asked_for() {
    let bundle =
        Bundle::new().set("/process/execCPUAffinity", json!({"initial": "0-1", "final": "1"})).script("sleep 1000");
    bundle.done(&["run", "--detach", &bundle.id]);
    let seen = bundle.tare(&["exec", &bundle.id, "busybox", "grep", "Cpus_allowed_list", "/proc/self/status"]);
    assert_eq!(seen.out, "Cpus_allowed_list:\t1\n", "{seen:?}");
    assert!(!sees_one(bundle.pid()), "it is for `exec` alone");
}

fn sees_one(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap().contains("Cpus_allowed_list:\t1\n")
}

#[test]
fn a_capability_may_stand_for_a_missing_permission() {
    use std::os::unix::fs::PermissionsExt as _;
    let set = json!(["CAP_DAC_OVERRIDE"]);
    let sets: serde_json::Map<String, serde_json::Value> =
        ["bounding", "permitted", "effective", "inheritable", "ambient"]
            .map(|name| (name.to_owned(), set.clone()))
            .into_iter()
            .collect();
    let bundle = Bundle::new()
        .set("/process/user", json!({"uid": 1000, "gid": 1000}))
        .set("/process/capabilities", sets.into())
        .set("/process/args", json!(["/bin/busybox", "true"]));
    std::fs::set_permissions(bundle.path("rootfs/bin/busybox"), std::fs::Permissions::from_mode(0o100)).unwrap();
    assert_eq!(bundle.run().code, Some(0));
    let bundle = bundle.set("/process/capabilities", json!({}));
    let said = bundle.fails(&["run", &bundle.id]);
    assert!(said.contains("permission denied"), "{said}");
}

#[test]
fn every_process_of_a_container_has_its_personality() {
    let bundle = Bundle::new()
        .set("/linux/personality", json!({"domain": "LINUX32"}))
        .script("busybox uname -m; exec sleep 1000");
    bundle.done(&["run", "--detach", &bundle.id]);
    let seen = bundle.tare(&["exec", &bundle.id, "busybox", "uname", "-m"]);
    assert!(seen.out != "x86_64\n" && !seen.out.is_empty(), "{seen:?}");
}

#[test]
fn what_a_created_container_holds_open_is_what_it_waits_with() {
    let bundle = Bundle::new();
    bundle.done(&["create", &bundle.id]);
    let open = std::fs::read_dir(format!("/proc/{}/fd", bundle.pid())).unwrap();
    let open: Vec<String> = open
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_name().to_str().unwrap().parse::<u32>().unwrap() > 2)
        .map(|entry| std::fs::read_link(entry.path()).unwrap().to_str().unwrap().to_owned())
        .collect();
    let known = |path: &String| path.starts_with("socket:") || path.ends_with("/exec.fifo");
    assert!(open.len() == 3 && open.iter().all(known), "{open:?}");
}

/// As the first process of a PID namespace it would not get their default actions.
#[test]
fn a_created_container_ends_by_a_signal() {
    for signal in ["TERM", "INT", "HUP", "USR1"] {
        let bundle = Bundle::new();
        bundle.done(&["create", &bundle.id]);
        let pid = bundle.pid();
        bundle.done(&["kill", &bundle.id, signal]);
        Bundle::wait_for_end_of(pid);
        assert_eq!(bundle.status(), "stopped", "{signal}");
    }
}

#[test]
fn one_more_process_may_be_in_a_cgroup_below() {
    let bundle = Bundle::new().script("sleep 1000").set("/linux/resources/pids", json!({"limit": 100}));
    bundle.done(&["run", "--detach", &bundle.id]);
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", bundle.pid())).unwrap();
    let (mount, pids) = cgroups
        .lines()
        .find_map(|line| line.split_once(":pids:").map(|(_, path)| ("pids", path)))
        .unwrap_or_else(|| ("", cgroups.trim().strip_prefix("0::").unwrap()));
    let below = std::path::Path::new("/sys/fs/cgroup").join(mount).join(pids.trim_start_matches('/')).join("below");
    std::fs::create_dir(&below).unwrap();
    let asked = if mount.is_empty() { "below" } else { "pids:below" };
    let seen = bundle.tare(&["exec", "--cgroup", asked, &bundle.id, "cat", "/proc/self/cgroup"]);
    assert!(seen.out.contains("/below\n"), "{seen:?}");
    for (asked, words) in [
        ("..", " .. is not a sub cgroup path"),
        ("nope", "/nope/cgroup.procs: no such file or directory"),
        ("mood:below", if mount.is_empty() { "cgroup v2" } else { "unknown controller mood" }),
    ] {
        let seen = bundle.tare(&["exec", "--cgroup", asked, &bundle.id, "true"]);
        assert!(seen.code == Some(255) && seen.err.contains(words), "{seen:?}");
    }
}
