//! Our compiler against libseccomp, which all other runtimes use: both programs are run, for every system call.
//!
//! Debian's apt needs libseccomp, so it is on every Debian. It is opened at run time, since we link statically. What runc
//! adds to libseccomp is repeated in [`peer_program`].

#![allow(unsafe_code)] // libseccomp is a C library

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::os::fd::AsRawFd as _;

use super::abi::{Abi, Row, X32_BIT, door};
use super::interpret::{Call, run};
use super::profile::{self, Operator, Profile};
use super::{Instruction, compile_for};
use crate::spec::Seccomp;

type Init = unsafe extern "C" fn(u32) -> *mut c_void;
type Release = unsafe extern "C" fn(*mut c_void);
type ArchAdd = unsafe extern "C" fn(*mut c_void, u32) -> c_int;
type Resolve = unsafe extern "C" fn(*const c_char) -> c_int;
type RuleAdd = unsafe extern "C" fn(*mut c_void, u32, c_int, u32, *const Comparison) -> c_int;
type Export = unsafe extern "C" fn(*mut c_void, c_int) -> c_int;
type ResolveFor = unsafe extern "C" fn(u32, *const c_char) -> c_int;
type SetApi = unsafe extern "C" fn(u32) -> c_int;

/// The functions of libseccomp that we call. Source: seccomp_init(3), seccomp_rule_add(3), seccomp_export_bpf(3).
struct Library {
    init: Init,
    release: Release,
    arch_add: ArchAdd,
    resolve: Resolve,
    rule_add: RuleAdd,
    export: Export,
    set_api: SetApi,
    resolve_for: ResolveFor,
}

/// `struct scmp_arg_cmp`.
#[repr(C)]
struct Comparison {
    argument: u32,
    operator: c_int,
    first: u64,
    second: u64,
}

fn library() -> Library {
    assert_own_libc();
    let name = c"libseccomp.so.2";
    // SAFETY: the library has no constructors that touch our state.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    assert!(!handle.is_null(), "libseccomp.so.2 cannot be opened: install Debian's libseccomp2");
    let symbol = |name: &CStr| {
        // SAFETY: `handle` is an open library, `name` a C string.
        let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
        assert!(!address.is_null(), "libseccomp lacks {name:?}");
        address
    };
    macro_rules! function {
        ($name:literal, $prototype:ty) => {
            // SAFETY: the type is the function's prototype in seccomp.h.
            unsafe { std::mem::transmute::<*mut c_void, $prototype>(symbol($name)) }
        };
    }
    Library {
        init: function!(c"seccomp_init", Init),
        release: function!(c"seccomp_release", Release),
        arch_add: function!(c"seccomp_arch_add", ArchAdd),
        resolve: function!(c"seccomp_syscall_resolve_name", Resolve),
        rule_add: function!(c"seccomp_rule_add_array", RuleAdd),
        export: function!(c"seccomp_export_bpf", Export),
        set_api: function!(c"seccomp_api_set", SetApi),
        resolve_for: function!(c"seccomp_syscall_resolve_name_arch", ResolveFor),
    }
}

/// A static program that opens a library gets the system's C library along with it, which must be the one that it was
/// linked with: another would not fail, but crash.
fn assert_own_libc() {
    // SAFETY: gives a constant string.
    let version = unsafe { gnu_get_libc_version() };
    // SAFETY: the string ends in a zero byte and is never freed.
    let ours = unsafe { CStr::from_ptr(version) }.to_str().unwrap();
    let libc = std::fs::read("/lib/x86_64-linux-gnu/libc.so.6").unwrap();
    let banner = format!("stable release version {ours}.");
    let same = libc.windows(banner.len()).any(|window| window == banner.as_bytes());
    assert!(same, "built with glibc {ours}, which this machine does not have: run this test where it was built");
}

unsafe extern "C" {
    fn gnu_get_libc_version() -> *const c_char;
}

