//! From "inside the container, as root" to the program. The order is the security argument.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, OFlags, accessat, openat, statat};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets, set_capabilities, set_keep_capabilities, set_no_new_privs};

use super::report::{Step, Stuck, at, nth, say_and_wait, say_number_and_wait, wait, write};
use crate::plan::{Capabilities, Gate, Label, Process};
use crate::{seccomp, sys};

pub fn become_program(process: &Process, gate: &Gate, socket: BorrowedFd<'_>) -> Result<Infallible, Stuck> {
    if let Some((input, output)) = &process.stdio {
        at(Step::Descriptors, sys::dup_to(input.as_fd(), 0))?;
        at(Step::Descriptors, sys::dup_to(output.as_fd(), 1))?;
        at(Step::Descriptors, sys::dup_to(output.as_fd(), 2))?;
    }
    for (index, label) in (0u16..).zip(&process.labels) {
        nth(Step::Label, index, write_label(label))?; // counts from execve on
    }
    // As root first, since the user may not be able to reach it; else again as the user, below.
    let reached = change_folder(&process.cwd)?;
    if reached {
        inside_root()?; // before a filter may refuse the question
    }
    if let Some(name) = &process.keyring {
        match sys::join_session_keyring(name) {
            Ok(()) | Err(Errno::NOSYS) => {} // a kernel without keyrings has none to leave
            Err(errno) => return at(Step::Keyring, Err(errno)),
        }
    }
    if let Some(domain) = process.personality {
        at(Step::Personality, sys::personality(domain))?;
    }
    if matches!(gate, Gate::Fifo { .. }) {
        sys::end_by_signals(); // the first process of a PID namespace would not hear them while it waits
    }
    // From here on nothing of the runtime's is of use, it may have to wait for long, and a filter may refuse to close it.
    at(Step::Descriptors, sys::close_all_but(process.first_closed, own_descriptors(gate, socket)))?;
    if !process.no_new_privileges {
        load_filter(process, socket)?; // it needs CAP_SYS_ADMIN, which the next step gives up: seccomp(2)
    }
    assume_identity(process)?;
    if !reached {
        // By now no descriptor is open any more through which it could lead out.
        at(Step::Cwd, rustix::process::chdir(process.cwd.as_c_str()))?;
    }
    let program = find_program(process)?; // before the gate: `create` tells that a program is missing, not `start`
    if process.no_new_privileges {
        at(Step::NoNewPrivileges, set_no_new_privs(true))?;
        load_filter(process, socket)?; // as late as possible: fewer calls that the profile has to allow
    }
    let told = pass_gate(gate, socket)?;
    let Err(errno) = sys::execve(program, &process.argv, &process.environment);
    complain(program, errno);
    if let Some(told) = told {
        // Behind the gate it is `start` that listens, not `create`. If it has gone too, nobody is left to tell.
        let _ = write(told, Step::Exec, 0, errno.raw_os_error());
        sys::exit(1);
    }
    at(Step::Exec, Err(errno))
}

/// Says it where the program itself would have: whoever reads a container's output looks there, and by then the command
/// that made it may be gone.
fn complain(program: &CStr, errno: Errno) {
    let words: &[u8] = match errno {
        Errno::NOENT => b"no such file or directory", // the interpreter of a script, or of an ELF program
        Errno::ACCESS => b"permission denied",
        Errno::NOEXEC => b"exec format error",
        Errno::TOOBIG => b"argument list too long",
        Errno::TXTBSY => b"text file busy",
        Errno::NOMEM => b"cannot allocate memory",
        Errno::PERM => b"operation not permitted",
        _ => b"it cannot be executed",
    };
    let parts = [b"exec ", program.to_bytes(), b": ", words, b"\n"].map(std::io::IoSlice::new);
    let _ = rustix::io::writev(rustix::stdio::stderr(), &parts); // nobody may be listening
}

/// Whether the folder could be reached; a refusal for lack of permission may end when the user is another one.
fn change_folder(cwd: &CStr) -> Result<bool, Stuck> {
    match rustix::process::chdir(cwd) {
        Ok(()) => Ok(true),
        Err(Errno::PERM | Errno::ACCESS) => Ok(false),
        Err(errno) => at(Step::Cwd, Err(errno)),
    }
}

/// A working folder that was reached through a leaked descriptor lies outside the root (CVE-2024-21626).
fn inside_root() -> Result<(), Stuck> {
    let mut path = [0; libc::PATH_MAX as usize];
    match sys::working_folder(&mut path) {
        Ok(_) if path[0] == b'/' => Ok(()),
        Ok(_) | Err(Errno::NOENT) => at(Step::CwdOutside, Err(Errno::NOENT)),
        Err(errno) => at(Step::CwdOutside, Err(errno)),
    }
}

