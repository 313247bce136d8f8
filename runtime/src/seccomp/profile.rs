//! Reads `linux.seccomp`: words become values, and what cannot be meant is refused by the name of its field.

use super::abi::{Abi, Row};
use super::{Error, Listener, Name};
use crate::spec;

/// A profile that was understood.
#[derive(Debug)]
pub struct Profile {
    /// What is returned for a call that no rule speaks of.
    pub default: u32,
    /// What is returned for a call that is newer than the profile, if that differs from the default.
    pub unknown: Option<u32>,
    /// The native convention first.
    pub abis: Vec<Abi>,
    pub rules: Vec<Rule>,
    /// Each call with the index of the rule that names it, in the order of the profile.
    pub calls: Vec<(Row, u16)>,
    pub flags: u32,
    pub listener: Option<Listener>,
}

/// What an entry of `syscalls` says about the calls that it names.
#[derive(Debug)]
pub struct Rule {
    pub verdict: u32,
    /// Sets of tests. A set holds if all its tests hold; the rule applies if any set holds, or if there is none.
    pub tests: Vec<Vec<Test>>,
}

/// A condition on one argument.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Test {
    pub argument: u8,
    pub operator: Operator,
    pub value: u64,
}

/// All comparisons are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operator {
    NotEqual,
    Less,
    LessOrEqual,
    Equal,
    GreaterOrEqual,
    Greater,
    /// Equal in these bits.
    MaskedEqual(u64),
}

impl Test {
    pub fn is(argument: u8, value: u64) -> Test {
        Test { argument, operator: Operator::Equal, value }
    }
}

/// What may follow a call: `SECCOMP_RET_*`, linux/seccomp.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    KillThread,
    KillProcess,
    Trap,
    Errno,
    Trace,
    Allow,
    Log,
    Notify,
}

/// The words for actions. Source: runtime-spec config-linux.md, "Seccomp"; `SCMP_ACT_KILL` is libseccomp's old word.
const ACTION_WORDS: &[(&str, Action)] = &[
    ("SCMP_ACT_ALLOW", Action::Allow),
    ("SCMP_ACT_ERRNO", Action::Errno),
    ("SCMP_ACT_KILL", Action::KillThread),
    ("SCMP_ACT_KILL_PROCESS", Action::KillProcess),
    ("SCMP_ACT_KILL_THREAD", Action::KillThread),
    ("SCMP_ACT_LOG", Action::Log),
    ("SCMP_ACT_NOTIFY", Action::Notify),
    ("SCMP_ACT_TRACE", Action::Trace),
    ("SCMP_ACT_TRAP", Action::Trap),
];

/// The words for conventions; those without one are known to the specification, but no kernel that runs this program
/// ever reports them, so rules for them have no effect.
const ARCHITECTURE_WORDS: &[(&str, Option<Abi>)] = &[
    ("SCMP_ARCH_AARCH64", Some(Abi::Aarch64)),
    ("SCMP_ARCH_ARM", Some(Abi::Arm)),
    ("SCMP_ARCH_X32", Some(Abi::X32)),
    ("SCMP_ARCH_X86", Some(Abi::I386)),
    ("SCMP_ARCH_X86_64", Some(Abi::X86_64)),
    ("SCMP_ARCH_LOONGARCH64", None),
    ("SCMP_ARCH_M68K", None),
    ("SCMP_ARCH_MIPS", None),
    ("SCMP_ARCH_MIPS64", None),
    ("SCMP_ARCH_MIPS64N32", None),
    ("SCMP_ARCH_MIPSEL", None),
    ("SCMP_ARCH_MIPSEL64", None),
    ("SCMP_ARCH_MIPSEL64N32", None),
    ("SCMP_ARCH_PARISC", None),
    ("SCMP_ARCH_PARISC64", None),
    ("SCMP_ARCH_PPC", None),
    ("SCMP_ARCH_PPC64", None),
    ("SCMP_ARCH_PPC64LE", None),
    ("SCMP_ARCH_RISCV64", None),
    ("SCMP_ARCH_S390", None),
    ("SCMP_ARCH_S390X", None),
    ("SCMP_ARCH_SH", None),
    ("SCMP_ARCH_SHEB", None),
];

// SECCOMP_FILTER_FLAG_*, linux/seccomp.h.
const TSYNC: u32 = 1;
const LOG: u32 = 1 << 1;
const SPEC_ALLOW: u32 = 1 << 2;
const NEW_LISTENER: u32 = 1 << 3;
const TSYNC_ESRCH: u32 = 1 << 4;
const WAIT_KILLABLE_RECV: u32 = 1 << 5;

