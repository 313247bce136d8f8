//! What passes between a container and its caller beside standard streams: sockets, descriptors, handles, readiness.

use std::fs::File;
use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, json};

use crate::bundle::Bundle;

/// One message, and the descriptors that came with it.
fn receive(socket: impl AsFd) -> (Vec<u8>, Vec<OwnedFd>) {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = vec![0; 8192];
    let got = recvmsg(socket, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    data.truncate(got.bytes);
    let fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    (data, fds.collect())
}

/// A command that goes on while the test does its part.
fn begun(bundle: &Bundle, words: &[&str], variables: &[(&str, &str)]) -> Child {
    let output = File::options().create(true).append(true).open(bundle.path("output")).unwrap();
    let mut command = bundle.command(words);
    command.envs(variables.iter().copied()).stdout(output.try_clone().unwrap()).stderr(output);
    command.spawn().unwrap()
}

fn profile(socket: &str) -> Value {
    json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "architectures": ["SCMP_ARCH_X86_64"],
        "listenerPath": socket,
        "listenerMetadata": "some data",
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    })
}

/// Takes one notification and lets the call fail with `errno`. Source: seccomp_unotify(2).
#[allow(unsafe_code)] // its requests have no safe face
fn answer_one(listener: &OwnedFd, errno: i32) {
    const NOTIF_RECV: libc::c_ulong = 0xc050_2100;
    const NOTIF_SEND: libc::c_ulong = 0xc018_2101;
    let mut notification = [0u64; 10];
    // SAFETY: a struct seccomp_notif is 80 bytes long, zeroed as the kernel wants it.
    let got = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_RECV, notification.as_mut_ptr()) };
    assert_eq!(got, 0, "{}", std::io::Error::last_os_error());
    let mut response = [0u64; 3]; // id, value, then error and flags
    response[0] = notification[0];
    response[2] = u64::from((-errno).cast_unsigned());
    // SAFETY: a struct seccomp_notif_resp is 24 bytes long.
    let sent = unsafe { libc::ioctl(listener.as_raw_fd(), NOTIF_SEND, response.as_ptr()) };
    assert_eq!(sent, 0, "{}", std::io::Error::last_os_error());
}

/// Source: runtime-spec config-linux.md, "The Container Process State".
#[test]
fn a_seccomp_listener_gets_its_descriptor_with_the_state_and_decides() {
    for no_new_privileges in [true, false] {
        let bundle = Bundle::new().set("/process/noNewPrivileges", json!(no_new_privileges));
        let listener = UnixListener::bind(bundle.path("agent")).unwrap();
        let socket = bundle.path("agent").to_str().unwrap().to_owned();
        let bundle =
            bundle.set("/linux/seccomp", profile(&socket)).script("busybox mkdir /tmp/x 2>&1; exec sleep 1000");
        let mut command = begun(&bundle, &["run", "--detach", &bundle.id], &[]);
        let (data, fds) = receive(listener.accept().unwrap().0);
        let told: Value = serde_json::from_slice(&data).unwrap();
        answer_one(&fds[0], libc::ENOMEDIUM);
        assert!(command.wait().unwrap().success(), "{}", bundle.output());
        assert_eq!((told["fds"].clone(), fds.len()), (json!(["seccompFd"]), 1));
        assert_eq!(told["metadata"], "some data");
        assert_eq!(told["pid"], bundle.pid());
        assert_eq!((&told["state"]["id"], &told["state"]["status"]), (&json!(bundle.id), &json!("creating")));
        // One more process has a filter, and a listener, of its own.
        let mut more = begun(&bundle, &["exec", "--pid-file", "pid", &bundle.id, "busybox", "mkdir", "/tmp/y"], &[]);
        let (data, fds) = receive(listener.accept().unwrap().0);
        let told: Value = serde_json::from_slice(&data).unwrap();
        answer_one(&fds[0], libc::ENODATA);
        assert_eq!(more.wait().unwrap().code(), Some(1));
        let pid = std::fs::read_to_string(bundle.path("pid")).unwrap();
        assert_eq!((told["pid"].to_string(), &told["state"]["status"]), (pid, &json!("running")));
        let said = bundle.output();
        assert!(said.contains("'/tmp/x': No medium found") && said.contains("'/tmp/y': No data available"), "{said}");
    }
}

#[test]
fn without_a_listener_nothing_starts() {
    let bundle = Bundle::new().set("/linux/seccomp", profile("/no/such/agent"));
    let said = bundle.fails(&["run", &bundle.id]);
    assert!(said.contains("failed to connect with seccomp agent"), "{said}");
    bundle.assert_gone();
}

#[test]
fn a_handle_to_the_process_is_sent_to_a_socket() {
    let bundle = Bundle::new().script("exec sleep 1000");
    let listener = UnixListener::bind(bundle.path("socket")).unwrap();
    bundle.done(&["run", "--detach", "--pidfd-socket", "socket", &bundle.id]);
    let (data, fds) = receive(listener.accept().unwrap().0);
    assert_eq!((&*data, fds.len()), (&b"standard"[..], 1));
    bundle.done(&["exec", "--detach", "--pidfd-socket", "socket", &bundle.id, "sleep", "1000"]);
    let (data, more) = receive(listener.accept().unwrap().0);
    assert_eq!((&*data, more.len()), (&b"setns"[..], 1));
    rustix::process::pidfd_send_signal(&fds[0], rustix::process::Signal::KILL).unwrap();
    Bundle::wait_for_end_of(bundle.state()["pid"].as_i64().unwrap().try_into().unwrap());
    assert_eq!(bundle.status(), "stopped");
}

