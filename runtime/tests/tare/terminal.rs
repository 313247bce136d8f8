//! Terminals: handed to a caller, or of the command's own.

use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};
use serde_json::json;

use crate::bundle::Bundle;

#[test]
fn a_console_socket_gets_the_master_and_the_program_has_the_terminal() {
    let bundle = Bundle::new()
        .set("/process/terminal", json!(true))
        .set("/process/consoleSize", json!({"height": 33, "width": 77}))
        .script("stty size; read line; echo \"heard $line\"; ls -l /dev/console; exec sleep 1000");
    let listener = UnixListener::bind(bundle.path("socket")).unwrap();
    bundle.done(&["create", "--console-socket", "socket", &bundle.id]);
    let mut master = sent_to(&listener);
    bundle.done(&["start", &bundle.id]);
    master.write_all(b"you\n").unwrap();
    let mut heard = String::new();
    while !heard.contains("/dev/console\r\n") {
        let mut buffer = [0; 1000];
        let length = master.read(&mut buffer).unwrap();
        heard += &String::from_utf8_lossy(&buffer[..length]);
    }
    assert!(heard.contains("33 77\r\n") && heard.contains("heard you\r\n"), "{heard}");
}

/// The master of a terminal that a command has sent here, and nothing else.
pub fn sent_to(listener: &UnixListener) -> std::fs::File {
    let (socket, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 100];
    recvmsg(&socket, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let master = std::fs::File::from(fds.next().unwrap());
    assert!(fds.next().is_none(), "more than the master was sent");
    master
}

#[test]
fn a_foreground_terminal_is_copied() {
    let bundle =
        Bundle::new().set("/process/terminal", json!(true)).script("test -t 0 && test -t 1 && echo a terminal; exit 5");
    let ended = bundle.run();
    assert_eq!((ended.code, &*ended.out), (Some(5), "a terminal\n"), "{ended:?}");
}

#[test]
fn a_terminal_that_nobody_could_hold_is_refused() {
    let bundle = Bundle::new().set("/process/terminal", json!(true));
    assert!(bundle.fails(&["create", &bundle.id]).contains("console socket"));
    let bundle = Bundle::new();
    let _listener = UnixListener::bind(bundle.path("socket")).unwrap();
    let said = bundle.fails(&["create", "--console-socket", "socket", &bundle.id]);
    assert!(said.contains("console socket"), "{said}");
    bundle.assert_gone();
}

/// A terminal of the test's own, with `tare run` on it: what a person sits at.
struct Seat {
    master: std::fs::File,
    user: std::os::fd::OwnedFd,
}

impl Seat {
    fn new(rows: u16, columns: u16) -> Seat {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let master = openpt(flags).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let user = ioctl_tiocgptpeer(&master, flags).unwrap();
        let seat = Seat { master: master.into(), user };
        seat.resize(rows, columns);
        seat
    }

    fn resize(&self, rows: u16, columns: u16) {
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        tcsetwinsize(&self.master, size).unwrap();
    }

    fn is_raw(&self) -> bool {
        let modes = tcgetattr(&self.user).unwrap().local_modes;
        !modes.contains(LocalModes::ICANON) && !modes.contains(LocalModes::ECHO)
    }

    /// Reads until `text` has come.
    fn hear(&mut self, text: &str) -> String {
        let mut heard = String::new();
        while !heard.contains(text) {
            let mut buffer = [0; 1000];
            let length = self.master.read(&mut buffer).unwrap();
            heard += &String::from_utf8_lossy(&buffer[..length]);
        }
        heard
    }
}

#[test]
fn a_persons_terminal_is_raw_meanwhile_and_its_changes_of_size_arrive() {
    let mut seat = Seat::new(11, 22);
    let bundle = Bundle::new().set("/process/terminal", json!(true)).script(
        "trap 'echo interrupted; exit 9' INT; stty size; read line; stty size; echo \"heard $line\"; read line",
    );
    let mut command = bundle.command(&["run", &bundle.id]);
    let copy = || seat.user.try_clone().unwrap();
    let mut child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
    assert!(!seat.hear("11 22\r\n").is_empty());
    assert!(seat.is_raw());
    seat.resize(33, 44);
    // It is not the terminal's foreground group, which the kernel would tell.
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    while !size_of_container(&bundle).contains("33 44") {}
    seat.master.write_all(b"you\n").unwrap();
    let heard = seat.hear("heard you\r\n");
    assert!(heard.contains("33 44\r\n"), "{heard}");
    seat.master.write_all(b"\x03").unwrap(); // the container's own line discipline makes it a signal
    seat.hear("interrupted");
    assert_eq!(child.wait().unwrap().code(), Some(9));
    assert!(!seat.is_raw(), "it is given back as it was");
}

fn size_of_container(bundle: &Bundle) -> String {
    bundle.tare(&["exec", &bundle.id, "sh", "-c", "stty size < /dev/console"]).out
}
