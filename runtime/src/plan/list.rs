//! Numbers as the kernel's lists have them: `0-3,7`. Source: cpuset(7), "List format".

/// A bit for each number, as sched_setaffinity(2) and set_mempolicy(2) take them.
pub type Mask = [u64; WORDS];

/// More processors than any kernel is built for by default, and as many nodes as one can have.
const WORDS: usize = 1024 / 64;

/// Reads a list. However large its numbers, no more memory is taken than a mask has (CVE-2018-20699).
///
/// # Errors
/// What is wrong with it.
pub fn read(text: &str) -> Result<Mask, String> {
    let mut mask = [0; WORDS];
    for range in text.split(',') {
        let number = |text: &str| match text.trim().parse::<usize>() {
            Ok(number) if number < WORDS * 64 => Ok(number),
            Ok(number) => Err(format!("{number} is above {}", WORDS * 64 - 1)),
            Err(_) => Err(format!("{range:?} in {text:?} is not a number or a range")),
        };
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (number(first)?, number(last)?);
        if first > last {
            return Err(format!("{range:?} ends before it begins"));
        }
        for number in first..=last {
            mask[number / 64] |= 1 << (number % 64);
        }
    }
    Ok(mask)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_has_numbers_and_ranges() {
        for (text, low) in [("0", 1), ("0-3,7", 0x8f), ("1, 2", 6), ("63", 1 << 63)] {
            assert_eq!(read(text).unwrap()[0], low, "{text}");
        }
        assert_eq!(read("1023").unwrap()[WORDS - 1], 1 << 63);
    }

    #[test]
    fn what_is_not_a_list_is_refused() {
        for text in ["", "a", "1-", "3-1", "1024", "0-4294967295", "-1", "1,,2", "99999999999999999999"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
