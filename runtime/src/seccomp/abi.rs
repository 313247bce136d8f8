//! Calling conventions: what the kernel calls them, how wide their arguments are, and which number a name has.

use super::table;

/// A way to make system calls, with its own numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abi {
    X86_64,
    I386,
    /// The 64-bit machine with 32-bit pointers. It shares x86_64's `AUDIT_ARCH` and marks its calls with bit 30.
    X32,
    Aarch64,
    Arm,
}

/// Marks a call of x32: `__X32_SYSCALL_BIT`, asm/unistd.h.
pub const X32_BIT: u32 = 1 << 30;

impl Abi {
    /// The convention of this program, which a profile need not name.
    #[cfg(target_arch = "x86_64")]
    pub const NATIVE: Abi = Abi::X86_64;
    #[cfg(target_arch = "aarch64")]
    pub const NATIVE: Abi = Abi::Aarch64;

    /// What the kernel puts into `seccomp_data.arch`: `AUDIT_ARCH_*`, linux/audit.h.
    pub const fn audit(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::I386 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments have 64 bits. libseccomp looks at the low word alone where pointers have 32, x32 included.
    pub const fn wide(self) -> bool {
        matches!(self, Abi::X86_64 | Abi::Aarch64)
    }

    /// The number of the call that is `row` in the table, without [`X32_BIT`].
    pub fn number(self, row: Row) -> Option<u32> {
        u32::try_from(NUMBERS[self as usize][row.0 as usize]).ok()
    }
}

/// A system call that some convention has: its place in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row(u16);

impl Row {
    pub fn find(name: &str) -> Option<Row> {
        let mut slot = hash(name.as_bytes());
        loop {
            let row = Row(SLOTS[slot].checked_sub(1)?);
            if row.name() == name {
                return Some(row);
            }
            slot = (slot + 1) % SLOTS.len();
        }
    }

    pub fn name(self) -> &'static str {
        &NAMES[usize::from(ENDS[usize::from(self.0)])..usize::from(ENDS[usize::from(self.0) + 1])]
    }
}

// The table as it is read is not the table as it is used: a slice of `&str` would be 16 bytes a row, spread over pages
// that each start of ours would have to fault in, or relocate.

const COUNT: usize = table::ROWS.len();

/// All names behind one another, and where each ends (the first entry is the start).
static NAMES: &str = match str::from_utf8(&JOINED) {
    Ok(names) => names,
    Err(_) => panic!("the names are ASCII"),
};
static ENDS: [u16; COUNT + 1] = {
    let mut ends = [0; COUNT + 1];
    let mut row = 0;
    while row < COUNT {
        ends[row + 1] = ends[row] + table::ROWS[row].0.len() as u16;
        row += 1;
    }
    ends
};
const LENGTH: usize = {
    let (mut length, mut row) = (0, 0);
    while row < COUNT {
        length += table::ROWS[row].0.len();
        row += 1;
    }
    length
};
static JOINED: [u8; LENGTH] = {
    let mut joined = [0; LENGTH];
    let (mut at, mut row) = (0, 0);
    while row < COUNT {
        let name = table::ROWS[row].0.as_bytes();
        let mut i = 0;
        while i < name.len() {
            joined[at] = name[i];
            at += 1;
            i += 1;
        }
        row += 1;
    }
    joined
};

/// Rows by the hash of their names, plus one; a name whose slot is taken is in the next free one. Twice as many slots as
/// names, so a search for a name that nobody has ends soon.
static SLOTS: [u16; 1024] = {
    let mut slots = [0; 1024];
    let mut row = 0;
    while row < COUNT {
        let mut slot = hash(table::ROWS[row].0.as_bytes());
        while slots[slot] != 0 {
            slot = (slot + 1) % slots.len();
        }
        row += 1;
        slots[slot] = row as u16;
    }
    slots
};

/// FNV-1a, folded to the number of slots.
const fn hash(name: &[u8]) -> usize {
    let (mut hash, mut at) = (0x811c_9dc5_u32, 0);
    while at < name.len() {
        hash = (hash ^ name[at] as u32).wrapping_mul(0x0100_0193);
        at += 1;
    }
    (hash ^ hash >> 10 ^ hash >> 20) as usize % 1024
}

