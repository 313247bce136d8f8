//! Signals by name and number. Source: signal(7) for this architecture; docker's spelling of real-time ones.

use anyhow::{Result, bail};

const NAMES: &[&str] = &[
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM", "TERM",
    "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "PWR", "SYS",
];
const OTHER_NAMES: &[(&str, u32)] = &[("IOT", 6), ("CLD", 17), ("POLL", 29), ("UNUSED", 31)];
/// As C libraries have it: the kernel's first two are theirs.
const RTMIN: u32 = 34;
const RTMAX: u32 = 64;

/// Reads `9`, `KILL`, `sigkill`, `SIGRTMIN+3`, `RTMAX-1`.
pub fn parse(flag: &str, text: &str) -> Result<u32> {
    if let Ok(number @ 1..=RTMAX) = text.parse() {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let listed = NAMES.iter().zip(1..).find(|(known, _)| **known == name).map(|(_, number)| number);
    let other = OTHER_NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    match listed.or(other).or_else(|| real_time(name)) {
        Some(number) => Ok(number),
        None => bail!("{flag} {text}: invalid signal"),
    }
}

fn real_time(name: &str) -> Option<u32> {
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) => RTMIN,
        (Some(above), _) => RTMIN.checked_add(above.strip_prefix('+')?.parse().ok()?)?,
        (_, Some("")) => RTMAX,
        (_, Some(below)) => RTMAX.checked_sub(below.strip_prefix('-')?.parse().ok()?)?,
        _ => return None,
    };
    (RTMIN..=RTMAX).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_its_number() {
        for (text, number) in [
            ("9", 9),
            ("KILL", 9),
            ("sigkill", 9),
            ("SIGHUP", 1),
            ("WINCH", 28),
            ("SIGSYS", 31),
            ("IOT", 6),
            ("SIGRTMIN", 34),
            ("rtmin+3", 37),
            ("SIGRTMAX-1", 63),
            ("64", 64),
        ] {
            assert_eq!(parse("-s", text).unwrap(), number, "{text}");
        }
        for bad in ["0", "65", "-9", "", "NONE", "SIG", "RTMIN+31", "RTMAX+1", "RTMIN-1", "RTMIN+x"] {
            assert!(parse("-s", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_table_is_this_machine_s() {
        for (name, number) in
            [("USR1", libc::SIGUSR1), ("CHLD", libc::SIGCHLD), ("PWR", libc::SIGPWR), ("IO", libc::SIGIO)]
        {
            assert_eq!(parse("-s", name).unwrap().cast_signed(), number, "{name}");
        }
    }
}
