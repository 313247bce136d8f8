//! Runs a filter as the kernel would: the ground that tests of the compiler stand on.
//!
//! It knows the instructions that seccomp allows and that we, libseccomp and runc write, and refuses all others.

use super::Instruction;

/// A system call as a filter sees it: `struct seccomp_data`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Call {
    pub number: u32,
    pub arch: u32,
    pub arguments: [u64; 6],
}

impl Call {
    fn word(&self, offset: u32) -> u32 {
        match offset {
            0 => self.number,
            4 => self.arch,
            16..64 if offset.is_multiple_of(4) => {
                let argument = self.arguments[(offset as usize - 16) / 8];
                if offset.is_multiple_of(8) { argument as u32 } else { (argument >> 32) as u32 }
            }
            _ => panic!("a load from offset {offset}"),
        }
    }
}

/// The verdict of `program` on `call`.
pub fn run(program: &[Instruction], call: &Call) -> u32 {
    let (mut at, mut a, mut memory) = (0, 0u32, [0u32; 16]);
    loop {
        let Instruction { code, jt, jf, k } = program[at];
        at += 1;
        let mut jump = |condition: bool| at += usize::from(if condition { jt } else { jf });
        match code {
            0x00 => a = k,
            0x20 => a = call.word(k),
            0x60 => a = memory[k as usize],
            0x02 => memory[k as usize] = a,
            0x54 => a &= k,
            0x05 => at += k as usize,
            0x15 => jump(a == k),
            0x25 => jump(a > k),
            0x35 => jump(a >= k),
            0x45 => jump(a & k != 0),
            0x06 => return k,
            _ => panic!("instruction {at} has code {code:#x}"),
        }
    }
}
