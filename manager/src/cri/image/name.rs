//! Names as kubelets give them, and as they are kept.

use crate::error::Result;
use crate::registry::Reference;

/// The full name of what somebody asks for: `busybox` is `docker.io/library/busybox:latest`. Beside a digest a tag says
/// nothing and is left out.
///
/// # Errors
/// `InvalidArgument`.
pub fn complete(text: &str) -> Result<String> {
    let text =
        text.strip_prefix("index.docker.io/").map_or_else(|| text.to_owned(), |path| format!("docker.io/{path}"));
    let full = Reference::complete(&text)?;
    let parsed = Reference::parse(&full)?;
    let official = parsed.host == "docker.io" && !parsed.repository.contains('/');
    let place = format!("{}/{}{}", parsed.host, if official { "library/" } else { "" }, parsed.repository);
    Ok(match parsed.digest {
        Some(digest) => format!("{place}@{digest}"),
        None => format!("{place}:{}", parsed.tag),
    })
}

/// The name by digest of what a full name stands for.
///
/// # Errors
/// `InvalidArgument`.
pub fn by_digest(full: &str, digest: &str) -> Result<String> {
    let parsed = Reference::parse(full)?;
    Ok(format!("{}/{}@{digest}", parsed.host, parsed.repository))
}

/// Whether digits are an id's, or enough of its first ones to mean it.
pub fn begins(id: &str, digits: &str) -> bool {
    let hex = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    hex && id.strip_prefix("sha256:").is_some_and(|id| id.starts_with(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_has_one_full_name() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, full) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("docker.io/busybox:1", "docker.io/library/busybox:1".into()),
            ("index.docker.io/library/busybox", "docker.io/library/busybox:latest".into()),
            (&format!("quay.io/a/b:tag@{digest}"), format!("quay.io/a/b@{digest}")),
            (&format!("busybox@{digest}"), format!("docker.io/library/busybox@{digest}")),
            ("localhost:5000/x", "localhost:5000/x:latest".into()),
        ] {
            assert_eq!(complete(text).unwrap(), full, "{text}");
        }
        assert!(complete("a/../b").is_err());
        assert_eq!(by_digest("quay.io/a/b:tag", &digest).unwrap(), format!("quay.io/a/b@{digest}"));
    }

    #[test]
    fn the_beginning_of_an_id_is_hexadecimal() {
        assert!(begins("sha256:abc123", "abc"));
        for digits in ["", "b", "busybox", "ABC"] {
            assert!(!begins("sha256:abc123", digits), "{digits}");
        }
    }
}
