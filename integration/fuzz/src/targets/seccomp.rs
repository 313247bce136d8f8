//! A profile is refused with a sentence, or compiled to a program that the kernel takes.

use tare_runtime::seccomp::{Program, compile};
use tare_runtime::spec::Seccomp;

pub fn try_input(input: &[u8]) {
    let Ok(profile) = serde_json::from_slice::<Seccomp>(input) else { return };
    match compile(&profile) {
        Ok(program) => assert_loadable(&program),
        Err(error) => super::assert_sentence(&error.to_string()),
    }
}

/// What the kernel checks of a filter: net/core/filter.c, `bpf_check_classic`; kernel/seccomp.c, `seccomp_check_filter`.
pub fn assert_loadable(program: &Program) {
    let instructions = &program.instructions;
    assert!((1..=4096).contains(&instructions.len()), "{} instructions", instructions.len());
    for (at, instruction) in instructions.iter().enumerate() {
        let inside = |skip: u32| at + 1 + (skip as usize) < instructions.len();
        match instruction.code {
            0x20 => assert!(instruction.k < 64 && instruction.k % 4 == 0, "{at}: a load from {}", instruction.k),
            0x54 => {}
            0x05 => assert!(inside(instruction.k), "{at}: a jump out of the program"),
            0x15 | 0x25 | 0x35 => {
                let (yes, no) = (u32::from(instruction.jt), u32::from(instruction.jf));
                assert!(inside(yes) && inside(no), "{at}: a branch out of the program");
            }
            0x06 => {}
            code => panic!("{at}: instruction {code:#x}"),
        }
    }
    assert_eq!(instructions.last().map(|last| last.code), Some(0x06), "the program does not end in a verdict");
    let listens = program.flags & 1 << 3 != 0;
    assert_eq!(listens, program.listener.is_some(), "a listener and its flag belong together");
}