/// What runc makes of the profile through libseccomp, without the `ENOSYS` part, which it puts in front.
fn peer_program(library: &Library, seccomp: &Seccomp, profile: &Profile) -> Vec<Instruction> {
    // SAFETY: plain integers in and out; 6 is the level of notifications, which the kernel is not asked about here.
    unsafe { (library.set_api)(6) };
    // SAFETY: as above.
    let context = unsafe { (library.init)(profile.default) };
    assert!(!context.is_null());
    for abi in &profile.abis {
        let token = token(*abi);
        // SAFETY: `context` is live.
        let done = unsafe { (library.arch_add)(context, token) };
        assert!(done == 0 || done == -libc::EEXIST, "adding {abi:?}: {done}");
    }
    for (entry, rule) in seccomp.syscalls.iter().zip(&profile.rules) {
        for name in &entry.names {
            let name = CString::new(name.as_str()).unwrap();
            // SAFETY: a C string.
            let number = unsafe { (library.resolve)(name.as_ptr()) };
            if number == -1 || rule.verdict == profile.default {
                continue;
            }
            let always = [Vec::new()];
            for tests in if rule.tests.is_empty() { &always[..] } else { &rule.tests } {
                let tests: Vec<Comparison> = tests.iter().map(comparison).collect();
                // SAFETY: `tests` holds as many comparisons as is said.
                let done =
                    unsafe { (library.rule_add)(context, rule.verdict, number, tests.len() as u32, tests.as_ptr()) };
                assert_eq!(done, 0, "a rule for {name:?} in {seccomp:?}");
            }
        }
    }
    let mut file: File = rustix::fs::memfd_create("filter", rustix::fs::MemfdFlags::CLOEXEC).unwrap().into();
    // SAFETY: the file is open.
    let done = unsafe { (library.export)(context, file.as_raw_fd()) };
    assert_eq!(done, 0, "exporting the filter");
    // SAFETY: `context` is not used again.
    unsafe { (library.release)(context) };
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    bytes
        .chunks_exact(8)
        .map(|raw| Instruction {
            code: u16::from_le_bytes([raw[0], raw[1]]),
            jt: raw[2],
            jf: raw[3],
            k: u32::from_le_bytes([raw[4], raw[5], raw[6], raw[7]]),
        })
        .collect()
}

/// libseccomp's name for a convention: `SCMP_ARCH_*`.
fn token(abi: Abi) -> u32 {
    if abi == Abi::X32 { 0x4000_003e } else { abi.audit() }
}

fn comparison(test: &profile::Test) -> Comparison {
    let (operator, first, second) = match test.operator {
        Operator::NotEqual => (1, test.value, 0),
        Operator::Less => (2, test.value, 0),
        Operator::LessOrEqual => (3, test.value, 0),
        Operator::Equal => (4, test.value, 0),
        Operator::GreaterOrEqual => (5, test.value, 0),
        Operator::Greater => (6, test.value, 0),
        Operator::MaskedEqual(mask) => (7, mask, test.value),
    };
    Comparison { argument: test.argument.into(), operator, first, second }
}

/// Compares both programs on every number, with arguments around every value that is tested.
fn assert_alike(library: &Library, json: &serde_json::Value) {
    let text = json.to_string();
    let seccomp: Seccomp = serde_json::from_str(&text).unwrap();
    let profile = profile::read(&seccomp).unwrap();
    let ours = compile_for(&seccomp, true).unwrap().instructions;
    let theirs = peer_program(library, &seccomp, &profile);
    let tested: Vec<&profile::Test> = profile.rules.iter().flat_map(|rule| rule.tests.iter().flatten()).collect();
    let mut arguments = vec![[0; 6], [u64::MAX; 6]];
    for test in &tested {
        for value in [
            test.value,
            test.value.wrapping_add(1),
            test.value.wrapping_sub(1),
            test.value ^ (1 << 32),
            test.value ^ (1 << 63),
            test.value | 0xffff_ffff,
            test.value << 32,
        ] {
            let mut all = [value; 6];
            arguments.push(all);
            all = arguments[arguments.len() / 2];
            all[usize::from(test.argument)] = value;
            arguments.push(all);
        }
    }
    let mut conventions = vec![(0xdead_beef, None, 0)];
    for abi in [Abi::X86_64, Abi::I386, Abi::X32, Abi::Aarch64, Abi::Arm] {
        conventions.push((abi.audit(), Some(abi), if abi == Abi::X32 { X32_BIT } else { 0 }));
    }
    let sensitive = |number: u32, abi: Option<Abi>| {
        abi == Some(Abi::I386) && matches!(number, 102 | 117)
            || profile.calls.iter().any(|(row, rule)| {
                !profile.rules[usize::from(*rule)].tests.is_empty()
                    && abi.and_then(|abi| abi.number(*row)) == Some(number)
            })
    };
    for (arch, abi, base) in conventions {
        let highest = abi.filter(|abi| profile.abis.contains(abi)).and_then(|abi| {
            // The pseudo calls of i386 have no number in libseccomp, so they do not count as the highest.
            profile.calls.iter().filter_map(|(row, _)| abi.number(*row)).max()
        });
        for number in (0..500).chain([0xf_0001, 0xf_0005, 0x3fff_ffff]) {
            let many = sensitive(number, abi);
            for arguments in if many { &arguments[..] } else { &arguments[..2] } {
                let mut arguments = *arguments;
                if many && abi == Some(Abi::I386) && matches!(number, 102 | 117) {
                    arguments[0] %= 32; // which call is meant
                }
                let call = Call { number: number + base, arch, arguments };
                let expected = match profile.unknown {
                    Some(enosys) if highest.is_some_and(|highest| number > highest) => enosys,
                    _ => run(&theirs, &call),
                };
                assert_eq!(run(&ours, &call), expected, "{abi:?} {call:?} under {text}");
            }
        }
    }
    let skipped = Call { number: u32::MAX, arch: Abi::X86_64.audit(), arguments: [0; 6] };
    if !profile.abis.contains(&Abi::X32) {
        assert_eq!(run(&ours, &skipped), run(&theirs, &skipped), "a call that a tracer skips, under {text}");
    }
}

