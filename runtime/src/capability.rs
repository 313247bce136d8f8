//! Capabilities by name and as sets of bits.
//!
//! Source: capabilities(7); linux/capability.h.

use rustix::thread::{CapabilitySet, capability_is_in_bounding_set};

/// In the order of their numbers.
pub const NAMES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A set of capabilities, a bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Set(pub u64);

impl Set {
    /// Reads names; those that this table does not have are returned beside, to be warned about.
    pub fn read(names: &[String]) -> (Set, Vec<&str>) {
        let mut set = Set(0);
        let mut unknown = Vec::new();
        for name in names {
            match NAMES.iter().position(|known| known == name) {
                Some(number) => set.0 |= 1 << number,
                None => unknown.push(name.as_str()),
            }
        }
        (set, unknown)
    }

    pub fn contains(self, number: u32) -> bool {
        self.0 >> number & 1 == 1
    }

    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(number, _)| self.contains(*number as u32)).map(|(_, name)| *name)
    }
}

/// What this process may hand on: its bounding set. Capabilities that the kernel does not have are not in it.
pub fn bounding() -> Set {
    let one = |number: usize| CapabilitySet::from_bits_retain(1 << number);
    let held = (0..NAMES.len()).filter(|number| capability_is_in_bounding_set(one(*number)) == Ok(true));
    Set(held.fold(0, |set, number| set | 1 << number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bounding_set_is_what_the_kernel_tells() {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:\t")).unwrap();
        assert_eq!(format!("{:016x}", bounding().0), line);
    }

    #[test]
    fn names_and_bits_are_the_kernels() {
        let names = ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE", "CAP_NONE"].map(str::to_owned);
        let (set, unknown) = Set::read(&names);
        assert_eq!(set, Set(1 | 1 << 21 | 1 << 40));
        assert_eq!(unknown, ["CAP_NONE"]);
    }
}
