//! Writes a classic BPF program from its end to its start.
//!
//! Jumps in classic BPF only go forward, and a conditional one reaches 255 instructions at most. Written backwards, every
//! place to jump to exists already when the jump is made, and one that is out of reach gets a stepping stone put where
//! the jump can reach it.

use super::Instruction;

/// Where control goes: to a verdict, or to a place in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    Return(u32),
    /// Counted from the end of the program: the first instruction written is 1.
    At(usize),
}

/// A condition on the accumulator, all of them unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compare {
    Equal = 0x15,          // BPF_JMP | BPF_JEQ | BPF_K
    Greater = 0x25,        // BPF_JMP | BPF_JGT | BPF_K
    GreaterOrEqual = 0x35, // BPF_JMP | BPF_JGE | BPF_K
}

// linux/bpf_common.h
const LOAD_WORD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// The farthest that a conditional jump skips.
const REACH: usize = u8::MAX as usize;

#[derive(Default)]
pub struct Assembler {
    backwards: Vec<Instruction>,
    /// The place last written for each verdict.
    verdicts: Vec<(u32, usize)>,
}

impl Assembler {
    pub fn with_capacity(instructions: usize) -> Assembler {
        Assembler { backwards: Vec::with_capacity(instructions), verdicts: Vec::with_capacity(8) }
    }

    /// Loads the word at `offset` of `struct seccomp_data` and goes on at `next`.
    pub fn load(&mut self, offset: u32, next: Target) -> Target {
        self.fall_through(next);
        self.put(LOAD_WORD, 0, 0, offset)
    }

    /// Keeps the bits of the accumulator that are in `mask` and goes on at `next`.
    pub fn and(&mut self, mask: u32, next: Target) -> Target {
        self.fall_through(next);
        self.put(AND, 0, 0, mask)
    }

    /// Goes to `yes` if the accumulator compares so with `value`, to `no` otherwise.
    pub fn branch(&mut self, compare: Compare, value: u32, yes: Target, no: Target) -> Target {
        if yes == no {
            return yes;
        }
        let yes = self.near(yes, 1);
        let no = self.near(no, 0);
        let here = self.backwards.len();
        let skip = |place: usize| u8::try_from(here - place).expect("near() brought it into reach");
        self.put(compare as u16, skip(yes), skip(no), value)
    }

    /// The program, in the order in which it runs, beginning with what was written last.
    pub fn finish(mut self, start: Target) -> Vec<Instruction> {
        self.fall_through(start);
        self.backwards.reverse();
        self.backwards
    }

    /// Makes what is written next continue at `target`.
    fn fall_through(&mut self, target: Target) {
        match target {
            Target::At(place) if place == self.backwards.len() => {}
            Target::At(place) => {
                let skip = self.backwards.len() - place;
                self.put(JUMP, 0, 0, u32::try_from(skip).expect("programs are short"));
            }
            Target::Return(verdict) if self.verdicts.contains(&(verdict, self.backwards.len())) => {}
            Target::Return(verdict) => self.verdict(verdict),
        }
    }

    /// A place that goes to `target` and stays in reach of a branch that is written `later` instructions from now.
    fn near(&mut self, target: Target, later: usize) -> usize {
        let known = match target {
            Target::At(place) => Some(place),
            Target::Return(verdict) => {
                self.verdicts.iter().find(|(written, _)| *written == verdict).map(|(_, place)| *place)
            }
        };
        if let Some(place) = known
            && self.backwards.len() - place + later <= REACH
        {
            return place;
        }
        self.fall_through(target);
        self.backwards.len()
    }

    fn verdict(&mut self, verdict: u32) {
        self.put(RETURN, 0, 0, verdict);
        let place = self.backwards.len();
        match self.verdicts.iter_mut().find(|(written, _)| *written == verdict) {
            Some(known) => known.1 = place,
            None => self.verdicts.push((verdict, place)),
        }
    }

    fn put(&mut self, code: u16, jt: u8, jf: u8, k: u32) -> Target {
        self.backwards.push(Instruction { code, jt, jf, k });
        Target::At(self.backwards.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::interpret::{Call, run};
    use super::*;

    #[test]
    fn a_place_out_of_reach_is_still_reached() {
        let mut code = Assembler::default();
        let far = code.load(16, Target::Return(7));
        let mut next = far;
        for value in 0..2000 {
            next = code.branch(Compare::Equal, value, Target::Return(1000 + value % 3), next);
        }
        let both = code.branch(Compare::Greater, 5000, far, next);
        let start = code.load(0, both);
        let program = code.finish(start);
        for (number, verdict) in [(0, 1000), (1, 1001), (1999, 1000 + 1999 % 3), (3000, 7), (6000, 7)] {
            assert_eq!(run(&program, &Call { number, ..Call::default() }), verdict, "{number}");
        }
    }

    #[test]
    fn a_branch_that_decides_nothing_is_not_written() {
        let mut code = Assembler::default();
        let same = code.branch(Compare::Equal, 1, Target::Return(3), Target::Return(3));
        assert_eq!(same, Target::Return(3));
        assert_eq!(code.finish(same).len(), 1);
    }
}
