//! Records what a process and its threads do to the files below a folder, call by call, as ptrace(2) sees it.
//!
//! Of calls that change names or what is said of a file only the paths are decoded: what is there afterwards is looked at.
//! A call that could write to these files and that this does not understand ends the recording with a panic.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::null_mut;

use crate::disk::{Found, Step};

/// Runs it to its end.
pub fn record(mut command: Command, place: &Path) -> Vec<Step> {
    // SAFETY: between fork and exec `be_traced` makes a system call and allocates nothing.
    unsafe { command.pre_exec(be_traced) };
    let child = command.spawn().unwrap();
    let first = libc::pid_t::try_from(child.id()).unwrap();
    assert!(libc::WIFSTOPPED(wait(first).1), "it has not begun");
    let options = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;
    // SAFETY: PTRACE_SETOPTIONS takes its flags in the place of a pointer and reads no memory of ours.
    let asked = unsafe { libc::ptrace(libc::PTRACE_SETOPTIONS, first, null_mut::<()>(), options as usize) };
    assert_eq!(asked, 0, "{}", std::io::Error::last_os_error());
    let mut recorder = Recorder { place: place.to_owned(), steps: Vec::new(), entered: HashMap::new() };
    go_on(first, 0);
    loop {
        let (thread, status) = wait(-1);
        if !libc::WIFSTOPPED(status) {
            if thread == first {
                assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0, "it ended with status {status:#x}");
                return recorder.steps;
            }
            continue; // a thread's end
        }
        let signal = match libc::WSTOPSIG(status) {
            at_call if at_call == libc::SIGTRAP | 0x80 => {
                recorder.call(thread);
                0
            }
            // A thread's first stop, and the stop of the one that made it.
            libc::SIGSTOP | libc::SIGTRAP => 0,
            other => other,
        };
        go_on(thread, signal);
    }
}