/// Random numbers that are the same in each run: xorshift64.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % sides
    }

    fn one_of<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.roll(of.len() as u64) as usize]
    }
}

/// Names with few and many neighbours, of one convention only, behind a door, unknown to all.
const NAMES: &[&str] = &[
    "read",
    "write",
    "open",
    "close",
    "socket",
    "socketpair",
    "accept",
    "connect",
    "recv",
    "send",
    "shmget",
    "semop",
    "msgrcv",
    "clone",
    "personality",
    "ioctl",
    "chown32",
    "fstat64",
    "_llseek",
    "mmap2",
    "socketcall",
    "ipc",
    "arch_prctl",
    "statx",
    "clock_gettime64",
    "set_tls",
    "no_such_call",
    "openat2",
    "faccessat2",
    "sync_file_range",
    "kcmp",
    "preadv",
    "execve",
];

fn random_profile(dice: &mut Dice) -> serde_json::Value {
    let actions = ["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_LOG", "SCMP_ACT_TRAP", "SCMP_ACT_KILL_PROCESS"];
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    let architectures = ["X86_64", "X86", "X32", "AARCH64", "ARM"];
    // Which of two rules with tests wins where both hold and differ is chance in libseccomp: give each number one verdict,
    // and so all calls behind a door.
    let mut verdicts: Vec<(&str, u64)> = NAMES.iter().map(|_| (*dice.one_of(&actions), dice.roll(40))).collect();
    for (index, name) in NAMES.iter().enumerate() {
        let own = Row::find(name).map(|row| (door(row), Abi::I386.number(row)));
        match own {
            Some((Some((102, _)), _) | (_, Some(102))) => verdicts[index] = verdicts[0],
            Some((Some((117, _)), _) | (_, Some(117))) => verdicts[index] = verdicts[1],
            _ => {}
        }
    }
    let mut syscalls = vec![serde_json::json!({"names": ["statx"], "action": "SCMP_ACT_ALLOW"})];
    let mut tested = vec!["socketcall", "ipc", "statx"];
    for _ in 0..dice.roll(60) {
        let index = dice.roll(NAMES.len() as u64) as usize;
        let (name, (action, errno)) = (NAMES[index], verdicts[index]);
        let mut entry = serde_json::json!({"names": [name], "action": action});
        if action == "SCMP_ACT_ERRNO" {
            entry["errnoRet"] = errno.into();
        }
        // libseccomp merges several sets of tests for one call wrongly where they compare one argument by more and less
        // (2.5.4 and 2.6.1: `< 4` or `< 2^39` fails for 2^31), so each call gets one set, and each argument one test.
        if dice.roll(3) > 0 && !tested.contains(&name) {
            tested.push(name);
            let first = dice.roll(6);
            let args: Vec<_> = (first..6.min(first + 1 + dice.roll(3)))
                .map(|index| {
                    let value = {
                        let below = *dice.one_of(&[5, 1 << 40]);
                        dice.roll(below)
                    };
                    let op = format!("SCMP_CMP_{}", dice.one_of(&operators));
                    serde_json::json!({"index": index, "value": value, "valueTwo": dice.roll(1 << 36), "op": op})
                })
                .collect();
            entry["args"] = args.into();
        }
        syscalls.push(entry);
    }
    let listed: Vec<_> =
        architectures.iter().filter(|_| dice.roll(2) == 0).map(|arch| format!("SCMP_ARCH_{arch}")).collect();
    serde_json::json!({"defaultAction": dice.one_of(&actions), "architectures": listed, "syscalls": syscalls})
}

