//! Terminals: handed to a caller, or of the command's own.

use std::io::{IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::net::UnixListener;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
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
    let (socket, _) = listener.accept().unwrap();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut data = [0; 100];
    recvmsg(&socket, &mut [IoSliceMut::new(&mut data)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds = control.drain().flat_map(|message| match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect::<Vec<_>>(),
        _ => Vec::new(),
    });
    let mut master = std::fs::File::from(fds.next().unwrap());
    assert!(fds.next().is_none(), "more than the master was sent");
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
