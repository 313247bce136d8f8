//! From rules by name to, for each calling convention, ranges of numbers that share a verdict.
//!
//! The questions that a profile leaves open are answered as libseccomp and runc answer them:
//!
//! - A rule without tests for a call replaces all rules with tests for it, wherever they stand; of several, the first counts.
//! - Several rules with tests: the first, in the order of the profile, whose tests all hold. If none does, the default.
//! - A number above the highest that the profile mentions is a call that its author cannot have known: it gives `ENOSYS`,
//!   so that C libraries fall back, unless the default lets calls pass or is `ENOSYS` already.
//! - On i386 a rule for, say, `socket` is one for `socketcall` with `SYS_SOCKET` too. There the call's own arguments lie
//!   behind a pointer, which a filter cannot follow: its first argument goes untested, as in libseccomp.

use super::abi::{Abi, Row, X32_BIT, door};
use super::profile::{ENOSYS, Profile, Rule, Test};

/// What is done about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A `SECCOMP_RET_*` value.
    Return(u32),
    /// Depends on the arguments: an index into [`Block::choices`].
    Choice(usize),
}

/// From `first` to the next range's `first`, all calls have one verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    pub first: u32,
    pub verdict: Verdict,
}

/// Tests that must all hold, and what is returned then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alternative {
    pub tests: Vec<Test>,
    pub verdict: u32,
}

/// The first alternative that holds counts; if none does, the default.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    pub alternatives: Vec<Alternative>,
    /// Whether the arguments have 64 bits.
    pub wide: bool,
}

/// All that is done about calls of one `AUDIT_ARCH`.
#[derive(Debug)]
pub struct Block {
    pub audit: u32,
    /// From number 0, without gaps, neighbours always different.
    pub ranges: Vec<Range>,
    pub choices: Vec<Choice>,
    pub default: u32,
}

/// What happens to a call that comes by a way the profile does not list. libseccomp's default.
pub const BAD_ARCHITECTURE: u32 = 0; // SECCOMP_RET_KILL_THREAD

/// The blocks of `profile`, the native one first. `x32`: whether the kernel knows calls of x32 at all.
pub fn resolve(profile: &Profile, x32: bool) -> Vec<Block> {
    let mut blocks: Vec<Block> = Vec::new();
    for &abi in &profile.abis {
        if abi == Abi::X32 {
            continue; // lives in x86_64's block
        }
        let mut block = Block { audit: abi.audit(), ranges: Vec::new(), choices: Vec::new(), default: profile.default };
        block.add(profile, abi, 0);
        if abi == Abi::X86_64 {
            if profile.abis.contains(&Abi::X32) && !x32 {
                // The kernel's own answer, so nothing is gained by asking about each: some hundred instructions are saved.
                block.range(X32_BIT, Verdict::Return(ENOSYS));
            } else if profile.abis.contains(&Abi::X32) {
                block.add(profile, Abi::X32, X32_BIT);
            } else {
                block.range(X32_BIT, Verdict::Return(BAD_ARCHITECTURE));
                // -1 is no call of x32 but what a tracer leaves to have a call skipped: ptrace(2).
                block.range(u32::MAX, Verdict::Return(profile.default));
            }
        }
        blocks.push(block);
    }
    blocks
}

impl Block {
    /// Adds the calls of `abi`, whose numbers begin at `base`.
    fn add(&mut self, profile: &Profile, abi: Abi, base: u32) {
        let default = Verdict::Return(profile.default);
        self.range(base, default);
        let mut entries = entries(profile, abi);
        entries.sort_by_key(|entry| entry.number); // stable: the profile's order stays
        for same in entries.chunk_by(|a, b| a.number == b.number) {
            let number = base + same[0].number;
            let verdict = self.verdict(profile, same, abi);
            self.range(number, verdict);
            self.range(number + 1, default);
        }
        if let Some(highest) = profile.rows().filter_map(|row| abi.number(row)).max()
            && let Some(unknown) = profile.unknown
        {
            self.range(base + highest + 1, Verdict::Return(unknown));
        }
    }

    fn range(&mut self, first: u32, verdict: Verdict) {
        if self.ranges.last().is_some_and(|last| last.first == first) {
            self.ranges.pop();
        }
        if self.ranges.last().is_none_or(|last| last.verdict != verdict) {
            self.ranges.push(Range { first, verdict });
        }
    }

    fn verdict(&mut self, profile: &Profile, same: &[Entry], abi: Abi) -> Verdict {
        let rule = |entry: &Entry| &profile.rules[usize::from(entry.rule)];
        if let Some(always) = same.iter().find(|entry| entry.behind.is_none() && rule(entry).tests.is_empty()) {
            return Verdict::Return(rule(always).verdict);
        }
        let alternatives = same.iter().flat_map(|entry| rule(entry).alternatives(entry.behind)).collect();
        let choice = Choice { alternatives, wide: abi.wide() };
        let known = self.choices.iter().position(|known| *known == choice).unwrap_or_else(|| {
            self.choices.push(choice);
            self.choices.len() - 1
        });
        Verdict::Choice(known)
    }
}

/// A rule applied to a number.
struct Entry {
    number: u32,
    rule: u16,
    /// The call that is meant, where the number is a door to many.
    behind: Option<u8>,
}

fn entries(profile: &Profile, abi: Abi) -> Vec<Entry> {
    let mut entries = Vec::with_capacity(profile.calls.len());
    for &(row, rule) in &profile.calls {
        if profile.rules[usize::from(rule)].verdict == profile.default {
            continue; // runc leaves these out, so that they do not replace rules with tests
        }
        if abi == Abi::I386
            && let Some((number, which)) = door(row)
        {
            entries.push(Entry { number: number.into(), rule, behind: Some(which) });
        }
        if let Some(number) = abi.number(row) {
            entries.push(Entry { number, rule, behind: None });
        }
    }
    entries
}

impl Rule {
    /// The rule as alternatives; `behind` a door, the first argument says which call is meant.
    fn alternatives(&self, behind: Option<u8>) -> Vec<Alternative> {
        let sets = if self.tests.is_empty() { &[Vec::new()][..] } else { &self.tests[..] };
        sets.iter()
            .map(|tests| {
                let mut tests = tests.clone();
                if let Some(which) = behind {
                    tests.retain(|test| test.argument != 0);
                    tests.insert(0, Test::is(0, u64::from(which)));
                }
                Alternative { tests, verdict: self.verdict }
            })
            .collect()
    }
}

impl Profile {
    /// Every call that the profile mentions, whatever it says of it.
    fn rows(&self) -> impl Iterator<Item = Row> {
        self.calls.iter().map(|(row, _)| *row)
    }
}
