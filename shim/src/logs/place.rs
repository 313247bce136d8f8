//! Where a log goes: `cri:///path/to/0.log?max_line=16384`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::PathBuf;

/// As containerd's CRI has it.
const MAX_LINE: u32 = 16384;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Absolute; empty: nothing is kept.
    pub path: PathBuf,
    /// The longest content of a record, in bytes; never 0.
    pub max_line: u32,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Bad {
    #[error("the path of the log is not absolute")]
    Relative,
    #[error("max_line={0:?} is not a number from 1 on")]
    MaxLine(String),
    #[error("{0:?} is not known: max_line is")]
    Key(String),
}

impl Place {
    /// What follows `cri://`. The path is taken as it is written, up to the last `?`.
    ///
    /// # Errors
    /// The path is not absolute, or the query holds something else.
    pub fn parse(rest: &str) -> Result<Place, Bad> {
        let (path, query) = rest.rsplit_once('?').unwrap_or((rest, ""));
        if !(path.is_empty() || path.starts_with('/')) {
            return Err(Bad::Relative);
        }
        let mut max_line = MAX_LINE;
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("max_line", number)) => {
                    let parsed = number.parse().ok().filter(|number| *number > 0);
                    max_line = parsed.ok_or_else(|| Bad::MaxLine(number.to_owned()))?;
                }
                _ => return Err(Bad::Key(pair.to_owned())),
            }
        }
        Ok(Place { path: OsString::from_vec(path.as_bytes().to_vec()).into(), max_line })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_a_path_and_the_length_of_its_lines() {
        let place = |path: &str, max_line| Ok(Place { path: path.into(), max_line });
        assert_eq!(Place::parse("/var/log/0.log"), place("/var/log/0.log", 16384));
        assert_eq!(Place::parse("/a?max_line=10"), place("/a", 10));
        assert_eq!(Place::parse(""), place("", 16384));
        assert_eq!(Place::parse("relative"), Err(Bad::Relative));
        assert_eq!(Place::parse("/a?max_line=0"), Err(Bad::MaxLine("0".into())));
        assert_eq!(Place::parse("/a?colour=red"), Err(Bad::Key("colour=red".into())));
    }
}