fn be_traced() -> std::io::Result<()> {
    // SAFETY: PTRACE_TRACEME takes no arguments.
    match unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, null_mut::<()>(), null_mut::<()>()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Waits for what this thread traces, and for nobody else's children.
fn wait(which: libc::pid_t) -> (libc::pid_t, libc::c_int) {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    let waited = unsafe { libc::waitpid(which, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
    assert!(waited > 0, "{}", std::io::Error::last_os_error());
    (waited, status)
}

fn go_on(thread: libc::pid_t, signal: libc::c_int) {
    let signal = usize::try_from(signal).unwrap();
    // SAFETY: PTRACE_SYSCALL takes the signal in the place of a pointer and reads no memory of ours.
    let asked = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, thread, null_mut::<()>(), signal) };
    let error = std::io::Error::last_os_error();
    // A thread may be gone by now: the process has called exit.
    assert!(asked == 0 || error.raw_os_error() == Some(libc::ESRCH), "{error}");
}

/// A call that has begun.
struct Entered {
    number: libc::c_long,
    args: [u64; 6],
    /// Steps that were recorded by then: what a sync reaches.
    steps: usize,
}

/// Either side of a call.
enum Side {
    Entry(Entered),
    /// Its value, unless it failed.
    Exit(Option<u64>),
}

struct Recorder {
    place: PathBuf,
    steps: Vec<Step>,
    entered: HashMap<libc::pid_t, Entered>,
}

impl Recorder {
    fn call(&mut self, thread: libc::pid_t) {
        match side(thread, self.steps.len()) {
            Some(Side::Entry(entered)) => _ = self.entered.insert(thread, entered),
            Some(Side::Exit(value)) => {
                if let (Some(entered), Some(value)) = (self.entered.remove(&thread), value) {
                    self.done(&Thread(thread), &entered, value);
                }
            }
            None => {}
        }
    }

    /// A call that succeeded.
    fn done(&mut self, thread: &Thread, call: &Entered, value: u64) {
        let args = &call.args;
        match call.number {
            libc::SYS_write | libc::SYS_pwrite64 => {
                let bytes = thread.bytes(args[1], usize::try_from(value).unwrap());
                if args[0] == 1 {
                    return self.told(&bytes);
                }
                let Some(inode) = self.inode(thread, args[0]) else { return };
                let offset = if call.number == libc::SYS_pwrite64 { args[3] } else { thread.position(args[0]) - value };
                self.steps.push(Step::Write { inode, offset, bytes });
            }
            libc::SYS_ftruncate => {
                if let Some(inode) = self.inode(thread, args[0]) {
                    self.steps.push(Step::Length { inode, length: args[1] });
                }
            }
            libc::SYS_fsync | libc::SYS_fdatasync => {
                if let Some(path) = self.opened(thread, args[0]) {
                    let inode = self.inode(thread, args[0]).expect("it is below the place");
                    let folder = fs::metadata(&path).is_ok_and(|there| there.is_dir()).then_some(path);
                    self.steps.push(Step::Sync { inode, folder, before: call.steps });
                }
            }
            libc::SYS_syncfs => self.steps.push(Step::SyncAll { before: call.steps }),
            libc::SYS_openat | libc::SYS_openat2 => {
                let flags = if call.number == libc::SYS_openat {
                    args[2]
                } else {
                    u64::from_ne_bytes(thread.bytes(args[2], 8).try_into().unwrap()) // open_how's first field
                };
                let flags = libc::c_int::try_from(flags).unwrap();
                let Some(path) = self.opened(thread, value) else { return };
                assert_ne!(flags & libc::O_TMPFILE, libc::O_TMPFILE, "O_TMPFILE is not understood");
                if flags & libc::O_CREAT != 0 {
                    self.look(path);
                }
                if flags & libc::O_TRUNC != 0 {
                    let inode = self.inode(thread, value).expect("it is below the place");
                    self.steps.push(Step::Length { inode, length: 0 });
                }
            }
            number => {
                for path in thread.changed(number, args) {
                    self.look(path);
                }
                for fd in writes_otherwise(number, args) {
                    let path = self.opened(thread, fd);
                    assert!(path.is_none(), "call {number} may write to {path:?}, and is not understood");
                }
            }
        }
    }

    fn told(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        for line in text.lines().filter_map(|line| line.rsplit_once("told: ")) {
            self.steps.push(Step::Told(line.1.to_owned()));
        }
    }

    /// What is at a path below the place, if it is one.
    fn look(&mut self, path: PathBuf) {
        if path != self.place && path.starts_with(&self.place) {
            let found = Found::at(&path);
            let path = path.strip_prefix(&self.place).expect("it was looked at").to_owned();
            self.steps.push(Step::Name { path, found });
        }
    }

    /// The path of an open file below the place.
    fn opened(&self, thread: &Thread, fd: u64) -> Option<PathBuf> {
        let path = thread.path(fd)?;
        path.strip_prefix(&self.place).ok()?;
        Some(path)
    }

    fn inode(&self, thread: &Thread, fd: u64) -> Option<u64> {
        self.opened(thread, fd)?;
        Some(fs::metadata(thread.fd(fd)).ok()?.ino())
    }
}

/// Files that calls write to in ways that are not recorded.
fn writes_otherwise(number: libc::c_long, args: &[u64; 6]) -> Vec<u64> {
    match number {
        libc::SYS_writev | libc::SYS_pwritev | libc::SYS_pwritev2 | libc::SYS_sendfile | libc::SYS_fallocate => {
            vec![args[0]]
        }
        libc::SYS_copy_file_range | libc::SYS_splice => vec![args[2]],
        libc::SYS_mmap if args[2] & 2 != 0 && args[3] & 1 != 0 => vec![args[4]], // PROT_WRITE, MAP_SHARED
        _ => Vec::new(),
    }
}

struct Thread(libc::pid_t);

impl Thread {
    fn fd(&self, fd: u64) -> PathBuf {
        PathBuf::from(format!("/proc/{}/fd/{}", self.0, fd as libc::c_int))
    }

    /// The path of an open file, or of one that was open under that name.
    fn path(&self, fd: u64) -> Option<PathBuf> {
        let path = fs::read_link(self.fd(fd)).ok()?;
        let path = path.to_str()?;
        Some(PathBuf::from(path.strip_suffix(" (deleted)").unwrap_or(path)))
    }

    fn position(&self, fd: u64) -> u64 {
        let info = fs::read_to_string(format!("/proc/{}/fdinfo/{}", self.0, fd as libc::c_int)).unwrap();
        let line = info.lines().find_map(|line| line.strip_prefix("pos:")).unwrap();
        line.trim().parse().unwrap()
    }

    fn bytes(&self, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        File::open(format!("/proc/{}/mem", self.0)).and_then(|memory| memory.read_exact_at(&mut bytes, at)).unwrap();
        bytes
    }

    fn text(&self, at: u64) -> String {
        let memory = File::open(format!("/proc/{}/mem", self.0)).unwrap();
        let mut text = vec![0; 4096];
        let read = memory.read_at(&mut text, at).unwrap();
        let end = text[..read].iter().position(|byte| *byte == 0).expect("a path is shorter than that");
        String::from_utf8(text[..end].to_vec()).unwrap()
    }

    /// A path as a call has it: below an open folder, or below the working folder. Of an open file itself where it is empty.
    fn below(&self, folder: u64, at: u64) -> PathBuf {
        let text = self.text(at);
        let open = ["/proc/self/fd/", "/proc/thread-self/fd/"].iter().find_map(|begin| text.strip_prefix(begin));
        if let Some(fd) = open.and_then(|fd| fd.parse().ok()) {
            return self.path(fd).unwrap_or_default();
        }
        let folder = match folder as libc::c_int {
            libc::AT_FDCWD => fs::read_link(format!("/proc/{}/cwd", self.0)).unwrap_or_default(),
            _ => self.path(folder).unwrap_or_default(),
        };
        if text.is_empty() { folder } else { folder.join(text) }
    }

    /// Paths whose names, or what is said of them, a call has changed.
    fn changed(&self, number: libc::c_long, args: &[u64; 6]) -> Vec<PathBuf> {
        let here = libc::AT_FDCWD as u64;
        match number {
            libc::SYS_mkdirat | libc::SYS_unlinkat | libc::SYS_mknodat | libc::SYS_fchownat | libc::SYS_fchmodat => {
                vec![self.below(args[0], args[1])]
            }
            libc::SYS_renameat | libc::SYS_renameat2 => {
                vec![self.below(args[2], args[3]), self.below(args[0], args[1])]
            }
            libc::SYS_linkat => vec![self.below(args[2], args[3])],
            libc::SYS_symlinkat => vec![self.below(args[1], args[2])],
            libc::SYS_setxattr | libc::SYS_lsetxattr => vec![self.below(here, args[0])],
            libc::SYS_fchown | libc::SYS_fchmod | libc::SYS_fsetxattr => self.path(args[0]).into_iter().collect(),
            #[cfg(target_arch = "x86_64")] // where there are older calls too
            libc::SYS_mkdir | libc::SYS_rmdir | libc::SYS_unlink | libc::SYS_mknod | libc::SYS_chmod => {
                vec![self.below(here, args[0])]
            }
            #[cfg(target_arch = "x86_64")]
            libc::SYS_rename => vec![self.below(here, args[1]), self.below(here, args[0])],
            #[cfg(target_arch = "x86_64")]
            libc::SYS_link | libc::SYS_symlink => vec![self.below(here, args[1])],
            _ => Vec::new(),
        }
    }
}

fn side(thread: libc::pid_t, steps: usize) -> Option<Side> {
    let mut info = std::mem::MaybeUninit::<libc::ptrace_syscall_info>::zeroed();
    let size = size_of::<libc::ptrace_syscall_info>();
    // SAFETY: `info` has the size that is said, and outlives the call.
    let got = unsafe { libc::ptrace(libc::PTRACE_GET_SYSCALL_INFO, thread, size, info.as_mut_ptr()) };
    if got <= 0 {
        return None; // it is gone
    }
    // SAFETY: zeroes are a value of it, whatever the kernel has not filled.
    let info = unsafe { info.assume_init() };
    match info.op {
        libc::PTRACE_SYSCALL_INFO_ENTRY => {
            // SAFETY: `op` says which of them it is.
            let entry = unsafe { info.u.entry };
            let number = libc::c_long::try_from(entry.nr).ok()?;
            Some(Side::Entry(Entered { number, args: entry.args, steps }))
        }
        libc::PTRACE_SYSCALL_INFO_EXIT => {
            // SAFETY: `op` says which of them it is.
            let exit = unsafe { info.u.exit };
            Some(Side::Exit(u64::try_from(exit.sval).ok().filter(|_| exit.is_error == 0)))
        }
        _ => None,
    }
}
