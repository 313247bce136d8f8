//! Loads a device program and attaches it to a cgroup.

#![allow(unsafe_code)] // bpf(2) has no wrapper short of a library for all of BPF

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use rustix::io::Errno;

use super::program::Instruction;

// linux/bpf.h
const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used.
#[repr(C)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
}

/// `union bpf_attr` for `BPF_PROG_ATTACH`.
#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Has the kernel check and compile `program`.
///
/// # Errors
/// `EPERM` without `CAP_BPF` and `CAP_NET_ADMIN`, or without `CAP_SYS_ADMIN` · `EINVAL` a program that it refuses.
///
/// Source: bpf(2), `BPF_PROG_LOAD`.
pub fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    let attributes = Load {
        kind: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: the attributes have the size that is passed; both pointers in them live through the call.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<Load>()) };
    if fd < 0 {
        return Err(last());
    }
    // SAFETY: a fresh descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Has `cgroup` ask `program`, beside those that are above it.
///
/// Source: bpf(2), `BPF_PROG_ATTACH`.
pub fn attach(cgroup: &OwnedFd, program: &OwnedFd) -> Result<(), Errno> {
    let attributes = Attach {
        target: cgroup.as_raw_fd().cast_unsigned(),
        program: program.as_raw_fd().cast_unsigned(),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes have the size that is passed and hold no pointers.
    let done = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, size_of::<Attach>()) };
    if done < 0 { Err(last()) } else { Ok(()) }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}