const FLAG_WORDS: &[(&str, u32)] = &[
    ("SECCOMP_FILTER_FLAG_LOG", LOG),
    ("SECCOMP_FILTER_FLAG_SPEC_ALLOW", SPEC_ALLOW),
    ("SECCOMP_FILTER_FLAG_TSYNC", TSYNC),
    ("SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV", WAIT_KILLABLE_RECV),
];

const OPERATOR_WORDS: &[(&str, Operator)] = &[
    ("SCMP_CMP_EQ", Operator::Equal),
    ("SCMP_CMP_GE", Operator::GreaterOrEqual),
    ("SCMP_CMP_GT", Operator::Greater),
    ("SCMP_CMP_LE", Operator::LessOrEqual),
    ("SCMP_CMP_LT", Operator::Less),
    ("SCMP_CMP_MASKED_EQ", Operator::MaskedEqual(0)),
    ("SCMP_CMP_NE", Operator::NotEqual),
];

/// The words that `tare features` prints: those that have an effect.
pub fn actions() -> impl Iterator<Item = &'static str> {
    ACTION_WORDS.iter().map(|(word, _)| *word)
}
pub fn architectures() -> impl Iterator<Item = &'static str> {
    ARCHITECTURE_WORDS.iter().filter(|(_, abi)| abi.is_some()).map(|(word, _)| *word)
}
pub fn flags() -> impl Iterator<Item = &'static str> {
    FLAG_WORDS.iter().map(|(word, _)| *word)
}
pub fn operators() -> impl Iterator<Item = &'static str> {
    OPERATOR_WORDS.iter().map(|(word, _)| *word)
}

/// What the kernel says of a call that it does not know: `SECCOMP_RET_ERRNO` with that number.
pub const ENOSYS: u32 = 0x0005_0000 | 38;

/// Reads the profile.
pub fn read(seccomp: &spec::Seccomp) -> Result<Profile, Error> {
    let default_action = word(ACTION_WORDS, &seccomp.default_action, || ".defaultAction".into())?;
    if default_action == Action::Notify {
        return Err(Error::at(".defaultAction", "SCMP_ACT_NOTIFY would stop the hand-over of its own listener"));
    }
    let default = verdict(default_action, seccomp.default_errno_ret, || ".defaultErrnoRet".into())?;

    let mut profile = Profile {
        default,
        unknown: unknown(default_action, default),
        abis: abis(&seccomp.architectures)?,
        rules: Vec::with_capacity(seccomp.syscalls.len()),
        calls: Vec::with_capacity(512),
        flags: 0,
        listener: None,
    };
    let mut notifies = false;
    for (index, entry) in seccomp.syscalls.iter().enumerate() {
        let field = |name: &str| format!(".syscalls[{index}]{name}");
        let action = word(ACTION_WORDS, &entry.action, || field(".action"))?;
        if action == Action::Notify {
            notifies = true;
            if entry.names.iter().any(|name| name.as_str() == "write") {
                return Err(Error::at(field(".names"), "SCMP_ACT_NOTIFY cannot be used for the write syscall"));
            }
        }
        let rule = u16::try_from(index).map_err(|_| Error::at(".syscalls", "more than 65535 entries"))?;
        profile.rules.push(Rule {
            verdict: verdict(action, entry.errno_ret, || field(".errnoRet"))?,
            tests: tests(&entry.args, &field)?,
        });
        // A name that the table lacks belongs to a kernel older or newer than us: other runtimes pass over it too.
        profile.calls.extend(entry.names.iter().filter_map(Name::row).map(|row| (row, rule)));
    }
    profile.flags = flag_bits(seccomp, notifies)?;
    profile.listener = listener(seccomp, notifies)?;
    Ok(profile)
}

/// Looks a word up, or names the field that has an unknown one.
fn word<T: Copy>(words: &[(&str, T)], word: &str, field: impl FnOnce() -> String) -> Result<T, Error> {
    match words.iter().find(|(known, _)| *known == word) {
        Some((_, value)) => Ok(*value),
        None => Err(Error::at(field(), format!("{word:?} is not a known word"))),
    }
}

