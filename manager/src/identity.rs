//! Who this daemon is, and names that nobody else has.

use std::fs;
use std::path::Path;

use crate::error::{Doing as _, Result};

/// Hexadecimal digits and dashes, from the kernel. Source: random(4), `/proc/sys/kernel/random/uuid`.
///
/// # Errors
/// There is no /proc.
pub fn random() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/uuid";
    Ok(fs::read_to_string(PATH).doing(|| format!("reading {PATH}"))?.trim().to_owned())
}

/// The daemon's own, made once for each root.
///
/// # Errors
/// The file cannot be read or made.
pub fn of(root: &Path) -> Result<String> {
    let path = root.join("uuid");
    if let Ok(known) = fs::read_to_string(&path)
        && !known.trim().is_empty()
    {
        return Ok(known.trim().to_owned());
    }
    let made = random()?;
    fs::write(&path, &made).doing(|| format!("writing {}", path.display()))?;
    Ok(made)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_keeps_its_name_and_no_two_have_the_same() {
        let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let name = of(one.path()).unwrap();
        assert_eq!(of(one.path()).unwrap(), name);
        assert_ne!(of(other.path()).unwrap(), name);
        crate::names::Id::parse(&name).unwrap();
    }
}
