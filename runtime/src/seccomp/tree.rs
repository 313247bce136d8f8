//! From ranges of numbers to instructions: a balanced search, with the tests of arguments at its leaves.

use super::Instruction;
use super::assemble::{Assembler, Compare, Target};
use super::profile::{Operator, Test};
use super::rules::{BAD_ARCHITECTURE, Block, Choice, Range, Verdict};

// Offsets in struct seccomp_data, linux/seccomp.h.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGUMENTS: u32 = 16;

/// The whole filter: by architecture, then by number, then by arguments.
pub fn program(blocks: &[Block]) -> Vec<Instruction> {
    let ranges: usize = blocks.iter().map(|block| block.ranges.len()).sum();
    let mut code = Assembler::with_capacity(2 * ranges + 64);
    let mut start = Target::Return(BAD_ARCHITECTURE);
    // Written from the end, so that the first block, the native one, is asked for first and is nearest.
    for block in blocks.iter().rev() {
        let mut choices = Choices { code: &mut code, block, written: vec![None; block.choices.len()] };
        let search = choices.search(&block.ranges);
        let by_number = code.load(NUMBER, search);
        start = code.branch(Compare::Equal, block.audit, by_number, start);
    }
    let start = code.load(ARCH, start);
    code.finish(start)
}

struct Choices<'a> {
    code: &'a mut Assembler,
    block: &'a Block,
    /// Where each choice was written; ranges that share one share its instructions.
    written: Vec<Option<Target>>,
}

impl Choices<'_> {
    fn search(&mut self, ranges: &[Range]) -> Target {
        match ranges {
            [one] => self.leaf(one.verdict),
            // One number that differs from its surroundings costs one comparison, not two.
            [before, one, after] if before.verdict == after.verdict && after.first == one.first + 1 => {
                let around = self.leaf(before.verdict);
                let equal = self.leaf(one.verdict);
                self.code.branch(Compare::Equal, one.first, equal, around)
            }
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let above = self.search(high);
                let below = self.search(low);
                self.code.branch(Compare::GreaterOrEqual, high[0].first, above, below)
            }
        }
    }

    fn leaf(&mut self, verdict: Verdict) -> Target {
        match verdict {
            Verdict::Return(value) => Target::Return(value),
            Verdict::Choice(index) => match self.written[index] {
                Some(target) => target,
                None => {
                    let target = choice(self.code, &self.block.choices[index], self.block.default);
                    self.written[index] = Some(target);
                    target
                }
            },
        }
    }
}

/// Tries one alternative after the other.
fn choice(code: &mut Assembler, choice: &Choice, default: u32) -> Target {
    choice.alternatives.iter().rev().fold(Target::Return(default), |otherwise, alternative| {
        let found = Target::Return(alternative.verdict);
        alternative.tests.iter().rev().fold(found, |holds, each| test(code, each, choice.wide, holds, otherwise))
    })
}

/// Goes to `yes` if the test holds. A 64-bit comparison is one of the upper words and, where these are equal, one of the
/// lower.
fn test(code: &mut Assembler, test: &Test, wide: bool, yes: Target, no: Target) -> Target {
    use Operator::{Equal, Greater, GreaterOrEqual, Less, LessOrEqual, MaskedEqual, NotEqual};
    let words = Words {
        low: ARGUMENTS + 8 * u32::from(test.argument),
        value: test.value,
        mask: if let MaskedEqual(mask) = test.operator { mask } else { u64::MAX },
        wide,
    };
    match test.operator {
        Equal | MaskedEqual(_) => words.equal(code, yes, no),
        NotEqual => words.equal(code, no, yes),
        Greater => words.above(code, Compare::Greater, yes, no),
        LessOrEqual => words.above(code, Compare::Greater, no, yes),
        GreaterOrEqual => words.above(code, Compare::GreaterOrEqual, yes, no),
        Less => words.above(code, Compare::GreaterOrEqual, no, yes),
    }
}

/// An argument and the value that it is compared with, in halves: the machines we know are little-endian.
struct Words {
    low: u32,
    value: u64,
    mask: u64,
    wide: bool,
}

impl Words {
    fn equal(&self, code: &mut Assembler, yes: Target, no: Target) -> Target {
        let low = word_equal(code, self.low, self.value as u32, self.mask as u32, yes, no);
        if !self.wide {
            return low;
        }
        word_equal(code, self.low + 4, (self.value >> 32) as u32, (self.mask >> 32) as u32, low, no)
    }

    fn above(&self, code: &mut Assembler, compare: Compare, yes: Target, no: Target) -> Target {
        let low = code.branch(compare, self.value as u32, yes, no);
        let low = code.load(self.low, low);
        if !self.wide {
            return low;
        }
        let upper = (self.value >> 32) as u32;
        let equal = code.branch(Compare::Equal, upper, low, no);
        let above = code.branch(Compare::Greater, upper, yes, equal);
        code.load(self.low + 4, above)
    }
}

fn word_equal(code: &mut Assembler, offset: u32, value: u32, mask: u32, yes: Target, no: Target) -> Target {
    if mask == 0 {
        return yes; // nothing is compared; libseccomp too drops the bits of the value that the mask lacks
    }
    let compare = code.branch(Compare::Equal, value & mask, yes, no);
    let masked = if mask == u32::MAX { compare } else { code.and(mask, compare) };
    code.load(offset, masked)
}