/// The value that the filter returns for an action; the low 16 bits are its data.
fn verdict(action: Action, errno: Option<u32>, field: impl FnOnce() -> String) -> Result<u32, Error> {
    const EPERM: u32 = 1;
    if !matches!(action, Action::Errno | Action::Trace) && errno.is_some() {
        return Err(Error::at(field(), "only SCMP_ACT_ERRNO and SCMP_ACT_TRACE take a number"));
    }
    let data = errno.unwrap_or(EPERM);
    if data > 0xffff {
        return Err(Error::at(field(), format!("{data} is above 65535")));
    }
    Ok(match action {
        Action::KillProcess => 0x8000_0000,
        Action::KillThread => 0,
        Action::Trap => 0x0003_0000,
        Action::Errno => 0x0005_0000 | data,
        Action::Notify => 0x7fc0_0000,
        Action::Trace => 0x7ff0_0000 | data,
        Action::Log => 0x7ffc_0000,
        Action::Allow => 0x7fff_0000,
    })
}

/// `ENOSYS` for calls newer than the profile. A default that lets calls pass is left alone: the author has decided. So is
/// a tracer's, which should be the one to know.
fn unknown(action: Action, default: u32) -> Option<u32> {
    let passes = matches!(action, Action::Allow | Action::Log | Action::Trace);
    (!passes && default != ENOSYS).then_some(ENOSYS)
}

fn abis<S: AsRef<str>>(architectures: &[S]) -> Result<Vec<Abi>, Error> {
    let mut abis = vec![Abi::NATIVE];
    for (index, architecture) in architectures.iter().enumerate() {
        let abi = word(ARCHITECTURE_WORDS, architecture.as_ref(), || format!(".architectures[{index}]"))?;
        if let Some(abi) = abi
            && !abis.contains(&abi)
        {
            abis.push(abi);
        }
    }
    Ok(abis)
}

fn tests(args: &[spec::SeccompArg], field: &dyn Fn(&str) -> String) -> Result<Vec<Vec<Test>>, Error> {
    let mut tests = Vec::with_capacity(args.len());
    for (index, arg) in args.iter().enumerate() {
        let operator = match word(OPERATOR_WORDS, &arg.op, || field(&format!(".args[{index}].op")))? {
            Operator::MaskedEqual(_) => Operator::MaskedEqual(arg.value),
            other => other,
        };
        if arg.index > 5 {
            return Err(Error::at(field(&format!(".args[{index}].index")), "a call has arguments 0 to 5"));
        }
        let value = if let Operator::MaskedEqual(mask) = operator { arg.value_two & mask } else { arg.value };
        tests.push(Test { argument: arg.index as u8, operator, value });
    }
    let mut seen = [false; 6];
    let twice = tests.iter().any(|test| std::mem::replace(&mut seen[usize::from(test.argument)], true));
    Ok(match tests.len() {
        0 => Vec::new(),
        // Two conditions on one argument have meant "either" since before runc could combine them at all.
        _ if twice => tests.into_iter().map(|test| vec![test]).collect(),
        _ => vec![tests],
    })
}

fn flag_bits(seccomp: &spec::Seccomp, notifies: bool) -> Result<u32, Error> {
    let mut bits = match &seccomp.flags {
        // As runc has it: without SPEC_ALLOW the kernel slows the container down against speculation. Linux 4.17.
        None => SPEC_ALLOW,
        Some(words) => {
            let mut bits = 0;
            for (index, flag) in words.iter().enumerate() {
                bits |= word(FLAG_WORDS, flag, || format!(".flags[{index}]"))?;
            }
            bits
        }
    };
    if bits & WAIT_KILLABLE_RECV != 0 && !notifies {
        return Err(Error::at(".flags", "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV needs a rule with SCMP_ACT_NOTIFY"));
    }
    if notifies {
        bits |= NEW_LISTENER;
        if bits & TSYNC != 0 {
            bits |= TSYNC_ESRCH; // else the kernel refuses the pair: seccomp(2) has one return value for both
        }
    }
    Ok(bits)
}

fn listener(seccomp: &spec::Seccomp, notifies: bool) -> Result<Option<Listener>, Error> {
    let path = seccomp.listener_path.as_deref().unwrap_or_default();
    let metadata = seccomp.listener_metadata.as_deref().unwrap_or_default();
    if path.is_empty() {
        if !metadata.is_empty() {
            return Err(Error::at(".listenerMetadata", "needs listenerPath"));
        }
        if notifies {
            return Err(Error::at(".listenerPath", "SCMP_ACT_NOTIFY needs a socket that takes the listener"));
        }
    }
    Ok(notifies.then(|| Listener { path: path.into(), metadata: metadata.into() }))
}
