//! Namespaces that are made, joined, and made inside joined ones.

use serde_json::{Value, json};

use crate::bundle::{Bundle, answer, sees};

const KINDS: [(&str, &str); 7] = [
    ("user", "user"),
    ("pid", "pid"),
    ("network", "net"),
    ("ipc", "ipc"),
    ("uts", "uts"),
    ("mount", "mnt"),
    ("time", "time"),
];

/// What /proc/PID/ns says of a process on the host.
fn namespace_of(pid: i32, file: &str) -> String {
    std::fs::read_link(format!("/proc/{pid}/ns/{file}")).unwrap().to_str().unwrap().to_owned()
}

fn join(bundle: &mut Bundle, kind: &str, path: &str) {
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != kind);
    namespaces.push(json!({"type": kind, "path": path}));
}

fn sleeper(bundle: Bundle) -> Bundle {
    bundle.set("/process/args", json!(["sleep", "1000"]))
}

fn with_time_namespace(mut bundle: Bundle) -> Bundle {
    bundle.config["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "time"}));
    bundle.set("/linux/timeOffsets", json!({"monotonic": {"secs": 7881, "nanosecs": 5}, "boottime": {"secs": 1337}}))
}

#[test]
fn clocks_are_offset_in_a_time_namespace() {
    let seen = sees(with_time_namespace(Bundle::new()), "busybox tr -s ' ' < /proc/self/timens_offsets");
    assert_eq!(seen, "monotonic 7881 5\nboottime 1337 0\n");
}

/// All namespaces of a container with a user namespace: the joining process belongs to all of them.
#[test]
fn every_kind_may_be_joined() {
    let target = sleeper(with_time_namespace(Bundle::new().in_user_namespace()));
    target.done(&["run", "--detach", &target.id]);
    let mut joining = sleeper(Bundle::new().in_user_namespace());
    for (kind, file) in KINDS {
        join(&mut joining, kind, &format!("/proc/{}/ns/{file}", target.pid()));
    }
    joining.config["hostname"] = Value::from("");
    joining.done(&["run", "--detach", &joining.id]);
    for (_, file) in KINDS {
        assert_eq!(namespace_of(joining.pid(), file), namespace_of(target.pid(), file), "{file}");
    }
    let seen = joining.tare(&["exec", &joining.id, "busybox", "readlink", "/proc/self/ns/time"]);
    assert_eq!(seen.out.trim(), namespace_of(target.pid(), "time"), "{seen:?}");
}

/// A hostname and mounts can only be set by the root of the user namespace that owns the others.
#[test]
fn new_namespaces_belong_to_a_user_namespace_that_is_joined() {
    let target = sleeper(Bundle::new().in_user_namespace());
    target.done(&["run", "--detach", &target.id]);
    let mut joining = Bundle::new().in_user_namespace().set("/hostname", json!("inside"));
    join(&mut joining, "user", &format!("/proc/{}/ns/user", target.pid()));
    let user = namespace_of(target.pid(), "user");
    let seen = sees(joining, "busybox readlink /proc/self/ns/user; busybox hostname; echo $$; id");
    assert_eq!(seen, format!("{user}\ninside\n1\nuid=0 gid=0\n"));
}

#[test]
fn a_user_namespace_that_is_joined_has_the_mappings_that_were_given_or_is_refused() {
    let target = sleeper(Bundle::new().in_user_namespace());
    target.done(&["run", "--detach", &target.id]);
    let mut joining = Bundle::new().in_user_namespace();
    join(&mut joining, "user", &format!("/proc/{}/ns/user", target.pid()));
    let other = json!([{"containerID": 0, "hostID": 100_000, "size": 999}]);
    let joining = joining.set("/linux/gidMappings", other);
    let said = joining.fails(&["run", &joining.id]);
    assert!(said.contains("linux.gidMappings: a user namespace that is joined has other mappings"), "{said}");
    joining.assert_gone();
}

/// The other namespaces belong to the host's user namespace, which the one that is joined has no rights in.
#[test]
fn namespaces_of_the_host_may_be_joined_beside_a_user_namespace() {
    let target = sleeper(Bundle::new().in_user_namespace());
    target.done(&["run", "--detach", &target.id]);
    let hosts = sleeper(Bundle::new());
    hosts.done(&["run", "--detach", &hosts.id]);
    let mut joining = Bundle::new().in_user_namespace();
    join(&mut joining, "user", &format!("/proc/{}/ns/user", target.pid()));
    join(&mut joining, "ipc", &format!("/proc/{}/ns/ipc", hosts.pid()));
    join(&mut joining, "network", &format!("/proc/{}/ns/net", hosts.pid()));
    // A sysfs shows a network namespace that is not the container's own.
    joining.config["mounts"].as_array_mut().unwrap().retain(|mount| {
        !mount["destination"].as_str().unwrap().starts_with("/sys") && mount["destination"] != "/dev/mqueue"
    });
    let seen = sees(joining, "busybox readlink /proc/self/ns/ipc; busybox readlink /proc/self/ns/net");
    assert_eq!(seen, format!("{}\n{}\n", namespace_of(hosts.pid(), "ipc"), namespace_of(hosts.pid(), "net")));
}

#[test]
fn a_pid_namespace_may_be_joined() {
    let target = sleeper(Bundle::new());
    target.done(&["run", "--detach", &target.id]);
    let mut joining = Bundle::new();
    join(&mut joining, "pid", &format!("/proc/{}/ns/pid", target.pid()));
    let seen = sees(joining, "busybox ps -o pid,args");
    assert!(seen.contains("1 sleep 1000") && !seen.contains(" 1 sh"), "{seen}");
}

/// In a network namespace of the test's own, so that the host's devices stay where they are.
#[test]
fn a_network_device_moves_in_under_its_new_name_with_its_addresses() {
    let script = "busybox ip -o addr show dev inside; busybox ip link show inside | busybox grep -c ',UP'";
    let bundle = Bundle::new().set("/linux/netDevices", json!({"tare-test": {"name": "inside"}})).script(script);
    let tare = bundle.command(&["run", &bundle.id]);
    let busybox = bundle.path("rootfs/bin/busybox");
    let around = format!(
        "set -e; b={}; $b ip link add tare-test type veth; $b ip addr add 10.9.8.7/24 dev tare-test; \
         $b ip link set tare-test up; $b ip -6 addr add fd00::7/64 dev tare-test; \"$@\"; \
         ! $b ip link show tare-test 2>/dev/null",
        busybox.display()
    );
    let mut command = std::process::Command::new("unshare");
    command.args(["--net", "sh", "-c", &around, "sh"]).arg(tare.get_program()).args(tare.get_args());
    let seen = answer(command.current_dir(bundle.path("")));
    assert_eq!(seen.code, Some(0), "{seen:?}");
    assert!(
        seen.out.contains("10.9.8.7/24") && seen.out.contains("fd00::7/64") && seen.out.ends_with("1\n"),
        "{seen:?}"
    );
}

#[test]
fn a_network_device_that_cannot_move_is_named() {
    for (devices, words) in [
        (
            json!({"tare-none": {}}),
            "linux.netDevices.tare-none: moving it into the container as tare-none: no such device",
        ),
        (json!({"a-name-that-is-too-long": {}}), "is not the name of a network device"),
        (json!({"tare-a": {"name": "x/y"}}), "is not the name of a network device"),
        (json!({"tare-a": {"name": "x"}, "tare-b": {"name": "x"}}), "x is the name of another device already"),
    ] {
        let bundle = Bundle::new().set("/linux/netDevices", devices);
        let said = bundle.fails(&["run", &bundle.id]);
        assert!(said.contains(words), "{said}");
        bundle.assert_gone();
    }
}

/// One that shows the root file system shows it as the root; one of another container shows that container's.
#[test]
fn a_mount_namespace_that_is_joined_has_its_own_root_unless_it_shows_the_containers() {
    let target = sleeper(Bundle::new());
    std::fs::write(target.path("rootfs/of-target"), "").unwrap();
    target.done(&["run", "--detach", &target.id]);
    let here = std::process::id().cast_signed();
    for (pid, marker) in [(target.pid(), "of-target"), (here, "own")] {
        let mut joining = Bundle::new();
        std::fs::write(joining.path("rootfs/own"), "").unwrap();
        join(&mut joining, "mount", &format!("/proc/{pid}/ns/mnt"));
        let joining = joining.set("/mounts", json!([])).set("/hostname", json!(""));
        let seen = sees(joining, "ls /");
        assert!(seen.lines().any(|name| name == marker), "{seen}");
    }
}

#[test]
fn a_path_that_is_no_such_namespace_is_refused() {
    for path in ["/proc/self/ns/mnt", "/dev/null", "/no/such"] {
        let mut bundle = Bundle::new();
        join(&mut bundle, "ipc", path);
        let said = bundle.fails(&["run", &bundle.id]);
        assert!(said.contains(path), "{said}");
        bundle.assert_gone();
    }
}
