//! Device rules as a BPF program of the kind that a cgroup runs when a device node is made or opened.
//!
//! The rules are read from the last to the first. A register holds the accesses that were asked for and not yet allowed:
//! a rule that allows takes its own out, one that forbids ends it if it finds one of its own left. Nothing left: allowed.
//! Rules left, none that speaks: forbidden.
//!
//! Source: kernel cgroup-v2.rst, "Device controller"; linux/bpf.h, `struct bpf_cgroup_dev_ctx`; RFC 9669.

use crate::cgroup::devices::{Access, Devices, Kind, Rule, Which};

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

pub fn compile(devices: &Devices) -> Vec<Instruction> {
    let mut code = Writer { code: Vec::with_capacity(64), jumps: Vec::new(), labels: vec![0, 0] };
    // The kind is in the low half of the first word, the access in the high half.
    code.put(LOAD_WORD, KIND | CONTEXT << 4, 0, 0);
    code.put(MOVE, LEFT | KIND << 4, 0, 0);
    code.put(SHIFT_RIGHT, LEFT, 0, 16);
    code.put(AND, KIND, 0, 0xffff);
    code.put(LOAD_WORD, MAJOR | CONTEXT << 4, 4, 0);
    code.put(LOAD_WORD, MINOR | CONTEXT << 4, 8, 0);
    let rules: Vec<Rule> = devices.rules.iter().rev().copied().collect();
    for alike in rules.chunk_by(|a, b| a.allow == b.allow && a.access == b.access) {
        code.rules(alike);
    }
    code.place(Label::DENY);
    code.put(MOVE_NUMBER, RESULT, 0, 0);
    code.put(EXIT, 0, 0, 0);
    code.place(Label::ALLOW);
    code.put(MOVE_NUMBER, RESULT, 0, 1);
    code.put(EXIT, 0, 0, 0);
    code.finish()
}

/// A place in the program that is jumped to, known or not yet.
#[derive(Clone, Copy)]
struct Label(usize);

impl Label {
    const ALLOW: Label = Label(0);
    const DENY: Label = Label(1);
}

struct Writer {
    code: Vec<Instruction>,
    /// Which instruction jumps to which label.
    jumps: Vec<(usize, Label)>,
    labels: Vec<usize>,
}

impl Writer {
    /// Rules with one verdict on one set of accesses: their order does not matter, so each number is asked for once. The
    /// kernel's check of a program costs 5 µs an instruction.
    fn rules(&mut self, alike: &[Rule]) {
        let Rule { allow, access, .. } = alike[0];
        let end = if allow { Label::ALLOW } else { Label::DENY };
        if all_of_both_kinds(alike) {
            return self.verdict(allow, access, end);
        }
        let next = self.label();
        let hit = if access == Access::ALL { end } else { self.label() };
        let mut devices: Vec<Which> = alike.iter().map(|rule| rule.devices).collect();
        devices.sort_unstable_by_key(|which| (which.kind == Kind::Block, which.major, which.minor));
        for kind in devices.chunk_by(|a, b| a.kind == b.kind) {
            let other_kind = self.label();
            let number = if kind[0].kind == Kind::Block { 1 } else { 2 }; // BPF_DEVCG_DEV_BLOCK, BPF_DEVCG_DEV_CHAR
            self.jump(JUMP_NOT_EQUAL, KIND, number, other_kind);
            for major in kind.chunk_by(|a, b| a.major == b.major) {
                self.minors(major, hit);
            }
            self.place(other_kind);
        }
        if access != Access::ALL {
            self.jump(JUMP, 0, 0, next);
            self.place(hit);
            self.verdict(allow, access, end);
        }
        self.place(next);
    }

    /// Devices of one kind and one major number, or of any.
    fn minors(&mut self, devices: &[Which], hit: Label) {
        let other_major = self.label();
        let whole = devices.iter().any(|which| which.minor.is_none());
        match devices[0].major {
            Some(major) if whole => return self.jump(JUMP_EQUAL, MAJOR, major, hit),
            Some(major) => self.jump(JUMP_NOT_EQUAL, MAJOR, major, other_major),
            None if whole => return self.jump(JUMP, 0, 0, hit),
            None => {}
        }
        for minor in devices.iter().filter_map(|which| which.minor) {
            self.jump(JUMP_EQUAL, MINOR, minor, hit);
        }
        self.place(other_major);
    }