fn load_filter(process: &Process, socket: BorrowedFd<'_>) -> Result<(), Stuck> {
    let Some(filter) = &process.filter else { return Ok(()) };
    if let Some(listener) = at(Step::Seccomp, seccomp::load(filter))? {
        // The parent takes it: under the filter this process may not be able to send it any more.
        let number = u16::try_from(listener.as_raw_fd()).unwrap_or(u16::MAX);
        at(Step::SeccompListener, say_number_and_wait(socket, Step::SeccompListener, number))?;
    }
    Ok(())
}

/// Gives up what is not kept: capabilities(7), "Effect of user ID changes on capabilities".
fn assume_identity(process: &Process) -> Result<(), Stuck> {
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(process.umask));
    if let Some(capabilities) = &process.capabilities {
        for number in 0..u64::BITS {
            if capabilities.bounding >> number & 1 == 0 {
                match sys::drop_from_bounding(number) {
                    Ok(()) => {}
                    Err(Errno::INVAL) => break, // beyond the last that this kernel has
                    Err(errno) => return nth(Step::Bounding, number as u16, Err(errno)),
                }
            }
        }
        at(Step::Capabilities, set_keep_capabilities(true))?;
    }
    if let Some(groups) = &process.groups {
        match rustix::thread::set_thread_groups(groups) {
            // In a user namespace of one id it is denied (user_namespaces(7)), and there are none to take.
            Err(Errno::PERM) if groups.is_empty() => {}
            set => at(Step::Groups, set)?,
        }
    }
    let (uid, gid) = (Uid::from_raw(process.uid), Gid::from_raw(process.gid));
    at(Step::User, rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    at(Step::User, rustix::thread::set_thread_res_uid(uid, uid, uid))?;
    if let Some(capabilities) = &process.capabilities {
        at(Step::Capabilities, set_keep_capabilities(false))?;
        at(Step::Capabilities, set_capabilities(None, sets(capabilities)))?;
        for number in 0..u64::BITS {
            if capabilities.ambient >> number & 1 == 1 {
                nth(Step::Ambient, number as u16, sys::raise_ambient(number))?;
            }
        }
    }
    Ok(())
}

fn sets(capabilities: &Capabilities) -> CapabilitySets {
    CapabilitySets {
        effective: CapabilitySet::from_bits_retain(capabilities.effective),
        permitted: CapabilitySet::from_bits_retain(capabilities.permitted),
        inheritable: CapabilitySet::from_bits_retain(capabilities.inheritable),
    }
}

/// The first candidate that this user may execute. A file that is there and may not be executed is told rather than one
/// that is not there.
fn find_program(process: &Process) -> Result<&CStr, Stuck> {
    let mut answer = Errno::NOENT;
    for path in &process.candidates {
        match executable(path) {
            Ok(()) => return Ok(path),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(errno) => answer = errno,
        }
    }
    at(Step::Program, Err(answer))
}

fn executable(path: &CStr) -> Result<(), Errno> {
    let there = statat(CWD, path, AtFlags::empty())?;
    if FileType::from_raw_mode(there.st_mode) == FileType::Directory {
        return Err(Errno::ISDIR);
    }
    match accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS) {
        // A profile of a few years ago does not know the call that asks with the capabilities there are: access(2),
        // "C library/kernel differences". The older one asks without those of a user who is not root.
        Err(Errno::PERM | Errno::NOSYS) => accessat(CWD, path, Access::EXEC_OK, AtFlags::empty()),
        answer => answer,
    }
}

/// Tells the parent that everything is ready and waits to be let through. Gives the descriptor on which failures from here
/// on are told, if that is no longer the parent.
fn pass_gate<'a>(gate: &'a Gate, socket: BorrowedFd<'_>) -> Result<Option<BorrowedFd<'a>>, Stuck> {
    match gate {
        Gate::Parent => {
            at(Step::Gate, say_and_wait(socket, Step::Gate))?;
            Ok(None)
        }
        Gate::Fifo { gate, result } => {
            at(Step::Gate, write(socket, Step::Gate, 0, 0))?;
            at(Step::Gate, wait(gate.as_fd()))?;
            Ok(Some(result.as_fd()))
        }
    }
}

/// What is still needed until execve, which closes it.
fn own_descriptors(gate: &Gate, socket: BorrowedFd<'_>) -> [i32; 3] {
    match gate {
        Gate::Parent => [socket.as_raw_fd(), -1, -1],
        Gate::Fifo { gate, result } => [socket.as_raw_fd(), gate.as_raw_fd(), result.as_raw_fd()],
    }
}

fn write_label(label: &Label) -> Result<(), Errno> {
    let file = openat(&label.proc, label.file.as_c_str(), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, label.text.to_bytes()).map(|_| ())
}
