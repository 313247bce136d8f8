//! Capabilities as docker gives them: its defaults, and its rules for `--cap-add` and `--cap-drop`.

use crate::capability::{self, NAMES};
use crate::error::{Error, Result};

/// What docker gives a container that asks for nothing.
pub const DEFAULT: &[&str] = &[
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const ALL: &str = "CAP_ALL";

/// All that this kernel knows.
pub fn all() -> Vec<String> {
    let last = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap").ok().and_then(|text| text.trim().parse().ok());
    let known = last.map_or(NAMES.len(), |last: usize| (last + 1).min(NAMES.len()));
    NAMES[..known].iter().map(|name| (*name).to_owned()).collect()
}

/// The set that `--privileged`, `--cap-add` and `--cap-drop` ask for, sorted.
///
/// # Errors
/// `InvalidArgument`: there is no such capability.
pub fn set(privileged: bool, add: &[String], drop: &[String]) -> Result<Vec<String>> {
    let add = add.iter().map(|name| full("--cap-add", name)).collect::<Result<Vec<_>>>()?;
    let drop = drop.iter().map(|name| full("--cap-drop", name)).collect::<Result<Vec<_>>>()?;
    let has = |list: &[String], name: &str| list.iter().any(|known| known == name);
    let mut set = if privileged {
        all()
    } else if has(&add, ALL) {
        all().into_iter().filter(|name| !has(&drop, name)).collect()
    } else {
        let kept = |name: &&&str| !has(&drop, ALL) && !has(&drop, name);
        DEFAULT.iter().filter(kept).map(|name| (*name).to_owned()).chain(add).collect()
    };
    set.sort();
    set.dedup();
    Ok(set)
}

fn full(flag: &str, name: &str) -> Result<String> {
    let full = capability::full(name);
    if full == ALL || capability::is_known(&full) {
        return Ok(full);
    }
    Err(Error::InvalidArgument(format!("{flag} {name}: unknown capability")))
}

#[cfg(test)]
mod tests {

    #[test]
    fn capabilities_are_docker_s_and_change_as_asked() {
        let set = |add: &[&str], drop: &[&str]| {
            let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
            super::set(false, &words(add), &words(drop))
        };
        assert_eq!(set(&[], &[]).unwrap().len(), 14);
        assert_eq!(set(&["net_admin"], &["ALL"]).unwrap(), ["CAP_NET_ADMIN"]);
        assert!(!set(&[], &["CHOWN"]).unwrap().contains(&"CAP_CHOWN".to_owned()));
        assert!(set(&["chown"], &["CHOWN"]).unwrap().contains(&"CAP_CHOWN".to_owned()), "what is added wins");
        assert_eq!(set(&["ALL"], &[]).unwrap(), super::set(true, &[], &["ALL".into()]).unwrap());
        assert!(!set(&["ALL"], &["SYS_ADMIN"]).unwrap().contains(&"CAP_SYS_ADMIN".to_owned()));
        assert_eq!(
            set(&["NONSENSE"], &[]).unwrap_err().to_string(),
            "--cap-add NONSENSE: unknown capability: invalid argument"
        );
    }
}