/// A shell that opens descriptors and becomes `tare`, as a service manager does.
fn with_descriptors(bundle: &Bundle, opens: &str, words: &[&str]) -> std::process::Output {
    let tare = bundle.command(words);
    let script = format!("{opens} exec \"$@\"");
    let mut command = std::process::Command::new("sh");
    command.args(["-c", &script, "sh"]).arg(tare.get_program()).args(tare.get_args());
    command.current_dir(bundle.path("")).stdin(Stdio::null()).output().unwrap()
}

#[test]
fn descriptors_are_preserved_by_number_and_no_others() {
    let bundle = Bundle::new().script("cat <&3; cat <&4; ls /proc/self/fd | busybox tr '\\n' ' '");
    std::fs::write(bundle.path("three"), "3").unwrap();
    std::fs::write(bundle.path("four"), "4").unwrap();
    let opens = "exec 3<three 4<four 5<four;";
    let ended = with_descriptors(&bundle, opens, &["run", "--preserve-fds", "2", &bundle.id]);
    // The last of them is the folder that ls reads.
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "340 1 2 3 4 5 ", "{ended:?}");
    let ended = with_descriptors(&bundle, opens, &["run", "--preserve-fds", "9", &bundle.id]);
    assert!(
        String::from_utf8_lossy(&ended.stderr).contains("preserving file descriptor 6: bad file descriptor"),
        "{ended:?}"
    );
    bundle.assert_gone();
}

#[test]
fn sockets_of_a_service_manager_are_passed_on_if_they_are_meant_for_us() {
    let bundle = Bundle::new().script("echo $LISTEN_FDS $LISTEN_PID; cat <&3");
    std::fs::write(bundle.path("three"), "3").unwrap();
    let ours = "exec 3<three; export LISTEN_FDS=1 LISTEN_PID=$$;";
    let ended = with_descriptors(&bundle, ours, &["run", &bundle.id]);
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "1 1\n3", "{ended:?}");
    let others = "exec 3<three; export LISTEN_FDS=1 LISTEN_PID=1;";
    let ended = with_descriptors(&bundle, others, &["run", &bundle.id]);
    assert_eq!(String::from_utf8_lossy(&ended.stdout), "\n", "{ended:?}");
}

/// What a service manager hears: that the container is ready, which process it is, and a barrier that it lets go of.
fn hear_ready(manager: &UnixDatagram) -> Vec<String> {
    let mut heard = Vec::new();
    for _ in 0..3 {
        let (data, barrier) = receive(manager);
        heard.push(String::from_utf8(data).unwrap());
        drop(barrier);
    }
    heard
}

#[test]
fn a_container_that_is_ready_is_told_to_the_service_manager_and_nothing_else_is() {
    for words in [&["run", "--detach"][..], &["run"], &["create"]] {
        let script = "test -S $NOTIFY_SOCKET && echo $NOTIFY_SOCKET > /out/there; read go < /out/go";
        let bundle = Bundle::new().script(script).mount(json!({"type": "bind", "source": "out", "destination": "/out",
            "options": ["bind"]}));
        std::fs::create_dir(bundle.path("out")).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(bundle.path("out/go")).status().unwrap().success());
        let path = bundle.path("manager");
        let manager = UnixDatagram::bind(&path).unwrap();
        let variables = [("NOTIFY_SOCKET", path.to_str().unwrap())];
        let all: Vec<&str> = words.iter().copied().chain([&*bundle.id]).collect();
        let mut command = begun(&bundle, &all, &variables);
        if words == ["create"] {
            assert!(command.wait().unwrap().success(), "{}", bundle.output());
            command = begun(&bundle, &["start", &bundle.id], &variables);
        }
        // The container's own end, which the host sees too, waits for the program.
        let inside = bundle.state_root().join(&bundle.id).join("notify/notify.sock");
        let mut go = File::options().write(true).open(bundle.path("out/go")).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket.send_to(b"STATUS=lies\nMAINPID=1", &inside).unwrap();
        socket.send_to(b"STATUS=more\nREADY=1\nFDSTORE=1", &inside).unwrap();
        let pid = bundle.pid();
        assert_eq!(hear_ready(&manager), ["READY=1".to_owned(), format!("MAINPID={pid}"), "BARRIER=1".to_owned()]);
        go.write_all(b"go\n").unwrap();
        assert!(command.wait().unwrap().success(), "{words:?}: {}", bundle.output());
        let mut there = String::new();
        File::open(bundle.path("out/there")).unwrap().read_to_string(&mut there).unwrap();
        assert_eq!(there, "/run/notify/notify.sock\n", "{words:?}");
        Bundle::wait_for_end_of(pid);
    }
}