#[test]
fn every_number_is_the_one_that_libseccomp_knows() {
    let library = library();
    for (name, numbers) in super::table::ROWS {
        let text = CString::new(*name).unwrap();
        for (abi, ours) in [Abi::X86_64, Abi::I386, Abi::X32, Abi::Aarch64, Abi::Arm].into_iter().zip(numbers) {
            // SAFETY: a C string.
            let theirs = unsafe { (library.resolve_for)(token(abi), text.as_ptr()) };
            // Below zero: unknown to it, or a pseudo call of its own for those behind a door.
            if theirs >= 0 {
                let bit = if abi == Abi::X32 { X32_BIT as i32 } else { 0 };
                assert_eq!(*ours, theirs - bit, "{name} of {abi:?}");
            }
        }
    }
}

#[test]
fn random_profiles_mean_what_libseccomp_says() {
    let library = library();
    let mut dice = Dice(0x7a7e);
    for _ in 0..120 {
        assert_alike(&library, &random_profile(&mut dice));
    }
}

/// The meaning of a profile, spelt out: what a filter must return for a call of the native convention.
fn meaning(profile: &Profile, abi: Abi, call: &Call) -> u32 {
    let rules = || {
        let of_call = profile.calls.iter().filter(|(row, _)| abi.number(*row) == Some(call.number));
        of_call.map(|(_, rule)| &profile.rules[usize::from(*rule)]).filter(|rule| rule.verdict != profile.default)
    };
    let holds = |test: &profile::Test| {
        let argument = call.arguments[usize::from(test.argument)];
        match test.operator {
            Operator::NotEqual => argument != test.value,
            Operator::Less => argument < test.value,
            Operator::LessOrEqual => argument <= test.value,
            Operator::Equal => argument == test.value,
            Operator::GreaterOrEqual => argument >= test.value,
            Operator::Greater => argument > test.value,
            Operator::MaskedEqual(mask) => argument & mask == test.value,
        }
    };
    if let Some(always) = rules().find(|rule| rule.tests.is_empty()) {
        return always.verdict;
    }
    let found = rules().find(|rule| rule.tests.iter().any(|tests| tests.iter().all(holds)));
    found.map_or(profile.default, |rule| rule.verdict)
}

#[test]
fn many_tests_of_one_call_mean_what_the_profile_says() {
    let mut dice = Dice(0x5eed);
    let operators = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
    for _ in 0..300 {
        let values: Vec<u64> = (0..4).map(|_| dice.roll(3) << (31 * dice.roll(3))).collect();
        let syscalls: Vec<_> = (0..1 + dice.roll(6))
            .map(|errno| {
                let args: Vec<_> = (0..1 + dice.roll(3))
                    .map(|_| {
                        serde_json::json!({"index": dice.roll(3), "op": format!("SCMP_CMP_{}", dice.one_of(&operators)),
                            "value": dice.one_of(&values), "valueTwo": dice.one_of(&values)})
                    })
                    .collect();
                serde_json::json!({"names": ["ioctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno, "args": args})
            })
            .collect();
        let json = serde_json::json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": syscalls});
        let seccomp: Seccomp = serde_json::from_value(json.clone()).unwrap();
        let (profile, program) = (profile::read(&seccomp).unwrap(), compile_for(&seccomp, true).unwrap());
        let number = Abi::NATIVE.number(Row::find("ioctl").unwrap()).unwrap();
        for _ in 0..100 {
            let mut arguments = [0; 6];
            arguments.fill_with(|| dice.one_of(&values).wrapping_add(dice.roll(3)).wrapping_sub(1));
            let call = Call { number, arch: Abi::NATIVE.audit(), arguments };
            let expected = meaning(&profile, Abi::NATIVE, &call);
            assert_eq!(run(&program.instructions, &call), expected, "{call:?} under {json}");
        }
    }
}
