//! Device rules as a BPF program of the kind that a cgroup runs when a device node is made or opened.
//!
//! The rules are read from the last to the first. A register holds the accesses that were asked for and not yet allowed:
//! a rule that allows takes its own out, one that forbids ends it if it finds one of its own left. Nothing left: allowed.
//! Rules left, none that speaks: forbidden.
//!
//! Source: kernel cgroup-v2.rst, "Device controller"; linux/bpf.h, `struct bpf_cgroup_dev_ctx`; RFC 9669.

use crate::cgroup::devices::{Access, Devices, Kind, Rule};

/// `struct bpf_insn`, linux/bpf.h.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Instruction {
    pub code: u8,
    /// Destination in the low four bits, source in the high four.
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

// RFC 9669, section 4: the operations on 32-bit halves.
const LOAD_WORD: u8 = 0x61; // BPF_LDX | BPF_MEM | BPF_W
const MOVE: u8 = 0xbc; // BPF_ALU | BPF_MOV | BPF_X
const MOVE_NUMBER: u8 = 0xb4; // BPF_ALU | BPF_MOV | BPF_K
const AND: u8 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const SHIFT_RIGHT: u8 = 0x74; // BPF_ALU | BPF_RSH | BPF_K
const JUMP: u8 = 0x05; // BPF_JMP | BPF_JA
const JUMP_EQUAL: u8 = 0x16; // BPF_JMP32 | BPF_JEQ | BPF_K
const JUMP_NOT_EQUAL: u8 = 0x56; // BPF_JMP32 | BPF_JNE | BPF_K
const JUMP_ANY: u8 = 0x46; // BPF_JMP32 | BPF_JSET | BPF_K
const EXIT: u8 = 0x95; // BPF_JMP | BPF_EXIT

// Registers: the result, the context, and what is read from it.
const RESULT: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const LEFT: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Where a jump goes before its distance is known.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    None,
    NextRule,
    Allow,
    Deny,
}

#[derive(Default)]
struct Writer {
    code: Vec<(Instruction, Goal)>,
    /// The jumps before this one have found their next rule.
    settled: usize,
}

pub fn compile(devices: &Devices) -> Vec<Instruction> {
    let mut writer = Writer::default();
    // The kind is in the low half of the first word, the access in the high half.
    writer.put(LOAD_WORD, KIND | CONTEXT << 4, 0, 0, Goal::None);
    writer.put(MOVE, LEFT | KIND << 4, 0, 0, Goal::None);
    writer.put(SHIFT_RIGHT, LEFT, 0, 16, Goal::None);
    writer.put(AND, KIND, 0, 0xffff, Goal::None);
    writer.put(LOAD_WORD, MAJOR | CONTEXT << 4, 4, 0, Goal::None);
    writer.put(LOAD_WORD, MINOR | CONTEXT << 4, 8, 0, Goal::None);
    for rule in devices.rules.iter().rev() {
        writer.rule(rule);
    }
    writer.finish()
}

impl Writer {
    fn put(&mut self, code: u8, registers: u8, offset: i16, immediate: i32, goal: Goal) {
        self.code.push((Instruction { code, registers, offset, immediate }, goal));
    }

    fn rule(&mut self, rule: &Rule) {
        match rule.devices.kind {
            Kind::Any => {}
            Kind::Block => self.put(JUMP_NOT_EQUAL, KIND, 0, 1, Goal::NextRule), // BPF_DEVCG_DEV_BLOCK
            Kind::Char => self.put(JUMP_NOT_EQUAL, KIND, 0, 2, Goal::NextRule),  // BPF_DEVCG_DEV_CHAR
        }
        for (register, number) in [(MAJOR, rule.devices.major), (MINOR, rule.devices.minor)] {
            if let Some(number) = number {
                self.put(JUMP_NOT_EQUAL, register, 0, number.cast_signed(), Goal::NextRule);
            }
        }
        let access = i32::from(rule.access.0);
        match (rule.allow, rule.access == Access::ALL) {
            (true, true) => self.put(JUMP, 0, 0, 0, Goal::Allow),
            (false, true) => self.put(JUMP, 0, 0, 0, Goal::Deny),
            (true, false) => {
                self.put(AND, LEFT, 0, !access, Goal::None);
                self.put(JUMP_EQUAL, LEFT, 0, 0, Goal::Allow);
            }
            (false, false) => self.put(JUMP_ANY, LEFT, 0, access, Goal::Deny),
        }
        let next = self.code.len();
        for (at, (instruction, goal)) in self.code.iter_mut().enumerate().skip(self.settled) {
            if *goal == Goal::NextRule {
                instruction.offset = distance(at, next);
            }
        }
        self.settled = next;
    }

