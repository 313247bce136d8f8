//! Removing a bridge, which no plugin does. Source: rtnetlink(7), `RTM_DELLINK`; netlink(7).

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketType};

use crate::error::{Doing as _, Result};

const DELLINK: u16 = 17;
const REQUEST_AND_ACK: u16 = 0x1 | 0x4;
const IFNAME: u16 = 3;

/// Removes the interface of that name; one that is gone is no error.
///
/// # Errors
/// The kernel's.
pub fn delete(name: &str) -> Result<()> {
    match ask(&request(name)) {
        Err(Errno::NODEV) => Ok(()),
        answer => answer.doing(|| format!("removing the interface {name}")),
    }
}

fn request(name: &str) -> Vec<u8> {
    let padded = (name.len() + 1).next_multiple_of(4);
    let length = u32::try_from(16 + 16 + 4 + padded).unwrap_or(u32::MAX);
    let mut request = Vec::new();
    request.extend(length.to_ne_bytes());
    request.extend(DELLINK.to_ne_bytes());
    request.extend(REQUEST_AND_ACK.to_ne_bytes());
    request.extend([0; 8]); // sequence, port
    request.extend([0; 16]); // struct ifinfomsg: found by its name
    request.extend(u16::try_from(4 + name.len() + 1).unwrap_or(u16::MAX).to_ne_bytes());
    request.extend(IFNAME.to_ne_bytes());
    request.extend(name.as_bytes());
    request.resize(16 + 16 + 4 + padded, 0);
    request
}

fn ask(request: &[u8]) -> rustix::io::Result<()> {
    let socket = net::socket(AddressFamily::NETLINK, SocketType::RAW, None)?; // protocol 0 is NETLINK_ROUTE
    net::send(&socket, request, SendFlags::empty())?;
    let mut answer = [0_u8; 256];
    let (_, length) = net::recv(&socket, &mut answer, RecvFlags::empty())?;
    let errno: [u8; 4] = answer[..length].get(16..20).and_then(|bytes| bytes.try_into().ok()).ok_or(Errno::PROTO)?;
    match -i32::from_ne_bytes(errno) {
        0 => Ok(()),
        errno => Err(Errno::from_raw_os_error(errno)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_not_there_is_gone() {
        delete("tare-none-such").unwrap();
    }
}
