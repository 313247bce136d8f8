//! One list of `ctr` commands, given to containerd and to tared: exit codes, output and classes of errors must be the same.

use std::process::{Command, Stdio};

use tare_integration::daemon::{Daemon, Kind};
use tare_integration::{image, registry::Registry};

/// What one command came to.
#[derive(Debug, PartialEq, Eq)]
struct Came {
    command: String,
    code: Option<i32>,
    out: String,
    /// The words by which clients know an error.
    class: &'static str,
}

/// `IMAGE` is the image's name; a word is what stands between two spaces.
const COMMANDS: &str = "
    image ls -q
    image label IMAGE a=b
    image label --replace-all IMAGE c=d
    image label IMAGE c=
    image rm nope
    image tag IMAGE localhost/t:1
    image tag IMAGE localhost/t:1
    image tag --force IMAGE localhost/t:1
    image tag --local IMAGE localhost/t:2
    image tag nope localhost/t:3
    image ls name~=t: -q
    image ls -q name~=t:
    image check
    image usage IMAGE
    image rm localhost/t:1 localhost/t:2
    image rm localhost/t:1
    content ls -q
    content get sha256:0000000000000000000000000000000000000000000000000000000000000000
    content get sha256:00
    content rm sha256:0000000000000000000000000000000000000000000000000000000000000000
    content label sha256:0000000000000000000000000000000000000000000000000000000000000000 a=b
    snapshot ls
    snapshot tree
    snapshot info nope
    snapshot prepare k1
    snapshot prepare k1
    snapshot view v1 nope
    snapshot commit c1 k1
    snapshot commit c2 nope
    snapshot prepare k2 c1
    snapshot prepare k3 k2
    snapshot diff nope
    snapshot rm c1
    snapshot rm k2
    snapshot rm c1
    snapshot rm c1
    snapshot --snapshotter native ls
    snapshot --snapshotter nope ls
    run --rm IMAGE r1 echo hi
    run --rm IMAGE r1 false
    run --rm --env A=1 --cwd /bin IMAGE r2 sh -c pwd
    run --rm --snapshotter native IMAGE r3 echo native
    run --rm --read-only IMAGE r4 sh -c echo>/x
    run --rm --memory-limit 67108864 --cpus 0.5 --cpu-shares 512 IMAGE r5 true
    run --rm --null-io IMAGE r6 echo unseen
    run --rm --net-host --privileged --no-pivot IMAGE r7 true
    run --rm --seccomp --cap-drop CAP_CHOWN --cap-add CAP_SYS_TIME IMAGE r8 true
    run --rm --platform linux/arm64 IMAGE r9 true
    run --rm IMAGE bad/id true
    run --rm IMAGE r10 grep Cap /proc/self/status
    run --rm --allow-new-privs IMAGE r11 grep NoNewPrivs /proc/self/status
    run --rm --user 7:8 IMAGE r12 id
    run --rm --user nope IMAGE r13 id
    run --rm --uidmap 0:100000:65536 --gidmap 0:100000:65536 IMAGE r14 cat /proc/self/uid_map
    run --rm --device /dev/null IMAGE r15 ls /dev/null
    run --rm --device /nope IMAGE r16 true
    run --rm --rootfs-propagation rslave IMAGE r17 true
    run --rm --runc-binary /nope IMAGE r19 true
    run --rm --cwd /nope IMAGE r20 pwd
    run --rm --annotation a=b IMAGE r21 true
    run --rm nope r22 true
    run -d --label k=v IMAGE d1 sleep 1000
    run -d IMAGE d1 sleep 1000
    task ls -q
    task pause d1
    task resume d1
    task exec --exec-id e1 d1 echo inside
    task exec --exec-id e1 d1 false
    task exec --exec-id e2 nope true
    task exec -d --exec-id e3 d1 sleep 1000
    task exec -d --exec-id e3 d1 sleep 1000
    task kill --exec-id e3 -s KILL d1
    task exec --exec-id e4 --user 5:6 --cwd /tmp d1 sh -c pwd
    task kill --exec-id nope d1
    task kill -s NOPE d1
    task start d1
    task start nope
    task kill nope
    task metrics nope
    container ls
    container ls -q labels.k==v
    container ls -q labels.k==w
    container ls -q labels.k=~
    container info nope
    container label d1 a=b
    container label d1 a=
    container rm d1
    container create IMAGE c1 sleep 1000
    container create IMAGE c1 sleep 1000
    container ls -q
    container rm c1
    container rm c1
    leases create --id L1 a=b
    leases create --id L1
    leases ls -q
    leases ls -q labels.a==b,id==L1
    leases ls -q labels.a==(
    leases rm L1
    leases rm L1
    namespaces create n1 a=b
    namespaces create n1
    namespaces label n1 c=d
    namespaces label n1 a=
    namespaces ls
    namespaces rm n1
    namespaces rm n1
    namespaces rm default
    namespaces create ../x
    -n other image ls
    sandboxes ls
    sandboxes rm nope
    deprecations list
";

#[test]
fn every_command_comes_to_the_same_on_containerd_and_on_tared() {
    let [expected, ours] = [Kind::Containerd("newer"), Kind::Tared].map(all);
    for (expected, ours) in expected.iter().zip(&ours) {
        assert_eq!(ours, expected);
    }
}

fn all(kind: Kind) -> Vec<Came> {
    let dir = tempfile::Builder::new().prefix("tare-differential.").tempdir().unwrap();
    let registry = Registry::start(dir.path()).unwrap();
    registry.push("busybox", "latest", &image::busybox().unwrap()).unwrap();
    let daemon = Daemon::start(kind, dir.path()).unwrap();
    let image = registry.reference("busybox:latest");
    let ctr = |words: &str| {
        let mut ctr = daemon.ctr("newer").unwrap();
        ctr.args(words.split(' ').map(|word| if word == "IMAGE" { &image } else { word })).stdin(Stdio::null());
        ctr
    };
    let pulled = ctr("image pull --plain-http IMAGE").output().unwrap();
    assert!(pulled.status.success(), "{kind:?}: {}", String::from_utf8_lossy(&pulled.stderr));
    let commands = COMMANDS.lines().map(str::trim).filter(|line| !line.is_empty());
    let came = commands.map(|command| came(command, ctr(command), &image)).collect();
    assert!(ctr("task delete --force d1").status().unwrap().code().is_some());
    came
}

fn came(command: &str, mut ctr: Command, image: &str) -> Came {
    const CLASSES: &[&str] =
        &["not found", "already exists", "invalid argument", "failed precondition", "not implemented"];
    let out = ctr.output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    let class = CLASSES.iter().find(|class| said.trim_end().trim_end_matches('"').ends_with(**class));
    let shown = String::from_utf8_lossy(&out.stdout).replace(image, "IMAGE");
    let out_lines: Vec<_> = shown.lines().map(in_order).collect();
    Came {
        command: command.to_owned(),
        code: out.status.code(),
        out: out_lines.join("\n"),
        class: class.unwrap_or(&""),
    }
}

/// Columns are as wide as the registry's port is long, and labels come in any order.
fn in_order(line: &str) -> String {
    let word = |word: &str| {
        let mut parts: Vec<_> = word.split(',').collect();
        parts.sort_unstable();
        parts.join(",")
    };
    line.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}