    fn finish(mut self) -> Vec<Instruction> {
        let deny = self.code.len();
        self.put(MOVE_NUMBER, RESULT, 0, 0, Goal::None);
        self.put(EXIT, 0, 0, 0, Goal::None);
        let allow = self.code.len();
        self.put(MOVE_NUMBER, RESULT, 0, 1, Goal::None);
        self.put(EXIT, 0, 0, 0, Goal::None);
        let settle = |(at, (instruction, goal)): (usize, (Instruction, Goal))| match goal {
            Goal::None | Goal::NextRule => instruction,
            Goal::Allow => Instruction { offset: distance(at, allow), ..instruction },
            Goal::Deny => Instruction { offset: distance(at, deny), ..instruction },
        };
        self.code.into_iter().enumerate().map(settle).collect()
    }
}

/// Jumps count from the instruction after them. A program of more than 32767 instructions the kernel would refuse anyway.
fn distance(from: usize, to: usize) -> i16 {
    i16::try_from(to - from - 1).unwrap_or(i16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::DeviceRule;

    /// Runs a program on an access: the kernel's machine, as far as our programs use it.
    fn run(program: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let context = [access << 16 | kind, major, minor];
        let (mut registers, mut at) = ([0u32; 11], 0usize);
        loop {
            let Instruction { code, registers: both, offset, immediate } = program[at];
            let (to, from) = (usize::from(both & 15), usize::from(both >> 4));
            let number = immediate.cast_unsigned();
            at += 1;
            let jump = match code {
                LOAD_WORD => {
                    registers[to] = context[usize::try_from(offset).unwrap() / 4];
                    false
                }
                MOVE => {
                    registers[to] = registers[from];
                    false
                }
                MOVE_NUMBER => {
                    registers[to] = number;
                    false
                }
                AND => {
                    registers[to] &= number;
                    false
                }
                SHIFT_RIGHT => {
                    registers[to] >>= number;
                    false
                }
                JUMP => true,
                JUMP_EQUAL => registers[to] == number,
                JUMP_NOT_EQUAL => registers[to] != number,
                JUMP_ANY => registers[to] & number != 0,
                EXIT => return registers[0] == 1,
                _ => panic!("instruction {at} has code {code:#x}"),
            };
            if jump {
                at += usize::try_from(offset).expect("jumps go forward");
            }
        }
    }

    const BLOCK: u32 = 1;
    const CHAR: u32 = 2;
    const M: u32 = 1;
    const R: u32 = 2;
    const W: u32 = 4;

    fn program(json: serde_json::Value) -> Vec<Instruction> {
        let rules: Vec<DeviceRule> = serde_json::from_value(json).unwrap();
        compile(&Devices::read(&rules).unwrap())
    }

    #[test]
    fn nothing_named_leaves_the_usual_devices() {
        let program = program(serde_json::json!([]));
        for (kind, access, major, minor, allowed) in [
            (CHAR, R | W, 1, 3, true),
            (CHAR, R | W, 136, 7, true),
            (CHAR, M, 10, 200, true),
            (CHAR, R, 10, 200, false),
            (CHAR, M | R, 10, 200, false),
            (BLOCK, M, 8, 0, true),
            (BLOCK, R, 8, 0, false),
            (CHAR, R, 1, 1, false),
            (BLOCK, R, 1, 3, false),
        ] {
            assert_eq!(run(&program, kind, access, major, minor), allowed, "{kind} {access} {major}:{minor}");
        }
    }

    #[test]
    fn the_last_rule_that_speaks_of_an_access_decides_it() {
        let program = program(serde_json::json!([
            {"allow": true, "type": "a"},
            {"allow": false, "type": "b", "major": 8, "access": "rw"},
            {"allow": true, "type": "b", "major": 8, "minor": 1, "access": "r"},
        ]));
        for (access, major, minor, allowed) in [
            (R | W | M, 9, 0, true),
            (R, 8, 0, false),
            (M, 8, 0, true),
            (R, 8, 1, true),
            (W, 8, 1, false),
            (R | W, 8, 1, false),
            (R | M, 8, 1, true),
        ] {
            assert_eq!(run(&program, BLOCK, access, major, minor), allowed, "{access} {major}:{minor}");
        }
    }
}
