//! Sizes as people write and read them.

/// Bytes with a unit: powers of 1024, as docker reads `-m`.
///
/// # Errors
/// What is wrong with the text.
pub fn parse(text: &str) -> Result<i64, String> {
    let wrong = || format!("{text:?} is not a size such as 64m or 1g");
    let lower = text.to_ascii_lowercase();
    let plain = lower.strip_suffix("ib").or(lower.strip_suffix('b')).unwrap_or(&lower);
    let (digits, shift) = match plain.chars().last() {
        Some('k') => (&plain[..plain.len() - 1], 10),
        Some('m') => (&plain[..plain.len() - 1], 20),
        Some('g') => (&plain[..plain.len() - 1], 30),
        Some('t') => (&plain[..plain.len() - 1], 40),
        _ => (plain, 0),
    };
    let number: f64 = digits.parse().map_err(|_| wrong())?;
    let bytes = number * f64::from(1 << (shift / 2)) * f64::from(1 << (shift - shift / 2));
    if (0.0..9e18).contains(&bytes) { Ok(bytes as i64) } else { Err(wrong()) }
}

/// A size, or -1 for no limit.
///
/// # Errors
/// As [`parse`].
pub fn parse_or_unlimited(text: &str) -> Result<i64, String> {
    if text == "-1" { Ok(-1) } else { parse(text) }
}

/// `12.3 MB`.
pub fn show(bytes: u64) -> String {
    let mut value = bytes as f64;
    for unit in ["B", "kB", "MB", "GB"] {
        if value < 1000.0 {
            return if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1000.0;
    }
    format!("{value:.1} TB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, bytes) in [("64m", 64 << 20), ("1g", 1 << 30), ("512", 512), ("1.5k", 1536), ("2GiB", 2 << 30)] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "m", "-1", "12x", "1e99"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert_eq!(show(1_234_567), "1.2 MB");
    }
}