    /// What a rule says once its devices are met.
    fn verdict(&mut self, allow: bool, access: Access, end: Label) {
        let bits = u32::from(access.0);
        match (allow, access == Access::ALL) {
            (_, true) => self.jump(JUMP, 0, 0, end),
            (false, false) => self.jump(JUMP_ANY, LEFT, bits, end),
            (true, false) => {
                self.put(AND, LEFT, 0, !i32::from(access.0));
                self.jump(JUMP_EQUAL, LEFT, 0, end);
            }
        }
    }

    fn label(&mut self) -> Label {
        self.labels.push(0);
        Label(self.labels.len() - 1)
    }

    fn place(&mut self, label: Label) {
        self.labels[label.0] = self.code.len();
    }

    fn put(&mut self, code: u8, registers: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers, offset, immediate });
    }

    fn jump(&mut self, code: u8, register: u8, number: u32, to: Label) {
        self.jumps.push((self.code.len(), to));
        self.put(code, register, 0, number.cast_signed());
    }

    /// Jumps count from the instruction after them. The kernel refuses the programs that are too long for them.
    fn finish(mut self) -> Vec<Instruction> {
        for (at, to) in self.jumps {
            self.code[at].offset = i16::try_from(self.labels[to.0] - at - 1).unwrap_or(i16::MAX);
        }
        self.code
    }
}

/// Whether the rules speak of every device there is.
fn all_of_both_kinds(rules: &[Rule]) -> bool {
    let whole = |kind: Kind| rules.iter().any(|rule| rule.devices == Which { kind, major: None, minor: None });
    whole(Kind::Any) || whole(Kind::Block) && whole(Kind::Char)
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

    /// The meaning of rules, spelt out: each access that is asked for is decided by the last rule that speaks of it.
    fn meaning(devices: &Devices, kind: u32, access: u32, major: u32, minor: u32) -> bool {
        let speaks = |rule: &&Rule, bit: u32| {
            let Which { kind: of, major: first, minor: second } = rule.devices;
            u32::from(rule.access.0) & bit != 0
                && (of == Kind::Any || (of == Kind::Block) == (kind == BLOCK))
                && first.is_none_or(|first| first == major)
                && second.is_none_or(|second| second == minor)
        };
        [M, R, W]
            .into_iter()
            .filter(|bit| access & bit != 0)
            .all(|bit| devices.rules.iter().rev().find(|rule| speaks(rule, bit)).is_some_and(|rule| rule.allow))
    }

    #[test]
    fn any_list_of_rules_means_what_it_says() {
        let mut seed = 7u64;
        let mut dice = |sides: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % sides
        };
        for _ in 0..300 {
            let rules: Vec<serde_json::Value> = (0..dice(12))
                .map(|_| match dice(8) {
                    0 => serde_json::json!({"allow": dice(2) == 0, "type": "a"}),
                    _ => serde_json::json!({
                        "allow": dice(2) == 0,
                        "type": (["b", "c"][dice(2) as usize]),
                        "major": dice(3) as i64 - 1,
                        "minor": dice(3) as i64 - 1,
                        "access": (["r", "w", "m", "rw", "rm", "rwm", "rwm"][dice(7) as usize]),
                    }),
                })
                .collect();
            let devices =
                Devices::read(&serde_json::from_value::<Vec<DeviceRule>>(rules.clone().into()).unwrap()).unwrap();
            let program = compile(&devices);
            for (kind, access, major, minor) in (1..=2)
                .flat_map(|kind| (1..8).map(move |access| (kind, access)))
                .flat_map(|(kind, access)| (0..9).map(move |number| (kind, access, number / 3, number % 3)))
            {
                let expect = meaning(&devices, kind, access, major, minor);
                assert_eq!(
                    run(&program, kind, access, major, minor),
                    expect,
                    "{kind} {access} {major}:{minor} {rules:?}"
                );
            }
        }
    }
}
