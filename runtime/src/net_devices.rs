//! Network devices that move into the container: out of the runtime's namespace, under the name that was asked for, with
//! the addresses that they had.
//!
//! Source: runtime-spec config-linux.md, "Network Devices".

use std::collections::BTreeMap;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::Errno;

use crate::error::{Doing as _, Failed};
use crate::netlink::{CREATE_NEW, DUMP, Request, Socket, attributes, number};
use crate::spec::NetDevice;
use crate::sys;

// linux/rtnetlink.h, linux/if_link.h, linux/if_addr.h
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const GET_ADDRESS: u16 = 22;
const LINK_NAME: u16 = 3;
const LINK_NAMESPACE: u16 = 28;
const ADDRESS_FLAGS: u16 = 8;
const ADDRESS_CACHE: u16 = 6;
const PERMANENT: u32 = 0x80;
const GLOBAL: u8 = 0;
/// The length of `struct ifaddrmsg`.
const ADDRESS: usize = 8;

/// Moves the devices into the network namespace of the process `pid`.
///
/// # Errors
/// There is no such device, or its name is taken inside.
pub fn move_in(devices: &BTreeMap<String, NetDevice>, pid: i32) -> Result<(), Failed> {
    if devices.is_empty() {
        return Ok(());
    }
    let theirs = open_namespace(&format!("/proc/{pid}/ns/net"))?;
    for (name, asked) in devices {
        let new = if asked.name.is_empty() { name } else { &asked.name };
        move_one(name, new, &theirs)
            .doing(|| format!("linux.netDevices.{name}: moving it into the container as {new}"))?;
    }
    Ok(())
}

fn open_namespace(path: &str) -> Result<OwnedFd, Failed> {
    openat(CWD, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).doing(|| format!("opening {path}"))
}

fn move_one(name: &str, new: &str, theirs: &OwnedFd) -> Result<(), Errno> {
    let here = Socket::new()?;
    let index = index_of(&here, name)?;
    let addresses = addresses(&here, index)?;
    here.ask(&Request::new(NEW_LINK, 0, &link(index, 0, libc::IFF_UP as u32)))?; // down: a device that is up keeps its name
    let descriptor = theirs.as_raw_fd().to_ne_bytes();
    let request = Request::new(NEW_LINK, 0, &link(index, 0, 0))
        .attribute(LINK_NAMESPACE, &descriptor)?
        .attribute(LINK_NAME, &c_name(new))?;
    here.ask(&request)?;
    let there = socket_in(theirs)?;
    let index = index_of(&there, new)?;
    for address in addresses {
        there.ask(&address.with_index(index)?)?;
    }
    there.ask(&Request::new(NEW_LINK, 0, &link(index, libc::IFF_UP as u32, libc::IFF_UP as u32)))?;
    Ok(())
}

/// A socket belongs to the namespace that it is made in; this process goes there and comes back.
fn socket_in(namespace: &OwnedFd) -> Result<Socket, Errno> {
    let network = libc::CLONE_NEWNET as u64;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let ours = openat(CWD, c"/proc/self/ns/net", flags, Mode::empty())?;
    sys::setns(namespace.as_fd(), network)?;
    let socket = Socket::new();
    sys::setns(ours.as_fd(), network)?;
    socket
}

fn c_name(name: &str) -> Vec<u8> {
    name.bytes().chain([0]).collect()
}

/// `struct ifinfomsg`: family, kind, index, flags, and which of them are meant.
fn link(index: u32, flags: u32, meant: u32) -> Vec<u8> {
    [0, index, flags, meant].iter().flat_map(|number| number.to_ne_bytes()).collect()
}

fn index_of(socket: &Socket, name: &str) -> Result<u32, Errno> {
    let request = Request::new(GET_LINK, 0, &link(0, 0, 0)).attribute(LINK_NAME, &c_name(name))?;
    let answers = socket.ask(&request)?;
    answers.first().map(|answer| number(answer, 4)).ok_or(Errno::NODEV)
}

/// An address as the kernel tells it.
struct Address(Vec<u8>);

impl Address {
    /// The request that gives it to another device.
    fn with_index(&self, index: u32) -> Result<Request, Errno> {
        let mut fixed = self.0[..ADDRESS].to_vec();
        fixed[4..].copy_from_slice(&index.to_ne_bytes());
        let mut request = Request::new(NEW_ADDRESS, CREATE_NEW, &fixed);
        for (kind, value) in attributes(&self.0, ADDRESS).filter(|(kind, _)| *kind != ADDRESS_CACHE) {
            request = request.attribute(kind, value)?;
        }
        Ok(request)
    }
}

/// The addresses of a device that it keeps: global ones that somebody has given it.
fn addresses(socket: &Socket, index: u32) -> Result<Vec<Address>, Errno> {
    let answers = socket.ask(&Request::new(GET_ADDRESS, DUMP, &[0; ADDRESS]))?;
    let kept = |answer: &Vec<u8>| {
        let flags = attributes(answer, ADDRESS).find(|(kind, _)| *kind == ADDRESS_FLAGS);
        answer.len() >= ADDRESS
            && number(answer, 4) == index
            && answer[3] == GLOBAL
            && flags.is_none_or(|(_, value)| number(value, 0) & PERMANENT != 0)
    };
    Ok(answers.into_iter().filter(kept).map(Address).collect())
}
