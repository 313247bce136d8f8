//! What a container sees of itself: what was asked for, and what runc would show it.

use serde_json::{Value, json};

use crate::bundle::{Bundle, answer, peer, sees};

#[test]
fn the_process_is_who_it_was_asked_to_be() {
    let bundle = Bundle::new()
        .set("/process/user", json!({"uid": 12, "gid": 34, "additionalGids": [56, 78], "umask": 0o27}))
        .set("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "soft": 99, "hard": 100}]))
        .set("/process/env", json!(["PATH=/bin", "ONE=1"]))
        .set("/process/cwd", json!("/tmp"))
        .set("/process/oomScoreAdj", json!(900))
        .set("/hostname", json!("a-host"))
        .set("/domainname", json!("a.domain"));
    let script = "id; umask; ulimit -Sn; ulimit -Hn; pwd; cat /proc/self/oom_score_adj /proc/sys/kernel/hostname \
                  /proc/sys/kernel/domainname; env | head -n 100 | while read l; do echo $l; done";
    let seen = sees(bundle, script);
    assert!(seen.starts_with("uid=12 gid=34 groups=56,78\n0027\n99\n100\n/tmp\n900\na-host\na.domain\n"), "{seen}");
    assert!(seen.contains("ONE=1\n") && !seen.contains("CARGO"), "{seen}");
}

#[test]
fn a_working_folder_that_is_not_there_is_made_also_below_a_root_that_is_read_only() {
    for readonly in [false, true] {
        let bundle = Bundle::new().set("/process/cwd", json!("/not/there/yet")).set("/root/readonly", json!(readonly));
        assert_eq!(sees(bundle, "pwd; stat -c %a:%u . .."), "/not/there/yet\n755:0\n755:0\n");
    }
}

#[test]
fn capabilities_filter_and_privileges_are_those_of_the_specification() {
    let kill_only = json!(["CAP_KILL"]);
    let bundle = Bundle::new()
        .set("/process/capabilities", json!({"bounding": kill_only, "permitted": kill_only, "effective": kill_only}))
        .set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}),
        );
    let script = "while read k v; do case $k in Cap*|NoNew*|Seccomp:) echo $k $v;; esac; done < /proc/self/status; \
                  busybox mkdir /tmp/x 2>&1; true";
    assert_eq!(
        sees(bundle, script),
        "CapInh: 0000000000000000\nCapPrm: 0000000000000020\nCapEff: 0000000000000020\nCapBnd: 0000000000000020\n\
         CapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\nmkdir: can't create directory '/tmp/x': Function not \
         implemented\n"
    );
}

