//! What cannot be done is one sentence that names it, and nothing is left behind.

use serde_json::json;

use crate::bundle::Bundle;

#[test]
fn a_missing_or_unusable_program_is_told_by_create_in_the_words_that_callers_look_for() {
    for (program, words) in [
        ("nope", "exec: \\\"nope\\\": executable file not found in $PATH"),
        ("/bin/nope", "exec: \\\"/bin/nope\\\": stat /bin/nope: no such file or directory"),
        ("/etc", "exec: \\\"/etc\\\": is a directory"),
        ("/plain", "exec: \\\"/plain\\\": permission denied"),
    ] {
        let bundle = Bundle::new().set("/process/args", json!([program]));
        std::fs::create_dir(bundle.path("rootfs/etc")).unwrap();
        std::fs::write(bundle.path("rootfs/plain"), "").unwrap();
        let said = bundle.fails(&["create", &bundle.id]);
        assert!(said.contains(words), "{said}");
        bundle.assert_gone();
    }
}

#[test]
fn what_is_refused_is_named_and_nothing_is_made() {
    for (pointer, value, words) in [
        ("/process/scheduler", json!({"policy": "SCHED_MOOD"}), "process.scheduler.policy"),
        ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 8}), "process.ioPriority.priority"),
        ("/process/execCPUAffinity", json!({"initial": "2-1"}), "process.execCPUAffinity.initial"),
        ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND"}), "linux.memoryPolicy.nodes"),
        ("/linux/intelRdt", json!({"closID": "x"}), "linux.intelRdt: not supported yet"),
        ("/linux/sysctl", json!({"kernel.panic": "1"}), "linux.sysctl.kernel.panic"),
        ("/linux/resources/memory", json!({"limit": -5}), "linux.resources.memory.limit"),
        ("/process/rlimits", json!([{"type": "RLIMIT_MOOD", "soft": 1, "hard": 1}]), "process.rlimits[0].type"),
        ("/process/cwd", json!("relative"), "process.cwd"),
        ("/root/path", json!("nowhere"), "no such file or directory"),
        ("/process/args", json!("true"), "config.json: invalid type: string"),
    ] {
        let bundle = Bundle::new().set(pointer, value);
        let said = bundle.fails(&["create", &bundle.id]);
        assert!(said.contains(words), "{pointer}: {said}");
        bundle.assert_gone();
    }
}

#[test]
fn a_step_that_fails_inside_is_told_with_its_object_and_everything_is_undone() {
    for (mount, words) in [
        (json!({"destination": "/x", "type": "nosuchfs", "source": "x"}), "mounting nosuchfs at /x: no such device"),
        (
            json!({"destination": "/x", "type": "tmpfs", "source": "x", "options": ["size=much"]}),
            "mounting tmpfs at /x: invalid argument",
        ),
        (json!({"destination": "/x", "type": "bind", "source": "/no/such", "options": ["bind"]}), "/no/such"),
    ] {
        let bundle = Bundle::new().set("/root/readonly", json!(false)).mount(mount);
        let said = bundle.fails(&["create", &bundle.id]);
        assert!(said.contains(words), "{said}");
        bundle.assert_gone();
    }
}

#[test]
fn an_id_that_leaves_its_folder_is_refused() {
    let bundle = Bundle::new();
    for id in ["..", ".", "a/b", "../x", "", "a b"] {
        assert!(bundle.fails(&["create", id]).contains("invalid container ID format"), "{id:?}");
    }
}
