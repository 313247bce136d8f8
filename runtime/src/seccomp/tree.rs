//! From ranges of numbers to instructions: a balanced search, with the tests of arguments at its leaves.

use super::Instruction;
use super::assemble::{Assembler, Compare, Target};
use super::profile::{Operator, Test};
use super::rules::{Alternative, BAD_ARCHITECTURE, Block, Choice, Range, Verdict};

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
        let search = choices.search(&groups(&block.ranges));
        let by_number = code.load(NUMBER, search);
        start = code.branch(Compare::Equal, block.audit, by_number, start);
    }
    let start = code.load(ARCH, start);
    code.finish(start)
}

/// Cuts the ranges into groups: one verdict, and at most three single numbers that stand out of it. Such a number costs one
/// comparison in its group and would cost two in the search.
fn groups(ranges: &[Range]) -> Vec<&[Range]> {
    const OUTSTANDING: usize = 3;
    let mut groups = Vec::with_capacity(ranges.len());
    let mut rest = ranges;
    while !rest.is_empty() {
        let stands_out = |at: usize| {
            at + 1 < rest.len() && rest[at + 1].first == rest[at].first + 1 && rest[at + 1].verdict == rest[0].verdict
        };
        let singles = (0..OUTSTANDING).take_while(|single| stands_out(2 * single + 1)).count();
        let (group, after) = rest.split_at(2 * singles + 1);
        groups.push(group);
        rest = after;
    }
    groups
}

struct Choices<'a> {
    code: &'a mut Assembler,
    block: &'a Block,
    /// Where each choice was written; ranges that share one share its instructions.
    written: Vec<Option<Target>>,
}

impl Choices<'_> {
    /// A search over groups of ranges, with the numbers that stand out of a group asked for one by one.
    fn search(&mut self, groups: &[&[Range]]) -> Target {
        let (low, high) = match groups {
            [group] => return self.group(group),
            _ => groups.split_at(groups.len() / 2),
        };
        let above = self.search(high);
        let below = self.search(low);
        self.code.branch(Compare::GreaterOrEqual, high[0][0].first, above, below)
    }

    fn group(&mut self, group: &[Range]) -> Target {
        let around = self.leaf(group[0].verdict);
        group.iter().skip(1).step_by(2).rev().fold(around, |others, one| {
            let equal = self.leaf(one.verdict);
            self.code.branch(Compare::Equal, one.first, equal, others)
        })
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
    let alike = choice.alternatives.chunk_by(Alternative::differs_in_value_only);
    alike.rev().fold(Target::Return(default), |otherwise, alike| {
        let found = Target::Return(alike[0].verdict);
        match alike {
            [only] => {
                only.tests.iter().rev().fold(found, |holds, each| test(code, each, choice.wide, holds, otherwise))
            }
            many => one_of(code, many, choice.wide, found, otherwise),
        }
    })
}

impl Alternative {
    /// Whether both compare one argument for equality, with values whose upper halves are equal, and say the same then.
    fn differs_in_value_only(&self, other: &Alternative) -> bool {
        match (&self.tests[..], &other.tests[..]) {
            ([a], [b]) => {
                (a.operator, b.operator) == (Operator::Equal, Operator::Equal)
                    && a.argument == b.argument
                    && a.value >> 32 == b.value >> 32
                    && self.verdict == other.verdict
            }
            _ => false,
        }
    }
}

/// Loads the argument once and compares it with the value of each.
fn one_of(code: &mut Assembler, many: &[Alternative], wide: bool, yes: Target, no: Target) -> Target {
    let Test { argument, value, .. } = many[0].tests[0];
    let low = ARGUMENTS + 8 * u32::from(argument);
    let compare = many
        .iter()
        .rev()
        .fold(no, |others, alternative| code.branch(Compare::Equal, alternative.tests[0].value as u32, yes, others));
    let lower = code.load(low, compare);
    if wide { word_equal(code, low + 4, (value >> 32) as u32, u32::MAX, lower, no) } else { lower }
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