/// Old profiles, strict ones, and those that refuse what only a runtime would call.
#[test]
fn a_filter_that_refuses_the_runtimes_own_calls_does_not_keep_a_program_from_starting() {
    let refused = ["getcwd", "faccessat2", "close_range", "openat2", "clone3", "sendto", "sendmsg", "statx", "prctl"];
    for no_new_privileges in [true, false] {
        let bundle = Bundle::new().set("/process/noNewPrivileges", json!(no_new_privileges)).set(
            "/linux/seccomp",
            json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{"names": if no_new_privileges { &refused[..] } else { &refused[..8] },
                    "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}),
        );
        assert_eq!(sees(bundle, "echo started"), "started\n", "{no_new_privileges}");
    }
}

#[test]
fn an_unprivileged_user_keeps_its_ambient_capabilities() {
    let kill_only = json!(["CAP_KILL"]);
    let sets: serde_json::Map<String, Value> = ["bounding", "permitted", "effective", "inheritable", "ambient"]
        .map(|set| (set.to_owned(), kill_only.clone()))
        .into_iter()
        .collect();
    let bundle =
        Bundle::new().set("/process/user", json!({"uid": 1000, "gid": 1000})).set("/process/capabilities", sets.into());
    let script = "while read k v; do case $k in CapEff:|CapAmb:) echo $k $v;; esac; done < /proc/self/status";
    assert_eq!(sees(bundle, script), "CapEff: 0000000000000020\nCapAmb: 0000000000000020\n");
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_refuse_writes() {
    let bundle = Bundle::new()
        .set("/root/readonly", json!(false))
        .set("/linux/maskedPaths", json!(["/secret", "/secrets", "/proc/timer_list", "/not/there"]))
        .set("/linux/readonlyPaths", json!(["/fixed", "/proc/sys", "/not/there"]));
    std::fs::write(bundle.path("rootfs/secret"), "key").unwrap();
    for folder in ["secrets", "fixed"] {
        std::fs::create_dir(bundle.path("rootfs").join(folder)).unwrap();
        std::fs::write(bundle.path("rootfs").join(folder).join("file"), "text").unwrap();
    }
    let script = "cat /secret /proc/timer_list; ls /secrets; cat /fixed/file; echo; touch /fixed/new 2>&1; \
                  touch /secrets/new 2>&1; echo 1 2>&1 > /proc/sys/kernel/panic; touch /ok && echo the rest is writable";
    let seen = sees(bundle, script);
    assert!(seen.starts_with("text\ntouch: /fixed/new: Read-only file system\n"), "{seen}");
    assert!(seen.contains("/secrets/new: Read-only file system"), "{seen}");
    assert!(seen.ends_with("the rest is writable\n"), "{seen}");
}

#[test]
fn mounts_are_made_in_order_with_their_options() {
    let bundle = Bundle::new()
        .mount(json!({"destination": "/data", "type": "bind", "source": "shared", "options": ["rbind", "ro"]}))
        .mount(json!({"destination": "/data/inner", "type": "tmpfs", "source": "tmpfs",
            "options": ["size=4k", "mode=0711", "noexec"]}))
        .mount(json!({"destination": "/file", "type": "bind", "source": "shared/one", "options": ["bind"]}))
        .set("/root/readonly", json!(false));
    std::fs::create_dir_all(bundle.path("shared/inner")).unwrap();
    std::fs::write(bundle.path("shared/one"), "1").unwrap();
    let script = "cat /data/one /file; touch /data/x 2>&1; busybox stat -c %a /data/inner; \
                  busybox grep -c ' /data/inner .*noexec' /proc/self/mountinfo; touch /data/inner/ok";
    assert_eq!(sees(bundle, script), "11touch: /data/x: Read-only file system\n711\n1\n");
}

#[test]
fn limits_hold_from_the_first_instruction() {
    let bundle = Bundle::new()
        .set("/linux/resources/memory", json!({"limit": 33_554_432}))
        .set("/linux/resources/pids", json!({"limit": 17}));
    let script = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/pids/pids.max 2>/dev/null \
                  || cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max";
    assert_eq!(sees(bundle, script), "33554432\n17\n");
}

#[test]
fn devices_are_made_with_their_owner_and_mode() {
    let device =
        json!({"path": "/dev/sub/zero", "type": "c", "major": 1, "minor": 5, "fileMode": 0o640, "uid": 3, "gid": 4});
    let bundle = Bundle::new().set("/linux/devices", json!([device]));
    let script = "busybox stat -c '%a %u %g %t %T' /dev/sub/zero; for d in null zero full random urandom tty; do \
                  test -c /dev/$d || echo no $d; done; for l in fd stdin stdout stderr ptmx; do busybox readlink /dev/$l; done";
    assert_eq!(
        sees(bundle, script),
        "640 3 4 1 5\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\npts/ptmx\n"
    );
}

#[test]
fn parameters_of_its_own_namespaces_are_set() {
    let bundle = Bundle::new().set("/linux/sysctl", json!({"net.ipv4.ip_forward": "1", "kernel.shmmni": "77"}));
    assert_eq!(sees(bundle, "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/shmmni"), "1\n77\n");
}

#[test]
fn a_user_namespace_maps_its_ids() {
    let bundle = Bundle::new().in_user_namespace();
    let seen = sees(
        bundle,
        "id; cat /proc/self/uid_map | busybox tr -s ' '; touch /dev/shm/mine && busybox stat -c %u /dev/shm/mine",
    );
    assert_eq!(seen, "uid=0 gid=0\n 0 100000 1000\n0\n");
}

#[test]
fn a_namespace_may_be_joined() {
    let mut bundle = Bundle::new();
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    let network = namespaces.iter_mut().find(|namespace| namespace["type"] == "network").unwrap();
    network["path"] = json!(format!("/proc/{}/ns/net", std::process::id()));
    let ours = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(sees(bundle, "busybox readlink /proc/self/ns/net").trim(), ours.to_str().unwrap());
}

/// Mounts, devices, credentials, limits: all that a program can find out is as runc has it. Known differences: we make no
/// cgroup in hierarchies that no limit needs, so there is nothing to mount of them; a masked file is the host's null device
/// and not the container's, which an attacker may have replaced.
#[test]
fn a_container_looks_as_it_does_under_runc() {
    let script = "while read id parent device root place options rest; do case $place in /sys/fs/cgroup*) continue;; esac; \
                  case $root in /null) options=masked;; esac; echo $place $options; done < /proc/self/mountinfo; \
                  ls -ln / /dev | while read mode links uid gid size month day time name; do echo $mode $uid $gid $name; done; \
                  while read key value; do case $key in Cap*|NoNew*|Seccomp:|Groups:|Uid:|Gid:|Umask:|NSpid:) \
                  echo $key $value;; esac; done < /proc/self/status; \
                  env; ulimit -a; cat /proc/self/cgroup /proc/self/oom_score_adj; busybox hostname; busybox ps -o args; \
                  ls /proc/self/fd; busybox ip addr | busybox grep -v link/";
    let mut bundle = Bundle::new().script(script).set("/hostname", json!("same"));
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    if !namespaces.contains(&json!({"type": "cgroup"})) {
        namespaces.push(json!({"type": "cgroup"})); // on a hybrid host runc makes one in version 2 too
    }
    let ours = bundle.run();
    assert_eq!(ours.code, Some(0), "{ours:?}");
    let theirs =
        answer(&mut bundle.command_of(&peer(&["newer/usr/sbin/runc", "newer/usr/bin/runc"]), &["run", &bundle.id]));
    assert_eq!(theirs.code, Some(0), "{theirs:?}");
    assert_eq!(lines(&ours.out), lines(&theirs.out));
}

/// Sorted, since the order in which masks are mounted means nothing.
fn lines(text: &str) -> Vec<String> {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    lines.sort();
    lines
}