/// A column for each convention, so that those that are not asked for are never touched.
static NUMBERS: [[i32; COUNT]; 5] = {
    let mut columns = [[table::NONE; COUNT]; 5];
    let mut row = 0;
    while row < COUNT {
        let mut column = 0;
        while column < 5 {
            columns[column][row] = table::ROWS[row].1[column];
            column += 1;
        }
        row += 1;
    }
    columns
};

/// The i386 calls that go through one door, `socketcall` (102) or `ipc` (117), whose first argument says which is meant.
///
/// Source: socketcall(2), ipc(2); linux/net.h, linux/ipc.h.
#[rustfmt::skip]
const BEHIND: [(&str, Door); 32] = [
    ("socket", (102, 1)), ("bind", (102, 2)), ("connect", (102, 3)), ("listen", (102, 4)), ("accept", (102, 5)),
    ("getsockname", (102, 6)), ("getpeername", (102, 7)), ("socketpair", (102, 8)), ("send", (102, 9)), ("recv", (102, 10)),
    ("sendto", (102, 11)), ("recvfrom", (102, 12)), ("shutdown", (102, 13)), ("setsockopt", (102, 14)),
    ("getsockopt", (102, 15)), ("sendmsg", (102, 16)), ("recvmsg", (102, 17)), ("accept4", (102, 18)), ("recvmmsg", (102, 19)),
    ("sendmmsg", (102, 20)),
    ("semop", (117, 1)), ("semget", (117, 2)), ("semctl", (117, 3)), ("semtimedop", (117, 4)), ("msgsnd", (117, 11)),
    ("msgrcv", (117, 12)), ("msgget", (117, 13)), ("msgctl", (117, 14)), ("shmat", (117, 21)), ("shmdt", (117, 22)),
    ("shmget", (117, 23)), ("shmctl", (117, 24)),
];

/// The number of the door, and which call is meant.
pub type Door = (u8, u8);

/// For each row its door, or zeros.
static DOORS: [Door; COUNT] = {
    let mut doors = [(0, 0); COUNT];
    let mut at = 0;
    while at < BEHIND.len() {
        let mut row = 0;
        while !same(table::ROWS[row].0.as_bytes(), BEHIND[at].0.as_bytes()) {
            row += 1; // a name that the table lacks ends the build
        }
        doors[row] = BEHIND[at].1;
        at += 1;
    }
    doors
};

/// `==`, which cannot be used in constants yet.
const fn same(a: &[u8], b: &[u8]) -> bool {
    let mut at = 0;
    while at < a.len() && at < b.len() && a[at] == b[at] {
        at += 1;
    }
    at == a.len() && at == b.len()
}

/// The door that the call is behind on i386.
pub fn door(row: Row) -> Option<Door> {
    let door = DOORS[usize::from(row.0)];
    (door != (0, 0)).then_some(door)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_and_no_other() {
        for (name, numbers) in table::ROWS {
            let row = Row::find(name).expect(name);
            assert_eq!(row.name(), *name);
            for (abi, number) in [Abi::X86_64, Abi::I386, Abi::X32, Abi::Aarch64, Abi::Arm].into_iter().zip(numbers) {
                assert_eq!(abi.number(row), u32::try_from(*number).ok(), "{name} of {abi:?}");
            }
        }
        for absent in ["", "zzz", "opena", "openatt", "Open", "write\0"] {
            assert_eq!(Row::find(absent), None, "{absent}");
        }
    }

    #[test]
    fn names_are_sorted_and_numbers_are_not_given_twice() {
        assert!(table::ROWS.is_sorted_by(|a, b| a.0 < b.0));
        for column in 0..5 {
            let mut numbers: Vec<i32> = table::ROWS.iter().map(|row| row.1[column]).filter(|n| *n >= 0).collect();
            numbers.sort_unstable();
            assert!(numbers.is_sorted_by(|a, b| a < b), "column {column}");
        }
    }

    /// The table against the compiler's own: libc has most of the native numbers.
    #[test]
    #[cfg(target_arch = "x86_64")]
    fn numbers_are_those_of_libc() {
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("openat2", libc::SYS_openat2),
            ("faccessat2", libc::SYS_faccessat2),
            ("seccomp", libc::SYS_seccomp),
            ("mount_setattr", libc::SYS_mount_setattr),
            ("futex_waitv", libc::SYS_futex_waitv),
        ] {
            let row = Row::find(name).expect(name);
            assert_eq!(Abi::X86_64.number(row).map(i64::from), Some(number), "{name}");
        }
    }
}
