//! SIGKILL at any system call of `tare`: whatever it leaves, `delete --force` removes, and the id is free again.

#![allow(unsafe_code)] // ptrace(2) has no safe face
#![allow(clippy::zombie_processes)] // one that has ended is waited for by waitpid(2), as its tracer does

use std::os::unix::process::CommandExt as _;
use std::process::{Child, Stdio};
use std::ptr::null_mut;

use crate::bundle::Bundle;

/// Lets the traced process make `calls` more stops at system calls. Whether it got that far.
fn advance(child: &Child, calls: usize) -> bool {
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    for _ in 0..calls {
        // SAFETY: PTRACE_SYSCALL reads no memory of ours; no signal is delivered.
        let asked = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, null_mut::<()>(), null_mut::<()>()) };
        assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
        if !stopped(pid) {
            return false;
        }
    }
    true
}

fn stopped(pid: libc::pid_t) -> bool {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(pid, &raw mut status, 0) };
    assert_eq!(waited, pid, "{}", std::io::Error::last_os_error());
    libc::WIFSTOPPED(status)
}

/// Kills `words` at its `calls`-th stop. Whether it was still running.
fn killed_at(bundle: &Bundle, words: &[&str], calls: usize) -> bool {
    let mut command = bundle.command(words);
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec `be_traced` makes a system call and allocates nothing.
    unsafe { command.pre_exec(be_traced) };
    let mut child = command.spawn().unwrap();
    assert!(stopped(libc::pid_t::try_from(child.id()).unwrap()), "it has not begun");
    let running = advance(&child, calls);
    if running {
        child.kill().unwrap();
        child.wait().unwrap();
    } // else `stopped` has waited for it
    running
}

fn be_traced() -> std::io::Result<()> {
    // SAFETY: PTRACE_TRACEME takes no arguments.
    match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, null_mut::<()>(), null_mut::<()>()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A process stops before and after each call. What it leaves behind is the same after one call as before the next, so that
/// every other stop is all of them.
const EVERY_CALL: usize = 2;

/// Kills `words` at call after call, from `first` on, `stride` stops apart, with `before` and `after` around each. How often.
fn kill_at_each(
    bundle: &Bundle,
    words: &[&str],
    (first, stride): (usize, usize),
    before: impl Fn(),
    after: impl Fn(),
) -> usize {
    for (killed, calls) in (first..).step_by(stride).enumerate() {
        before();
        let running = killed_at(bundle, words, calls);
        after();
        if !running {
            return killed;
        }
    }
    unreachable!("there are always more numbers")
}

fn delete(bundle: &Bundle) {
    bundle.done(&["delete", "--force", &bundle.id]);
    bundle.assert_gone();
}

/// In two halves, which run side by side.
fn create_killed_from(first: usize) {
    let bundle = Bundle::new();
    let words = ["create", &bundle.id];
    let killed = kill_at_each(&bundle, &words, (first, 2 * EVERY_CALL), || (), || delete(&bundle));
    assert!(killed > 50, "create ended after {killed} rounds: nothing was tried");
    bundle.done(&words);
}

#[test]
fn create_may_be_killed_at_every_call_with_an_even_number() {
    create_killed_from(1);
}

#[test]
fn create_may_be_killed_at_every_call_with_an_odd_number() {
    create_killed_from(1 + EVERY_CALL);
}

#[test]
fn delete_may_be_killed_at_every_call() {
    let bundle = Bundle::new();
    let create = || bundle.done(&["create", &bundle.id]);
    let words = ["delete", "--force", &bundle.id];
    let killed = kill_at_each(&bundle, &words, (1, EVERY_CALL), create, || delete(&bundle));
    assert!(killed > 20, "delete ended after {killed} rounds: nothing was tried");
}

/// A prime stride, so that over the runs of a suite that changes all calls have their turn.
const SAMPLE: usize = 23;

#[test]
fn start_run_and_exec_may_be_killed_at_any_call() {
    let bundle = Bundle::new().set("/process/args", serde_json::json!(["sleep", "1000"]));
    let create = || bundle.done(&["create", &bundle.id]);
    let run = || bundle.done(&["run", "--detach", &bundle.id]);
    let nothing = || ();
    let killed = kill_at_each(&bundle, &["start", &bundle.id], (1, SAMPLE), create, || delete(&bundle));
    assert!(killed > 1, "start ended after {killed} rounds: nothing was tried");
    let killed = kill_at_each(&bundle, &["run", "--detach", &bundle.id], (1, SAMPLE), nothing, || delete(&bundle));
    assert!(killed > 5, "run ended after {killed} rounds: nothing was tried");
    let killed = kill_at_each(&bundle, &["exec", &bundle.id, "true"], (1, SAMPLE), run, || delete(&bundle));
    assert!(killed > 3, "exec ended after {killed} rounds: nothing was tried");
}

#[test]
fn a_state_that_was_cut_short_is_told_and_can_be_deleted() {
    let bundle = Bundle::new();
    bundle.done(&["create", &bundle.id]);
    let pid = bundle.pid();
    let folder = bundle.state_root().join(&bundle.id);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            std::fs::write(&path, "{\"cut").unwrap();
        }
    }
    assert!(bundle.fails(&["state", &bundle.id]).contains("delete --force"));
    assert_eq!(bundle.tare(&["list", "-q"]).code, Some(0));
    bundle.done(&["delete", "--force", &bundle.id]);
    Bundle::wait_for_end_of(pid);
    bundle.assert_gone();
}
